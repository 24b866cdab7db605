"""Drawing in a terminal: only the characters that changed are sent, and the terminal is left as it was found.

A screen of 100 x 50 characters with pictures is some 100 kB of escape sequences; what changes in a step is mostly a few kB.
"""

from __future__ import annotations

import functools
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from rlx.render.cells import BOLD, DIM, PLAIN, Cells

if TYPE_CHECKING:
    from rich.console import Console

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
"""The alternate screen, no cursor, no line breaks at the right edge."""
_LEAVE = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
_CLEAR = "\x1b[0m\x1b[2J"
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
"""Around the changes of a frame: a terminal that knows them shows the frame at once."""


@functools.lru_cache(maxsize=1 << 16)
def _colours(ink: int, paper: int, style: int, system: str) -> str:
    """The escape sequence that sets colours and style."""
    codes = ["0"]
    if style & BOLD:
        codes.append("1")
    if style & DIM:
        codes.append("2")
    for colour, foreground in ((ink, True), (paper, False)):
        if colour != PLAIN:
            codes += _code(colour, system, foreground=foreground)
    return f"\x1b[{';'.join(codes)}m"


def _code(colour: int, system: str, *, foreground: bool) -> tuple[str, ...]:
    red, green, blue = colour >> 16, colour >> 8 & 255, colour & 255
    if system == "truecolor":
        return "38" if foreground else "48", "2", str(red), str(green), str(blue)
    from rich.color import Color, ColorSystem

    kind = ColorSystem.EIGHT_BIT if system == "256" else ColorSystem.STANDARD
    return Color.from_rgb(red, green, blue).downgrade(kind).get_ansi_codes(foreground)


def changes(old: Cells | None, new: Cells, system: str) -> str:
    """The escape sequences that turn one screen into another.

    Args:
        old: what is on the screen; None for anything.
        new: what is to be there.
        system: colours of the terminal, as rich names them: truecolor, 256 or standard.
    """
    out = []
    if old is None or (old.height, old.width) != (new.height, new.width):
        out.append(_CLEAR)
        old = Cells(new.height, new.width)
    rows, columns = np.nonzero(~new.same(old))
    found = (rows, columns), (new.glyph, new.ink, new.paper, new.style)
    last, at = "", (-1, -1)
    for row, column, glyph, ink, paper, style in zip(
        rows.tolist(), columns.tolist(), *(array[found[0]].tolist() for array in found[1]), strict=True
    ):
        if (row, column) != at:
            out.append(f"\x1b[{row + 1};{column + 1}H")
        colours = _colours(ink, paper, style, system)
        if colours != last:
            out.append(colours)
            last = colours
        out.append(chr(glyph))
        at = (row, column + 1)
    return f"{_BEGIN}{''.join(out)}{_END}" if out else ""


def whole(cells: Cells, system: str) -> str:
    """The screen as lines of text with colours, to be kept in the terminal's history."""
    lines = []
    text = cells.text().rstrip("\n").split("\n")
    for row in range(len(text)):
        parts, last = [], ""
        kept = range(cells.width) if (cells.paper[row] != PLAIN).any() else range(len(text[row]))
        for column in kept:
            colours = _colours(*(int(a[row, column]) for a in (cells.ink, cells.paper, cells.style)), system)
            parts.append((colours if colours != last else "") + chr(cells.glyph[row, column]))
            last = colours
        lines.append("".join(parts) + "\x1b[0m")
    return "\n".join(lines) + "\n"


class LiveScreen:
    """The terminal as a screen to draw on, and keys that are pressed there.

    A signal that ends the process leaves the terminal as it was, as every other way out does, and so does stopping with Ctrl-Z.

    Args:
        console: of the terminal, for its size and colours.
        write: sends text to the terminal.
    """

    def __init__(self, console: Console, write: Callable[[str], Any]) -> None:
        self._console, self._write = console, write
        self.system = console.color_system or "truecolor"
        self._shown: Cells | None = None
        self._handlers: dict[int, Any] = {}
        self._typing: list[Any] | None = None  # the settings of the keyboard before

    def __enter__(self) -> LiveScreen:
        if threading.current_thread() is threading.main_thread():
            for number, handler in ((signal.SIGTERM, self._end), (signal.SIGHUP, self._end), (signal.SIGTSTP, self._stop)):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, handler)
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._close()
            if self._shown is not None:
                self._write(whole(self._shown, self.system))
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    @property
    def is_blank(self) -> bool:
        """Whether the screen is to be drawn again, because the process was stopped and goes on."""
        return self._shown is None

    def show(self, cells: Cells) -> None:
        """Draw a screen."""
        self._write(changes(self._shown, cells, self.system))
        self._shown = cells

    def wait(self, seconds: float) -> str:
        """Sleep, or until a key is pressed; returns the key, or an empty text."""
        if self._typing is None:
            time.sleep(max(0.0, seconds))
            return ""
        ready, _, _ = select.select([sys.stdin], [], [], max(0.0, seconds))
        return os.read(sys.stdin.fileno(), 64).decode(errors="replace")[:1] if ready else ""

    def _open(self) -> None:
        self._shown = None
        if _has_keyboard():
            import termios
            import tty

            self._typing = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)  # keys come at once and are not printed
        self._write(_ENTER + _CLEAR)

    def _close(self) -> None:
        if self._typing is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._typing)
            self._typing = None
        self._write(_LEAVE)

    def _end(self, number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._close()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._open()  # here the process goes on


def _has_keyboard() -> bool:
    """Whether standard input is the terminal of this process, and it is in the foreground: else setting it up would stop the process."""
    try:
        return sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (AttributeError, OSError, ValueError):  # no standard input, closed, or the terminal of another session
        return False
