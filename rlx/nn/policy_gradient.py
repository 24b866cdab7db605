"""Gradient steps on policy-gradient losses, shared by PPO, A2C and REINFORCE."""

from __future__ import annotations

import torch
from torch import Tensor

from rlx import ops
from rlx.nn.losses import Batch, PolicyGradientLoss, Steps
from rlx.nn.networks import Network
from rlx.nn.optim import FlatAdam


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
    if compiled := network.compiled:
        return compiled.gradient_steps(optimizer, loss, batch, learning_rate=learning_rate, order=order, num_minibatches=num_minibatches)
    chunks = ([None] * num_minibatches if x is None else (x if order is None else x[order]).chunk(num_minibatches) for x in batch)
    found = [_step(network, optimizer, loss, Batch(*minibatch), learning_rate) for minibatch in zip(*chunks, strict=True)]
    log_ratios, *columns = zip(*found, strict=True)
    return Steps(torch.cat(log_ratios), *(torch.stack(column) for column in columns))


def _step(network: Network, optimizer: FlatAdam, loss: PolicyGradientLoss, batch: Batch, learning_rate: float) -> tuple[Tensor, ...]:
    """One step on a minibatch [M, ...]; returns log-ratios [M] and (policy loss, value loss, entropy, gradient norm).

    The losses and the head return their derivatives: d_x is d loss / d x.
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
