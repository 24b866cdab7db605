"""rlx plot: learning curves of runs and sweeps, and the settings of a sweep against their results; in the terminal and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlx.cli.complete import complete_runs_and_sweeps


def plot(
    runs: Annotated[list[str], typer.Argument(metavar="RUN|SWEEP…", help="Runs and sweeps: names, paths, patterns such as 'lr/00*'.",
                                              autocompletion=complete_runs_and_sweeps)],
    kind: Annotated[str | None, typer.Option(help="curves, slice (one panel per swept key), parallel (coordinates) or claims. "
                                             "(default: claims if the sweep's experiment has some, else curves)")] = None,
    metric: Annotated[str | None, typer.Option(help="What is drawn. (default: the sweep's objective, or evaluations or returns)")] = None,
    measure: Annotated[str | None, typer.Option(help="evaluation or training: short for --metric eval/return_mean and "
                                                "episode/return_mean_100.")] = None,
    by: Annotated[list[str] | None, typer.Option(help="Group by this key; can be repeated. (default: what differs)")] = None,
    x: Annotated[str, typer.Option(help="The x-axis: env_steps or wall_time.")] = "env_steps",
    statistic: Annotated[str, typer.Option(help="Over seeds: iqm or mean.")] = "iqm",
    seeds: Annotated[bool, typer.Option("--seeds", help="Also draw a thin curve for every seed.")] = False,
    threshold: Annotated[float | None, typer.Option(help="Draw a line at this height.")] = None,
    minimize: Annotated[bool, typer.Option("--minimize", help="Less is better; for parallel coordinates.")] = False,
    claims: Annotated[str | None, typer.Option(help="Draw the claims of this experiment. (default: those of the sweep)")] = None,
    out: Annotated[list[Path] | None, typer.Option(help="Write here: .png, .svg, .pdf; can be repeated. (default: plots/)")] = None,
    terminal_only: Annotated[bool, typer.Option("--terminal", help="Draw in the terminal and write no file.")] = False,
    runs_dir: Annotated[Path | None, typer.Option(help="The directory of runs. (default: $RLX_RUNS_DIR, or runs/ here)")] = None,
) -> None:  # fmt: skip
    """Draw learning curves with intervals over seeds, or the settings of a sweep against their results.

    Examples:

      rlx plot lr

      rlx plot lr --kind parallel --out lr.svg

      rlx plot car lander --measure training --x wall_time
    """
    from rlx.errors import ConfigError
    from rlx.render import figures
    from rlx.render.claims_view import draw_claims
    from rlx.render.run_plots import X, plot_runs
    from rlx.render.tables import terminal
    from rlx.render.terminal_figures import print_curves, print_slices
    from rlx.store.layout import runs_directory
    from rlx.store.measures import in_words, metric_of

    for path in out or []:
        figures.check_format(path)
    if out and terminal_only:
        raise ConfigError("--out writes a file and --terminal writes none: leave one out")
    metric = metric_of(measure, metric)
    drawn = plot_runs(runs_dir or runs_directory(), runs, kind=kind, metric=metric, by=by, x=x, statistic=statistic, every_seed=seeds,
                      threshold=threshold, minimize=minimize, claimed=claims)  # fmt: skip
    console = terminal()
    for text in drawn.unreadable:
        console.print(text, style="dim", soft_wrap=True, highlight=False)
    if drawn.kind == "claims":
        draw_claims(console, drawn.claims)
    elif drawn.kind == "curves":
        print_curves(console, drawn.groups, drawn.metric, x=X[x], statistic=statistic)
    elif drawn.kind == "slice":
        print_slices(console, drawn.trials, drawn.metric)
    else:
        console.print(f"{in_words(drawn.metric)}{' (less is better)' if drawn.minimize else ''}; parallel coordinates need a file, "
                      "`rlx plot --kind slice` draws in the terminal", style="dim", soft_wrap=True, highlight=False)  # fmt: skip
    if terminal_only:
        return
    for path in out or [drawn.path]:
        figures.save(drawn.figure, path, inside=not out and drawn.inside_run)
        console.print(str(path), soft_wrap=True, highlight=False)
