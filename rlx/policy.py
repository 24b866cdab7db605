"""Trained policies with observations as the environment returns them, and actions as it takes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from rlx.collect import env_actions
from rlx.config.schema import RunConfig
from rlx.envs.contract import BrokenContract, check_array
from rlx.envs.edge import observations, original_space, rescaled
from rlx.errors import ConfigError
from rlx.rng import PrivateRNG
from rlx.transfer import send_arrays
from rlx.tree_ops import batch_size, leaves, map_tree
from rlx.types import Algorithm, EnvSpec, Mode, Tree

Array = NDArray[Any]

_TRAINING = threading.Lock()
"""Held while this process trains or evaluates, which draws from the global generators; another thread would change their state."""
_trainer: int | None = None
"""The thread that trains or evaluates."""


@contextmanager
def only_trainer() -> Iterator[None]:
    """Let one thread of the process train or evaluate at a time. Raises a ConfigError if another one does."""
    global _trainer
    if not _TRAINING.acquire(blocking=False):
        raise ConfigError("another thread of this process trains or evaluates: wait for it, or use a process for each, "
                          "as `rlx sweep` does")  # fmt: skip
    _trainer = threading.get_ident()
    try:
        yield
    finally:
        _trainer = None
        _TRAINING.release()


class Policy:
    """A trained policy, as `rlx.load` returns it.

    Attributes:
        config: the run's settings.
        env_steps: env steps after which the checkpoint was taken.
        observation_space: of the environment, as gymnasium makes it.
        action_space: of the environment; `act` returns members of it.
        device: where the networks are.
        algorithm, spec: the internal algorithm and its environment's description, for code that extends rlx.
    """

    def __init__(self, config: RunConfig, algorithm: Algorithm, spec: EnvSpec, *, env_steps: int, seed: int) -> None:
        self.config, self.env_steps, self.device = config, env_steps, algorithm.device
        seen = spec.observation_space
        if spec.game is not None and isinstance(seen, spaces.Dict):
            seen = seen["history"]  # `act` computes the rest of the observation from it
        self.observation_space: gymnasium.Space[Any] = original_space(seen)
        self.action_space: gymnasium.Space[Any] = original_space(spec.action_space)
        self.algorithm, self.spec = algorithm, spec
        self._read = ObservationReader(seen, spec.id)
        self._clip = env_actions(spec.action_space)
        self._rescale = rescaled(self.action_space)[1] if spec.action_space is not self.action_space else None
        self._rng = PrivateRNG(seed, algorithm.device)

    def act(self, obs: Any, carry: Tree = None, *, is_first: Any = None, mode: Mode = "eval") -> tuple[Any, Tree]:
        """Choose actions.

        Args:
            obs: one observation as the environment returns it, or B of them stacked: [B, *] for a Box or Discrete space; for a Dict or
                Tuple, a dictionary or tuple of stacked parts. A game's is that of its environment in rlx.
            carry: the policy's memory, as the previous call returned it for the same B environments in the same order; None begins an
                episode in each.
            is_first: [B] bool: where `obs` begins an episode although `carry` is given; the default is nowhere.
            mode: "eval" acts as evaluations do, mostly deterministically; "train" explores as training does.

        Returns:
            The action that `env.step` takes, or an array [B, *] of them, clipped or rescaled to `action_space`; and the new carry.

        Raises:
            ConfigError: if the observation is not in `observation_space`, or carry or is_first have another batch size.
        """
        if _trainer not in (None, threading.get_ident()):
            raise ConfigError("another thread of this process trains or evaluates, and a policy would draw from its random generators; "
                              "act in another process, or after it")  # fmt: skip
        tree, is_batch = self._read(obs)
        num = batch_size(tree)
        if self.spec.game is not None:
            tree = self.spec.game.observe([self.spec.game.state_of(history) for history in tree.tolist()])
        begins = np.full(num, carry is None)
        if is_first is not None and carry is not None:
            begins = np.asarray(is_first, dtype=bool).reshape(-1)
        rows = {len(begins), *(len(leaf) for leaf in leaves(() if carry is None else carry))}
        if rows != {num}:
            raise ConfigError(f"got {num} observations with a carry or is_first of {max(rows - {num})}; "
                              "pass the carry that was returned for the same environments")  # fmt: skip
        with torch.no_grad(), self._rng.in_use():
            if carry is None:
                carry = self.algorithm.initial_carry(num)
            seen, first = send_arrays(self.device, tree, begins)
            output = self.algorithm.act(seen, carry, first, mode=mode)
        action = self._to_env(self._clip(output.action))
        return (action if is_batch else action[0]), output.carry

    def _to_env(self, action: NDArray[Any]) -> NDArray[Any]:
        return action if self._rescale is None else self._rescale(action)

    def initial_carry(self, num_envs: int) -> Tree:
        """The carry at the beginning of an episode in each of `num_envs` environments; `act` uses it where carry is None."""
        return self.algorithm.initial_carry(num_envs)

    def seed(self, seed: int) -> None:
        """Reset the policy's rng state to that of a policy loaded with this seed."""
        self._rng = PrivateRNG(seed, self.device)

    def __repr__(self) -> str:
        return f"<rlx policy: {self.config.algo.name} on {self.config.env.id}, {self.env_steps:,} env steps, {self.device}>"


