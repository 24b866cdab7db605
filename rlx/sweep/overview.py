"""Summary of a sweep: finished runs, the best setting so far, the time left. Imports neither torch nor optuna."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rlx.files import is_directory
from rlx.store.layout import is_run
from rlx.store.ledger import History
from rlx.store.rows import total_env_steps
from rlx.store.sweep_spec import Spec
from rlx.store.sweeps import SweepDir
from rlx.track.heartbeat import read_heartbeat


@dataclass(kw_only=True)
class SweepRunRow:
    """One run of a sweep in a list."""

    run: str
    values: dict[str, Any]
    status: str
    """One of `store.rows.STATUSES`, or pending, or pruned (the pruner stopped its trial)."""
    env_steps: int | None = None
    fraction: float = 0.0
    objective: float | None = None
    elapsed_s: float | None = None
    error: str | None = None


@dataclass(kw_only=True)
class Overview:
    """How far a sweep is."""

    sweep: str
    working: bool
    """Whether a process on this machine drives it now."""
    total_runs: int
    counts: dict[str, int]
    objective: str
    best: dict[str, Any] | None
    left_s: float | None
    rows: list[SweepRunRow] = field(default_factory=list)

    @property
    def done(self) -> int:
        return self.counts.get("finished", 0) + self.counts.get("pruned", 0)


def overview(sweep: SweepDir) -> Overview:
    """Sum up a sweep from its ledger and its runs.

    Raises:
        ConfigError: if sweep.json cannot be used.
    """
    spec, history = sweep.spec(), sweep.history()
    rows = [_row(sweep, spec, history, key, seed) for key in history.points for seed in spec.seeds]
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.status] = counts.get(row.status, 0) + 1
    total = len(rows) if spec.search is None else max(len(rows), spec.search.trials * len(spec.seeds))
    if total > len(rows):
        counts["pending"] = counts.get("pending", 0) + total - len(rows)
    return Overview(sweep=sweep.name, working=sweep.is_locked(), total_runs=total, counts=counts, objective=spec.objective,
                    best=_best(spec, history, rows), left_s=_left_s(sweep, rows, total), rows=rows)  # fmt: skip


def _row(sweep: SweepDir, spec: Spec, history: History, key: str, seed: int) -> SweepRunRow:
    run = sweep.run(key, seed)
    row = SweepRunRow(run=run.name, values=history.points[key].values, status="pending")
    if is_directory(run.path) and is_run(run.path):
        row.status = run.status if run.segments or run.is_locked() else "pending"
        lines = run.metrics()
        values = [line[spec.objective] for line in lines if isinstance(line.get(spec.objective), int | float)]
        row.objective = float(values[-1]) if values else None
        times = [line["time/elapsed_s"] for line in lines if isinstance(line.get("time/elapsed_s"), int | float)]
        row.elapsed_s = times[-1] if times else None
        seen = read_heartbeat(run.path) if row.status == "running" else {}
        row.env_steps = seen.get("env_steps") or (lines[-1]["env_steps"] if lines else None)
        total = seen.get("total_env_steps") or total_env_steps(run.path)
        row.fraction = 1.0 if row.status == "finished" else min(1.0, (row.env_steps or 0) / max(1, total or 1))
    failure = history.failures.get(run.name)
    if failure is not None and row.status != "running":
        row.status, row.error = "failed", failure.error
    elif history.told.get(key) == "pruned" and row.status != "finished":
        row.status = "pruned"
    return row


def _best(spec: Spec, history: History, rows: list[SweepRunRow]) -> dict[str, Any] | None:
    """The best setting whose runs are all finished, by the aggregate over its seeds."""
    reached: dict[str, list[float]] = {}
    for key in history.points:
        mine = [row for row in rows if row.run.rpartition("-s")[0] == key]
        values = [row.objective for row in mine if row.status == "finished" and row.objective is not None]
        if len(values) == len(spec.seeds):
            reached[key] = values
    if not reached:
        return None
    from rlx.stats.aggregate import AGGREGATES  # imports numpy, which other lists do without

    scores = {key: AGGREGATES[spec.aggregate](values) for key, values in reached.items()}
    key = (max if spec.direction == "maximize" else min)(scores, key=scores.__getitem__)
    return {"point": key, "value": scores[key], "values": history.points[key].values, "seeds": len(spec.seeds)}


def _left_s(sweep: SweepDir, rows: list[SweepRunRow], total: int) -> float | None:
    """Seconds until a sweep ends, at its speed since it was last started; None if no process drives it."""
    drives = [e["at"] for e in sweep.events() if e["event"] == "drive"]
    if not sweep.is_locked() or not drives:
        return None
    try:
        began = datetime.fromisoformat(drives[-1])
    except ValueError:
        return None
    ended = {e.get("run") for e in sweep.events() if e["event"] == "end" and e.get("status") == "finished" and e["at"] >= drives[-1]}
    running = sum(row.fraction for row in rows if row.status == "running")
    done_now, done = len(ended) + running, sum(row.status in ("finished", "pruned") for row in rows) + running
    elapsed = (datetime.now(UTC) - began).total_seconds()
    return (total - done) * elapsed / done_now if done_now > 0.05 else None
