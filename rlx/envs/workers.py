"""B environments stepped in N worker processes; the same results as GymVectorEnv, bit by bit.

Each worker holds a GymVectorEnv of its share. Observations, rewards, flags and actions lie in memory that all processes map;
a socket per worker carries one small message to it and one back. Three choices are less obvious:

- Workers are new interpreters started by `subprocess`, not by `multiprocessing`. Its start methods either fork, unsafe once
  torch has threads, or execute the parent's main script again, and leave a resource tracker and perhaps a fork server running.
- The shared memory is an anonymous file inherited by descriptor: it has no name, so no crash can leave it in /dev/shm.
- A worker lives as long as the other end of its socket, which the kernel closes however the parent dies.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import pickle
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from rlx.envs.vector import Array, GymVectorEnv, MakeEnv
from rlx.errors import EnvError, RlxError

START_TIMEOUT_S = 60.0
"""At least this long for a worker to begin: importing from a cold network disk takes longer than any step."""

CLOSE_S = 2.0
"""How long a worker may take to close its environments once its parent has gone."""

BEAT_S = 0.1
"""How often a worker says that it is still replaying."""

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
"""A terminal or SLURM sends these to all processes of a run; the parent alone acts on them, after its iteration."""

_STEP, _DONE, _BUSY = (pickle.dumps(message) for message in (("step",), ("done", None), ("busy", None)))
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from rlx.envs.workers import serve; serve(*map(int, sys.argv[2:]))"


@dataclass(frozen=True)
class _Worker:
    """The parent's side of a worker that steps the environments [first, last)."""

    index: int
    first: int
    last: int
    process: subprocess.Popen[bytes]
    connection: Connection

    def __str__(self) -> str:
        envs = f"environments {self.first} to {self.last - 1}" if self.last - self.first > 1 else f"environment {self.first}"
        return f"worker {self.index} ({envs})"


class ProcessVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """B gymnasium environments in N worker processes.

    After an environment has raised, the others are still there; after a worker was lost or given up, all are closed.

    Args:
        make: builds one environment; pickled, so defined in a module that the workers can import.
        num_envs: B.
        num_workers: N, at most B are used; B need not be a multiple.
        timeout_s: a worker that says nothing for so long is given up, above 0.

    Raises:
        EnvError: from every method but close, when an environment raises, or a worker dies or does not answer.
        ConfigError: if `make` raises it.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  (the API's own class attribute)

    def __init__(self, make: MakeEnv, num_envs: int, *, num_workers: int, timeout_s: float) -> None:
        self.num_envs, self._timeout_s = num_envs, timeout_s
        self._workers: list[_Worker] = []
        self._shut_down = weakref.finalize(self, _shut_down, self._workers)  # also when forgotten, and at exit
        self._poll = select.poll()
        num_workers = min(num_workers, num_envs)
        bounds = [num_envs * k // num_workers for k in range(num_workers + 1)]
        with _anonymous_file() as memory:
            try:
                for index, (first, last) in enumerate(zip(bounds, bounds[1:], strict=False)):
                    self._workers.append(_start(index, first, last, memory.fileno(), timeout_s))
                    self._poll.register(self._workers[-1].connection.fileno(), select.POLLIN)
                starting = {w: pickle.dumps((make, w.first, w.last, num_envs)) for w in self._workers}
                spaces = self._call(starting, timeout_s=max(timeout_s, START_TIMEOUT_S))[0]
                memory.truncate(_layout(*spaces, num_envs)[1])
                self.single_observation_space, self.single_action_space = spaces
                self._actions, *self._result = _arrays(memory.fileno(), *spaces, num_envs)
                self._call({w: pickle.dumps("map") for w in self._workers})
            except BaseException:
                self.close()
                raise
        self._step_all = dict.fromkeys(self._workers, _STEP)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin episodes where `options["reset_mask"]` (default everywhere); seed is one integer per env.

        The arrays returned here and by `step` are overwritten by the next call.
        """
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool)))
        seeds = np.asarray(seed, dtype=np.int64)
        shares = {w: slice(w.first, w.last) for w in self._workers}
        self._call({w: pickle.dumps(("reset", seeds[i], mask[i])) for w, i in shares.items() if mask[i].any()})
        return self._result[0], {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        np.copyto(self._actions, actions, casting="same_kind")
        self._call(self._step_all)
        obs, reward, terminated, truncated = self._result
        return obs, reward, terminated, truncated, {}

    def restore(self, seeds: Sequence[int], actions: Sequence[Array]) -> Array:
        self._call({w: pickle.dumps(("restore", seeds[w.first : w.last], actions[w.first : w.last])) for w in self._workers})
        return self._result[0]

    def close(self, **kwargs: Any) -> None:
        """End the workers, by force those that do not go by themselves; a second call does nothing."""
        self._shut_down()

    def _call(self, requests: dict[_Worker, bytes], *, timeout_s: float | None = None) -> list[Any]:
        """Send the requests, then wait for all the answers; returned in the order of the requests.

        All are awaited even if one is an error, or the next call would read the answers to this one.
        """
        if not self._shut_down.alive:
            raise EnvError("these environments are closed")
        try:
            for worker, request in requests.items():
                _send(worker, request, self._timeout_s)
            answers = self._await({w.connection.fileno(): w for w in requests}, timeout_s or self._timeout_s)
        except BaseException:
            self.close()
            raise
        for worker in requests:
            kind, value = answers[worker]
            if kind == "error":
                error_type, message, trace = value
                error: RlxError = error_type(message)
                error.add_note(f"{worker}: {trace}")
                raise error
        return [answers[worker][1] for worker in requests]

    def _await(self, pending: dict[int, _Worker], timeout_s: float) -> dict[_Worker, tuple[str, Any]]:
        """The answers by worker.

        Time is counted in short waits, not read off a clock: a run that was suspended must not take its workers for hung.
        """
        answers = {}
        left = timeout_s
        while pending:
            wait_s = min(left, 1.0)
            events = self._poll.poll(wait_s * 1000)
            if not events:
                left -= wait_s
                if left <= 0:
                    raise _hung(next(iter(pending.values())), timeout_s)
            for fd, _ in events:
                worker = pending.get(fd) or next(w for w in self._workers if w.connection.fileno() == fd)
                try:
                    kind, value = worker.connection.recv()
                except (EOFError, OSError):
                    raise _lost(worker) from None
                if kind == "busy":
                    left = timeout_s
                    continue
                answers[pending.pop(fd)] = kind, value
        return answers


def _start(index: int, first: int, last: int, memory: int, timeout_s: float) -> _Worker:
    """Start the interpreter of one worker."""
    ours, theirs = socket.socketpair()
    seconds, fraction = divmod(timeout_s, 1.0)
    timeval = struct.pack("@ll", int(seconds), int(fraction * 1e6))
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)  # a stopped worker must not block `restore`
    path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
    command = [sys.executable, "-P", "-c", _BOOT, path, str(theirs.fileno()), str(memory)]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited, so that none arrives before `serve` is ready
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), memory))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
    return _Worker(index, first, last, process, Connection(ours.detach()))


def _send(worker: _Worker, request: bytes, timeout_s: float) -> None:
    try:
        worker.connection.send_bytes(request)
    except BlockingIOError:
        raise _hung(worker, timeout_s) from None
    except OSError:
        raise _lost(worker) from None


def _hung(worker: _Worker, timeout_s: float) -> EnvError:
    worker.process.kill()
    return EnvError(
        f"{worker} did not answer for {timeout_s:g} s and was given up; if a step may take that long, raise "
        "env.worker_timeout_s; `rlx resume` goes on from the last checkpoint"
    )


def _lost(worker: _Worker) -> EnvError:
    try:
        code = worker.process.wait(CLOSE_S)
    except subprocess.TimeoutExpired:  # the environment closed a descriptor that was not its own
        worker.process.kill()
        code = worker.process.wait()
    if code == -signal.SIGKILL:
        how = "was killed by SIGKILL, which is what happens when memory runs out (fewer env.num_envs or env.workers need less)"
    elif code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
    else:
        how = f"exited with code {code}"
    return EnvError(f"{worker} {how}; `rlx resume` goes on from the last checkpoint")


def _shut_down(workers: list[_Worker]) -> None:
    """Hang up, and kill whoever is still there CLOSE_S later; SIGTERM would be ignored."""
    for worker in workers:
        worker.connection.close()
    deadline = time.monotonic() + CLOSE_S
    for worker in workers:
        try:
            worker.process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


