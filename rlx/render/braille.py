"""Curves in the terminal as braille characters of two by four dots."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlx.render.numbers import number

Point = tuple[float, float]

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # bits of U+2800 by column and row
MARK = "●"


def plot(line: Sequence[Point], marks: Sequence[Point] = (), *, width: int = 72, height: int = 12, x_label: str = "") -> list[str]:
    """Draw a curve through `line` and a ● at each of `marks`, on axes that show their ranges.

    A value that is not finite is a gap in the curve; one value, or one value repeated, is drawn in the middle.

    Args:
        line: (x, y) in the order in which they are connected.
        marks: (x, y) drawn over the curve.
        width: characters of a line, axis included; at least 24.
        height: lines of the drawing, above the two of the x-axis; at least 3.
        x_label: what x is.

    Returns:
        `height` + 2 lines of at most `width` characters; none if no value is finite.
    """
    points = [p for p in (*line, *marks) if _is_finite(p)]
    if not points:
        return []
    frame = _Frame(points, width, height, x_label)
    bits = frame.draw(line)
    cells = [[chr(0x2800 + b) if b else " " for b in row] for row in bits]
    for point in filter(_is_finite, marks):
        x, y = frame.dot(point)
        cells[y // 4][x // 2] = MARK
    return [f"{frame.left(i)}{''.join(row)}".rstrip() for i, row in enumerate(cells)] + frame.below()


Cell = tuple[str, int | None]
"""A character, and the number of the curve that it belongs to."""


def plot_many(
    curves: Sequence[Sequence[Point]], *, width: int = 80, height: int = 16, x_label: str = "", joined: bool = True
) -> list[list[Cell]]:
    """Draw several curves on one pair of axes, each with its letter at its end: a for the first, b for the second, …

    Args:
        curves: (x, y) in the order in which they are connected; what is not finite is a gap.
        width: characters of a line, axis included; at least 24.
        height: lines of the drawing, above the two of the x-axis; at least 3.
        x_label: what x is.
        joined: connect the points of a curve; otherwise they are dots.

    Returns:
        `height` + 2 lines of cells; none if no value is finite.
    """
    points = [p for curve in curves for p in curve if _is_finite(p)]
    if not points:
        return []
    frame = _Frame(points, width, height, x_label)
    cells: list[list[Cell]] = [[(" ", None)] * frame.columns for _ in range(height)]
    for number_, curve in enumerate(curves):
        for y, row in enumerate(frame.draw(curve, joined=joined)):
            for x, dots in enumerate(row):
                if dots:
                    before = ord(cells[y][x][0]) - 0x2800 if cells[y][x][1] is not None else 0
                    cells[y][x] = chr(0x2800 + (dots | before)), number_
    for number_, curve in enumerate(curves):  # after all curves, so that no letter is drawn over
        ends = [p for p in curve if _is_finite(p)]
        if ends and joined:
            x, y = (v // s for v, s in zip(frame.dot(ends[-1]), (2, 4), strict=True))
            rows = [r for d in range(height) for r in (y - d, y + d) if 0 <= r < height]
            free = next((r for r in rows if not cells[r][x][0].isalpha()), y)  # curves that end together have their letters stacked
            cells[free][x] = letter(number_), number_
    return [[(frame.left(i), None), *row] for i, row in enumerate(cells)] + [[(line, None)] for line in frame.below()]


def letter(number_: int) -> str:
    """a, b, … z, A, … for the curves of a drawing."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return letters[number_ % len(letters)]


class _Frame:
    """The axes around some points, and the position of a point in dots."""

    def __init__(self, points: Sequence[Point], width: int, height: int, x_label: str) -> None:
        self._x, self._y = (_spread([p[axis] for p in points]) for axis in (0, 1))
        self._labels = {0: number(self._y[1]), height // 2: number(_middle(self._y)), height - 1: number(self._y[0])}
        self._gutter = max(map(len, self._labels.values()))
        self._height, self._x_label = height, x_label
        self.columns = width - self._gutter - 2

    def dot(self, point: Point) -> tuple[int, int]:
        """Where a point is in dots, from the top left."""
        across, up = ((value - low) / (high - low) for value, (low, high) in zip(point, (self._x, self._y), strict=True))
        return round(across * (2 * self.columns - 1)), round((1.0 - up) * (4 * self._height - 1))

    def draw(self, line: Sequence[Point], *, joined: bool = True) -> list[list[int]]:
        """Bits of the dots of a curve, by line and column."""
        bits = [[0] * self.columns for _ in range(self._height)]
        previous: tuple[int, int] | None = None
        for point in line:
            if not _is_finite(point):
                previous = None
                continue
            x, y = self.dot(point)
            from_x, from_y = previous or (x, y)
            steps = max(abs(x - from_x), abs(y - from_y), 1)
            for i in range(steps + 1):
                at_x, at_y = round(from_x + (x - from_x) * i / steps), round(from_y + (y - from_y) * i / steps)
                bits[at_y // 4][at_x // 2] |= _DOTS[at_x % 2][at_y % 4]
            previous = (x, y) if joined else None
        return bits

    def left(self, row: int) -> str:
        return f"{self._labels.get(row, ''):>{self._gutter}} {'┤' if row in self._labels else '│'}"

    def below(self) -> list[str]:
        axis = f"{'':{self._gutter}} └{'─' * self.columns}"
        return [axis, f"{'':{self._gutter}}  {_x_axis(self._x, self._x_label, self.columns)}".rstrip()]


def _is_finite(point: Point) -> bool:
    return all(math.isfinite(v) and abs(v) < 1e300 for v in point)  # the width of a range must be finite too


def _middle(span: Point) -> float:
    middle = (span[0] + span[1]) / 2
    return middle if abs(middle) > 1e-9 * (span[1] - span[0]) else 0.0


def _spread(values: list[float]) -> Point:
    """Lowest and highest value, widened if they are equal."""
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        room = abs(low) * 0.1 or 1.0
        return low - room, high + room
    return low, high


def _x_axis(span: Point, label: str, columns: int) -> str:
    left, right = number(span[0]), number(span[1])
    return left + label.center(max(0, columns - len(left) - len(right))) + right
