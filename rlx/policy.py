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
from rlx.config.setting import require_whole
from rlx.envs.actions import seen_actions
from rlx.envs.contract import BrokenContract, check_array, first_non_finite
from rlx.envs.masks import METHODS, MaskReader, with_mask
from rlx.envs.observations import observations, parts_of
from rlx.errors import ConfigError
from rlx.rng import PrivateRNG
from rlx.spaces import ACTION_MASK, is_masked, original_space
from rlx.transfer import send_arrays
from rlx.tree_ops import batch_size, leaves, map_tree, named_leaves, pick
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
        self._read = ObservationReader(seen, spec.id, spec.action_space)
        self._clip = env_actions(spec.action_space)
        seen_is_own = spec.action_space is self.action_space
        self._to_env = None if seen_is_own else seen_actions(self.action_space, spec.id, rescale=config.env.rescale_actions)[1]
        self.seed(seed)

    def act(self, obs: Any, carry: Tree = None, *, is_first: Any = None, action_mask: Any = None, mode: Mode = "eval") -> tuple[Any, Tree]:
        """Choose actions.

        Args:
            obs: one observation as the environment returns it, or B of them stacked: [B, *] for a Box or Discrete space; for a Dict or
                Tuple, a dictionary or tuple of stacked parts. A game's is that of its environment in rlx.
            carry: the policy's memory, as the previous call returned it for the same B environments in the same order; None begins an
                episode in each.
            is_first: [B] bool: where `obs` begins an episode although `carry` is given; the default is nowhere.
            action_mask: the actions that are allowed, where the environment says so in `info["action_mask"]` or by a method: as it gives
                them, for B observations B of them stacked. Not where it is a part of the observation.
            mode: "eval" acts as evaluations do, mostly deterministically; "train" explores as training does.

        Returns:
            The action that `env.step` takes, or B of them stacked, as for `obs`: clipped or rescaled to `action_space`; and the new carry.

        Raises:
            ConfigError: if the observation is not in `observation_space`, the mask is missing or wrong, or carry or is_first have another
                batch size.
        """
        if _trainer not in (None, threading.get_ident()):
            raise ConfigError("another thread of this process trains or evaluates, and a policy would draw from its random generators; "
                              "act in another process, or after it")  # fmt: skip
        if mode not in ("eval", "train"):
            raise ConfigError(f'policy.act: got mode={mode!r}; expected "eval" or "train"')
        tree, is_batch = self._read(obs, action_mask)
        num = batch_size(tree)
        if self.spec.game is not None:
            tree = self.spec.game.observe(self._positions(tree))
        begins = np.full(num, carry is None)
        if is_first is not None:
            given = np.asarray(is_first).reshape(-1)
            if given.dtype != bool or len(given) != num:
                raise ConfigError(f"policy.act: got is_first={is_first!r}; expected {num} of True and False, one for each observation")
            begins |= given
        with torch.no_grad(), self._rng.in_use():
            initial = self.algorithm.initial_carry(num)
            if carry is None:
                carry = initial
            elif not _may_follow(carry, initial, num):
                raise ConfigError(f"policy.act: got {num} observations with a carry of {_shapes(carry)}; "
                                  "pass the carry that was returned for the same environments")  # fmt: skip
            seen, first = send_arrays(self.device, tree, begins)
            output = self.algorithm.act(seen, carry, first, mode=mode)
        action: Tree = self._clip(output.action)
        if self._to_env is not None:
            action = self._to_env(action)
        return (action if is_batch else pick(action, 0)), output.carry

    def _positions(self, histories: NDArray[Any]) -> list[Any]:
        """The positions of a game after actions [B, L], in each of which somebody is to move."""
        assert self.spec.game is not None
        try:
            states = [self.spec.game.state_of(history) for history in histories.tolist()]
        except ValueError as error:
            raise ConfigError(f"policy.act: {error}") from error
        if over := [i for i, state in enumerate(states) if state.is_terminal()]:
            raise ConfigError(f"policy.act: the game of observation {over[0]} is over; begin another one")
        return states

    def initial_carry(self, num_envs: int) -> Tree:
        """The carry at the beginning of an episode in each of `num_envs` environments; `act` uses it where carry is None."""
        return self.algorithm.initial_carry(num_envs)

    def seed(self, seed: int) -> None:
        """Reset the policy's rng state to that of a policy loaded with this seed."""
        require_whole("seed", seed, at_least=0, at_most=2**63 - 1)
        self._rng = PrivateRNG(seed, self.device)

    def __repr__(self) -> str:
        return f"<rlx policy: {self.config.algo.name} on {self.config.env.id}, {self.env_steps:,} env steps, {self.device}>"


