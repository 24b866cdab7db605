"""The network of a run as text: which encoder each part of the observation got, and why."""

from __future__ import annotations

from typing import Any

_COLUMNS = ("part", "sees", "network", "num_outputs", "num_parameters", "reason")


def network_rows(report: Any) -> list[tuple[str, ...]]:
    """The cells of a table, a row for each part of `rlx.nn.network_report`'s report; nothing where a file has something else."""
    parts = report.get("parts") if isinstance(report, dict) else None
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return []
    return [tuple(_text(part.get(key)) for key in _COLUMNS) for part in parts]


def network_lines(report: Any) -> list[str]:
    """The same as lines of a comment."""
    rows = network_rows(report)
    widths = [max(len(row[i]) for row in rows) for i in range(3)] if rows else []
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False))
        + f"  {row[3]} outputs, {row[4]} parameters{f': {row[5]}' if row[5] else ''}"
        for row in rows
    ]


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)
