"""Results of evaluations that are kept in a run's directory, one JSON object a line.

evaluations.jsonl has those of `rlx eval` and `rlx.evaluate`, probes.jsonl those of `rlx probe` and `rlx.probe`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlx.files import UnreadableError, append_line, parse_json, read_file
from rlx.store.times import now, parse_time

FILE, PROBES = "evaluations.jsonl", "probes.jsonl"
_LIMIT = 64 << 20
_NUMBERS = ("return_mean", "return_std")


@dataclass(frozen=True)
class Evaluations:
    """The content of an evaluations.jsonl."""

    good: list[dict[str, Any]]
    """Results in the order in which they were written; each has `at`, `env_steps`, `episodes`, `return_mean` and `return_std`."""
    num_skipped: int = 0
    """Lines that cannot be read."""
    problem: str = ""
    """Why the file cannot be read at all."""


def keep_evaluation(run: Path, result: Mapping[str, Any]) -> str:
    """Append a result, with the time, and wait until it is on the disk.

    Returns:
        Why it could not be kept; "" if it was. An evaluation never fails for it.
    """
    return _keep(run / FILE, result)


def keep_probes(run: Path, result: Mapping[str, Any]) -> str:
    """Append what probes of a run measured, as `keep_evaluation` does a result."""
    return _keep(run / PROBES, result)


def _keep(path: Path, result: Mapping[str, Any]) -> str:
    line = json.dumps({"at": now(), **result}).encode() + b"\n"
    try:
        append_line(path, line, durable=True)
    except OSError as error:
        why = str(error) if isinstance(error, UnreadableError) else f"{path} cannot be written ({error.strerror})"
        return f"the result is not kept with the run: {why}"
    return ""


def read_evaluations(run: Path) -> Evaluations:
    """The results that are kept with a run; empty if there are none."""
    try:
        lines = read_file(run / FILE, limit=_LIMIT).split(b"\n")
    except UnreadableError as error:
        return Evaluations([], problem="" if error.missing else f"{FILE} {error.reason}")
    good, skipped = [], 0
    for line in filter(None, lines):
        try:
            good.append(_checked(parse_json(line)))
        except ValueError:
            skipped += 1
    return Evaluations(good, skipped)


def _checked(result: dict[str, Any]) -> dict[str, Any]:
    """The result, if it has what every result has. Raises a ValueError if not."""
    counts = all(type(result.get(key)) is int and result[key] >= 0 for key in ("env_steps", "episodes"))
    numbers = all(isinstance(result.get(key), int | float) and not isinstance(result[key], bool) for key in _NUMBERS)
    if not counts or not numbers or parse_time(result.get("at")) is None:
        raise ValueError("no evaluation")
    return result
