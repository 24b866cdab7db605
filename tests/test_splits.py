"""Levels for training and for evaluation: never the same, whatever they come from, and however the environment is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlx.config.compose import Composer
from rlx.envs.grids import sokoban_levels
from rlx.envs.grids.grid_env import make_grid
from rlx.envs.grids.grid_settings import settings_of
from rlx.envs.grids.minipacman import level_keys
from rlx.envs.grids.sokoban_levels import BOX, GOAL, PLAYER, WALL, generate
from rlx.envs.grids.splits import in_split, keys_of
from rlx.envs.registry import EnvFactory, VectorEnvFactory
from rlx.errors import ConfigError, EnvError

SOKOBAN, MINIPACMAN = "rlx/Sokoban-v0", "rlx/MiniPacman-v0"
BOXOBAN = Path(__file__).resolve().parents[2] / "shared" / "data" / "boxoban"
needs_boxoban = pytest.mark.skipif(not BOXOBAN.is_dir(), reason=f"Boxoban's levels are not in {BOXOBAN}")
NUM = 3000


def boards_of(planes: np.ndarray) -> np.ndarray:
    return sum((planes[:, i].astype(np.uint8) * bit for i, bit in enumerate((WALL, GOAL, BOX, PLAYER))), np.uint8(0))


def both(env_id: str = SOKOBAN, num: int = NUM, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Observations in which episodes of training and of evaluation begin, with unlike seeds."""
    factory = VectorEnvFactory(env_id, kwargs)
    training, evaluation = factory.training(num)[0], factory(num)
    return training.reset(seed=np.arange(num))[0].copy(), evaluation.reset(seed=np.arange(num) + 10**6)[0].copy()


def shared(a: np.ndarray, b: np.ndarray) -> float:
    """The share of b that is in a."""
    seen = {x.tobytes() for x in a}
    return float(np.mean([x.tobytes() in seen for x in b]))


# Which levels are the same


def test_a_level_is_the_same_turned_mirrored_and_with_the_player_elsewhere():
    boards = generate(np.arange(50), size=7, num_boxes=2, pulls=12, min_distance=1).boards
    keys = keys_of(boards)
    assert len(np.unique(keys)) > 45
    for turns in range(4):
        turned = np.rot90(boards, turns, axes=(1, 2))
        assert np.array_equal(keys_of(turned), keys)
        assert np.array_equal(keys_of(turned[:, :, ::-1] & ~np.uint8(PLAYER)), keys)
    boxes_moved = boards.copy()
    boxes_moved[boxes_moved == BOX] = 0
    assert not np.isin(keys_of(boxes_moved), keys).any()
    wide = np.array([[[WALL] * 6, [WALL, 0, BOX, GOAL, 0, WALL], [WALL] * 6]], dtype=np.uint8)
    assert keys_of(wide) == keys_of(np.rot90(wide, 1, axes=(1, 2))) == keys_of(wide[:, :, ::-1])


def test_one_level_in_five_is_for_evaluation():
    keys = keys_of(generate(np.arange(NUM), size=10, num_boxes=4, pulls=12, min_distance=1).boards)
    evaluation = in_split(keys, "evaluation")
    assert evaluation.mean() == pytest.approx(0.2, abs=0.03)
    assert np.array_equal(in_split(keys, "training"), ~evaluation)
    assert in_split(keys, "all").all()


# Generated


@pytest.mark.parametrize(("size", "before"), [(5, 0.9), (7, 0.02)])
def test_no_level_of_an_evaluation_occurs_in_training(size: int, before: float):
    """Before, levels of both were drawn alike: 15.7 % of 7x7 were in 100,000 episodes of training, 99.7 % of 5x5."""
    alike = make_grid(settings_of(SOKOBAN, {"size": size}), NUM)
    assert shared(alike.reset(seed=np.arange(NUM))[0].copy(), alike.reset(seed=np.arange(NUM) + 10**6)[0]) > before
    training, evaluation = both(size=size)
    assert not np.isin(keys_of(boards_of(evaluation)), keys_of(boards_of(training))).any()
    assert len(np.unique(evaluation, axis=0)) > 100


