"""Gradient steps on policy-gradient losses, shared by PPO, A2C and REINFORCE."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlx import ops
from rlx.distributed import World
from rlx.nn.backbone import Evaluated
from rlx.nn.losses import Batch, Gradient, PolicyGradientLoss, Sequences, Steps
from rlx.nn.minibatches import minibatches, own_parts, part_of
from rlx.nn.networks import Network
from rlx.nn.optim import NUM_LOSSES, FlatAdam
from rlx.nn.pooled import normalize_groups
from rlx.types import Tree


@torch.no_grad()
def gradient_steps(
    network: Network,
    optimizer: FlatAdam,
    loss: PolicyGradientLoss,
    batch: Batch,
    *,
    learning_rate: float,
    order: Tensor | None = None,
    num_minibatches: int = 1,
    num_envs: int = 1,
) -> Steps:
    """Visit every row of a batch once, with a gradient step for each of `num_minibatches` parts as equal as can be.

    A network with memory visits whole sequences [T] of a batch [T, B, *]. The ranks of `optimizer` visit the same minibatches together,
    each its own rows of them; statistics of the steps are then those of all ranks, and log-ratios those of this rank's rows.

    Args:
        network, optimizer, loss, batch: what to learn, how, and from what.
        learning_rate: step size.
        order: of the rows [N], or of the sequences [B]; with several ranks those of all, [T, B] as in a rollout of all environments.
        num_minibatches: gradient steps; at most the number of rows or sequences.
        num_envs: of this rank; where `order` is one of rows of several ranks.

    Raises:
        NonFiniteError: if a loss or a gradient is not finite; on an accelerator only by `optimizer.check`.
    """
    if optimizer.world.size > 1:
        by_env = batch.sequences is not None
        own = None if order is None else own_parts(order, num_envs, num_minibatches, optimizer.world, by_env=by_env)
        return _steps_of_ranks(network, optimizer, loss, batch, learning_rate, own)
    if compiled := network.compiled:
        return compiled.gradient_steps(optimizer, loss, batch, learning_rate=learning_rate, order=order, num_minibatches=num_minibatches)
    columns: tuple[Tensor | None, ...] = batch[1:-1]
    parts = minibatches(batch.inputs, columns, batch.sequences, order=order, num_minibatches=num_minibatches)
    found = []
    for inputs, rows, sequences in parts:
        gradient = _gradient(network, optimizer, loss, Batch(inputs, *rows, sequences))  # type: ignore[arg-type,call-arg]
        found.append((*gradient, optimizer.step(loss.total(*gradient[1:]), learning_rate)))
    log_ratios, *statistics = zip(*found, strict=True)
    return Steps(torch.cat(log_ratios), *(torch.stack(column) for column in statistics))


def _steps_of_ranks(
    network: Network, optimizer: FlatAdam, loss: PolicyGradientLoss, batch: Batch, learning_rate: float, parts: list[Tensor] | None
) -> Steps:
    """`gradient_steps` of several ranks: each adds its part of every minibatch, of all its rows to a single one if `parts` is None."""
    advantage, counts, totals = _pooled_advantage(batch, parts, optimizer.world)
    if loss.normalize_advantage:
        loss, batch = replace(loss, normalize_advantage=False), batch._replace(advantage=advantage)
    gradient_of: Callable[[Tensor | None], tuple[Tensor, Tensor]] = functools.partial(_gradient_of_part, network, optimizer, loss, batch)
    if compiled := network.compiled:
        gradient_of = compiled.gradients(optimizer, loss, batch, largest=max(counts))
    weights = loss.total(*torch.eye(NUM_LOSSES, device=advantage.device))
    found = []
    every: Sequence[Tensor | None] = parts or [None]
    for part, count, total in zip(every, counts, totals, strict=True):
        if count:
            log_ratio, losses = gradient_of(part)
        else:
            optimizer.zero_grad()
            log_ratio, losses = advantage.new_zeros(0), advantage.new_zeros(NUM_LOSSES)
        losses = optimizer.reduce(count / total, losses)
        found.append((log_ratio, losses, optimizer.step(weights.dot(losses), learning_rate)))
    log_ratios, all_losses, norms = zip(*found, strict=True)
    policy_loss, value_loss, entropy = torch.stack(all_losses).unbind(1)
    return Steps(torch.cat(log_ratios), policy_loss, value_loss, entropy, torch.stack(norms))


def _pooled_advantage(batch: Batch, parts: list[Tensor] | None, world: World) -> tuple[Tensor, list[int], list[int]]:
    """Advantages like those of the batch, normalised within each minibatch of all ranks.

    Returns:
        The advantages, and for each minibatch the number of this rank's rows and of all ranks' rows in it.
    """
    sizes = [batch.advantage.shape[-1]] if parts is None else [len(part) for part in parts]
    number = torch.repeat_interleave(torch.tensor(sizes))  # of the minibatch, in the order of visits
    label = number if parts is None else torch.empty_like(number).index_put_((torch.cat(parts),), number)
    label = label.expand(batch.advantage.shape)  # of a row, or of a whole sequence
    used = None if batch.sequences is None else batch.sequences.used
    chosen = torch.ones(label.shape, dtype=torch.bool) if used is None else used.cpu()
    found, counts, totals = normalize_groups(batch.advantage.cpu()[chosen], label[chosen], len(sizes), world)
    advantage = torch.zeros(label.shape).masked_scatter_(chosen, found.to(torch.float32))
    return advantage.to(batch.advantage.device), counts, totals


def _gradient_of_part(
    network: Network, optimizer: FlatAdam, loss: PolicyGradientLoss, batch: Batch, part: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`_gradient` of the rows, or sequences, with these numbers: log-ratios [M] and losses [3]."""
    inputs, rows, sequences = part_of(batch.inputs, batch[1:-1], batch.sequences, part)
    log_ratio, *losses = _gradient(network, optimizer, loss, Batch(inputs, *rows, sequences))  # type: ignore[arg-type,call-arg]
    return log_ratio, torch.stack(losses)


