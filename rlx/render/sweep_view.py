"""A sweep while it runs, as a table on a terminal and as lines elsewhere, and its result."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlx.render.numbers import count, number
from rlx.render.tables import guarded
from rlx.store.measures import in_words
from rlx.track.console import duration, is_live_terminal, say

if TYPE_CHECKING:
    from rlx.sweep.drive import Drive, Slot

_REFRESH_S = 0.5
_SHOWN_SLOTS = 16


class PlainView:
    """A line for every run that ends: for log files, pipes and CI."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._drive: Drive | None = None

    def begin(self, drive: Drive, *, new: bool, space: list[str]) -> None:
        self._drive = drive
        for line in headline(self._name, drive, new=new, space=space):
            say(line)

    def draw(self, drive: Drive) -> None:
        pass

    def note(self, text: str) -> None:
        count = f"[{self._drive.plan.finished_runs()}/{self._drive.plan.total_runs}] " if self._drive is not None else ""
        say(f"{count}{text}")

    def close(self, drive: Drive) -> None:
        pass


class LiveView:
    """A panel redrawn twice a second."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._console = guarded(RichConsole(markup=False, emoji=False))
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._drawn = 0.0

    def begin(self, drive: Drive, *, new: bool, space: list[str]) -> None:
        for line in headline(self._name, drive, new=new, space=space):
            self._console.print(line, highlight=False, soft_wrap=True)
        self._live.start()

    def draw(self, drive: Drive) -> None:
        if time.monotonic() - self._drawn >= _REFRESH_S:
            self._drawn = time.monotonic()
            self._live.update(self.render(drive), refresh=True)

    def note(self, text: str) -> None:
        self._console.print(Text(text, style="red" if " failed: " in text else "dim"), soft_wrap=True)

    def close(self, drive: Drive) -> None:
        self._live.stop()

    def render(self, drive: Drive) -> Panel:
        from rlx.sweep.plan import describe

        width = min(110, self._console.width)
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
        for column in ("run", "settings", "steps", "train", "speed", "phase"):
            table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=1 if column == "settings" else None)
        for slot in drive.slots[:_SHOWN_SLOTS]:
            seen, values = slot.seen, drive.plan.values_of(slot.job)
            recent, elapsed = seen.get("return_mean_100"), seen.get("elapsed_s") or 0.0
            table.add_row(
                slot.job.name,
                describe(values),
                f"{100 * slot.fraction:.0f} %" if seen else "",
                "" if recent is None else number(recent),
                f"{number(seen['env_steps'] / elapsed)}/s" if elapsed > 0 else "",
                _phase(slot),
            )
        if len(drive.slots) > _SHOWN_SLOTS:
            table.add_row(f"and {len(drive.slots) - _SHOWN_SLOTS} more")
        done, total, left = drive.plan.finished_runs(), drive.plan.total_runs, drive.left_s()
        head = Text(f"{done} of {total} runs   {len(drive.slots)} running")
        if drive.failures:
            head.append(f"   {len(drive.failures)} failed", style="red")
        head.append(f"   {duration(drive.elapsed_s)}" + (f", about {duration(left)} left" if left is not None else ""), style="dim")
        best = drive.plan.best()
        lines: list[Text] = [head]
        if best is not None:
            lines.append(Text(f"best so far {number(best[1])} ({drive.objective})   {best[0]}  {describe(best[2])}", style="green"))
        bar = ProgressBar(total=max(1, total), completed=done + sum(slot.fraction for slot in drive.slots))
        return Panel(Group(*lines, Text(""), table, bar), title=self._name, title_align="left", width=width)


def _phase(slot: Slot) -> str:
    silent = time.monotonic() - slot.changed
    if silent > 30.0:
        return f"silent {duration(silent)}"
    return str(slot.seen.get("phase", "starting"))


def make_watcher(name: str) -> LiveView | PlainView:
    return LiveView(name) if is_live_terminal() else PlainView(name)


def headline(name: str, drive: Drive, *, new: bool, space: list[str]) -> list[str]:
    plan = drive.plan
    seeds = drive.num_seeds
    what = f"{count(plan.total_runs // seeds, 'trial' if space else 'setting')} × {count(seeds, 'seed')}"
    before = plan.finished_runs()
    elsewhere = plan.finished_elsewhere()
    runs = (
        count(plan.total_runs, "run") + (f", {before} of them done" if before else "") + (f", {elsewhere} elsewhere" if elsewhere else "")
    )
    lines = [f"{drive.sweep.path}: {what} = {runs}, on {drive.executor.description}", *[f"  {line}" for line in space]]
    if seeds == 1:
        lines.append("one seed says nothing about which setting is better; --seeds 5 does")
    if not new and drive.failures:
        lines.append(f"{len(drive.failures)} failed before and are left alone; --retry-failed goes on with them")
    return lines


def print_end(root: Path, drive: Drive) -> None:
    """Print the result of a sweep, and what to type next."""
    from rlx.sweep.plan import describe

    plan, name = drive.plan, drive.sweep.name
    done, total = plan.finished_runs(), plan.total_runs
    for error, runs in grouped(drive).items():
        shown = ", ".join(runs[:6]) + (f" and {len(runs) - 6} more" if len(runs) > 6 else "")
        say(f"failed: {shown}: {error}")
        say(f"  their log: {drive.sweep.path / runs[0] / 'log.txt'}")
    best = plan.best()
    if best is not None:
        say(f"best: {best[0]}  {in_words(drive.objective)} {number(best[1])}  {describe(best[2])}")
    elsewhere = plan.finished_elsewhere()
    shared = f" ({done - elsewhere} here, {elsewhere} by others who share the study)" if elsewhere else ""
    if done == total:
        say(f"finished: {count(total, 'run')}{shared} in {duration(drive.elapsed_s)}; next: `rlx compare {name}`, `rlx plot {name}`")
    elif drive.stopping:
        say(f"stopped and saved: {done} of {total} runs are finished{shared}; `rlx sweep --resume {name}` goes on")
    else:
        say(f"{done} of {total} runs are finished{shared}; `rlx ls --sweep {name}` lists them, `rlx compare {name}` compares what there is")


_PLACE = re.compile(r"\b(environment|step|seed) \d+")
"""Parts of an error message that differ between seeds that failed for the same reason."""


def grouped(drive: Drive) -> dict[str, list[str]]:
    """Failed runs by their error, the most frequent first. Errors that differ only in environment, step and seed count as the same."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for failure in drive.failures.values():
        groups.setdefault(_PLACE.sub(r"\1", failure.error), []).append((failure.run, failure.error))
    by_size = sorted(map(sorted, groups.values()), key=len, reverse=True)
    return {group[0][1]: [run for run, _ in group] for group in by_size}
