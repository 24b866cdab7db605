"""The wrapper around environments that are not rlx's own: it checks returns, makes observations Boxes, and rescales actions from [-1, 1].

An observation is one Box, or a Dict or Tuple of Boxes for an algorithm that takes its parts. A space that was changed keeps the
environment's own as `original`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlx.envs.contract import (
    BrokenContract,
    check_array,
    check_flag,
    check_info,
    check_member,
    check_reset,
    check_reward,
    check_step,
    keeps_values,
)
from rlx.errors import ConfigError
from rlx.spaces import SeenBox, SeenDict, SeenTuple, StackedBox, space_leaves
from rlx.tree_ops import Tree

Array = NDArray[Any]
Encode = Callable[[Any, str], Array]
"""A function from a leaf's value and its name in errors to a float32 vector."""

_UNBOUNDED = 1e30
"""A bound beyond this counts as none: many environments write the largest float32."""
_NATIVE = {np.dtype(t) for t in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")}
"""Kinds of numbers that torch computes with."""
_EARLY_STEPS = 100
"""Steps over which observations are compared with the bounds of their space."""
_NUMBERS = {float, int, np.float64, np.float32}
_FLAGS = {bool, np.bool_}


class Observations:
    """Converts an environment's observations to arrays of `space`.

    A Box stays a Box; a scalar becomes a vector of one, and dtypes that torch lacks become float32. Every other space becomes a float32
    vector: Discrete and MultiDiscrete are one-hot, bytes of an image are scaled to [0, 1].

    Args:
        original: the space.
        env_id: name of the environment in errors.
        path: of the space, where it is a part of `whole`.
        whole: the environment's space.

    Raises:
        ConfigError: if a part of the space has no such form.
        BrokenContract: when called with a value that is not in the space.
    """

    def __init__(
        self, original: gymnasium.Space[Any], env_id: str, *, path: str = "", whole: gymnasium.Space[Any] | None = None
    ) -> None:  # fmt: skip
        self._original, self._what = original, f"its observation{path}"
        self.notes: list[str] = []
        self._compared = 0
        if isinstance(original, spaces.Box):
            self.space: spaces.Box = _seen(original)
            self._shape, self._dtype = original.shape, original.dtype
            self._usual = {original.dtype} if self.space is original else set()
        else:
            parts = space_leaves(original)
            vectors = [_vector_space(leaf, path + inner, whole or original, env_id) for inner, leaf in parts]
            low, high = (np.concatenate([getattr(v, end).ravel() for v in vectors]).astype(np.float32) for end in ("low", "high"))
            self.space = SeenBox(low, high, np.float32, original)
            self._encoders = [_encoder(leaf) for _, leaf in parts]
        if self.space.shape and 0 in self.space.shape:
            part = f"of which {path}" if path else "which"
            raise ConfigError(f"env={env_id} has observation space {whole or original}, {part} is empty: an agent needs something to see")

    def __call__(self, value: Any) -> Array:
        if not isinstance(self._original, spaces.Box):
            found: list[Array] = []
            _walk(value, self._original, self._what, lambda leaf, what: found.append(self._encoders[len(found)](leaf, what)))
            return np.concatenate(found)
        if value.__class__ is not np.ndarray or value.dtype not in self._usual or value.shape != self._shape:
            value = self._check(value)
        if self._compared < _EARLY_STEPS:
            self._compare(value)
        return value

    def _check(self, value: Any) -> Array:
        array = check_array(value, self._shape, self._dtype, self._what)
        if self.space is not self._original:
            return array.astype(self.space.dtype).reshape(self.space.shape)
        if keeps_values(array.dtype, self._dtype):
            self._usual.add(array.dtype)
        return array

    def _compare(self, value: Array) -> None:
        """Note once that observations leave the bounds of their space. Nothing in rlx depends on these bounds."""
        self._compared += 1
        value = value.astype(self.space.dtype, copy=False)  # rounding may carry a number across a bound
        below, above = value < self.space.low, value > self.space.high
        if not self.notes and (below.any() or above.any()):
            at = tuple(np.argwhere(below | above)[0].tolist())
            bounds = f"{self.space.low[at]:g} to {self.space.high[at]:g}"
            self.notes.append(
                f"{self._what} has {value[at]:g} at index {at[0] if len(at) == 1 else at}, outside the space's bounds {bounds}"
            )


class ObservationTree:
    """Converts observations of a Dict or Tuple space to a tree of arrays, one for each part; see `Observations`.

    Args:
        original: the space.
        env_id: name of the environment in errors.
    """

    def __init__(self, original: spaces.Dict | spaces.Tuple, env_id: str) -> None:
        self._original = original
        self._parts = {path: Observations(leaf, env_id, path=path, whole=original) for path, leaf in space_leaves(original)}
        self.space = self._seen(original, "")

    def _seen(self, space: gymnasium.Space[Any], path: str) -> gymnasium.Space[Any]:
        if isinstance(space, spaces.Dict):
            return SeenDict({key: self._seen(part, f"{path}[{key!r}]") for key, part in space.spaces.items()}, space)
        if isinstance(space, spaces.Tuple):
            return SeenTuple([self._seen(part, f"{path}[{i}]") for i, part in enumerate(space.spaces)], space)
        return self._parts[path].space

    @property
    def notes(self) -> list[str]:
        return [note for part in self._parts.values() for note in part.notes][:1]

    def __call__(self, value: Any) -> Tree:
        parts = iter(self._parts.values())
        return _walk(value, self._original, "its observation", lambda leaf, _: next(parts)(leaf))


def observations(original: gymnasium.Space[Any], env_id: str, *, flatten: bool) -> Observations | ObservationTree:
    """The conversion of a space's observations to one array (`flatten`), or to a tree of arrays if it is a Dict or Tuple."""
    if not flatten and isinstance(original, spaces.Dict | spaces.Tuple):
        return ObservationTree(original, env_id)
    return Observations(original, env_id)


def _walk(value: Any, space: gymnasium.Space[Any], what: str, visit: Callable[[Any, str], Any]) -> Tree:
    """The tree of the results of `visit(leaf, its name in errors)`, called for the leaves of a space's value in order.

    Raises:
        BrokenContract: if the value does not have the structure of the space.
    """
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return visit(value, what)
    walked = {key: _walk(part, inner, f"{what}[{key!r}]", visit) for key, (part, inner) in parts_of(value, space, what).items()}
    return walked if isinstance(space, spaces.Dict) else tuple(walked.values())


def parts_of(value: Any, space: spaces.Dict | spaces.Tuple, what: str) -> dict[Any, tuple[Any, gymnasium.Space[Any]]]:
    """The parts of a value of a space with their own spaces, by key or place.

    Raises:
        BrokenContract: if the value does not have the structure of the space.
    """
    if isinstance(space, spaces.Dict):
        _check_keys(value, space, what)
        return {key: (value[key], part) for key, part in space.spaces.items()}
    if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
        given = f"{len(value)} parts" if isinstance(value, tuple | list) else type(value).__name__
        raise BrokenContract(f"{what} is {given}, the space says a tuple of {len(space.spaces)}")
    return dict(enumerate(zip(value, space.spaces, strict=True)))


def _check_keys(value: Any, space: spaces.Dict, what: str) -> None:
    if not hasattr(value, "keys"):
        raise BrokenContract(
            f"{what} is of type {type(value).__name__}, the space says a dictionary of {', '.join(map(repr, space.spaces))}"
        )
    missing, extra = [k for k in space.spaces if k not in value], [k for k in value if k not in space.spaces]
    if missing or extra:
        wrong = [f"lacks {', '.join(map(repr, missing))}"] * bool(missing) + [f"has {', '.join(map(repr, extra))} too"] * bool(extra)
        raise BrokenContract(f"{what} {' and '.join(wrong)}, the space says {', '.join(map(repr, space.spaces))}")


def _seen(box: spaces.Box) -> spaces.Box:
    """A Box with at least one dimension and numbers that torch computes with."""
    dtype = box.dtype if box.dtype in _NATIVE else np.dtype(np.float32)
    if box.shape and dtype == box.dtype:
        return box
    return SeenBox(np.atleast_1d(box.low).astype(dtype), np.atleast_1d(box.high).astype(dtype), dtype, box)


def _vector_space(leaf: gymnasium.Space[Any], path: str, whole: gymnasium.Space[Any], env_id: str) -> spaces.Box:
    """The Box of a leaf's vectors."""
    try:
        flat = spaces.flatten_space(leaf) if leaf.is_np_flattenable else None
    except NotImplementedError:  # gymnasium raises this for spaces that are not its own
        flat = None
    if not isinstance(flat, spaces.Box):
        part = f"of which {path} ({type(leaf).__name__})" if path else "which"
        keep = [key for key, box in whole.spaces.items() if isinstance(box, spaces.Box)] if isinstance(whole, spaces.Dict) else []
        wrapper = f"FilterObservation(env, {keep})" if keep else "TransformObservation(env, function, box)"
        raise ConfigError(
            f"env={env_id} has observation space {whole}, {part} cannot be flattened to a Box: "
            f"wrap it where it is registered, e.g. in gymnasium.wrappers.{wrapper}"
        )
    scale = _byte_scale(leaf)
    return flat if scale == 1.0 else spaces.Box(flat.low * np.float32(scale), flat.high * np.float32(scale), dtype=np.float32)


def _byte_scale(leaf: gymnasium.Space[Any]) -> float:
    """The factor that scales the bytes of an image to [0, 1]; 1 if the leaf has no bytes."""
    is_bytes = isinstance(leaf, spaces.Box) and leaf.dtype == np.uint8
    return 1.0 / max(1.0, float(leaf.high.max())) if is_bytes else 1.0  # type: ignore[attr-defined]


def _encoder(leaf: gymnasium.Space[Any]) -> Encode:
    if isinstance(leaf, spaces.Box):
        scale, shape, dtype = np.float32(_byte_scale(leaf)), leaf.shape, leaf.dtype
        return lambda value, what: check_array(value, shape, dtype, what).astype(np.float32).ravel() * scale

    def encode(value: Any, what: str) -> Array:
        check_member(value, leaf, what)
        return np.asarray(spaces.flatten(leaf, value), dtype=np.float32)

    return encode


def stretch(space: spaces.Box) -> tuple[Array, Array]:
    """Centre and half width of a Box: an action a in [-1, 1] is `centre + half * a` to the environment. 0 and 1 where it is unbounded."""
    bounded = _bounded(space)
    low, high = (np.where(bounded, end, unit).astype(np.float64) for end, unit in ((space.low, -1.0), (space.high, 1.0)))
    return (low + high) / 2.0, (high - low) / 2.0


def _bounded(space: spaces.Box) -> NDArray[np.bool_]:
    return (np.abs(space.low) < _UNBOUNDED) & (np.abs(space.high) < _UNBOUNDED)


def rescaled(space: gymnasium.Space[Any]) -> tuple[gymnasium.Space[Any], Callable[[Array], Array] | None]:
    """The action space with bounded dimensions in [-1, 1], and the function to the environment's actions; None if nothing changes.

    Dimensions without two bounds stay as they are, and so do whole numbers.
    """
    if not isinstance(space, spaces.Box) or space.dtype.kind != "f":
        return space, None
    centre, half = stretch(space)
    if not centre.any() and (half == 1.0).all():
        return space, None
    low, high, bounded = space.low.astype(np.float64), space.high.astype(np.float64), _bounded(space)
    seen_low, seen_high = np.where(bounded, -1.0, low), np.where(bounded, 1.0, high)
    seen = SeenBox(seen_low.astype(space.dtype), seen_high.astype(space.dtype), space.dtype, space)

    def to_env(action: Array) -> Array:
        return (centre + half * action).clip(low, high).astype(space.dtype)

    return seen, to_env


class Edge(gymnasium.Env[Any, Any]):
    """One environment with checked returns, converted observations and rescaled actions.

    Args:
        env: any environment that gymnasium makes.
        env_id: its name in errors.
        rescale_actions: bring bounded actions to [-1, 1].
        flatten: make a Dict or Tuple observation one vector, instead of a tree of arrays.

    Raises:
        ConfigError: if it has no spaces, or observations that cannot be encoded.
        BrokenContract: from reset and step.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], env_id: str, *, rescale_actions: bool, flatten: bool = True) -> None:
        self.env = env
        self.spec, self.metadata, self.render_mode = env.spec, env.metadata, env.render_mode
        self._observe = observations(_space_of(env, "observation_space", env_id), env_id, flatten=flatten)
        self.observation_space = _with_frames(self._observe.space, env)
        action_space = _space_of(env, "action_space", env_id)
        self.action_space, self._to_env = rescaled(action_space) if rescale_actions else (action_space, None)

    @property
    def unwrapped(self) -> gymnasium.Env[Any, Any]:
        return self.env.unwrapped

    @property
    def notes(self) -> list[str]:
        """Oddities of the environment that do no harm, as text for the user."""
        return self._observe.notes

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tree, dict[str, Any]]:
        return self._observe(check_reset(self.env.reset(seed=seed))), {}

    def step(self, action: Any) -> tuple[Tree, Any, bool, bool, dict[str, Any]]:
        result: Any = self.env.step(action if self._to_env is None else self._to_env(action))
        obs, reward, terminated, truncated, info = result if result.__class__ is tuple and len(result) == 5 else check_step(result)
        if reward.__class__ not in _NUMBERS:
            reward = check_reward(reward)
        if terminated.__class__ not in _FLAGS:
            terminated = check_flag(terminated, "terminated")
        if truncated.__class__ not in _FLAGS:
            truncated = check_flag(truncated, "truncated")
        if info.__class__ is not dict:
            check_info(info)
        return self._observe(obs), reward, terminated, truncated, info

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()


def _with_frames(space: gymnasium.Space[Any], env: gymnasium.Env[Any, Any]) -> gymnasium.Space[Any]:
    """The space as a `StackedBox` if the environment, or a wrapper of gymnasium's, stacks frames.

    Wrappers may change what is stacked, which does no harm: a replay stores whole what turns out to be no stack of consecutive frames.
    """
    num_frames, inner = 1, env
    while isinstance(inner, gymnasium.Wrapper) and num_frames == 1:
        num_frames = inner.stack_size if isinstance(inner, gymnasium.wrappers.FrameStackObservation) else 1
        inner = inner.env
    if num_frames == 1:
        num_frames = getattr(env.unwrapped, "frame_stack", 1)
    if isinstance(space, spaces.Box) and num_frames > 1 and len(space.shape) > 1 and space.shape[0] == num_frames:
        return StackedBox(space)
    return space


def _space_of(env: gymnasium.Env[Any, Any], name: str, env_id: str) -> gymnasium.Space[Any]:
    try:
        space = getattr(env, name, None)
    except Exception as error:
        raise ConfigError(f"env={env_id}: its {name} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(space, gymnasium.Space):
        raise ConfigError(f"env={env_id} has no {name}: its constructor must set it to one of gymnasium.spaces")
    return space
