"""The terminal as rich writes to it, and the tables that commands print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def terminal() -> Console:
    """A console on standard output. For a pipe it has no colour and wraps no lines."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    return guarded(console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=1000))


def guarded(console: Console) -> Console:
    """The console, which from now on escapes the control characters in what it prints."""
    from rich.console import ConsoleOptions, RenderableType, RenderHook, RenderResult
    from rich.measure import Measurement
    from rich.segment import Segment

    from rlx.text import printable

    class Guarded:
        def __init__(self, shown: RenderableType) -> None:
            self._shown = shown

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for text, style, control in console.render(self._shown, options):
                yield Segment(text if control else printable(text, keep="\n\t"), style, control)

        def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
            return Measurement.get(console, options, self._shown)

    class Hook(RenderHook):
        def process_renderables(self, renderables: list[Any]) -> list[Any]:
            return [Guarded(r) for r in renderables]

    console.push_render_hook(Hook())
    return console


def make_table(*headers: str) -> Table:
    """A table without borders."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", collapse_padding=True)
    for header in headers:
        table.add_column(header, overflow="fold")
    return table
