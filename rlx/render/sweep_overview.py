"""Sweeps in `rlx ls`: how far they are, what is best so far, and how long the rest will take. Imports neither torch nor optuna."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlx.cli.catalogue import make_table, print_json, terminal
from rlx.render.braille import number

if TYPE_CHECKING:
    from rich.console import Console

    from rlx.store.sweeps import History, Spec, SweepDir

_STATUS_STYLE = {"running": "green", "failed": "red", "killed": "red", "pruned": "yellow", "paused": "yellow"}


@dataclass(kw_only=True)
class RunRow:
    """One run of a sweep in a list."""

    run: str
    values: dict[str, Any]
    status: str
    """As for any run, and pending, pruned (its trial was given up) or failed (given up after an error)."""
    env_steps: int | None = None
    fraction: float = 0.0
    objective: float | None = None
    elapsed_s: float | None = None
    error: str | None = None


@dataclass(kw_only=True)
class Overview:
    """One sweep, summed up."""

    sweep: str
    working: bool
    """Whether a process works on it now, on this machine."""
    total_runs: int
    counts: dict[str, int]
    objective: str
    best: dict[str, Any] | None
    left_s: float | None
    rows: list[RunRow] = field(default_factory=list)

    @property
    def done(self) -> int:
        return self.counts.get("finished", 0) + self.counts.get("pruned", 0)


def overview(sweep: SweepDir) -> Overview:
    """Read a sweep: its ledger, and of every run what it needs."""
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


def _row(sweep: SweepDir, spec: Spec, history: History, key: str, seed: int) -> RunRow:
    from rlx.files import is_directory
    from rlx.store.runs import is_run
    from rlx.track.heartbeat import read_heartbeat

    run = sweep.run(key, seed)
    row = RunRow(run=run.name, values=history.points[key].values, status="pending")
    if is_directory(run.path) and is_run(run.path):
        row.status = run.status if run.segments or run.is_locked() else "pending"
        lines = run.metrics()
        values = [line[spec.objective] for line in lines if isinstance(line.get(spec.objective), int | float)]
        row.objective = float(values[-1]) if values else None
        times = [line["time/elapsed_s"] for line in lines if isinstance(line.get("time/elapsed_s"), int | float)]
        row.elapsed_s = times[-1] if times else None
        seen = read_heartbeat(run.path) if row.status == "running" else {}
        row.env_steps = seen.get("env_steps") or (lines[-1]["env_steps"] if lines else None)
        total = seen.get("total_env_steps") or _total(run.path)
        row.fraction = 1.0 if row.status == "finished" else min(1.0, (row.env_steps or 0) / max(1, total or 1))
    failure = history.failures.get(run.name)
    if failure is not None and row.status != "running":
        row.status, row.error = "failed", failure.error
    elif history.told.get(key) == "pruned" and row.status != "finished":
        row.status = "pruned"
    return row


def _total(path: Path) -> int | None:
    from rlx.cli.listing import total_env_steps

    return total_env_steps(path)


def _best(spec: Spec, history: History, rows: list[RunRow]) -> dict[str, Any] | None:
    """The best setting whose runs are all finished, by the aggregate over its seeds."""
    from rlx.sweep.drive import AGGREGATES

    scores: dict[str, float] = {}
    for key in history.points:
        mine = [row for row in rows if row.run.rpartition("-s")[0] == key]
        reached = [row.objective for row in mine if row.status == "finished" and row.objective is not None]
        if len(reached) == len(spec.seeds):
            scores[key] = AGGREGATES[spec.aggregate](reached)
    if not scores:
        return None
    key = (max if spec.direction == "maximize" else min)(scores, key=scores.__getitem__)
    return {"point": key, "value": scores[key], "values": history.points[key].values, "seeds": len(spec.seeds)}


def _left_s(sweep: SweepDir, rows: list[RunRow], total: int) -> float | None:
    """Seconds until a sweep that is being worked on ends, at the speed since it was last started."""
    from datetime import UTC, datetime

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


def list_sweep(root: Path, reference: str, *, as_json: bool) -> None:
    """Print a sweep's progress and runs."""
    from rich.text import Text

    from rlx.render.sweep_view import count
    from rlx.store.sweeps import SweepDir
    from rlx.sweep.plan import describe
    from rlx.track.console import duration

    seen = overview(SweepDir.open(root, reference))
    if as_json:
        print_json([{**asdict(seen), "done": seen.done}])
        return
    console = terminal()
    state = f"being worked on{f', about {duration(seen.left_s)} left' if seen.left_s is not None else ''}" if seen.working else "at rest"
    head = Text(f"{seen.sweep}   ", style="bold")
    console.print(head.append(f"{seen.done} of {seen.total_runs} runs, {state}", style="not bold"), soft_wrap=True)
    states = ", ".join(f"{n} {status}" for status, n in seen.counts.items())
    console.print(states, style="dim")
    if seen.best is not None:
        console.print(f"best so far {seen.best['value']:.4g} ({seen.objective}, {count(seen.best['seeds'], 'seed')}): "
                      f"{seen.best['point']}  {describe(seen.best['values'])}", style="green", soft_wrap=True, highlight=False)  # fmt: skip
    table = make_table("run", "settings", "status", "steps", seen.objective.rpartition("/")[2], "time")
    for row in seen.rows:
        table.add_row(
            row.run,
            describe(row.values),
            Text(row.status, style=_STATUS_STYLE.get(row.status, "")),
            "–" if row.env_steps is None else number(row.env_steps),
            "–" if row.objective is None else number(row.objective),
            "–" if row.elapsed_s is None else duration(row.elapsed_s),
        )
    console.print(table)
    for row in seen.rows:
        if row.error:
            console.print(Text(f"{row.run}: {row.error}", style="red"), soft_wrap=True)
    _print_next(console, seen)


def _print_next(console: Console, seen: Overview) -> None:
    name = seen.sweep
    if seen.working:
        return
    if seen.counts.get("failed"):
        console.print(f"next: rlx sweep --resume {name} --retry-failed", soft_wrap=True)
    elif seen.done < seen.total_runs:
        console.print(f"next: rlx sweep --resume {name}", soft_wrap=True)
    else:
        console.print(f"next: rlx compare {name}, rlx plot {name}", soft_wrap=True)


def print_sweeps(console: Console, root: Path) -> bool:
    """List the sweeps below a list of runs; whether there are any."""
    from rlx.errors import ConfigError
    from rlx.store.sweeps import list_sweeps
    from rlx.sweep.plan import describe
    from rlx.text import printable

    sweeps = list_sweeps(root)
    if not sweeps:
        return False
    table = make_table("sweep", "runs", "", "best so far")
    for sweep in reversed(sweeps):
        try:
            seen = overview(sweep)
        except (ConfigError, OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
            table.add_row(printable(sweep.name), "?", "", f"unreadable: {printable(str(error))}")
            continue
        state = "working" if seen.working else f"{seen.counts['failed']} failed" if seen.counts.get("failed") else ""
        best = f"{number(seen.best['value'])}  {describe(seen.best['values'])}" if seen.best else "–"
        table.add_row(printable(sweep.name), f"{seen.done} of {seen.total_runs}", state, best)
    console.print()
    console.print(table)
    return True
