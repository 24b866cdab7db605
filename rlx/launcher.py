"""Starts the ranks of a run on this machine: one process each, which find each other in a temporary directory.

Needs no torch. Rank 0 has this process's terminal; what the others print is shown only if it is the only explanation of a failure.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from rlx.errors import ConfigError, RankError

MEETING = "RLX_RANKS_DIR"
"""Environment variable with the directory in which the ranks of one machine meet; torchrun has an address and a port instead."""
MOST_RANKS = 1024
_GRACE_S = 60.0
"""How long the other ranks may take to end after the first one has."""
_LOOK_EVERY_S = 0.05
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_RLX = (sys.executable, "-P", "-m", "rlx.cli.main")
_RUN = "run"
"""The file with the name of the run, which rank 0 may choose."""


def is_rank() -> bool:
    """Whether this process was started as one of several ranks, by `launch`, torchrun or SLURM."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def check_is_alone(what: str, instead: str) -> None:
    """Raise a ConfigError if this process is one of several ranks, for what is done in one process."""
    if is_rank():
        raise ConfigError(f"{what}, and torchrun or SLURM has started {os.environ['WORLD_SIZE']} ranks (WORLD_SIZE): {instead}")


def check_num_ranks(num_ranks: int) -> None:
    """Raise a ConfigError unless a run can have so many ranks here."""
    if not 1 <= num_ranks <= MOST_RANKS:
        raise ConfigError(f"--ranks {num_ranks}: expected a number from 1 to {MOST_RANKS:,}")
    if is_rank() and MEETING not in os.environ:
        raise ConfigError(f"--ranks {num_ranks}: torchrun or SLURM has started {os.environ['WORLD_SIZE']} ranks already; leave --ranks out")


def keep_name(run: str) -> None:
    """Let the launcher know which run is trained."""
    if directory := os.environ.get(MEETING):
        with contextlib.suppress(OSError):
            Path(directory, _RUN).write_text(run)


def variables(rank: int, num_ranks: int, directory: str) -> dict[str, str]:
    """The environment of a rank."""
    return os.environ | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks), MEETING: directory,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }  # fmt: skip


@contextlib.contextmanager
def leading_others(num_ranks: int) -> Iterator[None]:
    """Make this process rank 0 during the block, and start the others, which end with it and print where it prints."""
    with tempfile.TemporaryDirectory(prefix="rlx-ranks-") as directory, contextlib.ExitStack() as undo:
        mine, before = variables(0, num_ranks, directory), dict(os.environ)
        with _without_signals():
            others = [
                subprocess.Popen([*_RLX, "train"], env=variables(rank, num_ranks, directory), stdin=subprocess.DEVNULL)
                for rank in range(1, num_ranks)
            ]
        undo.callback(_wait_for, others)
        os.environ.update(mine)
        try:
            yield
        finally:
            for name in mine.keys() - before.keys():
                del os.environ[name]
            os.environ.update(before)


def _wait_for(others: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until ranks have ended that will by themselves; those that do not are killed."""
    deadline = time.monotonic() + _GRACE_S
    for rank in others:
        try:
            rank.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


@contextlib.contextmanager
def _without_signals() -> Iterator[None]:
    """Let processes that are started in the block ignore requests to save, until they handle them: they would end them."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_rank(rank: int, num_ranks: int, directory: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start `rlx ARGUMENTS` as one of several ranks; all but the first write into a file."""
    with contextlib.ExitStack() as files:
        log = files.enter_context(Path(directory, f"rank-{rank}.log").open("wb")) if rank else None
        return subprocess.Popen(
            [*_RLX, *arguments], env=variables(rank, num_ranks, directory), stdout=log,
            stderr=log, stdin=subprocess.DEVNULL if rank else None, start_new_session=True,  # Ctrl-C reaches them once, from here
        )  # fmt: skip


def launch(arguments: Sequence[str], num_ranks: int) -> int:
    """Run `rlx ARGUMENTS` on so many ranks; returns the exit code of rank 0.

    Raises:
        RankError: if rank 0 could not say how the run ended.
    """
    with tempfile.TemporaryDirectory(prefix="rlx-ranks-") as directory:
        with _without_signals():
            ranks = [start_rank(rank, num_ranks, directory, arguments) for rank in range(num_ranks)]
        try:
            with _forwarding(ranks):
                first = _wait(ranks)
        finally:
            _kill(ranks)
        if ranks[0].returncode >= 0:
            return ranks[0].returncode
        raise RankError(_explain(ranks, first, directory))


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until all have ended, or kill them if they go on for long after one has; returns which ended first."""
    first, deadline = -1, float("inf")
    while any(rank.poll() is None for rank in ranks):
        if first < 0 and any(rank.returncode is not None for rank in ranks):
            first, deadline = _first(ranks), time.monotonic() + _GRACE_S
        if time.monotonic() > deadline:
            _kill(ranks)
        time.sleep(_LOOK_EVERY_S)
    return _first(ranks) if first < 0 else first


def _first(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """The rank that ended, of several one that did not end by itself."""
    return min((rank.returncode, i) for i, rank in enumerate(ranks) if rank.returncode is not None)[1]


@contextlib.contextmanager
def _forwarding(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Send the signals that this process gets to all ranks; a second request to stop ends them at once."""
    stopping = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if number != signal.SIGUSR1 and stopping:
            _kill(ranks)
            os._exit(128 + number)
        stopping = stopping or number != signal.SIGUSR1
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # as nohup leaves it
    handled = [number for number in _FORWARDED if not (number == signal.SIGHUP and ignored)]
    before = {number: signal.signal(number, forward) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the ranks and what they have started at once."""
    for rank in ranks:
        if rank.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.pid, signal.SIGKILL)
            rank.wait()


def _explain(ranks: Sequence[subprocess.Popen[bytes]], first: int, directory: str) -> str:
    """How the run ended, where rank 0 does not say it."""
    code = ranks[first].returncode
    how = f"rank {first} was ended by {signal.Signals(-code).name}" if code < 0 else f"rank {first} ended with exit code {code}"
    said = next((f"; rank {i} said: {text}" for i in range(1, len(ranks)) if (text := _last_line(Path(directory, f"rank-{i}.log")))), "")
    try:
        again = f"`rlx resume {Path(directory, _RUN).read_text()} --ranks {len(ranks)}` continues from the last checkpoint"
    except OSError:
        again = "it had not begun to train: repeat the command"
    return f"{how}, and the others with it{said}; {again}"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="backslashreplace").strip().splitlines() if log.exists() else []
    return lines[-1][:300] if lines else ""
