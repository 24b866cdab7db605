"""What the columns of a replay are, and stacks of frames that are stored once per frame."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlx.appended import Kind, Ring
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
    renewed: bool = False
    """Whether rows are changed after they were added, so that every checkpoint has the whole column."""

    @property
    def kind(self) -> Kind:
        return Kind(self.dtype, self.shape)

    @property
    def num_bytes(self) -> int:
        """Of one row; of a stack, the bytes of the frame that it adds."""
        return self.kind.num_bytes // self.num_frames + 8 * (self.num_frames if self.num_frames > 1 else 0)


def columns_of(space: gymnasium.Space[object]) -> Tree:
    """A tree of `Column` for values of a space as algorithms see it (`rlx.spaces`)."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {key: columns_of(part) for key, part in space.spaces.items()}
    if isinstance(space, gymnasium.spaces.Tuple):
        return tuple(columns_of(part) for part in space.spaces)
    dtype = torch.from_numpy(np.zeros(0, space.dtype)).dtype
    return Column(dtype, tuple(space.shape or ()), space.num_frames if isinstance(space, StackedBox) else 1)


class FrameStacks:
    """A column of stacks of frames [k, *], newest last. Each frame is stored once, and stacks are rebuilt on reading.

    A stack that does not continue the one before it in its environment is stored whole. Such are the first stacks of episodes: what an
    environment puts before an episode's first frame, zeros or that frame again, is exact. Frames are numbered in the order of time, and
    each row has the numbers of its frames. Rows of one environment refer to ever later frames, so that the frames in use lie in a ring.

    Args:
        column: what a row is.
        capacity: rows, a multiple of num_envs; the oldest are overwritten.
        num_envs: B.
        device: where the frames are kept.
    """

    def __init__(self, column: Column, capacity: int, num_envs: int, device: torch.device) -> None:
        self._column, self._num_envs, self._device = column, num_envs, device
        self._numbers = Ring({"numbers": Kind(torch.long, (column.num_frames,))}, capacity, device)  # of each row's frames
        num_frames = capacity + capacity // 16 + 2 * num_envs * column.num_frames  # grows if episodes are short
        self._frames = Ring({"frames": Kind(column.dtype, column.shape[1:])}, num_frames, device)

    def add(self, steps: Tensor) -> None:
        """Add stacks [T, B, k, *]."""
        for stacks in steps.to(device=self._device, dtype=self._column.dtype):
            self._add_step(stacks)

    def _add_step(self, stacks: Tensor) -> None:
        is_new = torch.ones(stacks.shape[:2], dtype=torch.bool, device=self._device)
        continued = torch.zeros_like(is_new, dtype=torch.long)
        if self._numbers.end:
            before = self._numbers_of(self._numbers.end - self._num_envs)
            is_new[:, :-1] = ~(self._at(before[:, 1:]) == stacks[:, :-1]).flatten(1).all(dim=1)[:, None]
            continued = before.roll(-1, dims=1)
        count = is_new.flatten().cumsum(0).view_as(is_new)
        self._numbers.extend(self._num_envs, {"numbers": torch.where(is_new, self._frames.end + count - 1, continued)})
        num_new = int(count[-1, -1])
        self._frames.first = int(self._numbers_of(self._numbers.first).min())
        self._frames.reserve(self._frames.size + num_new)
        self._frames.extend(num_new, {"frames": stacks[is_new]})

    def _numbers_of(self, row: int) -> Tensor:
        """The numbers [B, k] of the frames of a step's rows, given the number of its first row."""
        return self._numbers["numbers"][(row + torch.arange(self._num_envs, device=self._device)) % self._numbers.capacity]

    def _at(self, numbers: Tensor) -> Tensor:
        return self._frames["frames"][numbers % self._frames.capacity]

    def __getitem__(self, index: Tensor) -> Tensor:
        """The stacks [*, k, *] in the rows at `index` [*]."""
        return self._at(self._numbers["numbers"][index])

    def state_dict(self) -> State:
        return {"numbers": self._numbers.state(), "frames": self._frames.state()}

    def load_state_dict(self, state: State) -> None:
        self._numbers.load(state["numbers"])
        self._frames.load(state["frames"], most=self._numbers.capacity * self._column.num_frames)
        numbers = self._numbers["numbers"][: self._numbers.size]
        if len(numbers) and not self._frames.first <= int(numbers.min()) <= int(numbers.max()) < self._frames.end:
            raise ValueError("rows refer to frames that were not saved")
