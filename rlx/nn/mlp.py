"""A multi-layer perceptron with gradients by hand or by autograd.

For networks this small autograd's bookkeeping costs more than the arithmetic: without it a PPO minibatch takes half the time on
a CPU. `forward_vjp` therefore returns the output and the function that carries a gradient back (the pullback of the vector-Jacobian
product). `forward` is differentiable by autograd.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "elu": nn.functional.elu,
}
_OF_OUTPUT = ("tanh", "relu")
"""Activations that are computed in place, because their derivative is a function of their output."""
_PULLBACKS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": torch.ops.aten.silu_backward,
    "gelu": torch.ops.aten.gelu_backward,
    "elu": lambda grad, x: torch.ops.aten.elu_backward(grad, 1.0, 1.0, 1.0, False, x),
}
"""Of the others: from the gradient behind the activation, and its input, to the gradient before it."""


def activate(x: Tensor, activation: str) -> Tensor:
    """Apply the activation; in place where nothing has to be differentiated."""
    if torch.is_grad_enabled() or activation not in _OF_OUTPUT:
        return _ACTIVATIONS[activation](x)
    if activation == "relu":
        return x.relu_()
    if x.device.type == "cpu" and x.dtype == torch.float32:
        array = x.numpy()
        np.tanh(array, out=array)  # 4 to 6 times faster than torch.tanh on a CPU
        return x
    return x.tanh_()


def activation_backward(grad: Tensor, output: Tensor, activation: str) -> Tensor:
    """The gradient before an activation, from the one after it and the activation's output."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, output, 0)
    return torch.ops.aten.tanh_backward(grad, output)


def _layer_norm_vjp(x: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The normalised [B, D], and from a loss' gradient on it to that on x [B, D]; those of weight and bias are added to theirs."""
    shape, weight, bias = list(norm.normalized_shape), norm.weight, norm.bias
    out, mean, inverse_std = torch.native_layer_norm(x, shape, weight, bias, norm.eps)

    def pullback(grad: Tensor) -> Tensor:
        d_x, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
            grad, x, shape, mean, inverse_std, weight, bias, [True, True, True]
        )
        weight.grad.add_(d_weight)  # type: ignore[union-attr]
        bias.grad.add_(d_bias)  # type: ignore[union-attr]
        return d_x

    return out, pullback


def _normalize_rows(x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any], eps: float) -> None:
    """Layer normalisation of x [B, D] in place, without NumPy's `mean` and `var`, which take longer than all of this."""
    size = x.shape[1]
    x -= np.add.reduce(x, axis=1, keepdims=True) / np.float32(size)
    x *= 1.0 / np.sqrt(np.einsum("ij,ij->i", x, x)[:, None] / np.float32(size) + np.float32(eps))
    x *= weight
    x += bias


class Streams(NamedTuple):
    """Layers of their own for parts of a network's input, before they are joined (Heess et al. 2017, https://arxiv.org/abs/1707.02286)."""

    inputs: tuple[int, ...]
    """Widths of the parts."""
    sizes: tuple[int, ...]
    """Widths of the layers of each part."""

    def blocks(self, layer: int) -> list[tuple[slice, slice]]:
        """The rows and columns of a layer's weight that belong to each part."""
        widths = self.inputs if layer == 0 else (self.sizes[layer - 1],) * len(self.inputs)
        ends = list(itertools.accumulate(widths))
        size = self.sizes[layer]
        return [(slice(i * size, (i + 1) * size), slice(end - width, end)) for i, (width, end) in enumerate(zip(widths, ends, strict=True))]


