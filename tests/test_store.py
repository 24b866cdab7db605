"""Directories of runs and sweeps: notes and tags, results of evaluations, and deleting."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from rlx.config.compose import Composer
from rlx.config.override_types import read_overrides
from rlx.errors import ConfigError
from rlx.store.evaluations import keep_evaluation, read_evaluations
from rlx.store.labels import Labels
from rlx.store.removal import find_removals, remove
from rlx.store.runs import RunDir, new_meta
from rlx.store.sweep_spec import Point, Spec
from rlx.store.sweeps import SweepDir
from rlx.store.wandb_settings import wandb_notes, wandb_tags

Command = Callable[[str], tuple[int, str, str]]
ARGUMENTS = ["algo=ppo", "env=cartpole", "loop.total_env_steps=64", "env.num_envs=4", "algo.rollout_length=16", "log.wandb=disabled",
             "loop.eval_episodes=1", "log.console=quiet"]  # fmt: skip
COMPOSED = Composer().compose(ARGUMENTS)
RESULT = {"env_steps": 64, "episodes": 5, "return_mean": 21.5, "return_std": 2.0}


@pytest.fixture
def root(here: Path) -> Path:
    return here / "runs"


def new_run(root: Path, name: str, labels: Labels | None = None) -> RunDir:
    return RunDir.create(root, name, COMPOSED.config, new_meta(COMPOSED, labels or Labels()))


def new_sweep(root: Path, name: str, labels: Labels | None = None) -> SweepDir:
    overrides = read_overrides(ARGUMENTS)
    spec = Spec(overrides=overrides, seeds=[0, 1], swept=[], objective="eval/return_mean")
    sweep = SweepDir.create(root, name, spec, {"000": Point(overrides=tuple(overrides), values={})}, labels=labels or Labels())
    for seed in spec.seeds:
        sweep.create_run("000", seed, COMPOSED, {})
    return sweep


# Notes and tags


def test_notes_and_tags_are_kept_listed_shown_and_sent_to_wandb(root: Path, run_command: Command) -> None:
    run = new_run(root, "car", Labels.given("first try", ["a,b", "c"]))
    new_run(root, "other")
    assert (run.labels.notes, run.labels.tags) == ("first try", ("a", "b", "c"))
    listed = [json.loads(line) for line in run_command("ls --tag b --json")[1].splitlines()]
    assert [(row["run"], row["tags"]) for row in listed] == [("car", ["a", "b", "c"])]
    out = run_command("show car")[1]
    assert "tags: a, b, c\n" in out
    assert "first try\n" in out
    assert wandb_tags(COMPOSED.config, run.meta())[-3:] == ["a", "b", "c"]
    assert wandb_notes(run.meta()) == "first try"
    assert wandb_notes({}) is None


def test_train_keeps_notes_and_tags_and_the_same_command_replaces_them(here: Path, run_command: Command) -> None:
    command = f"train {' '.join(ARGUMENTS)} --name car --auto-resume"
    assert run_command(f"{command} --notes one --tags x")[0] == 0
    assert RunDir(here / "runs/car").labels == Labels(notes="one", tags=("x",))
    assert run_command(f"{command} --tags y,z")[0] == 0
    run = RunDir(here / "runs/car")
    assert run.labels == Labels(notes="one", tags=("y", "z"))
    assert run.is_own()


def test_runs_of_a_sweep_have_its_notes_and_tags(root: Path) -> None:
    sweep = new_sweep(root, "lr", Labels(notes="n", tags=("t",)))
    assert [run.labels for run in sweep.runs()] == [sweep.labels] * 2 == [Labels(notes="n", tags=("t",))] * 2
    sweep.set_labels(Labels(tags=("u",)))
    assert [run.labels for run in sweep.runs()] == [sweep.labels] * 2 == [Labels(notes="n", tags=("u",))] * 2
    assert sweep.is_own()


@pytest.mark.parametrize("tags", ["a,,b", "", "x" * 65, "a\x1b[31m"])
def test_a_tag_that_cannot_be_is_refused(tags: str) -> None:
    with pytest.raises(ConfigError, match="expected tags of 1 to 64 printable characters"):
        Labels.given(None, [tags])


@pytest.mark.parametrize("meta", [{"tags": "a"}, {"tags": [1, None, {}], "notes": 7}, {"tags": {"a": 1}}])
def test_foreign_notes_and_tags_of_another_type_are_none(meta: dict[str, object]) -> None:
    assert not Labels.of(meta)


# Results of evaluations


def test_results_of_eval_are_kept_with_the_run_and_shown(here: Path, run_command: Command) -> None:
    assert run_command(f"train {' '.join(ARGUMENTS)} --name car")[0] == 0
    printed = json.loads(run_command("eval car --episodes 2 --seed 3 --json")[1])
    (kept,) = read_evaluations(here / "runs/car").good
    assert {key: kept[key] for key in printed} == printed
    assert (kept["seed"], kept["env_steps"]) == (3, 64)
    out = run_command("show car")[1]
    assert "Evaluations" in out
    assert "seed=3" in out


def test_damaged_and_foreign_lines_are_skipped_and_counted(root: Path, run_command: Command) -> None:
    run = new_run(root, "car")
    assert keep_evaluation(run.path, RESULT) == ""
    good = (run.path / "evaluations.jsonl").read_text()
    lines = [
        good,
        "garbage\n",
        "{}\n",
        good.replace("21.5", "NaN"),
        good.replace("64", '"64"'),
        good.replace('"at": "', '"at": "x'),
        "[1]\n",
    ]
    (run.path / "evaluations.jsonl").write_text("".join(lines) + good[:20])
    found = read_evaluations(run.path)
    assert (len(found.good), found.num_skipped) == (1, 7)
    assert keep_evaluation(run.path, RESULT) == ""  # behind half a line
    assert len(read_evaluations(run.path).good) == 2
    details = json.loads(run_command("show car --json")[1])
    assert "7 lines of evaluations.jsonl cannot be read" in details["problem"]


def test_a_result_that_cannot_be_kept_is_a_note_and_no_error(root: Path, tmp_path: Path) -> None:
    run = new_run(root, "car")
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (run.path / "evaluations.jsonl").symlink_to(outside)
    assert "is not kept with the run" in keep_evaluation(run.path, RESULT)
    assert outside.read_text() == "mine"
    assert read_evaluations(run.path).problem == "evaluations.jsonl is a link, and no file"


# Deleting


def test_rm_deletes_runs_and_sweeps_and_nothing_beside_them(root: Path, run_command: Command) -> None:
    new_run(root, "car-1")
    new_run(root, "car-2")
    new_run(root, "kept")
    new_sweep(root, "lr")
    assert run_command("rm 'car-*' lr/000-s0 --yes")[0] == 0
    assert sorted(p.name for p in root.iterdir()) == ["kept", "lr"]
    assert [run.name for run in SweepDir(root / "lr").runs()] == ["000-s1"]
    assert run_command("rm lr lr/000-s1 kept --yes")[0] == 0
    assert list(root.iterdir()) == []


def test_a_dry_run_lists_and_deletes_nothing(root: Path, run_command: Command) -> None:
    new_sweep(root, "lr")
    code, out, _ = run_command("rm lr --dry-run")
    assert code == 0
    assert "sweep of 2 runs" in out
    assert len(SweepDir(root / "lr").runs()) == 2


def test_rm_asks_and_takes_only_yes_for_an_answer(root: Path, run_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    new_run(root, "car")
    assert run_command("rm car")[0] == 2  # there is no terminal to ask
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda question: False)
    assert run_command("rm car")[0] == 1
    assert (root / "car").exists()
    monkeypatch.setattr("typer.confirm", lambda question: True)
    assert run_command("rm car")[0] == 0
    assert not (root / "car").exists()


def test_what_is_being_trained_is_not_deleted(root: Path) -> None:
    run, sweep = new_run(root, "car"), new_sweep(root, "lr")
    chosen = find_removals(root, ["car", "lr"])
    with run.lock(), sweep.runs()[1].lock():
        for name in ("car", "lr"):
            with pytest.raises(ConfigError, match="in use"):
                find_removals(root, [name])
        for removal in chosen:
            with pytest.raises(ConfigError, match="in use"):
                remove(removal)
    assert (root / "car").exists()
    assert len(sweep.runs()) == 2


def test_links_are_not_followed_out_of_a_run_that_is_deleted(root: Path, tmp_path: Path) -> None:
    run = new_run(root, "car")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    (run.path / "checkpoints").symlink_to(outside)
    os.link(outside / "mine", run.path / "hard")
    mode = stat.S_IMODE(outside.stat().st_mode)
    for removal in find_removals(root, ["car"]):
        remove(removal)
    assert (outside / "mine").read_text() == "mine"
    assert stat.S_IMODE(outside.stat().st_mode) == mode
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("where", ["link", "conf", ".", "runs"])
def test_what_may_be_no_run_is_refused(where: str, root: Path, here: Path) -> None:
    run = new_run(root, "car")
    (root / "link").symlink_to(run.path)
    for directory in (here / "conf", here, root):
        directory.mkdir(exist_ok=True)
        (directory / "config.yaml").write_text("name: x")
    with pytest.raises(ConfigError, match="no run"):
        find_removals(root, [where])
    assert (run.path / "meta.json").exists()
