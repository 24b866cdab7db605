"""Variance, signal, bias and direction of gradient estimators from independent episodes, each with an interval.

Gradients of episodes are independent vectors g_1 ... g_E of the same distribution. Two sets of them, A and B, share no data:

    variance   tr Cov(g)    E / (E - 1) (mean |g_i|^2 - |mean g_i|^2), over A
    signal     |E g|^2      mean over A . mean over B, which no noise inflates
    bias       |E g - E b|^2, b an unbiased estimator: mean of g - b over A . mean of g - b over B

Intervals are bootstrap percentiles over blocks of episodes. They need no vector but the sums of the blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_BLOCKS = 32
_RESAMPLES = 1000
_CONFIDENCE = 0.95

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Array) -> Estimate:
        """The first of the values, and percentiles of the others, which are its bootstrap replicates."""
        tail = 50.0 * (1.0 - _CONFIDENCE)
        low, high = np.percentile(values[1:], [tail, 100.0 - tail])
        return cls(float(values[0]), float(low), float(high))


class GradientSums:
    """Sums of K estimators' gradients [K, P] over episodes, in blocks, and their directions in batches.

    Args:
        num_episodes: E, which will be added.
        shape: K, P.
        groups: parts of the P parameters.
        reference: [P] with which batches are compared; None compares none.
        batch_sizes: episodes of a batch.
    """

    def __init__(
        self,
        num_episodes: int,
        shape: tuple[int, int],
        groups: Mapping[str, slice],
        *,
        reference: Array | None = None,
        batch_sizes: Sequence[int] = (),
    ) -> None:
        self.groups, self._reference = dict(groups), reference
        self.sums = np.zeros((NUM_BLOCKS, *shape))
        self.squares = {name: np.zeros((NUM_BLOCKS, shape[0])) for name in groups}
        self.counts = np.zeros(NUM_BLOCKS)
        self.cosines: dict[int, list[Array]] = {size: [] for size in batch_sizes}
        self._batches = {size: np.zeros(shape) for size in batch_sizes}
        self._num_episodes, self._added = num_episodes, 0

    def add(self, gradients: Array) -> None:
        """Count in one episode's gradients [K, P]."""
        block = self._added * NUM_BLOCKS // self._num_episodes
        self.sums[block] += gradients
        self.counts[block] += 1.0
        for name, part in self.groups.items():
            self.squares[name][block] += np.einsum("kp,kp->k", gradients[:, part], gradients[:, part])
        self._added += 1
        for size, batch in self._batches.items():
            batch += gradients
            if self._added % size == 0:
                assert self._reference is not None
                norms = np.linalg.norm(batch, axis=1) * np.linalg.norm(self._reference)
                self.cosines[size].append(batch @ self._reference / np.maximum(norms, np.finfo(float).tiny))
                batch[:] = 0.0

    @property
    def mean(self) -> Array:
        """[K, P]."""
        mean: Array = self.sums.sum(0) / self.counts.sum()
        return mean


class Resampled:
    """Bootstrap over the blocks of two sets: every quantity comes as [1 + R], the estimate itself and its replicates.

    Args:
        a: the measured episodes.
        b: the reference's.
        seed: of the resampling.
    """

    def __init__(self, a: GradientSums, b: GradientSums, *, seed: int = 0) -> None:
        self._a, self._b = a, b
        rng = np.random.default_rng(seed)
        draws = rng.multinomial(NUM_BLOCKS, np.full(NUM_BLOCKS, 1.0 / NUM_BLOCKS), size=(2, _RESAMPLES))
        self._weights = np.concatenate((np.ones((2, 1, NUM_BLOCKS)), draws), axis=1)  # [2, 1 + R, J]
        self._totals = [self._weights[0] @ a.counts, self._weights[1] @ b.counts]

    def variance(self, k: int, group: str) -> Array:
        """Trace of the covariance of one episode's gradient under estimator k, over the parameters of a group."""
        sums, weights, total = self._a.sums[:, k, self._a.groups[group]], self._weights[0], self._totals[0]
        square = weights @ self._a.squares[group][:, k] / total
        of_mean = np.einsum("ri,ij,rj->r", weights, sums @ sums.T, weights, optimize=True) / total**2
        return np.maximum(square - of_mean, 0.0) * total / (total - 1.0)

    def signal(self, k: int, *, minus: int | None = None, group: str) -> Array:
        """|E g|^2 of estimator k, or of its difference to another one; may be negative where there is too little data."""
        part = self._a.groups[group]
        a, b = (x.sums[:, k, part] - (0.0 if minus is None else x.sums[:, minus, part]) for x in (self._a, self._b))
        product: Array = np.einsum("ri,ij,rj->r", self._weights[0], a @ b.T, self._weights[1], optimize=True)
        return product / (self._totals[0] * self._totals[1])

    def cosine(self, k: int, size: int) -> Estimate:
        """Mean cosine of batches to the reference, and the interval of the mean over batches."""
        found = np.array(self._a.cosines[size])[:, k]
        error = 1.96 * found.std(ddof=1) / len(found) ** 0.5
        return Estimate(float(found.mean()), float(found.mean() - error), float(found.mean() + error))