@pytest.mark.parametrize("split", ["training", "evaluation"])
def test_a_level_follows_from_its_seed_alone(split: Any):
    env = make_grid(settings_of(SOKOBAN, {"size": 6}), 40, split=split)
    together = env.reset(seed=np.arange(40))[0].copy()
    one = make_grid(settings_of(SOKOBAN, {"size": 6}), 1, split=split)
    for i in range(40):
        assert np.array_equal(one.reset(seed=np.array([i]))[0][0], together[i])


def test_levels_that_were_drawn_again_are_solved_by_their_solution():
    levels = generate(np.arange(300), size=7, num_boxes=2, pulls=8, min_distance=1, split="evaluation")
    plain = generate(np.arange(300), size=7, num_boxes=2, pulls=8, min_distance=1)
    again = (levels.boards != plain.boards).any(axis=(1, 2))
    assert 0.6 < again.mean() < 0.95
    for board, pushes, num in zip(levels.boards, levels.pushes, levels.num_pushes, strict=True):
        cells = board.reshape(-1).copy()
        for box, action in pushes[:num]:
            assert cells[box] & BOX
            cells[box] &= ~np.uint8(BOX)
            cells[box + (-7, 7, -1, 1)[action]] |= BOX
        assert ((cells & BOX) != 0).tolist() == ((cells & GOAL) != 0).tolist()


@pytest.mark.parametrize("env_id", [SOKOBAN, MINIPACMAN])
def test_every_way_to_make_an_environment_knows_its_levels(env_id: str):
    native, single = VectorEnvFactory(env_id), VectorEnvFactory(env_id, native=False)
    seeds = np.arange(6)
    training = native.training(6)[0].reset(seed=seeds)[0].copy()
    evaluation = native(6).reset(seed=seeds)[0].copy()
    assert not np.array_equal(training, evaluation)
    assert np.array_equal(single.training(6)[0].reset(seed=seeds.tolist())[0], training)
    assert np.array_equal(single(6).reset(seed=seeds.tolist())[0], evaluation)
    assert np.array_equal(EnvFactory(env_id)().reset(seed=3)[0], evaluation[3]), "films and what else plays one board show evaluations"


def test_a_world_too_small_for_two_kinds_of_levels_says_how_large_is_enough(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sokoban_levels, "_REDRAWS", 3)
    with pytest.raises(EnvError, match=r"too few Sokoban levels with env.kwargs.size=5 .*use env.kwargs.size=7"):
        VectorEnvFactory(SOKOBAN, {"size": 5})(500).reset(seed=np.arange(500))


def test_the_split_is_no_setting_of_a_run():
    with pytest.raises(ConfigError, match="has no such setting"):
        Composer().compose(["env=sokoban", "env.kwargs.split=all"])


# MiniPacman


def test_later_levels_of_minipacman_are_split_too():
    """A player who stands still sees one level after the other where a clock ends them."""
    for split in ("training", "evaluation"):
        env = make_grid(settings_of(MINIPACMAN, {"task": "hunt"}), 64, split=split)  # type: ignore[arg-type]
        env.reset(seed=np.arange(64))
        assert in_split(level_keys(env._boards), split).all()  # type: ignore[arg-type]
        begun = 0
        for _ in range(170):
            levels = env.planes()[:, 11].sum(axis=(1, 2))
            env.step(np.full(64, 4))
            new = env.planes()[:, 11].sum(axis=(1, 2)) > levels
            begun += int(new.sum())
            if new.any():
                keys = level_keys({name: array[new] for name, array in env._boards.items()})
                assert in_split(keys, split).all()  # type: ignore[arg-type]
        assert begun > 30


# Files


def write(path: Path, levels: np.ndarray) -> str:
    cells = {WALL: "#", 0: " ", GOAL: ".", BOX: "$", BOX | GOAL: "*", PLAYER: "@", PLAYER | GOAL: "+"}
    path.write_text("\n\n".join("\n".join("".join(cells[int(c)] for c in row) for row in level) for level in levels) + "\n")
    return str(path)


