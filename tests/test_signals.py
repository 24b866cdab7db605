"""Signals to the real command: one finishes the iteration and saves, a second stops at once, SIGUSR1 saves and goes on."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from launch import contents, default_signals, finish, left_over, lines, saved_steps, start, wait_for

from rlx.signals import SignalHandler
from rlx.store.runs import RunDir

SETTINGS = [
    "algo=ppo", "env=cartpole", "recipe=null", "env.num_envs=3", "algo.rollout_length=20", "algo.num_minibatches=3",
    "algo.normalize_observation=true", "loop.log_every=173", "loop.eval_every=0", "loop.checkpoint_every=611", "log.wandb=disabled",
]  # fmt: skip

Command = Callable[[str], tuple[int, str, str]]

HANGING = """
import os, time
import gymnasium
import numpy as np

class Hanging(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        self.steps += 1
        if os.path.exists("hang"):
            open("hangs", "w").close()
            time.sleep(1000)
        return np.zeros(2, dtype=np.float32), 1.0, self.steps == 9, False, {}

gymnasium.register("Hanging-v0", Hanging)
"""


def train_long(cwd: Path, *more: str, **settings: object) -> tuple[subprocess.Popen[str], RunDir]:
    """Start a run that would take hours, and return when it is under way."""
    chosen = dict(word.split("=") for word in [*SETTINGS, "loop.total_env_steps=100_000_000", *more])
    process = start("train", *(f"{k}={v}" for k, v in chosen.items()), "--name", "w", cwd=cwd, **settings)
    opened = RunDir(cwd / "runs" / "w")
    wait_for(lambda: len(opened.metrics()) >= 2, process)
    return process, opened


def test_a_signal_finishes_the_iteration_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    process, opened = train_long(tmp_path)
    assert opened.status == "running"
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 143
    assert err.strip() == "stopping after this iteration; once more stops at once, without saving"
    steps = saved_steps(opened)[0]
    assert steps % 60 == 0
    assert out.splitlines()[-1] == f"stopped and saved after {steps:,} env steps; `rlx resume w` goes on"
    assert opened.status == "stopped"
    assert opened.segments[-1]["env_steps"] == steps
    assert lines(opened)[-1]["env_steps"] <= steps


def test_a_run_stopped_by_sigint_and_resumed_equals_one_that_was_not_stopped(here: Path, run_command: Command) -> None:
    settings = [*SETTINGS, "loop.total_env_steps=3_000", "algo.anneal_learning_rate=true"]
    stopped = start("train", *settings, "--name", "stopped", cwd=here)
    opened = [RunDir(here / "runs" / name) for name in ("straight", "stopped")]
    wait_for(lambda: len(opened[1].metrics()) >= 2, stopped)
    stopped.send_signal(signal.SIGINT)
    assert finish(stopped)[0] == 130
    assert opened[1].status == "stopped"
    assert 0 < saved_steps(opened[1])[0] < 3_000
    for command in ("resume stopped", f"train {' '.join(settings)} --name straight"):
        code, _, err = run_command(command)
        assert (code, err) == (0, "")
    assert lines(opened[1]) == lines(opened[0])
    assert [s["status"] for s in opened[1].segments] == ["stopped", "finished"]
    files = [contents(o.checkpoints / f"{saved_steps(o)[0]:012d}")["algo.pt"] for o in opened]
    assert files[0] == files[1]


def test_sigusr1_saves_each_time_and_training_goes_on(tmp_path: Path) -> None:
    process, opened = train_long(tmp_path, "loop.checkpoint_every=0", "loop.keep_checkpoints=9")
    for count in (1, 2):
        process.send_signal(signal.SIGUSR1)
        wait_for(lambda count=count: len(saved_steps(opened)) == count, process)
        written = len(opened.metrics())
        wait_for(lambda written=written: len(opened.metrics()) > written + 1, process)
    assert len(saved_steps(opened)) == 2
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143
    assert len(saved_steps(opened)) == 3


def test_a_second_sigint_stops_at_once_and_leaves_the_earlier_checkpoints(here: Path, run_command: Command) -> None:
    (here / "hanging.py").write_text(HANGING)
    process, opened = train_long(here, "env=hanging:Hanging-v0")
    wait_for(lambda: saved_steps(opened), process)
    (here / "hang").touch()
    wait_for((here / "hangs").exists, process)
    before = contents(opened.checkpoints)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):  # the iteration does not end
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    assert "once more stops at once" in finish(process)[2]
    assert contents(opened.checkpoints) == before
    assert opened.status == "killed"

    (here / "hang").unlink()
    steps = saved_steps(opened)[0]
    sys.path.insert(0, str(here))
    code, out, err = run_command(f"resume w loop.total_env_steps={steps + 60}")
    assert (code, err) == (0, "")
    assert f"finished after {steps + 60:,} env steps" in out


def test_ctrl_c_on_a_terminal_reaches_workers_too_and_the_run_still_saves_and_leaves_none(tmp_path: Path) -> None:
    process, opened = train_long(tmp_path, "env=acrobot", "env.workers=2")
    os.killpg(process.pid, signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130
    assert "stopped and saved after" in out
    assert err.strip() == "stopping after this iteration; once more stops at once, without saving"
    assert saved_steps(opened)[0] > 0
    assert opened.status == "stopped"
    assert left_over(process) == []


def test_a_second_ctrl_c_leaves_no_workers_either(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)
    process, _ = train_long(tmp_path, "env=hanging:Hanging-v0", "env.workers=2")
    (tmp_path / "hang").touch()
    wait_for((tmp_path / "hangs").exists, process)
    os.killpg(process.pid, signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(5) == 130
    finish(process)  # the workers held its pipes
    assert left_over(process) == []


@pytest.mark.parametrize("console", ["plain", "live"])
def test_a_terminal_that_is_closed_stops_the_run_after_saving(console: str, tmp_path: Path) -> None:
    terminal, other = pty.openpty()
    settings = {"stdin": other, "stdout": other, "stderr": other, "pass_fds": (other,)}

    def take_terminal() -> None:
        default_signals()
        fcntl.ioctl(other, termios.TIOCSCTTY, 0)

    process, opened = train_long(tmp_path, f"log.console={console}", "loop.log_every=4000", preexec_fn=take_terminal, **settings)
    os.close(other)
    os.close(terminal)
    assert finish(process)[0] == 129
    assert opened.status == "stopped"
    assert saved_steps(opened)[0] == opened.segments[-1]["env_steps"]


def test_a_live_view_that_cannot_be_written_does_not_end_the_training() -> None:
    code = (
        "import os; from rlx.track.console import LiveConsole\n"
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
        "console = LiveConsole('a run'); console.note('written'); console.note('nowhere'); console.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_hangups_are_ignored_under_nohup() -> None:
    code = (
        "import os, signal; from rlx.signals import SignalHandler\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with SignalHandler() as signals:\n"
        "    os.kill(os.getpid(), signal.SIGHUP); print(signals.should_stop())\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print(signals.should_stop())\n"
        "print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]


def test_handlers_are_put_back_and_a_request_to_save_counts_once() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.getsignal(n) for n in numbers]
    with SignalHandler() as signals:
        assert not signals.should_save()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert [signals.should_save(), signals.should_save(), signals.should_stop()] == [True, False, False]
    assert [signal.getsignal(n) for n in numbers] == before


def test_a_broken_stderr_does_not_raise_in_the_middle_of_an_update() -> None:
    code = (
        "import os, signal; from rlx.signals import SignalHandler\n"
        "os.close(2)\n"
        "with SignalHandler() as signals:\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print(signals.stopped_by.name)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "SIGTERM"
