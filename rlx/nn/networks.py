"""The network of an actor-critic: an encoder, a memory, trunks of policy and value, and an action head."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rlx.distributed import World
from rlx.errors import ConfigError
from rlx.nn.backbone import ArrayPolicy, Backbone
from rlx.nn.discrete_heads import CategoricalHead
from rlx.nn.heads import GaussianHead, make_head
from rlx.nn.leaf_encoders import EncoderKind
from rlx.nn.mlp import MLP, Streams
from rlx.types import EnvSpec, Explanation, Mode, PolicyOutput, Tree

if TYPE_CHECKING:
    from rlx.nn.compiled import CompiledNetwork

_SMALL = 1 << 18
"""Parameters of the policy, and of the critic, up to which the compiled kernels are used.

CPU time of a pass of 2,048 rows by kernels, and by torch, in minibatches of 64: 64-64 3.2 and 16 ms, 128-128 11 and 28, 256-256 40 and 54,
512-512 165 and 168; in minibatches of 512: 256-256 27 and 31, 512-512 105 and 101.
"""


class Network(Backbone):
    """Policy and value function of observations.

    Algorithms learn through `forward_vjp`: autograd, or a faster way to the same gradients where there is one. For the form of its inputs
    see `Backbone`.

    Args:
        spec: gives the observation and action spaces.
        hidden_sizes: widths of the hidden layers behind encoder and memory.
        critic_hidden_sizes: those of the critic; None for the same.
        stream_sizes: widths of the layers that each leaf of the observations has for itself before those; () for none.
        activation: of the hidden layers, see `rlx.nn.mlp`.
        layer_norm: normalise the inputs of each hidden layer's activation.
        shared: one trunk with two outputs instead of two trunks. Encoder and memory always serve both.
        log_std_init: initial log standard deviation of a continuous policy.
        observation_clip: normalise vectors of observations and clip them to this many standard deviations; None does not normalise.
        encoder: kind of encoder, see `rlx.nn.encoders`.
        memory: "none", or the kind of memory, see `rlx.nn.memories`.
        memory_size: width of the memory.

    Raises:
        ConfigError: for spaces that no encoder or head supports.
    """

    def __init__(
        self,
        spec: EnvSpec,
        *,
        hidden_sizes: Sequence[int],
        activation: str,
        layer_norm: bool = False,
        shared: bool = False,
        critic_hidden_sizes: Sequence[int] | None = None,
        stream_sizes: Sequence[int] = (),
        log_std_init: float = 0.0,
        observation_clip: float | None = None,
        encoder: EncoderKind = "auto",
        memory: str = "none",
        memory_size: int = 64,
    ) -> None:
        super().__init__(spec, observation_clip=observation_clip, encoder=encoder, memory=memory, memory_size=memory_size)
        self.head = make_head(spec, log_std_init=log_std_init)
        num_features, num_outputs = self.memory.num_features, self.head.num_outputs
        streams = self._streams(spec, stream_sizes) if stream_sizes else None
        make_mlp = functools.partial(MLP, activation=activation, layer_norm=layer_norm, streams=streams)
        # Gain 0.01 makes the first policy nearly uniform (or centred), whatever the observation.
        self.policy: MLP = make_mlp([num_features, *hidden_sizes, num_outputs + shared], output_gain=0.01)
        of_critic = hidden_sizes if critic_hidden_sizes is None else critic_hidden_sizes
        self.critic: MLP | None = None if shared else make_mlp([num_features, *of_critic, 1], output_gain=1.0)
        if shared:
            nn.init.orthogonal_(self.policy.output_weight.data[num_outputs:], gain=1.0)
        self.by_hand = not (self.encoder.has_weights or self.has_memory)
        """Whether `forward_vjp` differentiates by hand: neither encoder nor memory has weights."""
        small = all(sum(p.numel() for p in trunk.parameters()) <= _SMALL for trunk in self.trunks().values())
        has_kernels = not (self.is_masked or layer_norm) and isinstance(self.head, CategoricalHead | GaussianHead)
        self.compiles = self.by_hand and small and has_kernels
        """Whether compiled kernels are used where the parameters are on a CPU."""
        self._first = (next(self.policy.parameters()),)  # in a tuple, or the module would register it again
        self._home = 0
        self._compiled: CompiledNetwork | None = None

    def _streams(self, spec: EnvSpec, sizes: Sequence[int]) -> Streams:
        """Streams of these sizes for the leaves of the observations.

        Raises:
            ConfigError: if there is one leaf, or an encoder or memory with weights comes before the trunks.
        """
        widths = self.encoder.leaf_widths
        if len(widths) < 2 or self.records:
            why = "a single vector" if len(widths) < 2 else "images, embeddings or a memory, which have layers of their own"
            raise ConfigError(f"algo.stream_sizes={list(sizes)} is for the vectors of a Dict observation, but the policy of env={spec.id} "
                              f"sees {why}; leave it out")  # fmt: skip
        return Streams(widths, tuple(sizes))

    def trunks(self) -> dict[str, MLP]:
        return {"policy and value": self.policy} if self.critic is None else {"policy": self.policy, "value": self.critic}

    def join(self, world: World) -> None:
        super().join(world)
        self._home = 0  # the kernels are looked up anew

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

        assert isinstance(self.head, CategoricalHead | GaussianHead)
        return CompiledNetwork(self.encoder, self.head, self.policy, self.critic)

    def forward(self, inputs: Tree, carry: Tree = (), is_first: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Inputs to distribution parameters [N, D'] and values [N], differentiable by autograd."""
        return self._outputs(self._features(inputs, carry, is_first), inputs)

    def _outputs(self, features: Tensor, inputs: Tree) -> tuple[Tensor, Tensor]:
        out = self.policy(features)
        params, value = (out[:, :-1], out[:, -1]) if self.critic is None else (out, self.critic(features)[:, 0])
        return self._masked(params, inputs), value

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

    def _forward_vjp_by_hand(self, inputs: Tree) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], None]]:
        features = self._unmasked(inputs)  # a masked parameter has no gradient, so the pullbacks need no mask
        if self.critic is None:
            out, backward_both = self.policy.forward_vjp(features)
            params, value = self._masked(out[:, :-1], inputs), out[:, -1]
            return params, value, lambda d_params, d_value: backward_both(torch.cat((d_params, d_value.unsqueeze(1)), dim=1))
        params, backward_policy = self.policy.forward_vjp(features)
        value, backward_value = self.critic.forward_vjp(features)

        def backward(d_params: Tensor, d_value: Tensor) -> None:
            backward_policy(d_params)
            backward_value(d_value.unsqueeze(1))

        return self._masked(params, inputs), value[:, 0], backward

    def policy_params(self, inputs: Tree, carry: Tree = (), is_first: Tensor | None = None) -> Tensor:
        """Inputs to distribution parameters [N, D']."""
        if not torch.is_grad_enabled() and (compiled := self.compiled):
            return compiled.policy_params(inputs)
        return self._params(self._features(inputs, carry, is_first), inputs)

    def _params(self, features: Tensor, inputs: Tree) -> Tensor:
        out = self.policy(features)
        return self._masked(out[:, :-1] if self.critic is None else out, inputs)

    def value(self, inputs: Tree, carry: Tree = (), is_first: Tensor | None = None) -> Tensor:
        """Inputs to values [N]."""
        if not torch.is_grad_enabled() and (compiled := self.compiled):
            return compiled.value(inputs)
        return self._value(self._features(inputs, carry, is_first), inputs)

    def _value(self, features: Tensor, inputs: Tree) -> Tensor:
        return self.policy(features)[:, -1] if self.critic is None else self.critic(features)[:, 0]

    @torch.no_grad()
    def change_value(self, *, factor: float, shift: float) -> None:
        """Turn the value v of every input into factor * v + shift, by the output layer."""
        layer = (self.critic or self.policy).linears[-1]
        layer.weight[-1].mul_(factor)
        layer.bias[-1].mul_(factor).add_(shift)

    def step(self, obs: Tree, carry: Tree, is_first: Tensor) -> tuple[Tensor, Tensor, Tree]:
        """Observations [B, *] of one step to distribution parameters [B, D'], values [B] and the next carry."""
        features, inputs, carry = self._step(obs, carry, is_first)
        return *self._outputs(features, inputs), carry

    def _to_record(self, features: Tensor, inputs: Tree) -> dict[str, Tensor]:
        params, value = self._outputs(features, inputs)
        return {"params": params, "value": value}

    def act(self, obs: Tree, carry: Tree, is_first: Tensor, mode: Mode) -> PolicyOutput:
        """Observations [B, *] to actions [B, *], a sample in training and the mode in evaluation, and the next carry."""
        if (compiled := self.compiled) and compiled.acts:
            return PolicyOutput(torch.from_numpy(compiled.act(obs.numpy(), mode)), carry, {})
        return self._act(obs, carry, is_first, mode)

    def array_policy(self) -> ArrayPolicy | None:
        """`act` in mode "train" as a function of arrays [B, *]; None where there are no kernels for it."""
        return functools.partial(compiled.act, mode="train") if (compiled := self.compiled) and compiled.acts else None

    @torch.no_grad()
    def _act(self, obs: Tree, carry: Tree, is_first: Tensor, mode: Mode) -> PolicyOutput:
        features, inputs, carry = self._step(obs, carry, is_first)
        extras: dict[str, Tree] = {}
        # Before the first update there is no scale of observations yet; the update has one, and computes everything anew.
        if mode == "train" and self.records and not self.encoder.is_new:
            recorded = self._to_record(features, inputs)
            params, extras = recorded["params"], {**recorded, "carry": carry}
        else:
            params = self._params(features, inputs)
        return PolicyOutput(self.head.sample(params) if mode == "train" else self.head.mode(params), carry, extras)

    @torch.no_grad()
    def explain(self, obs: Tree, carry: Tree, is_first: Tensor, *, value_scale: float | None) -> Explanation:
        """The distribution of `act`, the value, and the network's inputs.

        Args:
            obs, carry, is_first: as of `act`.
            value_scale: factor from values to the environment's units; None if the critic is not trained.
        """
        features, inputs, _ = self._step(obs, carry, is_first)
        params, value = self._outputs(features, inputs)
        mean, std = self.head.moments(params) or (None, None)
        scaled = None if value_scale is None else value_scale * value
        by_leaf = self.encoder.by_leaf(self._unmasked(inputs))
        return Explanation(self.head.probs(params), scaled, mean=mean, std=std, inputs=by_leaf)
