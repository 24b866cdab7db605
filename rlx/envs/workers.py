"""B environments stepped in N worker processes, with the same results as GymVectorEnv bit by bit.

Each worker holds a GymVectorEnv of its share. Observations, rewards, flags and actions lie in memory that all processes map;
a socket per worker carries one small message to it and one back. Three choices are less obvious:

- Workers are new interpreters started by `subprocess`, not by `multiprocessing`. Its start methods either fork, unsafe once
  torch has threads, or execute the parent's main script again, and leave a resource tracker and perhaps a fork server running.
- The shared memory is an anonymous file inherited by descriptor: it has no name, so no crash can leave it in /dev/shm.
- A worker lives as long as the other end of its socket, which the kernel closes however the parent dies.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import mmap
import os
import pickle
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import create_empty_array

from rlx.envs.vector import Array, GymVectorEnv, MakeEnv, OnReplay, check_same_spaces
from rlx.errors import EnvError, RlxError
from rlx.tree_ops import Tree, leaves, pick, with_leaves

START_TIMEOUT_S = 60.0
"""Least time for a worker to start: importing from a cold network disk takes longer than any step."""

CLOSE_S = 2.0
"""How long a worker may take to close its environments once its parent has gone."""

BEAT_S = 0.1
"""Interval at which a worker reports that it is still replaying."""

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
"""A terminal or SLURM sends these to all processes of a run; the parent alone acts on them, after its iteration."""

_STEP, _MAP, _DONE = map(pickle.dumps, (("step",), ("map",), ("done", None)))
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

    After an environment has raised, the environments stay open. After a worker died or timed out, all are closed.

    Args:
        make: builds one environment; pickled, so defined in a module that the workers can import.
        num_envs: B.
        num_workers: N, at most B are used; B need not be a multiple.
        timeout_s: seconds above 0 without an answer after which a worker counts as hung.

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
                for index, (first, last) in enumerate(itertools.pairwise(bounds)):
                    self._workers.append(_start(index, first, last, memory.fileno(), timeout_s))
                    self._poll.register(self._workers[-1].connection.fileno(), select.POLLIN)
                starting = {w: pickle.dumps((make, w.first, w.last, num_envs)) for w in self._workers}
                of_workers = self._call(starting, timeout_s=max(timeout_s, START_TIMEOUT_S))
                spaces, (self.reports_life_loss, self.has_snapshots, self.has_native_state) = of_workers[0]
                for worker, (theirs, _) in zip(self._workers, of_workers, strict=True):
                    check_same_spaces(spaces, theirs, worker.first)
                self._actions, *self._result, self._life_lost = _map(memory.fileno(), spaces, num_envs)
                self._call(dict.fromkeys(self._workers, _MAP))
            except BaseException:
                self.close()
                raise
        self.single_observation_space, self.single_action_space = spaces
        self._step_all = dict.fromkeys(self._workers, _STEP)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Tree, dict[str, Any]]:
        """Begin episodes where `options["reset_mask"]` (default everywhere); seed is one integer per env.

        The arrays returned here and by `step` are overwritten by the next call.
        """
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool)))
        seeds = np.asarray(seed, dtype=np.int64)
        shares = {w: slice(w.first, w.last) for w in self._workers}
        self._call({w: pickle.dumps(("reset", seeds[i], mask[i])) for w, i in shares.items() if mask[i].any()})
        return self._result[0], {}

    def step(self, actions: Array) -> tuple[Tree, Array, Array, Array, dict[str, Any]]:
        np.copyto(self._actions, actions, casting="same_kind")
        self._call(self._step_all)
        obs, reward, terminated, truncated = self._result
        return obs, reward, terminated, truncated, {"life_lost": self._life_lost} if self.reports_life_loss else {}

    def restore(self, seeds: Sequence[int], actions: Sequence[Array], on_replay: OnReplay = lambda _: None) -> tuple[Tree, list[Array]]:
        requests = {w: pickle.dumps(("restore", seeds[w.first : w.last], actions[w.first : w.last])) for w in self._workers}
        return self._result[0], list(itertools.chain.from_iterable(self._call(requests, on_replay=on_replay)))

    def snapshots(self) -> list[dict[str, Any]]:
        """The state of every environment."""
        return list(itertools.chain.from_iterable(self._call(dict.fromkeys(self._workers, pickle.dumps(("snapshots",))))))

    def restore_snapshots(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Bring every environment to its state.

        Raises:
            CheckpointError: if one does not accept it.
        """
        self._call({w: pickle.dumps(("restore_snapshots", list(states[w.first : w.last]))) for w in self._workers})

    def close(self, **kwargs: Any) -> None:
        """End the workers, and kill those that do not exit by themselves; a second call does nothing."""
        self._shut_down()

    def _call(self, requests: dict[_Worker, bytes], *, timeout_s: float | None = None, on_replay: OnReplay = lambda _: None) -> list[Any]:
        """The answers to the requests; raises the first error among them.

        It waits for all answers even if one is an error: otherwise the next call would read the answers to this one.
        """
        if not self._shut_down.alive:
            raise EnvError("these environments are closed: a worker was lost, or close() was called")
        try:
            for worker, request in requests.items():
                try:
                    worker.connection.send_bytes(request)
                except BlockingIOError:  # after SO_SNDTIMEO
                    raise _hung(worker, self._timeout_s) from None
                except OSError:
                    raise _lost(worker) from None
            answers = self._await({w.connection.fileno(): w for w in requests}, timeout_s or self._timeout_s, on_replay)
        except BaseException:
            self.close()
            raise
        for worker in requests:
            if answers[worker][0] == "error":
                kind, message, trace = answers[worker][1]
                error: RlxError = kind(message)
                error.trace = trace
                raise error
        return [answers[worker][1] for worker in requests]

    def _await(self, pending: dict[int, _Worker], timeout_s: float, on_replay: OnReplay) -> dict[_Worker, tuple[str, Any]]:
        """The answers by worker.

        Time is counted in short waits, not read from a clock: after a suspended run wakes, its workers must not count as hung.
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
                    on_replay(value)
                else:
                    answers[pending.pop(fd)] = kind, value
        return answers


def _start(index: int, first: int, last: int, memory: int, timeout_s: float) -> _Worker:
    """Start a worker's interpreter with our sys.path, the other end of a socket, and the shared memory."""
    ours, theirs = socket.socketpair()
    fraction, seconds = math.modf(timeout_s)
    limit = struct.pack("@ll", int(seconds), int(fraction * 1e6))
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)  # or a stopped worker could block a large `restore` for ever
    path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
    command = [sys.executable, "-P", "-c", _BOOT, path, str(theirs.fileno()), str(memory)]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited, so that none arrives before `serve` is ready
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), memory))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
    return _Worker(index, first, last, process, Connection(ours.detach()))


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
    how = f"exited with code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
    if code == -signal.SIGKILL:
        how += ", as happens when memory runs out (fewer env.num_envs or env.workers need less)"
    return EnvError(f"{worker} {how}; `rlx resume` goes on from the last checkpoint")