class ObservationReader:
    """Converts observations as an environment returns them, one or many stacked, to the policy's input, an array or a tree of arrays.

    Args:
        space: of the policy's input.
        env_id: the environment's name in errors.
        action_space: the space of the actions that masks are of.
    """

    def __init__(self, space: gymnasium.Space[Any], env_id: str, action_space: gymnasium.Space[Any]) -> None:
        self._original = original_space(space)
        self._mask: MaskReader | None = None
        self._mask_in_obs = False
        if is_masked(space, action_space):
            self._mask_in_obs = isinstance(self._original, spaces.Dict) and ACTION_MASK in self._original.spaces
            self._mask = MaskReader(action_space, f"the observation['{ACTION_MASK}']" if self._mask_in_obs else ACTION_MASK)
        self._encode = observations(
            self._original, env_id, flatten=isinstance(space, spaces.Box), without=ACTION_MASK if self._mask_in_obs else None
        )

    def __call__(self, value: Any, action_mask: Any = None) -> tuple[Tree, bool]:
        """The observations [B, *], and whether several were given; B is 1 where it was one.

        Raises:
            ConfigError: if `value` is neither one nor several observations of the space, or the mask does not fit.
        """
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict) and not isinstance(self._original, spaces.Tuple):
            raise ConfigError("policy.act got a tuple (obs, info), as env.reset returns it; pass obs alone: obs, _ = env.reset()")
        try:
            size = _num_stacked(value, self._original, "the observation")
            if size is None:
                tree = _own(map_tree(lambda leaf: leaf[None], self._encode(value)), self._encode.space)
            elif isinstance(self._original, spaces.Box):
                array = check_array(value, (size, *self._original.shape), self._original.dtype, "the observation")
                tree = _own(array.reshape(size, *(self._encode.space.shape or ())), self._encode.space)
            else:
                rows = [self._encode(_at(value, self._original, i)) for i in range(size)]
                tree = _own(map_tree(lambda *parts: np.stack(parts), *rows), self._encode.space)
            if wrong := [leaf for leaf in leaves(tree) if not np.isfinite(leaf).all()]:
                found, where = first_non_finite(wrong[0])
                raise BrokenContract(f"the observation has {found}{where}")
        except BrokenContract as error:
            raise ConfigError(f"policy.act: {error}; policy.observation_space is {self._original}") from error
        mask = self._masks(value, action_mask, size)
        return (tree if mask is None else with_mask(tree, mask)), size is not None

    def _masks(self, value: Any, action_mask: Any, size: int | None) -> Array | None:
        """The masks [B, M] of observations; None if the policy takes none."""
        if action_mask is not None and (self._mask is None or self._mask_in_obs):
            why = "takes the mask from the observation" if self._mask_in_obs else "was trained without masks of actions"
            raise ConfigError(f"policy.act: action_mask has no effect: this policy {why}; leave it out")
        if self._mask is None:
            return None
        given = value[ACTION_MASK] if self._mask_in_obs else action_mask
        if given is None:
            raise ConfigError("policy.act: this policy was trained with masks of actions, which are no part of the observation; pass "
                              f"action_mask=info['{ACTION_MASK}'], or what env.{METHODS[0]}() returns")  # fmt: skip
        try:
            if size is None:
                return self._mask(given)[None]
            return np.stack([self._mask(_row_of_mask(given, i, size)) for i in range(size)])
        except BrokenContract as error:
            raise ConfigError(f"policy.act: {error}; policy.action_space is {self._mask.space}") from error


def _row_of_mask(masks: Tree, i: int, size: int) -> Tree:
    """The i-th of the masks that are stacked in the parts of `masks`."""
    if isinstance(masks, dict):
        return {key: _row_of_mask(part, i, size) for key, part in masks.items()}
    if isinstance(masks, tuple):
        return tuple(_row_of_mask(part, i, size) for part in masks)
    if masks is None:
        return None
    if np.ndim(masks) == 0 or len(masks) != size:
        raise BrokenContract(f"{ACTION_MASK} has {len(masks) if np.ndim(masks) else 'no'} rows, expected {size}, one for each observation")
    return masks[i]


def _own(tree: Tree, space: gymnasium.Space[Any]) -> Tree:
    """Copies of arrays, of the numbers of a space: what a caller gives may be of another byte order, or not to be written to."""
    if isinstance(space, spaces.Dict):
        return {key: _own(tree[key], part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_own(value, part) for value, part in zip(tree, space.spaces, strict=True))
    return np.array(tree, dtype=space.dtype)


def _may_follow(carry: Tree, initial: Tree, num: int) -> bool:
    """Whether a memory may be that of `num` episodes which began with `initial`; one that began empty may have got parts."""
    parts = leaves(carry)
    if not all(isinstance(leaf, torch.Tensor) and leaf.shape[:1] == (num,) for leaf in parts):
        return False
    return not leaves(initial) or _shapes(carry) == _shapes(initial)


def _shapes(carry: Tree) -> str:
    """The arrays of a memory in words."""
    parts = named_leaves(carry)
    return ", ".join(f"{path}{list(leaf.shape) if hasattr(leaf, 'shape') else type(leaf).__name__}" for path, leaf in parts) or "no arrays"


def _num_stacked(value: Any, space: gymnasium.Space[Any], what: str) -> int | None:
    """How many values of a space are stacked in `value`; None if it is a single one."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = parts_of(value, space, what)
        sizes = {f"{what}[{key!r}]": _num_stacked(part, inner, f"{what}[{key!r}]") for key, (part, inner) in parts.items()}
        first = next(iter(sizes))
        for where, size in sizes.items():
            if size != sizes[first]:
                counts = [f"{n} of them" if n is not None else "a single one" for n in (sizes[first], size)]
                raise BrokenContract(f"{first} is {counts[0]} and {where} is {counts[1]}")
        return sizes[first]
    try:
        shape, given = space.shape or (), np.shape(value)
    except ValueError as error:  # a ragged list
        raise BrokenContract(f"{what} is no array ({error})") from error
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
