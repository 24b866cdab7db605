"""Sokoban levels by playing backwards, as in appendix D of Weber et al. 2017 (https://arxiv.org/abs/1707.06203), fast enough for a reset.

A random walk stamps floor into a block of wall; goals with boxes on them are put on the floor; then boxes are pulled off. A pull is a push
in reverse, so every level is solved by its pulls backwards. Of all positions along the way in which no box is on a goal the one with the
highest score is the level: how often the pulls went over to another box, times the boxes' distances from where they began.

Deviation: pulls are drawn among all that the player can walk to, instead of searching for the best sequence of moves, which takes seconds
for a level; and the player begins somewhere within its reach, since beside the box that was pulled last it would give the first push away.

A level is a board [H, W] of cells, sums of the bits below.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from rlx.envs.grids.splits import Split, in_split, keys_of
from rlx.envs.splitmix import below, happens, streams
from rlx.errors import EnvError

Array = NDArray[Any]
WALL, GOAL, BOX, PLAYER = 1, 2, 4, 8
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Row and column by which each action moves the player: up, down, left, right."""
_ATTEMPTS = 1000
_REDRAWS = 1000
"""Most levels that are drawn for a seed until one is in its split; one in five is for evaluation."""
# Floor around a step of the walk, the rows of a 3x3 square from its upper left corner: two bars, two corners, a block.
_MASKS = np.array(
    [[0, 0, 0, 1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1, 0, 1, 0],
     [0, 0, 0, 1, 1, 0, 1, 1, 0]], dtype=np.uint8,
)  # fmt: skip


class Levels(NamedTuple):
    boards: NDArray[np.uint8]  # [n, H, W]
    pushes: NDArray[np.int16]  # [n, P, 2] where a box is and the action that pushes it, in the order in which they solve the level
    num_pushes: NDArray[np.int64]  # [n]


def generate(
    seeds: Array, *, size: int, num_boxes: int, pulls: int, min_distance: int, split: Split = "all", without: Array | None = None
) -> Levels:
    """A level and its solution for each seed [n].

    Args:
        split: which levels are allowed; one that is not is replaced by the next from the same seed.
        without: keys (`splits.keys_of`) of levels that are not allowed.

    Raises:
        EnvError: if no level was found for a seed.
    """
    rng_state = streams(seeds)
    levels = _found(rng_state, size, num_boxes, pulls, min_distance)
    wrong = np.arange(len(rng_state) if split != "all" or without is not None else 0)
    for _ in range(_REDRAWS):
        keys = keys_of(levels.boards[wrong])
        refused = ~in_split(keys, split)
        if without is not None:
            refused |= np.isin(keys, without)
        wrong = wrong[refused]
        if not len(wrong):
            return levels
        part = rng_state[wrong]
        again = _found(part, size, num_boxes, pulls, min_distance)
        levels.boards[wrong], levels.pushes[wrong], levels.num_pushes[wrong] = again
        rng_state[wrong] = part
    wanted = f"env.kwargs.size={size} env.kwargs.num_boxes={num_boxes} env.kwargs.pulls={pulls}"
    raise EnvError(f"too few Sokoban levels with {wanted} to evaluate on others than in training; use env.kwargs.size={max(7, size + 1)}")


def _found(rng_state: Array, size: int, num_boxes: int, pulls: int, min_distance: int) -> Levels:
    boards, pushes, num_pushes = _generate(rng_state, size, num_boxes, pulls, min_distance)
    if len(rng_state) and not num_pushes.all():
        wanted = f"env.kwargs.size={size} env.kwargs.num_boxes={num_boxes}"
        raise EnvError(f"no Sokoban level with {wanted} was found in {_ATTEMPTS} attempts; use fewer boxes")
    return Levels(boards, pushes, num_pushes)


