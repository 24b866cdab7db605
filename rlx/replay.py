"""What an algorithm remembers of the past to train on again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlx.types import State


class PositionReplay:
    """The newest positions of games, with what was searched and how the game ended.

    Args:
        capacity: positions; the oldest are overwritten.
        planes_shape: (C, H, W).
        num_actions: A.
    """

    def __init__(self, capacity: int, planes_shape: tuple[int, int, int], num_actions: int) -> None:
        self.capacity, self.added = capacity, 0
        self._planes = torch.zeros(0, *planes_shape)
        self._policy = torch.zeros(0, num_actions)
        self._z = torch.zeros(0)

    @property
    def size(self) -> int:
        return min(self.added, self.capacity)

    def add(self, planes: Tensor, policy: Tensor, z: Tensor) -> None:
        """Add planes [n, C, H, W], policies [n, A] and outcomes [n]."""
        index = (self.added + torch.arange(len(z))) % self.capacity
        self._grow(min(self.capacity, self.added + len(z)))
        self._planes[index], self._policy[index], self._z[index] = planes, policy, z
        self.added += len(z)

    def _grow(self, size: int) -> None:
        """Memory is taken as it is needed, in steps of a half."""
        have = len(self._z)
        if size > have:
            more = min(self.capacity, max(size, have + have // 2, 1024)) - have
            for name in ("_planes", "_policy", "_z"):
                old = getattr(self, name)
                setattr(self, name, torch.cat([old, old.new_zeros(more, *old.shape[1:])]))

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._planes[index], self._policy[index], self._z[index]

    def state_dict(self) -> State:
        size = self.size
        return {
            "planes": self._planes[:size].clone(),
            "policy": self._policy[:size].clone(),
            "z": self._z[:size].clone(),
            "added": self.added,
        }

    def load_state_dict(self, state: State) -> None:
        self._planes, self._policy, self._z = state["planes"].clone(), state["policy"].clone(), state["z"].clone()
        self.added = state["added"]


class Symmetries:
    """The ways in which a game's positions can be turned, each as (cells [H * W], actions [A]): new[i] = old[permutation[i]]."""

    def __init__(self, tables: list[tuple[NDArray[Any], NDArray[Any]]]) -> None:
        self._cells, self._actions = (torch.from_numpy(np.stack(each)) for each in zip(*tables, strict=True))

    def __len__(self) -> int:
        return len(self._cells)

    def turn(self, planes: Tensor, policy: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Each position [n, C, H, W] and its policy [n, A] under the symmetry `which` [n]."""
        flat = planes.flatten(2)
        turned = flat.gather(2, self._cells[which][:, None, :].expand(-1, flat.shape[1], -1))
        return turned.view_as(planes), policy.gather(1, self._actions[which])


class TransitionReplay:
    """The newest steps of B environments side by side, as columns; row i and row i + B are consecutive steps of one environment.

    Args:
        capacity: rows, rounded down to a multiple of num_envs; the oldest are overwritten.
        num_envs: B.
        columns: for each name the dtype and the shape of a row.
    """

    def __init__(self, capacity: int, num_envs: int, columns: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self.capacity, self.num_envs, self.added = max(capacity // num_envs, 1) * num_envs, num_envs, 0
        self._columns = {name: torch.zeros(0, *shape, dtype=dtype) for name, (dtype, shape) in columns.items()}

    @property
    def size(self) -> int:
        return min(self.added, self.capacity)

    def add(self, **rows: Tensor) -> None:
        """Add [T, B, *] of every column."""
        for name, steps in rows.items():
            new = steps.flatten(0, 1)
            index = (self.added + torch.arange(len(new))) % self.capacity
            old = self._columns[name]
            need = min(self.capacity, self.added + len(new)) - len(old)
            if need > 0:  # memory is taken as it is needed, in steps of a half
                grown = min(self.capacity - len(old), max(need, len(old) // 2, 1024))
                old = self._columns[name] = torch.cat([old, old.new_zeros(grown, *old.shape[1:])])
            old[index] = new.to(old.dtype)
        self.added += len(new)

    def __getitem__(self, name: str) -> Tensor:
        """A column [size, *], in no particular order once the oldest rows have been overwritten."""
        return self._columns[name][: self.size]

    def newest(self, name: str, num_rows: int) -> Tensor:
        """The last rows of a column in the order of time, [T, B, *]."""
        num_rows = min(num_rows, self.size)
        index = (self.added - num_rows + torch.arange(num_rows)) % self.capacity
        return self._columns[name][index].unflatten(0, (-1, self.num_envs))

    def state_dict(self) -> State:
        return {"added": self.added, **{name: self[name].clone() for name in self._columns}}

    def load_state_dict(self, state: State) -> None:
        self.added = state["added"]
        self._columns = {name: state[name].clone() for name in self._columns}
