"""Observations between environments and algorithms: checked against their space, as one array or as a tree of arrays.

Algorithms that take trees get the parts of a Dict or Tuple as they are, with whole numbers for choices. For others everything becomes one
float32 vector. A space that was changed keeps the environment's own as `original`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlx.envs.contract import BrokenContract, check_array, check_member, keeps_values
from rlx.errors import ConfigError
from rlx.spaces import SeenBox, SeenDict, SeenDiscrete, SeenMultiDiscrete, SeenTuple, StackedBox, space_leaves
from rlx.tree_ops import Tree

Array = NDArray[Any]
Encode = Callable[[Any, str], Array]
"""A function from a leaf's value and its name in errors to a float32 vector."""

_NATIVE = {np.dtype(t) for t in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")}
"""Kinds of numbers that torch computes with."""
_EARLY_STEPS = 100
"""Steps over which observations are compared with the bounds of their space."""
_WIDEST = 2**24
"""Most numbers of a one-hot vector."""


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
            if not parts:
                raise ConfigError(f"env={env_id} has observation space {original}, which has no parts: an agent needs something to see")
            vectors = [_vector_space(leaf, path + inner, whole or original, env_id) for inner, leaf in parts]
            low, high = (np.concatenate([getattr(v, end).ravel() for v in vectors]).astype(np.float32) for end in ("low", "high"))
            self.space = SeenBox(low, high, np.float32, original)
            self._encoders = [_encoder(leaf) for _, leaf in parts]
        _refuse_empty(self.space, path, whole or original, env_id)

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


class Choices:
    """Checks observations of a Discrete, MultiDiscrete or MultiBinary space, and keeps their whole numbers.

    Args: as of `Observations`.
    """

    def __init__(self, original: gymnasium.Space[Any], env_id: str, *, path: str = "", whole: gymnasium.Space[Any] | None = None) -> None:
        self._original, self._what = original, f"its observation{path}"
        self.space = _of_int64(original)
        self.notes: list[str] = []
        _refuse_empty(original, path, whole or original, env_id)

    def __call__(self, value: Any) -> Array:
        check_member(value, self._original, self._what)
        return np.asarray(value, dtype=self.space.dtype)


class ObservationTree:
    """Converts observations of a Dict or Tuple space to a tree of arrays, one for each part.

    A Box is converted as by `Observations`; Discrete, MultiDiscrete and MultiBinary stay whole numbers.

    Args:
        original: the space.
        env_id: name of the environment in errors.
        without: a key of a Dict that is left out.

    Raises:
        ConfigError: if a part of the space is of another kind.
    """

    def __init__(self, original: spaces.Dict | spaces.Tuple, env_id: str, *, without: str | None = None) -> None:
        self._original, self._env_id, self._without = original, env_id, without
        self._kept: gymnasium.Space[Any] = original
        if without is not None and isinstance(original, spaces.Dict):
            self._kept = spaces.Dict({key: part for key, part in original.spaces.items() if key != without})
        self._parts: dict[str, Observations | Choices] = {}
        self.space = self._seen(self._kept, "")

    def _seen(self, space: gymnasium.Space[Any], path: str) -> gymnasium.Space[Any]:
        if isinstance(space, spaces.Dict | spaces.Tuple):
            where = f"env={self._env_id} has observation space {self._original}, {f'of which {path}' if path else 'which'}"
            if not space.spaces:
                raise ConfigError(f"{where} has no parts{f' besides {self._without!r}' if self._without and not path else ''}: "
                                  "an agent needs something to see")  # fmt: skip
            if wrong := [key for key in space.spaces if isinstance(space, spaces.Dict) and not isinstance(key, str)]:
                raise ConfigError(f"{where} has the key {wrong[0]!r} ({type(wrong[0]).__name__}); expected strings")
        if isinstance(space, spaces.Dict):
            return SeenDict({key: self._seen(part, f"{path}[{key!r}]") for key, part in space.spaces.items()}, space)
        if isinstance(space, spaces.Tuple):
            return SeenTuple([self._seen(part, f"{path}[{i}]") for i, part in enumerate(space.spaces)], space)
        self._parts[path] = _kept_leaf(space, self._env_id, path=path, whole=self._original)
        return self._parts[path].space

    @property
    def notes(self) -> list[str]:
        return [note for part in self._parts.values() for note in part.notes][:1]

    def __call__(self, value: Any) -> Tree:
        if self._without is not None:
            _check_keys(value, self._original, "its observation")  # type: ignore[arg-type]
            value = {key: value[key] for key in self._kept.spaces}  # type: ignore[attr-defined]
        parts = iter(self._parts.values())
        return _walk(value, self._kept, "its observation", lambda leaf, _: next(parts)(leaf))


def _kept_leaf(leaf: gymnasium.Space[Any], env_id: str, *, path: str, whole: gymnasium.Space[Any]) -> Observations | Choices:
    """The conversion of a part of a space that keeps its kind."""
    if isinstance(leaf, spaces.Box):
        return Observations(leaf, env_id, path=path, whole=whole)
    if isinstance(leaf, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return Choices(leaf, env_id, path=path, whole=whole)
    part = f"of which {path} ({type(leaf).__name__})" if path else "which"
    raise ConfigError(f"env={env_id} has observation space {whole}, {part} is no Box, Discrete, MultiDiscrete or MultiBinary: "
                      f"wrap it where it is registered, e.g. in gymnasium.wrappers.{_wrapper_for(whole)}")  # fmt: skip


def observations(
    original: gymnasium.Space[Any], env_id: str, *, flatten: bool, without: str | None = None
) -> Observations | Choices | ObservationTree:
    """The conversion of a space's observations to one array (`flatten`), or to a tree of arrays in the structure of the space."""
    if flatten:
        return Observations(original, env_id)
    if isinstance(original, spaces.Dict | spaces.Tuple):
        return ObservationTree(original, env_id, without=without)
    return _kept_leaf(original, env_id, path="", whole=original)


def _of_int64(space: gymnasium.Space[Any]) -> gymnasium.Space[Any]:
    """A space of choices in int64, which torch takes as an index."""
    if isinstance(space, spaces.Discrete) and space.dtype != np.int64:
        return SeenDiscrete(int(space.n), int(space.start), space)
    if isinstance(space, spaces.MultiDiscrete) and space.dtype != np.int64:
        return SeenMultiDiscrete(space.nvec.astype(np.int64), space, start=space.start.astype(np.int64))
    return space


def _refuse_empty(space: gymnasium.Space[Any], path: str, whole: gymnasium.Space[Any], env_id: str) -> None:
    if space.shape and 0 in space.shape:
        part = f"of which {path}" if path else "which"
        raise ConfigError(f"env={env_id} has observation space {whole}, {part} is empty: an agent needs something to see")


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
    width, part = _one_hot_width(leaf), f"of which {path}" if path else "which"
    if width > _WIDEST:
        raise ConfigError(f"env={env_id} has observation space {whole}, {part} would be a one-hot vector "
                          f"of {width:,} numbers: at most {_WIDEST:,}; observe it as a Box of digits or features")  # fmt: skip
    try:
        flat = spaces.flatten_space(leaf) if leaf.is_np_flattenable else None
    except NotImplementedError:  # gymnasium raises this for spaces that are not its own
        flat = None
    if not isinstance(flat, spaces.Box):
        part = f"of which {path} ({type(leaf).__name__})" if path else "which"
        raise ConfigError(
            f"env={env_id} has observation space {whole}, {part} cannot be flattened to a Box: "
            f"wrap it where it is registered, e.g. in gymnasium.wrappers.{_wrapper_for(whole)}"
        )
    scale = _byte_scale(leaf)
    return flat if scale == 1.0 else spaces.Box(flat.low * np.float32(scale), flat.high * np.float32(scale), dtype=np.float32)


def _one_hot_width(leaf: gymnasium.Space[Any]) -> int:
    if isinstance(leaf, spaces.Discrete):
        return int(leaf.n)
    return sum(map(int, leaf.nvec.ravel())) if isinstance(leaf, spaces.MultiDiscrete) else 0


def _wrapper_for(whole: gymnasium.Space[Any]) -> str:
    """A call of a wrapper that leaves what an algorithm can take."""
    keep = [key for key, box in whole.spaces.items() if isinstance(box, spaces.Box)] if isinstance(whole, spaces.Dict) else []
    return f"FilterObservation(env, {keep})" if keep else "TransformObservation(env, function, box)"


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


def with_frames(space: gymnasium.Space[Any], env: gymnasium.Env[Any, Any]) -> gymnasium.Space[Any]:
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
