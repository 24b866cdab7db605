"""What `rlx ls` says of a run, and which runs it lists in which order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(kw_only=True)
class Row:
    """One run in a list."""

    run: str
    status: str
    algo: str = "?"
    env: str = "?"
    env_steps: int | None = None
    total_env_steps: int | None = None
    return_mean_100: float | None = None
    last_eval: float | None = None
    best_eval: float | None = None
    age_s: float | None = None
    """Seconds since it last wrote anything."""
    problem: str | None = None


STATUSES = ("running", "finished", "stopped", "failed", "killed", "paused", "new")


def _highest_first(name: str) -> Callable[[Row], float]:
    return lambda row: float("inf") if (value := getattr(row, name)) is None else -value


SORTS: dict[str, Callable[[Row], Any] | None] = {
    "started": None, "name": lambda row: row.run, "return": _highest_first("return_mean_100"), "eval": _highest_first("last_eval"),
    "best": _highest_first("best_eval"), "steps": _highest_first("env_steps"),
}  # fmt: skip
"""What runs are sorted by; None is how they are found."""


def is_wanted(row: Row, algo: str | None, env: str | None, status: str | None) -> bool:
    if algo is not None and row.algo != algo.lower():
        return False
    return (env is None or env.lower() in row.env.lower()) and status in (None, row.status)
