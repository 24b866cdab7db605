"""Statistics over the rows of all ranks: each rank describes its own rows, and all merge the descriptions in the order of ranks.

On one rank they are the statistics of its rows, computed as without ranks.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlx.distributed import World

Array = NDArray[np.float64]


def moments(x: Tensor, world: World) -> tuple[float, Tensor, Tensor]:
    """The number of rows, mean [*] and biased variance [*] of x [N, *], in float64 on the CPU; N may differ by rank."""
    variance, mean = _own_moments(x)
    if world.size == 1:
        return float(len(x)), mean, variance
    packed = np.concatenate(([float(len(x))], mean.flatten().numpy(), variance.flatten().numpy()))
    every = world.all_float64(packed)
    size = mean.numel()
    count, pooled_mean, pooled_variance = merge(every[:, :1], every[:, 1 : 1 + size], every[:, 1 + size :])
    return count.item(), torch.from_numpy(pooled_mean).view_as(mean), torch.from_numpy(pooled_variance).view_as(mean)


def merge(count: Array, mean: Array, variance: Array) -> tuple[Array, Array, Array]:
    """Moments of W samples [W, *] to those of all of them [*] (Chan, Golub and LeVeque 1979); an empty sample has mean and variance 0."""
    total, centre, spread = count[0], mean[0], count[0] * variance[0]
    for n, m, v in zip(count[1:], mean[1:], variance[1:], strict=True):
        both = np.maximum(total + n, 1.0)
        delta = m - centre
        spread = spread + n * v + delta**2 * (total * n / both)
        centre, total = centre + delta * (n / both), total + n
    return total, centre, spread / np.maximum(total, 1.0)


def _own_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Biased variance [*] and mean [*] of x [N, *], zeros if N is 0."""
    x = x.to(torch.float64)
    if not len(x):
        return torch.zeros(x.shape[1:], dtype=x.dtype), torch.zeros(x.shape[1:], dtype=x.dtype)
    return torch.var_mean(x, dim=0, correction=0)
