"""Statistics over the rows of all ranks: each rank describes its own rows, and all merge the descriptions in the order of ranks.

On one rank they are the statistics of its rows, computed as without ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlx import ops
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


def normalize_groups(x: Tensor, group: Tensor, num_groups: int, world: World) -> tuple[Tensor, list[int], list[int]]:
    """`ops.normalize` of x [N] within each group of rows of all ranks.

    Args:
        x: this rank's rows.
        group: [N] of each row, in [0, num_groups).
        num_groups: G.
        world: the ranks.

    Returns:
        The normalised rows [N] in float64, and for each group [G] the number of this rank's rows and of all ranks' rows in it.
    """
    x = x.to(torch.float64)
    count = torch.bincount(group, minlength=num_groups).double()
    mean = torch.bincount(group, x, num_groups) / count.clamp(min=1.0)
    variance = torch.bincount(group, (x - mean[group]).square(), num_groups) / count.clamp(min=1.0)
    every = world.all_float64(torch.stack((count, mean, variance)).numpy())
    total, pooled_mean, pooled_variance = (torch.from_numpy(y) for y in merge(every[:, 0], every[:, 1], every[:, 2]))
    found = (x - pooled_mean[group]) / (pooled_variance.sqrt()[group] + 1e-8)
    return found, count.long().tolist(), total.long().tolist()


def averages(means: Sequence[Tensor], count: int, world: World) -> list[Tensor]:
    """Means over the rows of all ranks, from this rank's means, each of one number, over `count` rows, which may be 0."""
    if world.size == 1:
        return list(means)
    own = torch.stack([mean.detach() for mean in means]).cpu().double().numpy() if count else np.zeros(len(means))
    every = world.all_float64(np.concatenate(([float(count)], own)))
    total, pooled, _ = merge(every[:, :1], every[:, 1:], np.zeros_like(every[:, 1:]))
    found = torch.from_numpy(np.where(total > 0.0, pooled, np.nan)).to(means[0].dtype)
    return list(found.to(means[0].device).unbind())


def explained_variance(prediction: Tensor, target: Tensor, world: World) -> Tensor:
    """`ops.explained_variance` over the rows of all ranks."""
    if world.size == 1:
        return ops.explained_variance(prediction, target)
    rows = torch.stack((target, target - prediction), dim=-1).flatten(0, -2)
    variance, of_error = moments(rows.cpu(), world)[2].tolist()
    return torch.tensor(1.0 - of_error / variance if variance > 0.0 else torch.nan)


def _own_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Biased variance [*] and mean [*] of x [N, *], zeros if N is 0."""
    x = x.to(torch.float64)
    if not len(x):
        return torch.zeros(x.shape[1:], dtype=x.dtype), torch.zeros(x.shape[1:], dtype=x.dtype)
    return torch.var_mean(x, dim=0, correction=0)
