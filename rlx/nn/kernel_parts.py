"""Parts of the kernels of `rlx.nn.kernels`: matrix products, activations, normalisation and Adam.

Matrix products are blocks of 4 x 4 with contracted multiply-adds. The order of every sum is fixed when a kernel is compiled: results
repeat bit for bit on one machine.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from rlx.kernel_memory import OPTIONS

BETA1, BETA2 = 0.9, 0.999

exact: Any = numba.njit(**OPTIONS, fastmath={"contract"})
"""For element-wise arithmetic: multiply-adds may be contracted, nothing is reordered."""
reordered: Any = numba.njit(**OPTIONS, fastmath={"contract", "reassoc", "nsz"})
"""For sums, which are taken in the order that fits vector registers; NaNs and infinities are kept."""


@exact
def add_product(w, at, row_stride, column_stride, rows, inner, x, y, spill, n):
    """y[r, :n] += sum_k w[at + r * row_stride + k * column_stride] * x[k, :n] for all rows r; what pads a block goes to `spill`."""
    zero = np.float32(0)
    for r in range(0, rows, 4):
        y0 = y[r]
        y1 = y[r + 1] if r + 1 < rows else spill[1]
        y2 = y[r + 2] if r + 2 < rows else spill[2]
        y3 = y[r + 3] if r + 3 < rows else spill[3]
        i0 = at + r * row_stride
        i1 = at + min(r + 1, rows - 1) * row_stride
        i2 = at + min(r + 2, rows - 1) * row_stride
        i3 = at + min(r + 3, rows - 1) * row_stride
        for k in range(0, inner, 4):
            k1, k2, k3 = min(k + 1, inner - 1), min(k + 2, inner - 1), min(k + 3, inner - 1)
            x0, x1, x2, x3 = x[k], x[k1], x[k2], x[k3]
            c0, c1, c2, c3 = k * column_stride, k1 * column_stride, k2 * column_stride, k3 * column_stride
            a00, a10, a20, a30 = w[i0 + c0], w[i1 + c0], w[i2 + c0], w[i3 + c0]
            a01, a11, a21, a31 = w[i0 + c1], w[i1 + c1], w[i2 + c1], w[i3 + c1]
            a02, a12, a22, a32 = w[i0 + c2], w[i1 + c2], w[i2 + c2], w[i3 + c2]
            a03, a13, a23, a33 = w[i0 + c3], w[i1 + c3], w[i2 + c3], w[i3 + c3]
            if k + 1 >= inner:
                a01 = a11 = a21 = a31 = zero
            if k + 2 >= inner:
                a02 = a12 = a22 = a32 = zero
            if k + 3 >= inner:
                a03 = a13 = a23 = a33 = zero
            for j in range(n):
                b0, b1, b2, b3 = x0[j], x1[j], x2[j], x3[j]
                y0[j] += a00 * b0 + a01 * b1 + a02 * b2 + a03 * b3
                y1[j] += a10 * b0 + a11 * b1 + a12 * b2 + a13 * b3
                y2[j] += a20 * b0 + a21 * b1 + a22 * b2 + a23 * b3
                y3[j] += a30 * b0 + a31 * b1 + a32 * b2 + a33 * b3


@reordered
def add_inner_products(x, y, out, rows, columns, n):
    """out[r * columns + c] += sum_j x[r, j] * y[c, j] for j < n."""
    for r in range(0, rows, 4):
        # The last row and column fill incomplete blocks; their results are not written.
        x0, x1, x2, x3 = x[r], x[min(r + 1, rows - 1)], x[min(r + 2, rows - 1)], x[min(r + 3, rows - 1)]
        for c in range(0, columns, 4):
            y0, y1, y2, y3 = y[c], y[min(c + 1, columns - 1)], y[min(c + 2, columns - 1)], y[min(c + 3, columns - 1)]
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = np.float32(0)
            s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = np.float32(0)
            for j in range(n):
                a0, a1, a2, a3 = x0[j], x1[j], x2[j], x3[j]
                b0, b1, b2, b3 = y0[j], y1[j], y2[j], y3[j]
                s00 += a0 * b0
                s01 += a0 * b1
                s02 += a0 * b2
                s03 += a0 * b3
                s10 += a1 * b0
                s11 += a1 * b1
                s12 += a1 * b2
                s13 += a1 * b3
                s20 += a2 * b0
                s21 += a2 * b1
                s22 += a2 * b2
                s23 += a2 * b3
                s30 += a3 * b0
                s31 += a3 * b1
                s32 += a3 * b2
                s33 += a3 * b3
            left, i = columns - c, r * columns + c
            _add_some(out, i, left, s00, s01, s02, s03)
            if r + 1 < rows:
                _add_some(out, i + columns, left, s10, s11, s12, s13)
            if r + 2 < rows:
                _add_some(out, i + 2 * columns, left, s20, s21, s22, s23)
            if r + 3 < rows:
                _add_some(out, i + 3 * columns, left, s30, s31, s32, s33)


@exact
def _add_some(out, i, count, s0, s1, s2, s3):
    """Add the first `count` of four numbers to out[i:]."""
    out[i] += s0
    if count > 1:
        out[i + 1] += s1
    if count > 2:
        out[i + 2] += s2
    if count > 3:
        out[i + 3] += s3


@reordered
def sum_of(x, n):
    total = np.float32(0)
    for j in range(n):
        total += x[j]
    return total


@reordered
def sum_of_squares(x):
    total = np.float32(0)
    for j in range(len(x)):
        total += x[j] * x[j]
    return total


@exact
def _tanh(v):
    """A quotient of polynomials, exact to 3e-7, to fill vector registers."""
    v = np.float32(7.9) if v > np.float32(7.9) else v
    v = np.float32(-7.9) if v < np.float32(-7.9) else v
    v2 = v * v
    p = np.float32(-2.76076847742355e-16) * v2 + np.float32(2.00018790482477e-13)
    p = p * v2 + np.float32(-8.60467152213735e-11)
    p = p * v2 + np.float32(5.12229709037114e-08)
    p = p * v2 + np.float32(1.48572235717979e-05)
    p = p * v2 + np.float32(6.37261928875436e-04)
    p = p * v2 + np.float32(4.89352455891786e-03)
    q = np.float32(1.19825839466702e-06) * v2 + np.float32(1.18534705686654e-04)
    q = q * v2 + np.float32(2.26843463243900e-03)
    q = q * v2 + np.float32(4.89352518554385e-03)
    return v * p / q


@exact
def activate(x, rows, n, relu):
    """Apply relu or tanh to x[:rows, :n] in place."""
    for r in range(rows):
        row = x[r]
        if relu:
            for j in range(n):
                row[j] = row[j] if not row[j] <= np.float32(0) else np.float32(0)  # a NaN stays one
        else:
            for j in range(n):
                row[j] = _tanh(row[j])


@exact
def activate_backward(d, y, rows, n, relu):
    """Multiply gradients d[:rows, :n] by the activation's derivative, a function of its output y."""
    for r in range(rows):
        dr, yr = d[r], y[r]
        if relu:
            for j in range(n):
                dr[j] = dr[j] if yr[j] > np.float32(0) else np.float32(0)
        else:
            for j in range(n):
                dr[j] *= np.float32(1) - yr[j] * yr[j]


