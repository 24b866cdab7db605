"""The network of an actor-critic: an encoder, a memory, trunks of policy and value, and an action head."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlx.nn.discrete_heads import CategoricalHead
from rlx.nn.encoders import make_encoder
from rlx.nn.heads import GaussianHead, make_head
from rlx.nn.leaf_encoders import EncoderKind, EncoderSettings
from rlx.nn.losses import Sequences
from rlx.nn.memories import NoMemory, make_memory
from rlx.nn.mlp import MLP
from rlx.spaces import ACTION_MASK, is_masked
from rlx.tree_ops import batch_size, leaves, map_tree, pick
from rlx.types import EnvSpec, Explanation, Mode, PolicyOutput, Rollout, Tree

if TYPE_CHECKING:
    from rlx.nn.compiled import CompiledNetwork

ArrayPolicy = Callable[[NDArray[Any]], NDArray[Any]]
"""From observations [B, *] to actions [B, *]."""

_SMALL = 1 << 16
"""Parameters of the policy up to which the compiled kernels are used."""


_MANY = 2048
"""Rows above which an encoder's activations are not kept from the forward to the backward pass: those of an 84 x 84 image take 0.3 MB."""


class Evaluated(NamedTuple):
    """A rollout through a network, for learning from it."""

    inputs: Tree  # [T * B, *], or [T, B, *] with a memory
    value: Tensor  # [T, B]
    next_value: Tensor  # [T, B] of the true successors
    params: Tensor | None  # [T * B, D'] of the action distribution; None if that was not recorded
    sequences: Sequences | None  # with a memory


class Recorded(NamedTuple):
    """What a network returned when it acted for a rollout."""

    params: Tensor  # [T, B, D'] of the action distribution
    value: Tensor  # [T, B]
    carry: Tree  # [T, B, *] after each step


def rows_of(steps: Tree) -> Tree:
    """[T, B, *] to [T * B, *]."""
    return map_tree(lambda leaf: leaf.flatten(0, 1), steps)


