"""A gated recurrent unit over a sequence with resets, and its derivative, by hand for a CPU.

torch has a fused kernel for LSTMs on a CPU, but runs a GRU operation by operation, with autograd's bookkeeping for each. Here the steps are
one call of a compiled kernel, forwards and backwards; what does not depend on the step before is one matrix product for all of them. A
reset zeroes rows of the carry, which costs nothing.

Equations, with s the sigmoid, k the hidden state before a step and after a possible reset:

    r = s(Wi_r x + bi_r + Wh_r k + bh_r)    z = s(Wi_z x + bi_z + Wh_z k + bh_z)    m = Wh_n k + bh_n
    n = tanh(Wi_n x + bi_n + r m)           h = n + z (k - n)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlx.compiled_code import load
from rlx.nn.kernel_modules import GRU_UNROLL


class GRU(torch.autograd.Function):
    """Outputs [T, B, H] of x [T, B, D], hidden [B, H], `is_first` [T, B] bool and the parameters of `torch.nn.GRU`, all float32 on the CPU.

    Differentiable with respect to x and the parameters.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, hidden: Tensor, is_first: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
    ) -> Tensor:
        (num_steps, num_envs, _), size = x.shape, hidden.shape[1]
        two = 2 * size
        halves = torch.ones_like(bias_ih)
        halves[:two] = 0.5
        bias = torch.cat((bias_ih[:two] + bias_hh[:two], bias_ih[two:]))
        of_input = torch.addmm(bias * halves, x.flatten(0, 1), (weight_ih * halves.unsqueeze(1)).t())
        weight, bias_n, resets = (weight_hh * halves.unsqueeze(1)).t().contiguous(), bias_hh[two:].contiguous(), is_first.contiguous()
        gates, spill = torch.empty_like(of_input), x.new_empty(4, 3 * size)
        kept, out = x.new_empty(num_steps, num_envs, size), x.new_empty(num_steps, num_envs, size)
        kept[0] = hidden
        forward, _ = load(GRU_UNROLL)
        arrays = (of_input, weight, bias_n, kept, gates, out, resets)
        forward(*(array.data_ptr() for array in arrays), num_steps, num_envs, size, spill.data_ptr())
        ctx.save_for_backward(x, weight_ih, weight_hh, of_input, gates, kept, resets)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_ih, weight_hh, of_input, gates, kept, resets = ctx.saved_tensors
        num_steps, num_envs, size = kept.shape
        d_out, weight = grad.clone(memory_format=torch.contiguous_format), weight_hh.contiguous()
        d_input, d_hidden, spill = torch.empty_like(gates), torch.empty_like(gates), x.new_empty(4 + num_envs, size)
        _, backward = load(GRU_UNROLL)
        arrays = (d_out, of_input, weight, kept, gates, resets, d_input, d_hidden)
        backward(*(array.data_ptr() for array in arrays), num_steps, num_envs, size, spill.data_ptr())
        d_x = (d_input @ weight_ih).view_as(x) if ctx.needs_input_grad[0] else None
        d_weights = d_input.t() @ x.flatten(0, 1), d_hidden.t() @ kept.flatten(0, 1)
        return d_x, None, None, *d_weights, d_input.sum(0), d_hidden.sum(0)
