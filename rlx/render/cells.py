"""A grid of coloured characters, and pictures in it: two pixels in a character, one above the other."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlx.text import printable

if TYPE_CHECKING:
    from rich.segment import Segment

PLAIN = -1
"""The terminal's own colour; any other colour is 0xRRGGBB."""
BOLD, DIM = 1, 2
_BLANK, _UPPER_HALF = ord(" "), ord("▀")
_RAMP = np.frombuffer(" .:-=+*#%@".encode("utf-32-le"), np.uint32)
"""Characters from dark to bright, for a terminal without colours."""


class Span(NamedTuple):
    """A piece of a line."""

    text: str
    ink: int = PLAIN
    style: int = 0
    paper: int = PLAIN


Line = list[Span]


class Cells:
    """Characters [height, width] with the colours of their ink and paper.

    Args:
        height: in lines.
        width: in characters.
        colour: False leaves all colours as they are, and draws pictures with letters.
    """

    def __init__(self, height: int, width: int, *, colour: bool = True) -> None:
        self.height, self.width, self.colour = height, width, colour
        self.glyph = np.full((height, width), _BLANK, np.uint32)
        self.ink = np.full((height, width), PLAIN, np.int32)
        self.paper = np.full((height, width), PLAIN, np.int32)
        self.style = np.zeros((height, width), np.uint8)

    def write(self, row: int, column: int, line: Iterable[Span], *, width: int | None = None) -> None:
        """Write a line from a place on; what leaves the grid, or is wider than `width`, is cut off with an ellipsis."""
        if not 0 <= row < self.height:
            return
        end = self.width if width is None else min(self.width, column + width)
        for text, ink, style, paper in line:
            for character in _narrow(text):
                if column >= end:
                    self.glyph[row, end - 1] = ord("…")
                    return
                self.glyph[row, column], self.style[row, column] = ord(character), style
                if self.colour:
                    self.ink[row, column], self.paper[row, column] = ink, paper
                column += 1

    def picture(self, row: int, column: int, pixels: NDArray[np.uint8]) -> None:
        """Draw a picture [h, w, 3] in lines of two rows of pixels; the part outside the grid is left out."""
        pixels = pixels[: 2 * (self.height - row), : self.width - column]
        height, width = -(-len(pixels) // 2), pixels.shape[1]
        at = slice(row, row + height), slice(column, column + width)
        if not self.colour:
            rows = np.concatenate([pixels, pixels[-1:]]) if len(pixels) % 2 else pixels
            bright = rows.reshape(height, 2, width, 3).mean(axis=(1, 3))
            self.glyph[at] = _RAMP[(bright * (len(_RAMP) / 256.0)).astype(np.intp)]
            return
        packed = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        upper, lower = packed[::2], np.full((height, width), PLAIN, np.int32)
        lower[: len(pixels) // 2] = packed[1::2]
        one = upper == lower
        self.glyph[at] = np.where(one, _BLANK, _UPPER_HALF)
        self.ink[at], self.paper[at] = np.where(one, PLAIN, upper), lower
        self.style[at] = 0

    def segments(self, lines: Iterable[Iterable[Segment]]) -> None:
        """Draw what rich rendered."""
        for row, line in enumerate(lines):
            column = 0
            for text, style, control in line:
                if not control and style is not None:
                    ink, paper = (_packed(colour) if colour else PLAIN for colour in (style.color, style.bgcolor))
                    self.write(row, column, [Span(text, ink, BOLD * bool(style.bold) | DIM * bool(style.dim), paper)])
                elif not control:
                    self.write(row, column, [Span(text)])
                column += len(text)

    def same(self, other: Cells) -> NDArray[np.bool_]:
        """[height, width]: where two grids of one size are equal."""
        return (
            (self.glyph == other.glyph) & (self.ink == other.ink) & (self.paper == other.paper) & (self.style == other.style)
        )  # fmt: skip

    def text(self) -> str:
        """The characters, lines without spaces at their ends."""
        return "\n".join("".join(map(chr, row)).rstrip() for row in self.glyph.tolist())


def _packed(colour: Any) -> int:
    red, green, blue = colour.get_truecolor()
    return int(red) << 16 | int(green) << 8 | int(blue)


def _narrow(text: str) -> str:
    """The text with a character in every column: what is wider or narrower becomes a question mark."""
    text = printable(text)
    if text.isascii():
        return text
    return "".join("?" if unicodedata.east_asian_width(c) in "WF" or unicodedata.combining(c) else c for c in text)
