"""A figure of what `rlx probe` measured: the return under every change with its interval, against the return without any."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlx.evaluation.evaluate import Ends
from rlx.evaluation.robustness import ProbeResult, ProbeRow
from rlx.render.figures import COLORS, STYLE
from rlx.render.probe_view import labels_of, percent, rows_of

Measure = Callable[[ProbeRow], tuple[float, Ends] | None]
"""What a panel shows of a row: a number and its interval; None where there is none."""


def draw_probes(results: Sequence[ProbeResult]) -> Figure:
    """One panel of returns, and for several runs one beside it of returns in percent of each run's own without a change."""
    labels = [results[0].nominal.label, *labels_of(results)] + [results[0].overall.label] * (len(results[0].rows) > 1)
    several = len(results) > 1 and all(row.relative is not None for result in results for row in result.rows)
    with mpl.rc_context(STYLE):
        height = 1.0 + (0.26 + 0.08 * (len(results) - 1)) * len(labels) + 0.2 * len(results) * (len(results) > 1)
        figure = Figure(figsize=(11.0 if several else 7.5, height), dpi=150, layout="constrained")
        panels = figure.subplots(1, 1 + several, sharey=True, squeeze=False)[0]
        _draw_panel(panels[0], results, labels, lambda row: (row.return_mean, row.return_ci))
        first = results[0]
        panels[0].set_xlabel(f"return on {first.env} (mean of {len(first.nominal.episodes)} episodes, 95 % interval)")
        panels[0].set_yticks(range(len(labels)), labels, fontsize=9)
        panels[0].set_ylim(len(labels) - 0.4, -0.6)
        if several:
            _draw_panel(panels[1], results, labels, _relative)
            panels[1].set_xlabel("return in % of the run's own without a change")
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=min(3, len(results)), fontsize=9)
        elif len(results) > 1:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=min(3, len(results)), fontsize=9)
        else:
            panels[0].set_title(f"{first.run} at {first.env_steps:,} env steps", fontsize=10, loc="left")
            for y, label in enumerate(labels):
                text = percent(rows_of(first)[label]) if y else "nominal = 100 %"
                panels[0].annotate(text, (1.01, y), xycoords=("axes fraction", "data"), fontsize=8, va="center", color="#555555")
    return figure


def _draw_panel(axes: Axes, results: Sequence[ProbeResult], labels: Sequence[str], measure: Measure) -> None:
    """A dot and a line for each row of each run; a dashed line where the run is without a change."""
    offsets = (np.arange(len(results)) - (len(results) - 1) / 2) * min(0.22, 0.7 / len(results))
    ends = list[float]()
    for i, (result, offset) in enumerate(zip(results, offsets.tolist(), strict=True)):
        color, rows = COLORS[i % len(COLORS)], rows_of(result)
        nominal = measure(result.nominal)
        if nominal is not None:
            axes.axvline(nominal[0], color=color, linewidth=0.9, linestyle="--", alpha=0.7, zorder=1)
        places, values = list[float](), list[float]()
        for y, label in enumerate(labels):
            shown = measure(rows[label]) if label in rows else None
            if shown is None:
                continue
            places.append(y + offset)
            values.append(shown[0])
            ends += [shown[0], *(_each(rows[label], measure) if label != results[0].overall.label else ())]
            if len(results) == 1 and label != results[0].overall.label:
                axes.plot(ends[-len(rows[label].episodes) :], [y] * len(rows[label].episodes), marker="|", markersize=6, linestyle="none",
                          color=color, alpha=0.35, zorder=2)  # fmt: skip
            if shown[1] is not None:
                axes.hlines(y + offset, *shown[1], color=color, linewidth=2.0, alpha=0.8, zorder=2)
        axes.plot(values, places, marker="o", markersize=5, linestyle="none", color=color, zorder=3, label=result.run)
    axes.axhspan(-0.6, 0.5, color="#F4F4F4", linewidth=0, zorder=0)
    if labels[-1] == results[0].overall.label:
        axes.axhspan(len(labels) - 1.5, len(labels) - 0.4, color="#F4F4F4", linewidth=0, zorder=0)
    axes.grid(axis="y", visible=False)
    margin = 0.03 * (max(ends) - min(ends) or 1.0)
    axes.set_xlim(min(ends) - margin, max(ends) + margin)  # an interval of few episodes may be many times as wide as what was measured


def _each(row: ProbeRow, measure: Measure) -> list[float]:
    """What a panel shows of each episode of a row."""
    shown = measure(row)
    assert shown is not None
    scale = shown[0] / row.return_mean if row.return_mean else 1.0
    return [scale * float(value) for value in row.returns]


def _relative(row: ProbeRow) -> tuple[float, Ends] | None:
    if row.relative is None:
        return None
    scale = 100.0 * row.relative / row.return_mean if row.return_mean else 0.0
    return 100.0 * row.relative, None if row.return_ci is None else (scale * row.return_ci[0], scale * row.return_ci[1])
