"""What networks of all algorithms have in front of their trunks: an encoder and a memory, and how a rollout goes through them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlx.distributed import World
from rlx.nn.discrete_heads import Head
from rlx.nn.encoders import make_encoder
from rlx.nn.leaf_encoders import EncoderKind, EncoderSettings
from rlx.nn.losses import Sequences
from rlx.nn.memories import NoMemory, make_memory
from rlx.nn.mlp import MLP
from rlx.nn.normalize import ObservationNormalizer
from rlx.spaces import ACTION_MASK, is_masked
from rlx.tree_ops import batch_size, leaves, map_tree, pick
from rlx.types import EnvSpec, Rollout, Tree

ArrayPolicy = Callable[[NDArray[Any]], NDArray[Any]]
"""From observations [B, *] to actions [B, *]."""

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

    value: Tensor  # [T, B]
    carry: Tree  # [T, B, *] after each step
    params: Tensor | None = None  # [T, B, D'] of the action distribution, of a network that has one


def rows_of(steps: Tree) -> Tree:
    """[T, B, *] to [T * B, *]."""
    return map_tree(lambda leaf: leaf.flatten(0, 1), steps)


class Backbone(nn.Module, ABC):
    """An encoder and a memory. A subclass adds a head and trunks, and says what they return.

    Inputs are what `preprocess` returns. With a memory they are consecutive steps, [T, B, *], with the carry [B, *] before the first
    one and `is_first` [T, B]; what is returned has N = T * B rows. Without a memory they are rows [N, *].

    Args:
        spec: gives the observation and action spaces.
        observation_clip: normalise vectors of observations and clip them to this many standard deviations; None does not normalise.
        encoder: kind of encoder, see `rlx.nn.encoders`.
        memory: "none", or the kind of memory, see `rlx.nn.memories`.
        memory_size: width of the memory.

    Raises:
        ConfigError: for observation spaces that no encoder supports.
    """

    head: Head

    def __init__(
        self,
        spec: EnvSpec,
        *,
        observation_clip: float | None = None,
        encoder: EncoderKind = "auto",
        memory: str = "none",
        memory_size: int = 64,
    ) -> None:
        super().__init__()
        self.encoder = make_encoder(spec, EncoderSettings(kind=encoder, observation_clip=observation_clip))
        self.memory = make_memory(memory, self.encoder.num_features, memory_size)
        self.is_masked = is_masked(spec.observation_space, spec.action_space)
        """Whether observations say which choices are allowed."""
        self.has_memory = not isinstance(self.memory, NoMemory)
        self.records = self.encoder.has_weights or self.has_memory
        """Whether `act` records its outputs for the update, because computing them again would take longer than keeping them."""

    @abstractmethod
    def trunks(self) -> dict[str, MLP]:
        """The layers behind encoder and memory, by what they compute."""

    @abstractmethod
    def value(self, inputs: Tree, carry: Tree = (), is_first: Tensor | None = None) -> Tensor:
        """Inputs to values [N]."""

    @abstractmethod
    def step(self, obs: Tree, carry: Tree, is_first: Tensor) -> tuple[Tensor, Tensor, Tree]:
        """Observations [B, *] of one step to the head's parameters [B, D'], values [B] and the next carry."""

    @abstractmethod
    def _value(self, features: Tensor, inputs: Tree) -> Tensor:
        """Features of the trunks and inputs to values [N]."""

    @abstractmethod
    def _to_record(self, features: Tensor, inputs: Tree) -> dict[str, Tensor]:
        """What `act` records of a step [B, *]: at least the "value"."""

    def preprocess(self, obs: Tree) -> Tree:
        """Observations [N, *] to the network's inputs [N, *]: the part without weights, normalisation included."""
        inputs = self.encoder.preprocess(obs)
        return {"inputs": inputs, "mask": obs[ACTION_MASK]} if self.is_masked else inputs

    def learning_from(self, obs: Tree) -> AbstractContextManager[None]:
        """A context for learning from a rollout's observations [N, *]; it updates running statistics at the right time."""
        return self.encoder.learning_from(obs)

    def join(self, world: World) -> None:
        """Act and update running statistics together with other ranks from now on."""
        for module in self.modules():
            if isinstance(module, Head):
                module.world = world
            elif isinstance(module, ObservationNormalizer):
                module.moments.world = world

    def _features(self, inputs: Tree, carry: Tree, is_first: Tensor | None) -> Tensor:
        """Inputs to the features [N, D] of the trunks."""
        seen = self._unmasked(inputs)
        if not self.has_memory:
            return self._encoded(seen)
        assert is_first is not None, "a memory needs to be told where episodes begin"
        steps = self._encoded(rows_of(seen)).unflatten(0, is_first.shape)
        return self.memory.unroll(steps, carry, is_first).flatten(0, 1)

    def vectors(self, inputs: Tree) -> Tensor:
        """Inputs [N, *] to the features [N, D] of a network whose encoder has no weights."""
        features: Tensor = self.encoder(self._unmasked(inputs))
        return features

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

    def _masked(self, params: Tensor, inputs: Tree) -> Tensor:
        return self.head.masked(params, inputs["mask"].flatten(0, -2)) if self.is_masked else params

    def _step(self, obs: Tree, carry: Tree, is_first: Tensor) -> tuple[Tensor, Tree, Tree]:
        """Observations [B, *] to the features [B, D] of the trunks, the inputs, and the next carry."""
        inputs = self.preprocess(obs)
        features, carry = self.memory.step(self._encoded(self._unmasked(inputs)), carry, is_first)
        return features, inputs, carry

    @torch.no_grad()
    def recorded(self, rollout: Rollout) -> Recorded:
        """What `act` recorded; where it did not, what it would record now."""
        return Recorded(**rollout.extras) if "value" in rollout.extras else self.replay(rollout)

    @torch.no_grad()
    def replay(self, rollout: Rollout) -> Recorded:
        """What `act` would record now, step by step."""
        carry, found = rollout.carry, []
        for t in range(len(rollout.reward)):
            features, inputs, carry = self._step(pick(rollout.obs, t), carry, rollout.is_first[t])
            found.append({**self._to_record(features, inputs), "carry": carry})
        return Recorded(**map_tree(lambda *steps: torch.stack(steps), *found))

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
        params = None if found.params is None else found.params.flatten(0, 1)
        return Evaluated(inputs, found.value, next_value, params, sequences)

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
        value = self._value(*self._step(obs, before, begins)[:2])
        num_envs = rollout.reward.shape[1]
        return value[:num_envs], value[num_envs:]
