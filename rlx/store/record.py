"""metrics.jsonl: one JSON object a line, append-only, the record that everything else is derived from."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rlx.errors import NonFiniteError, StorageError
from rlx.files import UnreadableError, open_inside, open_to_append, parse_json, write_durably

_LINE_LIMIT = 1 << 20
"""Bytes of a line; those that rlx writes have some hundreds."""
_SHAPES = bytes.maketrans(b"123456789E", b"000000000e")
"""Makes digits alike, so that a number that may be infinite or too large is found by a plain search."""
_SUSPECT = b"0" * 30, b"e000", b"e+000", b"NaN", b"Infinity"
"""What is found in lines that may have such numbers; these lines go through the slower, strict parser."""


class Record:
    """Appends lines to metrics.jsonl. Every line reaches the operating system at once, so a killed process loses none.

    Raises:
        StorageError: if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = self._open()

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
            NonFiniteError: if a value is NaN or infinite; nothing is written then.
            StorageError: if the disk refuses; a torn last line is ignored by readers and removed on resume.
        """
        bad = [f"{key} is {value}" for key, value in line.items() if isinstance(value, float) and not math.isfinite(value)]
        if bad:
            raise NonFiniteError(f"{', '.join(bad)}: training stopped; look at the environment's rewards and observations")
        try:
            self._check_there()
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._refused(error) from error

    def rewind(self, env_steps: int, *, evaluated: bool = True) -> str:
        """Cut off the lines after env_steps; the resumed run writes them again.

        Only the end is cut. A damaged line between good ones stays, and readers skip it. After the last good line, half a line is
        dropped, since a killed process leaves that; other damage is moved to a file beside the record.

        Args:
            env_steps: of the checkpoint that is resumed.
            evaluated: whether evaluations at env_steps are kept.

        Returns:
            A message about damage; "" if there is none.

        Raises:
            StorageError: if the record cannot be read or cut.
        """
        self.close()
        size = keep = 0
        torn = False  # the last line that is kept has no newline
        inside: list[int] = []  # numbers of damaged lines that are kept
        behind: list[tuple[int, bytes]] = []  # and those after the last line that is kept
        try:
            with open_record(self.path) as file:
                for number, raw in enumerate(read_lines(file), 1):
                    size += len(raw)
                    line = _parse(raw)
                    if line is None:
                        behind.append((number, raw))
                    elif line["env_steps"] < env_steps or (line["env_steps"] == env_steps and (evaluated or not is_evaluation(line))):
                        inside += [damaged for damaged, _ in behind]
                        keep, torn, behind = size, not raw.endswith(b"\n"), []
            if behind and not behind[-1][1].endswith(b"\n"):
                behind.pop()
            lost = b"".join(raw for _, raw in behind)
            aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time())}")
            if lost:
                write_durably(aside, lost)
            self._file = self._open()
            if keep < size:
                self._file.truncate(keep)
            if torn:
                self._file.write(b"\n")
                self._file.flush()
        except OSError as error:
            raise self._refused(error) from error
        said = [f"{_damaged(inside)} and stay{'s' if len(inside) == 1 else ''} so, left out by every reader"] if inside else []
        said += [f"damage at its end was moved to {aside.name}"] if lost else []
        return f"{self.path}: {'; '.join(said)}" if said else ""

    def sync(self) -> None:
        """Return when every line is on the disk.

        Raises:
            StorageError: if the disk refuses.
        """
        try:
            self._check_there()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closing repeats the failed write, which `write` has reported
            self._file.close()

    def _open(self) -> IO[bytes]:
        try:
            return open_to_append(self.path)
        except OSError as error:
            raise StorageError(f"{_unfit(self.path, error)}; put it aside, or free some space, and `rlx resume` the run") from error

    def _check_there(self) -> None:
        """Raise an OSError if the open file is no longer the one at the path: what is written to it would be lost."""
        if not os.path.samestat(os.lstat(self.path), os.fstat(self._file.fileno())):
            raise FileNotFoundError(errno.ENOENT, "another file is in its place", str(self.path))

    def _refused(self, error: OSError) -> StorageError:
        if isinstance(error, StorageError):
            return error
        if isinstance(error, FileNotFoundError) or (isinstance(error, UnreadableError) and error.missing):
            return StorageError(f"{self.path} is not there any more: it was moved or deleted while the run trained")
        if isinstance(error, UnreadableError):
            return StorageError(f"{error}; put it aside and `rlx resume` the run")
        advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it a file that you can write"
        return StorageError(f"{self.path} cannot be written ({error.strerror}); {advice} and `rlx resume` the run")


def is_evaluation(line: Mapping[str, Any]) -> bool:
    return "eval/return_mean" in line


@dataclass(frozen=True)
class Lines:
    """The content of a metrics.jsonl."""

    good: list[dict[str, Any]]
    damaged: list[int]
    """Numbers, from 1, of the lines that cannot be read. Half a line at the end does not count: it is being written."""

    @property
    def problem(self) -> str:
        return f"{_damaged(self.damaged)} and left out" if self.damaged else ""


def read_record(path: Path) -> Lines:
    """The lines of a metrics.jsonl, in order. Empty if there is no file."""
    good: list[dict[str, Any]] = []
    damaged: list[int] = []
    with contextlib.suppress(OSError), open_record(path) as file:
        for number, raw in enumerate(read_lines(file), 1):
            line = _parse(raw)
            if line is not None:
                good.append(line)
            elif raw.endswith(b"\n"):
                damaged.append(number)
    return Lines(good, damaged)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl that can be read, in order."""
    return read_record(path).good


def iterate_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """`read_metrics` one line at a time, for records that may be large."""
    with contextlib.suppress(OSError), open_record(path) as file:
        yield from (line for raw in read_lines(file) if (line := _parse(raw)) is not None)


def best_values(path: Path, keys: Iterable[str]) -> dict[str, float]:
    """The highest value of each key in a metrics.jsonl; a key that never occurs is left out."""
    best: dict[str, float] = {}
    for line in iterate_metrics(path):
        best |= {k: v for k in keys if isinstance(v := line.get(k), int | float) and v > best.get(k, -math.inf)}
    return best


def _damaged(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
    return f"line {shown} is damaged" if len(numbers) == 1 else f"{len(numbers)} lines are damaged ({shown})"


def open_record(path: Path) -> IO[bytes]:
    """A metrics.jsonl to read. Raises an OSError if it is missing, a link, or no file."""
    return os.fdopen(open_inside(path, os.O_RDONLY), "rb")


def read_lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file. A line beyond `_LINE_LIMIT` comes in parts without a newline."""
    while raw := file.readline(_LINE_LIMIT):
        yield raw


def _unfit(path: Path, error: OSError) -> str:
    return str(error) if isinstance(error, UnreadableError) else f"{path} cannot be opened ({error.strerror})"


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        shapes = raw.translate(_SHAPES)
        line = parse_json(raw) if any(suspect in shapes for suspect in _SUSPECT) else json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and type(steps := line.get("env_steps")) is int and steps >= 0 else None
