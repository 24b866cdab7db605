"""Runs of a sweep on this machine: a process for each, forked from a server that has imported torch once.

A process of its own isolates a run: a crash ends nothing else, and memory is freed. The fork takes a hundredth of a second instead of
the seconds that importing torch takes. The server only imports, so that no threads are lost by the fork.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any

from rlx.errors import ConfigError
from rlx.sweep.executors.executor import Job, Result, open_log

_PRELOAD = (
    "rlx.cli.main",
    "rlx.run",
    "rlx.sweep.executors.worker",
    "rlx.envs.control.cartpole",
    "rlx.algos.ppo",
    "rlx.algos.a2c",
    "rlx.algos.reinforce",
)


@dataclass(kw_only=True)
class _Open:
    """A job in progress."""

    process: Any
    answer: connection.Connection
    gpus: list[str]


class LocalExecutor:
    """Process slots on this machine.

    Args:
        slots: jobs at once.
        cores: CPU cores that a job keeps busy at most; slots × cores are at most the cores there are.
        gpus: names of the GPUs, as in CUDA_VISIBLE_DEVICES; every job that needs some gets them to itself.
        gpus_each: GPUs that a job needs at most.

    Raises:
        ConfigError: if that is more than the machine has.
    """

    def __init__(self, slots: int | None = None, *, cores: int = 1, gpus: Sequence[str] = (), gpus_each: int = 1) -> None:
        if gpus and len(gpus) < gpus_each:
            raise ConfigError(
                f"--ranks {gpus_each}: each rank gets a GPU of its own, and there are {len(gpus)} here: use --ranks {len(gpus)}"
            )
        self.slots = _slots(slots, cores, len(gpus) // gpus_each)
        self.description = f"{self.slots} process{'es' if self.slots > 1 else ''} of {cores} core{'s' if cores > 1 else ''} on this machine"
        self._free_gpus = list(gpus)
        self._open: dict[Job, _Open] = {}
        self._context = warm_up()

    def start(self, job: Job) -> None:
        gpus, self._free_gpus = self._free_gpus[: job.gpus], self._free_gpus[job.gpus :]
        answer, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_child, args=(job, ",".join(gpus), theirs), name=job.name)
        process.start()
        theirs.close()
        self._open[job] = _Open(process=process, answer=answer, gpus=gpus)

    def wait(self, timeout_s: float) -> list[tuple[Job, Result]]:
        connection.wait([o.process.sentinel for o in self._open.values()], timeout_s)
        ended = [(job, o) for job, o in self._open.items() if not o.process.is_alive()]
        return [(job, self._result(job, o)) for job, o in ended]

    def waiting(self, job: Job) -> bool:
        return False

    def stop(self, job: Job) -> None:
        self._signal(job, signal.SIGTERM)

    def kill(self, job: Job) -> None:
        self._signal(job, signal.SIGKILL)

    def close(self) -> None:
        for job, o in list(self._open.items()):
            self.kill(job)
            o.process.join()
            self._result(job, o)

    def _signal(self, job: Job, number: int) -> None:
        opened = self._open.get(job)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if opened is None:
                return
            if number == signal.SIGKILL:
                os.killpg(opened.process.pid, number)  # and the processes of its environments
            else:
                os.kill(opened.process.pid, number)

    def _result(self, job: Job, opened: _Open) -> Result:
        del self._open[job]
        self._free_gpus += opened.gpus
        result = None
        with contextlib.suppress(EOFError, OSError), opened.answer:
            result = opened.answer.recv() if opened.answer.poll() else None
        opened.process.join()
        code = opened.process.exitcode or 0
        opened.process.close()
        return result if isinstance(result, Result) else Result(status="lost", exit_code=code, error=_cause(code))


def warm_up() -> Any:
    """Start the server that imports what runs need, if it does not run; called early, it imports while the sweep is being prepared."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # a run sets torch's own threads itself
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOAD))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by the server: Ctrl-C while it imports must stop only the sweep
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    return context


def available_cores() -> int:
    """CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _slots(wanted: int | None, cores: int, gpus: int) -> int:
    there = available_cores()
    if cores > there:
        raise ConfigError(
            f"one run keeps {cores} cores busy (--ranks, runtime.threads, env.threads, env.workers) and {there} are here: lower these"
        )
    most = there // cores
    if wanted is None:
        return min(most, gpus) if gpus else most
    if wanted < 1:
        raise ConfigError(f"--jobs {wanted}: expected at least 1")
    if wanted > most:
        each = f"each of {cores} cores" if cores > 1 else "each of one core"
        raise ConfigError(f"--jobs {wanted}: runs {each} would slow each other down on the {there} cores here; say --jobs {most} or less")
    if gpus and wanted > gpus:
        raise ConfigError(f"--jobs {wanted}: runs on a GPU get one each, and there are {gpus} here; say --jobs {gpus} or less")
    return wanted


def _cause(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code} and no result"
    name = signal.Signals(-code).name
    return f"its process was ended by {name}" + (", as the system does when memory runs out" if -code == signal.SIGKILL else "")


def _child(job: Job, gpus: str, answer: connection.Connection) -> None:
    """The process of a job."""
    os.setsid()  # Ctrl-C in the terminal goes to the sweep, which stops its runs
    log = open_log(Path(job.run))
    os.dup2(log, 1)
    os.dup2(log, 2)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    threading.Thread(target=_follow_the_sweep, name="rlx-sweep", daemon=True).start()
    from rlx.sweep.executors.worker import work

    with answer:
        answer.send(work(job))


def _follow_the_sweep() -> None:
    """Save and stop when the sweep is killed, because nothing else would stop this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
