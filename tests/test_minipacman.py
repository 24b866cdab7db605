"""MiniPacman: the kernel against rules written for reading, the model against the environment, and numbers that can be checked by hand."""

from __future__ import annotations

import io
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from rlx.build import env_spec
from rlx.config.compose import Composer
from rlx.envs.grids.grid_env import make_grid
from rlx.envs.grids.grid_settings import TASKS as TASK_NAMES
from rlx.envs.grids.grid_settings import settings_of
from rlx.envs.grids.gridworld import GridVectorEnv
from rlx.envs.grids.minipacman import MAZE, TASKS, MiniPacman
from rlx.envs.registry import VectorEnvFactory
from rlx.errors import ConfigError
from rlx.serialize import plain

ID = "rlx/MiniPacman-v0"
UP, DOWN, LEFT, RIGHT, STAY = range(5)
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1), (0, 0))
WALLS = np.array([[cell == "#" for cell in row] for row in MAZE.splitlines()])
FREE = [(int(r), int(c)) for r, c in np.argwhere(~WALLS)]
Cell = tuple[int, int]


def make(num_envs: int, **kwargs: Any) -> GridVectorEnv:
    return make_grid(settings_of(ID, kwargs), num_envs)


def board(player: Cell, *, food: Any = (), pills: Any = (), ghosts: Any = (), power: int = 0, clock: int = 0, level: int = 1) -> np.ndarray:
    """Planes [12, H, W]; a ghost is (row, column, heading)."""
    planes = np.zeros((12, *WALLS.shape), dtype=np.uint8)
    planes[0] = WALLS
    for plane, cells in ((1, food), (2, pills), (3, [player])):
        for cell in cells:
            planes[plane][cell] = 1
    for r, c, heading in ghosts:
        planes[4 + heading, r, c] = 1
        planes[8, r, c] = power > 0
    for plane, count in ((9, power), (10, clock), (11, level)):
        planes[plane].reshape(-1)[:count] = 1
    return planes


def starting(env: GridVectorEnv, planes: np.ndarray) -> GridVectorEnv:
    """Let every board of an environment look like planes [B, 12, H, W]."""
    env.reset(seed=np.arange(env.num_envs))
    env._boards = env.rules.read(planes.copy(), env._boards["rng_state"])
    assert np.array_equal(env.planes(), planes), "no board that there can be"
    return env


def random_boards(n: int, rng: np.random.Generator, task: str) -> np.ndarray:
    """Boards of all kinds: half of them with power, half nearly without food, half with the ghosts close to the player."""
    clock = TASKS[task].clock
    boards = []
    for _ in range(n):
        cells = [FREE[i] for i in rng.permutation(len(FREE))]
        reach = rng.choice([3, 20])
        there = [(r, c) for r, c in cells[1:] if max(abs(r - cells[0][0]), abs(c - cells[0][1])) <= reach]
        ghosts = [(*cell, int(rng.integers(4))) for cell in there[: rng.integers(9)]]
        numbers = {
            "power": int(rng.integers(21) * rng.integers(2)),
            "clock": int(rng.integers(clock + 1)),
            "level": int(rng.integers(1, 13)),
        }
        boards.append(
            board(cells[0], food=cells[: rng.choice([0, 1, 120, 120])], pills=cells[1 : rng.integers(1, 4)], ghosts=ghosts, **numbers)
        )
    return np.stack(boards).reshape(n, 12, *WALLS.shape)


