"""Masks of actions: where an environment keeps them, and their one form, a bool for each choice of each discrete part of an action.

An environment keeps its mask in the observation (`obs["action_mask"]`), returns it from a method without arguments (`action_masks()` or
`action_mask()`, also of a wrapper), or in the info of reset and step (`info["action_mask"]`). It is looked for in this order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlx.envs.contract import BrokenContract, check_reset, describe, env_error
from rlx.spaces import ACTION_MASK, ProductSpace, SeenDict, choices_of, is_masked, original_space, space_leaves
from rlx.tree_ops import Tree

Array = NDArray[Any]

METHODS = ("action_masks", "action_mask")
_PROBE_SEED = 0


class MaskReader:
    """Converts masks of actions, in the formats that environments use, to one bool [M].

    Accepted are 0 and 1 or False and True: [n] for Discrete(n), from its first choice on, whatever its start; for MultiDiscrete one [n]
    for each number, or all of them in one vector; for MultiBinary [n], whether a bit may be 1, or [n, 2] for both of its values; for a
    Dict or Tuple the masks of its discrete parts in the same structure, or one vector [M].

    Args:
        action_space: of the environment or as algorithms see it.
        what: name of the mask in errors.
    """

    def __init__(self, action_space: gymnasium.Space[Any], what: str) -> None:
        self.space, self.what = original_space(action_space), what
        self._names, sizes = list[str](), list[int]()
        for path, leaf in space_leaves(self.space):
            choices = choices_of(leaf)
            sizes += choices
            numbers = [path] if isinstance(leaf, spaces.Discrete) else [f"{path}[{i}]" for i in range(len(choices))]
            self._names += numbers[: len(choices)]
        self.width = sum(sizes)
        self._starts = np.cumsum([0, *sizes[:-1]])
        self.everything = np.ones(self.width, dtype=bool)
        """[M] a mask that allows everything."""

    def __call__(self, value: Any) -> Array:
        """The mask as a new array.

        Raises:
            BrokenContract: if it has another width, other values than 0 and 1, or allows no choice of a part.
        """
        if value.__class__ is np.ndarray and value.dtype == bool and value.shape == (self.width,):
            mask = value.copy()
        else:
            mask = self._of(value, self.space, self.what)
        allowed = np.logical_or.reduceat(mask, self._starts)
        if not allowed.all():
            name = self._names[int(np.argmin(allowed))]
            raise BrokenContract(f"{self.what} allows {f'no choice of action{name}' if name else 'no action'}: "
                                 "at least one must be allowed in every state that an episode goes on from")  # fmt: skip
        return mask

    def _of(self, value: Any, space: gymnasium.Space[Any], what: str) -> Array:
        if isinstance(space, spaces.Dict) and isinstance(value, Mapping):
            masked = {key: part for key, part in space.spaces.items() if _width(part)}
            if missing := [key for key in masked if key not in value]:
                raise BrokenContract(f"{what} lacks {', '.join(map(repr, missing))}, expected a mask for {', '.join(map(repr, masked))}")
            if unknown := [key for key in value if key not in space.spaces]:
                raise BrokenContract(f"{what} has {', '.join(map(repr, unknown))}, which the action space {space} has not")
            return np.concatenate([self._of(value[key], part, f"{what}[{key!r}]") for key, part in masked.items()])
        if isinstance(space, spaces.Tuple) and isinstance(value, tuple | list) and not _is_row(value):
            indices = [i for i, part in enumerate(space.spaces) if _width(part)]
            if len(value) not in (len(space.spaces), len(indices)):
                raise BrokenContract(f"{what} has {len(value)} parts, expected {len(indices)}, one for each discrete part of {space}")
            given = value if len(value) == len(indices) else [value[i] for i in indices]
            parts = [(part, space.spaces[i], f"{what}[{i}]") for part, i in zip(given, indices, strict=True)]
            return np.concatenate([self._of(*part) for part in parts])
        if isinstance(space, spaces.MultiDiscrete) and isinstance(value, tuple | list) and not _is_row(value):
            rows = [_numbers(row, f"{what}[{i}]") for i, row in enumerate(_rows(value))]
            if [row.size for row in rows] != choices_of(space):
                found, wanted = ", ".join(str(row.size) for row in rows), ", ".join(map(str, choices_of(space)))
                raise BrokenContract(f"{what} has masks of widths {found}, expected {wanted} for {space}")
            return np.concatenate([row.ravel() for row in rows])
        mask, width = _numbers(value, what), _width(space)
        if isinstance(space, spaces.MultiBinary) and mask.shape in (space.shape, (width // 2,)):
            return np.stack([np.ones(width // 2, dtype=bool), mask.ravel()], axis=1).ravel()
        if mask.size != width or (isinstance(space, spaces.Discrete) and mask.ndim != 1):
            raise BrokenContract(f"{what} has shape {mask.shape}, expected ({width},): one entry for each choice of {space}")
        return mask.ravel()


def _width(space: gymnasium.Space[Any]) -> int:
    """M of an environment's own space of actions."""
    return sum(sum(choices_of(leaf)) for _, leaf in space_leaves(space))


def _is_row(value: Any) -> bool:
    """Whether a list or tuple is one mask, not several."""
    return not any(entry is None or isinstance(entry, Mapping | tuple | list) or np.ndim(entry) for entry in value)


def _rows(value: Any) -> list[Any]:
    """The masks of a list or tuple of masks, nested or not, in order."""
    if isinstance(value, tuple | list) and not _is_row(value):
        return [row for part in value for row in _rows(part)]
    return [value]


def _numbers(value: Any, what: str) -> NDArray[np.bool_]:
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        raise BrokenContract(f"{what} is {describe(value)}, expected an array of 0 and 1, or of False and True")
    mask = array.astype(bool)
    wrong = array != mask
    if wrong.any():
        raise BrokenContract(f"{what} has the value {array[wrong].flat[0]}, expected 0 or 1, or False or True")
    return mask


