"""How much an ensemble doubts its predictions: measures of the members' disagreement, and their rank correlation with true errors.

- std: the standard deviation of the members' means.
- gjs: the mean over pairs of members of ½ KL(N_ef || N_e) + ½ KL(N_ef || N_f), where N_ef has the pair's mean precision: the geometric
  Jensen-Shannon divergence in its dual form, as in the code of MACURA (Frauenknecht et al. 2024, https://arxiv.org/abs/2405.19014). For
  Gaussians it is the Bhattacharyya distance, Δ² / (4 S) + ½ log(S / (2 σ_e σ_f)) with S = σ_e² + σ_f².
- one_vs_rest: KL(N_e || N_rest), where N_rest has the moments of the other members together (M2AC, Pan et al. 2020,
  https://arxiv.org/abs/2010.04893).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Measure = Literal["std", "gjs", "one_vs_rest"]

_SMALL = 1e-30


@dataclass(frozen=True)
class Doubt:
    """A measure of disagreement.

    Args:
        measure: which.
        obs_scale: [D] standard deviations of the observations, 0 of a constant feature, the units of `std`.
    """

    measure: Measure
    obs_scale: Tensor

    def __call__(self, mean: Tensor, variance: Tensor, member: Tensor | None = None) -> Tensor:
        """Doubt [n], at least 0, about the members' next observations.

        Args:
            mean: [K, n, D] of the next observations.
            variance: [K, n, D]; a feature without variance is left out of gjs and one_vs_rest.
            member: [n] long, that one_vs_rest compares with the rest; None takes the mean over all members.
        """
        if len(mean) < 2:
            return torch.zeros_like(mean[0, :, 0])
        if self.measure == "std":
            return self._std(mean)
        mean = mean - mean.mean(0)  # near 0, so that squares keep their digits
        return gjs(mean, variance) if self.measure == "gjs" else one_vs_rest(mean, variance, member)

    def _std(self, mean: Tensor) -> Tensor:
        varies = self.obs_scale > 0.0
        weight = torch.where(varies, 1.0 / self.obs_scale.square(), 0.0) / varies.sum().clamp(min=1)
        return (mean.var(0, correction=0) @ weight.to(mean.dtype)).sqrt()


def gjs(mean: Tensor, variance: Tensor) -> Tensor:
    """Mean divergence [n] of pairs of members with means and variances [K, n, D]."""
    e, f = torch.triu_indices(len(mean), len(mean), offset=1, device=mean.device)
    total = variance[e] + variance[f]
    distance = (mean[e] - mean[f]).square() / (4.0 * total)
    overlap = 0.5 * (total.log() - math.log(2.0) - 0.5 * (variance[e].log() + variance[f].log()))
    return torch.where((variance[e] > 0.0) & (variance[f] > 0.0), distance + overlap, 0.0).sum(-1).mean(0)


def one_vs_rest(mean: Tensor, variance: Tensor, member: Tensor | None) -> Tensor:
    """Divergence [n] of a member from the rest, of members with means and variances [K, n, D]; its mean over members if none is given."""
    others = len(mean) - 1
    second = variance + mean.square()
    rest_mean = (mean.sum(0) - mean) / others
    rest = ((second.sum(0) - second) / others - rest_mean.square()).clamp(min=_SMALL)
    divergence = 0.5 * (rest.log() - variance.log() + (variance + (mean - rest_mean).square()) / rest - 1.0)
    divergence = torch.where(variance > 0.0, divergence, 0.0).sum(-1)
    return divergence.mean(0) if member is None else divergence.gather(0, member[None])[0]


def rank_correlation(x: Tensor, y: Tensor) -> float:
    """Spearman's rank correlation of x [n] and y [n]; NaN if one of them is constant."""
    if len(x) < 2 or (x == x[0]).all() or (y == y[0]).all():
        return math.nan
    from scipy.stats import spearmanr  # takes long to import

    return float(spearmanr(x.cpu().numpy(), y.cpu().numpy()).statistic)