@numba.njit(cache=True, nogil=True)
def _generate(rng_state, size, num_boxes, pulls, min_distance):
    """A level for each generator state [n]; no pushes where none was found."""
    n, cells, most = len(rng_state), size * size, pulls * num_boxes
    boards = np.zeros((n, size, size), dtype=np.uint8)
    pushes = np.zeros((n, most, 2), dtype=np.int16)
    num_pushes = np.zeros(n, dtype=np.int64)
    room, reached, queue = np.empty(cells, np.uint8), np.zeros(cells, np.int64), np.empty(cells, np.int64)
    homes, boxes, best = np.empty(num_boxes, np.int64), np.empty(num_boxes, np.int64), np.empty(num_boxes, np.int64)
    pulled = np.empty((most, 2), np.int64)
    for i in range(n):
        farthest = 0
        for _ in range(_ATTEMPTS):
            floor = _carve(room, size, rng_state, i, queue)
            if floor < 2 * num_boxes + 2:
                continue
            for k in range(num_boxes + 1):  # a shuffle as far as it is needed; the last is the player's cell
                j = k + below(rng_state, i, floor - k)
                queue[k], queue[j] = queue[j], queue[k]
            for k in range(num_boxes):
                homes[k] = queue[k]
            player = queue[num_boxes]
            length, distance, player = _play_backwards(room, size, homes, boxes, best, player, pulls, rng_state, i, reached, queue, pulled)
            if distance > farthest:
                farthest = distance
                board = boards[i].reshape(-1)
                for cell in range(cells):
                    board[cell] = room[cell]
                board[player] |= PLAYER
                for t in range(length):
                    pushes[i, t, 0], pushes[i, t, 1] = pulled[length - 1 - t, 0], pulled[length - 1 - t, 1]
                num_pushes[i] = length
                if distance >= min_distance * num_boxes:
                    break
    return boards, pushes, num_pushes


@numba.njit(cache=True, nogil=True)
def _carve(room, size, rng_state, i, floor):
    """Carve a random room [cells]; returns the number of floor cells, which are listed in `floor`."""
    room[:] = WALL
    inner = size - 2
    r, c, direction = 1 + below(rng_state, i, inner), 1 + below(rng_state, i, inner), below(rng_state, i, 4)
    for _ in range(int(1.7 * 2 * size)):
        if happens(rng_state, i, 0.35):
            direction = below(rng_state, i, 4)
        r = min(max(r + MOVES[direction][0], 1), inner)
        c = min(max(c + MOVES[direction][1], 1), inner)
        mask = below(rng_state, i, len(_MASKS))
        for k in range(9):
            y, x = r + k // 3 - 1, c + k % 3 - 1
            if _MASKS[mask, k] and 1 <= y <= inner and 1 <= x <= inner:
                room[y * size + x] = 0
    count = 0
    for cell in range(size * size):
        if room[cell] == 0:
            floor[count] = cell
            count += 1
    return count


@numba.njit(cache=True, nogil=True)
def _reach(room, size, player, reached, queue, visit):
    """Write `visit` into `reached` where the player can walk to; returns the number of such cells, which are the first in `queue`."""
    queue[0] = player
    reached[player] = visit
    head, tail = 0, 1
    while head < tail:
        cell = queue[head]
        head += 1
        for step in (-size, size, -1, 1):
            if reached[cell + step] != visit and not room[cell + step] & (WALL | BOX):
                reached[cell + step] = visit
                queue[tail] = cell + step
                tail += 1
    return tail


