"""Measures of a learned model: its error k steps ahead, the coverage of its intervals, and whether disagreement predicts error.

S starts, H steps ahead, D features, M samples of the observation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Nominal coverages of the calibration."""


@dataclass(frozen=True, kw_only=True)
class ModelError:
    """A model's predictions compared with what was observed. Features that do not vary are left out."""

    features: list[int]  # [D] their places in an observation
    error: Array  # [H] root mean square over starts and features, in standard deviations of the observations
    no_change: Array  # [H] the same of predicting that nothing changes
    error_by_feature: Array  # [D] over all steps ahead
    rank: Array  # [H, S, D] see `predictive_rank`
    disagreement: Array  # [S] mean over the steps ahead
    error_by_start: Array  # [S] over all steps ahead and features

    def coverage(self, level: float) -> Array:
        """[H, D] share of the starts from which the observation lay within the central interval of a level."""
        return covered(self.rank, level).mean(axis=1)

    @property
    def spearman(self) -> float:
        """Rank correlation of disagreement and error over the starts: 1 where more disagreement always means more error."""
        return spearman(self.disagreement, self.error_by_start)


def judge(true: Array, mean: Array, rank: Array, disagreement: Array, scale: Array) -> ModelError:
    """Compare predictions with observations.

    Args:
        true: [H + 1, S, D] observations, beginning with those at the starts.
        mean: [H, S, D] predicted.
        rank: [H, S, D] of the true observations among the samples.
        disagreement: [H, S] of the members.
        scale: [D] standard deviations of the observations; 0 of a feature that does not vary.
    """
    varies = scale > 0.0
    wrong = ((mean - true[1:]) / np.where(varies, scale, 1.0))[..., varies]
    change = ((true[:1] - true[1:]) / np.where(varies, scale, 1.0))[..., varies]
    return ModelError(
        features=np.flatnonzero(varies).tolist(), error=root_mean_square(wrong, (1, 2)), no_change=root_mean_square(change, (1, 2)),
        error_by_feature=root_mean_square(wrong, (0, 1)), rank=rank[..., varies], disagreement=disagreement.mean(axis=0),
        error_by_start=root_mean_square(wrong, (0, 2)),
    )  # fmt: skip


def root_mean_square(x: Array, axis: tuple[int, ...]) -> Array:
    return np.asarray(np.sqrt(np.square(x).mean(axis=axis)))


def predictive_rank(samples: Array, true: Array) -> Array:
    """Rank of the observation [...] among samples [M, ...], in (0, 1): the share of samples below it, ties counting half.

    It is uniform where the samples have the observation's distribution (probability integral transform; Gneiting et al. 2007,
    https://doi.org/10.1111/j.1467-9868.2007.00587.x). Never 0 or 1, because the observation may be the most extreme by chance.
    """
    below = (samples < true).sum(axis=0) + 0.5 * (samples == true).sum(axis=0)
    return np.asarray((below + 0.5) / (len(samples) + 1))


def covered(rank: Array, level: float) -> NDArray[np.bool_]:
    """Whether the observation lay within the central interval that holds a share `level` of the samples."""
    return np.asarray(np.abs(rank - 0.5) <= 0.5 * level + 1e-9)


def spearman(x: Array, y: Array) -> float:
    """Spearman's (1904) rank correlation of x [n] and y [n]; NaN if a side is constant or not finite."""
    if not (np.isfinite(x).all() and np.isfinite(y).all()) or len(x) < 2 or np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return math.nan
    from scipy.stats import spearmanr  # takes long to import

    return float(spearmanr(x, y).statistic)


def windows(episodes: Sequence[tuple[NDArray[Any], NDArray[Any]]], horizon: int, most: int) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Windows of H steps within episodes, from up to `most` starts that are spread evenly over them all.

    Args:
        episodes: observations [L + 1, D] and actions [L, A] of each.
        horizon: H.
        most: starts.

    Returns:
        Observations [H + 1, S, D] and actions [H, S, A]; None if no episode lasts H steps.
    """
    places = [(e, t) for e, (_, action) in enumerate(episodes) for t in range(len(action) - horizon + 1)]
    if not places:
        return None
    places = places[:: -(-len(places) // most)]
    obs = np.stack([episodes[e][0][t : t + horizon + 1] for e, t in places], axis=1)
    action = np.stack([episodes[e][1][t : t + horizon] for e, t in places], axis=1)
    return obs, action
