"""Gradient steps that fit the values of chosen actions to targets."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlx import ops
from rlx.nn.losses import Sequences
from rlx.nn.minibatches import minibatches
from rlx.nn.optim import FlatAdam
from rlx.nn.q_networks import QNetwork
from rlx.types import Tree


class QSteps(NamedTuple):
    """Statistics of S gradient steps, each computed before its step."""

    loss: Tensor  # [S]
    grad_norm: Tensor  # [S] before clipping


@torch.no_grad()
def gradient_steps(
    network: QNetwork,
    optimizer: FlatAdam,
    inputs: Tree,
    action: Tensor,
    target: Tensor,
    sequences: Sequences | None = None,
    *,
    learning_rate: float,
    order: Tensor | None = None,
    num_minibatches: int = 1,
) -> QSteps:
    """Visit every row once, with a gradient step on 0.5 (Q(s, a) - target)^2 for each of `num_minibatches` parts.

    Args:
        network, optimizer: what to learn, and how.
        inputs: [N, *], or [T, B, *] with `sequences`.
        action, target: [N], or [T, B] with `sequences`.
        sequences: of a network with memory.
        learning_rate: step size.
        order, num_minibatches: see `minibatches`.

    Raises:
        NonFiniteError: if a loss or a gradient is not finite; on an accelerator only by `optimizer.check`.
    """
    found = []
    for part, columns, steps in minibatches(inputs, (action, target), sequences, order=order, num_minibatches=num_minibatches):
        chosen, expected = columns
        assert chosen is not None
        assert expected is not None
        optimizer.zero_grad()
        q, backward = network.forward_vjp(part, *(steps[:2] if steps else ()))
        index = chosen.unsqueeze(1)
        loss, d_value = ops.value_loss(q.gather(1, index).squeeze(1), expected)
        backward(torch.zeros_like(q).scatter_(1, index, d_value.unsqueeze(1)))
        found.append((loss, optimizer.step(loss, learning_rate)))
    losses, norms = zip(*found, strict=True)
    return QSteps(torch.stack(losses), torch.stack(norms))