class ActionMasks:
    """The masks of one environment.

    Args:
        action_space: of the environment.
        method: returns the mask of the current state; None if the mask is in the observation or in info.
        in_obs: whether it is in the observation.
    """

    def __init__(self, action_space: gymnasium.Space[Any], *, method: Callable[[], Any] | None = None, in_obs: bool = False) -> None:
        self.in_obs, self._method = in_obs, method
        name = f"{getattr(method, '__name__', METHODS[0])}()" if method else f"{'observation' if in_obs else 'info'}['{ACTION_MASK}']"
        self._read = MaskReader(action_space, f"its {name}")

    def seen(self, space: gymnasium.Space[Any], original: gymnasium.Space[Any]) -> SeenDict:
        """The space of observations with masks, from the one without."""
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}
        return SeenDict({**parts, ACTION_MASK: mask_space(self._read.width)}, original)

    def __call__(self, seen: Tree, obs: Any, info: Any, *, ended: bool = False) -> Tree:
        """An observation with its mask.

        Args:
            seen: the observation as algorithms see it, without mask.
            obs, info: from the environment.
            ended: no action follows, so that an environment need not say which would be allowed.

        Raises:
            BrokenContract: if there is no mask, or a wrong one.
        """
        if ended:
            mask = self._read.everything
        elif self._method is not None:
            mask = self._read(self._method())
        elif self.in_obs:
            mask = self._read(obs[ACTION_MASK])
        elif (given := info.get(ACTION_MASK)) is not None:
            mask = self._read(given)
        else:
            raise BrokenContract(f"{self._read.what} is missing: it was there when a reset was tried; return it from every reset and step")
        return with_mask(seen, mask)


def with_mask(seen: Tree, mask: Any) -> dict[str, Any]:
    """An observation as algorithms see it, with a mask."""
    return {**(seen if isinstance(seen, dict) else {"observation": seen}), ACTION_MASK: mask}


def mask_space(width: int) -> spaces.Box:
    """The space of masks [M] as algorithms see them."""
    return spaces.Box(np.zeros(width, dtype=bool), np.ones(width, dtype=bool), dtype=bool)  # type: ignore[arg-type]


def mask_method(env: gymnasium.Env[Any, Any]) -> Callable[[], Any] | None:
    """The method of an environment or its wrappers that returns a mask and needs no arguments."""
    for name in METHODS:
        try:
            found = env.get_wrapper_attr(name)
            inspect.signature(found).bind()
        except (AttributeError, TypeError, ValueError):
            continue
        return found
    return None


def masks_of(env: gymnasium.Env[Any, Any], action_space: gymnasium.Space[Any], *, in_info: bool) -> ActionMasks | None:
    """How to get an environment's masks; None if it has none, or no discrete actions."""
    if not _width(action_space):
        return None
    if _in_observation(env.observation_space):
        return ActionMasks(action_space, in_obs=True)
    if method := mask_method(env):
        return ActionMasks(action_space, method=method)
    return ActionMasks(action_space) if in_info else None


def refuse_unexpected(info: Mapping[str, Any]) -> None:
    """Raise a BrokenContract if `info` has a mask, in an environment that had none when a reset was tried."""
    if info[ACTION_MASK] is not None:
        raise BrokenContract(f"its info['{ACTION_MASK}'] was not there when a reset was tried: return it from every reset and step")


def _in_observation(space: gymnasium.Space[Any]) -> bool:
    return isinstance(space, spaces.Dict) and ACTION_MASK in space.spaces


def has_mask_in_info(env: gymnasium.Env[Any, Any], env_id: str) -> bool:
    """Whether an environment's masks are in `info`, which takes a reset to find out.

    Raises:
        EnvError: if the reset fails.
    """
    try:
        action_space = env.action_space
    except Exception:  # `Edge` says what is wrong with its spaces
        return False
    if not _width(action_space) or masks_of(env, action_space, in_info=False):
        return False
    try:
        result = env.reset(seed=_PROBE_SEED)
        check_reset(result)
    except (Exception, SystemExit) as error:
        raise env_error(env_id, 0, "reset", f"reset with seed {_PROBE_SEED}", error) from error
    return result[1].get(ACTION_MASK) is not None


class RandomPlayer:
    """Chooses random actions that are allowed, the same ones for the same observations.

    Args:
        observation_space, action_space: as algorithms see them.
    """

    def __init__(self, observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any]) -> None:
        self._space, self._rng = action_space, np.random.default_rng(0)
        self._masked = is_masked(observation_space, action_space)
        action_space.seed(0)

    def __call__(self, obs: Tree) -> Array:
        """An action in the state of one observation."""
        return np.asarray(random_action(self._space, obs[ACTION_MASK], self._rng) if self._masked else self._space.sample())


def random_action(space: gymnasium.Space[Any], mask: Array, rng: np.random.Generator) -> Array:
    """A random action among those that a mask [M] allows, of a space as algorithms see it."""
    action = np.array(space.sample())
    choices = choices_of(space)
    chosen = [int(rng.choice(np.flatnonzero(part))) for part in np.split(mask, np.cumsum(choices)[:-1])]
    if isinstance(space, ProductSpace):
        counts = [(len(choices_of(part)), int(np.prod(part.shape or (1,)))) for part in space.parts]
        is_choice = np.concatenate([np.full(size, count > 0) for count, size in counts])
        action[is_choice] = chosen
        return action
    start = int(getattr(space, "start", 0)) if isinstance(space, spaces.Discrete) else 0
    return (np.array(chosen) + start).reshape(action.shape).astype(space.dtype)
