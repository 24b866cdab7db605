"""Actions between algorithms and environments: one vector of numbers for an algorithm, the space's own structure for the environment.

`rlx.spaces` describes the forms that algorithms see. Bounded floats may be rescaled, so that an algorithm sees them in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlx.errors import ConfigError
from rlx.spaces import ProductSpace, SeenBox, SeenMultiBinary, SeenMultiDiscrete, choices_of, space_leaves
from rlx.tree_ops import Tree

Array = NDArray[Any]
ToEnv = Callable[[Array], Tree]
"""A function from actions [*] or [B, *] as algorithms choose them to the environment's, or to a batch of these."""

_UNBOUNDED = 1e30
"""A bound beyond this counts as none: many environments write the largest float32."""
_EXACT = 2**24
"""The whole numbers that float32 holds exactly end here."""


def seen_actions(
    space: gymnasium.Space[Any], env_id: str, *, rescale: bool
) -> tuple[gymnasium.Space[Any], ToEnv | None]:  # fmt: skip
    """The space of actions as algorithms see it, and the function to the environment's actions; None if both are the same.

    Bounded dimensions of floats come to [-1, 1] with `rescale`. Those without two bounds stay as they are.

    Raises:
        ConfigError: for a space without numbers, and for a Dict or Tuple with a part that algorithms have no form for.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return _product(space, env_id, rescale=rescale)
    if 0 in (space.shape or ()):
        raise ConfigError(f"env={env_id} has action space {space}, which is empty: an agent needs something to choose")
    return _leaf(space, rescale=rescale) or (space, None)


def _product(space: spaces.Dict | spaces.Tuple, env_id: str, *, rescale: bool) -> tuple[ProductSpace, ToEnv]:
    parts, converters, ends, at = [], [], [], 0
    for path, leaf in space_leaves(space):
        choices = choices_of(leaf)
        if not choices and not (isinstance(leaf, spaces.Box) and leaf.dtype.kind == "f" and np.prod(leaf.shape)):
            raise ConfigError(f"env={env_id} has action space {space}, of which {path} ({_kind(leaf)}) cannot be chosen here; "
                              "make it a Discrete, MultiDiscrete, MultiBinary or a Box of floats in a wrapper (env.wrappers)")  # fmt: skip
        if max(choices, default=0) > _EXACT:
            raise ConfigError(f"env={env_id} has action space {space}, of which {path} has {max(choices):,} choices; "
                              f"beside other parts it may have at most {_EXACT:,}")  # fmt: skip
        seen, to_env = _of_vectors(leaf, rescale=rescale)
        at += int(np.prod(seen.shape or (1,)))
        parts.append(seen)
        converters.append(to_env)
        ends.append(at)
    if not parts:
        raise ConfigError(f"env={env_id} has action space {space}, which has no parts: an agent needs something to choose")
    pieces = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def convert(action: Array) -> Tree:
        return _build(space, iter([to_env(action[..., piece]) for to_env, piece in zip(converters, pieces, strict=True)]))

    return ProductSpace(parts, space), convert


def _kind(leaf: gymnasium.Space[Any]) -> str:
    return f"Box of {leaf.dtype}" if isinstance(leaf, spaces.Box) and np.prod(leaf.shape) else f"{type(leaf).__name__}"


def _build(space: gymnasium.Space[Any], values: Iterator[Any]) -> Tree:
    """Values of the leaves of a space, in its structure."""
    if isinstance(space, spaces.Dict):
        return {key: _build(part, values) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_build(part, values) for part in space.spaces)
    return next(values)


def _of_vectors(leaf: gymnasium.Space[Any], *, rescale: bool) -> tuple[gymnasium.Space[Any], ToEnv]:
    """A part of a `ProductSpace`, and the function from its vectors [..., K] of floats to the environment's values."""
    dtype: Any = leaf.dtype
    if isinstance(leaf, spaces.Discrete):
        start = int(leaf.start)
        return spaces.Discrete(int(leaf.n)), lambda action: (action[..., 0].astype(np.int64) + start).astype(dtype)
    seen, to_env = _leaf(leaf, rescale=rescale) or (leaf, None)
    if isinstance(seen, spaces.Box):
        own_low, own_high = (end.astype(np.float64) for end in (seen.low, seen.high))
        ends = (np.where(np.abs(end) < _UNBOUNDED, end, np.copysign(np.inf, end)) for end in (own_low, own_high))
        low, high = (end.astype(np.float32) for end in ends)
        return SeenBox(low, high, np.float32, leaf), to_env or (lambda action: action.clip(own_low, own_high).astype(dtype))
    return seen, (lambda action: to_env(action.astype(np.int64))) if to_env else (lambda action: action.astype(dtype))


def _leaf(space: gymnasium.Space[Any], *, rescale: bool) -> tuple[gymnasium.Space[Any], ToEnv] | None:
    """As `seen_actions`, of a space without parts; None if nothing changes."""
    shape, dtype = space.shape or (), space.dtype
    if isinstance(space, spaces.MultiDiscrete):
        if len(shape) == 1 and not space.start.any():
            return None
        start = space.start
        return SeenMultiDiscrete(space.nvec.ravel().astype(np.int64), space), lambda action: (_shaped(action, shape) + start).astype(dtype)
    if isinstance(space, spaces.MultiBinary):
        return (
            None if len(shape) == 1 else (SeenMultiBinary(int(np.prod(shape)), space), lambda action: _shaped(action, shape).astype(dtype))
        )
    if isinstance(space, spaces.Box) and dtype is not None and dtype.kind == "f":
        return _box(space, rescale=rescale)
    return None


def _shaped(action: Array, shape: tuple[int, ...]) -> Array:
    """[..., K] to [..., *shape]."""
    return action.reshape((*action.shape[:-1], *shape))


def _box(space: spaces.Box, *, rescale: bool) -> tuple[gymnasium.Space[Any], ToEnv] | None:
    centre, half = stretch(space)
    low, high = space.low.ravel().astype(np.float64), space.high.ravel().astype(np.float64)
    if not rescale:
        centre, half = np.zeros_like(centre), np.ones_like(half)
    if not centre.any() and (half == 1.0).all():
        if len(space.shape) == 1:
            return None
        seen_low, seen_high = low, high
    else:
        bounded = _bounded(space)
        seen_low, seen_high = np.where(bounded, -1.0, low), np.where(bounded, 1.0, high)
    seen = SeenBox(seen_low.astype(space.dtype), seen_high.astype(space.dtype), space.dtype, space)
    if len(space.shape) == 1:
        return seen, lambda action: (centre + half * action).clip(low, high).astype(space.dtype)
    return seen, lambda action: _shaped((centre + half * action).clip(low, high).astype(space.dtype), space.shape)


def stretch(space: spaces.Box) -> tuple[Array, Array]:
    """Centre and half width [A] of a Box: an action a in [-1, 1] is `centre + half * a` to the environment. 0 and 1 without bounds."""
    bounded = _bounded(space)
    ends = ((space.low.ravel(), -1.0), (space.high.ravel(), 1.0))
    low, high = (np.where(bounded, end, unit).astype(np.float64) for end, unit in ends)
    return (low + high) / 2.0, (high - low) / 2.0


def _bounded(space: spaces.Box) -> NDArray[np.bool_]:
    """[A] whether a dimension has two bounds."""
    low, high = (end.ravel().astype(np.float64) for end in (space.low, space.high))  # float16 would not hold the bound
    return (np.abs(low) < _UNBOUNDED) & (np.abs(high) < _UNBOUNDED)