def levels_of(begin: int, end: int) -> np.ndarray:
    """Levels that are all different, also turned."""
    boards = generate(np.arange(400), size=7, num_boxes=2, pulls=12, min_distance=1).boards
    return boards[np.sort(np.unique(keys_of(boards), return_index=True)[1])][begin:end]


def test_a_file_is_split_by_its_levels(tmp_path: Path):
    levels = levels_of(0, 100)
    training, evaluation = both(levels=write(tmp_path / "a.txt", levels))
    found = [np.unique(keys_of(boards_of(planes))) for planes in (training, evaluation)]
    assert not np.isin(found[1], found[0]).any()
    assert len(found[0]) + len(found[1]) == 100
    assert 10 <= len(found[1]) <= 30
    write(tmp_path / "a.txt", np.concatenate([levels_of(100, 150), levels]))
    assert np.isin(found[1], keys_of(boards_of(both(levels=str(tmp_path / "a.txt"))[1]))).all(), "more levels do not move the old ones"


def test_levels_for_evaluation_are_all_used_and_never_trained_on(tmp_path: Path):
    a, b = write(tmp_path / "a.txt", levels_of(0, 50)), write(tmp_path / "b.txt", levels_of(50, 70))
    training, evaluation = both(levels=a, eval_levels=b)
    assert len(np.unique(training, axis=0)) == 50
    assert len(np.unique(evaluation, axis=0)) == 20
    training, evaluation = both(eval_levels=b, num_boxes=2)  # training generates, the very levels that the file was made of too
    assert len(np.unique(evaluation, axis=0)) == 20
    assert not np.isin(keys_of(boards_of(training)), keys_of(boards_of(evaluation))).any()


def test_levels_for_evaluation_that_are_trained_on_are_refused_also_if_they_are_turned(tmp_path: Path):
    a = write(tmp_path / "a.txt", levels_of(0, 50))
    b = write(tmp_path / "b.txt", np.concatenate([levels_of(50, 60), np.rot90(levels_of(7, 9), 1, axes=(1, 2))]))
    for eval_levels, message in ((b, r"2 of its 12 levels are in .*number 11\)"), (a, "50 of its 50 levels")):
        for make in (lambda f: f(1), lambda f: f.training(1)):
            with pytest.raises(ConfigError, match=message):
                make(VectorEnvFactory(SOKOBAN, {"levels": a, "eval_levels": eval_levels}))


def test_a_file_of_which_nothing_is_left_for_one_of_both_is_refused(tmp_path: Path):
    level = levels_of(0, 1)
    path = write(tmp_path / "a.txt", level)
    missing = "training" if in_split(keys_of(level), "evaluation")[0] else "evaluation"
    factory = VectorEnvFactory(SOKOBAN, {"levels": path})
    with pytest.raises(ConfigError, match=f"none of its 1 levels is for {missing}.*env.kwargs.eval_levels"):
        factory(1) if missing == "evaluation" else factory.training(1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"eval_levels": 3}, "eval_levels must be a file, a directory or null"),
        ({"eval_levels": "nowhere"}, "env.kwargs.eval_levels=nowhere: cannot be read"),
    ],
)
def test_what_cannot_be_levels_for_evaluation_is_refused(kwargs: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        VectorEnvFactory(SOKOBAN, kwargs)(1)


@needs_boxoban
def test_boxobans_own_split_is_disjoint_and_one_of_its_files_is_split():
    train, valid = str(BOXOBAN / "unfiltered-train"), str(BOXOBAN / "unfiltered-valid")
    training, evaluation = both(num=200, levels=train, eval_levels=valid)
    assert not np.isin(keys_of(boards_of(evaluation)), keys_of(boards_of(training))).any()
    training, evaluation = both(levels=train)
    assert not np.isin(keys_of(boards_of(evaluation)), keys_of(boards_of(training))).any()
