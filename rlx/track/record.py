"""metrics.jsonl: one JSON object a line, append-only, the record that everything else is derived from."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from rlx.errors import NonFiniteError, StorageError
from rlx.files import UnreadableError, open_inside, open_to_append, parse_json

_LINE_LIMIT = 1 << 20
"""Bytes of a line; those that rlx writes have some hundreds."""
_SUSPECT = re.compile(rb"\d{30}|[eE]\+?\d{3}|NaN|Infinity")
"""What numbers have that are not finite, or too large to compute with; read with care, which costs time."""


class Record:
    """Appends lines to metrics.jsonl. Every line reaches the operating system at once, so a killed process loses none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = self._open()

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
            NonFiniteError: if a value is NaN or infinite, as an evaluation's may be; nothing is written then.
            StorageError: if the disk refuses; a torn last line is ignored by readers and removed on resume.
        """
        bad = [f"{key} is {value}" for key, value in line.items() if isinstance(value, float) and not math.isfinite(value)]
        if bad:
            raise NonFiniteError(f"{', '.join(bad)}: training stopped; look at the environment's rewards and observations")
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._refused(error) from error

    def rewind(self, env_steps: int) -> None:
        """Drop the lines after env_steps, and a torn last one."""
        self._file.close()
        keep = 0
        with open_record(self.path) as file:
            for raw in read_lines(file):
                line = _parse(raw)
                if line is None or line["env_steps"] > env_steps:
                    break
                keep += len(raw)
        self._file = self._open()
        self._file.truncate(keep)

    def sync(self) -> None:
        """Return when every line is on the disk.

        Raises:
            StorageError: if the disk refuses.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # it would try again to write what `write` has reported
            self._file.close()

    def _open(self) -> IO[bytes]:
        try:
            return open_to_append(self.path)
        except OSError as error:
            raise StorageError(f"{_unfit(self.path, error)}; put it aside, or free some space, and `rlx resume` the run") from error

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(f"{self.path} cannot be written ({error.strerror}); free some space and `rlx resume` the run")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, in order; stops at a torn or foreign line. Empty if there is no file."""
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(OSError), open_record(path) as file:
        for raw in read_lines(file):
            line = _parse(raw)
            if line is None:
                break
            lines.append(line)
    return lines


def open_record(path: Path) -> IO[bytes]:
    """A metrics.jsonl to read. Raises an OSError if it is missing, a link, or no file."""
    return os.fdopen(open_inside(path, os.O_RDONLY), "rb")


def read_lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file; one that is longer than any that rlx writes comes in parts without an end."""
    while raw := file.readline(_LINE_LIMIT):
        yield raw


def _unfit(path: Path, error: OSError) -> str:
    return str(error) if isinstance(error, UnreadableError) else f"{path} cannot be opened ({error.strerror})"


def _parse(raw: bytes) -> dict[str, Any] | None:
    if not raw.endswith(b"\n"):
        return None
    try:
        line = parse_json(raw) if _SUSPECT.search(raw) else json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and type(steps := line.get("env_steps")) is int and steps >= 0 else None
