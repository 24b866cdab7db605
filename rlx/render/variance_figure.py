"""The figure of `rlx variance`: variance by estimator, and against the horizon."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlx.evaluation.gradient_ladder import Ladder
from rlx.render.figures import COLORS, STYLE

_COLOR = {"return": COLORS[1], "to_go": COLORS[4], "baseline": COLORS[0], "q": COLORS[3], "nstep": COLORS[5], "gae": COLORS[2]}


def draw_ladder(ladder: Ladder) -> Figure:
    """Variance of one episode's gradient with 95 % intervals, and its growth with the steps that count."""
    with mpl.rc_context({**STYLE, "axes.titlesize": 10}):
        figure = Figure(figsize=(11.0, 4.6), dpi=150, layout="constrained")
        figure.suptitle(f"{ladder.title}, {ladder.env}: {ladder.num_episodes:,} episodes of {ladder.mean_length:.0f} steps", fontsize=11)
        rungs, horizons = figure.subplots(1, 2, width_ratios=(1.25, 1.0))
        _draw_rungs(rungs, ladder)
        _draw_horizons(horizons, ladder)
    return figure


def _draw_rungs(axes: Axes, ladder: Ladder) -> None:
    for y, rung in enumerate(ladder.rungs):
        found, color = rung.variance["all"], _COLOR[rung.kind]
        axes.plot([found.low, found.high], [y, y], color=color, linewidth=2.4, solid_capstyle="round", zorder=2)
        axes.plot([found.value], [y], marker="o", color=color, markersize=6.5, markerfacecolor=color if rung.unbiased else "white",
                  markeredgewidth=1.6, zorder=3)  # fmt: skip
    whole, last = (next(r for r in ladder.rungs if r.name == name) for name in ("R(τ)", "GAE(0.95)"))
    at = ladder.rungs.index(last)
    axes.annotate("", (last.variance["all"].value, at + 0.45), (whole.variance["all"].value, at + 0.45),
                  arrowprops={"arrowstyle": "->", "color": "#444444", "linewidth": 1.0})  # fmt: skip
    middle = (last.variance["all"].value * whole.variance["all"].value) ** 0.5
    factor = ladder.factor
    value, low, high = (f"{x:,.0f}" if x >= 1000.0 else f"{x:.3g}" for x in (factor.value, factor.low, factor.high))
    label = f"÷ {value}  ({low} to {high})"
    axes.text(middle, at + 0.6, label, ha="center", va="top", fontsize=9, color="#444444")
    axes.set_xscale("log")
    axes.set_yticks(np.arange(len(ladder.rungs)), [rung.name for rung in ladder.rungs])
    axes.set_ylim(len(ladder.rungs) - 0.4, -0.6)
    axes.set_xlabel("variance of one episode's gradient (trace), 95 % interval")
    axes.set_title("filled: unbiased; open: as biased as the fitted V or Q")


def _draw_horizons(axes: Axes, ladder: Ladder) -> None:
    x = [at.horizon for at in ladder.horizons]
    kinds = {rung.name: rung.kind for rung in ladder.rungs}
    for name in ladder.horizons[0].variance:
        found, color = [at.variance[name] for at in ladder.horizons], _COLOR[kinds[name]]
        axes.plot(x, [e.value for e in found], color=color, marker="o", markersize=4, linewidth=1.8, label=name, zorder=3)
        axes.fill_between(x, [e.low for e in found], [e.high for e in found], color=color, alpha=0.18, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(x, [str(n) for n in x])
    axes.minorticks_off()
    axes.set_xlabel("steps of an episode that count")
    axes.set_ylabel("variance of one episode's gradient")
    axes.set_title("variance against the horizon; behind it stands V")
    axes.legend(loc="upper left", fontsize=9)
