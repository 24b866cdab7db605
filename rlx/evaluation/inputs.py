"""What a network was given in one state, part by part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rlx.envs.meanings import observed_names
from rlx.spaces import ACTION_MASK, original_space, space_leaves
from rlx.tree_ops import named_leaves
from rlx.types import Tree


class Input(NamedTuple):
    """One part of an observation."""

    name: str
    """Empty where an observation has one part only."""
    values: NDArray[Any]
    """As the network gets it, in the shape of the observation where it has as many numbers."""
    observed: NDArray[Any]
    """As the environment gave it, or as algorithms see it where that is one vector."""
    space: gymnasium.Space[Any] | None
    """The environment's own space of this part; None where the network's inputs are other parts than the observation's."""
    names: tuple[str, ...] = ()
    """Of the numbers of a vector, where they are known."""


def inputs_of(space: gymnasium.Space[Any], env_id: str, obs: Tree, inputs: Tree | None) -> tuple[Input, ...]:
    """The parts of an observation without its mask.

    Args:
        space: of observations, as the algorithm sees it.
        env_id: the environment's id, which may tell names.
        obs: one observation, arrays [*].
        inputs: what the network made of it before its first weights, arrays [*]; None if that is not known.
    """
    parts: list[tuple[str, NDArray[Any], gymnasium.Space[Any]]] = []
    leaves = dict(space_leaves(space))
    for path, leaf in named_leaves(obs):
        if path == f"[{ACTION_MASK!r}]":
            continue
        array, own = np.asarray(leaf), original_space(leaves[path])
        inner = [(name, part, gymnasium.spaces.flatdim(part)) for name, part in space_leaves(own)]
        if len(inner) == 1 or sum(n for *_, n in inner) != array.size:
            parts.append((plain_path(path), _shaped(array, own), own))
        else:  # a Dict or Tuple that is seen as one vector
            vectors = _split(array, [n for *_, n in inner])
            parts += [
                (plain_path(path + name), _shaped(vector, part), part) for (name, part, _), vector in zip(inner, vectors, strict=True)
            ]
    if isinstance(inputs, dict) and set(inputs) == {"inputs", "mask"}:
        inputs = inputs["inputs"]
    found = [(path, np.asarray(array)) for path, array in named_leaves(obs if inputs is None else inputs)]
    arrays = [array for _, array in found] if inputs is not None else [array for _, array, _ in parts]
    if len(arrays) == 1 and arrays[0].size == sum(array.size for _, array, _ in parts):
        arrays = _split(arrays[0], [array.size for _, array, _ in parts])
    if len(arrays) != len(parts):
        return tuple(Input(plain_path(path), array, array, None) for path, array in found)
    names = observed_names(env_id, parts[0][1].size) if len(parts) == 1 else ()
    return tuple(
        Input(name, _shaped(array, own), seen, own, names) for array, (name, seen, own) in zip(arrays, parts, strict=True)
    )  # fmt: skip


def _split(vector: NDArray[Any], sizes: Sequence[int]) -> list[NDArray[Any]]:
    return np.split(vector.ravel(), np.cumsum(sizes)[:-1])


def _shaped(array: NDArray[Any], space: gymnasium.Space[Any]) -> NDArray[Any]:
    """The array in the shape of its space, where it has as many numbers."""
    shape = space.shape
    return array.reshape(shape) if shape and int(np.prod(shape)) == array.size else array


def plain_path(path: str, inner: str = "") -> str:
    """A path such as ['camera'][0] as camera.0, before the name of a part in it; an observation beside a mask has no name."""
    names = re.findall(r"[^\[\]'\"]+", path)
    return "" if names == ["observation"] else " ".join(filter(None, (".".join(names), inner)))
