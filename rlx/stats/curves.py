"""Learning curves of several seeds on one axis, and measures of sample efficiency."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlx.stats.aggregate import iqm, mean
from rlx.stats.data import RunData, of_one_seed
from rlx.stats.intervals import mean_interval, percentile_band

Array = NDArray[np.float64]

_POINTS = 200
"""Most points of an aggregated curve."""


def align(runs: Sequence[RunData], metric: str, x: str = "env_steps") -> tuple[Array, Array]:
    """Curves on one grid: x [n] and y [runs, n], each the last value at or before x.

    The grid begins where every run has a value. A run that is finished, because it reached its target, keeps its last value to the end;
    others end the grid where they end.
    """
    curves = [(run, *run.series(metric, x)) for run in runs]
    curves = [(run, steps, values) for run, steps, values in curves if len(steps)]
    if not curves:
        return np.empty(0), np.empty((0, 0))
    start = max(steps[0] for _, steps, _ in curves)
    open_ends = [steps[-1] for run, steps, _ in curves if run.status != "finished"]
    end = min(open_ends) if open_ends else max(steps[-1] for _, steps, _ in curves)
    grid = np.unique(np.concatenate([steps for _, steps, _ in curves]))
    grid = grid[(grid >= start) & (grid <= max(start, end))]
    if len(grid) > _POINTS:
        grid = grid[np.unique(np.linspace(0, len(grid) - 1, _POINTS).round().astype(int))]
    rows = [values[np.searchsorted(steps, grid, side="right") - 1] for _, steps, values in curves]
    return grid, np.stack(rows)


def band(
    runs: Sequence[RunData], metric: str, x: str = "env_steps", statistic: str = "iqm", confidence: float = 0.95
) -> tuple[Array, Array, Array, Array]:
    """x, centre, low and high [n] of a group's curve: the statistic over seeds, with its interval at each point.

    Several runs of one seed are their mean. Low and high are NaN where there is no interval: from fewer than `intervals.FEWEST` seeds, or
    where all have one value.
    """
    runs = [run for run in runs if len(run.series(metric, x)[0])]
    grid, rows = align(runs, metric, x)
    if not len(grid):
        return grid, grid, grid, grid
    rows = np.stack([rows[same].mean(axis=0) for same in of_one_seed(runs)])
    if statistic == "iqm":
        return grid, iqm(rows.T), *percentile_band(rows, iqm, confidence=confidence)
    ends = [mean_interval([column], confidence=confidence, resamples=1000) for column in rows.T]
    return grid, mean(rows.T), *np.array(ends).T


def area_under_curve(run: RunData, metric: str, horizon: float | None = None) -> float | None:
    """Mean performance over training: the area under the curve (trapezoids) from its first point to the horizon, divided by that length.

    Args:
        horizon: env steps; a run that ended before keeps its last value. None is where it ended.
    """
    steps, values = run.series(metric)
    if not len(steps):
        return None
    end = float(steps[-1]) if horizon is None else horizon
    if end <= steps[0]:
        return float(values[0])
    inside = steps < end
    grid = np.append(steps[inside], end)
    heights = np.append(values[inside], np.interp(end, steps, values))
    return float(np.trapezoid(heights, grid) / (end - steps[0]))


def steps_to(run: RunData, metric: str, threshold: float, *, minimize: bool = False) -> float | None:
    """Env steps at the first line that reaches a threshold; None if none does."""
    steps, values = run.series(metric)
    reached = values <= threshold if minimize else values >= threshold
    return float(steps[np.argmax(reached)]) if reached.any() else None


def value_at(run: RunData, metric: str, at: int | None = None) -> float | None:
    """The last value of a metric, at or before `at` env steps if given; None if there is none."""
    steps, values = run.series(metric)
    if at is not None:
        if run.env_steps < at and run.status != "finished":
            return None
        values = values[steps <= at]
    return float(values[-1]) if len(values) else None
