"""Gradient steps on policy-gradient losses: what PPO, A2C and REINFORCE share once each has its data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlx import ops
from rlx.nn.networks import Network
from rlx.nn.optim import FlatAdam
from rlx.types import Tree


@dataclass(frozen=True, kw_only=True)
class PolicyGradientLoss:
    """policy loss + value_coef * value loss - entropy_coef * entropy, each a mean over the rows of a minibatch."""

    objective: Literal["log_prob", "surrogate", "clip"]
    """What is maximised for a row with advantage A and probability ratio r: A log p, r A, or min(r A, clip(r) A)."""
    value_coef: float
    entropy_coef: float
    normalize_advantage: bool
    """Shift and scale advantages to zero mean and unit deviation per minibatch."""
    clip: float = 0.2
    """Half-width of the interval of r; used by objective="clip"."""
    kl_coef: float = 0.0
    """Weight of KL(old || new), which is added to the policy loss; 0 leaves it out."""
    value_clip: float | None = None
    """Bound on how far a value may move from the old one; None does not bound it."""


class Batch(NamedTuple):
    """Rows to learn from, with what the behaviour policy and the old value function gave for them."""

    inputs: Tree  # [N, *], see `Network.preprocess`
    action: Tensor  # [N, *]
    advantage: Tensor  # [N]
    target: Tensor  # [N] of the value
    old_value: Tensor  # [N]
    old_log_prob: Tensor  # [N]; zeros for objective="log_prob"
    old_params: Tensor | None  # [N, *], see `freeze` of the head; None without a KL penalty


class Steps(NamedTuple):
    """What S gradient steps report, each before its step."""

    log_ratio: Tensor  # [N] log p - log p_old, in the order in which rows were visited
    policy_loss: Tensor  # [S]
    value_loss: Tensor  # [S]
    entropy: Tensor  # [S]
    grad_norm: Tensor  # [S] before clipping


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
    """Visit every row of a batch once, in the order given [N], with a gradient step for each of `num_minibatches` equal parts.

    Raises:
        NonFiniteError: if a loss or a gradient is not finite; on an accelerator only by `optimizer.check`.
    """
    chunks = ([None] * num_minibatches if x is None else (x if order is None else x[order]).chunk(num_minibatches) for x in batch)
    found = [_step(network, optimizer, loss, Batch(*minibatch), learning_rate) for minibatch in zip(*chunks, strict=True)]
    log_ratios, *columns = zip(*found, strict=True)
    return Steps(torch.cat(log_ratios), *(torch.stack(column) for column in columns))


def _step(network: Network, optimizer: FlatAdam, loss: PolicyGradientLoss, batch: Batch, learning_rate: float) -> tuple[Tensor, ...]:
    """One step on a minibatch [M, ...]; returns log-ratios [M] and (policy loss, value loss, entropy, gradient norm).

    The losses and the head bring their derivatives: d_x is d loss / d x.
    """
    head, num_rows = network.head, len(batch.action)
    advantage = ops.normalize(batch.advantage) if loss.normalize_advantage else batch.advantage
    optimizer.zero_grad()
    params, value, backward_network = network.forward_vjp(batch.inputs)
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