class Network(nn.Module):
    """Policy and value function of observations.

    Algorithms learn through `forward_vjp`: autograd, or a faster way to the same gradients where there is one.

    Inputs are what `preprocess` returns. With a memory they are consecutive steps, [T, B, *], with the carry [B, *] before the first
    one and `is_first` [T, B]; what is returned has N = T * B rows. Without a memory they are rows [N, *].

    Args:
        spec: gives the observation and action spaces.
        hidden_sizes: widths of the hidden layers behind encoder and memory.
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
        log_std_init: float = 0.0,
        observation_clip: float | None = None,
        encoder: EncoderKind = "auto",
        memory: str = "none",
        memory_size: int = 64,
    ) -> None:
        super().__init__()
        self.encoder = make_encoder(spec, EncoderSettings(kind=encoder, observation_clip=observation_clip))
        self.memory = make_memory(memory, self.encoder.num_features, memory_size)
        self.head = make_head(spec, log_std_init=log_std_init)
        num_features, num_outputs = self.memory.num_features, self.head.num_outputs
        make_mlp = functools.partial(MLP, activation=activation, layer_norm=layer_norm)
        # Gain 0.01 makes the first policy nearly uniform (or centred), whatever the observation.
        self.policy: MLP = make_mlp([num_features, *hidden_sizes, num_outputs + shared], output_gain=0.01)
        self.critic: MLP | None = None if shared else make_mlp([num_features, *hidden_sizes, 1], output_gain=1.0)
        if shared:
            nn.init.orthogonal_(self.policy.output_weight.data[num_outputs:], gain=1.0)
        self.is_masked = is_masked(spec.observation_space, spec.action_space)
        """Whether observations say which choices are allowed."""
        self.has_memory = not isinstance(self.memory, NoMemory)
        self.by_hand = not (self.encoder.has_weights or self.has_memory) and self.policy.by_hand
        """Whether `forward_vjp` differentiates by hand: the encoder has no weights, and the trunks support it."""
        self.records = self.encoder.has_weights or self.has_memory
        """Whether `act` records its outputs for the update, because computing them again would take longer than keeping them."""
        small = sum(p.numel() for p in self.policy.parameters()) <= _SMALL
        self.compiles = self.by_hand and small and not self.is_masked and isinstance(self.head, CategoricalHead | GaussianHead)
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

        assert isinstance(self.head, CategoricalHead | GaussianHead)
        return CompiledNetwork(self.encoder, self.head, self.policy, self.critic)

    def preprocess(self, obs: Tree) -> Tree:
        """Observations [N, *] to the network's inputs [N, *]: the part without weights, normalisation included."""
        inputs = self.encoder.preprocess(obs)
        return {"inputs": inputs, "mask": obs[ACTION_MASK]} if self.is_masked else inputs

    def learning_from(self, obs: Tree) -> AbstractContextManager[None]:
        """A context for learning from a rollout's observations [N, *]; it updates running statistics at the right time."""
        return self.encoder.learning_from(obs)

    def forward(self, inputs: Tree, carry: Tree = (), is_first: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Inputs to distribution parameters [N, D'] and values [N], differentiable by autograd."""
        return self._outputs(self._features(inputs, carry, is_first), inputs)

    def _features(self, inputs: Tree, carry: Tree, is_first: Tensor | None) -> Tensor:
        """Inputs to the features [N, D] of the trunks."""
        seen = self._unmasked(inputs)
        if not self.has_memory:
            return self._encoded(seen)
        assert is_first is not None, "a memory needs to be told where episodes begin"
        steps = self._encoded(rows_of(seen)).unflatten(0, is_first.shape)
        return self.memory.unroll(steps, carry, is_first).flatten(0, 1)

    def _unmasked(self, inputs: Tree) -> Tree:
        """The encoder's part of the inputs."""
        return inputs["inputs"] if self.is_masked else inputs

    def _encoded(self, inputs: Tree) -> Tensor:
        """Inputs [N, *] to the encoder's features [N, D]; many rows in parts, whose activations the backward pass computes again."""
        if not self.encoder.has_weights or (num_rows := batch_size(inputs)) <= _MANY:
            features: Tensor = self.encoder(inputs)
            return features
        parts = (pick(inputs, slice(at, at + _MANY)) for at in range(0, num_rows, _MANY))
        if not torch.is_grad_enabled():
            return torch.cat([self.encoder(part) for part in parts])
        return torch.cat([checkpoint(self.encoder, part, use_reentrant=False, preserve_rng_state=False) for part in parts])

    def _outputs(self, features: Tensor, inputs: Tree) -> tuple[Tensor, Tensor]:
        out = self.policy(features)
        params, value = (out[:, :-1], out[:, -1]) if self.critic is None else (out, self.critic(features)[:, 0])
        return self._masked(params, inputs), value

    def _masked(self, params: Tensor, inputs: Tree) -> Tensor:
        return self.head.masked(params, inputs["mask"].flatten(0, -2)) if self.is_masked else params

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
        return self._value(self._features(inputs, carry, is_first))

    def _value(self, features: Tensor) -> Tensor:
        return self.policy(features)[:, -1] if self.critic is None else self.critic(features)[:, 0]

    def step(self, obs: Tree, carry: Tree, is_first: Tensor) -> tuple[Tensor, Tensor, Tree]:
        """Observations [B, *] of one step to distribution parameters [B, D'], values [B] and the next carry."""
        features, inputs, carry = self._step(obs, carry, is_first)
        return *self._outputs(features, inputs), carry

    def _step(self, obs: Tree, carry: Tree, is_first: Tensor) -> tuple[Tensor, Tree, Tree]:
        """Observations [B, *] to the features [B, D] of the trunks, the inputs, and the next carry."""
        inputs = self.preprocess(obs)
        features, carry = self.memory.step(self._encoded(self._unmasked(inputs)), carry, is_first)
        return features, inputs, carry

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
            params, value = self._outputs(features, inputs)
            extras = {"params": params, "value": value, "carry": carry}
        else:
            params = self._params(features, inputs)
        return PolicyOutput(self.head.sample(params) if mode == "train" else self.head.mode(params), carry, extras)

    @torch.no_grad()
    def recorded(self, rollout: Rollout) -> Recorded:
        """What `act` recorded; where it did not, what it would record now."""
        if "params" in rollout.extras:
            extras = rollout.extras
            return Recorded(extras["params"], extras["value"], extras["carry"])
        return self.replay(rollout)

    @torch.no_grad()
    def replay(self, rollout: Rollout) -> Recorded:
        """What `act` would record now, step by step."""
        carry, found = rollout.carry, []
        for t in range(len(rollout.reward)):
            *outputs, carry = self.step(pick(rollout.obs, t), carry, rollout.is_first[t])
            found.append((*outputs, carry))
        params, value, carries = map_tree(lambda *steps: torch.stack(steps), *found)
        return Recorded(params, value, carries)

    @torch.no_grad()
    def evaluate(self, rollout: Rollout, *, afresh: bool = False) -> Evaluated:
        """A rollout's inputs and values.

        Args:
            rollout: acted by this network.
            afresh: do not use what was recorded, because the parameters have changed since.
        """
        if not self.records:
            every = map_tree(lambda every, final: torch.cat((every.flatten(0, 1), final)), rollout.all_obs, rollout.final_obs)
            all_inputs = self.preprocess(every)
            values, num_final = self.value(all_inputs), len(rollout.final_t)
            of_all, of_final = values[: len(values) - num_final].view(-1, rollout.reward.shape[1]), values[len(values) - num_final :]
            inputs = pick(all_inputs, slice(rollout.num_env_steps))
            return Evaluated(inputs, of_all[:-1], rollout.to_next(of_all, of_final), None, None)
        found = self.replay(rollout) if afresh else self.recorded(rollout)
        last, final = self.values_beyond(rollout, found.carry)
        next_value = rollout.to_next(torch.cat((found.value, last.unsqueeze(0))), final)
        inputs = self.inputs_of(rollout.obs)
        sequences = Sequences(rollout.carry, rollout.is_first.cpu()) if self.has_memory else None
        return Evaluated(inputs, found.value, next_value, found.params.flatten(0, 1), sequences)

    def inputs_of(self, obs: Tree) -> Tree:
        """Observations [T, B, *] to inputs: [T * B, *], or [T, B, *] with a memory."""
        inputs, num_envs = self.preprocess(rows_of(obs)), leaves(obs)[0].shape[1]
        return map_tree(lambda leaf: leaf.unflatten(0, (len(leaf) // num_envs, num_envs)), inputs) if self.has_memory else inputs

    @torch.no_grad()
    def final_values(self, rollout: Rollout) -> Tensor:
        """Values [E] of the observations that episodes ended in."""
        if not self.records:
            return self.value(self.preprocess(rollout.final_obs))
        return self.values_beyond(rollout, self.recorded(rollout).carry)[1]

    @torch.no_grad()
    def values_beyond(self, rollout: Rollout, carry: Tree) -> tuple[Tensor, Tensor]:
        """The values of the last observations [B], and of the final ones [E] of episodes.

        Args:
            rollout: with T steps.
            carry: [T, B, *] after each step.
        """
        after = [pick(carry, -1), pick(carry, (rollout.final_t, rollout.final_b))]
        begins = torch.cat((rollout.is_last[-1], torch.zeros_like(rollout.final_t, dtype=torch.bool)))
        obs = map_tree(lambda *parts: torch.cat(parts), pick(rollout.all_obs, -1), rollout.final_obs)
        before = map_tree(lambda *parts: torch.cat(parts), *after)
        value = self._value(self._step(obs, before, begins)[0])
        num_envs = rollout.reward.shape[1]
        return value[:num_envs], value[num_envs:]

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
