"""A figure of the claims of a sweep: differences with their intervals, and the levels of what should fall."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlx.errors import ConfigError
from rlx.render.claims_view import short, verdict
from rlx.render.figures import COLORS, STYLE
from rlx.stats.claims import Judged

_GOOD, _BAD, _OPEN = COLORS[2], COLORS[1], "#777777"


def draw_claims_figure(claims: Sequence[Judged], *, confidence: float = 0.95) -> Figure:
    """One panel for the differences of a metric on an environment, and one for the levels of each claim that something falls.

    Raises:
        ConfigError: if no claim has a value to draw.
    """
    panels: dict[tuple[str, ...], list[Judged]] = {}
    for judged in claims:
        if judged.claim.relation == "falls":
            if judged.left:
                panels[judged.env, judged.metric, judged.claim.name, str(judged.at)] = [judged]
        elif math.isfinite(judged.difference):
            panels.setdefault((judged.env, judged.metric), []).append(judged)
    if not panels:
        raise ConfigError("--kind claims: none of the groups that the claims compare was trained; `rlx compare` says what to train")
    panels = dict(sorted(panels.items(), key=lambda panel: (panel[0][0], len(panel[0]))))  # the differences of an environment first
    heights = [0.9 + 0.34 * (len(rows) if len(key) == 2 else len(rows[0].left)) for key, rows in panels.items()]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 0.4 + sum(heights)), dpi=150, layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
        for axes, ((env, metric, *_), rows) in zip(grid[:, 0], panels.items(), strict=True):
            if rows[0].claim.relation == "falls":
                _draw_levels(axes, rows[0])
                axes.set_xlabel(f"{metric} on {env} (IQM over seeds, {100 * confidence:g} % interval)")
            else:
                _draw_differences(axes, rows)
                axes.set_xlabel(f"{metric} on {env}: left minus right (IQM over seeds, {100 * confidence:g} % interval; grey: margin)")
    return figure


def color_of(judged: Judged) -> str:
    return _OPEN if judged.as_expected is None else _GOOD if judged.as_expected else _BAD


def _draw_differences(axes: Axes, rows: Sequence[Judged]) -> None:
    """Point and interval of every difference; grey is how far `not below` may be below."""
    axes.axvline(0.0, color="#444444", linewidth=0.9, zorder=1)
    for y, judged in enumerate(rows):
        color = color_of(judged)
        if judged.margin is not None and math.isfinite(judged.margin):
            ends = (-judged.margin, 0.0) if judged.claim.relation == "not below" else (0.0, judged.margin)
            axes.fill_betweenx([y - 0.3, y + 0.3], *ends, color="#DDDDDD", linewidth=0, zorder=0)
        if math.isfinite(judged.ci[0]):
            axes.hlines(y, *judged.ci, color=color, linewidth=2.0, zorder=2)
        axes.plot([judged.difference], [y], marker="o", markersize=5, color=color, zorder=3)
        axes.annotate(verdict(judged), (1.01, y), xycoords=("axes fraction", "data"), fontsize=8, va="center", color=color)
    names = [f"{judged.claim.name}{'' if judged.at is None else f' ({judged.at:,})'}" for judged in rows]
    _name_rows(axes, names)


def _draw_levels(axes: Axes, judged: Judged) -> None:
    for y, level in enumerate(judged.left):
        if math.isfinite(level.ci[0]):
            axes.hlines(y, *level.ci, color=color_of(judged), linewidth=2.0, zorder=2)
        axes.plot([level.iqm], [y], marker="o", markersize=5, color=color_of(judged), zorder=3)
    rho = "" if not math.isfinite(judged.difference) else f", Spearman {judged.difference:.2f}"
    axes.set_title(f"{judged.claim.name}: {verdict(judged)}{rho}", fontsize=9, loc="left")
    _name_rows(axes, [short(level.words) for level in judged.left])


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
