"""Replay buffers, of positions of games, of transitions, and of sequences with priorities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlx.columns import make_column
from rlx.priorities import Priorities
from rlx.tree_ops import Tree, leaves, map_tree, put
from rlx.types import State


def num_bytes(columns: Mapping[str, Tree]) -> int:
    """Bytes of a row of columns."""
    return sum(column.num_bytes for column in leaves(columns))


def gradient_steps_owed(num_added: int, *, replay_ratio: float, batch_size: int, taken: int) -> int:
    """Gradient steps to take now, at least 0, so that each of `num_added` rows is in `replay_ratio` batches on average.

    Args:
        num_added: rows added so far, overwritten ones included.
        replay_ratio: mean number of batches that a row is in.
        batch_size: rows of a batch.
        taken: gradient steps so far.
    """
    return max(0, int(num_added * replay_ratio / batch_size) - taken)


def gradient_steps_due(before: int, after: int, *, utd: float, begin: int = 0) -> int:
    """Gradient steps to take in an update, from the env steps before and after its rollout; nothing needs to be counted or saved.

    Args:
        before: env steps before the rollout.
        after: env steps after it.
        utd: gradient steps per env step, whatever the number of environments.
        begin: env steps after which learning begins; those before it are never made up for.
    """
    return math.floor(utd * max(0, after - begin)) - math.floor(utd * max(0, before - begin))


class PositionReplay:
    """The newest positions of games, with policy targets and outcomes.

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
        """Allocate memory for `size` positions, half as much again at a time."""
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
    """A game's symmetries, each as permutations of cells [H * W] and of actions [A]: new[i] = old[permutation[i]]."""

    def __init__(self, tables: list[tuple[NDArray[Any], NDArray[Any]]]) -> None:
        self._cells, self._actions = (torch.from_numpy(np.stack(each)) for each in zip(*tables, strict=True))

    def __len__(self) -> int:
        return len(self._cells)

    def turn(self, planes: Tensor, policy: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Each position [n, C, H, W] and its policy [n, A], or those of L plies [n, L, A], under the symmetry `which` [n]."""
        flat = planes.flatten(2)
        turned = flat.gather(2, self._cells[which][:, None, :].expand(-1, flat.shape[1], -1))
        actions = self._actions[which]
        return turned.view_as(planes), policy.gather(-1, actions if policy.ndim == 2 else actions[:, None].expand_as(policy))


class TransitionReplay:
    """The newest steps of B environments side by side, as columns; row i and row i + B are consecutive steps of one environment.

    Args:
        capacity: rows, rounded down to a multiple of num_envs; the oldest are overwritten.
        num_envs: B.
        columns: for each name a tree of what a row has.
        device: where the columns are kept; rows may come from any other.
    """

    def __init__(
        self, capacity: int, num_envs: int, columns: Mapping[str, Tree], device: torch.device = torch.device("cpu")  # noqa: B008
    ) -> None:  # fmt: skip
        self.capacity, self.num_envs, self.added, self.device = max(capacity // num_envs, 1) * num_envs, num_envs, 0, device
        self._columns = {
            name: map_tree(lambda column: make_column(column, self.capacity, num_envs, device), tree) for name, tree in columns.items()
        }

    @property
    def size(self) -> int:
        return min(self.added, self.capacity)

    def add(self, **rows: Tree) -> None:
        """Add [T, B, *] of every column."""
        for name, tree in rows.items():
            map_tree(lambda column, steps: column.add(steps, self.added), self._columns[name], tree)
        self.added += leaves(rows)[0].shape[:2].numel()

    def __getitem__(self, name: str) -> Tensor:
        """A column [size, *] that is one tensor, in no particular order once the oldest rows have been overwritten."""
        column: Tensor = self._columns[name].values[: self.size]
        return column

    def take(self, name: str, index: Tensor) -> Tree:
        """The tree [*, *] of a column's rows at `index` [*]."""
        return map_tree(lambda column: column[index], self._columns[name])

    def newest(self, name: str, num_rows: int) -> Tensor:
        """The last rows of a column in the order of time, [T, B, *]."""
        num_rows = min(num_rows, self.size)
        index = (self.added - num_rows + torch.arange(num_rows, device=self.device)) % self.capacity
        return self[name][index].unflatten(0, (-1, self.num_envs))

    def state_dict(self) -> State:
        states = {name: map_tree(lambda column: column.state(self.added), tree) for name, tree in self._columns.items()}
        return {"added": self.added, **states}

    def load_state_dict(self, state: State) -> None:
        self.added = state["added"]
        for name, tree in self._columns.items():
            map_tree(lambda column, saved: column.load_state(saved), tree, state[name])


class SequenceReplay:
    """The newest steps of B environments, from which windows of consecutive steps are drawn by priority.

    A step can be drawn once `ahead` steps follow it, or the end of its episode. Truncations are rare, so that the observations after them
    are kept apart from the columns.

    Args:
        capacity: steps of all environments.
        num_envs: B.
        columns: as of `TransitionReplay`; `is_last` is one of them.
        ahead: steps after which a step can be drawn.
        exponent: of the priorities, alpha (Schaul et al. 2016, eq. 1); 0 draws uniformly.
        correction: of the importance-sampling weights, beta (section 3.4); whoever owns the replay may change it.
    """

    def __init__(
        self, capacity: int, num_envs: int, columns: Mapping[str, Tree], *, ahead: int, exponent: float, correction: float
    ) -> None:
        self.num_envs, self._ahead, self._exponent, self.correction = num_envs, ahead, exponent, correction
        self.rows = TransitionReplay(capacity, num_envs, columns)
        self._weights = Priorities(self.rows.capacity)
        self._ready = torch.zeros(num_envs, dtype=torch.long)  # steps of each environment that could be drawn so far, overwritten included
        self._top = 1.0  # largest weight so far, which new steps get
        self._beyond: dict[int, Tree] = {}  # by row, the observation after the last step of a truncated episode
        self._truncated = torch.zeros(self.rows.capacity, dtype=torch.bool)  # whether `_beyond` has the row

    @property
    def size(self) -> int:
        return self.rows.size

    @property
    def num_ready(self) -> int:
        """Steps that can be drawn."""
        first = (self.rows.added - self.size) // self.num_envs
        return int((self._ready - first).clamp(min=0).sum())

    def add(self, beyond: Mapping[tuple[int, int], Tree], **rows: Tree) -> None:
        """Add [T, B, *] of every column; `beyond` has the observations after the steps (t, b) at which episodes were truncated."""
        is_last = rows["is_last"]
        begin = self.rows.added // self.num_envs
        overwritten = (self.rows.added + torch.arange(is_last.numel())) % self.rows.capacity
        for row in overwritten[self._truncated[overwritten]].tolist():
            self._beyond.pop(row, None)
        self._truncated[overwritten] = False
        for (t, b), obs in beyond.items():
            row = (self.rows.added + t * self.num_envs + b) % self.rows.capacity
            self._beyond[row], self._truncated[row] = map_tree(torch.clone, obs), True
        self._weights[overwritten] = 0.0
        self.rows.add(**rows)
        steps = torch.arange(begin + 1, begin + 1 + len(is_last))
        ended = torch.where(is_last, steps[:, None], 0).amax(dim=0)
        ready = torch.maximum(self._ready, torch.maximum(ended, steps[-1] - self._ahead))
        first = (self.rows.added - self.size) // self.num_envs
        old = self._ready.clamp(min=first)
        more = (ready - old).clamp(min=0)
        env = torch.repeat_interleave(torch.arange(self.num_envs), more)
        nth = torch.arange(len(env)) - torch.repeat_interleave(more.cumsum(0) - more, more)
        self._weights[self._row(old[env] + nth, env)] = self._top
        self._ready = ready

    def _row(self, step: Tensor, env: Tensor) -> Tensor:
        return (step * self.num_envs + env) % self.rows.capacity

    def draw_uniformly(self, num: int) -> Tensor:
        """Rows [num] of steps, each that can be drawn with the same probability; takes as long whatever the size."""
        first = (self.rows.added - self.size) // self.num_envs
        num_ready = (self._ready - first).clamp(min=0)
        nth = torch.randint(int(num_ready.sum()), (num,))
        env = torch.searchsorted(num_ready.cumsum(0), nth, right=True)
        return self._row(first + nth - (num_ready.cumsum(0) - num_ready)[env], env)

    def draw(self, num: int) -> tuple[Tensor, Tensor]:
        """Rows [num] of steps drawn by priority, and the importance-sampling weights [num] of their losses, at most 1."""
        index, prob = self._weights.draw(num)
        correction = (self.num_ready * prob) ** -self.correction
        return index, (correction / correction.max()).float()

    def windows(self, name: str, index: Tensor, length: int) -> Tree:
        """A column of `length` steps from the rows `index` [n] on, [n, length, *]; entries after the newest step have no meaning."""
        return self.rows.take(name, self.following(index, length))

    def following(self, index: Tensor, length: int) -> Tensor:
        """The rows [n, length] of `length` steps from the rows `index` [n] on."""
        return (index[:, None] + self.num_envs * torch.arange(length)) % self.size

    def beyond(self, index: Tensor) -> Tree:
        """Observations [n, *] after the steps in rows `index` [n], at each of which an episode was truncated."""
        return map_tree(lambda *each: torch.stack(each), *[self._beyond[row] for row in index.tolist()])

    def next_obs(self, name: str, index: Tensor) -> Tree:
        """Observations [n, *] after the steps in rows `index` [n] that can be drawn, from the column of observations.

        After a termination, where values are 0, it is the observation of that step.
        """
        over = self.rows["is_last"][index]
        found = self.rows.take(name, torch.where(over, index, self.following(index, 2)[:, 1]))
        cut = self._truncated[index]
        if cut.any():
            put(found, cut, self.beyond(index[cut]))
        return found

    def prioritise(self, index: Tensor, error: Tensor) -> None:
        """Set the priorities of the rows `index` [n] to |error| [n] to the power of the exponent."""
        weight = (error.double().abs() + 1e-3) ** self._exponent
        self._top = max(self._top, float(weight.max()))
        self._weights[index] = weight

    def state_dict(self) -> State:
        beyond = {str(row): map_tree(torch.clone, obs) for row, obs in self._beyond.items()}
        weights = self._weights.values[: self.size].clone()
        return {"rows": self.rows.state_dict(), "weights": weights, "ready": self._ready.clone(), "top": self._top, "beyond": beyond}

    def load_state_dict(self, state: State) -> None:
        self.rows.load_state_dict(state["rows"])
        self._weights.load(state["weights"])
        self._ready, self._top = state["ready"].clone(), state["top"]
        self._beyond = {int(row): map_tree(torch.clone, obs) for row, obs in state["beyond"].items()}
        self._truncated = torch.zeros_like(self._truncated).index_fill_(0, torch.tensor(list(self._beyond), dtype=torch.long), True)
