"""Spaces as algorithms see them; where the edge of rlx (`envs/edge.py`) changed a space, it keeps the environment's own as `original`.

Observations are trees of arrays over a Box, Discrete, MultiDiscrete or MultiBinary, nested in Dicts and Tuples. Where actions are
masked, the observation is a Dict with the entry `ACTION_MASK`: one bool [M] for the choices of all discrete parts of an action, in order.

Actions are one array [*] of numbers: an index for Discrete, whole numbers [k] for MultiDiscrete, zeros and ones [n] for MultiBinary,
floats [A] for a Box, and for a Dict or Tuple of these one vector of floats, whose space is a `ProductSpace`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Array = NDArray[Any]

_PARTS = re.compile(r"(Dict|Tuple)\((.*)\)( with masks of actions)?", re.DOTALL)
"""What `describe_space` writes for a space with parts."""
_PART = re.compile(r"((?:\[[^\]]*\])+) (.*?)(?:, (?=\[)|$)", re.DOTALL)

ACTION_MASK = "action_mask"
"""Key of the mask in an observation: True for the choices that are allowed."""


class SeenBox(spaces.Box):
    """A Box as algorithms see it, with the environment's own space."""

    def __init__(self, low: Array, high: Array, dtype: Any, original: gymnasium.Space[Any]) -> None:
        super().__init__(low, high, dtype=dtype)
        self.original = original


class StackedBox(SeenBox):
    """A Box whose first axis has the last frames of an environment, the newest last."""

    def __init__(self, box: spaces.Box) -> None:
        super().__init__(box.low, box.high, box.dtype, original_space(box))
        self.num_frames: int = box.shape[0]


class ScaledBox(spaces.Box):
    """A Box whose values the environment has scaled to about [-1, 1] by their known range, so that they are never normalised by statistics.

    Heights ahead of a walker are 0 until it first meets an obstacle. Running statistics would learn a scale from that, and the first
    obstacle would come as an enormous number.
    """


class SeenDict(spaces.Dict):
    """A Dict of Boxes as algorithms see it, with the environment's own space."""

    def __init__(self, parts: dict[str, gymnasium.Space[Any]], original: gymnasium.Space[Any]) -> None:
        super().__init__(parts)
        self.original = original


class SeenTuple(spaces.Tuple):
    """The same for a Tuple."""

    def __init__(self, parts: list[gymnasium.Space[Any]], original: gymnasium.Space[Any]) -> None:
        super().__init__(parts)
        self.original = original


class SeenDiscrete(spaces.Discrete):
    """The same for a Discrete, of int64."""

    def __init__(self, n: int, start: int, original: gymnasium.Space[Any]) -> None:
        super().__init__(n, start=start)
        self.original = original


class SeenMultiDiscrete(spaces.MultiDiscrete):
    """The same for a MultiDiscrete, of int64; it counts from 0 unless `start` says otherwise."""

    def __init__(self, nvec: Array, original: gymnasium.Space[Any], *, start: Array | None = None) -> None:
        super().__init__(nvec, start=start)
        self.original = original


class SeenMultiBinary(spaces.MultiBinary):
    """The same for a MultiBinary."""

    def __init__(self, n: int, original: gymnasium.Space[Any]) -> None:
        super().__init__(n)
        self.original = original


def original_space(space: gymnasium.Space[Any]) -> gymnasium.Space[Any]:
    """The environment's own space."""
    return getattr(space, "original", space)


def describe_space(space: gymnasium.Space[Any]) -> str:
    """The environment's own space as text that is the same in every version of gymnasium: shape, dtype and range."""
    seen, space = space, original_space(space)
    if isinstance(seen, SeenDict) and ACTION_MASK in seen.spaces and ACTION_MASK not in getattr(space, "spaces", {}):
        return f"{describe_space(space)} with masks of actions"
    if isinstance(space, spaces.Box):
        return f"Box({space.shape}, {space.dtype}, {space.low.min():g} to {space.high.max():g})"
    if isinstance(space, spaces.Discrete):
        return f"Discrete({space.n})" if int(space.start) == 0 else f"Discrete({space.n}, start={space.start})"
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return f"{type(space).__name__}({', '.join(f'{path} {describe_space(part)}' for path, part in space_leaves(space))})"
    with np.printoptions(threshold=sys.maxsize):  # all numbers of choices, however many
        return " ".join(str(space).split())


