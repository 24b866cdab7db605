"""`rlx watch` in a terminal, and as text where there is none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rlx.render import watch_view
from rlx.render.cells import DIM, Cells, Span
from rlx.render.live_screen import LiveScreen
from rlx.render.watch_screen import plain, screen

if TYPE_CHECKING:
    from rich.console import Console

    from rlx.evaluation.watching import Moment, Watch

_POLL_S = 0.2
"""Seconds between two looks at the size of the window."""
_FASTEST, _SLOWEST = 50.0, 0.1
"""Decisions a second."""
_KEYS = "space: pause   n: next step   + -: speed   q: leave"


def show(console: Console, watch: Watch, *, fps: float, live: bool) -> None:
    """Play the episodes in the terminal.

    Args:
        console: where.
        watch: what.
        fps: decisions a second, if it is live.
        live: redraw one view; otherwise every moment is printed below the one before.
    """
    if live:
        _play(console, watch, fps)
        return
    colour = console.is_terminal and console.color_system is not None
    for moment in watch.moments:
        if watch.grid is None:
            console.print(plain(moment, watch), soft_wrap=True)
        else:
            room = watch_view.find_room(watch.grid, watch.depth, console.width, console.height, colour=colour)
            console.print(watch_view.view(moment, watch.grid, watch.title, room))
        console.print()


def _play(console: Console, watch: Watch, fps: float) -> None:
    def write(text: str) -> None:
        console.file.write(text)
        console.file.flush()

    before: Moment | None = None
    paused = False
    with LiveScreen(console, write) as terminal:
        due = time.monotonic()
        for moment in watch.moments:
            size = console.size
            terminal.show(draw(console, watch, moment, before))
            due = max(due + 1.0 / fps, time.monotonic())
            while (left_s := due - time.monotonic()) > 0.0 or paused:
                key = terminal.wait(_POLL_S if paused else min(left_s, _POLL_S))
                if key == "q":
                    return
                if key == " ":
                    paused = not paused
                elif key in ("+", "-"):
                    fps = min(_FASTEST, max(_SLOWEST, fps * (1.25 if key == "+" else 0.8)))
                elif key == "n":
                    paused = True
                    break
                if console.size != size or (key == "" and terminal.is_blank):
                    size = console.size
                    terminal.show(draw(console, watch, moment, before))
            if moment.inputs:
                before = moment


def draw(console: Console, watch: Watch, moment: Moment, before: Moment | None) -> Cells:
    """The screen of a moment, in the size of the terminal.

    Args:
        console: of the terminal.
        watch: names the parts of a moment.
        moment: what is drawn.
        before: the last moment with inputs.
    """
    width, height = console.size
    colour = console.color_system is not None
    if watch.grid is None:
        cells = screen(moment, watch, width, height - 1, colour=colour, still=before)
    else:
        cells = Cells(height - 1, width, colour=colour)
        room = watch_view.find_room(watch.grid, watch.depth, width, height - 1, colour=colour)
        options = console.options.update(width=width, height=height - 1)
        cells.segments(console.render_lines(watch_view.view(moment, watch.grid, watch.title, room), options, pad=False))
    whole = Cells(height, width, colour=colour)
    for ours, theirs in ((whole.glyph, cells.glyph), (whole.ink, cells.ink), (whole.paper, cells.paper), (whole.style, cells.style)):
        ours[: height - 1] = theirs
    whole.write(height - 1, 0, [Span(_KEYS, style=DIM)])
    return whole
