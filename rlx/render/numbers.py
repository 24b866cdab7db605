"""Numbers as people read them: `number` for one by itself, `digits` for several of one kind side by side."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """A number short enough for an axis: 12.35, 480, 50k, 1.25M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if 0.99995 * limit <= abs(value) < 1e13:
            return f"{value / (1e3 if unit == 'k' else limit):.4g}{unit}"
    return f"{value:.4g}"


def digits(*values: float) -> list[str]:
    """Numbers of one kind with as many decimals as give the largest of them four digits; a small one that is not 0 keeps two."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    decimals = min(12, max(0, 3 - math.floor(math.log10(largest)))) if largest else 1
    shown = []
    for value in values:
        text = f"{value:,.{decimals}f}"
        if value and not float(text.replace(",", "")):
            text = f"{value:.2g}" if abs(value) > 1e-9 * largest else f"{0:.{decimals}f}"
        shown.append(text)
    return shown


def count(number: int, thing: str) -> str:
    """1 run, 2 runs."""
    return f"{number} {thing}{'s' if number != 1 else ''}"
