"""MiniPacman: one maze, five tasks.

The rules of Weber et al. 2017 (https://arxiv.org/abs/1707.06203, appendix E) and of its authors' notebook. A maze of 15 x 19 cells holds
food in every cell, two power pills and 1 + (level - 1) // 2 ghosts. In a step the player moves (actions 0 to 4: up, down, left, right,
stay) and eats what lies there; then each ghost in turn, beginning above and left, moves with probability 0.5 + 0.1 (level - 1). It goes on
along a corridor, never turns back, and at a junction heads for the player, once in 20 times anywhere. A pill lasts 20 steps, in which
ghosts are half as fast and flee; one of them can be eaten in a step. Meeting a ghost otherwise ends the episode. What happens is the same
for all tasks, but for what completes a level; what it is worth differs.

Deviations, but for the first all for the sake of a state that can be seen: the maze is rlx's own; a completed level is seen as such, and
the next step, whatever its action, begins the next level; a ghost waits rather than join one that heads the same way in the same cell;
there are at most 8.

Planes: walls, food, pills, player, ghosts heading up, down, left and right, edible ghosts, and three bars of which as many cells as the
number says are lit, in reading order: steps of power that are left, steps of the level where a clock ends it, and the level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from rlx.envs.grids.grid_settings import MiniPacmanSettings
from rlx.envs.grids.gridworld import Boards, Grid, as_bits
from rlx.envs.grids.splits import HELD_OUT, SHARE, Split
from rlx.envs.splitmix import below, happens, mix, streams

Array = NDArray[Any]
MAZE = """\
###################
#        #        #
# ## ### # ### ## #
#                 #
# ## # ##### # ## #
#    #   #   #    #
# ## ### # ### ## #
#    #       #    #
# ## # ##### # ## #
#    #       #    #
# ## # ##### # ## #
#        #        #
# ## ### # ### ## #
#                 #
###################"""
WALLS_, FOOD_, PILLS_, PLAYER_, GHOSTS_, EDIBLE_, POWER_, CLOCK_, LEVEL_ = 0, 1, 2, 3, 4, 8, 9, 10, 11
"""Planes; those of ghosts are four, by heading."""
STEP, FOOD, PILL, GHOST, DIE = range(5)
POWER_STEPS, NUM_PILLS, MAX_GHOSTS, SAFE_DISTANCE = 20, 2, 8, 5
_ALL_FOOD, _ALL_PILLS, _ALL_GHOSTS = range(3)
_WALLS = np.array([[cell == "#" for cell in row] for row in MAZE.splitlines()])
_HEIGHT, _WIDTH = _WALLS.shape
_CELLS = _HEIGHT * _WIDTH
_FREE = np.flatnonzero(~_WALLS)


def _neighbours() -> NDArray[np.int64]:
    """Where each action leads from each cell [cells, 5]; the cell itself if a wall is in the way."""
    table = np.repeat(np.arange(_CELLS)[:, None], 5, axis=1)
    for action, (dr, dc) in enumerate(((-1, 0), (1, 0), (0, -1), (0, 1))):
        for cell in _FREE:
            there = cell + dr * _WIDTH + dc
            if not _WALLS.reshape(-1)[there]:
                table[cell, action] = there
    return table


_NEXT = _neighbours()


@dataclass(frozen=True)
class Task:
    reward: tuple[float, float, float, float, float]
    """Rewards of a step, food, a pill, an eaten ghost, and the player's death."""
    goal: int
    """What must be eaten to complete a level."""
    clock: int = 0
    """Steps after which a level is completed anyway; 0 for none."""


TASKS = {
    "regular": Task((0.0, 1.0, 2.0, 5.0, 0.0), _ALL_FOOD),
    "avoid": Task((0.1, -0.1, -5.0, -10.0, -20.0), _ALL_FOOD, 128),
    "hunt": Task((0.0, 0.0, 1.0, 10.0, -20.0), _ALL_GHOSTS, 80),
    "ambush": Task((0.0, -0.1, 0.0, 10.0, -20.0), _ALL_GHOSTS, 80),
    "rush": Task((0.0, -0.1, 10.0, 0.0, 0.0), _ALL_PILLS),
}


