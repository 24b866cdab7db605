"""Distributions of returns over fixed values.

Bellemare et al. 2017, https://arxiv.org/abs/1707.06887 (C51).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Atoms(nn.Module):
    """Evenly spaced returns, over which a network gives logits.

    Args:
        low: the least one.
        high: the greatest one.
        num_atoms: M.
    """

    values: Tensor

    def __init__(self, low: float, high: float, num_atoms: int) -> None:
        super().__init__()
        self.low, self.high, self.num_atoms = low, high, num_atoms
        self.register_buffer("values", torch.linspace(low, high, num_atoms), persistent=False)

    def mean(self, logits: Tensor) -> Tensor:
        """Logits [*, M] to expected returns [*]."""
        return logits.softmax(-1) @ self.values

    def project(self, probs: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """The distribution [N, M] of reward + discount * return, each value divided among the two atoms beside it (algorithm 1).

        Values beyond the ends count as the ends. It is a sum over all pairs of atoms, because a GPU adds at indices in no fixed order.

        Args:
            probs: [N, M] of the return.
            reward: [N].
            discount: [N], 0 after a termination.
        """
        at = (reward[:, None] + discount[:, None] * self.values).clamp(self.low, self.high)  # [N, M]
        step = (self.high - self.low) / (self.num_atoms - 1)
        share = (at[:, None, :] - self.values[:, None]).abs_().mul_(-1.0 / step).add_(1.0).clamp_(min=0.0)  # [N, M to, M from]
        return (share @ probs[:, :, None])[:, :, 0]


def cross_entropy_loss(logits: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted mean cross-entropy of distributions against targets, with its derivative.

    Args:
        logits: [N, M].
        target: [N, M], each sums to 1.
        weight: [N] of each row in the mean.

    Returns:
        The loss [], its derivative with respect to the logits [N, M], and the divergences [N] from the targets: 0 where nothing is wrong.
    """
    log_probs = logits.log_softmax(-1)
    each = -(target * log_probs).sum(-1)
    return (weight * each).mean(), (log_probs.exp() - target) * (weight / len(weight))[:, None], each + torch.xlogy(target, target).sum(-1)
