"""Gradient steps on policy-gradient losses, shared by PPO, A2C and REINFORCE."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlx import ops
from rlx.nn.backbone import Evaluated
from rlx.nn.losses import Batch, PolicyGradientLoss, Sequences, Steps
from rlx.nn.minibatches import minibatches
from rlx.nn.networks import Network
from rlx.nn.optim import FlatAdam
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
) -> Steps:
    """Visit every row of a batch once, with a gradient step for each of `num_minibatches` parts as equal as can be.

    A network with memory visits whole sequences [T] of a batch [T, B, *].

    Args:
        network, optimizer, loss, batch: what to learn, how, and from what.
        learning_rate: step size.
        order: of the rows [N], or of the sequences [B].
        num_minibatches: gradient steps; at most the number of rows or sequences.

    Raises:
        NonFiniteError: if a loss or a gradient is not finite; on an accelerator only by `optimizer.check`.
    """
    if compiled := network.compiled:
        return compiled.gradient_steps(optimizer, loss, batch, learning_rate=learning_rate, order=order, num_minibatches=num_minibatches)
    columns: tuple[Tensor | None, ...] = batch[1:-1]
    parts = minibatches(batch.inputs, columns, batch.sequences, order=order, num_minibatches=num_minibatches)
    found = [
        _step(network, optimizer, loss, Batch(inputs, *rows, sequences), learning_rate)  # type: ignore[arg-type,call-arg]
        for inputs, rows, sequences in parts
    ]
    log_ratios, *statistics = zip(*found, strict=True)
    return Steps(torch.cat(log_ratios), *(torch.stack(column) for column in statistics))


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


def _step(network: Network, optimizer: FlatAdam, loss: PolicyGradientLoss, batch: Batch, learning_rate: float) -> tuple[Tensor, ...]:
    """One step on a minibatch of M rows; returns log-ratios [M] and (policy loss, value loss, entropy, gradient norm).

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
    total = policy_loss + loss.value_coef * value_loss - loss.entropy_coef * entropy
    grad_norm = optimizer.step(total, learning_rate)
    return log_ratio, policy_loss, value_loss, entropy, grad_norm


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
