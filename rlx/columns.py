"""Columns of a replay: arrays whose rows are overwritten in turn, and stacks of frames that are stored once per frame."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlx.spaces import StackedBox
from rlx.tree_ops import Tree
from rlx.types import State


@dataclass(frozen=True)
class Column:
    """What a row of a column is."""

    dtype: torch.dtype
    shape: tuple[int, ...] = ()
    num_frames: int = 1
    """Frames that a row stacks along its first axis, the newest last; 1 if it is no stack."""

    @property
    def num_bytes(self) -> int:
        """Of one row; of a stack, the bytes of the frame that it adds."""
        return math.prod(self.shape) * self.dtype.itemsize // self.num_frames + 8 * (self.num_frames if self.num_frames > 1 else 0)


def columns_of(space: gymnasium.Space[object]) -> Tree:
    """A tree of `Column` for values of a space as algorithms see it (`rlx.spaces`)."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {key: columns_of(part) for key, part in space.spaces.items()}
    if isinstance(space, gymnasium.spaces.Tuple):
        return tuple(columns_of(part) for part in space.spaces)
    dtype = torch.from_numpy(np.zeros(0, space.dtype)).dtype
    return Column(dtype, tuple(space.shape or ()), space.num_frames if isinstance(space, StackedBox) else 1)


