"""A learnt Q(s, a) = V(s) + A(s, a) beside an actor-critic: A is a network of its own, which learns what V leaves of the returns.

A policy gradient with Q needs only A = Q - V. To learn A instead of Q keeps a number of the size of an action's effect from being the
difference of two numbers of the size of a return.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlx import ops
from rlx.errors import ConfigError
from rlx.nn.discrete_heads import CategoricalHead, FactorizedCategoricalHead, Head
from rlx.nn.heads import ProductHead
from rlx.nn.mlp import MLP
from rlx.nn.networks import Network
from rlx.nn.optim import FlatAdam
from rlx.spaces import describe_space
from rlx.types import EnvSpec, State, Tree


class ActionAdvantage:
    """A(s, a) = Q(s, a) - V(s) of a network's inputs and actions, and its optimiser.

    Args:
        net: the actor-critic, whose inputs are used.
        spec: for messages.
        num_steps: gradient steps of `learn`. A that is far behind is noise, which normalised advantages make as large as a signal.
        hidden_sizes, activation, layer_norm: as of `Network`.
        max_grad_norm: as of `FlatAdam`.

    Raises:
        ConfigError: where inputs need an encoder with weights or a memory, which only the actor-critic has, or actions have several kinds.
    """

    def __init__(
        self,
        net: Network,
        spec: EnvSpec,
        *,
        num_steps: int,
        hidden_sizes: Sequence[int],
        activation: str,
        layer_norm: bool,
        max_grad_norm: float,
    ) -> None:
        if net.records:
            raise ConfigError(f"algo.advantage=q learns Q(s, a) from vectors, and algo.memory or the encoder for env={spec.id} has weights "
                              "of its own; use algo.advantage=gae or nstep")  # fmt: skip
        if isinstance(net.head, ProductHead):
            raise ConfigError(f"algo.advantage=q needs actions of one kind, and those of env={spec.id} are "
                              f"{describe_space(spec.action_space)}; use algo.advantage=gae")  # fmt: skip
        self.num_steps = num_steps
        self._net, self._head = net, net.head
        device = next(net.parameters()).device
        sizes = [net.encoder.num_features + action_width(net.head), *hidden_sizes, 1]
        self.mlp = MLP(sizes, activation, output_gain=0.01, layer_norm=layer_norm).to(device)
        self.optimizer = FlatAdam(self.mlp, max_grad_norm=max_grad_norm)

    def state_dict(self) -> State:
        return {"mlp": self.mlp.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.mlp.load_state_dict(state["mlp"])
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def __call__(self, inputs: Tree, action: Tensor) -> Tensor:
        """Inputs [N, *] and actions [N, *] to [N]."""
        return self.mlp(self._features(inputs, action))[:, 0]

    @torch.no_grad()
    def learn(self, inputs: Tree, action: Tensor, target: Tensor, learning_rate: float) -> Tensor:
        """Gradient steps on the mean squared error to returns minus values [N] of all ranks; returns the loss before them."""
        features, world = self._features(inputs, action), self.optimizer.world
        share = 1.0 if world.size == 1 else len(target) / world.sum_float64(np.array([float(len(target))]))[0]
        before, *_ = [self._step(features, target, share, learning_rate) for _ in range(self.num_steps)]
        return before

    def _step(self, features: Tensor, target: Tensor, share: float, learning_rate: float) -> Tensor:
        """One of them, on rows that are this share of those of all ranks; returns the loss before it."""
        self.optimizer.zero_grad()
        loss = self._gradient(features, target) if len(target) else target.new_zeros(())  # a rank may have no row
        if self.optimizer.world.size > 1:
            (loss,) = self.optimizer.reduce(share, loss.unsqueeze(0))
        self.optimizer.step(loss, learning_rate)
        return loss

    def _gradient(self, features: Tensor, target: Tensor) -> Tensor:
        """Add the gradient of the loss, and return the loss."""
        out, backward = self.mlp.forward_vjp(features)
        loss, d_out = ops.value_loss(out[:, 0], target)
        backward(d_out.unsqueeze(1))
        return loss

    def _features(self, inputs: Tree, action: Tensor) -> Tensor:
        return torch.cat((self._net.vectors(inputs), action_vectors(self._head, action)), dim=1)


def action_width(head: Head) -> int:
    """Numbers of the vector that `action_vectors` makes of an action."""
    return head.mask_width if isinstance(head, CategoricalHead | FactorizedCategoricalHead) else head.num_outputs


def action_vectors(head: Head, action: Tensor) -> Tensor:
    """Actions [N, *] as vectors [N, D]: one-hot where they are choices."""
    if not isinstance(head, CategoricalHead | FactorizedCategoricalHead):
        return action.to(torch.float32)
    columns = action.view(len(action), -1).unbind(1)
    return torch.cat([torch.nn.functional.one_hot(x, n) for x, n in zip(columns, head.choices, strict=True)], dim=1).to(torch.float32)
