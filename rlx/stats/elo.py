"""Ratings from games: Bradley and Terry's (1952) model on Elo's scale, with intervals over openings."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlx.stats.aggregate import SEED

Array = NDArray[np.float64]

_SCALE = 400.0 / np.log(10.0)
_PRIOR_GAMES = 1.0
"""Drawn games with an imaginary average player, which keep a player who never lost finite."""


class Ratings(NamedTuple):
    """One number for each of P players; a difference of 400 is 10 to 1."""

    elo: Array  # [P], their mean, or the anchor, at 0
    low: Array  # [P]
    high: Array  # [P]


def fit(scores: Array, *, iterations: int = 10_000) -> Array:
    """Ratings [P] that make the scores most likely.

    Args:
        scores: [P, P] points of player i in the games against j; a draw is half a point to each.

    Minorisation-maximisation (Hunter 2004, eq. 3), with one drawn game of everyone against an average player.
    """
    games = scores + scores.T
    strength = np.ones(len(scores))
    won = scores.sum(axis=1) + _PRIOR_GAMES / 2
    for _ in range(iterations):
        against = (games / (strength[:, None] + strength[None, :])).sum(axis=1) + _PRIOR_GAMES / (strength + 1.0)
        new = won / against
        change = np.abs(np.log(new / strength)).max()
        strength = new
        if change < 1e-10:
            break
    elo = _SCALE * np.log(strength)
    return np.asarray(elo - elo.mean())


def rate(results: dict[tuple[int, int], Array], players: int, *, anchor: int | None = None, resamples: int = 300) -> Ratings:
    """Ratings with 95 % intervals.

    Args:
        results: for pairs of players, points of the first in every pair of games from one opening [openings], from 0 to 2.
        anchor: the player at 0; otherwise the mean is.
        resamples: of the openings of every pair of players, with replacement (Efron 1979).
    """
    rng = np.random.default_rng(SEED)

    def table(draw: bool) -> Array:
        scores = np.zeros((players, players))
        for (i, j), points in results.items():
            sample = points[rng.integers(len(points), size=len(points))] if draw else points
            scores[i, j] += sample.sum()
            scores[j, i] += 2.0 * len(sample) - sample.sum()
        return scores

    def shifted(elo: Array) -> Array:
        return elo if anchor is None else elo - elo[anchor]

    elo = shifted(fit(table(draw=False)))
    drawn = np.stack([shifted(fit(table(draw=True))) for _ in range(resamples)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return Ratings(elo, low, high)
