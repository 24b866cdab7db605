"""The split of levels into training and evaluation, so that no level is in both.

A level is identified by its walls, goals and boxes. Rotations, reflections and other cells for the player count as the same level. A hash
decides: one level in `SHARE` is for evaluation only, all others are for training only. The split needs no list, is the same for every run,
and does not change when files of levels are added.
"""

from __future__ import annotations

from typing import Any, Literal

import numba
import numpy as np
from numpy.typing import NDArray

from rlx.envs.splitmix import mix

Array = NDArray[Any]
Split = Literal["all", "training", "evaluation"]
SHARE = 5
HELD_OUT = 1
"""The remainder modulo SHARE of the keys of levels for evaluation."""
_FNV = 0xCBF29CE484222325
_WITHOUT_PLAYER = 7
"""The bits of walls, goals and boxes (`sokoban_levels`)."""


def in_split(keys: NDArray[np.uint64], split: Split) -> NDArray[np.bool_]:
    """Whether levels with these keys [n] belong to a split."""
    if split == "all":
        return np.ones(len(keys), dtype=bool)
    return (keys % np.uint64(SHARE) == HELD_OUT) == (split == "evaluation")


@numba.njit(cache=True, nogil=True)
def keys_of(boards: Array) -> Array:
    """A uint64 for each of the boards [n, H, W], equal for equal levels: the least hash (FNV-1a) of its eight symmetric images."""
    n, height, width = boards.shape
    keys = np.empty(n, dtype=np.uint64)
    flat = np.empty(height * width, dtype=np.uint64)
    for i in range(n):
        for r in range(height):
            for c in range(width):
                flat[r * width + c] = np.uint64(boards[i, r, c] & _WITHOUT_PLAYER)
        least = np.uint64(0xFFFFFFFFFFFFFFFF)
        for image in range(8):
            rows, columns, down, across = (width, height, 1, width) if image & 4 else (height, width, width, 1)
            start = 0
            if image & 1:
                start, down = start + (rows - 1) * down, -down
            if image & 2:
                start, across = start + (columns - 1) * across, -across
            key = np.uint64(_FNV) ^ np.uint64(columns)
            for r in range(rows):
                for c in range(columns):
                    key = (key ^ flat[start + r * down + c * across]) * np.uint64(0x100000001B3)
            least = min(least, key)
        keys[i] = mix(least)
    return keys
