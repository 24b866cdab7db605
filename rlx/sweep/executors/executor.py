"""The interface of executors, which train the runs of a sweep: on this machine, a Ray cluster, or SLURM."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from rlx.files import is_directory, open_to_append
from rlx.store.layout import LOG


def open_log(run: Path) -> int:
    """A descriptor to append to a run's log; that of /dev/null where the log is a link or cannot be written, so that training goes on.

    Raises:
        IsADirectoryError: if a directory has its name.
    """
    try:
        with open_to_append(run / LOG) as file:
            return os.dup(file.fileno())
    except OSError:
        if is_directory(run / LOG):
            raise IsADirectoryError(f"{run / LOG} is a directory") from None
        return os.open(os.devnull, os.O_WRONLY)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One segment of one run, as plain data that can be sent to a worker."""

    run: str
    """Absolute path of the run's directory."""
    config: str | None = None
    """SHA-256 of the config.yaml that the sweep has checked; None: the worker decides by the run's signature."""
    attempt: int = 1
    ranks: int = 1
    """Processes that train it together, on one machine."""
    cores: int = 1
    """CPU cores that it keeps busy."""
    gpus: int = 0
    pause_at: int | None = None
    """Stop, with a checkpoint, at the first line of the record that has `pause_metric` at this many env steps or later."""
    pause_metric: str = ""
    mirror: bool = True
    """Whether the run may mirror itself to W&B; False where there is no login to do it with."""

    @property
    def name(self) -> str:
        return Path(self.run).name

    def should_pause(self, env_steps: int, line: Mapping[str, Any]) -> bool:
        """Whether the run pauses at a line of the record."""
        return self.pause_at is not None and env_steps >= self.pause_at and self.pause_metric in line


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a job ended."""

    status: Literal["finished", "paused", "stopped", "failed", "lost"]
    """failed: the run ended with an error that would repeat. lost: its worker died or hung."""
    error: str | None = None
    exit_code: int = 0


class Executor(Protocol):
    """Trains several jobs at a time. Every method but `wait` returns at once."""

    slots: int
    """Number of jobs at once."""
    description: str
    """A short text for the user."""

    def start(self, job: Job) -> None:
        """Begin a job; called only while fewer than `slots` are open."""
        ...

    def wait(self, timeout_s: float) -> list[tuple[Job, Result]]:
        """The jobs that have ended since the last call, after waiting for the first of them at most `timeout_s`."""
        ...

    def waiting(self, job: Job) -> bool:
        """Whether an open job may still be queued, and so has no heartbeat."""
        ...

    def stop(self, job: Job) -> None:
        """Signal an open job to save and end; `wait` still reports it."""
        ...

    def kill(self, job: Job) -> None:
        """End an open job at once; `wait` still reports it, as lost."""
        ...

    def close(self) -> None:
        """Release everything; open jobs are killed."""
        ...
