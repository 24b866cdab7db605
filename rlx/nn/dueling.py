"""A dueling pair of networks: the value of a state, and the advantages of its actions.

Wang et al. 2016, https://arxiv.org/abs/1511.06581.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rlx.nn.mlp import MLP


class DuelingMLP(nn.Module):
    """Q(s, a) = V(s) + A(s, a) - mean over a of A(s, a) (eq. 9), or the same of M logits each, as one row.

    Args:
        num_features: width of the input.
        hidden_sizes: of each of the two networks.
        num_actions: A.
        num_atoms: M; 1 for action values themselves.
        activation: see `rlx.nn.mlp`.
        layer_norm: see `rlx.nn.mlp`.
    """

    def __init__(
        self, num_features: int, hidden_sizes: Sequence[int], num_actions: int, num_atoms: int, *, activation: str, layer_norm: bool
    ) -> None:
        super().__init__()
        self._shape = (num_actions, num_atoms)
        self.value = MLP([num_features, *hidden_sizes, num_atoms], activation, output_gain=1.0, layer_norm=layer_norm)
        self.advantage = MLP([num_features, *hidden_sizes, num_actions * num_atoms], activation, output_gain=1.0, layer_norm=layer_norm)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] to [N, A * M]."""
        return self._combine(self.value(x), self.advantage(x))

    def _combine(self, value: Tensor, advantage: Tensor) -> Tensor:
        advantage = advantage.unflatten(-1, self._shape)
        return (value[:, None] + advantage - advantage.mean(1, keepdim=True)).flatten(1)

    @torch.no_grad()
    def forward_vjp(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        """[N, A * M], and a function that adds the gradient of a loss to `parameter.grad`, given that of the output."""
        value, backward_value = self.value.forward_vjp(x)
        advantage, backward_advantage = self.advantage.forward_vjp(x)

        def backward(grad: Tensor) -> None:
            each = grad.unflatten(-1, self._shape)
            backward_value(each.sum(1))
            backward_advantage((each - each.mean(1, keepdim=True)).flatten(1))

        return self._combine(value, advantage), backward
