"""The cells that torch.lstm and torch.gru call on an accelerator without cuDNN, for the stand-in's kernels, which are the CPU's.

A cell's workspace is what its backward pass needs; only these functions read it.
"""

from __future__ import annotations

import torch
from torch import Tensor

_kernels = torch.library.Library("aten", "IMPL")


def _lstm(input_gates: Tensor, hidden_gates: Tensor, cx: Tensor, input_bias: Tensor | None = None, hidden_bias: Tensor | None = None):
    i, f, g, o = (input_gates + hidden_gates + _or_zero(input_bias) + _or_zero(hidden_bias)).chunk(4, dim=1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cy = f * cx + i * g
    return o * cy.tanh(), cy, torch.cat((i, f, g, o), dim=1)


def _lstm_backward(grad_hy: Tensor | None, grad_cy: Tensor | None, cx: Tensor, cy: Tensor, workspace: Tensor, has_bias: bool):
    (i, f, g, o), tanh = workspace.chunk(4, dim=1), cy.tanh()
    d_hidden = torch.zeros_like(cx) if grad_hy is None else grad_hy
    d_cell = _or_zero(grad_cy) + d_hidden * o * (1 - tanh * tanh)
    gates = (d_cell * g * i * (1 - i), d_cell * cx * f * (1 - f), d_cell * i * (1 - g * g), d_hidden * tanh * o * (1 - o))
    d_gates = torch.cat(gates, dim=1)
    return d_gates, d_cell * f, d_gates.sum(0)


def _gru(input_gates: Tensor, hidden_gates: Tensor, hx: Tensor, input_bias: Tensor | None = None, hidden_bias: Tensor | None = None):
    ir, iz, i_n = (input_gates + _or_zero(input_bias)).chunk(3, dim=1)
    hr, hz, hn = (hidden_gates + _or_zero(hidden_bias)).chunk(3, dim=1)
    r, z = (ir + hr).sigmoid(), (iz + hz).sigmoid()
    n = (i_n + r * hn).tanh()
    return n + z * (hx - n), torch.cat((r, z, n, hx, hn), dim=1)


def _gru_backward(grad_hy: Tensor, workspace: Tensor, has_bias: bool):
    r, z, n, hx, hn = workspace.chunk(5, dim=1)
    d_n = grad_hy * (1 - z) * (1 - n * n)
    d_r, d_z = d_n * hn * r * (1 - r), grad_hy * (hx - n) * z * (1 - z)
    of_input, of_hidden = torch.cat((d_r, d_z, d_n), dim=1), torch.cat((d_r, d_z, d_n * r), dim=1)
    return of_input, of_hidden, grad_hy * z, of_input.sum(0), of_hidden.sum(0)


def _or_zero(x: Tensor | None) -> Tensor | float:
    return 0.0 if x is None else x


for name, function in (
    ("_thnn_fused_lstm_cell", _lstm),
    ("_thnn_fused_lstm_cell_backward_impl", _lstm_backward),
    ("_thnn_fused_gru_cell", _gru),
    ("_thnn_fused_gru_cell_backward", _gru_backward),
):
    _kernels.impl(name, function, "CPU")
