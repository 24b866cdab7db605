"""Failures within a run: NaNs, environments that raise, workers that die. Saved files stay intact."""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from launch import contents, finish, left_over, lines, run_main, saved_steps, start, wait_for

from rlx.checkpoint import find_checkpoints
from rlx.config.compose import Composer
from rlx.config.saved import load_config
from rlx.errors import NonFiniteError, StorageError
from rlx.run import train
from rlx.store.record import Record, read_record
from rlx.store.rows import read_row
from rlx.store.runs import RunDir

Command = Callable[[str], tuple[int, str, str]]

FAULTY = """
from pathlib import Path
import gymnasium
import numpy as np

training = []  # the environments that are open and have been stepped

class Faulty(gymnasium.Env):
    '''Goes wrong at step 5 of an episode in the way that the file `fault` says.'''
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        self.evaluates = len(training) >= 4  # made once the collector's have begun

    def close(self):
        if self in training:
            training.remove(self)

    def reset(self, *, seed=None, options=None):
        self.random, self.steps = np.random.default_rng(seed), 0
        return self.random.normal(size=2).astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        if self not in training:
            training.append(self)
        obs, reward = self.random.normal(size=2).astype(np.float32), float(self.random.normal() + action)
        fault = Path("fault").read_text() if self.steps == 5 and Path("fault").exists() else ""
        if fault in ("nan", "inf") or fault == "nan in evaluation" and self.evaluates:
            reward = float(fault.split()[0])
        if fault == "nan observation":
            obs[0] = np.nan
        if fault == "raise" and training.index(self) == 2 and len(training) >= 4 or fault == "raise in evaluation" and self.evaluates:
            raise ZeroDivisionError("broken physics")
        return obs, reward, self.steps == 9, False, {}

gymnasium.register("Faulty-v0", Faulty)
"""
SETTINGS = [
    "algo=ppo", "env=faulty:Faulty-v0", "recipe=null", "env.num_envs=4", "algo.rollout_length=20", "algo.num_minibatches=2",
    "algo.normalize_observation=true", "algo.normalize_reward=true", "loop.log_every=100", "loop.eval_every=300", "loop.eval_episodes=3",
    "loop.checkpoint_every=160", "log.wandb=disabled", "log.console=plain",
]  # fmt: skip


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run that ended well after 400 env steps."""
    directory = tmp_path_factory.mktemp("healthy")
    (directory / "faulty.py").write_text(FAULTY)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as err:
        patch.chdir(directory)
        patch.delenv("RLX_RUNS_DIR", raising=False)
        patch.setattr(sys, "path", list(sys.path))
        code = run_main(f"train {' '.join(SETTINGS)} loop.total_env_steps=400 --name w", patch)
    assert (code, err.getvalue()) == (0, "")
    del sys.modules["faulty"], gymnasium.registry["Faulty-v0"]  # every test brings its own copy
    return directory


@pytest.fixture
def directory(healthy: Path, here: Path) -> Path:
    """A copy of it as the current directory."""
    return shutil.copytree(healthy, here, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)


RESUME = "resume w loop.total_env_steps=800 --trust"


def all_finite(tree: Any) -> bool:
    if isinstance(tree, torch.Tensor):
        return bool(torch.isfinite(tree).all())
    if isinstance(tree, dict):
        return all(map(all_finite, tree.values()))
    if isinstance(tree, list | tuple):
        return all(map(all_finite, tree))
    return not isinstance(tree, float) or math.isfinite(tree)


FAULTS = {
    "nan": (5, "environment 0 (Faulty-v0) gave a reward that is nan in step 5 of the episode with seed "),
    "inf": (5, "gave a reward that is inf in step 5"),
    "nan observation": (5, "gave an observation with nan at index 0 in step 5"),
    "raise": (5, "environment 2 (Faulty-v0) raised ZeroDivisionError in step: broken physics"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_and_leaves_the_last_checkpoint_as_it_was(fault: str, directory: Path, run_command: Command) -> None:
    opened = RunDir(directory / "runs" / "w")
    before, written = contents(opened.checkpoints), lines(opened)
    (directory / "fault").write_text(fault)
    code, _, err = run_command(RESUME)
    expected, said = FAULTS[fault]
    assert code == expected, err
    assert err.count("\n") == 1
    assert err.startswith("rlx: ")
    assert said in err
    assert contents(opened.checkpoints) == before
    assert lines(opened)[: len(written)] == written
    newest = find_checkpoints(opened.checkpoints)[0][0]
    assert all_finite([newest.read("algo.pt"), newest.read("run.pt")])
    assert opened.status == "failed"
    assert said in opened.segments[-1]["error"]
    assert opened.segments[-1]["ended"]

    if fault in ("nan", "raise"):
        (directory / "fault").unlink()
        assert run_command(RESUME)[0] == 0
        assert opened.status == "finished"
        assert saved_steps(opened)[0] == 800


EVALUATION_FAULTS = {
    "nan in evaluation": "gave a reward that is nan in step 5",
    "raise in evaluation": "environment 0 (Faulty-v0) raised ZeroDivisionError in step: broken physics",
}


@pytest.mark.parametrize("fault", EVALUATION_FAULTS)
def test_a_fault_in_evaluations_costs_these_and_the_run_is_trained_to_its_end(
    fault: str, directory: Path, run_command: Command
) -> None:  # fmt: skip
    opened = RunDir(directory / "runs" / "w")
    (directory / "fault").write_text(fault)
    code, out, err = run_command(RESUME)
    assert (code, err) == (0, "")  # it was evaluated before
    said = [line for line in out.splitlines() if line.startswith("warning: the evaluation at ")]
    assert ["640" in said[0], "800" in said[1]] == [True, True]
    assert all(EVALUATION_FAULTS[fault] in line for line in said)
    assert saved_steps(opened)[0] == 800
    assert [line["env_steps"] for line in lines(opened) if "eval/return_mean" in line] == [320, 400]
    assert opened.status == "finished"


def test_a_run_whose_every_evaluation_fails_is_trained_to_its_end_and_evaluated_when_it_is_resumed(
    directory: Path, run_command: Command
) -> None:  # fmt: skip
    (directory / "fault").write_text("raise in evaluation")
    code, _, err = run_command(f"train {' '.join(SETTINGS)} loop.total_env_steps=400 --name v")
    assert code == 5
    assert err.startswith("rlx: training is finished and saved, but no evaluation succeeded; `rlx resume")
    assert err.count("\n") == 1
    opened = RunDir(directory / "runs" / "v")
    assert (saved_steps(opened)[0], opened.status) == (400, "failed")
    (directory / "fault").unlink()
    assert run_command("resume v --trust")[0] == 0
    assert opened.status == "finished"
    assert lines(opened)[-1] == lines(RunDir(directory / "runs" / "w"))[-1]


def test_a_worker_that_is_killed_ends_the_run_at_once_with_one_message_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    process = start("train", *SETTINGS, "env.workers=2", "loop.total_env_steps=100_000_000", "--name", "w", cwd=tmp_path)
    opened = RunDir(tmp_path / "runs" / "w")
    wait_for(lambda: saved_steps_now(opened), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        os.killpg(process.pid, signal.SIGKILL)
        pytest.skip("finding the workers needs Linux's /proc")
    os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    code, _, err = finish(process, 20)
    assert code == 5, err
    assert err.count("\n") == 1
    assert "was killed by SIGKILL" in err
    assert "rlx resume" in err
    assert left_over(process) == []
    assert saved_steps(opened)
    assert (opened.status, opened.segments[-1]["error"][:9]) == ("failed", "EnvError:")


def saved_steps_now(opened: RunDir) -> list[int]:
    """Like saved_steps, while checkpoints come and go."""
    return [c.env_steps for c in find_checkpoints(opened.checkpoints)[0]]


# In this process


def make_run(root: Path, name: str, *more: str, total_env_steps: int = 400) -> RunDir:
    words = [word for word in SETTINGS if not word.startswith(("env=", "log.console"))]
    config = Composer().compose([*words, "env=cartpole", "log.console=quiet", *more]).config
    config.loop.total_env_steps = total_env_steps
    return RunDir.create(root, name, config, {})


def train_to(opened: RunDir, total_env_steps: int) -> None:
    config = load_config(opened.path / "config.yaml")
    config.loop.total_env_steps = total_env_steps
    train(opened, config, overrides=[])


def test_a_torn_last_line_and_lines_after_the_checkpoint_are_repaired(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name) for name in ("whole", "torn")]
    for opened in runs:
        train_to(opened, 400)
    with runs[1].metrics_path.open("ab") as file:
        file.write(b'{"env_steps": 500, "iteration": 9, "episode/return": 3.0}\n{"env_steps": 600, "itera')
    for opened in runs:
        train_to(opened, 800)
    assert lines(runs[1]) == lines(runs[0])
    assert runs[1].metrics_path.read_bytes().count(b"\n") == len(lines(runs[1]))
    assert sorted(line["env_steps"] for line in lines(runs[1])) == [line["env_steps"] for line in lines(runs[1])]


@pytest.mark.parametrize(
    "damage", [b"\x00" * 9 + b"\n", b'{"env_steps": 16\n', b"[1]\n", b"[" * 100_000 + b"\n", b'{"env_steps": "9"}\n', b"\n"]
)
def test_damage_between_lines_costs_one_line_and_stays_on_disk(damage: bytes, tmp_path: Path) -> None:
    record, good = Record(tmp_path / "metrics.jsonl"), [b'{"env_steps": %d}\n' % (10 * n) for n in range(6)]
    (tmp_path / "metrics.jsonl").write_bytes(b"".join([*good[:2], damage, *good[3:]]))
    assert record.rewind(40) == f"{record.path}: line 3 is damaged and stays so, left out by every reader"
    record.write({"env_steps": 50})
    record.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join([*good[:2], damage, *good[3:]])
    read = read_record(tmp_path / "metrics.jsonl")
    assert [line["env_steps"] for line in read.good] == [0, 10, 30, 40, 50]
    assert read.problem == "line 3 is damaged and left out"


def test_damage_at_the_end_is_moved_aside_but_for_half_a_line(tmp_path: Path) -> None:
    record = Record(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_bytes(b'{"env_steps": 1}\n{"env_st\n{"env_steps": 3}\n{"env_steps": 4}\n{"env')
    said = record.rewind(2)
    (aside,) = tmp_path.glob("metrics.jsonl.damaged-*")
    assert said == f"{record.path}: damage at its end was moved to {aside.name}"
    assert aside.read_bytes() == b'{"env_st\n'
    assert record.path.read_bytes() == b'{"env_steps": 1}\n'
    record.close()


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path: Path) -> None:
    record = Record(tmp_path / "metrics.jsonl")
    record.path.write_bytes(b'{"env_steps": 1}\n{"env_steps": 2}')
    assert record.rewind(2) == ""
    record.write({"env_steps": 3})
    record.close()
    assert [line["env_steps"] for line in read_record(record.path).good] == [1, 2, 3]


def test_a_resumed_run_says_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = make_run(tmp_path, "w")
    train_to(opened, 400)
    written = opened.metrics_path.read_bytes().splitlines(keepends=True)
    opened.metrics_path.write_bytes(b"".join([written[0], b"?" + written[1], *written[2:]]))
    before = opened.metrics_path.read_bytes()
    assert read_row(opened).problem == "metrics.jsonl is damaged: line 2 is damaged and left out: see rlx show w"
    train_to(opened, 800)
    assert opened.metrics_path.read_bytes().startswith(before)
    assert "line 2 is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("torn", [b"", b'{"env_steps": 200, "itera'])
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_with_an_empty_record(torn: bytes, tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name) for name in ("whole", "killed")]
    runs[1].metrics_path.write_bytes(b'{"env_steps": 80, "iteration": 1, "episode/return": 3.0}\n' + torn)
    for opened in runs:
        train_to(opened, 400)
    assert lines(runs[1]) == lines(runs[0])


def test_a_run_without_its_record_goes_on(tmp_path: Path) -> None:
    opened = make_run(tmp_path, "w")
    train_to(opened, 400)
    opened.metrics_path.unlink()
    train_to(opened, 800)
    assert all(line["env_steps"] > 400 for line in lines(opened))


@pytest.mark.parametrize("gone", ["deleted", "renamed", "a directory"])
def test_a_record_that_is_taken_away_is_a_storage_error(gone: str, tmp_path: Path) -> None:
    path = tmp_path / "w" / "metrics.jsonl"
    path.parent.mkdir()
    if gone == "a directory":
        path.mkdir()
        with pytest.raises(StorageError, match="is a directory, and no file; put it aside"):
            Record(path)
        return
    record = Record(path)
    record.write({"env_steps": 1})
    shutil.rmtree(path.parent) if gone == "deleted" else path.parent.rename(tmp_path / "v")
    for use in (record.sync, lambda: record.write({"env_steps": 2})):
        with pytest.raises(StorageError, match="moved or deleted while the run trained"):
            use()
    record.close()


def test_a_record_takes_no_number_that_json_does_not_have(tmp_path: Path) -> None:
    record = Record(tmp_path / "metrics.jsonl")
    record.write({"env_steps": 1, "a/b": 1.0})
    with pytest.raises(NonFiniteError, match="a/b is inf"):
        record.write({"env_steps": 2, "a/b": math.inf})
    record.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"env_steps": 1, "a/b": 1.0}\n'
