"""Compiled kernels of a gated recurrent unit over a sequence with resets, see `rlx.nn.gru`.

A step is a matrix product whose rows are environments; the units of the gates lie side by side and fill the vector registers.
"""

from __future__ import annotations

import numpy as np
from numba import types

from rlx.kernel_memory import BYTES, FLOATS, matrix
from rlx.nn.kernel_parts import activate, add_product, exact


@exact
def gru_forward(of_input, weight, bias, kept, gates, out, resets, num_steps, num_envs, size, spill):
    """Outputs [T, B, H], the gates r and z and m before the candidate [T, B, 3H], and the carries before each step, kept [T, B, H].

    `of_input` [T, B, 3H] holds what the gates get from the inputs; the candidate's part of it becomes the candidate n. The parts of r and z
    are halved, there and in weight [H, 3H]: s(v) = (1 + tanh(v / 2)) / 2. `kept` begins with the first carry, and `bias` [H] is m's.
    """
    one, two, three, half = np.int64(1), 2 * size, 3 * size, np.float32(0.5)
    w, b, pad = matrix(weight, 0, size, three), matrix(bias, 0, one, size), matrix(spill, 0, 4, three)
    for r in range(4):
        for j in range(three):
            pad[r, j] = np.float32(0)
    for t in range(num_steps):
        inputs = matrix(of_input, t * num_envs * three, num_envs, three)
        gate = matrix(gates, t * num_envs * three, num_envs, three)
        before, n = matrix(kept, t * num_envs * size, num_envs, size), matrix(out, t * num_envs * size, num_envs, size)
        last = matrix(out, max(t - 1, 0) * num_envs * size, num_envs, size)
        for i in range(num_envs):
            is_first = resets[t * num_envs + i] != 0
            for j in range(size):
                if is_first:
                    before[i, j] = np.float32(0)
                elif t > 0:
                    before[i, j] = last[i, j]
            for j in range(two):
                gate[i, j] = inputs[i, j]
            for j in range(size):
                gate[i, two + j] = b[0, j]
        add_product(kept, t * num_envs * size, size, one, num_envs, size, w, gate, pad, three)
        activate(gate, num_envs, two, False)
        for i in range(num_envs):
            for j in range(two):
                gate[i, j] = half * gate[i, j] + half
            for j in range(size):
                n[i, j] = gate[i, j] * gate[i, two + j] + inputs[i, two + j]
        activate(n, num_envs, size, False)
        for i in range(num_envs):
            for j in range(size):
                inputs[i, two + j] = n[i, j]
                n[i, j] += gate[i, size + j] * (before[i, j] - n[i, j])
    return 0


@exact
def gru_backward(d_out, of_input, weight, kept, gates, resets, d_input, d_hidden, num_steps, num_envs, size, spill):
    """Gradients of what the gates get from inputs and carries, d_input and d_hidden [T, B, 3H], from d_out [T, B, H], which is changed.

    Other arrays are those of `gru_forward`; weight [3H, H] is not halved.
    """
    one, two, three, unit = np.int64(1), 2 * size, 3 * size, np.float32(1)
    w, pad = matrix(weight, 0, three, size), matrix(spill, 0, 4 + num_envs, size)
    for r in range(4):
        for j in range(size):
            pad[r, j] = np.float32(0)
    d_before = pad[4:]
    for t in range(num_steps - 1, -1, -1):
        inputs, gate = matrix(of_input, t * num_envs * three, num_envs, three), matrix(gates, t * num_envs * three, num_envs, three)
        di, dh = matrix(d_input, t * num_envs * three, num_envs, three), matrix(d_hidden, t * num_envs * three, num_envs, three)
        before, d = matrix(kept, t * num_envs * size, num_envs, size), matrix(d_out, t * num_envs * size, num_envs, size)
        for i in range(num_envs):
            for j in range(size):
                r, z, m, n = gate[i, j], gate[i, size + j], gate[i, two + j], inputs[i, two + j]
                d_n = d[i, j] * (unit - z) * (unit - n * n)
                d_r, d_z = d_n * m * r * (unit - r), d[i, j] * (before[i, j] - n) * z * (unit - z)
                di[i, j], di[i, size + j], di[i, two + j] = d_r, d_z, d_n
                dh[i, j], dh[i, size + j], dh[i, two + j] = d_r, d_z, d_n * r
                d_before[i, j] = d[i, j] * z
        if t == 0:
            break
        add_product(d_hidden, t * num_envs * three, three, one, num_envs, three, w, d_before, pad, size)
        last = matrix(d_out, (t - 1) * num_envs * size, num_envs, size)
        for i in range(num_envs):
            if resets[t * num_envs + i] == 0:
                for j in range(size):
                    last[i, j] += d_before[i, j]
    return 0


_F, _i = FLOATS, types.int64
SIGNATURES = {
    gru_forward: _i(_F, _F, _F, _F, _F, _F, BYTES, _i, _i, _i, _F),
    gru_backward: _i(_F, _F, _F, _F, _F, BYTES, _F, _F, _i, _i, _i, _F),
}
"""What is compiled, and for which arguments; `rlx.compiled_code` calls it."""
