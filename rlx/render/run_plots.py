"""From names of runs and sweeps to a figure of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rlx.config.choices import check_choice
from rlx.errors import ConfigError
from rlx.render import figures
from rlx.render.claims_figure import draw_claims_figure
from rlx.render.figures import Trial
from rlx.stats.claims import Judged, claims_of, judge_sweeps
from rlx.stats.data import Group, RunData, check_metric, group, load, objective_of
from rlx.store.measures import EVALUATION, TRAINING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("curves", "slice", "parallel", "claims")
X = {"env_steps": "env_steps", "wall_time": "time/elapsed_s"}
"""The metric that is on the x-axis, by the name that users give it."""


@dataclass(kw_only=True)
class Plot:
    """A figure and what it shows."""

    figure: Figure
    kind: str
    metric: str
    minimize: bool
    groups: list[Group]
    trials: list[Trial] = field(default_factory=list)
    """The settings of a search, for slices and parallel coordinates."""
    claims: list[Judged] = field(default_factory=list)
    """What is claimed of the runs, for `claims`."""
    path: Path
    """Where a file of it goes unless the user names another: plots/ in the run, in the sweep, or in the directory of runs."""
    inside_run: bool
    """Whether `path` is in the directory of a run or sweep, which may come from anybody."""
    unreadable: list[str]
    """Runs of a sweep that are left out, and why."""


def plot_runs(
    root: Path,
    references: list[str],
    *,
    kind: str | None = None,
    metric: str | None = None,
    by: list[str] | None = None,
    x: str = "env_steps",
    statistic: str = "iqm",
    every_seed: bool = False,
    threshold: float | None = None,
    minimize: bool = False,
    claimed: str | None = None,
) -> Plot:
    """Draw runs and sweeps.

    Args:
        root: the directory of runs.
        references: names, paths or patterns of runs and sweeps.
        kind: curves, slice (one panel per swept key), parallel (coordinates) or claims (of the sweep's experiment); None is claims if the
            sweep has some and no metric is named, else curves.
        metric: what is drawn; None is the sweep's objective, or evaluations, or training returns where evaluations are too few.
        by: keys that runs are grouped by; None is what differs.
        x: env_steps or wall_time.
        statistic: iqm or mean, over seeds.
        every_seed: also draw every seed.
        threshold: draw a line at this height.
        minimize: less is better; known already where a sweep minimizes its objective.
        claimed: the experiment whose claims are drawn; None is what the sweeps of the runs were started with.

    Raises:
        ConfigError: for what there is not.
    """
    if claimed is not None and kind not in (None, "claims"):
        raise ConfigError(f"--claims {claimed} has no effect with --kind {kind}; leave one of them out")
    kind = kind if claimed is None else "claims"
    if kind is not None:
        check_choice("--kind", kind, KINDS)
    check_choice("--x", x, tuple(X))
    check_choice("--statistic", statistic, ("iqm", "mean"))
    runs, unreadable = load(root, references)
    judged_by = None if claimed is None else claims_of(claimed)
    claims = judge_sweeps(root, runs, claimed=judged_by) if kind == "claims" or (kind is None and metric is None and by is None) else []
    drawable = [judged for judged in claims if judged.left]
    if kind == "claims" and not claims:
        raise ConfigError("--kind claims: the experiments of these runs claim nothing; draw --kind curves")
    kind = kind or ("claims" if drawable else "curves")
    own = objective_of(root, runs) or (EVALUATION, False)
    metric = metric or _default_metric(runs, kind, own[0])
    minimize = minimize or own == (metric, True)
    check_metric(runs, metric)
    groups = group(runs, by)
    trials: list[Trial] = []
    if kind == "claims":
        figure = draw_claims_figure(claims)
    elif kind == "curves":
        figure = figures.draw_curves(groups, metric, x=X[x], statistic=statistic, every_seed=every_seed, threshold=threshold)
    else:
        trials = figures.trials(groups, metric)
        if len(trials) < 2 or not trials[0].values:
            raise ConfigError(f"--kind {kind} shows how settings differ, and these runs have one setting; draw --kind curves")
        if kind == "slice":
            figure = figures.draw_slices(trials, metric, statistic=statistic)
        else:
            figure = figures.draw_parallel(trials, metric, statistic=statistic, minimize=minimize)
    directory = _directory(root, runs)
    against = "" if x == "env_steps" else f"-{x}"
    path = directory / "plots" / ("claims.png" if kind == "claims" else f"{kind}-{metric.replace('/', '-')}{against}.png")
    return Plot(figure=figure, kind=kind, metric=metric, minimize=minimize, groups=groups, trials=trials, claims=claims, path=path,
                inside_run=directory != root, unreadable=unreadable)  # fmt: skip


def _default_metric(runs: Sequence[RunData], kind: str, preferred: str) -> str:
    """The preferred metric, or training returns if it has too few values to make a curve of every run."""
    needed = 3 if kind == "curves" else 1
    counts = [len(run.series(preferred)[0]) for run in runs if run.lines]
    return preferred if counts and min(counts) >= needed else TRAINING


def _directory(root: Path, runs: Sequence[RunData]) -> Path:
    """The run, or the sweep if all runs are of one, or the directory of runs."""
    if len(runs) == 1:
        return root / runs[0].name
    sweeps = {run.sweep for run in runs}
    sweep = sweeps.pop() if len(sweeps) == 1 else None
    return root / sweep if sweep else root