class MLP(nn.Module):
    """Linear layers with an activation between them, orthogonally initialised with zero bias.

    Args:
        sizes: widths from input to output, at least two.
        activation: "tanh", "relu", "silu", "gelu" or "elu".
        layer_norm: normalise what goes into each activation (Ba et al. 2016, https://arxiv.org/abs/1607.06450).
        output_gain: gain of the last layer's initialisation; hidden layers use sqrt(2) (details 2 of Huang et al. 2022,
            https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/).
        streams: layers before those of `sizes`. The weights of each are one matrix, 0 and constant between different parts: a product of
            small matrices costs more in calls than it saves in arithmetic.
    """

    def __init__(
        self, sizes: Sequence[int], activation: str, *, output_gain: float, layer_norm: bool = False, streams: Streams | None = None
    ) -> None:
        super().__init__()
        self.activation, self.streams = activation, streams
        if streams is not None:
            sizes = [sizes[0], *(len(streams.inputs) * size for size in streams.sizes), *sizes[1:]]
        layers = [nn.Linear(i, o) for i, o in itertools.pairwise(sizes)]
        for i, layer in enumerate(layers, start=1):
            nn.init.orthogonal_(layer.weight, gain=output_gain if i == len(layers) else 2**0.5)
            nn.init.zeros_(layer.bias)
        self._masked = len(streams.sizes) if streams else 0
        for i in range(self._masked):
            self._split(i, layers[i].weight)
        self.layers = nn.ModuleList(layers)
        self.linears = tuple(layers)  # the same, typed
        self._layer_norms = tuple(nn.LayerNorm(size) for size in sizes[1:-1]) if layer_norm else ()
        self.norms = nn.ModuleList(self._layer_norms)
        self._weights_and_biases = [(layer.weight, layer.bias) for layer in layers]

    @torch.no_grad()
    def _split(self, number: int, weight: Tensor) -> None:
        """Initialise a layer's weight in blocks, and keep a mask of them."""
        assert self.streams is not None
        mask = torch.zeros_like(weight)
        weight.zero_()
        for rows, columns in self.streams.blocks(number):
            weight[rows, columns] = nn.init.orthogonal_(torch.empty_like(weight[rows, columns]), gain=2**0.5)
            mask[rows, columns] = 1.0
        self.register_buffer(f"mask{number}", mask, persistent=False)

    def _mask(self, number: int) -> Tensor | None:
        """Where a layer's weight may differ from 0; None if everywhere."""
        return getattr(self, f"mask{number}") if number < self._masked else None

    @property
    def output_weight(self) -> Tensor:
        """[sizes[-1], sizes[-2]], of the last layer."""
        return self._weights_and_biases[-1][0]

    def forward(self, x: Tensor) -> Tensor:
        """[B, sizes[0]] to [B, sizes[-1]]."""
        for i, (weight, bias) in enumerate(self._weights_and_biases):
            if i > 0:
                x = activate(self.norms[i - 1](x) if self.norms else x, self.activation)
            mask = self._mask(i) if torch.is_grad_enabled() else None
            x = nn.functional.linear(x, weight if mask is None else weight * mask, bias)
        return x

    def on_arrays(self) -> Callable[[NDArray[Any]], NDArray[Any]] | None:
        """`forward` of arrays that are float32, with the parameters' memory: torch takes 100 us for one row of a small network, NumPy 15.

        None on an accelerator, and for other activations than tanh and relu.
        """
        parameters = [tensor for pair in self._weights_and_biases for tensor in pair]
        if self.activation not in _OF_OUTPUT or any(x.device.type != "cpu" or x.dtype != torch.float32 for x in parameters):
            return None
        layers = [(weight.detach().numpy().T, bias.detach().numpy()) for weight, bias in self._weights_and_biases]
        norms = [(norm.weight.detach().numpy(), norm.bias.detach().numpy(), norm.eps) for norm in self._layer_norms]
        is_relu = self.activation == "relu"

        def forward(x: NDArray[Any]) -> NDArray[Any]:
            for i, (weight, bias) in enumerate(layers):
                if i > 0:
                    if norms:
                        _normalize_rows(x, *norms[i - 1])
                    x = np.maximum(x, 0.0, out=x) if is_relu else np.tanh(x, out=x)
                x = x @ weight
                x += bias
            return x

        return forward

    @torch.no_grad()
    def forward_vjp(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        """The output [B, sizes[-1]], and a function that adds the gradient of a loss to `parameter.grad`, given that of the output."""
        inputs, pullbacks, before = [], [], []
        for i, (weight, bias) in enumerate(self._weights_and_biases):
            if i > 0:
                if self.norms:
                    x, pullback = _layer_norm_vjp(x, self.norms[i - 1])  # type: ignore[arg-type]
                    pullbacks.append(pullback)
                before.append(x)
                x = activate(x, self.activation)
            inputs.append(x)
            x = nn.functional.linear(x, weight, bias)

        pullback_activation = _PULLBACKS.get(self.activation)

        def backward(grad: Tensor) -> None:
            for i in range(len(inputs) - 1, -1, -1):
                weight, bias = self._weights_and_biases[i]
                weight.grad.addmm_(grad.t(), inputs[i])  # type: ignore[union-attr]
                bias.grad.add_(grad.sum(0))  # type: ignore[union-attr]
                if (mask := self._mask(i)) is not None:
                    weight.grad.mul_(mask)  # type: ignore[union-attr]
                if i > 0:
                    grad = grad @ weight
                    if pullback_activation is None:
                        grad = activation_backward(grad, inputs[i], self.activation)
                    else:
                        grad = pullback_activation(grad, before[i - 1])
                    grad = pullbacks[i - 1](grad) if pullbacks else grad

        return x, backward

    @torch.no_grad()
    def forward_deltas(self, x: Tensor) -> tuple[Tensor, list[Tensor], Callable[[Tensor], list[Tensor]]]:
        """For gradients of single rows, without layer norm: the output [B, O], what went into each layer [B, I], and a function.

        The function turns the gradients of B scalars with respect to the output into those with respect to each layer's output. The
        gradient of row b's scalar with respect to a layer's weight is the outer product of the two.
        """
        assert not self.norms
        inputs, before, pullback = list[Tensor](), list[Tensor](), _PULLBACKS.get(self.activation)
        for i, (weight, bias) in enumerate(self._weights_and_biases):
            if i > 0:
                before.append(x)
                x = activate(x, self.activation)
            inputs.append(x)
            x = nn.functional.linear(x, weight, bias)

        def backward(grad: Tensor) -> list[Tensor]:
            deltas = [grad]
            for i in range(len(inputs) - 1, 0, -1):
                grad = grad @ self._weights_and_biases[i][0]
                grad = pullback(grad, before[i - 1]) if pullback else activation_backward(grad, inputs[i], self.activation)
                deltas.insert(0, grad)
            return deltas

        return x, inputs, backward
