"""Figures: learning curves, slices and parallel coordinates of a sweep. The same data gives the same file, byte for byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rlx.errors import ConfigError, StorageError
from rlx.evaluation.model_error import LEVELS, ModelError
from rlx.files import make_directory
from rlx.render.numbers import count
from rlx.stats import curves
from rlx.stats.aggregate import iqm, mean
from rlx.stats.data import Group, Series, of_one_seed
from rlx.stats.intervals import FEWEST
from rlx.store.measures import in_words

FORMATS = (".png", ".svg", ".pdf")
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
"""Colours of Okabe and Ito (2008), which colour-blind readers can tell apart; the yellow is darkened for print."""
_DASHES = ("-", "--", "-.", ":")
_PAPER = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
_LOG_FROM = 100.0
"""An axis whose ends differ by at least this factor is logarithmic."""
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "font.size": 10,
    "svg.hashsalt": "rlx",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting of a sweep with the results of its runs."""

    values: dict[str, Any]
    scores: list[float]
    complete: bool
    """Whether every run is finished."""

    def score(self, statistic: str = "iqm") -> float:
        values = np.array(self.scores)
        return float((iqm if statistic == "iqm" else mean)(values)) if self.scores else math.nan


def trials(groups: Sequence[Group], metric: str) -> list[Trial]:
    """The results of the groups of a sweep: the last value of the metric in every run."""
    found = []
    for g in groups:
        scores = [value for run in g.runs if (value := curves.value_at(run, metric)) is not None]
        found.append(Trial(values=g.values, scores=scores, complete=all(run.status == "finished" for run in g.runs)))
    return found


