"""Replay buffers, of positions of games, of transitions, and of sequences with priorities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlx.appended import Kind, Ring, reserved
from rlx.columns import FrameStacks
from rlx.priorities import Priorities
from rlx.tree_ops import Tree, leaves, map_tree, named_leaves, put, with_leaves
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
        kinds = {"planes": Kind(torch.float32, planes_shape), "policy": Kind(torch.float32, (num_actions,)), "z": Kind(torch.float32)}
        self._ring = Ring(kinds, capacity)
        self.num_bytes = capacity * sum(kind.num_bytes for kind in kinds.values())
        """Bytes that it takes once it is full."""

    @property
    def size(self) -> int:
        return self._ring.size

    @property
    def added(self) -> int:
        """Positions that were added so far, overwritten ones included."""
        return self._ring.end

    def add(self, planes: Tensor, policy: Tensor, z: Tensor) -> None:
        """Add planes [n, C, H, W], policies [n, A] and outcomes [n]."""
        self._ring.extend(len(z), {"planes": planes, "policy": policy, "z": z})

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._ring["planes"][index], self._ring["policy"][index], self._ring["z"][index]

    def state_dict(self) -> State:
        return {"positions": self._ring.state()}

    def load_state_dict(self, state: State) -> None:
        self._ring.load(state["positions"])
        check_full(self._ring)


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
        self.capacity, self.num_envs, self.device = max(capacity // num_envs, 1) * num_envs, num_envs, device
        named = named_leaves(dict(columns))
        self._stacks = {path: FrameStacks(each, self.capacity, num_envs, device) for path, each in named if each.num_frames > 1}
        whole = {path: each for path, each in named if path not in self._stacks}
        self._ring = Ring(
            {path: each.kind for path, each in whole.items()}, self.capacity, device,
            renewed=[path for path, each in whole.items() if each.renewed],
        )  # fmt: skip
        self._paths: Tree = with_leaves(dict(columns), [path for path, _ in named])
        self.num_bytes = self.capacity * num_bytes(columns)
        """Bytes that it takes once it is full."""

    @property
    def size(self) -> int:
        return self._ring.size

    @property
    def added(self) -> int:
        """Rows that were added so far, overwritten ones included."""
        return self._ring.end

    def add(self, **rows: Tree) -> None:
        """Add [T, B, *] of every column."""
        flat: dict[str, Tensor] = {}
        map_tree(flat.__setitem__, {name: self._paths[name] for name in rows}, rows)
        for path, stacks in self._stacks.items():
            stacks.add(flat.pop(path))
        num = leaves(rows)[0].shape[:2].numel()
        self._ring.extend(num, {path: steps.flatten(0, 1) for path, steps in flat.items()})

    def __getitem__(self, name: str) -> Tensor:
        """A column [size, *] that is one tensor, in no particular order once the oldest rows have been overwritten."""
        return self._ring[self._paths[name]][: self.size]

    def take(self, name: str, index: Tensor) -> Tree:
        """The tree [*, *] of a column's rows at `index` [*]."""
        return map_tree(lambda path: self._stacks[path][index] if path in self._stacks else self._ring[path][index], self._paths[name])

    def newest(self, name: str, num_rows: int) -> Tensor:
        """The last rows of a column in the order of time, [T, B, *]."""
        num_rows = min(num_rows, self.size)
        index = (self.added - num_rows + torch.arange(num_rows, device=self.device)) % self.capacity
        return self[name][index].unflatten(0, (-1, self.num_envs))

    def state_dict(self) -> State:
        stacks = {path: stacks.state_dict() for path, stacks in self._stacks.items()}
        return {"rows": self._ring.state(), "renewed": self._ring.renewed(), "stacks": stacks}

    def load_state_dict(self, state: State) -> None:
        self._ring.load(state["rows"], state["renewed"])
        check_full(self._ring)
        for path, stacks in self._stacks.items():
            stacks.load_state_dict(state["stacks"][path])


def check_full(ring: Ring) -> None:
    """Raise a ValueError if items that were loaded come from a ring with less capacity: it has to have the newest ones that fit."""
    if ring.first != max(0, ring.end - ring.capacity):
        raise ValueError(f"{ring.size:,} of {ring.end:,} items were saved, and there is a place for {ring.capacity:,}")


