"""Sokoban: the kernel against rules written for reading, levels against their solutions, files of levels and what is wrong with them."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from rlx.build import env_spec
from rlx.config.compose import Composer
from rlx.envs.grids.boxoban import read_levels
from rlx.envs.grids.grid_env import make_grid
from rlx.envs.grids.grid_settings import settings_of
from rlx.envs.grids.gridworld import GridVectorEnv
from rlx.envs.grids.sokoban_levels import BOX, GOAL, PLAYER, WALL, generate, solution
from rlx.envs.registry import VectorEnvFactory
from rlx.envs.vector import GymVectorEnv
from rlx.errors import CheckpointError, ConfigError
from rlx.serialize import plain

ID = "rlx/Sokoban-v0"
UP, DOWN, LEFT, RIGHT = range(4)
BOXOBAN = Path(__file__).resolve().parents[2] / "shared" / "data" / "boxoban"
needs_boxoban = pytest.mark.skipif(not BOXOBAN.is_dir(), reason=f"Boxoban's levels are not in {BOXOBAN}")


def make(num_envs: int, **kwargs: Any) -> GridVectorEnv:
    return make_grid(settings_of(ID, kwargs), num_envs)


def from_text(tmp_path: Path, text: str, **kwargs: Any) -> GridVectorEnv:
    """One board that always begins as the text shows it."""
    (tmp_path / "level.txt").write_text(text)
    env = make(1, levels=str(tmp_path / "level.txt"), **kwargs)
    env.reset(seed=np.zeros(1, dtype=np.int64))
    return env


def play(env: GridVectorEnv, *actions: int) -> tuple[list[float], bool]:
    """The rewards, and whether the last step terminated."""
    steps = [env.step(np.array([action]))[1:3] for action in actions]
    return [round(float(reward[0]), 4) for reward, _ in steps], bool(steps[-1][1][0])


def shown(env: GridVectorEnv) -> str:
    return env.rules.ansi(env.planes()[0])


class Reference:
    """The rules on a dictionary of characters."""

    MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))

    def __init__(self, text: str) -> None:
        cells = {(r, c): x for r, row in enumerate(text.splitlines()) for c, x in enumerate(row)}
        self.walls = {p for p, x in cells.items() if x == "#"}
        self.goals = {p for p, x in cells.items() if x in ".*+"}
        self.boxes = {p for p, x in cells.items() if x in "$*"}
        (self.player,) = (p for p, x in cells.items() if x in "@+")
        self.shape = len(text.splitlines()), len(text.splitlines()[0])

    def step(self, action: int) -> tuple[float, bool]:
        """The reward and whether the level is solved."""
        dr, dc = self.MOVES[action]
        front = self.player[0] + dr, self.player[1] + dc
        behind = front[0] + dr, front[1] + dc
        before = len(self.boxes & self.goals)
        if front in self.walls:
            return -0.1, False
        if front in self.boxes:
            if behind in self.walls | self.boxes:
                return -0.1, False
            self.boxes = self.boxes - {front} | {behind}
        self.player = front
        solved = self.boxes == self.goals
        return -0.1 + len(self.boxes & self.goals) - before + 10 * solved, solved

    def text(self) -> str:
        def character(p: tuple[int, int]) -> str:
            if p in self.walls:
                return "#"
            pair = "@+" if p == self.player else "$*" if p in self.boxes else " ."
            return pair[p in self.goals]

        return "\n".join("".join(character((r, c)) for c in range(self.shape[1])) for r in range(self.shape[0]))


# Rules


def test_rewards_are_those_of_the_paper(tmp_path):
    env = from_text(tmp_path, "#######\n#@$ . #\n# $ . #\n#######\n")
    assert play(env, LEFT) == ([-0.1], False)  # into the wall
    assert play(env, RIGHT, RIGHT) == ([-0.1, 0.9], False)  # the box comes onto a goal
    assert shown(env) == "#######\n#  @* #\n# $ . #\n#######"
    assert play(env, RIGHT) == ([-1.1], False)  # and leaves it
    assert play(env, RIGHT) == ([-0.1], False)  # a wall is behind it
    assert shown(env) == "#######\n#   +$#\n# $ . #\n#######"


def test_the_last_box_ends_the_episode(tmp_path):
    env = from_text(tmp_path, "######\n#@$. #\n######\n")
    assert play(env, RIGHT) == ([10.9], True)
    assert shown(env) == "######\n# @* #\n######"


def test_two_boxes_in_a_row_do_not_move(tmp_path):
    env = from_text(tmp_path, "########\n#@$$ ..#\n########\n")
    assert play(env, RIGHT) == ([-0.1], False)
    assert shown(env) == "########\n#@$$ ..#\n########"


def test_a_box_pushed_from_goal_to_goal_earns_nothing(tmp_path):
    env = from_text(tmp_path, "########\n#@*.$ .#\n# $    #\n########\n")
    assert play(env, RIGHT) == ([-0.1], False)
    assert shown(env) == "########\n# +*$ .#\n# $    #\n########"


def test_an_episode_is_cut_after_its_steps(tmp_path):
    env = from_text(tmp_path, "######\n#@$. #\n######\n", max_episode_steps=3)
    ended = [env.step(np.array([LEFT]))[2:4] for _ in range(3)]
    assert [(bool(t[0]), bool(c[0])) for t, c in ended] == [(False, False), (False, False), (False, True)]


@pytest.mark.parametrize("settings", [{}, {"num_boxes": 3}, {"size": 10, "num_boxes": 4}])
def test_the_kernel_equals_the_reference_move_by_move(settings):
    env, rng = make(16, max_episode_steps=10**6, **settings), np.random.default_rng(0)
    env.reset(seed=np.arange(16))
    references = [Reference(env.rules.ansi(p)) for p in env.planes()]
    rewards = set()
    for _ in range(600):
        actions = rng.integers(4, size=16)
        planes, reward, terminated, _, _ = env.step(actions)
        for i, reference in enumerate(references):
            expected, solved = reference.step(int(actions[i]))
            assert reward[i] == pytest.approx(expected)
            assert terminated[i] == solved
            assert env.rules.ansi(planes[i]) == reference.text()
        rewards |= {round(float(r), 1) for r in reward}
        if terminated.any():
            env.reset(seed=rng.integers(2**31, size=16), options={"reset_mask": terminated})
            for i in np.flatnonzero(terminated):
                references[i] = Reference(env.rules.ansi(env.planes()[i]))
    assert {-0.1, 10.9 if not settings else 0.9, -0.1} <= rewards


# The model


def random_play(env: GridVectorEnv, steps: int, seed: int = 0) -> Any:
    """(planes, actions, next planes, reward, terminated, events) of random steps."""
    rng = np.random.default_rng(seed)
    planes = env.reset(seed=rng.integers(2**31, size=env.num_envs))[0].copy()
    for _ in range(steps):
        actions = rng.integers(env.single_action_space.n, size=env.num_envs)
        after, reward, terminated, truncated, info = env.step(actions)
        yield planes, actions, after.copy(), reward, terminated, info["events"]
        ended = terminated | truncated
        planes = env.reset(seed=rng.integers(2**31, size=env.num_envs), options={"reset_mask": ended})[0].copy()


@pytest.mark.parametrize("settings", [{}, {"size": 9, "num_boxes": 4, "max_episode_steps": 30}])
def test_the_perfect_model_is_the_environment(settings):
    env = make(64, **settings)
    grid = env_spec(Composer().compose(["env=sokoban"]).config.env, env).grid
    happened = np.zeros(4, dtype=int)
    for planes, actions, after, reward, terminated, events in random_play(env, 400):
        kept = planes.copy()
        imagined, their_events, their_end = grid.step(planes, actions, np.random.default_rng(0))
        assert np.array_equal(planes, kept)
        assert np.array_equal(imagined, after)
        assert imagined.dtype == np.uint8
        assert np.array_equal(their_events, events)
        assert np.array_equal(their_end, terminated)
        assert np.array_equal(grid.events_of(planes, actions, after, terminated), events)
        np.testing.assert_array_equal(events.astype(np.float32) @ grid.event_reward, reward)
        happened += events.sum(axis=0)
    assert (happened > 20).tolist() == [
        True,
        True,
        bool(settings),
        not settings,
    ]  # the only box ends it at home; four hardly meet by chance


def test_the_model_rounds_what_is_no_bit_and_survives_what_is_no_board():
    grid, rng = make(1).rules, np.random.default_rng(0)
    for planes in (rng.random((200, 4, 7, 7)), np.ones((3, 4, 7, 7)), np.zeros((3, 4, 7, 7), dtype=np.float32)):
        for action in range(4):
            after, events, terminated = grid.step(planes, np.full(len(planes), action), rng)
            assert set(np.unique(after)) <= {0, 1}
            assert events.shape == (len(planes), 4)
            assert terminated.shape == (len(planes),)
    board = make(1).reset(seed=np.array([3]))[0]
    soft = board * 0.6 + 0.2
    assert np.array_equal(grid.step(soft, np.array([1]), rng)[0], grid.step(board, np.array([1]), rng)[0])


# Levels


@pytest.mark.parametrize(("size", "num_boxes", "pulls"), [(5, 1, 12), (7, 1, 12), (7, 2, 4), (7, 4, 12), (10, 4, 30), (12, 7, 12)])
def test_every_generated_level_is_solved_by_its_solution(size, num_boxes, pulls):
    levels = generate(np.arange(400), size=size, num_boxes=num_boxes, pulls=pulls, min_distance=1)
    grid = make(1, size=size, num_boxes=num_boxes).rules
    for board, pushes, num_pushes in zip(*levels, strict=True):
        bits = {bit: board & bit != 0 for bit in (WALL, GOAL, BOX, PLAYER)}
        assert (bits[PLAYER].sum(), bits[GOAL].sum(), bits[BOX].sum()) == (1, num_boxes, num_boxes)
        assert not (bits[GOAL] & bits[BOX]).any()
        assert not (bits[WALL] & (bits[GOAL] | bits[BOX] | bits[PLAYER])).any()
        assert not (bits[BOX] & bits[PLAYER]).any()
        assert bits[WALL].sum() >= 4 * (size - 1)
        planes = np.stack(list(bits.values()))[None].astype(np.uint8)
        reference = Reference(grid.ansi(planes[0]))
        solved = [reference.step(action)[1] for action in solution(board, pushes[:num_pushes])]
        assert solved == [False] * (len(solved) - 1) + [True]


def test_difficulty_grows_with_its_knobs():
    def mean_pushes(**knobs: int) -> float:
        base = {"size": 9, "num_boxes": 2, "pulls": 12, "min_distance": 1}
        return float(generate(np.arange(500), **base | knobs).num_pushes.mean())

    assert mean_pushes(pulls=3) < mean_pushes() < mean_pushes(pulls=60)
    assert mean_pushes() < mean_pushes(min_distance=4)
    boards = generate(np.arange(500), size=7, num_boxes=1, pulls=12, min_distance=3).boards
    goal, box = (np.argwhere(boards & bit)[:, 1:] for bit in (GOAL, BOX))
    assert abs(goal - box).sum(axis=1).min() >= 3


def test_levels_follow_from_the_seed_alone():
    seeds = np.random.default_rng(0).integers(2**31, size=500)
    first = make(500).reset(seed=seeds)[0].copy()
    assert np.array_equal(first, make(500).reset(seed=seeds)[0])
    assert np.array_equal(first[7], make(1).reset(seed=seeds[7:8])[0][0])  # the place in the batch plays no part
    neighbours = make(500).reset(seed=np.arange(500))[0]
    assert len(np.unique(neighbours, axis=0)) > 490


# Snapshots and interfaces


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(plain(state), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("observation", ["planes", "rgb"])
def test_a_snapshot_amid_episodes_continues_identically(observation):
    env, again = (make(8, max_episode_steps=23, observation=observation) for _ in range(2))
    for _ in random_play(env, 50):
        pass
    again.load_state_dict(through_a_file(env.state_dict()))
    assert np.array_equal(env._obs, again._obs)
    rng = np.random.default_rng(1)
    for _ in range(60):
        actions, seeds = rng.integers(4, size=8), rng.integers(2**31, size=8)
        ours, theirs = env.step(actions), again.step(actions)
        assert all(np.array_equal(a, b) for a, b in zip(ours[:4], theirs[:4], strict=True))
        mask = ours[2] | ours[3]
        assert np.array_equal(
            env.reset(seed=seeds, options={"reset_mask": mask})[0], again.reset(seed=seeds, options={"reset_mask": mask})[0]
        )


def test_a_partial_reset_leaves_the_others_alone():
    env = make(3)
    env.reset(seed=np.array([1, 2, 3]))
    before = env.step(np.array([0, 1, 2]))[0].copy()
    after = env.reset(seed=np.array([7, 8, 9]), options={"reset_mask": np.array([False, True, False])})[0]
    assert np.array_equal(after[[0, 2]], before[[0, 2]])
    assert np.array_equal(after[1], make(1).reset(seed=np.array([8]))[0][0])
    assert env._elapsed.tolist() == [1, 0, 1]


@pytest.mark.parametrize("kwargs", [{}, {"observation": "rgb", "size": 10, "num_boxes": 4}])
def test_gymnasium_accepts_the_single_environment(kwargs):
    for mode in ("rgb_array", "ansi"):
        check_env(gymnasium.make(ID, render_mode=mode, disable_env_checker=True, **kwargs).unwrapped)


def test_the_single_environment_plays_the_episodes_of_the_batch():
    env, batch, rng = VectorEnvFactory(ID, native=False)(2), VectorEnvFactory(ID)(2), np.random.default_rng(0)
    assert isinstance(env, GymVectorEnv)
    assert env.single_observation_space == batch.single_observation_space
    assert np.array_equal(env.reset(seed=np.array([5, 6]))[0], batch.reset(seed=np.array([5, 6]))[0])
    for _ in range(119):
        actions = rng.integers(4, size=2)
        for ours, theirs in zip(env.step(actions)[:4], batch.step(actions)[:4], strict=True):
            assert np.array_equal(ours, theirs)
        if theirs.any():
            break


def test_pictures_are_as_large_as_they_say(tmp_path):
    text = "######\n#@$. #\n######"
    env = from_text(tmp_path, text, observation="rgb")
    assert env._obs.shape == (1, 24, 48, 3)
    assert len(np.unique(env._obs[0, ::8, ::8].reshape(-1, 3), axis=0)) == 5  # wall, player, box, goal, floor
    assert env.grid is None
    single = gymnasium.make(ID, render_mode="ansi", levels=str(tmp_path / "level.txt"))
    single.reset(seed=0)
    assert single.render() == text
    assert single.unwrapped.observation_space.shape == (4, 3, 6)


# Settings


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"boxs": 2},
            r"env.kwargs.boxs: rlx/Sokoban-v0 has no such setting; .*It has eval_levels, levels, max_episode_steps, min_distance, ",
        ),
        ({"num_box": 2}, "did you mean env.kwargs.num_boxes?"),
        ({"size": "big"}, "env.kwargs.size must be a whole number from 5 to 50, or null, got 'big'"),
        ({"size": 4}, "env.kwargs.size must be"),
        ({"num_boxes": 5}, "env.kwargs.num_boxes must be at most 4 in a generated level of size 7, got 5"),
        ({"min_distance": 4}, "env.kwargs.min_distance must be at most 3 in a level of size 7, got 4"),
        ({"levels": "x", "pulls": 3}, "env.kwargs.pulls must be left out where levels come from files, got 3"),
        ({"observation": "words"}, "env.kwargs.observation must be planes or rgb, got 'words'"),
        ({"max_episode_steps": True}, "env.kwargs.max_episode_steps must be a whole number"),
    ],
)
def test_settings_that_cannot_be_are_refused(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        settings_of(ID, kwargs)


@pytest.mark.parametrize("native", [True, False])
def test_settings_are_checked_however_the_environment_is_made(native):
    with pytest.raises(ConfigError, match=r"^env\.kwargs\.boxs: rlx/Sokoban-v0 has no such setting"):
        VectorEnvFactory(ID, {"boxs": 2}, native=native)(1)


def test_the_file_of_settings_shows_the_defaults():
    config = Composer().compose(["env=sokoban"]).config.env
    assert settings_of(ID, config.kwargs) == settings_of(ID, {})
    assert set(config.kwargs) == set(settings_of(ID, {}).__dataclass_fields__)


# Files


GOOD = "; 7\n#####\n#@$.#\n#####\n\n; 8\n#####\n#.$@#\n#####\n"


def test_levels_are_read_in_order_and_drawn_by_the_seed(tmp_path):
    for name, text in (("b.txt", "#####\n# +$#\n#####\n"), ("a.txt", GOOD), ("LICENCE.txt", "Copyright\n")):
        (tmp_path / name).write_text(text.replace("\n", "\r\n"))
    levels = read_levels(tmp_path, size=None, num_boxes=None)
    assert levels.shape == (3, 3, 5)
    assert levels[0].tolist() == [[WALL] * 5, [WALL, PLAYER, BOX, GOAL, WALL], [WALL] * 5]
    assert levels[2, 1].tolist() == [WALL, 0, PLAYER | GOAL, BOX, WALL]
    env = make(600, levels=str(tmp_path))
    first = env.reset(seed=np.arange(600))[0].copy()
    _, counts = np.unique(first, axis=0, return_counts=True)
    assert len(counts) == 3
    assert counts.min() > 150
    assert np.array_equal(first[5], make(1, levels=str(tmp_path)).reset(seed=np.array([5]))[0][0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("#.$@#", "#.$ #"), r"a.txt:7: the level that begins here has 0 players; expected 1, written @ or \+"),
        (GOOD.replace("#.$@#", "#@$@#"), "a.txt:7: the level that begins here has 2 players"),
        (GOOD.replace("#.$@#", "#$$@#"), r"a.txt:7: the level that begins here has 2 boxes .* and 0 goals .*; expected equal numbers"),
        (GOOD.replace("#.$@#", "#  @#"), "a.txt:7: the level that begins here has 0 boxes; expected at least 1"),
        (GOOD.replace("#.$@#", "#.x@#"), "a.txt:8: column 3 is the unknown character 'x'; expected one of '#', ' ', "),
        (GOOD.replace("#.$@#", "#.$ @#"), "a.txt:8: the row has 6 cells; expected 5, as the first level, .*a.txt:2 has"),
        (GOOD.replace("#.$@#", "#.$@#\n#   #"), "a.txt:7: the level that begins here has 4 rows; expected 3, as the first level"),
        (GOOD.replace("#.$@#", "# *@#"), "a.txt:7: the level that begins here has every box on a goal already"),
        (GOOD.replace("#.$@#", " .$@#"), "a.txt:7: the level that begins here has 1 cells at its border that are no wall"),
        ("; nothing\n\n", "a.txt: holds no level; expected lines of '#', ' ', "),
    ],
)
def test_malformed_levels_are_named_by_file_and_line(text, message, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_levels(tmp_path / "a.txt", size=None, num_boxes=None)


def test_levels_that_do_not_fit_the_settings_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"a.txt:2: the row has 5 cells; expected 7, as env.kwargs.size has"):
        read_levels(tmp_path, size=7, num_boxes=None)
    with pytest.raises(ConfigError, match=r"a.txt:2: the level that begins here has 1 boxes; expected env.kwargs.num_boxes=2"):
        read_levels(tmp_path, size=None, num_boxes=2)
    with pytest.raises(ConfigError, match=r"env.kwargs.levels=.*absent: cannot be read \(it is missing\)"):
        read_levels(tmp_path / "absent", size=None, num_boxes=None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty: holds no level; expected a file, or a directory"):
        read_levels(tmp_path / "empty", size=None, num_boxes=None)


def test_a_path_of_levels_that_has_no_end_is_refused_at_once_and_a_link_to_levels_is_followed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("rlx.envs.grids.boxoban.LIMIT", 100)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_text("#" * 101)
    (tmp_path / "level").write_text("#####\n#@$.#\n#   #\n#   #\n#####\n")
    (tmp_path / "link").symlink_to(tmp_path / "level")
    for path, reason in ((tmp_path / "fifo", "FIFO"), (Path("/dev/zero"), "device"), (tmp_path / "large", "more than 100 bytes")):
        with pytest.raises(ConfigError, match=rf"env.kwargs.levels={path}: cannot be read \(it .*{reason}"):
            read_levels(path, size=None, num_boxes=None)
    assert len(read_levels(tmp_path / "link", size=None, num_boxes=None)) == 1


def test_a_snapshot_is_refused_where_the_files_have_changed(tmp_path):
    env = from_text(tmp_path, GOOD)
    other = from_text(tmp_path, GOOD.replace("#.$@#", "#@$.#"))
    with pytest.raises(CheckpointError, match="levels are not those"):
        other.load_state_dict(env.state_dict())


@needs_boxoban
def test_boxobans_files_are_read_and_played():
    files = sorted(BOXOBAN.rglob("0*.txt"))
    assert len(files) >= 10
    env = make(256, levels=str(BOXOBAN))
    assert env.rules.planes_shape == (4, 10, 10)
    planes = env.reset(seed=np.arange(256))[0].copy()
    assert planes.sum(axis=(2, 3))[:, 1:].tolist() == [[4, 4, 1]] * 256
    first = read_levels(files[0], size=10, num_boxes=4)
    lines = [line for line in files[0].read_text().splitlines() if line.startswith("#")]
    assert len(first) * 10 == len(lines)
    bits = np.stack([first[0] & bit != 0 for bit in (WALL, GOAL, BOX, PLAYER)]).astype(np.uint8)
    assert env.rules.ansi(bits) == "\n".join(lines[:10])