def _shut_down(workers: list[_Worker]) -> None:
    """Close the sockets, and kill the workers that still run CLOSE_S later; they ignore SIGTERM."""
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
    """An empty file without a name: in memory where the system supports that, else on disk."""
    return os.fdopen(os.memfd_create("rlx"), "r+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()


def _map(memory: int, spaces: Any, num_envs: int) -> tuple[Array, Tree, Array, Array, Array, Array]:
    """The shared arrays [B, *]: actions, obs (a tree), reward, terminated, truncated, life_lost; they keep the mapping alive."""
    obs, action = (create_empty_array(space, num_envs) for space in spaces)
    like = action, obs, np.empty(num_envs, np.float32), *(np.empty(num_envs, bool) for _ in range(3))
    offsets = [0, *itertools.accumulate(-(-leaf.nbytes // 64) * 64 for leaf in leaves(like))]
    os.ftruncate(memory, offsets[-1])
    mapped = mmap.mmap(memory, offsets[-1])
    shared = (np.ndarray(leaf.shape, leaf.dtype, mapped, offset) for leaf, offset in zip(leaves(like), offsets, strict=False))
    arrays: tuple[Array, Tree, Array, Array, Array, Array] = with_leaves(like, shared)
    return arrays


def serve(connection_fd: int, memory: int) -> None:
    """The main function of a worker: make its environments, then answer requests until the parent closes the socket."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)  # not SIG_IGN: programs that an environment starts would inherit it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.set_inheritable(connection_fd, False)
    threading.Thread(target=_die_with_parent, args=(connection_fd,), daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):
        _serve(Connection(connection_fd), memory)


def _die_with_parent(connection_fd: int) -> None:
    """End this process when the parent has gone and `serve` has not noticed, because an environment is busy or hangs."""
    poll = select.poll()
    poll.register(connection_fd, select.POLLHUP)
    poll.poll()
    time.sleep(CLOSE_S)
    os._exit(1)


def _serve(connection: Connection, memory: int) -> None:
    request = connection.recv_bytes()
    try:
        make, first, last, num_envs = pickle.loads(request)
        chunk = GymVectorEnv(make, last - first, first=first)
    except (Exception, SystemExit) as error:
        _send_error(connection, error)
        connection.recv()  # until the parent closes the socket; to exit now would look like a lost worker
        return
    with contextlib.closing(chunk):
        spaces = chunk.single_observation_space, chunk.single_action_space
        connection.send(("done", (spaces, (chunk.reports_life_loss, chunk.has_snapshots, chunk.has_native_state))))
        connection.recv()  # the parent has made the memory large enough
        actions, *result = pick(_map(memory, spaces, num_envs), slice(first, last))
        os.close(memory)
        chunk.write_to(*result)  # which the parent reads
        connection.send_bytes(_DONE)
        while True:
            command, *args = connection.recv()
            try:
                answer = _DONE
                if command == "step":
                    chunk.step(actions)
                elif command == "reset":
                    chunk.reset(seed=args[0], options={"reset_mask": args[1]})
                elif command in ("snapshots", "restore_snapshots"):
                    answer = pickle.dumps(("done", getattr(chunk, command)(*args)))
                else:
                    answer = pickle.dumps(("done", chunk.restore(args[0], args[1], _Beat(connection))[1]))
            except (Exception, SystemExit) as error:
                _send_error(connection, error)
            else:
                connection.send_bytes(answer)


class _Beat:
    """Reports a replay's progress to the parent, because the replay of a long episode takes longer than any step."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._last, self._steps = connection, time.monotonic(), 0

    def __call__(self, steps: int) -> None:
        self._steps += steps
        if (now := time.monotonic()) - self._last > BEAT_S:
            self._connection.send(("busy", self._steps))
            self._last, self._steps = now, 0


def _send_error(connection: Connection, error: BaseException) -> None:
    """Send the error for the parent to raise, as text, because the exception itself may not be picklable."""
    own = isinstance(error, RlxError)
    trace = (isinstance(error, RlxError) and error.trace) or "".join(traceback.format_exception(error.__cause__ or error))
    message = str(error) if own else f"making the environment raised {type(error).__name__}: {error}"
    connection.send(("error", (type(error) if own else EnvError, message, trace)))
