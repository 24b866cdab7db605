"""Items that are only ever appended: rows of a replay, frames, positions. A checkpoint writes each of them once (`rlx.segments`)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

_ITEMS, _MOST_BYTES, _LEAST_BYTES = 16_384, 8 << 20, 256 << 10
"""Items of a segment, and the bytes that it has at most and, if the capacity allows, at least."""
_CPU = torch.device("cpu")


class Kind(NamedTuple):
    """What an item has in a column."""

    dtype: torch.dtype
    shape: tuple[int, ...] = ()

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Items(Protocol):
    """Consecutive items in a state, which are in memory (`Appended`) or in a checkpoint (`rlx.segments.Stored`).

    Items are numbered from the first that was ever added.
    """

    @property
    def first(self) -> int: ...

    @property
    def end(self) -> int:
        """The number after the last item."""
        ...

    def parts(self, kinds: Mapping[str, Kind]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """The items in parts, in order: the number of a part's first item, and its columns [n, *].

        Raises:
            ValueError: if they have other columns.
        """
        ...

    def heir(self) -> object:
        """The history of whoever loads these items, see `Appended.history`."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Appended:
    """Items [first, end) of a sequence that only grows at its end; a place in a state that a checkpoint stores in segments."""

    first: int
    end: int
    kinds: Mapping[str, Kind]
    read: Callable[[int, int], dict[str, Tensor]]
    """Copies on the CPU of the columns [n, *] of items [a, b)."""
    history: object
    """Items of equal number in two states are the same if this is the same object: a replay that begins anew gets another one."""
    per_segment: int = _ITEMS
    """Items of a segment."""

    def parts(self, kinds: Mapping[str, Kind]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        if self.end > self.first:
            yield self.first, self.read(self.first, self.end)

    def heir(self) -> object:
        return object()  # the one that these come from goes on too

    def __deepcopy__(self, memo: dict[int, Any]) -> Appended:
        columns = self.read(self.first, self.end) if self.end > self.first else {}
        return Appended(
            first=self.first, end=self.end, kinds=self.kinds, history=object(), per_segment=self.per_segment,
            read=lambda a, b: {name: column[a - self.first : b - self.first].clone() for name, column in columns.items()},
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Appended) or (self.first, self.end, dict(self.kinds)) != (other.first, other.end, dict(other.kinds)):
            return False
        mine, theirs = ([part for _, part in each.parts(self.kinds)] for each in (self, other))
        return all(torch.equal(a[name], b[name]) for a, b in zip(mine, theirs, strict=True) for name in a)

    __hash__ = None  # type: ignore[assignment]


def no_items() -> Appended:
    """What stands for items that an evaluation does not read."""
    return Appended(first=0, end=0, kinds={}, read=lambda a, b: {}, history=object())


class Ring:
    """Columns in memory whose items are only ever appended. Item i lies at i % capacity, so that new items overwrite the oldest.

    Memory is reserved when the first item is added: an evaluation builds the replay of an algorithm, and never adds to it.

    Args:
        kinds: what an item has in each column.
        capacity: items.
        device: where they are kept.
        renewed: columns whose entries are changed after they were added; a state has them whole.
    """

    def __init__(
        self, kinds: Mapping[str, Kind], capacity: int, device: torch.device = _CPU, *, renewed: Collection[str] = ()
    ) -> None:  # fmt: skip
        self.capacity, self.first, self.end = capacity, 0, 0
        self._kinds, self._device, self._renewed, self._history = dict(kinds), device, frozenset(renewed), object()
        self._columns: dict[str, Tensor] = {}

    @property
    def size(self) -> int:
        return self.end - self.first

    def __getitem__(self, name: str) -> Tensor:
        """A column, [capacity, *]; empty before the first item."""
        if not self._columns:
            kind = self._kinds[name]
            return torch.zeros(0, *kind.shape, dtype=kind.dtype, device=self._device)
        return self._columns[name]

    def extend(self, num: int, columns: Mapping[str, Tensor]) -> None:
        """Append `num` items, [num, *] of every column."""
        if not self._columns:
            self._columns = self._reserved(self.capacity)
        self._put(self.end, num, columns)
        self.end += num
        self.first = max(self.first, self.end - self.capacity)

    def _put(self, begin: int, num: int, columns: Mapping[str, Tensor]) -> None:
        skip = max(0, num - self.capacity)
        at, num = (begin + skip) % self.capacity, num - skip
        before_end = min(num, self.capacity - at)
        for name, new in columns.items():
            column = self._columns[name]
            column[at : at + before_end] = new[skip : skip + before_end]
            if before_end < num:
                column[: num - before_end] = new[skip + before_end :]

    def reserve(self, num: int) -> None:
        """Raise the capacity, if `num` items from `first` on need that."""
        if num > self.capacity:
            size, live = self.size, _read(self._columns, self.capacity, self.first, self.end)
            self.capacity = max(num, self.capacity * 5 // 4)
            self._columns = self._reserved(self.capacity)
            self._put(self.first, size, live)

    def _reserved(self, num: int) -> dict[str, Tensor]:
        return {name: reserved(kind, num, self._device) for name, kind in self._kinds.items()}

    def state(self) -> Appended:
        """The items without the renewed columns."""
        kinds = {name: kind for name, kind in self._kinds.items() if name not in self._renewed}
        columns = {name: self._columns[name] for name in kinds} if self._columns else {}
        return Appended(
            first=self.first, end=self.end, kinds=kinds, history=self._history,
            read=functools.partial(_read, columns, self.capacity),
            per_segment=items_per_segment(sum(kind.num_bytes for kind in kinds.values()), self.capacity),
        )  # fmt: skip

    def renewed(self) -> dict[str, Tensor]:
        """The renewed columns [size, *], in the order of the items."""
        return _read({name: self[name] for name in self._renewed}, self.capacity, self.first, self.end) if self._columns else {}

    def load(self, items: Items, renewed: Mapping[str, Tensor] | None = None, *, most: int | None = None) -> None:
        """Take over what `state` and `renewed` returned.

        Args:
            items: the items.
            renewed: the renewed columns.
            most: items that are accepted, by default the capacity.

        Raises:
            ValueError: if there are more, or other columns.
        """
        num, most = items.end - items.first, self.capacity if most is None else most
        if not 0 <= num <= most or items.first < 0:
            raise ValueError(f"items {items.first:,} to {items.end:,} were saved, and at most {most:,} have a place here")
        self.capacity = max(num, self.capacity)
        self._columns = {}  # not written over: the items may be this ring's own
        self.first, self.end, self._history = items.first, items.end, items.heir()
        if num == 0:
            return
        self._columns = self._reserved(self.capacity)
        wanted = {name: kind for name, kind in self._kinds.items() if name not in self._renewed}
        for begin, columns in items.parts(wanted):
            self._put(begin, len(next(iter(columns.values()), ())), columns)
        for name in self._renewed:
            saved = (renewed or {})[name]
            if saved.shape != (num, *self._kinds[name].shape):
                raise ValueError(f"{name} is {list(saved.shape)}, expected {[num, *self._kinds[name].shape]}")
            self._put(self.first, num, {name: saved})


def _read(columns: Mapping[str, Tensor], capacity: int, begin: int, end: int) -> dict[str, Tensor]:
    """Copies on the CPU of the columns [n, *] of items [begin, end) of a ring."""
    at, num = begin % capacity, end - begin
    return {name: torch.cat((x[at : at + num], x[: max(0, at + num - capacity)])).cpu() for name, x in columns.items()}


def reserved(kind: Kind, num: int, device: torch.device = _CPU) -> Tensor:
    """Zeros [num, *], which on the CPU take memory only once they are written to, unlike torch's."""
    if device.type != "cpu" or num == 0:
        return torch.zeros(num, *kind.shape, dtype=kind.dtype, device=device)
    return torch.from_numpy(np.zeros(num * kind.num_bytes, dtype=np.uint8)).view(kind.dtype).view(num, *kind.shape)


def items_per_segment(num_bytes: int, capacity: int) -> int:
    """A power of two: 16,384, less if items are large or the capacity is small, so that what is written anew stays a small part of it."""
    most, least = _MOST_BYTES // max(num_bytes, 1), _LEAST_BYTES // max(num_bytes, 1)
    num = max(1, min(_ITEMS, most, max(least, capacity // 16)))
    return 1 << (num.bit_length() - 1)