class MiniPacman(Grid):
    """The rules under one of the tasks."""

    planes_shape = (12, _HEIGHT, _WIDTH)
    num_actions = 5
    action_names = ("up", "down", "left", "right", "stay")
    player_plane = PLAYER_
    events = ("step", "food", "power_pill", "eat_ghost", "die")
    glyphs = " #.oPGg="
    kind_names = ("floor", "wall", "food", "power pill", "player", "ghost", "edible ghost", "power left")
    colours = np.array(
        [[24, 24, 32], [70, 80, 150], [150, 140, 110], [240, 240, 240], [250, 210, 60], [230, 70, 70], [110, 190, 250], [90, 220, 120]],
        dtype=np.uint8,
    )

    def __init__(self, settings: MiniPacmanSettings, split: Split = "all") -> None:
        self.task = TASKS[settings.task]
        self._split = {"all": 0, "training": 1, "evaluation": 2}[split]
        self.event_reward = np.array(self.task.reward, dtype=np.float32)

    def begin(self, seeds: Array) -> Boards:
        boards = _new_boards(np.zeros((len(seeds), *self.planes_shape), dtype=np.uint8), streams(seeds))
        _begin(self._split, **boards)
        return boards

    def move(self, boards: Boards, actions: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return _move(actions, self.task.goal, self.task.clock, self._split, **boards)

    def observe(self, boards: Boards) -> NDArray[np.uint8]:
        return boards["planes"]

    def read(self, planes: NDArray[np.uint8], rng_state: Array) -> Boards:
        boards = _new_boards(planes, rng_state)
        _read(**boards)
        return boards

    def events_of(self, planes: Array, action: Array, next_planes: Array, terminated: Array) -> NDArray[np.bool_]:
        """Where the player goes follows from planes and action, and so does what it eats; ghosts that are eaten are missing afterwards."""
        boards, n = self.read(as_bits(planes), np.zeros(len(planes), dtype=np.int64)), np.arange(len(planes))
        begins = _complete(self.task.goal, self.task.clock, boards["counts"], boards["ghosts"])
        there = _NEXT[boards["player"], np.asarray(action)]
        eaten = boards["planes"].reshape(len(planes), self.planes_shape[0], _CELLS)[n, :, there] > 0
        num_ghosts = [as_bits(p)[:, GHOSTS_ : GHOSTS_ + 4].sum(axis=(1, 2, 3)) for p in (planes, next_planes)]
        events = np.stack([eaten[:, FOOD_], eaten[:, PILLS_], num_ghosts[1] < num_ghosts[0]], axis=1) & ~begins[:, None]
        return np.column_stack([np.ones(len(planes), dtype=bool), events, np.asarray(terminated, dtype=bool)])

    def kinds(self, planes: Array) -> NDArray[np.intp]:
        """The most important content of each cell; steps of power are a bar in the upper wall."""
        kinds = np.where(planes[:, WALLS_] > 0, 1, 0)
        for plane, kind in ((FOOD_, 2), (PILLS_, 3), (PLAYER_, 4)):
            kinds[planes[:, plane] > 0] = kind
        ghosts = planes[:, GHOSTS_ : GHOSTS_ + 4].any(axis=1)
        kinds[ghosts] = np.where(planes[:, EDIBLE_] > 0, 6, 5)[ghosts]
        kinds[:, 0][planes[:, POWER_, 0] > 0] = 7
        return kinds

    def ansi(self, planes: Array) -> str:
        power, clock, level = as_bits(planes)[[POWER_, CLOCK_, LEVEL_]].sum(axis=(1, 2)).tolist()
        left = f", {self.task.clock - clock} steps left" if self.task.clock else ""
        return f"{super().ansi(planes)}\nlevel {level}, power for {power} steps{left}"


_POWER, _CLOCK, _LEVEL, _FOOD_LEFT, _PILLS_LEFT, _NUM_GHOSTS = range(6)
"""Columns of the counters of a board."""


def _new_boards(planes: NDArray[np.uint8], rng_state: Array) -> Boards:
    """Boards with counters at 0; the planes become part of them."""
    n = len(planes)
    return {
        "planes": planes,
        "player": np.full(n, -1, dtype=np.int64),  # cell; -1 on a predicted board without a player, where nothing moves
        "ghosts": np.zeros((n, MAX_GHOSTS, 2), dtype=np.int64),  # cell and heading of those there are, from above and left
        "counts": np.zeros((n, 6), dtype=np.int64),
        "rng_state": rng_state,
    }


@numba.njit(cache=True, nogil=True)
def _begin(split, planes, player, ghosts, counts, rng_state):
    for i in range(len(planes)):
        _begin_level(i, 1, split, planes, player, ghosts, counts, rng_state)


@numba.njit(cache=True, nogil=True)
def _begin_level(i, level, split, planes, player, ghosts, counts, rng_state):
    """Draw a level until it is in the split: 0 for any, 1 for those to train on, 2 for those to evaluate on."""
    while True:
        key = _draw_level(i, level, planes, player, ghosts, counts, rng_state)
        if split == 0 or (key % np.uint64(SHARE) == HELD_OUT) == (split == 2):
            return


@numba.njit(cache=True, nogil=True)
def _draw_level(i, level, planes, player, ghosts, counts, rng_state):
    """Draw a level; returns its key, a hash of the cells of player, pills and ghosts and of the ghosts' headings."""
    cells = planes[i].reshape(len(planes[i]), _CELLS)
    cells[:] = 0
    player[i] = _FREE[below(rng_state, i, len(_FREE))]
    key = mix(np.uint64(9 * _CELLS + player[i]))
    for cell in _FREE:
        cells[FOOD_, cell] = 1
    placed = 0
    while placed < NUM_PILLS:
        cell = _FREE[below(rng_state, i, len(_FREE))]
        if cell != player[i] and not cells[PILLS_, cell]:
            cells[PILLS_, cell] = 1
            key += mix(np.uint64(cell))  # a sum, since pills have no order
            placed += 1
    num_ghosts = min(1 + (level - 1) // 2, MAX_GHOSTS)
    placed = 0
    while placed < num_ghosts:
        cell = _FREE[below(rng_state, i, len(_FREE))]
        away = max(abs(cell // _WIDTH - player[i] // _WIDTH), abs(cell % _WIDTH - player[i] % _WIDTH))
        taken = False
        for g in range(placed):
            taken |= ghosts[i, g, 0] == cell
        if away >= SAFE_DISTANCE and not taken:
            ghosts[i, placed, 0], ghosts[i, placed, 1] = cell, below(rng_state, i, 4)
            key += mix(np.uint64(_CELLS * (1 + ghosts[i, placed, 1]) + cell))
            placed += 1
    counts[i, _POWER], counts[i, _CLOCK], counts[i, _LEVEL] = 0, 0, min(level, _CELLS)
    counts[i, _FOOD_LEFT], counts[i, _PILLS_LEFT], counts[i, _NUM_GHOSTS] = len(_FREE), NUM_PILLS, num_ghosts
    _paint(cells, player[i], ghosts[i], counts[i])
    return mix(key)


def level_keys(boards: Boards) -> NDArray[np.uint64]:
    """The keys [n] of the levels that boards have just begun (`_draw_level`)."""
    keys = []
    for planes, player, ghosts, counts in zip(*(boards[name] for name in ("planes", "player", "ghosts", "counts")), strict=True):
        marks = [9 * _CELLS + player, *np.flatnonzero(planes[PILLS_])]
        marks += [_CELLS * (1 + heading) + cell for cell, heading in ghosts[: counts[_NUM_GHOSTS]]]
        keys.append(mix(np.uint64(sum(int(mix(np.uint64(mark))) for mark in marks) % 2**64)))
    return np.array(keys, dtype=np.uint64)


@numba.njit(cache=True, nogil=True)
def _paint(cells, player, ghosts, counts):
    """Draw all but food and pills into planes [12, cells] without them."""
    for cell in range(_CELLS):
        cells[WALLS_, cell] = _WALLS[cell // _WIDTH, cell % _WIDTH]
    cells[PLAYER_, player] = 1
    _paint_ghosts(cells, ghosts, counts)
    for bar, count in ((POWER_, counts[_POWER]), (CLOCK_, counts[_CLOCK]), (LEVEL_, counts[_LEVEL])):
        cells[bar, :count] = 1


@numba.njit(cache=True, nogil=True)
def _paint_ghosts(cells, ghosts, counts):
    for g in range(counts[_NUM_GHOSTS]):
        cells[GHOSTS_ + ghosts[g, 1], ghosts[g, 0]] = 1
        cells[EDIBLE_, ghosts[g, 0]] = counts[_POWER] > 0


@numba.njit(cache=True, nogil=True)
def _read(planes, player, ghosts, counts, rng_state):
    """Read the counters from planes [n, 12, H, W], and repair planes that show no possible board."""
    for i in range(len(planes)):
        cells = planes[i].reshape(len(planes[i]), _CELLS)
        for cell in range(_CELLS):
            wall = _WALLS[cell // _WIDTH, cell % _WIDTH]
            if cells[PLAYER_, cell] and player[i] < 0 and not wall:
                player[i] = cell
            for heading in range(4):
                if cells[GHOSTS_ + heading, cell] and not wall and counts[i, _NUM_GHOSTS] < MAX_GHOSTS:
                    ghosts[i, counts[i, _NUM_GHOSTS], 0], ghosts[i, counts[i, _NUM_GHOSTS], 1] = cell, heading
                    counts[i, _NUM_GHOSTS] += 1
            if wall:
                cells[FOOD_, cell] = cells[PILLS_, cell] = 0
            counts[i, _FOOD_LEFT] += cells[FOOD_, cell]
            counts[i, _PILLS_LEFT] += cells[PILLS_, cell]
            counts[i, _POWER] += cells[POWER_, cell]
            counts[i, _CLOCK] += cells[CLOCK_, cell]
            counts[i, _LEVEL] += cells[LEVEL_, cell]
        if player[i] >= 0:
            cells[PLAYER_:] = 0
            _paint(cells, player[i], ghosts[i], counts[i])


@numba.njit(cache=True, nogil=True)
def _is_complete(goal, clock, counts):
    left = counts[_FOOD_LEFT] if goal == _ALL_FOOD else counts[_PILLS_LEFT] if goal == _ALL_PILLS else counts[_NUM_GHOSTS]
    return left == 0 or (clock > 0 and counts[_CLOCK] >= clock)


@numba.njit(cache=True, nogil=True)
def _complete(goal, clock, counts, ghosts):
    found = np.empty(len(counts), dtype=np.bool_)
    for i in range(len(counts)):
        found[i] = _is_complete(goal, clock, counts[i])
    return found


@numba.njit(cache=True, nogil=True)
def _move(actions, goal, clock, split, planes, player, ghosts, counts, rng_state):
    """One step of every board; returns events [n, 5] and where the player died [n]."""
    n = len(planes)
    events = np.zeros((n, 5), dtype=np.bool_)
    died = np.zeros(n, dtype=np.bool_)
    for i in range(n):
        events[i, STEP] = True
        if player[i] < 0:
            continue
        if _is_complete(goal, clock, counts[i]):
            _begin_level(i, counts[i, _LEVEL] + 1, split, planes, player, ghosts, counts, rng_state)
            continue
        cells = planes[i].reshape(len(planes[i]), _CELLS)
        _pass_time(cells, counts[i], clock)
        _move_player(cells, i, actions[i], player, counts[i], events[i])
        for g in range(counts[i, _NUM_GHOSTS]):
            cells[GHOSTS_ : GHOSTS_ + 5, ghosts[i, g, 0]] = 0
        met = _move_ghosts(i, player[i], ghosts[i], counts[i], rng_state)
        if met >= 0 and counts[i, _POWER] > 0:
            events[i, GHOST] = True
            counts[i, _NUM_GHOSTS] -= 1
            for g in range(met, counts[i, _NUM_GHOSTS]):
                ghosts[i, g, 0], ghosts[i, g, 1] = ghosts[i, g + 1, 0], ghosts[i, g + 1, 1]
        elif met >= 0:
            events[i, DIE] = died[i] = True
        _sort(ghosts[i], counts[i, _NUM_GHOSTS])
        _paint_ghosts(cells, ghosts[i], counts[i])
    return events, died


@numba.njit(cache=True, nogil=True)
def _pass_time(cells, counts, clock):
    if counts[_POWER] > 0:
        counts[_POWER] -= 1
        cells[POWER_, counts[_POWER]] = 0
    if clock > 0:
        cells[CLOCK_, counts[_CLOCK]] = 1
        counts[_CLOCK] += 1


@numba.njit(cache=True, nogil=True)
def _move_player(cells, i, action, player, counts, events):
    cells[PLAYER_, player[i]] = 0
    if 0 <= action < 4:
        player[i] = _NEXT[player[i], action]
    cell = player[i]
    cells[PLAYER_, cell] = 1
    if cells[FOOD_, cell]:
        cells[FOOD_, cell] = 0
        counts[_FOOD_LEFT] -= 1
        events[FOOD] = True
    if cells[PILLS_, cell]:
        cells[PILLS_, cell] = 0
        counts[_PILLS_LEFT] -= 1
        counts[_POWER] = POWER_STEPS
        cells[POWER_, :POWER_STEPS] = 1
        events[PILL] = True


@numba.njit(cache=True, nogil=True)
def _move_ghosts(i, player, ghosts, counts, rng_state):
    """Move the ghosts in turn until one meets the player; returns which, or -1."""
    speed = 0.5 + 0.1 * (counts[_LEVEL] - 1)
    if counts[_POWER] > 0:
        speed *= 0.5
    for g in range(counts[_NUM_GHOSTS]):
        if ghosts[g, 0] == player:  # which has come to it
            return g
        if happens(rng_state, i, speed):
            heading = _choose(i, ghosts[g, 0], ghosts[g, 1], player, counts[_POWER] > 0, rng_state)
            cell = _NEXT[ghosts[g, 0], heading]
            free = True
            for other in range(counts[_NUM_GHOSTS]):
                free &= other == g or ghosts[other, 0] != cell or ghosts[other, 1] != heading
            if free:
                ghosts[g, 0], ghosts[g, 1] = cell, heading
            if ghosts[g, 0] == player:
                return g
    return -1


@numba.njit(cache=True, nogil=True)
def _choose(i, cell, heading, player, flees, rng_state):
    """The heading that a ghost takes from a cell: on along a corridor, anywhere but back at a junction."""
    back = heading ^ 1  # up and down are 0 and 1, left and right 2 and 3
    ways = 0
    for way in range(4):
        ways += _NEXT[cell, way] != cell and way != back
    if ways == 0:
        return back
    anywhere = ways > 1 and not flees and happens(rng_state, i, 0.05)
    at = below(rng_state, i, ways) if anywhere else 0
    dr, dc = player // _WIDTH - cell // _WIDTH, player % _WIDTH - cell % _WIDTH
    chosen, best = back, -(10**6)
    for way in range(4):
        if _NEXT[cell, way] == cell or way == back:
            continue
        if anywhere:
            if at == 0:
                return way
            at -= 1
            continue
        towards = -dr if way == 0 else dr if way == 1 else -dc if way == 2 else dc
        if flees:
            towards = -towards
        if towards > best:
            chosen, best = way, towards
    return chosen


@numba.njit(cache=True, nogil=True)
def _sort(ghosts, count):
    """Sort ghosts by cell and heading, the order in which they move and in which they are read from planes."""
    for g in range(1, count):
        cell, heading = ghosts[g, 0], ghosts[g, 1]
        at = g
        while at > 0 and 4 * ghosts[at - 1, 0] + ghosts[at - 1, 1] > 4 * cell + heading:
            ghosts[at, 0], ghosts[at, 1] = ghosts[at - 1, 0], ghosts[at - 1, 1]
            at -= 1
        ghosts[at, 0], ghosts[at, 1] = cell, heading