def batch_of(
    evaluated: Evaluated,
    *,
    action: Tensor,
    advantage: Tensor,
    target: Tensor,
    old_log_prob: Tensor | None = None,
    old_params: Tensor | None = None,
) -> Batch:
    """All steps of a rollout as a batch; actions [T, B, *], advantages and targets [T, B], and of the old policy [T * B, *] rows."""
    old_log_prob = torch.zeros_like(advantage).flatten() if old_log_prob is None else old_log_prob
    value, sequences = evaluated.value, evaluated.sequences
    if sequences is None:
        action, advantage, target, value = (x.flatten(0, 1) for x in (action, advantage, target, value))
    else:
        old_log_prob = old_log_prob.view_as(advantage)
        old_params = None if old_params is None else old_params.unflatten(0, advantage.shape)
    return Batch(evaluated.inputs, action, advantage, target, value, old_log_prob, old_params, sequences)


def _gradient(network: Network, optimizer: FlatAdam, loss: PolicyGradientLoss, batch: Batch) -> Gradient:
    """Leave the gradient of the mean loss over a minibatch of M rows in the optimiser.

    The losses and the head return their derivatives: d_x is d loss / d x.
    """
    head, num_rows = network.head, len(batch.action)
    advantage = ops.normalize(batch.advantage) if loss.normalize_advantage else batch.advantage
    optimizer.zero_grad()
    params, value, backward_network = _forward_vjp(network, batch.inputs, batch.sequences)
    log_prob, entropies, backward_head = head.evaluate(params, batch.action)
    log_ratio, entropy = log_prob - batch.old_log_prob, entropies.mean()
    if loss.objective == "clip":
        policy_loss, d_log_prob = ops.ppo_clip_loss(log_ratio, advantage, clip=loss.clip)
    elif loss.objective == "spo":
        policy_loss, d_log_prob = ops.spo_loss(log_ratio, advantage, clip=loss.clip)
    elif loss.objective == "surrogate":
        policy_loss, d_log_prob = ops.surrogate_loss(log_ratio, advantage)
    else:
        policy_loss, d_log_prob = ops.log_prob_loss(log_prob, advantage)
    d_params = backward_head(d_log_prob, -loss.entropy_coef / num_rows)
    if loss.kl_coef:
        assert batch.old_params is not None
        kl, backward_kl = head.kl(batch.old_params, params)
        policy_loss = policy_loss + loss.kl_coef * kl.mean()
        d_params = d_params + backward_kl(loss.kl_coef / num_rows)
    if loss.value_clip is None:
        value_loss, d_value = ops.value_loss(value, batch.target)
    else:
        value_loss, d_value = ops.clipped_value_loss(value, batch.old_value, batch.target, clip=loss.value_clip)
    backward_network(d_params, d_value.mul_(loss.value_coef))
    return Gradient(log_ratio, policy_loss, value_loss, entropy)


def _forward_vjp(network: Network, inputs: Tree, sequences: Sequences | None) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], None]]:
    """`Network.forward_vjp` of the rows that are used."""
    if sequences is None:
        return network.forward_vjp(inputs)
    params, value, backward = network.forward_vjp(inputs, sequences.carry, sequences.is_first)
    if sequences.used is None:
        return params, value, backward
    used = sequences.used.flatten()

    def backward_used(d_params: Tensor, d_value: Tensor) -> None:
        every = torch.zeros_like(params), torch.zeros_like(value)
        every[0][used], every[1][used] = d_params, d_value
        backward(*every)

    return params[used], value[used], backward_used
