"""What ends a run from within: numbers that are not, environments that raise, workers that die. Nothing saved is harmed."""

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
from rlx.config.compose import Composer, load_config
from rlx.errors import NonFiniteError
from rlx.run import train
from rlx.rundir import RunDir
from rlx.track.record import Record

Command = Callable[[str], tuple[int, str, str]]

FAULTY = """
from pathlib import Path
import gymnasium
import numpy as np

made = []  # the first 2 are probed when a run is resumed, the next 4 are the collector's, later ones the evaluation's

class Faulty(gymnasium.Env):
    '''Goes wrong at step 5 of an episode in the way that the file `fault` says.'''
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        made.append(self)

    def reset(self, *, seed=None, options=None):
        self.random, self.steps = np.random.default_rng(seed), 0
        return self.random.normal(size=2).astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        obs, reward = self.random.normal(size=2).astype(np.float32), float(self.random.normal() + action)
        fault = Path("fault").read_text() if self.steps == 5 and Path("fault").exists() else ""
        if fault in ("nan", "inf") or fault == "nan in evaluation" and self in made[6:]:
            reward = float(fault.split()[0])
        if fault == "nan observation":
            obs[0] = np.nan
        if fault == "raise" and self in made[4:5]:
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
    "nan in evaluation": (5, "gave a reward that is nan in step 5"),
    "raise": (5, "environment 2 (Faulty-v0) raised ZeroDivisionError in step: broken physics"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_and_leaves_the_last_checkpoint_as_it_was(fault: str, directory: Path, run_command: Command) -> None:
    opened = RunDir(directory / "runs" / "w")
    before, written = contents(opened.checkpoints), lines(opened)
    (directory / "fault").write_text(fault)
    code, _, err = run_command(RESUME + (" loop.eval_every=80 loop.checkpoint_every=0" if "evaluation" in fault else ""))
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


def test_a_record_takes_no_number_that_json_does_not_have(tmp_path: Path) -> None:
    record = Record(tmp_path / "metrics.jsonl")
    record.write({"env_steps": 1, "a/b": 1.0})
    with pytest.raises(NonFiniteError, match="a/b is inf"):
        record.write({"env_steps": 2, "a/b": math.inf})
    record.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"env_steps": 1, "a/b": 1.0}\n'
