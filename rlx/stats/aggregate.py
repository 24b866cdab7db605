"""Aggregates over seeds, and tests of their differences; `intervals` has their confidence intervals.

Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice", says which and why.

Scores are given as strata: one array of scores for every environment, or one in all. Random numbers are seeded with SEED.

scipy.stats is not used here. Its permutation_test and bootstrap take no strata and do not studentise; its trim_mean is three times as
slow, and sums in an order that depends on the order of the scores; and importing it takes longer than most comparisons.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from rlx.stats.intervals import SEED, Scores, Strata

Statistic = Callable[[Scores], Scores]
"""From scores [..., n] to a number for each of the leading dimensions."""

_EXACT = 10_000
"""Up to so many permutations the test is exact."""


def iqm(scores: Scores) -> Scores:
    """Interquartile mean over the last axis: a quarter of the values, rounded down, is cut off at either end (Agarwal et al. 2021)."""
    ordered = np.sort(scores, axis=-1)
    cut = scores.shape[-1] // 4
    return np.asarray(ordered[..., cut : scores.shape[-1] - cut].mean(axis=-1))


def mean(scores: Scores) -> Scores:
    return np.asarray(scores.mean(axis=-1))


def median(scores: Scores) -> Scores:
    return np.asarray(np.median(scores, axis=-1))


AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "iqm": lambda values: float(iqm(np.asarray(values))),
    "mean": lambda values: float(np.mean(values)),
    "median": lambda values: float(np.median(values)),
    "min": min,
    "max": max,
}
"""How the seeds of a setting make one number."""


def optimality_gap(scores: Scores, target: float) -> float:
    """Mean of max(target - score, 0): scores above the target do not make up for those below."""
    return float(np.maximum(target - scores, 0.0).mean())


def probability_of_improvement(x: Strata, y: Strata) -> float:
    """P(X > Y) + P(X = Y) / 2 for a run of either: Mann and Whitney's (1947) U divided by the number of pairs, averaged over strata."""
    return float(np.mean([_wins(a, b) for a, b in zip(x, y, strict=True)]))


def _wins(a: Scores, b: Scores) -> Scores:
    """Mean over pairs of 1[a > b] + 1[a = b] / 2, for a [..., n] and b [..., m]."""
    difference = a[..., :, None] - b[..., None, :]
    return np.asarray((np.sign(difference) + 1.0).mean(axis=(-2, -1)) / 2.0)


def permutation_p(x: Strata, y: Strata) -> float:
    """Two-sided p-value of the probability of improvement under exchange of runs between x and y within each stratum (Fisher 1935).

    Exact for at most 10,000 exchanges, else from 9,999 random ones. Ties need no correction.
    """
    observed = abs(probability_of_improvement(x, y) - 0.5)
    if permutations(x, y) <= _EXACT:
        totals = functools.reduce(lambda sums, wins: np.add.outer(sums, wins).ravel(), map(_all_exchanges, x, y))
        return float((np.abs(totals / len(x) - 0.5) >= observed - 1e-12).mean())
    rng = np.random.default_rng(SEED)
    pooled = [np.concatenate(pair) for pair in zip(x, y, strict=True)]
    totals = np.zeros(_EXACT - 1)
    for values, a in zip(pooled, x, strict=True):
        mixed = rng.permuted(np.tile(values, (_EXACT - 1, 1)), axis=1)
        totals += _wins(mixed[:, : len(a)], mixed[:, len(a) :])
    extreme = np.abs(totals / len(x) - 0.5) >= observed - 1e-12
    return float((extreme.sum() + 1) / _EXACT)


def _all_exchanges(a: Scores, b: Scores) -> Scores:
    """Share of pairs that the first side wins, for every way to exchange runs between the two."""
    pooled = np.concatenate([a, b])
    first = np.array(list(itertools.combinations(range(len(pooled)), len(a))))
    rest = np.ones((len(first), len(pooled)), dtype=bool)
    np.put_along_axis(rest, first, False, axis=1)
    return _wins(pooled[first], pooled[np.nonzero(rest)[1].reshape(len(first), -1)])


def permutations(x: Strata, y: Strata) -> int:
    """The number of ways to exchange runs."""
    return math.prod(math.comb(len(a) + len(b), len(a)) for a, b in zip(x, y, strict=True))


def smallest_p(x: Strata, y: Strata) -> float:
    """The smallest two-sided p that so few runs can reach."""
    return min(1.0, 2.0 / permutations(x, y))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that hold for all comparisons together (Holm 1979): the k-th smallest of m times m - k + 1, made monotone."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = highest
    return corrected