def changed_part(before: str, now: str) -> tuple[str, str, str]:
    """The path of the first part in which two texts of `describe_space` differ, and both texts of that part.

    The path is empty where the spaces differ as a whole.
    """
    found, expected = (_PARTS.fullmatch(text) for text in (now, before))
    if found is None or expected is None or found[1] != expected[1] or found[3] != expected[3]:
        return "", before, now
    parts = [dict(_PART.findall(match[2])) for match in (expected, found)]
    for path in {**parts[0], **parts[1]}:
        was, is_ = (part.get(path, "absent") for part in parts)
        if was != is_:
            return path, was, is_
    return "", before, now


def space_leaves(space: gymnasium.Space[Any], path: str = "") -> list[tuple[str, gymnasium.Space[Any]]]:
    """The leaves of a Dict or Tuple space, in gymnasium's flattening order, each with its path such as ['image']."""
    if isinstance(space, spaces.Dict):
        return [leaf for key, part in space.spaces.items() for leaf in space_leaves(part, f"{path}[{key!r}]")]
    if isinstance(space, spaces.Tuple):
        return [leaf for i, part in enumerate(space.spaces) for leaf in space_leaves(part, f"{path}[{i}]")]
    return [(path, space)]


class ProductSpace(SeenBox):
    """Actions with several parts of different kinds, as one float32 vector [K] of all parts' numbers.

    Args:
        parts: Discrete (one number from 0), MultiDiscrete, MultiBinary or one-dimensional Box, in the order of `space_leaves(original)`.
        original: the environment's Dict or Tuple.
    """

    def __init__(self, parts: Sequence[gymnasium.Space[Any]], original: gymnasium.Space[Any]) -> None:
        low, high = (np.concatenate([_bounds(part)[end] for part in parts]).astype(np.float32) for end in (0, 1))
        super().__init__(low, high, np.float32, original)
        self.parts = tuple(parts)

    def seed(self, seed: Any = None) -> Any:
        """Seed the generators of all parts."""
        return [
            part.seed(int(child))
            for part, child in zip(self.parts, np.random.SeedSequence(seed).generate_state(len(self.parts)), strict=True)
        ]

    def sample(self, mask: None = None, probability: None = None) -> Array:
        """A random member, whose discrete parts are whole numbers."""
        return np.concatenate([np.atleast_1d(part.sample()) for part in self.parts]).astype(np.float32)


def _bounds(part: gymnasium.Space[Any]) -> tuple[Array, Array]:
    """The least and greatest values [k] of a part's numbers."""
    if isinstance(part, spaces.Box):
        return part.low.ravel(), part.high.ravel()
    choices = choices_of(part)
    return np.zeros(len(choices)), np.array(choices) - 1


def choices_of(space: gymnasium.Space[Any]) -> list[int]:
    """The number of choices of each discrete number of an action: 2 for a bit; none for a Box."""
    if isinstance(space, ProductSpace):
        return [n for part in space.parts for n in choices_of(part)]
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(n) for n in space.nvec.ravel()]
    return [2] * int(np.prod(space.shape or ())) if isinstance(space, spaces.MultiBinary) else []


def mask_width(space: gymnasium.Space[Any]) -> int:
    """M, the width of a mask of actions of this space."""
    return sum(choices_of(space))


def is_masked(observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any]) -> bool:
    """Whether observations have masks of actions; without choices to mask, an entry of that name is like any other."""
    return isinstance(observation_space, spaces.Dict) and ACTION_MASK in observation_space.spaces and mask_width(action_space) > 0