class Beyond:
    """Observations after the last steps of truncated episodes, which no row has, found by the rows of these steps.

    Args:
        columns: a tree of what an observation has.
        capacity: rows.
    """

    def __init__(self, columns: Tree, capacity: int) -> None:
        named = [(f"obs{path}", column.kind) for path, column in named_leaves(columns)]
        self._capacity, self._paths = capacity, with_leaves(columns, [path for path, _ in named])
        self._ring = Ring({"row": Kind(torch.long), **dict(named)}, min(capacity, 64))
        self._of = torch.zeros(0, dtype=torch.long)  # by row, the number of its observation plus 1, or 0; empty before the first

    def add(self, row: int, obs: Tree) -> None:
        """Add the observation [*] after the step in the row with a number. Numbers go up, and count overwritten rows too."""
        flat: dict[str, Tensor] = {}
        map_tree(lambda path, x: flat.__setitem__(path, x[None]), self._paths, obs)
        if not len(self._of):
            self._of = reserved(Kind(torch.long), self._capacity)
        self._ring.reserve(self._ring.size + 1)
        self._ring.extend(1, {"row": torch.tensor([row]), **flat})
        self._of[row % self._capacity] = self._ring.end

    def forget(self, first: int) -> None:
        """Forget those of rows with a number below `first`."""
        while self._ring.size and (row := int(self._ring["row"][self._ring.first % self._ring.capacity])) < first:
            self._of[row % self._capacity] = 0
            self._ring.first += 1

    def has(self, index: Tensor) -> Tensor:
        """Whether there is an observation after the steps in rows `index` [n], [n]."""
        return self._of[index] > 0 if len(self._of) else torch.zeros(len(index), dtype=torch.bool)

    def __getitem__(self, index: Tensor) -> Tree:
        """Observations [n, *] after the steps in rows `index` [n]."""
        if not self.has(index).all():
            raise KeyError(f"no observation was kept after the steps in some of the rows {index.tolist()}")
        at = (self._of[index] - 1) % self._ring.capacity
        return map_tree(lambda path: self._ring[path][at], self._paths)

    def state_dict(self) -> State:
        return {"observations": self._ring.state()}

    def load_state_dict(self, state: State) -> None:
        self._ring.load(state["observations"], most=self._capacity)
        number = torch.arange(self._ring.first, self._ring.end)
        self._of = reserved(Kind(torch.long), self._capacity if len(number) else 0)
        self._of[self._ring["row"][number % self._ring.capacity] % self._capacity] = number + 1


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
        self.num_bytes = self.rows.num_bytes + (8 * self.rows.capacity if exponent else 0)
        """Bytes that it takes once it is full, truncated episodes aside."""
        self._weights: Priorities | None = None  # made with the first row, or without priorities when they are asked for
        self._ready = torch.zeros(num_envs, dtype=torch.long)  # steps of each environment that could be drawn so far, overwritten included
        self._top = 1.0  # largest weight so far, which new steps get
        self._beyond = Beyond(columns.get("obs", ()), self.rows.capacity)

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
        added, num = self.rows.added, is_last.numel()
        first = max(0, added + num - self.rows.capacity)
        self._beyond.forget(first)
        for (t, b), obs in sorted(beyond.items(), key=lambda item: item[0]):
            if (row := added + t * self.num_envs + b) >= first:
                self._beyond.add(row, obs)
        self.rows.add(**rows)
        steps = torch.arange(begin + 1, begin + 1 + len(is_last))
        ended = torch.where(is_last, steps[:, None], 0).amax(dim=0)
        ready = torch.maximum(self._ready, torch.maximum(ended, steps[-1] - self._ahead))
        old, self._ready = self._ready, ready
        if self._weights is None and self._exponent:
            self._weights = Priorities(self.rows.capacity)
        if self._weights is not None:
            self._weights[(added + torch.arange(num)) % self.rows.capacity] = 0.0
            self._weights[self._ready_since(old)] = self._top

    def _ready_since(self, old: Tensor) -> Tensor:
        """The rows [n] of the steps that can be drawn, but for the first `old` [B] of each environment."""
        old = old.clamp(min=(self.rows.added - self.size) // self.num_envs)
        more = (self._ready - old).clamp(min=0)
        env = torch.repeat_interleave(torch.arange(self.num_envs), more)
        nth = torch.arange(len(env)) - torch.repeat_interleave(more.cumsum(0) - more, more)
        return self._row(old[env] + nth, env)

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
        if self._weights is None:
            self._weights = self._equal_weights()
        index, prob = self._weights.draw(num)
        correction = (self.num_ready * prob) ** -self.correction
        return index, (correction / correction.max()).float()

    def _equal_weights(self) -> Priorities:
        weights = Priorities(self.rows.capacity)
        weights[self._ready_since(torch.zeros_like(self._ready))] = self._top
        return weights

    def windows(self, name: str, index: Tensor, length: int) -> Tree:
        """A column of `length` steps from the rows `index` [n] on, [n, length, *]; entries after the newest step have no meaning."""
        return self.rows.take(name, self.following(index, length))

    def following(self, index: Tensor, length: int) -> Tensor:
        """The rows [n, length] of `length` steps from the rows `index` [n] on."""
        return (index[:, None] + self.num_envs * torch.arange(length)) % self.size

    def beyond(self, index: Tensor) -> Tree:
        """Observations [n, *] after the steps in rows `index` [n], at each of which an episode was truncated."""
        return self._beyond[index]

    def next_obs(self, name: str, index: Tensor) -> Tree:
        """Observations [n, *] after the steps in rows `index` [n] that can be drawn, from the column of observations.

        After a termination, where values are 0, it is the observation of that step.
        """
        over = self.rows["is_last"][index]
        found = self.rows.take(name, torch.where(over, index, (index + self.num_envs) % self.size))
        cut = self._beyond.has(index)
        if cut.any():
            put(found, cut, self.beyond(index[cut]))
        return found

    def prioritise(self, index: Tensor, error: Tensor) -> None:
        """Set the priorities of the rows `index` [n] to |error| [n] to the power of the exponent."""
        weight = (error.double().abs() + 1e-3) ** self._exponent
        self._top = max(self._top, float(weight.max()))
        if self._weights is not None:
            self._weights[index] = weight

    def state_dict(self) -> State:
        weights = self._weights.values[: self.size].clone() if self._exponent and self._weights is not None else None
        return {
            "rows": self.rows.state_dict(), "weights": weights, "ready": self._ready.clone(), "top": self._top,
            "beyond": self._beyond.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: State) -> None:
        self.rows.load_state_dict(state["rows"])
        self._beyond.load_state_dict(state["beyond"])
        is_empty = self.rows.added == 0  # also in an evaluation, which reads no rows
        self._ready, self._top = torch.zeros_like(self._ready) if is_empty else state["ready"].clone(), state["top"]
        self._weights = None
        if self._exponent and not is_empty:
            self._weights = Priorities(self.rows.capacity)
            self._weights.load(state["weights"][: self.size])