@exact
def _elu(v):
    """exp(v) - 1 where v is negative, as 2 t / (1 - t) with t = tanh(v / 2): its digits are those of t, also near 0."""
    t = _tanh(np.float32(0.5) * (v if v < np.float32(0) else np.float32(0)))
    below = np.float32(2) * t / (np.float32(1) - t)
    return v if not v <= np.float32(0) else below  # a NaN stays one


@exact
def _silu(v):
    """The value v sigmoid(v) and its derivative; sigmoid(v) = (1 + tanh(v / 2)) / 2."""
    s = np.float32(0.5) + np.float32(0.5) * _tanh(np.float32(0.5) * v)
    y = v * s
    return y, s + y * (np.float32(1) - s)


@exact
def _gelu(v):
    """The value v Phi(v) with the normal distribution function, and its derivative Phi(v) + v exp(-v^2 / 2) / sqrt(2 pi).

    The error function is a quotient of polynomials fitted to it, exact to 8e-7; exp(-u) is (1 + t) / (1 - t) with t = tanh(-u / 2).
    """
    z = v * np.float32(0.7071067811865476)
    z = np.float32(3.92) if z > np.float32(3.92) else z
    z = np.float32(-3.92) if z < np.float32(-3.92) else z
    z2 = z * z
    p = np.float32(-1.44375838e-06) * z2 + np.float32(2.54035869e-04)
    p = p * z2 + np.float32(1.01433331e-02)
    p = p * z2 + np.float32(7.24235848e-02)
    p = p * z2 + np.float32(3.62900436e-01)
    p = p * z2 + np.float32(1.12838209e00)
    q = np.float32(2.37040338e-03) * z2 + np.float32(2.80963294e-02)
    q = q * z2 + np.float32(1.82499647e-01)
    q = q * z2 + np.float32(6.54958248e-01)
    q = q * z2 + np.float32(1)
    below = np.float32(0.5) + np.float32(0.5) * (z * p / q)
    t = _tanh(np.float32(-0.25) * v * v)
    density = np.float32(0.3989422804014327) * (np.float32(1) + t) / (np.float32(1) - t)
    return v * below, below + v * density


