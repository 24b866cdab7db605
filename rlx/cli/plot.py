"""rlx plot: learning curves of runs and sweeps, and what a sweep says of its settings; in the terminal and as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlx.cli.complete import complete_runs_and_sweeps
from rlx.render.braille import letter, plot_many

if TYPE_CHECKING:
    from rich.console import Console

    from rlx.render.figures import Trial
    from rlx.stats.data import Group, RunData

_EVALUATION, _TRAINING = "eval/return_mean", "episode/return_mean_100"
_KINDS = ("curves", "slice", "parallel")
_X = {"env_steps": "env_steps", "wall_time": "time/elapsed_s"}
_STYLES = ("blue", "red", "green", "magenta", "yellow", "cyan", "white", "bright_black")
_MOST_IN_TERMINAL = 12


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
    from rlx.cli.catalogue import terminal
    from rlx.config.compose import runs_directory
    from rlx.errors import ConfigError
    from rlx.render import figures
    from rlx.stats.data import check_metric, group, load, objective_of
    from rlx.sweep.prepare import check_choice

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
        _print_curves(console, groups, chosen, x=_X[x], statistic=statistic)
    else:
        tried = figures.trials(groups, chosen)
        if len(tried) < 2 or not tried[0].values:
            raise ConfigError(f"--kind {kind} shows how settings differ, and these runs have one setting; draw --kind curves")
        if kind == "slice":
            figure = figures.draw_slices(tried, chosen, statistic=statistic)
            _print_slices(console, tried, chosen)
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


def _print_curves(console: Console, groups: Sequence[Group], metric: str, *, x: str, statistic: str) -> None:
    from rlx.stats.curves import band
    from rlx.stats.data import of_one_seed

    drawn = []
    silent = [g.label for g in groups if not any(len(run.series(metric, x)[0]) for run in g.runs)]
    groups = [g for g in groups if g.label not in silent]
    for g in groups[:_MOST_IN_TERMINAL]:
        steps, centre, _, _ = band(g.runs, metric, x, statistic)
        drawn.append(list(zip(steps.tolist(), centre.tolist(), strict=True)))
    label = "env steps" if x == "env_steps" else "seconds of training"
    console.print(f"{metric}, {'IQM' if statistic == 'iqm' else 'mean'} over seeds", highlight=False)
    print_drawing(console, drawn, [f"{g.label} ({len(of_one_seed(g.runs))})" for g in groups], label)
    if len(groups) > _MOST_IN_TERMINAL:
        console.print(f"and {len(groups) - _MOST_IN_TERMINAL} more in the file", style="dim")
    if silent:
        console.print(f"left out, without {metric}: {', '.join(silent)}", style="dim", soft_wrap=True)


def print_drawing(console: Console, drawn: list[list[tuple[float, float]]], names: list[str], x_label: str, *, joined: bool = True) -> None:
    """Draw curves in the terminal, each in a colour of its own, and a legend below."""
    from rich.text import Text

    width = min(console.width, 100)
    for row in plot_many(drawn, width=width, height=16, x_label=x_label, joined=joined):
        text = Text(no_wrap=True)
        for character, owner in row:
            text.append(character, style="" if owner is None or not joined else _STYLES[owner % len(_STYLES)])
        text.rstrip()
        console.print(text, soft_wrap=True)
    if joined:
        for i, name in enumerate(names[: len(drawn)]):
            console.print(Text(f"  {letter(i)}  ", style=_STYLES[i % len(_STYLES)]).append(name, style="default"), soft_wrap=True)


def _print_slices(console: Console, found: Sequence[Trial], metric: str) -> None:
    """A drawing of dots for every key; names stand for their places."""
    import math

    from rlx.render.figures import scale_of

    for key in found[0].values:
        scale = scale_of([t.values[key] for t in found])
        at = [math.log10(p) if scale.log else float(p) for p in scale.positions]
        dots = [(p, score) for p, t in zip(at, found, strict=True) for score in t.scores]
        names = f": {', '.join(f'{i} {name}' for i, name in enumerate(scale.names))}" if scale.names else ""
        console.print(f"\n{metric} against {'log10 of ' if scale.log else ''}{key}{names}", soft_wrap=True, highlight=False)
        print_drawing(console, [dots], [], key, joined=False)
