"""Gradient steps on policy-gradient losses, shared by PPO, A2C and REINFORCE."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlx import ops
from rlx.nn.backbone import Evaluated
from rlx.nn.losses import Batch, PolicyGradientLoss, Sequences, Steps
from rlx.nn.networks import Network
from rlx.nn.optim import FlatAdam
from rlx.tree_ops import map_tree
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
    if order is None and num_minibatches > 1:
        order = torch.arange(batch.action.shape[0 if batch.sequences is None else 1], device=batch.action.device)
    parts = [None] if order is None else order.chunk(num_minibatches)
    begins: list[Tensor | None] = [None] * len(parts)
    if batch.sequences is not None and order is not None:  # read the order once, or an accelerator would be waited for at every step
        begins = [batch.sequences.is_first[:, part] for part in order.cpu().chunk(num_minibatches)]
    minibatches = (_minibatch(batch, part, is_first) for part, is_first in zip(parts, begins, strict=True))
    found = [_step(network, optimizer, loss, minibatch, learning_rate) for minibatch in minibatches]
    log_ratios, *columns = zip(*found, strict=True)
    return Steps(torch.cat(log_ratios), *(torch.stack(column) for column in columns))


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


def _minibatch(batch: Batch, part: Tensor | None, is_first: Tensor | None) -> Batch:
    """The rows of a batch with these numbers, or its sequences, whose `is_first` is given.

    Everything but the inputs of sequences is flattened to the steps that are used.
    """
    sequences, inputs = batch.sequences, batch.inputs
    columns: tuple[Tensor | None, ...] = batch[1:-1]
    if sequences is None:
        return batch if part is None else Batch(_picked(inputs, part), *(_picked(x, part) for x in columns))
    if part is not None:
        assert is_first is not None
        inputs, columns = _picked(inputs, part, 1), tuple(_picked(x, part, 1) for x in columns)
        sequences = Sequences(_picked(sequences.carry, part), is_first, _picked(sequences.used, part, 1))
    used = sequences.used
    rows = (x if x is None else x.flatten(0, 1) if used is None else x[used] for x in columns)
    return Batch(inputs, *rows, sequences)  # type: ignore[arg-type,call-arg]


def _picked(tree: Tree, index: Tensor, dim: int = 0) -> Tree:
    """Rows, or columns, of every leaf; `index_select` copies images 15 times as fast as `leaf[index]`."""
    return map_tree(lambda leaf: leaf if leaf is None else leaf.index_select(dim, index), tree)


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