class Rows:
    """Rows of B environments side by side, in one tensor that grows up to its capacity; the oldest rows are overwritten.

    Args:
        column: what a row is.
        capacity: rows, a multiple of num_envs.
        num_envs: B.
        device: where the rows are kept.
    """

    def __init__(self, column: Column, capacity: int, num_envs: int, device: torch.device) -> None:
        self._capacity, self._device = capacity, device
        self.values = torch.zeros(0, *column.shape, dtype=column.dtype, device=device)

    def add(self, steps: Tensor, added: int) -> None:
        """Add [T, B, *] after `added` rows."""
        new, old = steps.flatten(0, 1), self.values
        index = (added + torch.arange(len(new), device=self._device)) % self._capacity
        need = min(self._capacity, added + len(new)) - len(old)
        if need > 0:  # allocate memory as it is needed, half as much again at a time
            grown = min(self._capacity - len(old), max(need, len(old) // 2, 1024))
            old = self.values = torch.cat([old, old.new_zeros(grown, *old.shape[1:])])
        old[index] = new.to(device=self._device, dtype=old.dtype)

    def __getitem__(self, index: Tensor) -> Tensor:
        """The rows [*, *] at `index` [*]."""
        return self.values[index]

    def state(self, added: int) -> Tensor:
        return self.values[: min(added, self._capacity)].clone()

    def load_state(self, state: Tensor) -> None:
        self.values = state.to(self._device, copy=True)


class FrameStacks:
    """The same for rows that are stacks of frames [k, *], newest last. Each frame is stored once, and stacks are rebuilt on reading.

    A stack that does not continue the one before it in its environment is stored whole. Such are the first stacks of episodes: what an
    environment puts before an episode's first frame, zeros or that frame again, is exact. Frames are numbered in the order of time, and
    each row has the numbers of its frames. Rows of one environment refer to ever later frames, so that the frames in use lie in a ring.
    """

    def __init__(self, column: Column, capacity: int, num_envs: int, device: torch.device) -> None:
        self._column, self._capacity, self._num_envs, self._device = column, capacity, num_envs, device
        self._numbers = torch.zeros(capacity, column.num_frames, dtype=torch.long, device=device)  # of each row's frames
        self._next = 0  # number of the next frame; frame n lies at n % len(self._frames)
        self._frames = self._ring(capacity + capacity // 16 + 2 * num_envs * column.num_frames)  # grows if episodes are short

    def _ring(self, num_frames: int) -> Tensor:
        shape = (num_frames, *self._column.shape[1:])
        if self._device.type != "cpu":
            return torch.zeros(shape, dtype=self._column.dtype, device=self._device)
        empty = torch.zeros(0, dtype=self._column.dtype).numpy()
        return torch.from_numpy(np.zeros(shape, dtype=empty.dtype))  # unlike torch's zeros, takes memory only once it is written to

    def add(self, steps: Tensor, added: int) -> None:
        """Add stacks [T, B, k, *] after `added` rows."""
        for t, stacks in enumerate(steps.to(device=self._device, dtype=self._column.dtype)):
            self._add_step(stacks, added + t * self._num_envs)

    def _add_step(self, stacks: Tensor, added: int) -> None:
        b = torch.arange(self._num_envs, device=self._device)
        before = self._numbers[(added - self._num_envs + b) % self._capacity]
        is_new = torch.ones(stacks.shape[:2], dtype=torch.bool, device=self._device)
        if added:
            same = (self._at(before[:, 1:]) == stacks[:, :-1]).flatten(1).all(dim=1)
            is_new[:, :-1] = ~same[:, None]
        count = is_new.flatten().cumsum(0).view_as(is_new)
        numbers = torch.where(is_new, self._next + count - 1, before.roll(-1, dims=1))
        self._numbers[(added + b) % self._capacity] = numbers
        after = self._next + int(count[-1, -1])
        self._make_room(after, added + self._num_envs)
        self._frames[numbers[is_new] % len(self._frames)] = stacks[is_new]
        self._next = after

    def _make_room(self, after: int, added: int) -> None:
        """Let the ring hold all frames below number `after` that the newest rows refer to, `added` rows having been added so far."""
        oldest = self._oldest(added)
        if after - oldest > len(self._frames):
            live = torch.arange(oldest, self._next, device=self._device)
            ring = self._ring(max(after - oldest, len(self._frames) * 5 // 4))
            ring[live % len(ring)] = self._at(live)
            self._frames = ring

    def _oldest(self, added: int) -> int:
        """The least number of a frame that a row refers to."""
        first = max(0, added - self._capacity)
        return int(self._numbers[(first + torch.arange(self._num_envs, device=self._device)) % self._capacity].min())

    def _at(self, numbers: Tensor) -> Tensor:
        return self._frames[numbers % len(self._frames)]

    def __getitem__(self, index: Tensor) -> Tensor:
        """The stacks [*, k, *] in the rows at `index` [*]."""
        return self._at(self._numbers[index])

    def state(self, added: int) -> State:
        oldest = self._oldest(added) if added else 0
        frames = self._at(torch.arange(oldest, self._next, device=self._device))
        numbers = self._numbers[: min(added, self._capacity)] - oldest
        return {"frames": _compressed(frames), "num_frames": len(frames), "numbers": numbers}

    def load_state(self, state: State) -> None:
        self._next, numbers = state["num_frames"], state["numbers"].to(self._device)
        self._frames = self._ring(max(len(self._frames), self._next))
        self._frames[: self._next] = _decompressed(state["frames"], self._frames[: self._next])
        self._numbers[: len(numbers)] = numbers


def _compressed(x: Tensor) -> Tensor:
    """The bytes of a tensor, compressed: frames of Atari become 15 to 80 times smaller, in 20 microseconds each."""
    return torch.frombuffer(bytearray(zlib.compress(x.cpu().contiguous().view(-1).view(torch.uint8).numpy().data, 1)), dtype=torch.uint8)


def _decompressed(data: Tensor, like: Tensor) -> Tensor:
    """The tensor with the shape and dtype of another that was compressed to `data`; raises a ValueError if it has another size."""
    size = like.numel() * like.itemsize
    try:
        out = bytearray(zlib.decompressobj().decompress(data.numpy().data, size + 1))
    except zlib.error as error:
        raise ValueError(f"frames were not saved as compressed data: {error}") from error
    if len(out) != size:
        raise ValueError(f"frames of {size:,} bytes were saved as {len(out):,} or more")
    return torch.frombuffer(out, dtype=like.dtype).view(like.shape) if size else like


def make_column(column: Column, capacity: int, num_envs: int, device: torch.device) -> Rows | FrameStacks:
    """An empty column."""
    return (FrameStacks if column.num_frames > 1 else Rows)(column, capacity, num_envs, device)
