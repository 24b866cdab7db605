"""rlx compare: which of several groups of seeds is better, with intervals and tests."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rlx.cli.complete import complete_runs_and_sweeps
from rlx.cli.options import echo

_METRIC = "eval/return_mean"


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN|SWEEP…", help="Runs and sweeps: names, paths, patterns such as 'lr/00*'.",
                                              autocompletion=complete_runs_and_sweeps)],
    by: Annotated[list[str] | None, typer.Option(help="Group by this key; can be repeated. (default: what differs)")] = None,
    metric: Annotated[str | None, typer.Option(help="The metric whose last value in every run is compared. "
                                               f"(default: the sweep's objective, or {_METRIC})")] = None,
    measure: Annotated[str | None, typer.Option(help="evaluation or training: short for --metric eval/return_mean and "
                                                "episode/return_mean_100.")] = None,
    at: Annotated[int | None, typer.Option(help="Compare at this many env steps instead of at the end.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Count env steps until the metric is here. (default: the target)")] = None,
    target: Annotated[float | None, typer.Option(help="Base of the optimality gap. (default: gymnasium's threshold)")] = None,
    minimize: Annotated[bool, typer.Option("--minimize", help="Less is better.")] = False,
    confidence: Annotated[float, typer.Option(help="Confidence of intervals and verdicts.")] = 0.95,
    all_pairs: Annotated[bool, typer.Option("--all-pairs", help="Compare every pair of groups, however many there are.")] = False,
    claims: Annotated[str | None, typer.Option(help="Judge the claims of this experiment. (default: those of the sweep)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a CSV line for every group.")] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="Print a LaTeX table (booktabs).")] = False,
    runs_dir: Annotated[Path | None, typer.Option(help="The directory of runs. (default: $RLX_RUNS_DIR, or runs/ here)")] = None,
) -> None:  # fmt: skip
    """Compare groups of seeds: results with intervals, sample efficiency, and a test for every pair of groups.

    Examples:

      rlx compare lr

      rlx compare ppo-run a2c-run --by algo --measure training

      rlx compare lr --at 100000 --latex
    """
    from rlx.errors import ConfigError
    from rlx.render.comparison_view import comparison_csv, comparison_latex, finite, print_comparison
    from rlx.render.tables import terminal
    from rlx.stats.comparison import compare_runs
    from rlx.store.layout import runs_directory
    from rlx.store.measures import metric_of

    if sum((as_json, as_csv, as_latex)) > 1:
        raise ConfigError("--json, --csv and --latex: choose one")
    root, metric = runs_dir or runs_directory(), metric_of(measure, metric)
    result = compare_runs(root, runs, by=by, metric=metric, at=at, threshold=threshold, target=target, minimize=minimize,
                          confidence=confidence, all_pairs=all_pairs, claims=claims)  # fmt: skip
    if as_json:
        echo(json.dumps(finite(asdict(result))))
    elif as_csv:
        echo(comparison_csv(result).rstrip("\n"))
    elif as_latex:
        echo(comparison_latex(result).rstrip("\n"))
    else:
        console = terminal()
        print_comparison(console, result, extendable=result.sweep if result.sweep and _is_grid(root / result.sweep) else None)
        again = "".join(f" {option} {value}" for option, value in (("--claims", claims), ("--metric", metric)) if value)
        console.print(f"next: rlx plot {' '.join(runs)}{again}", style="dim", soft_wrap=True, highlight=False)


def _is_grid(sweep: Path) -> bool:
    """Whether a sweep is a grid, which can get more seeds; a search cannot."""
    from rlx.store.sweeps import SweepDir

    return SweepDir(sweep).content().get("search") is None
