"""The network of an actor-critic: an encoder, a memory, trunks of policy and value, and an action head."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlx.nn.encoders import make_encoder
from rlx.nn.heads import make_head
from rlx.nn.leaf_encoders import EncoderSettings, FlatEncoder
from rlx.nn.memories import make_memory
from rlx.nn.mlp import MLP
from rlx.types import EnvSpec, Explanation, Mode, Tree

if TYPE_CHECKING:
    from rlx.nn.compiled import CompiledNetwork

ArrayPolicy = Callable[[NDArray[Any]], NDArray[Any]]
"""From observations [B, *] to actions [B, *]."""

_SMALL = 1 << 16
"""Parameters of the policy up to which the compiled kernels are used."""


class Network(nn.Module):
    """Policy and value function of observations.

    Algorithms learn through `forward_vjp`: autograd, or a faster way to the same gradients where there is one.

    Args:
        spec: gives the observation and action spaces.
        hidden_sizes: widths of the hidden layers.
        activation: "tanh" or "relu".
        shared: one network with two outputs instead of two networks.
        log_std_init: initial log standard deviation of a continuous policy.
        observation_clip: normalise observations and clip them to this many standard deviations; None does not normalise.

    Raises:
        ConfigError: for spaces that no encoder or head supports.
    """

    def __init__(
        self,
        spec: EnvSpec,
        *,
        hidden_sizes: Sequence[int],
        activation: str,
        shared: bool = False,
        log_std_init: float = 0.0,
        observation_clip: float | None = None,
    ) -> None:
        super().__init__()
        self.encoder = make_encoder(spec, EncoderSettings(observation_clip=observation_clip))
        self.memory = make_memory("none", self.encoder.num_features, 0)
        self.head = make_head(spec, log_std_init=log_std_init)
        num_features, num_outputs = self.encoder.num_features, self.head.num_outputs
        # Gain 0.01 makes the first policy nearly uniform (or centred), whatever the observation.
        self.policy = MLP([num_features, *hidden_sizes, num_outputs + shared], activation, output_gain=0.01)
        self.critic = None if shared else MLP([num_features, *hidden_sizes, 1], activation, output_gain=1.0)
        if shared:
            nn.init.orthogonal_(self.policy.output_weight.data[num_outputs:], gain=1.0)
        self.by_hand = not self.encoder.has_weights
        """Whether `forward_vjp` differentiates by hand: the encoder has no weights, and the trunks support it."""
        self.compiles = isinstance(self.encoder, FlatEncoder) and sum(p.numel() for p in self.policy.parameters()) <= _SMALL
        """Whether compiled kernels are used where the parameters are on a CPU."""
        self._first = (next(self.policy.parameters()),)  # in a tuple, or the module would register it again
        self._home = 0
        self._compiled: CompiledNetwork | None = None

    @property
    def compiled(self) -> CompiledNetwork | None:
        """The kernels for this network, or None where they do not apply: see `compiles`, and `FlatAdam` for the one vector they need."""
        if self._home != self._first[0].data_ptr():  # the parameters have moved
            self._home, self._compiled = self._first[0].data_ptr(), self._compile()
        return self._compiled

    def _compile(self) -> CompiledNetwork | None:
        parameters = list(self.parameters())
        if not self.compiles or any(p.device.type != "cpu" or p.dtype != torch.float32 for p in parameters):
            return None
        if len({p.untyped_storage().data_ptr() for p in parameters}) > 1:
            return None
        from rlx.nn.compiled import CompiledNetwork

        assert isinstance(self.encoder, FlatEncoder)
        return CompiledNetwork(self.encoder, self.head, self.policy, self.critic)

    def preprocess(self, obs: Tree) -> Tree:
        """Observations [N, *] to the network's inputs [N, *]: the part without weights, normalisation included."""
        return self.encoder.preprocess(obs)

    def learning_from(self, obs: Tree) -> AbstractContextManager[None]:
        """A context for learning from a rollout's observations [N, *]; it updates running statistics at the right time."""
        return self.encoder.learning_from(obs)

    def forward(self, inputs: Tree, carry: Tree = (), is_first: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Inputs [N, *] to distribution parameters [N, D'] and values [N], differentiable by autograd."""
        features = self.memory.unroll(self.encoder(inputs), carry, is_first)
        out = self.policy(features)
        return (out[:, :-1], out[:, -1]) if self.critic is None else (out, self.critic(features)[:, 0])

    def forward_vjp(
        self, inputs: Tree, carry: Tree = (), is_first: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], None]]:
        """Distribution parameters [N, D'] and values [N], and the function that carries their gradients back.

        The pullback adds to `parameter.grad`, given the gradients of a loss with respect to both outputs.
        """
        if self.by_hand:
            return self._forward_vjp_by_hand(inputs)
        with torch.enable_grad():
            params, value = self(inputs, carry, is_first)

        def backward(d_params: Tensor, d_value: Tensor) -> None:
            torch.autograd.backward((params, value), (d_params, d_value))

        return params.detach(), value.detach(), backward

    def _forward_vjp_by_hand(self, features: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], None]]:
        if self.critic is None:
            out, backward_both = self.policy.forward_vjp(features)
            return out[:, :-1], out[:, -1], lambda d_params, d_value: backward_both(torch.cat((d_params, d_value.unsqueeze(1)), dim=1))
        params, backward_policy = self.policy.forward_vjp(features)
        value, backward_value = self.critic.forward_vjp(features)

        def backward(d_params: Tensor, d_value: Tensor) -> None:
            backward_policy(d_params)
            backward_value(d_value.unsqueeze(1))

        return params, value[:, 0], backward

    def policy_params(self, inputs: Tree, carry: Tree = (), is_first: Tensor | None = None) -> Tensor:
        """Inputs [N, *] to distribution parameters [N, D']."""
        if not torch.is_grad_enabled() and (compiled := self.compiled):
            return compiled.policy_params(inputs)
        out = self.policy(self.memory.unroll(self.encoder(inputs), carry, is_first))
        return out[:, :-1] if self.critic is None else out

    def value(self, inputs: Tree, carry: Tree = (), is_first: Tensor | None = None) -> Tensor:
        """Inputs [N, *] to values [N]."""
        if not torch.is_grad_enabled() and (compiled := self.compiled):
            return compiled.value(inputs)
        features = self.memory.unroll(self.encoder(inputs), carry, is_first)
        return self.policy(features)[:, -1] if self.critic is None else self.critic(features)[:, 0]

    def act(self, obs: Tree, carry: Tree, is_first: Tensor, mode: Mode) -> tuple[Tensor, Tree]:
        """Observations [B, *] to actions [B, *], a sample in training and the mode in evaluation, and the next carry."""
        if compiled := self.compiled:
            return torch.from_numpy(compiled.act(obs.numpy(), mode)), carry
        return self._act(obs, carry, is_first, mode)

    def array_policy(self) -> ArrayPolicy | None:
        """`act` in mode "train" as a function of arrays [B, *]; None where there are no kernels for it."""
        return functools.partial(compiled.act, mode="train") if (compiled := self.compiled) else None

    @torch.no_grad()
    def _act(self, obs: Tree, carry: Tree, is_first: Tensor, mode: Mode) -> tuple[Tensor, Tree]:
        features, carry = self.memory.step(self.encoder(self.preprocess(obs)), carry, is_first)
        params = self.policy(features)
        if self.critic is None:
            params = params[:, :-1]
        return self.head.sample(params) if mode == "train" else self.head.mode(params), carry

    @torch.no_grad()
    def explain(self, obs: Tree, carry: Tree, is_first: Tensor, *, value_scale: float | None) -> Explanation:
        """The distribution of `act`, the value, and the network's inputs.

        Args:
            obs, carry, is_first: as of `act`.
            value_scale: factor from values to the environment's units; None if the critic is not trained.
        """
        inputs = self.preprocess(obs)
        features, _ = self.memory.step(self.encoder(inputs), carry, is_first)
        out = self.policy(features)
        params, value = (out[:, :-1], out[:, -1]) if self.critic is None else (out, self.critic(features)[:, 0])
        mean, std = self.head.moments(params) or (None, None)
        return Explanation(self.head.probs(params), None if value_scale is None else value_scale * value, mean=mean, std=std, inputs=inputs)
