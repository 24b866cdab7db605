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
        array = x.numpy()
        np.tanh(array, out=array)  # 4 to 6 times faster than torch.tanh on a CPU
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
        x = torch.nn.functional.linear(x, parameters[i], parameters[i + 1])
        if i + 2 < len(parameters):
            x = _activate_(x, activation)
        outputs.append(x)
    return outputs


class _MLPFunction(torch.autograd.Function):
    """Networks on the same input as one node of the graph.

    Their parameters are not inputs of the node: `backward` adds to `parameter.grad` itself, which saves a dozen nodes. The
    anchor, any parameter, is there so that autograd knows the outputs to be differentiable.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, networks: tuple[MLP, ...]) -> tuple[Tensor, ...]:
        outputs = [_forward(x, network.activation, network.parameters_in_order) for network in networks]
        ctx.saved = (networks, [[x, *layers[:-1]] for layers in outputs])
        return tuple(layers[-1] for layers in outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, None, None]:
        grad_x: Tensor | None = None
        networks, all_inputs = ctx.saved
        for network, inputs, grad in zip(networks, all_inputs, output_grads, strict=True):
            parameters = network.parameters_in_order
            for i in range(len(inputs) - 1, -1, -1):
                weight, bias = parameters[2 * i], parameters[2 * i + 1]
                if weight.grad is None:
                    weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
                weight.grad.addmm_(grad.t(), inputs[i])
                bias.grad.add_(grad.sum(0))
                if i > 0:
                    grad = _activation_backward(grad @ weight, inputs[i], network.activation)
            if ctx.needs_input_grad[0]:
                grad_x = grad @ parameters[0] if grad_x is None else grad_x.addmm_(grad, parameters[0])
        return grad_x, None, None


def forward_together(x: Tensor, *networks: MLP) -> tuple[Tensor, ...]:
    """Apply networks to the same input [B, D]; cheaper to differentiate than one by one.

    Gradients reach the parameters through `backward()`, not through `torch.autograd.grad`.
    """
    return _MLPFunction.apply(x, networks[0].parameters_in_order[0], networks)  # type: ignore[no-any-return,no-untyped-call]


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
        self.parameters_in_order = [p for layer in self.layers for p in (layer.weight, layer.bias)]

    def forward(self, x: Tensor) -> Tensor:
        """[B, sizes[0]] to [B, sizes[-1]]."""
        if torch.is_grad_enabled():
            return forward_together(x, self)[0]
        return _forward(x, self.activation, self.parameters_in_order)[-1]
