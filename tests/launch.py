"""The real command, in this process, or in its own processes for tests of runs that are killed or crash."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlx.checkpoint import find_checkpoints
from rlx.cli.main import main
from rlx.config.algo_registry import ALGORITHMS
from rlx.config.algos.base_config import Suits
from rlx.config.algos.policy_gradient_config import PolicyGradientConfig
from rlx.config.compose import Composer
from rlx.store.record import read_metrics
from rlx.store.runs import RunDir, new_meta
from rlx.sweep.executors.executor import Executor, Job, Result

TIMEOUT_S = 60.0
"""A machine that is busy with other things must not fail a test."""

SETTINGS = [
    "algo=ppo", "env=cartpole", "recipe=null", "env.num_envs=4", "algo.rollout_length=64", "algo.num_minibatches=2",
    "loop.log_every=2003", "loop.eval_every=9973", "loop.eval_episodes=2", "loop.checkpoint_every=4999", "log.wandb=disabled",
]  # fmt: skip
"""A short run; the cadences share no divisor, so that every line of the record has its own reason."""

POLICY_GRADIENT = [name for name, info in ALGORITHMS.items() if issubclass(info.config, PolicyGradientConfig)]
GAME_PLAYING = [name for name, info in ALGORITHMS.items() if info.config.suits == (Suits.games,)]

OWN_VARIABLES = ("RLX_RUNS_DIR", "WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED")


def default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):  # pytest may be under nohup, or in the background
        signal.signal(number, signal.SIG_DFL)


def start(*arguments: str, cwd: Path, **settings: Any) -> subprocess.Popen[str]:
    """Start `rlx ARGUMENTS` in a directory whose modules it can import, as the leader of a process group of its own."""
    env = {k: v for k, v in os.environ.items() if k not in OWN_VARIABLES} | {"PYTHONPATH": str(cwd), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    defaults = {"preexec_fn": default_signals, "start_new_session": True, **pipes}
    return subprocess.Popen([sys.executable, "-m", "rlx.cli.main", *arguments], cwd=cwd, env=env, text=True, **{**defaults, **settings})


def run_main(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run `rlx COMMAND` in this process, which is a hundred times faster than in one of its own; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["rlx", *shlex.split(command)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def finish(process: subprocess.Popen[str], timeout_s: float = TIMEOUT_S) -> tuple[int, str, str]:
    """Wait for the end; returns exit code, stdout and stderr. A process that does not end is killed with its group."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"the command did not end within {timeout_s} s\n{out}\n{err}") from None
    return process.returncode, out, err


def run(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    return finish(start(*arguments, cwd=cwd))


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], timeout_s: float = TIMEOUT_S) -> None:
    """Return when the condition holds; the process must still be there."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            code, out, err = finish(process, 0.1)
            raise AssertionError(f"the command ended with {code} before what was waited for\n{out}\n{err}")
        time.sleep(0.01)


def left_over(process: subprocess.Popen[str], timeout_s: float = 5.0) -> list[int]:
    """Processes of its group that are still alive after a moment, the process itself having ended; none where there is no /proc."""
    deadline = time.monotonic() + timeout_s
    while True:
        alive = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, group, *_ = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(group) == process.pid and state != "Z":  # nobody may be there to reap it in a container
                alive.append(int(stat.parent.name))
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.05)


def lines(opened: RunDir) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in read_metrics(opened.metrics_path)]


def saved_steps(opened: RunDir) -> list[int]:
    """Env steps of the checkpoints, newest first, after checking that each is whole."""
    found, broken = find_checkpoints(opened.checkpoints)
    assert broken == []
    for checkpoint in found:
        checkpoint.verify()
    return [c.env_steps for c in found]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def new_job(root: Path, name: str, *words: str, **settings: Any) -> Job:
    """A run that has not begun, and the job to train it."""
    composed = Composer().compose([*SETTINGS, *words])
    run = RunDir.create(root, name, composed.config, new_meta(composed))
    return Job(run=str(run.path.resolve()), mirror=False, **settings)


def drain(executor: Executor, number: int = 1, timeout_s: float = TIMEOUT_S) -> list[tuple[Job, Result]]:
    """Wait until so many jobs of an executor have ended."""
    ended: list[tuple[Job, Result]] = []
    deadline = time.monotonic() + timeout_s
    while len(ended) < number:
        assert time.monotonic() < deadline, f"{number - len(ended)} jobs did not end"
        ended += executor.wait(0.1)
    return ended
