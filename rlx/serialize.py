"""States as bytes that are read back as data only, in torch's file format."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from rlx.appended import Appended, no_items
from rlx.errors import CheckpointError
from rlx.types import State

_MARK = "rlx.appended"
"""Key of what stands for appended items in a file; its value is their place in the state."""


def serialize(state: State, name: str = "state_dict()", *, take: Callable[[str, Appended], None] | None = None) -> bytes:
    """A state in torch's file format, with only what `weights_only` reads back.

    Args:
        state: made of tensors, arrays, numbers, strings, dictionaries, lists and tuples.
        name: of the state, in errors and places.
        take: called with the place of appended items and these items, which the file does not have; without it they are refused.

    Raises:
        CheckpointError: if there is anything else in it.
    """
    buffer = io.BytesIO()
    torch.save(plain(state, name, take), buffer)
    return buffer.getvalue()


def plain(value: Any, name: str = "state_dict()", take: Callable[[str, Appended], None] | None = None) -> Any:
    """A state with NumPy arrays as tensors and scalars as numbers, which `weights_only` can read back; a CheckpointError for others."""
    if isinstance(value, Appended) and take is not None:
        take(name, value)
        return {_MARK: name}
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        if _MARK in value:
            raise CheckpointError(f"{name} has the key {_MARK!r}, which is not free: choose another one")
        return {k: plain(v, f"{name}[{k!r}]", take) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        raise CheckpointError(
            f"{name}: {type(value).__name__} would be read back as another type; put a tuple or a dictionary into the state"
        )
    if isinstance(value, list | tuple):
        return type(value)(plain(v, f"{name}[{i}]", take) for i, v in enumerate(value))
    if isinstance(value, torch.Tensor):
        return value.detach().clone()  # torch saves the whole storage of a view
    if value is not None and type(value) not in (bool, int, float, str, bytes):
        raise CheckpointError(f"{name} is a {type(value).__name__}, which cannot be saved as data; a state is made of tensors, arrays, "
                              "numbers, strings, dictionaries, lists and tuples")  # fmt: skip
    return value


def digest(state: State) -> str:
    """SHA-256 of a state's keys and values, the same for equal states in any process."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Mapping):
            for key in value:
                found.update(repr(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            found.update(f"{len(value)} items".encode())
            for item in value:
                add(item)
        elif isinstance(value, torch.Tensor):
            found.update(f"{value.dtype}{list(value.shape)}".encode())
            found.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(value).encode())

    add(plain(state))
    return found.hexdigest()


def deserialize(data: bytes, find: Callable[[str], Any] | None = None) -> State:
    """The state in a file's content; unpickles no code.

    Args:
        data: the content.
        find: returns appended items by their place; without it there are none.

    Raises:
        Exception: if it holds anything but data.
    """
    state: State = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    return _found(state, find or (lambda place: no_items()))


def _found(value: Any, find: Callable[[str], Any]) -> Any:
    if isinstance(value, dict):
        if isinstance(place := value.get(_MARK), str):
            return find(place)
        return {k: _found(v, find) for k, v in value.items()} if type(value) is dict else value
    if isinstance(value, list | tuple):
        return type(value)(_found(v, find) for v in value)
    return value
