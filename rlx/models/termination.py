"""Networks that learn where episodes terminate, from the observations that steps led to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rlx.models.ensemble import BatchedNetworks, moments
from rlx.nn.optim import FlatAdam


class TerminationNetworks(BatchedNetworks):
    """K networks from observations [K, M, D], which are standardised, to log-odds [K, M].

    Args:
        num_features: D.
        num_members: K.
        hidden_sizes: widths of the hidden layers.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, num_features: int, *, num_members: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__([num_features, *hidden_sizes, 1], num_members)
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))  # reciprocal of the deviation; 1 of a constant feature

    def standardise(self, obs: Tensor) -> None:
        """Set the scales to those of observations [N, D]."""
        mean, std = moments(obs)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(std > 0.0, 1.0 / std, 1.0))

    def forward(self, obs: Tensor) -> Tensor:
        return self.outputs((obs - self.mean) * self.scale)[..., 0]

    @torch.no_grad()
    def probability(self, obs: Tensor) -> Tensor:
        """Probability [K, M] that the episode terminates at observations [K, M, D]."""
        return self(obs).sigmoid()


def fit_termination(
    networks: TerminationNetworks, optimizer: FlatAdam, obs: Tensor, terminated: Tensor, *, num_steps: int, batch_size: int,
    learning_rate: float, weight_decay: float,
) -> float:  # fmt: skip
    """Fit the networks further; returns the cross-entropy of the last gradient step, as a mean over the members.

    Half of each member's batch are terminations, which are rare, weighted down to their share of the data: without them most batches
    would have none.

    Args:
        networks: changed in place.
        optimizer: of their parameters.
        obs: [N, D] that steps led to.
        terminated: [N] bool.
        num_steps: gradient steps.
        batch_size: rows of each member and gradient step.
        learning_rate: Adam's step size.
        weight_decay: weights shrink by learning_rate times this per gradient step.
    """
    networks.standardise(obs)
    ends, rest = (rows.flatten() for rows in (terminated.nonzero(), (~terminated).nonzero()))
    groups = [group for group in (ends, rest) if len(group)]
    each = max(1, batch_size // len(groups))
    weight = torch.cat([obs.new_full((each,), len(group) / len(obs) / each) for group in groups])
    loss = torch.zeros(())
    for _ in range(num_steps):
        rows = torch.cat([group[torch.randint(len(group), (networks.num_members, each), device=obs.device)] for group in groups], dim=1)
        with torch.enable_grad():
            per_member = (F.binary_cross_entropy_with_logits(networks(obs[rows]), terminated[rows].float(), reduction="none") * weight).sum(
                1
            )
            optimizer.zero_grad()
            per_member.sum().backward()
        optimizer.step(per_member.detach().sum(), learning_rate)
        networks.decay(learning_rate * weight_decay)
        loss = per_member.detach().mean()
    optimizer.check()
    return loss.item()
