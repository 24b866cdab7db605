"""Sweeps in `rlx ls`: a line for each, or one with all its runs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from rlx.errors import ConfigError
from rlx.render.numbers import count, number
from rlx.render.tables import make_table
from rlx.store.sweeps import SweepDir
from rlx.sweep.overview import Overview, overview
from rlx.sweep.plan import describe
from rlx.text import printable
from rlx.track.console import duration

_STATUS_STYLE = {"running": "green", "failed": "red", "killed": "red", "pruned": "yellow", "paused": "yellow"}


def print_sweep(console: Console, seen: Overview) -> None:
    """Print a sweep's progress, its runs, and what to type next."""
    state = f"being worked on{f', about {duration(seen.left_s)} left' if seen.left_s is not None else ''}" if seen.working else "at rest"
    head = Text(f"{seen.sweep}   ", style="bold")
    console.print(head.append(f"{seen.done} of {seen.total_runs} runs, {state}", style="not bold"), soft_wrap=True)
    states = ", ".join(f"{n} {status}" for status, n in seen.counts.items())
    console.print(states, style="dim")
    if seen.best is not None:
        console.print(f"best so far {number(seen.best['value'])} ({seen.objective}, {count(seen.best['seeds'], 'seed')}): "
                      f"{seen.best['point']}  {describe(seen.best['values'])}", style="green", soft_wrap=True, highlight=False)  # fmt: skip
    table = make_table("run", "settings", "status", "steps", seen.objective, "time")
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


def print_sweeps(console: Console, sweeps: Sequence[SweepDir]) -> None:
    """Print a line for each sweep, in this order."""
    table = make_table("sweep", "runs", "", "best so far")
    for sweep in sweeps:
        try:
            seen = overview(sweep)
        except (ConfigError, OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
            table.add_row(printable(sweep.name), "?", "", f"unreadable: {printable(str(error))}")
            continue
        state = "working" if seen.working else f"{seen.counts['failed']} failed" if seen.counts.get("failed") else ""
        best = f"{number(seen.best['value'])} ({seen.objective})  {describe(seen.best['values'])}" if seen.best else "–"
        table.add_row(printable(sweep.name), f"{seen.done} of {seen.total_runs}", state, best)
    console.print(table)
