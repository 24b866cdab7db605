"""The loss and the data of a policy-gradient algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from rlx.types import Tree


@dataclass(frozen=True, kw_only=True)
class PolicyGradientLoss:
    """policy loss + value_coef * value loss - entropy_coef * entropy, each a mean over the rows of a minibatch."""

    objective: Literal["log_prob", "surrogate", "clip", "spo"]
    """The policy objective of a row with advantage A and probability ratio r: A log p, r A, min(r A, clip(r) A), or
    r A - |A| (r - 1)^2 / (2 clip)."""
    value_coef: float
    entropy_coef: float
    normalize_advantage: bool
    """Shift and scale advantages to zero mean and unit deviation per minibatch."""
    clip: float = 0.2
    """Half-width of the interval of r; used by "clip" and "spo"."""
    kl_coef: float = 0.0
    """Weight of KL(old || new), which is added to the policy loss; 0 leaves it out."""
    value_clip: float | None = None
    """Largest change of a value from the old one; None does not clip."""

    def total(self, policy_loss: Tensor, value_loss: Tensor, entropy: Tensor) -> Tensor:
        """The loss from its parts."""
        return policy_loss + self.value_coef * value_loss - self.entropy_coef * entropy


class Sequences(NamedTuple):
    """Where the data of a network with memory begins and which of its steps are learned from."""

    carry: Tree  # [B, *] before the first step
    is_first: Tensor  # [T, B] bool, on the CPU, where memories read it
    used: Tensor | None = None  # [T, B] bool; None for all


class Batch(NamedTuple):
    """Rows to learn from, with the outputs of the behaviour policy and the old value function.

    With `sequences` the rows are the steps of B sequences, [T, B, *] instead of [N, *].
    """

    inputs: Tree  # [N, *], see `Network.preprocess`
    action: Tensor  # [N, *]
    advantage: Tensor  # [N]
    target: Tensor  # [N] of the value
    old_value: Tensor  # [N]
    old_log_prob: Tensor  # [N]; zeros for objective="log_prob"
    old_params: Tensor | None  # [N, *], see `freeze` of the head; None without a KL penalty
    sequences: Sequences | None = None  # of a network with memory


class Steps(NamedTuple):
    """Statistics of S gradient steps, each computed before its step."""

    log_ratio: Tensor  # [N] log p - log p_old, in the order in which rows were visited
    policy_loss: Tensor  # [S]
    value_loss: Tensor  # [S]
    entropy: Tensor  # [S]
    grad_norm: Tensor  # [S] before clipping


class Gradient(NamedTuple):
    """What is known of M rows beside the gradient of their mean loss."""

    log_ratio: Tensor  # [M] log p - log p_old
    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor
