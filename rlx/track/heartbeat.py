"""The heartbeat of a run: a small file with its progress, replaced once a second and read by other processes."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlx.files import UnreadableError, read_json, replace_durably
from rlx.track.console import say

if TYPE_CHECKING:
    from rlx.clock import Clock
    from rlx.metrics import MetricBuffer
    from rlx.types import Progress

_EVERY_S = 1.0
_LIMIT = 1 << 16
FILE = "progress.json"


class HeartbeatConsole:
    """A console for a run of a sweep: progress goes into progress.json, notes go to stdout.

    Every phase of an iteration replaces the file, at most once a second, so that other processes can detect a run that hangs.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._written = float("-inf")

    def line(self, line: Mapping[str, Any], progress: Progress) -> None:
        pass

    def tick(self, progress: Progress, metrics: MetricBuffer, clock: Clock) -> None:
        now = time.monotonic()
        if now - self._written < _EVERY_S:
            return
        self._written = now
        seen = {
            "env_steps": progress.env_steps,
            "total_env_steps": progress.total_env_steps,
            "phase": clock.phase,
            "elapsed_s": clock.elapsed_s,
            "return_mean_100": metrics.return_mean_100,
        }
        with contextlib.suppress(OSError):  # training does not depend on it
            replace_durably(self._path, json.dumps(seen).encode(), durable=False)

    def note(self, text: str) -> None:
        say(text)

    def close(self) -> None:
        clear_heartbeat(self._path.parent)


def read_heartbeat(directory: Path) -> dict[str, Any]:
    """The heartbeat in a run's directory; {} if there is none that can be read."""
    try:
        seen = read_json(directory / FILE, limit=_LIMIT)
    except UnreadableError:
        return {}
    counts = all(type(seen.get(key)) is int and seen[key] >= 0 for key in ("env_steps", "total_env_steps"))
    return seen if counts and isinstance(seen.get("phase"), str) else {}


def clear_heartbeat(directory: Path) -> None:
    with contextlib.suppress(OSError):
        (directory / FILE).unlink(missing_ok=True)
