"""Sokoban: push every box onto a goal.

The rules and rewards of Weber et al. 2017 (https://arxiv.org/abs/1707.06203): -0.1 a step, 1 for a box that comes onto a goal, -1 for one
that leaves it, 10 for the last box, which ends the episode. The player moves up, down, left or right (actions 0 to 3), and pushes a box
that is in the way if there is room behind it; a move that is not possible leaves everything as it was. Boxes can get stuck; an episode is
then cut after `max_episode_steps`.

Planes: walls, goals, boxes, player. They are the state, so that the perfect model is exact.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from rlx.envs.grids.boxoban import read_levels
from rlx.envs.grids.grid_settings import SokobanSettings
from rlx.envs.grids.gridworld import Boards, Grid, as_bits
from rlx.envs.grids.sokoban_levels import BOX, GOAL, PLAYER, WALL, generate
from rlx.envs.grids.splits import SHARE, Split, in_split, keys_of
from rlx.envs.splitmix import below, streams
from rlx.errors import ConfigError

Array = NDArray[Any]
STEP, ON, OFF, SOLVED = range(4)


class Sokoban(Grid):
    """The rules, and where levels come from.

    Args:
        settings: see `grid_settings.SokobanSettings`.
        split: which levels episodes begin with (`splits`).

    Raises:
        ConfigError: if files of levels cannot be read, or hold what is no level.
    """

    num_actions = 4
    action_names = ("up", "down", "left", "right")
    player_plane = 3
    events = ("step", "box_on_goal", "box_off_goal", "solved")
    event_reward = np.array([-0.1, 1.0, -1.0, 10.0], dtype=np.float32)
    termination_solves = True
    glyphs = " #.$*@+"
    kind_names = ("floor", "wall", "goal", "box", "box on a goal", "player", "player on a goal")
    colours = np.array(
        [[40, 40, 48], [120, 92, 72], [210, 70, 80], [214, 160, 60], [90, 180, 90], [90, 150, 230], [170, 120, 220]], dtype=np.uint8
    )

    def __init__(self, settings: SokobanSettings, split: Split = "all") -> None:
        self._settings, self._split = settings, split
        self._levels, self._without = _levels_of(settings, split)
        height = width = settings.size or 7
        if self._levels is not None:
            self.fingerprint = hashlib.sha256(self._levels.tobytes()).hexdigest()
            height, width = self._levels.shape[1:]
        self.planes_shape = (4, height, width)

    def begin(self, seeds: Array) -> Boards:
        if self._levels is None:
            s = self._settings
            split = self._split if s.eval_levels is None else "all"
            levels = generate(seeds, size=s.size or 7, num_boxes=s.num_boxes or 1, pulls=s.pulls, min_distance=s.min_distance,
                              split=split, without=self._without).boards  # fmt: skip
        else:
            levels = self._levels[_choose(streams(seeds), len(self._levels))]
        planes = np.stack([(levels & bit) != 0 for bit in (WALL, GOAL, BOX, PLAYER)], axis=1).astype(np.uint8)
        return _boards(planes)

    def move(self, boards: Boards, actions: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return _move(boards["planes"], boards["player"], actions)

    def observe(self, boards: Boards) -> NDArray[np.uint8]:
        return boards["planes"]

    def read(self, planes: NDArray[np.uint8], rng_state: Array) -> Boards:
        return _boards(planes)

    def events_of(self, planes: Array, action: Array, next_planes: Array, terminated: Array) -> NDArray[np.bool_]:
        before, after = (_on_goals(as_bits(p)) for p in (planes, next_planes))
        return np.stack([np.ones(len(before), dtype=bool), after > before, after < before, np.asarray(terminated, dtype=bool)], axis=1)

    def kinds(self, planes: Array) -> NDArray[np.intp]:
        wall, goal, box, player = (planes[:, i].astype(np.intp) for i in range(4))
        return np.where(wall > 0, 1, np.where(player > 0, 5 + goal, np.where(box > 0, 3 + goal, 2 * goal)))


def _levels_of(settings: SokobanSettings, split: Split) -> tuple[NDArray[np.uint8] | None, Array | None]:
    """The levels of files [n, H, W] that a split is of, None where they are generated; and the keys of those that then may not come.

    With env.levels alone their keys split them; with env.eval_levels these are for evaluation, and all others for training.
    """

    def read(name: str, size: int | None) -> NDArray[np.uint8] | None:
        path = getattr(settings, name)
        return None if path is None else read_levels(Path(path), size=size, num_boxes=settings.num_boxes, setting=f"env.kwargs.{name}")

    levels = read("levels", settings.size)
    if settings.eval_levels is None:
        if levels is None or split == "all":
            return levels, None
        chosen = levels[in_split(keys_of(levels), split)]
        if not len(chosen):
            raise ConfigError(
                f"env.kwargs.levels={settings.levels}: none of its {len(levels)} levels is for {split}, which gets "
                f"{'one in' if split == 'evaluation' else 'all but one in'} {SHARE}; give more levels, or others for evaluation with "
                "env.kwargs.eval_levels"
            )
        return chosen, None
    size = (settings.size or 7) if levels is None else levels.shape[1] if levels.shape[1] == levels.shape[2] else None
    held_out = read("eval_levels", size)
    assert held_out is not None
    if levels is not None:
        both = np.isin(keys_of(held_out), keys_of(levels))
        if held_out.shape[1:] != levels.shape[1:]:
            raise ConfigError(f"env.kwargs.eval_levels={settings.eval_levels}: levels of {held_out.shape[1:]} cells; those of "
                              f"env.kwargs.levels have {levels.shape[1:]}")  # fmt: skip
        if both.any():
            raise ConfigError(
                f"env.kwargs.eval_levels={settings.eval_levels}: {both.sum()} of its {len(held_out)} levels are in env.kwargs.levels="
                f"{settings.levels} too, maybe turned or mirrored (the first is number {int(both.argmax()) + 1}); an evaluation on levels "
                "that were trained on says little: take them out of one, or leave env.kwargs.eval_levels out, and one in "
                f"{SHARE} levels is kept for evaluation"
            )
    return (held_out, None) if split == "evaluation" else (levels, None if levels is not None else np.sort(keys_of(held_out)))


def _boards(planes: NDArray[np.uint8]) -> Boards:
    """The state that planes [n, 4, H, W] show, which become part of it; a board without a player (-1) never changes."""
    flat = planes[:, 3].reshape(len(planes), planes.shape[2] * planes.shape[3])
    return {"planes": planes, "player": np.where(flat.any(axis=1), flat.argmax(axis=1), -1)}


def _on_goals(planes: Array) -> Array:
    return (planes[:, 1] & planes[:, 2]).sum(axis=(1, 2))


@numba.njit(cache=True, nogil=True)
def _choose(rng_state, num_levels):
    chosen = np.empty(len(rng_state), dtype=np.int64)
    for i in range(len(rng_state)):
        chosen[i] = below(rng_state, i, num_levels)
    return chosen


@numba.njit(cache=True, nogil=True)
def _move(planes, players, actions):
    """One step of every board: planes [n, 4, H, W], player's cell [n]; returns events [n, 4] and where it was solved [n]."""
    n, _, height, width = planes.shape
    events = np.zeros((n, 4), dtype=np.bool_)
    solved = np.zeros(n, dtype=np.bool_)
    for i in range(n):
        events[i, STEP] = True
        if players[i] < 0:
            continue
        action, r, c = actions[i], players[i] // width, players[i] % width
        dr = -1 if action == 0 else 1 if action == 1 else 0
        dc = -1 if action == 2 else 1 if action == 3 else 0
        r1, c1, r2, c2 = r + dr, c + dc, r + 2 * dr, c + 2 * dc
        # Levels have walls around them; predictions of a learned model may have none.
        if not (0 <= r1 < height and 0 <= c1 < width) or planes[i, 0, r1, c1]:
            continue
        if planes[i, 2, r1, c1]:
            if not (0 <= r2 < height and 0 <= c2 < width) or planes[i, 0, r2, c2] or planes[i, 2, r2, c2]:
                continue
            planes[i, 2, r1, c1] = 0
            planes[i, 2, r2, c2] = 1
            change = np.int64(planes[i, 1, r2, c2]) - np.int64(planes[i, 1, r1, c1])
            events[i, ON], events[i, OFF] = change > 0, change < 0
            if change > 0:
                solved[i] = _all_on_goals(planes[i])
                events[i, SOLVED] = solved[i]
        planes[i, 3, r, c] = 0
        planes[i, 3, r1, c1] = 1
        players[i] = r1 * width + c1
    return events, solved


@numba.njit(cache=True, nogil=True)
def _all_on_goals(planes):
    for r in range(planes.shape[1]):
        for c in range(planes.shape[2]):
            if planes[2, r, c] and not planes[1, r, c]:
                return False
    return True
