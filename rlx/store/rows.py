"""One row for each run in a directory, as `rlx ls` lists them: what it trains, how far it is, what it reached.

A row is read without torch, and without reading a configuration. A damaged run has a row too, with the problem.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlx.files import UnreadableError, parse_json, read_file
from rlx.store.labels import Labels
from rlx.store.layout import is_run
from rlx.store.record import read_record
from rlx.store.runs import RunDir, last_start, segments_of, status_of
from rlx.store.times import parse_time

_TOTAL = re.compile(r"^loop:(?:\n[ #].*)*?\n +total_env_steps: *(\d{1,18})\b", re.MULTILINE)
_NUMBER = rb"(-?\d{1,25}(?:\.\d{1,25})?(?:[eE][-+]?\d{1,2})?)(?=[,}\s])"
_RETURN = re.compile(rb'"episode/return_mean_100": *' + _NUMBER)
_EVALUATION = re.compile(rb'"eval/return_mean": *' + _NUMBER)
_CONFIG_BYTES, _RECORD_BYTES = 1 << 17, 1 << 29
_BEGINNINGS = re.compile(rb'^\{"env_steps": \d+, .*\}$', re.MULTILINE)

STATUSES = ("running", "finished", "stopped", "failed", "killed", "paused", "new")


@dataclass(kw_only=True)
class RunRow:
    """One run in a list."""

    run: str
    """Its name."""
    status: str
    """One of `STATUSES`, or ? if meta.json cannot be read."""
    algo: str = "?"
    env: str = "?"
    env_steps: int | None = None
    total_env_steps: int | None = None
    return_mean_100: float | None = None
    """Mean return of the last 100 training episodes."""
    last_eval: float | None = None
    best_eval: float | None = None
    age_s: float | None = None
    """Seconds since the run ended; if no end is recorded, since its last metric or its start."""
    tags: tuple[str, ...] = ()
    problem: str | None = None
    """Which files cannot be read."""


def _highest_first(name: str) -> Callable[[RunRow], float]:
    return lambda row: float("inf") if (value := getattr(row, name)) is None else -value


SORTS: dict[str, Callable[[RunRow], Any] | None] = {
    "started": None, "name": lambda row: row.run, "return": _highest_first("return_mean_100"), "eval": _highest_first("last_eval"),
    "best": _highest_first("best_eval"), "steps": _highest_first("env_steps"),
}  # fmt: skip
"""Keys to sort rows by; None keeps the order of `run_rows`."""


def run_rows(root: Path) -> list[RunRow]:
    """A row for every run in a directory, which may be a sweep's; the run that was started last comes first."""
    if not root.is_dir():
        return []
    runs = [RunDir(p) for p in root.iterdir() if not p.name.startswith(".") and (is_run(p) or os.path.lexists(p / "checkpoints"))]
    found = [(run, run.meta()) for run in runs]
    found.sort(key=lambda pair: (last_start(pair[1]), pair[0].name), reverse=True)
    return [_row_or_reason(run, meta) for run, meta in found]


def select(
    rows: list[RunRow], *, algo: str | None = None, env: str | None = None, status: str | None = None, tag: str | None = None
) -> list[RunRow]:
    """The rows of an algorithm, of environments with `env` in their name, of a status, with a tag; None stands for all."""
    return [
        row
        for row in rows
        if (algo is None or row.algo == algo.lower())
        and (env is None or env.lower() in row.env.lower())
        and (status is None or row.status == status)
        and (tag is None or tag in row.tags)
    ]


def _row_or_reason(run: RunDir, meta: dict[str, Any]) -> RunRow:
    """The row of a run, or a row with the reason why it cannot be read, so that one bad directory does not hide the others."""
    try:
        return read_row(run, meta)
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        return RunRow(run=run.name, status="?", problem=f"unreadable: {type(error).__name__}: {error}")


def read_row(run: RunDir, meta: dict[str, Any] | None = None) -> RunRow:
    """The row of a run.

    Args:
        run: the run.
        meta: its meta.json, if it was read already.
    """
    meta = run.meta() if meta is None else meta
    problems = [] if meta else ["meta.json is damaged or missing"]
    total = total_env_steps(run.path)
    if total is None:
        problems.append("config.yaml is damaged" if (run.path / "config.yaml").is_file() else "config.yaml is missing")
    algo, env = str(meta.get("algo") or "?")[:40], str(meta.get("env") or meta.get("env_id") or "?")[:60]
    status = status_of(meta, is_locked=run.is_locked()) if meta else "?"
    row = RunRow(run=run.name, algo=algo, env=env, status=status, total_env_steps=total, age_s=_age_s(run, meta), tags=Labels.of(meta).tags)
    problems += _read_metrics(run, row)
    row.problem = "; ".join(problems) + f": see rlx show {run.name}" if problems else None
    return row


def _read_metrics(run: RunDir, row: RunRow) -> list[str]:
    """Fill in the metrics by searching the bytes of metrics.jsonl: parsing every line takes ten times as long. Returns the problems."""
    try:
        data = read_file(run.metrics_path, limit=_RECORD_BYTES)
    except UnreadableError as error:
        return [] if error.missing else [f"metrics.jsonl {error.reason}"]
    data = data[: data.rfind(b"\n") + 1]  # a process that was killed may leave half a line
    if not data:
        return []
    evaluations = [float(v) for v in _EVALUATION.findall(data)]
    if evaluations:
        row.last_eval, row.best_eval = evaluations[-1], max(evaluations)
    returns = _RETURN.search(data, max(0, data.rfind(b'"episode/return_mean_100"')))
    row.return_mean_100 = float(returns[1]) if returns else None
    try:
        last = parse_json(data[data.rfind(b"\n", 0, -1) + 1 :])
        if type(last.get("env_steps")) is not int or last["env_steps"] < 0:
            raise ValueError("env_steps")
        row.env_steps = last["env_steps"]
    except ValueError:
        row.env_steps = next((line["env_steps"] for line in reversed(run.metrics())), None)
    if len(_BEGINNINGS.findall(data)) < data.count(b"\n") and (damage := read_record(run.metrics_path).problem):
        return [f"metrics.jsonl is damaged: {damage}"]
    return []


def total_env_steps(directory: Path) -> int | None:
    """The budget in a run's config.yaml, found without parsing the configuration; None if it is missing or damaged."""
    try:
        total = _TOTAL.search(read_file(directory / "config.yaml", limit=_CONFIG_BYTES).decode())
    except (UnreadableError, UnicodeDecodeError):
        return None
    return int(total[1]) if total else None


def _age_s(run: RunDir, meta: dict[str, Any]) -> float | None:
    segments = segments_of(meta)
    at = parse_time(segments[-1].get("ended")) if segments else None
    if at is None:
        with contextlib.suppress(OSError, ValueError, OverflowError):  # no file, or of a year that no calendar has
            at = datetime.fromtimestamp(run.metrics_path.lstat().st_mtime, UTC)
    at = at or parse_time(last_start(meta))
    return max(0.0, (datetime.now(UTC) - at).total_seconds()) if at else None
