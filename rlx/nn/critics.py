"""K value functions of inputs in one module, with gradients by hand.

Every layer of all members is one batched matrix product. Autograd's bookkeeping costs three times the arithmetic at widths of 64, and a
quarter of it at 256, so that `forward_vjp` returns the values and the function that carries their gradients back, as in `rlx.nn.mlp`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlx.nn.mlp import activate, activation_backward

_EPSILON = 1e-5
"""Added to the variance in layer norm, as torch does."""


class _Layer(NamedTuple):
    """What the backward pass needs of a layer."""

    inputs: Tensor  # [K, B, I] or [B, I]
    normalised: Tensor | None  # [K, B, I] before scale and shift, with layer norm
    reciprocal: Tensor | None  # [K, B, 1] of the standard deviation


class Critics(nn.Module):
    """K multi-layer perceptrons, each with one number as its output.

    Args:
        num_inputs: D.
        num_members: K.
        hidden_sizes: widths of the hidden layers.
        activation: "relu" or "tanh" have gradients by hand; others use autograd.
        layer_norm: normalise what goes into each activation (Ba et al. 2016, https://arxiv.org/abs/1607.06450).
    """

    def __init__(
        self, num_inputs: int, *, num_members: int, hidden_sizes: Sequence[int], activation: str, layer_norm: bool = False
    ) -> None:
        super().__init__()
        self.num_inputs, self.num_members, self.activation = num_inputs, num_members, activation
        sizes = [num_inputs, *hidden_sizes, 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, o in itertools.pairwise(sizes):
            bound = i**-0.5  # torch's own for a linear layer
            self.weights.append(torch.empty(num_members, i, o).uniform_(-bound, bound))
            self.biases.append(torch.empty(num_members, 1, o).uniform_(-bound, bound))
        hidden = hidden_sizes if layer_norm else ()
        self.scales = nn.ParameterList([torch.ones(num_members, 1, size) for size in hidden])
        self.shifts = nn.ParameterList([torch.zeros(num_members, 1, size) for size in hidden])
        self._layers = tuple(zip(self.weights, self.biases, strict=True))  # the same, without the cost of looking into a module
        self._norms = tuple(zip(self.scales, self.shifts, strict=True))
        self.by_hand = activation in ("relu", "tanh")

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [B, D], or [K, B, D] of each member, to values [K, B]; differentiable by autograd."""
        for i, (weight, bias) in enumerate(self._layers):
            if i > 0:
                x = activate(self._normalised(x, i - 1)[0] if self._norms else x, self.activation)
            x = torch.baddbmm(bias, self._of_each(x), weight)
        return x.squeeze(-1)

    def _of_each(self, x: Tensor) -> Tensor:
        return x.expand(self.num_members, -1, -1) if x.dim() == 2 else x

    def _normalised(self, x: Tensor, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """[K, B, H] after layer norm, the same before scale and shift, and the reciprocal of the deviation [K, B, 1]."""
        normalised, _, reciprocal = torch.native_layer_norm(x, [x.shape[-1]], None, None, _EPSILON)
        scale, shift = self._norms[i]
        return torch.addcmul(shift, normalised, scale), normalised, reciprocal

    def forward_vjp(self, x: Tensor) -> tuple[Tensor, Callable[..., Tensor | None]]:
        """Values [K, B] of inputs [B, D] or [K, B, D], and `backward(d_value, weights=True, inputs=False)`.

        `backward` takes the gradient of a loss with respect to the values [K, B]. With `weights` it writes the parameters' gradients, in
        place of what was there. With `inputs` it returns the gradient of each member's inputs [K, B, D]. It is called under
        `torch.no_grad`.
        """
        return self._vjp_by_hand(x) if self.by_hand else self._vjp_by_autograd(x)

    @torch.no_grad()
    def _vjp_by_hand(self, x: Tensor) -> tuple[Tensor, Callable[..., Tensor | None]]:
        layers: list[_Layer] = []
        for i, (weight, bias) in enumerate(self._layers):
            normalised = reciprocal = None
            if i > 0:
                if self._norms:
                    x, normalised, reciprocal = self._normalised(x, i - 1)
                x = activate(x, self.activation)
            layers.append(_Layer(x, normalised, reciprocal))
            x = torch.baddbmm(bias, self._of_each(x), weight)

        def backward(d_value: Tensor, *, weights: bool = True, inputs: bool = False) -> Tensor | None:
            grad = d_value.unsqueeze(-1)
            for i in range(len(layers) - 1, -1, -1):
                layer, (weight, bias) = layers[i], self._layers[i]
                if weights:
                    torch.bmm(self._of_each(layer.inputs).transpose(1, 2), grad, out=weight.grad)
                    torch.sum(grad, 1, keepdim=True, out=bias.grad)
                if i == 0 and not inputs:
                    return None
                # A product with a single column is an outer product, which a matrix product computes slowly.
                grad = grad * weight.transpose(1, 2) if weight.shape[-1] == 1 else torch.bmm(grad, weight.transpose(1, 2))
                if i > 0:
                    grad = activation_backward(grad, layer.inputs, self.activation)
                    if layer.normalised is not None:
                        grad = self._layer_norm_backward(grad, layer, i - 1, weights=weights)
            return grad

        return x.squeeze(-1), backward

    def _layer_norm_backward(self, grad: Tensor, layer: _Layer, i: int, *, weights: bool) -> Tensor:
        """From the gradient after layer norm i [K, B, H] to that before it."""
        assert layer.normalised is not None
        assert layer.reciprocal is not None
        scale, shift = self._norms[i]
        if weights:
            torch.sum(grad * layer.normalised, 1, keepdim=True, out=scale.grad)
            torch.sum(grad, 1, keepdim=True, out=shift.grad)
        grad = grad * scale
        centred = grad - grad.mean(-1, keepdim=True)
        slope = (grad * layer.normalised).mean(-1, keepdim=True)
        return centred.addcmul_(layer.normalised, slope, value=-1.0).mul_(layer.reciprocal)

    def _vjp_by_autograd(self, x: Tensor) -> tuple[Tensor, Callable[..., Tensor | None]]:
        with torch.enable_grad():
            each = self._of_each(x).detach().requires_grad_()
            value = self(each)

        def backward(d_value: Tensor, *, weights: bool = True, inputs: bool = False) -> Tensor | None:
            parameters = list(self.parameters()) if weights else []
            wanted = [*parameters, *([each] if inputs else [])]
            found = torch.autograd.grad(value, wanted, d_value)
            for parameter, grad in zip(parameters, found, strict=False):
                parameter.grad.copy_(grad)  # type: ignore[union-attr]
            return found[-1] if inputs else None

        return value.detach(), backward
