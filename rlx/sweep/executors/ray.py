"""Runs of a sweep as tasks of a Ray cluster, or of a Ray started for them on this machine.

Ray's own retries are off: a run whose worker or node died is reported as lost; the sweep counts it and resumes it on a free worker.
A worker process is kept for the next run, so torch is imported once per worker.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlx.errors import ConfigError
from rlx.store.runs import RunDir
from rlx.sweep.executors.executor import Job, Result, open_log
from rlx.sweep.executors.local import available_cores

_CONNECT_S = 3.0
"""Timeout for connecting to a machine."""
_ANSWER_S = 15.0
"""Timeout of Ray's health check; most of it is for importing ray on a busy machine."""
_VISIBLE_WITHIN_S = 10.0
"""Time for a new directory to appear on another machine, because network file systems cache directory listings."""
_RECOUNT_EVERY_S = 2.0
_QUIET: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}


class RayExecutor:
    """Tasks on a Ray cluster.

    Args:
        address: `auto` for the cluster of this machine or of RAY_ADDRESS, `host:port` of a head node, `ray://host:port` of a client
            server; None starts Ray on this machine, for this sweep only.
        slots: tasks at once; None follows the cluster as nodes come and go.
        cores: CPU cores that a job keeps busy at most.
        gpus: GPUs that a job needs at most.

    Raises:
        ConfigError: if ray is not installed, nothing answers at the address, or no node is large enough for a job.
    """

    def __init__(self, address: str | None = None, *, slots: int | None = None, cores: int = 1, gpus: int = 0) -> None:
        if slots is not None and slots < 1:
            raise ConfigError(f"--jobs {slots}: expected at least 1")
        self._connected = _connect(address)
        import ray

        self._ray, self._cores, self._gpus, self._fixed = ray, cores, gpus, slots is not None
        where = f"Ray at {address}" if address else "Ray on this machine"
        try:
            nodes = self._nodes()
            capacity = _capacity(nodes, cores, gpus)
            if capacity == 0:
                needs = f"{cores} core{'s' if cores > 1 else ''}" + (f" and {gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "")
                largest = max((int(n.get("CPU", 0)) for n in nodes), default=0)
                raise ConfigError(
                    f"one run needs {needs} and no node of {where} has that (the largest has {largest} cores): "
                    "lower runtime.threads, env.threads and env.workers, choose runtime.device=cpu, or add a node with `ray start`"
                )
            if slots is not None and slots > capacity and address is None:
                raise ConfigError(f"--jobs {slots}: {where} has room for {capacity}; say --jobs {capacity} or less")
        except BaseException:
            self._disconnect()
            raise
        self.slots = slots or capacity
        each = f"{cores} core{'s' if cores > 1 else ''}" + (f" and {gpus} GPU" if gpus else "")
        self.description = f"{self.slots} task{'s' if self.slots > 1 else ''} of {each} on {where}" + (
            f", {len(nodes)} node{'s' if len(nodes) > 1 else ''}" if address else ""
        )
        self._task = ray.remote(max_retries=0)(_train)
        self._open: dict[Job, Any] = {}
        self._stopped: set[Job] = set()
        self._queued: dict[Job, int] = {}
        self._counted = time.monotonic()

    def start(self, job: Job) -> None:
        options = self._task.options(num_cpus=job.cores, num_gpus=job.gpus, name=job.name)
        self._queued[job] = len(RunDir(Path(job.run)).segments)
        self._open[job] = options.remote(job, os.getcwd())

    def wait(self, timeout_s: float) -> list[tuple[Job, Result]]:
        self._recount()
        if not self._open:
            time.sleep(timeout_s)
            return []
        refs = list(self._open.values())
        self._ray.wait(refs, num_returns=1, timeout=timeout_s)
        ready = set(self._ray.wait(refs, num_returns=len(refs), timeout=0)[0])
        return [(job, self._result(job, ref)) for job, ref in list(self._open.items()) if ref in ready]

    def waiting(self, job: Job) -> bool:
        """Whether the run has not begun a new segment yet, because the cluster is busy or nodes are missing."""
        if job in self._queued and len(RunDir(Path(job.run)).segments) > self._queued[job]:
            del self._queued[job]
        return job in self._queued

    def stop(self, job: Job) -> None:
        if job in self._open and job not in self._stopped:  # a second interrupt would end the run without saving
            self._stopped.add(job)
            self._ray.cancel(self._open[job])  # SIGINT in the worker's main thread, which a run that trains handles

    def kill(self, job: Job) -> None:
        if job in self._open:
            self._stopped.discard(job)
            self._ray.cancel(self._open[job], force=True)

    def close(self) -> None:
        for job in self._open:
            with contextlib.suppress(Exception):  # the cluster may be gone
                self.kill(job)
        self._open.clear()
        self._disconnect()

    def _result(self, job: Job, ref: Any) -> Result:
        errors = self._ray.exceptions
        del self._open[job]
        self._queued.pop(job, None)
        stopped = job in self._stopped
        self._stopped.discard(job)
        try:
            result = self._ray.get(ref)
        except errors.TaskCancelledError:  # before it began to train, or by force
            return Result(status="stopped", exit_code=130) if stopped else Result(status="lost", error="its Ray task was cancelled")
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(getattr(error, "cause", None), BaseException) else error
            return Result(status="failed", error=_one_line(cause), exit_code=1)
        except (errors.WorkerCrashedError, errors.LocalRayletDiedError):
            return Result(status="lost", error="its Ray worker died")
        except errors.NodeDiedError:
            return Result(status="lost", error="its Ray node died")
        except errors.RayError as error:
            return Result(status="lost", error=_one_line(error))
        assert isinstance(result, Result)
        return result

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _recount(self) -> None:
        """Set the slots to the cluster's size, at least 1, so that a sweep without nodes waits instead of ending."""
        now = time.monotonic()
        if not self._fixed and now - self._counted > _RECOUNT_EVERY_S:
            self._counted = now
            self.slots = max(1, _capacity(self._nodes(), self._cores, self._gpus))

    def _disconnect(self) -> None:
        if self._connected:
            self._connected = False
            self._ray.shutdown()


def _capacity(nodes: list[dict[str, float]], cores: int, gpus: int) -> int:
    """Number of jobs that fit into the nodes at once; a job cannot span two nodes."""
    return sum(min(int(n.get("CPU", 0)) // cores, int(n.get("GPU", 0)) // gpus if gpus else sys.maxsize) for n in nodes)


def _connect(address: str | None) -> bool:
    """Start Ray or connect to it; returns whether that was needed.

    Raises:
        ConfigError: if ray is not installed, or nothing answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError("--executor ray needs Ray, which is not installed: pip install 'rlx[ray]'") from None
    if ray.is_initialized():
        return False
    ray._private.worker._worker_logs_enabled = False  # else every dead worker prints a kilobyte; a sweep prints a line
    if address is None:
        ray.init("local", num_cpus=available_cores(), include_dashboard=False, **_QUIET)
        return True
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    if address != "auto":
        _check_address(address)
    try:
        ray.init(address, **_QUIET)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = "none runs on this machine, and RAY_ADDRESS is not set" if address == "auto" else _one_line(error)
        raise _unreachable(address, reason) from error
    return True


def _check_address(address: str) -> None:
    """Raise a ConfigError unless Ray answers at an address; Ray itself takes minutes to find out that it does not."""
    match = re.fullmatch(r"(ray://)?\[?([^/\[\]]+?)\]?:(\d{1,5})", address)
    if match is None or int(match[3]) > 65535:
        raise ConfigError(f"--address {address}: expected auto, host:port of a Ray head node (6379 by default), or ray://host:port (10001)")
    client, host, port = match[1], match[2], int(match[3])
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        raise _unreachable(address, error.strerror or str(error)) from error
    if client:
        if importlib.util.find_spec("grpc") is None:
            raise ConfigError(f"--address {address} needs Ray's client, which is not installed: pip install 'ray[client]'")
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S)
    except subprocess.TimeoutExpired:
        raise _unreachable(address, "something listens there that does not answer as Ray does") from None
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise _unreachable(address, said[-1] if said else "what listens there is not a healthy one")


def _unreachable(address: str, reason: str) -> ConfigError:
    advice = "start a cluster with `ray start --head --port=6379`"
    if address != "auto":
        advice += " on that machine"
    return ConfigError(f"--address {address}: no Ray cluster answers ({reason}); {advice}, or leave --address out to start Ray here")


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _train(job: Job, directory: str) -> Result:
    """Train a job in a Ray worker; modules of the directory that the sweep was started in can be imported."""
    run = Path(job.run)
    deadline = time.monotonic() + _VISIBLE_WITHIN_S
    while not run.is_dir():
        if time.monotonic() > deadline:
            return Result(
                status="failed",
                exit_code=2,
                error=f"{run} is not visible on {socket.gethostname()}: the runs directory must be on a file system that all nodes share "
                "(set RLX_RUNS_DIR)",
            )
        time.sleep(0.1)
    if directory not in sys.path:
        sys.path.append(directory)  # where a sweep's own environments may be
    with _output_to(open_log(run)):
        from rlx.sweep.executors.worker import work

        return work(job)


@contextlib.contextmanager
def _output_to(file: int) -> Iterator[None]:
    """Append the output of this process to a file during the block; the next run has another file."""
    saved = [os.dup(1), os.dup(2)]
    try:
        _divert(file, file)
        yield
    finally:
        _divert(*saved)
        for descriptor in (file, *saved):
            os.close(descriptor)


def _divert(stdout: int, stderr: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
