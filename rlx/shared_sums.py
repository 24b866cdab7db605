"""Sums of vectors over the processes of one machine, in memory that they share: a tenth of the time of a sum over sockets.

Each process writes its vector and then a number that counts the sums; it reads the others' vectors once their numbers are there, and adds
all in the order of ranks, so that every process gets the same bits. There are two places for each vector, used in turn: nobody can write
to a place again before all have read it, because the sum in between needs them all. That the number is seen after the vector is what
processors of x86 guarantee and others do not.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CAPACITY = 1 << 20
"""Bytes of the largest vector; sockets are as fast for larger ones."""
_LINE = 64
"""Bytes of a line of the processor's cache: each process counts in one of its own."""
_BUSY_S, _LOOK_EVERY_S = 5e-5, 0.5
_FUTEX, _WAIT, _WAKE = 202, 0, 1  # of Linux on x86-64: to sleep until a number in memory changes
_DIRECTORY = Path("/dev/shm")


def is_possible() -> bool:
    """Whether this machine has what is needed."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and os.access(_DIRECTORY, os.W_OK)


def process_token(pid: int) -> str:
    """A name of a process that is running, which no later process has; empty if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else f"{pid} {fields[19]}"


def _futex(address: int, operation: int, value: int, timeout: Any) -> None:
    """The system call; a wait returns at once if the number is not `value`."""
    _libc().syscall(_FUTEX, ctypes.c_void_p(address), operation, ctypes.c_uint32(value), timeout, None, 0)


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None)


@functools.cache
def _timespec(seconds: float) -> Any:
    return (ctypes.c_long * 2)(int(seconds), int(seconds % 1.0 * 1e9))


def create(size: int) -> str | None:
    """A file of shared memory for `size` processes, which the creator deletes once all have opened it; None if there is no room."""
    path = _DIRECTORY / f"rlx-{os.getpid()}-{os.urandom(8).hex()}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _num_bytes(size))
        finally:
            os.close(descriptor)
    except OSError:
        path.unlink(missing_ok=True)
        return None
    return str(path)


def _num_bytes(size: int) -> int:
    return size * _LINE + 2 * size * CAPACITY


class SharedSums:
    """This process's part in the sums.

    Args:
        path: of `create`.
        rank, size: of this process.
        tokens: of the processes, by rank.
        timeout_s: how long to wait for the others.

    Raises:
        OSError: if the file cannot be opened, as on another machine.
        RuntimeError: by `add`, if another process has ended or is not there in time.
    """

    def __init__(self, path: str, rank: int, size: int, tokens: list[str], timeout_s: float) -> None:
        descriptor = os.open(path, os.O_RDWR)
        try:
            memory = mmap.mmap(descriptor, _num_bytes(size))
        finally:
            os.close(descriptor)
        if any(process_token(int(token.split()[0])) != token for token in tokens):
            raise OSError("the processes do not see each other")
        self._rank, self._size, self._tokens, self._timeout_s = rank, size, tokens, timeout_s
        lines: NDArray[Any] = np.frombuffer(memory, np.int64, size * _LINE // 8).reshape(size, -1)
        self._counts, self._has_left = lines[:, 0], lines[:, 1]
        self._places: NDArray[Any] = np.frombuffer(memory, np.uint8, offset=size * _LINE).reshape(2, size, CAPACITY)
        self._num_sums = 0

    def add(self, x: NDArray[Any]) -> None:
        """Replace x [N] by its sum over all processes; all have the same N and type, and at most CAPACITY bytes."""
        places = self._places[self._num_sums % 2, :, : x.nbytes].view(x.dtype)
        self._num_sums += 1
        places[self._rank] = x
        self._counts[self._rank] = self._num_sums
        self._wake()
        self._wait()
        x[:] = places[0]
        for other in places[1:]:
            x += other

    def _wait(self) -> None:
        """Wait until all have written: busily for a moment, because they are about to, and then until the one that is missing wakes us."""
        counts, wanted = self._counts, self._num_sums
        begun = time.monotonic()
        while (least := int(counts.min())) < wanted:
            missing, waited = int(counts.argmin()), time.monotonic() - begun
            if self._has_left[missing] and counts[missing] < wanted:
                raise RuntimeError(f"rank {missing} has left")
            if waited < _BUSY_S:
                continue
            _futex(self._address(missing), _WAIT, least & 0xFFFFFFFF, _timespec(_LOOK_EVERY_S))
            token = self._tokens[missing]
            if process_token(int(token.split()[0])) != token and counts[missing] < wanted:
                raise RuntimeError(f"rank {missing} has ended")
            if waited > self._timeout_s:
                raise RuntimeError(f"rank {missing} did not come within {self._timeout_s:.0f} s")

    def _wake(self) -> None:
        """Wake the others where they wait for this process."""
        _futex(self._address(self._rank), _WAKE, self._size, None)

    def _address(self, rank: int) -> int:
        return int(self._counts.ctypes.data) + rank * _LINE

    def close(self) -> None:
        """Let the others know that this process will add nothing more."""
        self._has_left[self._rank] = 1  # beside the count, which somebody may still have to see
        self._wake()
