"""The weights of resizing by area, and the call of the kernel that applies them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.compiled_code import KernelModule, load, with_arguments

SIDE = 84
"""Height and width of an observation."""

_KERNELS = KernelModule("rlx.envs.atari.frame_kernels", (("shrink", "p"),))


def area_weights(size: int, to: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The pixels [to, k] that each of `to` larger pixels covers, of `size` in a row, and their shares [to, k]; shares of 0 fill rows up."""
    scale = size / to
    covers: list[list[tuple[int, float]]] = []
    for i in range(to):
        begin, end = i * scale, (i + 1) * scale
        width = min(scale, size - begin)
        first = math.ceil(begin)
        last = min(math.floor(end), size - 1)
        first = min(first, last)
        covered = [(first - 1, (first - begin) / width)] if first - begin > 1e-3 else []
        covered += [(pixel, 1.0 / width) for pixel in range(first, last)]
        covered += [(last, min(end - last, 1.0, width) / width)] if end - last > 1e-3 else []
        covers.append(covered)
    most = max(3, *map(len, covers))
    filled = [covered + [(0, 0.0)] * (most - len(covered)) for covered in covers]
    return np.array([[pixel for pixel, _ in row] for row in filled]), np.array([[share for _, share in row] for row in filled], np.float32)


def shrinker(frames: NDArray[np.uint8]) -> Callable[[], NDArray[np.uint8]]:
    """A function that writes the brighter of two frames [2, H, W] into one array [84, 84], which it returns."""
    _, height, width = frames.shape
    out = np.zeros((SIDE, SIDE), dtype=np.uint8)
    columns, rows = area_weights(width, SIDE), area_weights(height, SIDE)
    scratch = np.zeros(width + SIDE * height, dtype=np.float32)
    (kernel,) = load(_KERNELS)
    arguments: tuple[Any, ...] = height, width, frames[0], frames[1], *columns, *rows, rows[0].shape[1], scratch, out
    shrink = with_arguments(kernel, *arguments)

    def brighter() -> NDArray[np.uint8]:
        shrink()
        return out

    return brighter