@numba.njit(cache=True, nogil=True)
def _play_backwards(room, size, homes, boxes, best, player, pulls, rng_state, i, reached, queue, pulled):
    """Pull boxes off their goals; returns the number of pulls to the best position, its distance and a cell for the player.

    The best position is left in the room, and `pulled` holds cell and action of each push that undoes a pull.
    """
    num_boxes, total = len(homes), pulls * len(homes)
    for k in range(num_boxes):  # not boxes[:] = homes, for whose error message numba compiles for seconds
        boxes[k] = homes[k]
        room[homes[k]] = GOAL | BOX
    reached[:] = -1
    swaps, last, last_step, distance, on_goal = 0, -1, 0, 0, num_boxes
    length, score, farthest, start = 0, 0, 0, player
    for t in range(total):
        _reach(room, size, player, reached, queue, t)
        # Half of the pulls repeat the one before: with a new random box each time, boxes stay near their goals.
        k, step = last, last_step
        if last < 0 or happens(rng_state, i, 0.5) or not _can_pull(room, boxes[k], step, reached, t):
            count = 0
            for candidate in range(4 * num_boxes):
                its_step = _step(candidate % 4, size)
                if _can_pull(room, boxes[candidate // 4], its_step, reached, t):
                    count += 1
                    if below(rng_state, i, count) == 0:
                        k, step = candidate // 4, its_step
            if count == 0:
                break
        distance -= _distance(boxes[k], homes[k], size)
        on_goal -= (room[boxes[k]] & GOAL) != 0
        room[boxes[k]] &= ~BOX
        boxes[k] += step
        room[boxes[k]] |= BOX
        on_goal += (room[boxes[k]] & GOAL) != 0
        distance += _distance(boxes[k], homes[k], size)
        player = boxes[k] + step
        swaps += k != last
        last, last_step = k, step
        pulled[t, 0], pulled[t, 1] = boxes[k], _action(-step, size)
        if on_goal == 0 and swaps * distance > score:
            length, score, farthest, start = t + 1, swaps * distance, distance, player
            for k in range(num_boxes):
                best[k] = boxes[k]
    if score > 0:
        for k in range(num_boxes):
            room[boxes[k]] &= ~BOX
        for k in range(num_boxes):
            room[best[k]] |= BOX
        start = queue[below(rng_state, i, _reach(room, size, start, reached, queue, total))]
    return length, farthest, start


@numba.njit(cache=True, nogil=True)
def _can_pull(room, box, step, reached, visit):
    return reached[box + step] == visit and not room[box + 2 * step] & (WALL | BOX)


@numba.njit(cache=True, nogil=True)
def _step(action, size):
    return MOVES[action][0] * size + MOVES[action][1]


@numba.njit(cache=True, nogil=True)
def _action(step, size):
    return 0 if step == -size else 1 if step == size else 2 if step == -1 else 3


@numba.njit(cache=True, nogil=True)
def _distance(a, b, size):
    return abs(a // size - b // size) + abs(a % size - b % size)


def solution(board: NDArray[np.uint8], pushes: Array) -> list[int]:
    """The actions that solve a board [H, W] by pushes [P, 2] of its boxes: those, and the shortest walks between them."""
    width = board.shape[1]
    cells = board.reshape(-1).astype(int)
    player, actions = int(np.flatnonzero(cells & PLAYER)[0]), []
    for box, action in np.asarray(pushes).tolist():
        step = MOVES[action][0] * width + MOVES[action][1]
        actions += [*_walk(cells, width, player, box - step), action]
        cells[box] &= ~BOX
        cells[box + step] |= BOX
        player = box
        if not np.any((cells & BOX != 0) & (cells & GOAL == 0)):
            break  # on the way back all boxes may come home before the last push
    return actions


def _walk(cells: Array, width: int, start: int, end: int) -> list[int]:
    """The shortest walk between two cells, around walls and boxes."""
    came: dict[int, tuple[int, int]] = {}
    queue = deque([start])
    while queue and end != start and end not in came:
        cell = queue.popleft()
        for action, (dr, dc) in enumerate(MOVES):
            there = cell + dr * width + dc
            if there != start and there not in came and not cells[there] & (WALL | BOX):
                came[there] = cell, action
                queue.append(there)
    actions = []
    while end != start:
        end, action = came[end]
        actions.append(action)
    return actions[::-1]
