"""Weights from which rows are drawn in proportion, in a time that grows with the root of their number."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_ONE_BLOCK = 16_384
"""Rows up to which all weights are one block: adding up so many takes no longer than looking for a block first."""
_WIDTH = 512


class Priorities:
    """Weights of rows, in blocks whose sums are kept.

    A draw looks for the block of each number and then within that block. Sums are taken in the order of the rows, never updated by
    differences, so that they are functions of the weights and need not be saved.

    Args:
        capacity: rows, whose weights are 0 at first.
    """

    def __init__(self, capacity: int) -> None:
        self._width = _WIDTH if capacity > _ONE_BLOCK else 1 << (capacity - 1).bit_length()
        self._blocks = torch.from_numpy(np.zeros((-(-capacity // self._width), self._width)))  # takes memory only once it is written to
        self._sums = torch.zeros(len(self._blocks), dtype=torch.float64)
        self.values = self._blocks.view(-1)[:capacity]
        """[capacity] float64, to read."""
        self._array = self.values.numpy()

    def __setitem__(self, index: Tensor, weight: Tensor | float) -> None:
        """Set the weights of the rows `index` [n]."""
        self._array[index.numpy()] = weight if isinstance(weight, float) else weight.numpy()  # of the same row, the last one counts
        self._add_up(torch.div(index, self._width, rounding_mode="floor").unique())

    def _add_up(self, block: Tensor) -> None:
        self._sums[block] = self._blocks[block].cumsum(1)[:, -1]

    def draw(self, num: int) -> tuple[Tensor, Tensor]:
        """Rows [num], each drawn in proportion to its weight, and the probabilities [num] that they had."""
        upper = self._sums.cumsum(0)
        at = torch.rand(num, dtype=torch.float64) * upper[-1]
        block = torch.searchsorted(upper, at, right=True).clamp_(max=len(upper) - 1)
        rest = at - torch.cat((upper.new_zeros(1), upper[:-1]))[block]
        rest = torch.minimum(rest, self._sums[block].nextafter(upper.new_zeros(())))  # rounding must not lead beyond the block
        found, which = block.unique(return_inverse=True)
        upto = self._blocks[found].cumsum(1)
        row, step = torch.zeros_like(block), self._width
        while step > 1:  # binary search for the number of sums that are at most `rest`
            step //= 2
            row += step * (upto[which, row + step - 1] <= rest)
        index = block * self._width + row
        return index, self.values[index] / upper[-1]

    def load(self, values: Tensor) -> None:
        """Take over the weights of the first rows."""
        self._blocks.zero_()
        self.values[: len(values)] = values
        self._add_up(torch.arange(len(self._blocks)))
