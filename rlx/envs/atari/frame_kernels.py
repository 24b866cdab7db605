"""The last step from an emulator's screen to an observation: the brighter of two frames, resized to 84 x 84 by area.

Products are summed as OpenCV's INTER_AREA sums them, in float32 and in the same order, and halves are rounded to even, so that every byte
is the one that other libraries' preprocessing gives.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from rlx.kernel_memory import INTEGERS, OPTIONS, bytes_at, floats, integers

SIDE = 84
"""Height and width of an observation."""


@numba.njit(**OPTIONS)
def shrink(block):
    """Resize; block: height, width, two frames [height, width], columns and their weights [84, 3], rows and their weights [84, k], k,
    scratch [width + 84 * height] float32, out [84, 84].
    """
    height, width, a, b = block[0], block[1], bytes_at(block[2]), bytes_at(block[3])
    columns, column_weights, rows, row_weights, k = integers(block[4]), floats(block[5]), integers(block[6]), floats(block[7]), block[8]
    line, out = floats(block[9]), bytes_at(block[10])
    for y in range(height):
        for x in range(width):
            line[x] = np.float32(max(a[y * width + x], b[y * width + x]))
        for x in range(SIDE):
            i = 3 * x
            value = line[columns[i]] * column_weights[i]
            value += line[columns[i + 1]] * column_weights[i + 1]
            value += line[columns[i + 2]] * column_weights[i + 2]
            line[width + y * SIDE + x] = value
    for y in range(SIDE):
        for x in range(SIDE):
            value = np.float32(0.0)
            for j in range(k):
                value += row_weights[k * y + j] * line[width + rows[k * y + j] * SIDE + x]
            out[y * SIDE + x] = np.uint8(np.rint(value))
    return 0


SIGNATURES = {shrink: types.int64(INTEGERS)}
"""What is compiled, and for which arguments."""
