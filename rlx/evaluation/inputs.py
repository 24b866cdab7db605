"""What a network was given in one state, part by part."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rlx.envs.meanings import observed_names
from rlx.spaces import original_space, space_leaves
from rlx.tree_ops import named_leaves
from rlx.types import Tree


class Input(NamedTuple):
    """One part of an observation."""

    name: str
    """Empty where an observation has one part only."""
    observed: NDArray[Any]
    """As the environment gave it, or as algorithms see it where that is one vector."""
    values: NDArray[Any]
    """The same as the network gets it, where that has as many numbers: normalised, in the case of vectors."""
    space: gymnasium.Space[Any]
    """The environment's own space of this part."""
    names: tuple[str, ...] = ()
    """Of the numbers of a vector, where they are known."""


def inputs_of(space: gymnasium.Space[Any], env_id: str, obs: Tree, inputs: Mapping[str, Tree] | None) -> tuple[Input, ...]:
    """The parts of an observation.

    Args:
        space: of observations, as the algorithm sees it.
        env_id: the environment's id, which may tell names.
        obs: one observation without its mask, arrays [*].
        inputs: what the network made of its parts before the first weights, arrays [*] by path; None if that is not known.
    """
    leaves = dict(space_leaves(space))
    found: list[Input] = []
    for path, leaf in named_leaves(obs):
        seen, own = np.asarray(leaf), original_space(leaves[path])
        given = (inputs or {}).get(path)
        values = given if isinstance(given, np.ndarray) and given.size == seen.size else seen
        parts = [(name, part, gymnasium.spaces.flatdim(part)) for name, part in space_leaves(own)]
        if len(parts) == 1 or sum(n for *_, n in parts) != seen.size:
            found.append(Input(plain_path(path), _shaped(seen, own), _shaped(values, own), own))
            continue
        ends = np.cumsum([n for *_, n in parts])[:-1]  # a Dict or Tuple that is seen as one vector
        for (name, part, _), one, other in zip(parts, np.split(seen.ravel(), ends), np.split(values.ravel(), ends), strict=True):
            found.append(Input(plain_path(path + name), _shaped(one, part), _shaped(other, part), part))
    if len(found) == 1:
        found = [found[0]._replace(names=observed_names(env_id, found[0].observed.size))]
    return tuple(found)


def _shaped(array: NDArray[Any], space: gymnasium.Space[Any]) -> NDArray[Any]:
    """The array in the shape of its space, where it has as many numbers."""
    shape = space.shape
    return array.reshape(shape) if shape and int(np.prod(shape)) == array.size else array


def plain_path(path: str, inner: str = "") -> str:
    """A path such as ['camera'][0] as camera.0, before the name of a part in it; an observation beside a mask has no name."""
    names = re.findall(r"[^\[\]'\"]+", path)
    return "" if names == ["observation"] else " ".join(filter(None, (".".join(names), inner)))