class SplitMix:
    """splitmix64 in whole numbers of any size."""

    def __init__(self, state: int) -> None:
        self.state = state % 2**64

    def _next(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        z = (self.state + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    def below(self, limit: int) -> int:
        return ((self._next() >> 33) * limit) >> 31

    def happens(self, probability: float) -> bool:
        return (self._next() >> 11) / 2**53 < probability


class Reference:
    """The rules on sets of cells."""

    def __init__(self, planes: np.ndarray, rng_state: int, task: str) -> None:
        cells = [{(int(r), int(c)) for r, c in np.argwhere(plane)} for plane in planes]
        self.food, self.pills, (self.player,) = cells[1], cells[2], cells[3]
        self.ghosts = sorted((*cell, heading) for heading in range(4) for cell in cells[4 + heading])
        self.power, self.clock, self.level = (len(cells[i]) for i in (9, 10, 11))
        self.task, self.rng_state = TASKS[task], SplitMix(rng_state)

    def planes(self) -> np.ndarray:
        return board(
            self.player, food=self.food, pills=self.pills, ghosts=self.ghosts, power=self.power, clock=self.clock, level=self.level
        )

    def step(self, action: int) -> set[str]:
        """What happened."""
        left = (self.food, self.pills, self.ghosts)[self.task.goal]
        if not left or (self.task.clock and self.clock >= self.task.clock):
            self.begin_level()
            return {"step"}
        happened = {"step"}
        self.power = max(0, self.power - 1)
        self.clock += self.task.clock > 0
        self.player = neighbour(self.player, action)
        if self.player in self.food:
            self.food = self.food - {self.player}
            happened.add("food")
        if self.player in self.pills:
            self.pills, self.power = self.pills - {self.player}, 20
            happened.add("power_pill")
        for i in range(len(self.ghosts)):
            if self.ghosts[i][:2] != self.player and self.rng_state.happens((0.5 + 0.1 * (self.level - 1)) / (2 if self.power else 1)):
                heading = self.way(*self.ghosts[i])
                moved = (*neighbour(self.ghosts[i][:2], heading), heading)
                if moved not in self.ghosts:
                    self.ghosts[i] = moved
            if self.ghosts[i][:2] == self.player:
                if not self.power:
                    happened.add("die")
                else:
                    happened.add("eat_ghost")
                    del self.ghosts[i]
                break
        self.ghosts.sort()
        return happened

    def way(self, r: int, c: int, heading: int) -> int:
        back = {UP: DOWN, DOWN: UP, LEFT: RIGHT, RIGHT: LEFT}[heading]
        ways = [way for way in range(4) if neighbour((r, c), way) != (r, c) and way != back]
        if len(ways) > 1 and not self.power and self.rng_state.happens(0.05):
            return ways[self.rng_state.below(len(ways))]
        if len(ways) == 1:
            return ways[0]
        away = np.array([self.player[0] - r, self.player[1] - c]) * (-1 if self.power else 1)
        return max(ways, key=lambda way: (away @ MOVES[way], -way))

    def begin_level(self) -> None:
        self.level, self.power, self.clock, self.food = self.level + 1, 0, 0, set(FREE)
        self.player = FREE[self.rng_state.below(len(FREE))]
        self.pills, self.ghosts = set(), []
        while len(self.pills) < 2:
            self.pills |= {FREE[self.rng_state.below(len(FREE))]} - {self.player}
        while len(self.ghosts) < min(1 + (self.level - 1) // 2, 8):
            r, c = FREE[self.rng_state.below(len(FREE))]
            if max(abs(r - self.player[0]), abs(c - self.player[1])) >= 5 and (r, c) not in [ghost[:2] for ghost in self.ghosts]:
                self.ghosts.append((r, c, self.rng_state.below(4)))
        self.ghosts.sort()


def neighbour(cell: Cell, action: int) -> Cell:
    there = cell[0] + MOVES[action][0], cell[1] + MOVES[action][1]
    return cell if WALLS[there] else there


# The maze


def test_the_maze_is_one_place_without_dead_ends():
    assert WALLS.shape == (15, 19)
    assert np.array_equal(WALLS, WALLS[:, ::-1])
    assert all(len({neighbour(cell, way) for way in range(4)} - {cell}) >= 2 for cell in FREE)
    reached, new = {FREE[0]}, {FREE[0]}
    while new:
        new = {neighbour(cell, way) for cell in new for way in range(4)} - reached
        reached |= new
    assert reached == set(FREE)


# Rules


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_kernel_equals_the_reference_move_by_move(task):
    rng, n = np.random.default_rng(0), 200
    env = starting(make(n, task=task), random_boards(n, rng, task))
    references = [Reference(p, int(rng_state), task) for p, rng_state in zip(env.planes(), env._boards["rng_state"], strict=True)]
    seen = np.zeros(6, dtype=int)
    for _ in range(50):
        actions = rng.integers(5, size=n)
        before = env.planes().copy()
        planes, reward, terminated, _, info = env.step(actions)
        for i, reference in enumerate(references):
            happened = reference.step(int(actions[i]))
            assert {name for name, event in zip(env.rules.events, info["events"][i], strict=True) if event} == happened
            assert np.array_equal(planes[i], reference.planes())
            assert reward[i] == pytest.approx(sum(TASKS[task].reward[env.rules.events.index(name)] for name in happened), abs=1e-5)
            assert terminated[i] == ("die" in happened)
        seen[:5] += info["events"].sum(axis=0)
        seen[5] += (planes[:, 11].sum(axis=(1, 2)) > before[:, 11].sum(axis=(1, 2))).sum()
        if terminated.any():
            fresh = planes.copy()
            fresh[terminated] = random_boards(int(terminated.sum()), rng, task)
            rng_state = env._boards["rng_state"]
            env._boards = env.rules.read(fresh.copy(), rng_state)
            for i in np.flatnonzero(terminated):
                references[i] = Reference(fresh[i], int(rng_state[i]), task)
    assert seen.min() > 10, dict(zip((*env.rules.events, "level"), seen, strict=True))


@pytest.mark.parametrize(
    ("task", "rewards"),
    [
        ("regular", (0.0, 1.0, 3.0, 5.0, 0.0)),
        ("avoid", (0.1, 0.0, -5.0, -9.9, -19.9)),
        ("hunt", (0.0, 0.0, 1.0, 10.0, -20.0)),
        ("ambush", (0.0, -0.1, -0.1, 10.0, -20.0)),
        ("rush", (0.0, -0.1, 9.9, 0.0, 0.0)),
    ],
)
def test_rewards_are_those_of_the_paper(task, rewards):
    """A step, food, food with a pill, a ghost under power, a ghost without."""
    far, near = (13, 17, LEFT), (1, 2, LEFT)
    boards = [
        board((1, 1), food=FREE[5:], pills=[(13, 1)], ghosts=[far]),
        board((1, 1), food=FREE, pills=[(13, 1)], ghosts=[far]),
        board((1, 1), food=FREE, pills=[(1, 2)], ghosts=[far]),
        board((1, 1), food=FREE[5:], pills=[(13, 1)], ghosts=[far, near], power=9),
        board((1, 1), food=FREE[5:], pills=[(13, 1)], ghosts=[far, near]),
    ]
    env = starting(make(5, task=task), np.stack(boards))
    _, reward, terminated, _, _ = env.step(np.array([LEFT, RIGHT, RIGHT, RIGHT, RIGHT]))
    np.testing.assert_allclose(reward, rewards, atol=1e-5)
    assert terminated.tolist() == [False] * 4 + [True]
    assert env.planes()[3, 4:8].sum() == 1  # of two ghosts


def test_power_is_a_bar_that_shrinks_for_twenty_steps():
    env = starting(make(1), board((1, 1), food=FREE, pills=[(1, 2)], ghosts=[(13, 17, LEFT)])[None])
    seen = []
    for action in [RIGHT] + 20 * [STAY]:
        planes = env.step(np.array([action]))[0][0]
        seen.append(int(planes[9].sum()))
        assert planes[9].reshape(-1)[: seen[-1]].all()
        assert planes[8].sum() == (seen[-1] > 0)  # the ghost is edible, and seen to be
    assert seen == list(range(20, -1, -1))


def test_ghosts_move_as_often_as_their_level_says_and_half_as_often_when_they_flee():
    grid, rng = make(1).rules, np.random.default_rng(0)

    def share(**settings: int) -> float:
        planes = board((13, 17), food=FREE, ghosts=[(1, 2, LEFT)], **settings)
        after = grid.step(np.repeat(planes[None], 4000, axis=0), np.full(4000, STAY), rng)[0]
        return float((after[:, 6] != planes[6]).any(axis=(1, 2)).mean())

    assert share() == pytest.approx(0.5, abs=0.03)  # 4 standard errors
    assert share(level=4) == pytest.approx(0.8, abs=0.03)
    assert share(level=6) == share(level=9) == 1.0
    assert share(power=7) == pytest.approx(0.25, abs=0.03)


def test_a_ghost_at_a_junction_heads_for_the_player_but_for_one_time_in_twenty():
    """At (3, 8), where a ghost from the left can go up or on to the right; of the times that it goes anywhere half are right."""
    grid, rng = make(1).rules, np.random.default_rng(0)

    def headings(player: Cell, power: int = 0) -> list[float]:
        planes = board(player, food=FREE, ghosts=[(3, 8, RIGHT)], level=6, power=power)
        after = grid.step(np.repeat(planes[None], 4000, axis=0), np.full(4000, STAY), rng)[0]
        after = after[after[:, 4 + RIGHT, 3, 8] == 0]  # those that have moved
        return [float(x) for x in after[:, 4:8].any(axis=(2, 3)).mean(axis=0)]

    assert headings((3, 17)) == pytest.approx([0.025, 0, 0, 0.975], abs=0.01)  # 4 standard errors
    assert headings((1, 8)) == pytest.approx([0.975, 0, 0, 0.025], abs=0.01)
    assert headings((3, 17), power=9) == [1, 0, 0, 0]
    assert headings((1, 8), power=9) == [0, 0, 0, 1]


def test_a_ghost_goes_on_along_a_corridor_and_turns_with_it():
    grid, rng = make(1).rules, np.random.default_rng(0)
    for ghost, expected in (((7, 4, DOWN), (8, 4, DOWN)), ((1, 1, LEFT), (2, 1, DOWN)), ((1, 1, UP), (1, 2, RIGHT))):
        planes = board((13, 17), food=FREE, ghosts=[ghost], level=6)
        after = grid.step(planes[None], np.array([STAY]), rng)[0][0]
        assert np.argwhere(after[4:8])[:, [1, 2, 0]].tolist() == [list(expected)]


def test_a_ghost_waits_for_one_that_heads_the_same_way():
    """The left one has its turn first and finds the other before it."""
    grid, rng = make(1).rules, np.random.default_rng(0)
    planes = board((1, 17), food=FREE, ghosts=[(13, 5, RIGHT), (13, 6, RIGHT)], level=6)
    after = grid.step(planes[None], np.array([STAY]), rng)[0][0]
    assert np.argwhere(after[4 + RIGHT]).tolist() == [[13, 5], [13, 7]]


def test_a_level_ends_with_its_food_and_the_next_begins_with_the_next_step():
    env = starting(make(1), board((1, 1), food=[(1, 2)], pills=[(13, 1)], ghosts=[(13, 17, LEFT)], level=2)[None])
    planes, reward, *_ = env.step(np.array([RIGHT]))
    assert (reward[0], planes[0, 1].sum(), planes[0, 11].sum()) == (1.0, 0, 2)
    planes, reward, terminated, *_ = env.step(np.array([RIGHT]))
    assert (reward[0], bool(terminated[0])) == (0.0, False)
    assert planes[0].sum(axis=(1, 2)).tolist()[1:4] == [len(FREE), 2, 1]
    assert (planes[0, 4:8].sum(), planes[0, 11].sum()) == (2, 3)  # 1 + (3 - 1) // 2 ghosts


def test_the_clock_ends_a_level_after_128_steps_of_avoid():
    env = starting(make(1, task="avoid"), board((1, 1), food=FREE, pills=[(13, 1)])[None])
    for t in range(1, 130):
        planes = env.step(np.array([STAY]))[0][0]
        assert (planes[10].sum(), planes[11].sum()) == ((t, 1) if t <= 128 else (0, 2))


def test_an_episode_is_cut_after_its_steps():
    env = starting(make(1, max_episode_steps=3), board((1, 1), food=FREE)[None])
    assert [bool(env.step(np.array([STAY]))[3][0]) for _ in range(3)] == [False, False, True]
    assert make(1).max_episode_steps == 3000


# The model


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_perfect_model_is_the_environment_with_the_same_luck(task):
    rng, n = np.random.default_rng(1), 200
    env = make(n, task=task)
    config = Composer().compose(["env=minipacman", f"env.kwargs.task={task}"]).config.env
    grid = env_spec(config, env).grid
    assert isinstance(grid, MiniPacman)
    starting(env, random_boards(n, rng, task))
    planes = env.planes().copy()
    for _ in range(60):
        actions, rng_state = rng.integers(5, size=n), env._boards["rng_state"].copy()
        after, reward, terminated, _, info = env.step(actions)
        boards = grid.read(planes.copy(), rng_state)
        events, end = grid.move(boards, actions)
        assert np.array_equal(boards["planes"], after)
        assert np.array_equal(boards["rng_state"], env._boards["rng_state"])
        assert np.array_equal(events, info["events"])
        assert np.array_equal(end, terminated)
        assert np.array_equal(grid.events_of(planes, actions, after, terminated), events)
        np.testing.assert_array_equal(events.astype(np.float32) @ grid.event_reward, reward)
        kept = planes.copy()
        imagined, *_ = grid.step(planes, actions, rng)
        assert np.array_equal(planes, kept)
        begins = after[:, 11].sum(axis=(1, 2)) > planes[:, 11].sum(axis=(1, 2))
        certain = [0, 1, 2, 3, 9, 10, 11]  # all but ghosts
        assert np.array_equal(imagined[~begins][:, certain], after[~begins][:, certain])
        planes = after.copy()
        if terminated.any():
            planes[terminated] = random_boards(int(terminated.sum()), rng, task)
            env._boards = grid.read(planes.copy(), env._boards["rng_state"])


def test_the_model_survives_what_is_no_board():
    grid, rng = make(1, task="hunt").rules, np.random.default_rng(0)
    for planes in (rng.random((100, 12, 15, 19)), np.ones((3, 12, 15, 19)), np.zeros((3, 12, 15, 19), dtype=np.float32)):
        for action in range(5):
            after, events, terminated = grid.step(planes, np.full(len(planes), action), rng)
            assert set(np.unique(after)) <= {0, 1}
            assert events.shape == (len(planes), 5)
            assert grid.events_of(planes, np.full(len(planes), action), after, terminated).shape == events.shape
            assert len(grid.ansi(planes[0]).splitlines()) == 16
    planes = make(1).reset(seed=np.array([3]))[0]
    soft = planes * 0.6 + 0.2
    ours, theirs = (grid.step(p, np.array([1]), np.random.default_rng(0))[0] for p in (soft, planes))
    assert np.array_equal(ours, theirs)


# Seeds, snapshots, interfaces


def test_an_episode_follows_from_its_seed_and_actions():
    seeds = np.random.default_rng(0).integers(2**31, size=300)
    env, alone = make(300), make(1)
    first = env.reset(seed=seeds)[0].copy()
    assert len(np.unique(first, axis=0)) == 300
    alone.reset(seed=seeds[7:8])
    for t in range(60):
        together, by_itself = env.step(np.full(300, t % 5)), alone.step(np.array([t % 5]))
        assert all(np.array_equal(a[7], b[0]) for a, b in zip(together[:4], by_itself[:4], strict=True))
    starts = first[:, 3].reshape(300, -1).argmax(axis=1)
    assert len(np.unique(starts)) > 100  # of 146 cells


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(plain(state), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("observation", ["planes", "rgb"])
def test_a_snapshot_amid_episodes_continues_identically(observation):
    env, again = (make(8, task="rush", observation=observation, max_episode_steps=50) for _ in range(2))
    rng = np.random.default_rng(0)

    def step(*envs: GridVectorEnv) -> list[Any]:
        actions, seeds = rng.integers(5, size=8), rng.integers(2**31, size=8)
        steps = [[x.copy() for x in e.step(actions)[:4]] for e in envs]
        for e, (_, _, terminated, truncated) in zip(envs, steps, strict=True):
            steps[0].append(e.reset(seed=seeds, options={"reset_mask": terminated | truncated})[0].copy())
        return steps

    env.reset(seed=np.arange(8))
    for _ in range(70):
        step(env)
    again.load_state_dict(through_a_file(env.state_dict()))
    for _ in range(80):
        (*ours, our_reset, their_reset), theirs = step(env, again)
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert np.array_equal(our_reset, their_reset)


@pytest.mark.parametrize("kwargs", [{"task": "ambush"}, {"observation": "rgb"}])
def test_gymnasium_accepts_the_single_environment(kwargs):
    for mode in ("rgb_array", "ansi"):
        check_env(gymnasium.make(ID, render_mode=mode, disable_env_checker=True, **kwargs).unwrapped)


def test_a_board_is_shown_with_its_numbers():
    env = gymnasium.make(ID, render_mode="ansi", task="hunt")
    env.reset(seed=0)
    *rows, numbers = env.render().splitlines()
    assert sorted(set("".join(rows))) == sorted("#.oPG")
    assert numbers == "level 1, power for 0 steps, 80 steps left"
    grid = make(1).rules
    shown = grid.ansi(board((1, 1), pills=[(1, 3)], food=[(1, 4)], ghosts=[(1, 8, LEFT)], power=3, level=2)).splitlines()
    assert shown[0] == "===################"
    assert shown[1] == "#P o.   g#        #"
    assert shown[-1] == "level 2, power for 3 steps"


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"env\.kwargs\.task must be one of regular, avoid, hunt, ambush, rush, got 'foo'"):
        VectorEnvFactory(ID, {"task": "foo"})(1)
    with pytest.raises(ConfigError, match=r"did you mean env\.kwargs\.task\?"):
        VectorEnvFactory(ID, {"tasks": "hunt"}, native=False)(1)


def test_the_file_of_settings_shows_the_defaults():
    config = Composer().compose(["env=minipacman"]).config.env
    assert settings_of(ID, config.kwargs) == settings_of(ID, {})
    assert set(config.kwargs) == set(settings_of(ID, {}).__dataclass_fields__)
    assert tuple(TASKS) == TASK_NAMES
