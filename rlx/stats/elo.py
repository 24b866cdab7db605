"""Ratings from games: Bradley and Terry's (1952) model on Elo's scale, with intervals."""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlx.stats.intervals import FEWEST

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


def rate(results: dict[tuple[int, int], Array], players: int, *, anchor: int | None = None) -> Ratings:
    """Ratings with 95 % intervals, NaN for players with fewer than 5 openings against one of the others.

    The variance of the ratings is that of the likelihood's maximum where its model of the spread is wrong (White 1982): an opening, of two
    games, counts as one observation. To the openings of each pair of players one that either wins is added in taking their variance, so
    that a pair in which one side won everything does not pass for certainty.

    Args:
        results: for pairs of players, points of the first in every pair of games from one opening [openings], from 0 to 2.
        anchor: the player at 0; otherwise the mean is.
    """
    scores, variance, few = np.zeros((players, players)), np.zeros((players, players)), np.zeros(players, dtype=bool)
    for (i, j), points in results.items():
        scores[i, j] += points.sum()
        scores[j, i] += 2.0 * len(points) - points.sum()
        few[[i, j]] |= len(points) < FEWEST
    elo = fit(scores)
    zero = elo.mean() if anchor is None else elo[anchor]
    wins = 1.0 / (1.0 + np.exp((elo[None, :] - elo[:, None]) / _SCALE))
    chance = wins * (1.0 - wins)  # variance of a game without draws
    for (i, j), points in results.items():
        added = np.append(points, [0.0, 2.0])
        relative = added.var() / (2.0 * added.mean() / 2.0 * (1.0 - added.mean() / 2.0))
        spread = 2.0 * len(points) * chance[i, j] * relative
        variance[[i, j], [i, j]] += spread
        variance[[i, j], [j, i]] -= spread
    games = (scores + scores.T) * chance
    average = 1.0 / (1.0 + np.exp(-elo / _SCALE))
    curvature = np.diag(games.sum(axis=1) + _PRIOR_GAMES * average * (1.0 - average)) - games
    bend = np.linalg.inv(curvature)
    shift = np.eye(players) - (1.0 / players if anchor is None else np.eye(players)[anchor])
    error = _SCALE * np.sqrt(np.maximum(0.0, np.diag(shift @ bend @ variance @ bend @ shift.T)))
    half = NormalDist().inv_cdf(0.975) * np.where(few, np.nan, error)
    if anchor is not None:
        half[anchor] = 0.0
    return Ratings(elo - zero, elo - zero - half, elo - zero + half)
