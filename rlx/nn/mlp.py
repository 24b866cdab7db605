"""Multi-layer perceptron with a hand-written backward pass.

For networks this small autograd's bookkeeping costs as much as the arithmetic: one node for the whole network instead of
one per operation makes a PPO minibatch of 64 rows about twice as fast on a CPU. Activations are limited to those whose
derivative is a function of their output, so that only the outputs are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def _activate_(x: Tensor, activation: str) -> Tensor:
    """Apply the activation in place."""
    if activation == "relu":
        return x.relu_()
    if x.device.type == "cpu" and x.dtype == torch.float32:
        np.tanh(x.detach().numpy(), out=x.detach().numpy())  # 4 to 6 times faster than torch.tanh on a CPU
        return x
    return x.tanh_()


def _activation_backward(grad: Tensor, output: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, output, 0)
    return torch.ops.aten.tanh_backward(grad, output)


def _forward(x: Tensor, activation: str, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Outputs of every layer, the last without activation; parameters are weight [out, in], bias [out], ..."""
    outputs = []
    for i in range(0, len(parameters), 2):
        x = torch.addmm(parameters[i + 1], x, parameters[i].t())
        if i + 2 < len(parameters):
            x = _activate_(x, activation)
        outputs.append(x)
    return outputs


class _MLPFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str, *parameters: Tensor) -> Tensor:
        outputs = _forward(x, activation, parameters)
        ctx.save_for_backward(x, *parameters[::2], *outputs[:-1])
        ctx.activation = activation
        return outputs[-1]

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        depth = (len(saved) + 1) // 2
        weights, inputs = saved[:depth], [x, *saved[depth:]]
        grads: list[Tensor | None] = []
        for i in reversed(range(depth)):
            grads += [grad.sum(0), grad.t() @ inputs[i]]
            if i > 0:
                grad = _activation_backward(grad @ weights[i], inputs[i], ctx.activation)
        grad_x = grad @ weights[0] if ctx.needs_input_grad[0] else None
        return (grad_x, None, *reversed(grads))


class MLP(nn.Module):
    """Linear layers with an activation between them, orthogonally initialised with zero bias.

    Args:
        sizes: widths from input to output, at least two.
        activation: "tanh" or "relu".
        output_gain: gain of the last layer's initialisation; hidden layers use sqrt(2) (details 2 of Huang et al. 2022,
            https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/).
    """

    def __init__(self, sizes: Sequence[int], activation: str, *, output_gain: float) -> None:
        super().__init__()
        self.activation = activation
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(sizes[:-1], sizes[1:], strict=True))
        for i, layer in enumerate(self.layers, start=1):
            nn.init.orthogonal_(layer.weight, gain=output_gain if i == len(self.layers) else 2**0.5)
            nn.init.zeros_(layer.bias)
        self._parameters_in_order = [p for layer in self.layers for p in (layer.weight, layer.bias)]

    def forward(self, x: Tensor) -> Tensor:
        """[B, sizes[0]] to [B, sizes[-1]]."""
        if torch.is_grad_enabled():
            return _MLPFunction.apply(x, self.activation, *self._parameters_in_order)  # type: ignore[no-untyped-call]
        return _forward(x, self.activation, self._parameters_in_order)[-1]