TANH, RELU, ELU, SILU, GELU = 0, 1, 2, 3, 4
"""Kinds of activations of `activate_as`. The derivatives of those from SILU on are no functions of their outputs."""


@exact
def activate_as(kind, x, rows, n):
    """Apply an activation to x[:rows, :n] in place."""
    if kind <= RELU:
        activate(x, rows, n, kind == RELU)
        return
    for r in range(rows):
        row = x[r]
        if kind == ELU:
            for j in range(n):
                row[j] = _elu(row[j])
        elif kind == SILU:
            for j in range(n):
                row[j] = _silu(row[j])[0]
        else:
            for j in range(n):
                row[j] = _gelu(row[j])[0]


@exact
def activate_and_differentiate(kind, x, slopes, rows, n):
    """`activate_as`, which from SILU on also writes the derivatives into slopes[:rows, :n]."""
    if kind < SILU:
        activate_as(kind, x, rows, n)
        return
    for r in range(rows):
        row, slope = x[r], slopes[r]
        if kind == SILU:
            for j in range(n):
                row[j], slope[j] = _silu(row[j])
        else:
            for j in range(n):
                row[j], slope[j] = _gelu(row[j])


@exact
def differentiate_as(kind, d, y, slopes, rows, n):
    """Multiply gradients d[:rows, :n] by the activation's derivative: of its output y, or `slopes` from SILU on."""
    if kind <= RELU:
        activate_backward(d, y, rows, n, kind == RELU)
        return
    for r in range(rows):
        dr, yr = d[r], y[r]
        if kind == ELU:
            for j in range(n):
                dr[j] *= np.float32(1) if yr[j] > np.float32(0) else yr[j] + np.float32(1)
        else:
            slope = slopes[r]
            for j in range(n):
                dr[j] *= slope[j]


@exact
def normalize_rows(x):
    """Shift and scale x [M] to mean 0 and (biased) standard deviation 1, in place."""
    total = 0.0
    for v in x:
        total += v
    mean = total / len(x)
    total = 0.0
    for v in x:
        total += (v - mean) ** 2
    std = math.sqrt(total / len(x))
    for j in range(len(x)):
        x[j] = (x[j] - mean) / (std + 1e-8)


@exact
def adam(theta, grad, mean, square, factor, step_size, scale, epsilon, b1, b2):
    """One step of Adam on the gradient times `factor`; `scale` and `step_size` hold the corrections of the bias, b1 is 1 - beta1."""
    for i in range(len(theta)):
        g = grad[i] * factor
        m = mean[i] + b1 * (g - mean[i])
        v = square[i] - b2 * square[i] + b2 * g * g
        mean[i], square[i] = m, v
        theta[i] -= step_size * m / (math.sqrt(v) / scale + epsilon)
