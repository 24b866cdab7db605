"""A search's study: suggestions that no restart repeats, pruning, and several processes on one storage."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from rlx.config.compose import Composer
from rlx.config.override_types import read_overrides
from rlx.errors import ConfigError, StorageError
from rlx.store.sweep_spec import Point
from rlx.sweep import study as module
from rlx.sweep.space import SearchSpace
from rlx.sweep.study import PRUNERS, SAMPLERS, Study

COMPOSER = Composer()
WORDS = ["algo=ppo", "env=cartpole", "algo.learning_rate=interval(1e-5,1e-1)", "algo.num_epochs=interval(1,20)"]
LISTED = ["algo=ppo", "env=cartpole", "algo.clip=0.1,0.2,0.3", "algo.num_epochs=range(1,5)"]


def study(path: Path | str, words: list[str] = WORDS, *, sampler: str = "tpe", **changes: Any) -> Study:
    storage = path if isinstance(path, str) else f"sqlite:///{path}"
    settings = {"pruner": "none", "direction": "maximize", "seed": 0, "num_rungs": 1, "objective": "x", **changes}
    return Study(storage, "search", SearchSpace(read_overrides(words), COMPOSER), sampler=sampler, **settings)


def value(point: Point) -> float:
    """Best at a learning rate of 1e-3."""
    return -abs(math.log10(point.values.get("algo.learning_rate", 1e-3)) + 3.0)


def ask(opened: Study, times: int) -> list[Point]:
    """Ask and tell, one after the other."""
    points = []
    for _ in range(times):
        number, point = opened.ask()
        opened.tell(number, value(point), "complete")
        points.append(point)
    return points


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_a_study_taken_up_again_goes_on_as_if_it_had_not_stopped(sampler: str, tmp_path: Path) -> None:
    whole = ask(study(tmp_path / "whole.db", sampler=sampler), 13)  # TPE draws the first ten at random
    parts = ask(study(tmp_path / "parts.db", sampler=sampler), 5)
    parts += ask(study(tmp_path / "parts.db", sampler=sampler), 6)
    parts += ask(study(tmp_path / "parts.db", sampler=sampler), 2)
    assert parts == whole
    assert len({point.overrides for point in whole}) == 13


def test_a_grid_is_asked_point_by_point_once_each_in_an_order_that_follows_from_the_seed(tmp_path: Path) -> None:
    points = ask(study(tmp_path / "a.db", LISTED, sampler="grid"), 5) + ask(study(tmp_path / "a.db", LISTED, sampler="grid"), 7)
    assert len({point.overrides for point in points}) == 12
    assert ask(study(tmp_path / "b.db", LISTED, sampler="grid"), 12) == points
    assert ask(study(tmp_path / "c.db", LISTED, sampler="grid", seed=1), 12) != points


def test_other_seeds_suggest_other_points(tmp_path: Path) -> None:
    assert ask(study(tmp_path / "a.db", sampler="random"), 3) != ask(study(tmp_path / "b.db", sampler="random", seed=1), 3)


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "gp"])
def test_every_sampler_stays_in_the_space(sampler: str, tmp_path: Path) -> None:
    for point in ask(study(tmp_path / "a.db", sampler=sampler), 12):
        assert 1e-5 <= point.values["algo.learning_rate"] <= 1e-1
        assert point.values["algo.num_epochs"] in range(1, 21)
        COMPOSER.compose(point.arguments)
    assert "gp" in SAMPLERS


def test_tpe_comes_nearer_to_the_best_than_chance_does(tmp_path: Path) -> None:
    def late(sampler: str) -> float:
        values = [value(point) for point in ask(study(tmp_path / f"{sampler}.db", sampler=sampler), 30)]
        return sum(values[10:]) / 20

    assert late("tpe") > late("random") + 0.4


def test_cmaes_says_what_to_install(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    try:
        import cmaes  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match="pip install cmaes"):
            study(tmp_path / "a.db", sampler="cmaes")


def test_keys_of_one_algorithm_are_not_suggested_for_another(tmp_path: Path) -> None:
    points = ask(study(tmp_path / "a.db", ["algo=ppo,a2c", "env=cartpole", "algo.clip=interval(0.1,0.3)"]), 14)
    assert {point.values["algo"] for point in points} == {"ppo", "a2c"}
    assert all(("algo.clip" in point.values) == (point.values["algo"] == "ppo") for point in points)


# A process that dies


def test_a_trial_that_was_running_is_the_same_point_again(tmp_path: Path) -> None:
    number, point = study(tmp_path / "a.db").ask()
    again = study(tmp_path / "a.db")
    assert again.unfinished() == [number]
    assert again.again(number) == point
    again.tell(number, 1.0, "complete")
    assert again.unfinished() == []


def test_reporting_and_telling_twice_changes_nothing(tmp_path: Path) -> None:
    opened = study(tmp_path / "a.db", pruner="median", num_rungs=3)
    number, _ = opened.ask()
    opened.report(number, 0, 1.0)
    opened.report(number, 0, 2.0)
    opened.tell(number, 3.0, "complete")
    opened.tell(number, 9.0, "complete")
    best = study(tmp_path / "a.db", pruner="median", num_rungs=3).best()
    assert best is not None
    assert best[:2] == (number, 3.0)


def test_a_failed_trial_is_one_of_those_asked_for_and_values_that_are_no_numbers_fail_theirs(tmp_path: Path) -> None:
    opened = study(tmp_path / "a.db")
    for outcome, reached in (("complete", math.nan), ("failed", None), ("complete", 1.0), ("pruned", None)):
        number, _ = opened.ask()
        if outcome == "pruned":
            opened.report(number, 0, 0.5)
        opened.tell(number, reached, outcome)  # type: ignore[arg-type]
    assert opened.claimed() == 4
    assert opened.best() is not None
    assert opened.best()[0] == 2  # type: ignore[index]
    opened.ask()
    assert opened.claimed() == 5


@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_a_failed_trial_tried_again_is_the_same_point_under_the_same_number_and_no_other_trial(sampler: str, tmp_path: Path) -> None:
    opened = study(tmp_path / "a.db", LISTED, sampler=sampler)
    (first, point), (second, other) = opened.ask(), opened.ask()
    opened.tell(first, None, "failed")
    for _ in range(2):  # a process that takes the search up, and one after it died
        again = study(tmp_path / "a.db", LISTED, sampler=sampler)
        assert again.again(first) == point
    assert (again.claimed(), again.unfinished(), again.ended()) == (2, [second], set())
    again.tell(first, 9.0, "complete")
    best = again.best()
    assert best is not None
    assert best[:2] == (first, 9.0)
    assert again.ended() == {first}
    if sampler == "grid":
        points = [point, other, *ask(again, 10)]
        assert len({p.overrides for p in points}) == 12


@pytest.mark.parametrize(("direction", "best"), [("maximize", 5.0), ("minimize", 1.0)])
def test_the_best_is_in_the_direction_asked_for(direction: str, best: float, tmp_path: Path) -> None:
    opened = study(tmp_path / "a.db", direction=direction)
    for reached in (3.0, 1.0, 5.0):
        opened.tell(opened.ask()[0], reached, "complete")
    found = opened.best()
    assert found is not None
    assert found[1] == best


# Pruning


@pytest.mark.parametrize("pruner", ["median", "halving", "hyperband"])
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_trial_clearly_worse_than_others_is_pruned_and_a_better_one_is_not(pruner: str, direction: str, tmp_path: Path) -> None:
    opened = study(tmp_path / "a.db", pruner=pruner, num_rungs=3, direction=direction, sampler="random")
    sign = 1.0 if direction == "maximize" else -1.0
    for reached in (50.0, 51.0, 52.0, 53.0, 54.0, 55.0, 56.0, 57.0, 58.0):
        number, _ = opened.ask()
        for rung in range(3):
            opened.report(number, rung, sign * reached)
        opened.tell(number, sign * reached, "complete")
    pruned = {}
    for reached in (1.0, 100.0, 2.0, 101.0, 3.0, 102.0, 4.0, 103.0):
        number, _ = opened.ask()
        pruned[reached] = any(opened.report(number, rung, sign * reached) for rung in range(3))
        opened.tell(number, None if pruned[reached] else sign * reached, "pruned" if pruned[reached] else "complete")
    assert [pruned[r] for r in (100.0, 101.0, 102.0, 103.0)] == [False] * 4
    bad = [pruned[r] for r in (1.0, 2.0, 3.0, 4.0)]
    assert all(bad) if pruner != "hyperband" else any(bad)  # one of hyperband's brackets trains to the end whatever it reaches


def test_no_pruner_prunes_nothing(tmp_path: Path) -> None:
    opened = study(tmp_path / "a.db")
    for reached in (9.0, 9.0, 9.0, 9.0, 9.0, 0.0):
        number, _ = opened.ask()
        assert not opened.report(number, 0, reached)
        opened.tell(number, reached, "complete")
    assert "none" in PRUNERS


# Who may join


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": "y"}, "objective x there and y here"),
        ({"direction": "minimize"}, "direction maximize there and minimize here"),
        ({"words": [*WORDS[:2], "algo.learning_rate=interval(1e-4,1e-1)", WORDS[3]]}, "algo.learning_rate 1e-05 to 0.1, log scale there"),
        ({"words": WORDS[:3]}, "algo.num_epochs 1 to 20, whole numbers, linear scale there and not searched here"),
        ({"words": ["algo=ppo", "env=acrobot", *WORDS[2:]]}, "env =cartpole there and =acrobot here"),
    ],
)
def test_a_study_of_this_name_that_is_another_search_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    study(tmp_path / "a.db").ask()
    with pytest.raises(ConfigError, match=said):
        study(tmp_path / "a.db", **changes)


def test_a_study_that_others_made_is_refused(tmp_path: Path) -> None:
    import optuna

    made = optuna.create_study(storage=f"sqlite:///{tmp_path / 'a.db'}", study_name="search", direction="maximize")
    made.tell(made.ask(), 1.0)
    with pytest.raises(ConfigError, match="was not made by rlx"):
        study(tmp_path / "a.db")


def test_a_file_journal_is_a_storage_too(tmp_path: Path) -> None:
    url = f"journal:{tmp_path / 'journal.log'}"
    number, point = study(url).ask()
    assert study(url).again(number) == point


@pytest.mark.parametrize("url", ["foo", "nosuchdatabase://x/y", "sqlite:////missing/a.db", "journal:/missing/a"])
def test_a_storage_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="expected an Optuna storage URL"):
        study(url)


def test_a_driver_that_is_missing_is_named_and_the_password_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> None:
        raise ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2")

    monkeypatch.setattr(module, "_storage", refuse)
    with pytest.raises(ConfigError, match=r"postgresql://me:\*\*\*@nowhere/x: needs a package: pip install psycopg2-binary"):
        study("postgresql://me:sec@ret@nowhere/x")


def test_a_storage_that_fails_later_can_be_used_again_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = study(tmp_path / "a.db")
    monkeypatch.setattr(opened._study, "ask", _locked)
    with pytest.raises(StorageError, match="nothing is lost: repeat the command"):
        opened.ask()


def _locked(*_: Any) -> None:
    raise OperationalError("CREATE", {}, Exception("table studies already exists, and database is locked"))


def test_a_storage_whose_tables_another_process_is_making_is_opened_a_moment_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, refused = module._storage, [1]

    def refuse_once(url: str) -> Any:
        return _locked() if refused and refused.pop() else whole(url)

    monkeypatch.setattr(module, "_storage", refuse_once)
    assert study(tmp_path / "a.db").claimed() == 0


def test_processes_share_a_study_and_get_trials_of_their_own(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; from test_study import study, ask\n"
        "opened = study(Path(sys.argv[1]), sampler='random')\n"
        "for _ in range(6):\n    n, p = opened.ask(); opened.tell(n, 1.0, 'complete'); print(n)"
    )
    study(tmp_path / "a.db", sampler="random")
    command = [sys.executable, "-c", code, str(tmp_path / "a.db"), str(Path(__file__).parent)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    numbers = [int(n) for p in processes for n in p.communicate(timeout=120)[0].split()]
    assert sorted(numbers) == list(range(12))
    assert study(tmp_path / "a.db", sampler="random").claimed() == 12
