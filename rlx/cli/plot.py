"""rlx plot: learning curves of runs and sweeps, and what a sweep says of its settings; in the terminal and as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlx.cli.complete import complete_runs_and_sweeps

if TYPE_CHECKING:
    from rlx.stats.data import RunData

_EVALUATION, _TRAINING = "eval/return_mean", "episode/return_mean_100"
_KINDS = ("curves", "slice", "parallel")
_X = {"env_steps": "env_steps", "wall_time": "time/elapsed_s"}


def plot(
    runs: Annotated[list[str], typer.Argument(metavar="RUN|SWEEP…", help="Runs and sweeps: names, paths, patterns such as 'lr/00*'.",
                                              autocompletion=complete_runs_and_sweeps)],
    kind: Annotated[str, typer.Option(help="curves, slice (one panel per swept key) or parallel (coordinates).")] = "curves",
    metric: Annotated[str | None, typer.Option(help="What is drawn. (default: the sweep's objective, or evaluations or returns)")] = None,
    by: Annotated[list[str] | None, typer.Option(help="Group by this key; can be repeated. (default: what differs)")] = None,
    x: Annotated[str, typer.Option(help="env_steps or wall_time.")] = "env_steps",
    statistic: Annotated[str, typer.Option(help="Over seeds: iqm or mean.")] = "iqm",
    seeds: Annotated[bool, typer.Option("--seeds", help="Also draw every seed, thinly.")] = False,
    threshold: Annotated[float | None, typer.Option(help="Draw a line at this height.")] = None,
    minimize: Annotated[bool, typer.Option("--minimize", help="Less is better; for parallel coordinates.")] = False,
    out: Annotated[list[Path] | None, typer.Option(help="Write here: .png, .svg, .pdf; can be repeated. (default: plots/)")] = None,
    terminal_only: Annotated[bool, typer.Option("--terminal", help="Draw in the terminal and write no file.")] = False,
    runs_dir: Annotated[Path | None, typer.Option(help="Where to look; otherwise $RLX_RUNS_DIR, or runs/ here.")] = None,
) -> None:  # fmt: skip
    """Draw learning curves with their intervals over seeds, or what a sweep says of its settings.

    Examples:

      rlx plot lr

      rlx plot lr --kind parallel --out lr.svg

      rlx plot car lander --metric episode/return_mean_100 --x wall_time
    """
    from rlx.config.compose import runs_directory
    from rlx.config.overrides import check_choice
    from rlx.errors import ConfigError
    from rlx.render import figures
    from rlx.render.tables import terminal
    from rlx.render.terminal_figures import print_curves, print_slices
    from rlx.stats.data import check_metric, group, load, objective_of

    check_choice("--kind", kind, _KINDS)
    check_choice("--x", x, tuple(_X))
    check_choice("--statistic", statistic, ("iqm", "mean"))
    for path in out or []:
        if path.suffix not in figures.FORMATS:
            raise ConfigError(f"--out {path}: expected an ending of {', '.join(figures.FORMATS)}")
    if out and terminal_only:
        raise ConfigError("--out writes a file and --terminal writes none: leave one out")
    root = runs_dir or runs_directory()
    found, unreadable = load(root, runs)
    own = objective_of(root, found) or (_EVALUATION, False)
    chosen = metric or _default_metric(found, kind, own[0])
    minimize = minimize or own == (chosen, True)
    check_metric(found, chosen)
    groups = group(found, by)
    console = terminal()
    for text in unreadable:
        console.print(text, style="dim", soft_wrap=True, highlight=False)
    if kind == "curves":
        figure = figures.draw_curves(groups, chosen, x=_X[x], statistic=statistic, every_seed=seeds, threshold=threshold)
        print_curves(console, groups, chosen, x=_X[x], statistic=statistic)
    else:
        tried = figures.trials(groups, chosen)
        if len(tried) < 2 or not tried[0].values:
            raise ConfigError(f"--kind {kind} shows how settings differ, and these runs have one setting; draw --kind curves")
        if kind == "slice":
            figure = figures.draw_slices(tried, chosen, statistic=statistic)
            print_slices(console, tried, chosen)
        else:
            figure = figures.draw_parallel(tried, chosen, statistic=statistic, minimize=minimize)
            console.print(f"{chosen}{' (less is better)' if minimize else ''}; parallel coordinates need a file, `rlx plot --kind slice` "
                          "draws in the terminal", style="dim", soft_wrap=True, highlight=False)  # fmt: skip
    if terminal_only:
        return
    for path in out or [_default_path(root, found, kind, chosen, x)]:
        figures.save(figure, path, inside=not out and path.parent.parent != root)
        console.print(str(path), soft_wrap=True, highlight=False)


def _default_metric(runs: Sequence[RunData], kind: str, preferred: str) -> str:
    """The sweep's objective or evaluations, unless they are too few to make a curve of every run."""
    needed = 3 if kind == "curves" else 1
    counts = [len(run.series(preferred)[0]) for run in runs if run.lines]
    return preferred if counts and min(counts) >= needed else _TRAINING


def _default_path(root: Path, runs: Sequence[RunData], kind: str, metric: str, x: str) -> Path:
    """plots/ in the run, in the sweep if all runs are of one, else in the directory of runs."""
    sweeps = {run.sweep for run in runs}
    if len(runs) == 1:
        directory = root / runs[0].name
    else:
        sweep = next(iter(sweeps)) if len(sweeps) == 1 else None
        directory = root / sweep if sweep else root
    against = "" if x == "env_steps" else f"-{x}"
    return directory / "plots" / f"{kind}-{metric.replace('/', '-')}{against}.png"
