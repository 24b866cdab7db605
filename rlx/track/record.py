"""metrics.jsonl: one JSON object a line, append-only, the record that everything else is derived from."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlx.errors import NonFiniteError, StorageError


class Record:
    """Appends lines to metrics.jsonl. Every line reaches the operating system at once, so a killed process loses none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab")

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
        with self.path.open("rb") as file:
            for raw in file:
                line = _parse(raw)
                if line is None or line["env_steps"] > env_steps:
                    break
                keep += len(raw)
        os.truncate(self.path, keep)
        self._file = self.path.open("ab")

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

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(f"{self.path} cannot be written ({error.strerror}); free some space and `rlx resume` the run")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, in order; stops at a torn or foreign line. Empty if there is no file."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        with path.open("rb") as file:
            for raw in file:
                line = _parse(raw)
                if line is None:
                    break
                lines.append(line)
    return lines


def _parse(raw: bytes) -> dict[str, Any] | None:
    if not raw.endswith(b"\n"):
        return None
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("env_steps"), int) else None