class ObservationReader:
    """Converts observations as an environment returns them, one or many stacked, to the policy's input, an array or a tree of arrays.

    Args:
        space: of the policy's input.
        env_id: the environment's name in errors.
    """

    def __init__(self, space: gymnasium.Space[Any], env_id: str) -> None:
        self._original = original_space(space)
        self._encode = observations(self._original, env_id, flatten=isinstance(space, spaces.Box))

    def __call__(self, value: Any) -> tuple[Tree, bool]:
        """The observations [B, *], and whether several were given; B is 1 where it was one.

        Raises:
            ConfigError: if `value` is neither one nor several observations of the space.
        """
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict) and not isinstance(self._original, spaces.Tuple):
            raise ConfigError("policy.act got a tuple (obs, info), as env.reset returns it; pass obs alone: obs, _ = env.reset()")
        try:
            size = _num_stacked(value, self._original, "the observation")
            if size is None:
                return map_tree(lambda leaf: leaf[None], self._encode(value)), False
            if not isinstance(self._original, spaces.Box):
                rows = [self._encode(_at(value, self._original, i)) for i in range(size)]
                return map_tree(lambda *parts: np.stack(parts), *rows), True
            array = check_array(value, (size, *self._original.shape), self._original.dtype, "the observation")
            seen = self._encode.space
            assert isinstance(seen, spaces.Box)
            return array.astype(seen.dtype).reshape(size, *seen.shape), True
        except BrokenContract as error:
            raise ConfigError(f"policy.act: {error}; policy.observation_space is {self._original}") from error


def _num_stacked(value: Any, space: gymnasium.Space[Any], what: str) -> int | None:
    """How many values of a space are stacked in `value`; None if it is a single one. The first part of a Dict or Tuple decides."""
    if isinstance(space, spaces.Dict):
        key = next(iter(space.spaces))
        if not hasattr(value, "keys") or key not in value:
            raise BrokenContract(f"{what} is {type(value).__name__}, the space says a dictionary with {key!r}")
        return _num_stacked(value[key], space.spaces[key], f"{what}[{key!r}]")
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            raise BrokenContract(f"{what} is {type(value).__name__}, the space says a tuple of {len(space.spaces)}")
        return _num_stacked(value[0], space.spaces[0], f"{what}[0]")
    shape, given = space.shape or (), np.shape(value)
    if given == shape:
        return None
    if given[1:] == shape and given[:1] != (0,):
        return given[0]
    raise BrokenContract(f"{what} has shape {given}, the space says {shape}, or (B, …) in front of it for B observations")


def _at(value: Any, space: gymnasium.Space[Any], i: int) -> Any:
    """The i-th of the values of a space that are stacked in `value`."""
    if isinstance(space, spaces.Dict):
        return {key: _at(value[key], part, i) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_at(of_part, part, i) for of_part, part in zip(value, space.spaces, strict=True))
    return value[i]
