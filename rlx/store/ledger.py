"""ledger.jsonl: what happened in a sweep, one event a line, append-only.

Run status lives in each run's meta.json. The ledger adds what is in no run: the trials of a search, and how attempts failed.
Lines that cannot be read are skipped.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlx.errors import StorageError
from rlx.files import UnreadableError, append_line, parse_json, read_file
from rlx.store.layout import MEMBER, POINT
from rlx.store.sweep_spec import Point, count, read_point

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.\d]*\+00:00", re.ASCII)
_LIMIT = 256 << 20


@dataclass
class Failure:
    """How the last attempt at a run failed."""

    run: str
    error: str
    exit_code: int = 1
    attempts: int = 1


@dataclass
class History:
    """The state of a sweep that its events add up to."""

    points: dict[str, Point] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    """For every point of a search, the number of its trial in the study."""
    told: dict[str, str] = field(default_factory=dict)
    """For every point of a search that has ended, how: complete, pruned or failed."""
    values: dict[str, float] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)

    def add(self, e: dict[str, Any]) -> None:
        run, point = str(e.get("run", "")), str(e.get("point", ""))
        match e["event"]:
            case "trial" if POINT.fullmatch(point):
                number, found = count(e["number"]), read_point(e)
                self.points[point], self.numbers[point] = found, number
            case "told" if POINT.fullmatch(point) and e["outcome"] in ("complete", "pruned", "failed"):
                self.told[point] = e["outcome"]
                if e.get("value") is not None:
                    self.values[point] = float(e["value"])
            case "failed" if MEMBER.fullmatch(run):
                self.failures[run] = Failure(run, str(e.get("error")), int(e.get("exit_code") or 1), int(e.get("attempt") or 1))
            case "retry":
                self.failures.pop(run, None)
                tried_again = run.rpartition("-s")[0]
                if self.told.get(tried_again) == "failed":
                    del self.told[tried_again]
            case "end" if e.get("status") in ("finished", "paused"):
                self.failures.pop(run, None)


def read_history(points: dict[str, Point], events: Iterable[dict[str, Any]]) -> History:
    """The state after events, from the points that the sweep began with. An event that lacks something is skipped."""
    history = History(points=points)
    for event in events:
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            history.add(event)
    return history


def append_event(path: Path, event: dict[str, Any]) -> None:
    """Append an event; it reaches the operating system at once.

    Raises:
        StorageError: if the file cannot be written.
    """
    line = json.dumps(event).encode() + b"\n"
    try:
        append_line(path, line)
    except OSError as error:
        why = error.reason if isinstance(error, UnreadableError) else f"cannot be written ({error.strerror})"
        raise StorageError(f"{path} {why}; put it aside, or free some space, then resume") from error


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events, in order; lines that cannot be read are skipped."""
    events = []
    try:
        lines = read_file(path, limit=_LIMIT).split(b"\n")
    except UnreadableError:
        return []
    for line in lines:
        with contextlib.suppress(ValueError):
            event = parse_json(line)
            if isinstance(event.get("event"), str) and _TIME.fullmatch(str(event.get("at"))):
                events.append(event)
    return events