def draw_curves(
    groups: Sequence[Group],
    metric: str,
    *,
    x: str = "env_steps",
    statistic: str = "iqm",
    confidence: float = 0.95,
    every_seed: bool = False,
    threshold: float | None = None,
) -> Figure:
    """A learning curve for every group: the statistic over seeds with its interval at each point, or the seeds where they are too few."""
    with mpl.rc_context(STYLE):
        many = len(groups) > 6
        figure = Figure(figsize=(9.5 if many else 7.0, 4.4), dpi=150, layout="constrained")
        axes = figure.subplots()
        unit, scale = _unit(groups, metric, x)
        for i, g in enumerate(g for g in groups if any(len(run.series(metric, x)[0]) for run in g.runs)):
            color, dashes = COLORS[i % len(COLORS)], _DASHES[i // len(COLORS) % len(_DASHES)]
            steps, centre, low, high = curves.band(g.runs, metric, x, statistic, confidence)
            seeds = len(of_one_seed([run for run in g.runs if len(run.series(metric, x)[0])]))
            name = f"{g.label} ({count(seeds, 'seed')})" if len(groups) > 1 or g.label != "all" else count(seeds, "seed")
            axes.plot(steps / scale, centre, color=color, linestyle=dashes, marker=_marker(steps), linewidth=1.8, label=name, zorder=3)
            if seeds >= FEWEST and len(steps) == 1:
                axes.vlines(steps / scale, low, high, color=color, linewidth=1.8)
            elif seeds >= FEWEST:
                axes.fill_between(steps / scale, low, high, color=color, alpha=0.18, linewidth=0)
            elif seeds > 1 and not every_seed:  # too few for an interval: themselves
                _draw_seeds(axes, [run.series(metric, x) for run in g.runs], scale, color)
            if every_seed:
                for run in g.runs:
                    own, values = run.series(metric, x)
                    axes.plot(own / scale, values, color=color, marker=_marker(own), alpha=0.35, linewidth=0.7, zorder=2)
        if threshold is not None:
            axes.axhline(threshold, color="#666666", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.set_xlabel("env steps" if x == "env_steps" else f"training time [{unit}]")
        what = "IQM" if statistic == "iqm" else "mean"
        most = max(len(of_one_seed(g.runs)) for g in groups)
        spread = f"{100 * confidence:g} % interval" if most >= FEWEST else "thin: every seed"
        axes.set_ylabel(f"{in_words(metric)}\n{what} over seeds, {spread}" if most > 1 else in_words(metric))
        if x == "env_steps":
            axes.xaxis.set_major_formatter(_short)
        if many:
            figure.legend(loc="outside right upper", fontsize=8)
        else:
            axes.legend(loc="best", fontsize=9)
        axes.margins(x=0.01)
    return figure


def _draw_seeds(axes: Axes, series: list[Series], scale: float, color: str) -> None:
    """Thin curves, and dots where a curve is one point."""
    series = [(steps / scale, values) for steps, values in series if len(steps)]
    lines = [np.column_stack(pair) for pair in series if len(pair[0]) > 1]
    dots = np.array([(steps[0], values[0]) for steps, values in series if len(steps) == 1]).reshape(-1, 2)
    if lines:
        axes.add_collection(LineCollection(lines, colors=color, alpha=0.5, linewidths=0.7, zorder=2))
    if len(dots):
        axes.scatter(dots[:, 0], dots[:, 1], s=12, color=color, alpha=0.5, linewidths=0, zorder=2)


def _marker(steps: NDArray[np.float64]) -> str | None:
    """The marker of a curve: a dot for a single point, which a line would not show."""
    return "o" if len(steps) == 1 else None


def _unit(groups: Sequence[Group], metric: str, x: str) -> tuple[str, float]:
    """The unit of time that suits the longest run, and its length in seconds."""
    if x == "env_steps":
        return "", 1.0
    longest = max((float(v[-1]) for g in groups for run in g.runs if len(v := run.series(metric, x)[0])), default=0.0)
    return ("s", 1.0) if longest < 300 else ("min", 60.0) if longest < 3 * 3600 else ("h", 3600.0)


def _short(value: float, _: float = 0.0) -> str:
    """50k, 1.5M."""
    for limit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{name}"
    return f"{value:g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Scale:
    """The axis of one key, and the positions of its values."""

    names: list[str] | None
    """Of the positions 0, 1, …; None for numbers."""
    log: bool
    positions: NDArray[np.float64]
    """One for every trial."""


def scale_of(values: Sequence[Any]) -> Scale:
    if all(map(_is_number, values)):
        numbers = np.array(values, dtype=np.float64)
        low, high = numbers.min(), numbers.max()
        return Scale(None, bool(low > 0 and high / low >= _LOG_FROM), numbers)
    ordered = sorted(values, key=lambda v: (not _is_number(v), v if _is_number(v) else 0, str(v)))
    names = list(dict.fromkeys(map(_name, ordered)))
    return Scale(names, False, np.array([names.index(_name(v)) for v in values], dtype=np.float64))


def _name(value: Any) -> str:
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


def draw_slices(found: Sequence[Trial], metric: str, *, statistic: str = "iqm") -> Figure:
    """One panel for every swept key: a dot for every run, and for listed values a line through the aggregates."""
    keys = list(found[0].values)
    with mpl.rc_context(STYLE):
        columns = min(3, len(keys))
        rows = math.ceil(len(keys) / columns)
        figure = Figure(figsize=(max(4.8, 3.6 * columns), 3.3 * rows), dpi=150, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for i, key in enumerate(keys):
            axes: Axes = grid[i // columns][i % columns]
            scale = scale_of([t.values[key] for t in found])
            _draw_slice(axes, found, scale, statistic)
            axes.set_xlabel(key)
            if i % columns == 0:
                axes.set_ylabel(in_words(metric).replace(" (", "\n("))
        for i in range(len(keys), rows * columns):
            grid[i // columns][i % columns].set_visible(False)
        if unfinished := _unfinished(found):
            figure.supxlabel(unfinished, fontsize=8, color="#777777")
    return figure


def _unfinished(found: Sequence[Trial]) -> str:
    """The meaning of grey for the legend; "" if nothing is grey."""
    number = sum(not t.complete for t in found)
    return f"grey: {count(number, 'setting')} pruned, failed or not finished" if number else ""


def _draw_slice(axes: Axes, found: Sequence[Trial], scale: Scale, statistic: str) -> None:
    pooled: dict[float, list[float]] = {}
    for trial, position in zip(found, scale.positions, strict=True):
        if trial.complete:
            pooled.setdefault(float(position), []).extend(trial.scores)
        spread = 0.06 if scale.names is not None else 0.0  # several runs of one name are drawn side by side
        offset = spread * (np.arange(len(trial.scores)) - (len(trial.scores) - 1) / 2)
        color = COLORS[0] if trial.complete else "#AAAAAA"
        axes.scatter(position + offset, trial.scores, s=18, color=color, alpha=0.55, linewidths=0, zorder=3)
    complete = sum(t.complete for t in found)
    if len(pooled) < complete or complete <= 6:  # a line through many values without repetitions would follow the noise
        order = sorted(p for p, scores in pooled.items() if scores)
        reduce = iqm if statistic == "iqm" else mean
        aggregates = [float(reduce(np.array(pooled[p]))) for p in order]
        joined = "-" if scale.names is None else "none"  # no line between names
        axes.plot(order, aggregates, color=COLORS[1], marker="o", markersize=4, linestyle=joined, linewidth=1.5, zorder=4)
    if scale.log:
        axes.set_xscale("log")
    elif scale.names is None:
        axes.locator_params(axis="x", nbins=5)
    if scale.names is not None:
        axes.set_xticks(range(len(scale.names)), scale.names, rotation=30 if max(map(len, scale.names)) > 8 else 0)
        axes.set_xlim(-0.5, len(scale.names) - 0.5)


def draw_parallel(found: Sequence[Trial], metric: str, *, statistic: str = "iqm", minimize: bool = False) -> Figure:
    """Parallel coordinates (Inselberg 1985): one axis for every swept key and one for the result, one line for every setting."""
    keys = list(found[0].values)
    scores = np.array([t.score(statistic) for t in found])
    scales = [*(scale_of([t.values[key] for t in found]) for key in keys), Scale(None, False, scores)]
    heights = np.stack([_heights(s) for s in scales], axis=1)  # [trials, axes]
    finite = np.isfinite(scores)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(max(6.0, 2.1 * len(scales)), 4.2), dpi=150, layout="constrained")
        axes = figure.subplots()
        good = -scores if minimize else scores
        usable = finite & np.array([t.complete for t in found])
        ranked = np.where(usable, good, -np.inf)
        best = int(np.argmax(ranked)) if usable.any() else -1
        color_map = mpl.colormaps["viridis_r" if minimize else "viridis"]
        for i in np.argsort(ranked):
            shade = color_map(heights[i, -1]) if usable[i] else "#BBBBBB"
            width, alpha = (3.0, 1.0) if i == best else (1.2, 0.75)
            axes.plot(range(len(scales)), heights[i], color=shade, linewidth=width, alpha=alpha, zorder=2 + (i == best))
        for position, (name, scale) in enumerate(zip([*keys, in_words(metric).replace(" (", "\n(")], scales, strict=True)):
            axes.plot([position, position], [0, 1], color="#444444", linewidth=0.8, zorder=1)
            for height, text in _ticks(scale):
                axes.annotate(
                    text, (position, height), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center", bbox=_PAPER, zorder=5
                )
            axes.annotate(name, (position, 1.05), fontsize=9, ha="center", va="bottom", annotation_clip=False)
        axes.set_xlim(-0.15, len(scales) - 1 + 0.55)
        axes.set_ylim(-0.12, 1.12)
        axes.axis("off")
        axes.annotate(_unfinished(found), (0, -0.11), fontsize=8, color="#777777")
    return figure


def _heights(scale: Scale) -> NDArray[np.float64]:
    """Positions on an axis from 0 to 1."""
    values = np.log10(scale.positions) if scale.log else scale.positions
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    if scale.names is not None:
        low, high = 0.0, float(len(scale.names) - 1)
    return (values - low) / (high - low) if high > low else np.where(np.isfinite(values), 0.5, np.nan)


def _ticks(scale: Scale) -> list[tuple[float, str]]:
    """Heights and names of what is written beside an axis."""
    if scale.names is not None:
        last = max(1, len(scale.names) - 1)
        return [(i / last if len(scale.names) > 1 else 0.5, name[:18]) for i, name in enumerate(scale.names)]
    values = np.unique(scale.positions[np.isfinite(scale.positions)])
    if not len(values):
        return []
    space = np.geomspace if scale.log else np.linspace
    shown = values if len(values) <= 6 else space(values[0], values[-1], 5)
    at = _heights(Scale(None, scale.log, np.concatenate([shown, values])))[: len(shown)]
    return [(float(h), _short(float(f"{v:.3g}"))) for h, v in zip(at, shown, strict=True)]


def draw_model_error(judged: ModelError, *, title: str) -> Figure:
    """Error against steps ahead, nominal against observed coverage, and disagreement against error."""
    with mpl.rc_context({**STYLE, "axes.titlesize": 10}):
        figure = Figure(figsize=(12.0, 4.2), dpi=150, layout="constrained")
        figure.suptitle(title, fontsize=11)
        error, calibration, doubts = figure.subplots(1, 3)
        _draw_error(error, judged)
        _draw_calibration(calibration, judged)
        doubts.scatter(judged.disagreement, judged.error_by_start, s=12, color=COLORS[0], alpha=0.45, linewidths=0, zorder=3)
        rho = judged.spearman
        doubts.set_title(f"does disagreement predict error?\nSpearman {rho:.2f}" if math.isfinite(rho) else "disagreement and error")
        doubts.set_xlabel("disagreement of the members")
        doubts.set_ylabel(f"error, RMS over {_steps(judged)}")
        if any(values.min() > 0.0 and values.max() / values.min() >= _LOG_FROM for values in (judged.disagreement, judged.error_by_start)):
            doubts.set_xscale("log" if judged.disagreement.min() > 0.0 else "linear")
            doubts.set_yscale("log" if judged.error_by_start.min() > 0.0 else "linear")
    return figure


def _steps(judged: ModelError) -> str:
    return f"{len(judged.error)} step{'s' if len(judged.error) > 1 else ''}"


def _draw_error(axes: Axes, judged: ModelError) -> None:
    ahead = np.arange(1, len(judged.error) + 1)
    marker = "o" if len(ahead) <= 30 else None
    axes.plot(ahead, judged.no_change, color="#777777", linestyle="--", marker=marker, markersize=3, label="predicting no change")
    axes.plot(ahead, judged.error, color=COLORS[0], marker=marker, markersize=4, linewidth=1.8, label="the model", zorder=3)
    axes.set_title(f"error k steps ahead\n{len(judged.disagreement)} starts")
    axes.set_xlabel("steps ahead, k")
    axes.set_ylabel("error [deviations of the observations]")
    axes.set_xlim(0.5, len(ahead) + 0.5)
    axes.locator_params(axis="x", integer=True)
    axes.set_ylim(bottom=0.0)
    axes.legend(loc="best", fontsize=9)


def _draw_calibration(axes: Axes, judged: ModelError) -> None:
    """One line for one step ahead, one for the farthest, one for all; below the diagonal intervals are too narrow."""
    axes.plot([0, 1], [0, 1], color="#777777", linestyle="--", linewidth=1.0, label="calibrated")
    observed = np.stack([judged.coverage(level).mean(axis=1) for level in LEVELS])  # [levels, H]
    farthest = observed.shape[1]
    axes.plot(LEVELS, observed.mean(axis=1), color=COLORS[0], marker="o", markersize=4, linewidth=1.8, label="all steps", zorder=3)
    if farthest > 1:
        axes.plot(LEVELS, observed[:, 0], color=COLORS[2], linewidth=1.2, label="1 step ahead")
        axes.plot(LEVELS, observed[:, -1], color=COLORS[1], linewidth=1.2, label=f"{farthest} steps ahead")
    axes.set_title("calibration\nbelow the diagonal: intervals too narrow")
    axes.set_xlabel("share that the interval should hold")
    axes.set_ylabel("share that it held")
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(0.0, 1.0)
    axes.set_aspect("equal")
    axes.legend(loc="best", fontsize=9)


def check_format(path: Path | None) -> None:
    """Raise a ConfigError unless a figure can be written in the format that a path's ending means."""
    if path is not None and path.suffix not in FORMATS:
        raise ConfigError(f"--out {path}: expected an ending of {', '.join(FORMATS)}")


def save(figure: Figure, path: Path, *, inside: bool = False) -> None:
    """Write a figure; its format follows from the ending.

    Args:
        inside: its place is plots/ of a run or sweep, which may come from anywhere: no link leads the figure elsewhere.

    Raises:
        ConfigError: for another ending.
        StorageError: if it cannot be written.
    """
    check_format(path)
    metadata = {".png": {"Software": "rlx"}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[path.suffix]
    try:
        if inside:
            make_directory(path.parent)
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(STYLE):
            figure.savefig(path, metadata=metadata)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"--out {path} cannot be written ({error.strerror}); choose another place") from error
