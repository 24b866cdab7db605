"""What is printed, and what a command ends with: output that cannot be written, code that ends the program, unexpected errors."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from launch import lines, run_main

from rlx.cli import main as cli
from rlx.config.saved import load_config
from rlx.signals import SignalHandler, expect_requests
from rlx.store.record import read_record
from rlx.store.runs import RunDir

Command = Callable[[str], tuple[int, str, str]]

ENDING = """
import sys
import gymnasium, numpy as np

class Ending(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 150:
            raise WHAT
        return np.zeros(2, dtype=np.float32), 1.0, self.steps == 200, False, {}

gymnasium.register("Ending-v0", Ending)
"""
TRAIN = "train algo=ppo recipe=null env.num_envs=2 algo.rollout_length=64 log.wandb=disabled log.console=plain loop.eval_episodes=1"


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("SystemExit", 5, "raised SystemExit in step"),
        ("SystemExit(0)", 5, "raised SystemExit in step"),
        ("KeyboardInterrupt", 5, "the environment's code ended the program with KeyboardInterrupt"),
        ("AssertionError", 5, "raised AssertionError in step"),
    ],
)
def test_code_of_an_environment_never_ends_a_run_as_done_and_is_found_in_its_log(
    what: str, code: int, said: str, here: Path, run_command: Command
) -> None:  # fmt: skip
    (here / "ending.py").write_text(ENDING.replace("WHAT", what))
    found, _, err = run_command(f"{TRAIN} env=ending:Ending-v0 loop.total_env_steps=4096 --name w")
    assert (found, err.count("\n")) == (code, 1)
    assert said in err
    assert f"{here / 'ending.py'}:15" in err
    assert "in step\n    raise " in (here / "runs" / "w" / "log.txt").read_text()
    assert RunDir(here / "runs" / "w").status == "failed"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ZeroDivisionError("surprise"), 1, "rlx: a bug in rlx: ZeroDivisionError: surprise; the traceback is in "),
        (MemoryError(), 9, "rlx: memory ran out"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            9,
            "rlx: memory ran out (CUDA out of memory. Tried to allocate 2 GiB)",
        ),
        (NotADirectoryError(20, "Not a directory", "x"), 6, "rlx: [Errno 20] Not a directory: 'x'; the traceback is in "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_nobody_foresaw_is_one_line_with_its_traceback_in_the_log(
    error: Exception, code: int, said: str, here: Path, run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("rlx.loop.train", fail)
    found, _, err = run_command(f"{TRAIN} env=cartpole loop.total_env_steps=128 --name w")
    assert (found, err.count("\n")) == (code, 1)
    assert err.startswith(said)
    assert type(error).__name__ in (here / "runs" / "w" / "log.txt").read_text()


def test_a_command_without_a_run_keeps_its_traceback_in_a_file_of_its_own(run_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("surprise")

    monkeypatch.setattr(cli, "app", fail)
    code, _, err = run_command("ls")
    assert code == 1
    path = Path(err.strip().rpartition("the traceback is in ")[2])
    assert "in fail" in path.read_text()
    path.unlink()


def test_a_budget_that_is_spent_is_refused_and_changes_nothing(here: Path, run_command: Command) -> None:
    assert run_command(f"{TRAIN} env=cartpole loop.total_env_steps=256 --name w")[0] == 0
    run = RunDir(here / "runs" / "w")
    before = (run.path / "config.yaml").read_bytes(), (run.path / "meta.json").read_bytes()
    auto = f"{TRAIN} env=cartpole loop.total_env_steps=128 --name w --auto-resume"
    for command in ("resume w loop.total_env_steps=128", "resume w loop.total_env_steps=256", auto):
        code, _, err = run_command(command)
        assert code == 2, command
        assert "has 256 env steps already" in err
    assert before == ((run.path / "config.yaml").read_bytes(), (run.path / "meta.json").read_bytes())
    assert load_config(run.path / "config.yaml").loop.total_env_steps == 256


def test_evaluations_can_be_stopped_and_cut(here: Path, run_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_command(f"{TRAIN} env=cartpole loop.total_env_steps=128 loop.eval_max_steps=5 --name w")[0] == 0
    assert [line["eval/cut_episodes"] for line in lines(RunDir(here / "runs" / "w")) if "eval/return_mean" in line] == [1.0]
    code, out, err = run_command("eval w --episodes 3")
    assert (code, "return 5.0" in out, "3 episodes were cut after 5 steps" in err) == (0, True, True)
    monkeypatch.setattr(SignalHandler, "should_stop", lambda self: setattr(self, "stopped_by", signal.SIGTERM) or True)
    assert run_command("eval w --episodes 3")[::2] == (143, "rlx: interrupted\n")


def test_a_request_to_save_that_comes_while_rlx_is_imported_is_met_later() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    try:
        expect_requests()
        os.kill(os.getpid(), signal.SIGUSR1)
        with SignalHandler() as signals:
            assert [signals.should_save(), signals.should_save()] == [True, False]
        with SignalHandler() as signals:
            assert not signals.should_save()
    finally:
        signal.signal(signal.SIGUSR1, before)


def rlx(*arguments: str, cwd: Path, stdout: int | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlx", *arguments]
    environment = {**os.environ, "RLX_RUNS_DIR": str(cwd / "runs"), **variables}
    pipe = subprocess.PIPE if stdout is None else stdout
    return subprocess.run(command, cwd=cwd, env=environment, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_stops_no_training_and_ends_a_listing_in_a_line(
    tmp_path: Path,
) -> None:  # fmt: skip
    with open("/dev/full", "w") as full:
        trained = rlx(*TRAIN.split(), "env=cartpole", "loop.total_env_steps=128", "--name", "w", cwd=tmp_path, stdout=full.fileno())
        listed = rlx("ls", cwd=tmp_path, stdout=full.fileno())
    assert (trained.returncode, trained.stderr) == (0, "")
    assert len(read_record(tmp_path / "runs" / "w" / "metrics.jsonl").good) == 2
    assert (listed.returncode, listed.stderr) == (6, "rlx: the output cannot be written (No space left on device)\n")


def test_what_a_terminal_cannot_show_is_replaced(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert run_main(f"{TRAIN} env=cartpole loop.total_env_steps=128 --name w", monkeypatch) == 0
    assert run_main("show w", monkeypatch) == 0
    assert b"loop.total_env_steps=?`" in written.getvalue()
