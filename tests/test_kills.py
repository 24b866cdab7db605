"""Many SIGKILLs at random moments, start-up included: every run must still end, and end like one that nobody killed.

KILLS=1000 python -m pytest -m slow tests/test_kills.py        # 1,000 in all; writes docs/results/kills.md
"""

from __future__ import annotations

import collections
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from launch import lines
from resumable import FIT, assert_equal, compose, final_state, in_child, words

from rlx.cli.main import main
from rlx.parts import build
from rlx.store.runs import RunDir

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "kills.md"
KILLS = int(os.environ.get("KILLS", "200"))
PAIRS = [(algo, env) for algo, envs in FIT.items() for env in envs]
HANG_S = 300.0
"""A run takes seconds; one that has not ended by then never will."""
HEADER = """# Runs that are killed

Every run below was started with `rlx train ... --auto-resume`, killed with SIGKILL at a random moment, and started again by the same
command, until it finished. Four moments in ten lie between the making of a run's directory and its first checkpoint.

A run diverged if its `metrics.jsonl` (less what depends on the clock) or its last checkpoint (networks, optimiser, normalisers, replay,
environments, generators) is not equal, bit for bit, to that of a run that nobody killed. It is stuck if the command ends with an error,
or does not end. The settings are in `tests/resumable.py`. Reprinted by `KILLS=1000 python -m pytest -m slow tests/test_kills.py`.

| algorithm | environment | kills | of these before the run's directory was whole | before its first checkpoint | runs | diverged | stuck |
|---|---|---|---|---|---|---|---|
"""


@dataclass
class Tally:
    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    runs: int = 0
    diverged: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def table() -> Iterator[dict[tuple[str, str], Tally]]:
    rows: dict[tuple[str, str], Tally] = {}
    yield rows
    if len(rows) < len(PAIRS):
        return
    text, total = HEADER, Tally()
    for (algo, env), tally in rows.items():
        text += _row(algo, env, tally)
        total.kills += tally.kills
        total.runs += tally.runs
        total.diverged += tally.diverged
        total.stuck += tally.stuck
    RESULTS.write_text(text + _row("all", "", total))


def _row(algo: str, env: str, tally: Tally) -> str:
    kills = tally.kills
    numbers = [kills.total(), kills["no directory"], kills["no checkpoint"], tally.runs, len(tally.diverged), len(tally.stuck)]
    return f"| {algo} | {env} | " + " | ".join(f"{n:,}" for n in numbers) + " |\n"


def _phase(run: RunDir) -> str:
    if not (run.path / "meta.json").is_file():
        return "no directory"
    has_checkpoint = any(p.name.isdigit() for p in run.checkpoints.glob("*"))
    return "later" if has_checkpoint else "no checkpoint"


def _start(arguments: list[str], log: Path) -> int:
    """`rlx ARGUMENTS` in a forked process, which has loaded its modules already."""

    def command() -> None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        sys.argv = ["rlx", *arguments]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise

    return in_child(command)


def _wait(pid: int, seconds: float) -> int | None:
    """The status of a process that ends within so many seconds, else None."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() > deadline:
            return None
        time.sleep(0.0005)


@dataclass(frozen=True)
class Times:
    """Seconds from the start of a command to the making of its run's directory, to the first checkpoint, and to the end."""

    directory: float
    checkpoint: float
    end: float

    def draw(self) -> float:
        """A moment to kill at."""
        if random.random() < 0.4:
            return random.uniform(0.8 * self.directory, 1.1 * self.checkpoint)
        return random.uniform(self.directory, 1.1 * self.end)


def _train_in_peace(arguments: list[str], run: RunDir, log: Path) -> Times:
    begin, reached = time.monotonic(), {}
    pid = _start(arguments, log)
    while (status := _wait(pid, 0.002)) is None:
        reached.setdefault(_phase(run), time.monotonic() - begin)
        assert time.monotonic() - begin < HANG_S, log.read_text()
    assert status == 0, log.read_text()
    end = time.monotonic() - begin
    return Times(reached.get("no checkpoint", 0.5 * end), reached.get("later", end), end)


def _train_under_fire(arguments: list[str], run: RunDir, log: Path, times: Times, tally: Tally, most: int) -> None:
    """Start the command again and again until it ends by itself; no more kills after `most`."""
    while True:
        pid = _start(arguments, log)
        in_peace = tally.kills.total() >= most
        status = _wait(pid, HANG_S if in_peace else times.draw())
        if status is None:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if in_peace:
                tally.stuck.append(f"no end within {HANG_S:.0f} s")
                return
            if os.WIFSIGNALED(status):
                tally.kills[_phase(run)] += 1
                continue
        if status != 0:
            tally.stuck.append(log.read_text()[-2000:])
        return


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("algo", "env"), PAIRS)
def test_however_often_a_run_is_killed_it_ends_like_one_that_was_not(
    algo: str, env: str, tmp_path: Path, table: dict[tuple[str, str], Tally], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLX_RUNS_DIR", str(tmp_path / "runs"))
    random.seed(f"{algo} {env}")
    config = compose(algo, env)
    with closing(build(config, tmp_path / "unused", torch.device("cpu"))) as parts:
        parts.collector.reset()  # modules and compiled kernels are loaded here once, and not in each of the children
    command = ["train", *words(algo, env), f"loop.total_env_steps={config.loop.total_env_steps}", "--auto-resume", "--name"]
    log, tally = tmp_path / "log.txt", table.setdefault((algo, env), Tally())

    straight = RunDir(tmp_path / "runs" / "straight")
    times = _train_in_peace([*command, straight.name], straight, log)

    most = -(-KILLS // len(PAIRS))
    while tally.kills.total() < most and not tally.stuck:
        run = RunDir(tmp_path / "runs" / f"killed{tally.runs}")
        _train_under_fire([*command, run.name], run, log, times, tally, most)
        tally.runs += 1
        if tally.stuck:
            break
        try:
            assert lines(run) == lines(straight)
            assert_equal(final_state(run), final_state(straight))
        except AssertionError as error:
            tally.diverged.append(str(error)[:500])
        left = [str(p.relative_to(run.path)) for p in run.path.rglob("*.tmp-*")]
        assert left == [], "what killed processes were writing is cleaned up"
    print(_row(algo, env, tally))
    assert (tally.diverged, tally.stuck) == ([], [])
