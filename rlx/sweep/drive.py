"""Driving a sweep: hand jobs to an executor while it has slots, write results to the ledger, retry jobs that died or hung."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from rlx.store.ledger import Failure
from rlx.store.runs import RunDir
from rlx.store.sweeps import SweepDir
from rlx.sweep.executors.executor import Executor, Job, Result
from rlx.track.heartbeat import clear_heartbeat, read_heartbeat

_POLL_S = 0.2
_SAVE_PATIENCE_S = 120.0
"""Time for stopped runs to save, before they are killed."""


class Plan(Protocol):
    """The source of a sweep's jobs: all at once for a grid, one after the other for a search."""

    total_runs: int
    """Number of runs at the end."""

    def next(self) -> Job | None:
        """The next job to start; None if there is none now."""
        ...

    def ended(self, job: Job, result: Result) -> list[str]:
        """Record that a job finished, paused or failed for good; returns messages about it."""
        ...

    def finished_runs(self) -> int: ...

    def finished_elsewhere(self) -> int:
        """Number of finished runs of other processes that share the study."""
        ...

    def best(self) -> tuple[str, float, dict[str, Any]] | None:
        """Point, value and settings of the best point so far."""
        ...

    def values_of(self, job: Job) -> dict[str, Any]:
        """The swept settings of an open job."""
        ...


@dataclass
class Slot:
    """A job that the executor works on."""

    job: Job
    started: float
    seen: dict[str, Any] = field(default_factory=dict)
    """Its last heartbeat."""
    changed: float = 0.0
    why_killed: str | None = None

    @property
    def fraction(self) -> float:
        return min(1.0, self.seen.get("env_steps", 0) / max(1, self.seen.get("total_env_steps", 1)))


class Watcher(Protocol):
    """A display of a sweep while it runs."""

    def begin(self, drive: Drive, *, new: bool, space: list[str]) -> None: ...

    def draw(self, drive: Drive) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self, drive: Drive) -> None: ...


class Stop(Protocol):
    def should_stop(self) -> bool: ...


class Drive:
    """One session of training a sweep's runs.

    Args:
        sweep: locked by the caller.
        plan: what there is to do.
        executor: where it is done.
        retries: how often a job whose worker died or hung is tried again.
        stall_s: seconds without a heartbeat after which a job counts as hung; 0 never.
        watcher: shown what happens.
    """

    def __init__(self, sweep: SweepDir, plan: Plan, executor: Executor, *, retries: int, stall_s: float, watcher: Watcher) -> None:
        spec = sweep.spec()
        self.num_seeds, self.objective = len(spec.seeds), spec.objective
        self.sweep, self.plan, self.executor, self.watcher = sweep, plan, executor, watcher
        self.slots: list[Slot] = []
        self.failures: dict[str, Failure] = dict(sweep.history().failures)
        self.stopping = False
        self._retries, self._stall_s = retries, stall_s
        self._again: list[Job] = []
        self._began = time.monotonic()
        self._done_before = plan.finished_runs()

    def run(self, signals: Stop) -> bool:
        """Work until nothing is left or a stop is requested; returns whether nothing is left."""
        self.sweep.log("drive", executor=self.executor.description)
        try:
            while True:
                if not self.stopping:
                    for job in self._startable():
                        self._start(job)
                if not self.slots:
                    return not self.stopping
                for job, result in self.executor.wait(_POLL_S):
                    self._end(job, result)
                self._look_for_hung()
                self.watcher.draw(self)
                if signals.should_stop() and not self.stopping:
                    self._stop_all()
        finally:
            self._let_go()

    def left_s(self) -> float | None:
        """Seconds until the end at the speed so far; None while there is none."""
        done = self.plan.finished_runs() - self._done_before + sum(slot.fraction for slot in self.slots)
        elapsed = time.monotonic() - self._began
        remaining = self.plan.total_runs - self._done_before - done
        return remaining * elapsed / done if done > 0.05 and elapsed > 1.0 else None

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def _startable(self) -> Iterator[Job]:
        while len(self.slots) < self.executor.slots:
            job = self._again.pop(0) if self._again else self.plan.next()
            if job is None:
                return
            yield job

    def _start(self, job: Job) -> None:
        now = time.monotonic()
        self.sweep.log("start", run=job.name, attempt=job.attempt)
        clear_heartbeat(self.sweep.path / job.name)  # a killed attempt may have left one
        self.executor.start(job)
        self.slots.append(Slot(job=job, started=now, changed=now))

    def _end(self, job: Job, result: Result) -> None:
        slot = next(s for s in self.slots if s.job == job)
        self.slots.remove(slot)
        error = slot.why_killed or result.error
        status = result.status
        if status == "stopped" and not self.stopping:
            status, error = "lost", error or "it was stopped from outside the sweep"
        details = {"error": error, "exit_code": result.exit_code} if error else {}
        self.sweep.log("end", run=job.name, status=status, attempt=job.attempt, **details)
        if status == "lost" and not self.stopping:
            if job.attempt <= self._retries:
                self._again.append(replace(job, attempt=job.attempt + 1))
                self.watcher.note(f"{job.name}: {error}; it goes on from its last checkpoint")
                return
            status = "failed"
        if status == "failed":
            self.failures[job.name] = failure = Failure(job.name, str(error), result.exit_code or 1, job.attempt)
            self.sweep.log("failed", run=job.name, error=failure.error, exit_code=failure.exit_code, attempt=job.attempt)
            self._say_in_run(job, slot, str(error))
        elif status in ("finished", "paused"):
            self.failures.pop(job.name, None)
        if status in ("finished", "paused", "failed"):
            ended = Result(status=status, error=error, exit_code=result.exit_code)
            for text in self.plan.ended(job, ended):
                self.watcher.note(text)

    def _say_in_run(self, job: Job, slot: Slot, error: str) -> None:
        """Record in a run why it ended, for a worker that could not."""
        run = RunDir(self.sweep.path / job.name)
        if slot.why_killed and run.segments and run.status == "killed":
            with contextlib.suppress(OSError):
                run.end_segment(status="failed", error=error)

    def _look_for_hung(self) -> None:
        now = time.monotonic()
        for slot in self.slots:
            seen = read_heartbeat(self.sweep.path / slot.job.name)
            if seen and seen != slot.seen:
                slot.seen, slot.changed = seen, now
            elif not slot.seen and self.executor.waiting(slot.job):
                slot.changed = now
            if self._stall_s and now - slot.changed > self._stall_s and slot.why_killed is None:
                phase = f" in phase {slot.seen['phase']}" if slot.seen else " before its first step"
                slot.why_killed = f"no heartbeat for {self._stall_s:.0f} s{phase}"
                self.executor.kill(slot.job)

    def _stop_all(self) -> None:
        self.stopping = True
        if self.slots:
            self.watcher.note(f"saving {len(self.slots)} run{'s' if len(self.slots) > 1 else ''}; once more stops at once, without saving")
        for slot in self.slots:
            self.executor.stop(slot.job)

    def _let_go(self) -> None:
        """Stop the open runs, so that they save; kill those that do not end in time."""
        try:
            if self.slots:
                self.stopping = True
                for slot in self.slots:
                    self.executor.stop(slot.job)
                deadline = time.monotonic() + _SAVE_PATIENCE_S
                while self.slots and time.monotonic() < deadline:
                    for job, result in self.executor.wait(_POLL_S):
                        self._end(job, result)
        finally:
            self.executor.close()
