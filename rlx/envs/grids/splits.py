"""Which levels are for training and which for evaluation, so that no evaluation shows what was trained on.

A level is told by its walls, goals and boxes: turned, mirrored, or with the player elsewhere it is the same one, since what is learned on
one of them serves for the others. A number that follows from these decides: one level in `SHARE` is for evaluation only, all others are for
training only. So the split needs no list, is the same for every run, and new files of levels do not move the old ones.
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
"""What is left of the numbers of levels for evaluation when divided by SHARE."""
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
    """A number uint64 for each of the boards [n, H, W], the same for those that are one level: of its images' hashes (FNV-1a) the least."""
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