def _anonymous_file() -> Any:
    """An empty file that no other process can find: in memory where the system has that, on disk and unlinked elsewhere."""
    return os.fdopen(os.memfd_create("rlx"), "r+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()


def _layout(obs_space: Any, action_space: Any, num_envs: int) -> tuple[list[tuple[Any, Any, int]], int]:
    """Shape, dtype and offset of actions, obs, reward, terminated and truncated in the shared memory, and its size in bytes."""
    per_env = (action_space.shape, action_space.dtype), (obs_space.shape, obs_space.dtype), ((), np.float32), ((), bool), ((), bool)
    places, offset = [], 0
    for shape, dtype in per_env:
        places.append(((num_envs, *shape), dtype, offset))
        size = num_envs * math.prod(shape) * np.dtype(dtype).itemsize
        offset += -(-size // 64) * 64
    return places, offset


def _arrays(memory: int, obs_space: Any, action_space: Any, num_envs: int) -> list[Array]:
    """The shared arrays [B, *], in the order of `_layout`; they keep the mapping alive."""
    places, size = _layout(obs_space, action_space, num_envs)
    mapped = mmap.mmap(memory, size)
    return [np.ndarray(shape, dtype, buffer=mapped, offset=offset) for shape, dtype, offset in places]


def serve(connection_fd: int, memory: int) -> None:
    """A worker's life: make its environments, then answer until the parent hangs up."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)  # not SIG_IGN: programs that an environment starts would inherit it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.set_inheritable(connection_fd, False)
    threading.Thread(target=_die_with_parent, args=(connection_fd,), daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):
        _serve(Connection(connection_fd), memory)


def _serve(connection: Connection, memory: int) -> None:
    first, request = 0, connection.recv_bytes()
    try:
        make, first, last, num_envs = pickle.loads(request)
        chunk = GymVectorEnv(make, last - first)
    except Exception as error:
        _send_error(connection, error, first)
        return
    try:
        spaces = chunk.single_observation_space, chunk.single_action_space
        connection.send(("done", spaces))
        connection.recv()
        actions, *result = (array[first:last] for array in _arrays(memory, *spaces, num_envs))
        os.close(memory)
        chunk._obs, chunk._reward, chunk._terminated, chunk._truncated = result  # it writes where the parent reads
        connection.send_bytes(_DONE)
        while True:
            command, *args = connection.recv()
            try:
                if command == "step":
                    chunk.step(actions.copy())  # an environment may keep its action
                elif command == "reset":
                    chunk.reset(seed=args[0], options={"reset_mask": args[1]})
                else:
                    chunk.restore(args[0], [_Beating(a, connection) for a in args[1]])  # type: ignore[misc]  (quacks as it must)
            except Exception as error:
                _send_error(connection, error, first)
            else:
                connection.send_bytes(_DONE)
    finally:
        chunk.close()


class _Beating:
    """Actions that say while they are replayed that the worker is alive: a long episode takes longer than any step."""

    def __init__(self, actions: Array, connection: Connection) -> None:
        self._actions, self._connection = actions, connection

    def __iter__(self) -> Iterator[Any]:
        return self._beat(self._actions)

    def tolist(self) -> Iterator[Any]:
        return self._beat(self._actions.tolist())

    def _beat(self, actions: Any) -> Iterator[Any]:
        last = time.monotonic()
        for action in actions:
            if time.monotonic() - last > BEAT_S:
                self._connection.send_bytes(_BUSY)
                last = time.monotonic()
            yield action


def _send_error(connection: Connection, error: Exception, first: int) -> None:
    """What the parent is to raise; exceptions themselves may not survive pickling."""
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, EnvError):  # numbered within this worker
        message = re.sub(r"^environment (\d+)", lambda match: f"environment {first + int(match[1])}", str(error))
    elif isinstance(error, RlxError):
        message = str(error)
    else:
        message = f"making an environment in a worker process raised {type(error).__name__}: {error}"
    connection.send(("error", (type(error) if isinstance(error, RlxError) else EnvError, message, trace)))


def _die_with_parent(connection_fd: int) -> None:
    """End this process when the parent has gone and `serve` has not noticed, because an environment is busy or hangs."""
    poll = select.poll()
    poll.register(connection_fd, select.POLLHUP)
    poll.poll()
    time.sleep(CLOSE_S)
    os._exit(1)
