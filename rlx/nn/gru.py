"""A gated recurrent unit over a sequence with resets, and its derivative, by hand for a CPU.

torch has a fused kernel for LSTMs on a CPU, but runs a GRU operation by operation, with autograd's bookkeeping for each. Here a step is
one small matrix product and a few NumPy operations forwards, and half of that backwards: everything that does not depend on the step
before is computed for all steps at once. A reset zeroes rows of the carry, which costs nothing.

Equations, with s the sigmoid, k the hidden state before a step and after a possible reset:

    r = s(Wi_r x + bi_r + Wh_r k + bh_r)    z = s(Wi_z x + bi_z + Wh_z k + bh_z)    m = Wh_n k + bh_n
    n = tanh(Wi_n x + bi_n + r m)           h = n + z (k - n)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class GRU(torch.autograd.Function):
    """Outputs [T, B, H] of x [T, B, D], hidden [B, H] and the parameters of `torch.nn.GRU`; `is_first` [T, B] bool is a NumPy array.

    Differentiable with respect to x and the parameters.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, hidden: Tensor, is_first: Any, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
    ) -> Tensor:
        (num_steps, num_envs, _), size = x.shape, hidden.shape[1]
        two = 2 * size
        # s(v) = (1 + tanh(v / 2)) / 2: the halves are taken of the weights.
        halves = torch.ones_like(bias_ih)
        halves[:two] = 0.5
        bias = torch.cat((bias_ih[:two] + bias_hh[:two], bias_ih[two:]))
        of_input = torch.addmm(bias * halves, x.flatten(0, 1), (weight_ih * halves.unsqueeze(1)).t()).unflatten(0, (num_steps, num_envs))
        weight, bias_n = (weight_hh * halves.unsqueeze(1)).t(), bias_hh[two:].numpy()
        gates, kept, out = torch.empty_like(of_input), x.new_empty(num_steps, num_envs, size), x.new_empty(num_steps, num_envs, size)
        last, resets = hidden.numpy(), is_first.any(1).tolist()
        arrays = (a.numpy() for a in (of_input, gates, kept, out))
        for t, (inputs, gate, before, after) in enumerate(zip(*arrays, strict=True)):
            before[:] = last
            if resets[t]:
                before[is_first[t]] = 0.0
            torch.mm(kept[t], weight, out=gates[t])
            both, m, n = gate[:, :two], gate[:, two:], after
            both += inputs[:, :two]
            np.tanh(both, out=both)
            both *= 0.5
            both += 0.5
            m += bias_n
            np.multiply(both[:, :size], m, out=n)
            n += inputs[:, two:]
            np.tanh(n, out=n)
            inputs[:, two:] = n  # what was there is no longer needed
            change = before - n
            change *= both[:, size:]
            n += change
            last = after
        ctx.save_for_backward(x, weight_ih, weight_hh, gates, kept, of_input)
        ctx.is_first = is_first
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_ih, weight_hh, gates, kept, of_input = ctx.saved_tensors
        (num_steps, num_envs, size), two = kept.shape, 2 * kept.shape[2]
        (r, z, m), n = gates.split(size, dim=2), of_input[:, :, two:]
        d_n = (1.0 - z) * (1.0 - n * n)  # times the derivative of h: that of the candidate before its tanh
        factors = torch.stack((d_n * m * r * (1.0 - r), (kept - n) * z * (1.0 - z), d_n * r), dim=2)  # [T, B, 3, H]
        d_hidden, d_gates, d_before = grad.contiguous().clone(), torch.empty_like(factors), x.new_empty(num_envs, size)
        flat, resets = d_gates.flatten(2), ctx.is_first.any(1).tolist()
        dh, dg, of_gates, keep = d_hidden.numpy(), d_gates.numpy(), factors.numpy(), z.numpy()
        change = d_before.numpy()
        for t in range(num_steps - 1, -1, -1):
            np.multiply(of_gates[t], dh[t][:, None], out=dg[t])
            if t == 0:
                break
            torch.mm(flat[t], weight_hh, out=d_before)
            change += dh[t] * keep[t]
            if resets[t]:
                change[ctx.is_first[t]] = 0.0
            dh[t - 1] += change
        d_hh = flat.flatten(0, 1)
        d_ih = torch.cat((d_hh[:, :two], (d_hidden * d_n).flatten(0, 1)), dim=1)
        d_x = (d_ih @ weight_ih).view_as(x) if ctx.needs_input_grad[0] else None
        return (
            d_x,
            None,
            None,
            d_ih.t() @ x.flatten(0, 1),
            d_hh.t() @ kept.flatten(0, 1),
            d_ih.sum(0),
            d_hh.sum(0),
        )
