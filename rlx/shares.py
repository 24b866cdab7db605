"""States of batches of environments, joined into that of all environments of a run, and taken apart again.

In such a state everything that an environment has of its own lies along the first axis of an array or tensor, or is an item of a list;
mappings and tuples are looked into, and everything else is equal for all environments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def join_states(parts: Sequence[Any]) -> Any:
    """The state of all environments, from those of consecutive parts of them."""
    first = parts[0]
    if isinstance(first, Mapping):
        return {key: join_states([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple):
        return tuple(map(join_states, zip(*parts, strict=True)))
    if isinstance(first, list):
        return [item for part in parts for item in part]
    if _has_rows(first):
        return torch.cat(list(parts)) if isinstance(first, torch.Tensor) else np.concatenate(parts)
    return first


def part_of_state(state: Any, envs: slice) -> Any:
    """The state of some of the environments, from that of all."""
    if isinstance(state, Mapping):
        return {key: part_of_state(part, envs) for key, part in state.items()}
    if isinstance(state, tuple):
        return tuple(part_of_state(part, envs) for part in state)
    if isinstance(state, list) or _has_rows(state):
        return state[envs]
    return state


def _has_rows(value: NDArray[Any] | torch.Tensor | Any) -> bool:
    return isinstance(value, np.ndarray | torch.Tensor) and value.ndim > 0
