"""A curve in the terminal: braille dots, two by four of them to a character."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    x_range, y_range = (_spread([p[axis] for p in points]) for axis in (0, 1))
    labels = {0: number(y_range[1]), height // 2: number(_middle(y_range)), height - 1: number(y_range[0])}
    gutter = max(map(len, labels.values()))
    columns = width - gutter - 2
    bits = [[0] * columns for _ in range(height)]

    def dot(point: Point) -> tuple[int, int]:
        """Where a point is in dots, from the top left."""
        across, up = ((value - low) / (high - low) for value, (low, high) in zip(point, (x_range, y_range), strict=True))
        return round(across * (2 * columns - 1)), round((1.0 - up) * (4 * height - 1))

    previous: tuple[int, int] | None = None
    for point in line:
        if not _is_finite(point):
            previous = None
            continue
        x, y = dot(point)
        from_x, from_y = previous or (x, y)
        steps = max(abs(x - from_x), abs(y - from_y), 1)
        for i in range(steps + 1):
            at_x, at_y = round(from_x + (x - from_x) * i / steps), round(from_y + (y - from_y) * i / steps)
            bits[at_y // 4][at_x // 2] |= _DOTS[at_x % 2][at_y % 4]
        previous = x, y
    cells = [[chr(0x2800 + b) if b else " " for b in row] for row in bits]
    for point in filter(_is_finite, marks):
        x, y = dot(point)
        cells[y // 4][x // 2] = MARK
    rows = [f"{labels.get(i, ''):>{gutter}} {'┤' if i in labels else '│'}{''.join(row)}".rstrip() for i, row in enumerate(cells)]
    return [*rows, f"{'':{gutter}} └{'─' * columns}", f"{'':{gutter}}  {_x_axis(x_range, x_label, columns)}".rstrip()]


def number(value: float) -> str:
    """A number short enough for an axis: 12.35, 480, 50k, 1.25M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if 0.99995 * limit <= abs(value) < 1e13:
            return f"{value / (1e3 if unit == 'k' else limit):.4g}{unit}"
    return f"{value:.4g}"


def _is_finite(point: Point) -> bool:
    return all(math.isfinite(v) and abs(v) < 1e300 for v in point)  # the width of a range must be finite too


def _middle(span: Point) -> float:
    middle = (span[0] + span[1]) / 2
    return middle if abs(middle) > 1e-9 * (span[1] - span[0]) else 0.0


def _spread(values: list[float]) -> Point:
    """Lowest and highest value, a little apart if they are equal."""
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        room = abs(low) * 0.1 or 1.0
        return low - room, high + room
    return low, high


def _x_axis(span: Point, label: str, columns: int) -> str:
    left, right = number(span[0]), number(span[1])
    return left + label.center(max(0, columns - len(left) - len(right))) + right
