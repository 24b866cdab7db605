"""The console of a training run: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlx.clock import PHASES, Clock
from rlx.text import printable

if TYPE_CHECKING:
    from rlx.metrics import MetricBuffer
    from rlx.types import Progress

_REFRESH_S = 0.25
_BARS = "▁▂▃▄▅▆▇█"


def is_live_terminal() -> bool:
    """Whether stdout is a terminal on which a live view can be redrawn: not a pipe, a dumb terminal or CI."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


def sparkline(values: list[float], width: int = 32) -> str:
    """The last `width` values as bars from the lowest to the highest of them."""
    values = values[-width:]
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((v - low) * scale)] for v in values)


def duration(seconds: float) -> str:
    """Seconds as 4.2 s, 3 min 05 s or 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def say(text: str) -> None:
    """Print a line. An error of writing is ignored: in `rlx train | tee log`, Ctrl-C ends tee first; a log may be on a full disk."""
    _write(sys.stdout, 1, text)


def _write(stream: TextIO | None, descriptor: int, text: str) -> None:
    if stream is None:  # closed before the program began
        return
    with _may_be_closed(descriptor):
        stream.write(f"{printable(text)}\n")
        stream.flush()


@contextlib.contextmanager
def _may_be_closed(descriptor: int) -> Iterator[None]:
    """Ignore errors of writing, and write nothing more: training goes on when its terminal is gone, until it is told to stop."""
    try:
        yield
    except (OSError, ValueError):  # ValueError: closed
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)


class QuietConsole:
    """Prints only notes, on stderr."""

    def line(self, line: Mapping[str, Any], progress: Progress) -> None:
        pass

    def tick(self, progress: Progress, metrics: MetricBuffer, clock: Clock) -> None:
        pass

    def note(self, text: str) -> None:
        _write(sys.stderr, 2, text)

    def close(self) -> None:
        pass


class PlainConsole:
    """Prints one line for every line of the record: for log files, pipes and CI. Training continues if the reader ends."""

    def line(self, line: Mapping[str, Any], progress: Progress) -> None:
        head = f"{line['env_steps']:>10,} / {progress.total_env_steps:,} steps"
        if "eval/return_mean" in line:
            low, high = line.get("eval/return_ci_low"), line.get("eval/return_ci_high")
            interval = "" if low is None or high is None else f" (95 % interval {low:.1f} to {high:.1f})"
            text = f"{head}  evaluation {line['eval/return_mean']:.1f}{interval}"
        else:
            returns = line.get("episode/return_mean_100")
            shown = f"training return {returns:.1f}" if returns is not None else "no episode has ended"
            text = f"{head}  {shown}  {line['time/steps_per_s']:,.0f} steps/s  {duration(line['time/elapsed_s'])}"
        self.note(text)

    def tick(self, progress: Progress, metrics: MetricBuffer, clock: Clock) -> None:
        pass

    def note(self, text: str) -> None:
        say(text)

    def close(self) -> None:
        pass


class LiveConsole:
    """A panel that is redrawn four times a second from the training thread; no thread of its own competes with training."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = RichConsole()
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._live.start()
        self._drawn = 0.0
        self._returns: deque[float] = deque(maxlen=256)
        self._evaluation: float | None = None
        self._best: float | None = None
        self._last: tuple[Progress, MetricBuffer, Clock] | None = None
        self._speed: deque[tuple[float, int]] = deque(maxlen=12)  # (seconds, env steps) of recent drawings

    def line(self, line: Mapping[str, Any], progress: Progress) -> None:
        if "episode/return" in line:
            self._returns.append(line["episode/return"])
        if "eval/return_mean" in line:
            self._evaluation = line["eval/return_mean"]
            self._best = max(self._evaluation, self._best if self._best is not None else self._evaluation)

    def tick(self, progress: Progress, metrics: MetricBuffer, clock: Clock) -> None:
        self._last = (progress, metrics, clock)
        if time.perf_counter() - self._drawn >= _REFRESH_S:
            self._draw()

    def note(self, text: str) -> None:
        with _may_be_closed(1):
            self._console.print(text, style="dim", highlight=False)

    def close(self) -> None:
        self._draw()
        with _may_be_closed(1):
            self._live.stop()

    def _draw(self) -> None:
        if self._last is not None:
            self._drawn = time.perf_counter()
            with _may_be_closed(1):
                self._live.update(self._render(*self._last), refresh=True)

    def _render(self, progress: Progress, metrics: MetricBuffer, clock: Clock) -> Panel:
        elapsed = clock.elapsed_s
        self._speed.append((elapsed, progress.env_steps))
        seconds, steps = elapsed - self._speed[0][0], progress.env_steps - self._speed[0][1]
        speed = steps / seconds if seconds > 0 else progress.env_steps / max(elapsed, 1e-9)
        remaining = max(0, progress.total_env_steps - progress.env_steps) / speed if speed > 0 else 0.0
        total_s = max(sum(clock.phase_s.values()), 1e-9)
        split = "  ".join(f"{phase} {100 * clock.phase_s[phase] / total_s:.0f} %" for phase in PHASES)
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(no_wrap=True)
        grid.add_row("steps", f"{progress.env_steps:,} of {progress.total_env_steps:,}   {duration(elapsed)}, {duration(remaining)} left")
        grid.add_row("speed", f"{speed:,.0f} steps/s   {split}")
        recent = metrics.return_mean_100
        returns = Text(f"{recent:.1f} over the last 100 episodes   " if recent is not None else "fewer than 100 episodes   ")
        returns.append(sparkline(list(self._returns)), style="cyan")
        grid.add_row("training", returns)
        if self._evaluation is not None:
            grid.add_row("evaluation", f"{self._evaluation:.1f}   best {self._best:.1f}")
        grid.add_row("phase", clock.phase)
        bar = ProgressBar(total=progress.total_env_steps, completed=progress.env_steps)
        return Panel(Group(grid, bar), title=self._title, title_align="left", width=min(100, self._console.width))


def make_console(mode: str, title: str) -> LiveConsole | PlainConsole | QuietConsole:
    """The console for log.console: auto, live, plain or quiet."""
    if mode == "quiet":
        return QuietConsole()
    if mode == "live" or (mode == "auto" and is_live_terminal()):
        return LiveConsole(title)
    return PlainConsole()
