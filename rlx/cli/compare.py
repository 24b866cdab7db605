"""rlx compare: which of several groups of seeds is better, and whether that can be known."""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlx.cli.complete import complete_runs_and_sweeps
from rlx.cli.options import echo

if TYPE_CHECKING:
    from rich.console import Console

    from rlx.stats.comparison import Comparison, Row

_METRIC = "eval/return_mean"
_STYLE = {"better": "green", "worse": "red", "too few seeds": "yellow", "not distinguishable": "dim"}


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN|SWEEP…", help="Runs and sweeps: names, paths, patterns such as 'lr/00*'.",
                                              autocompletion=complete_runs_and_sweeps)],
    by: Annotated[list[str] | None, typer.Option(help="Group by this key; can be repeated. (default: what differs)")] = None,
    metric: Annotated[str | None, typer.Option(help="What is compared: its last value in every run. "
                                               f"(default: the sweep's objective, or {_METRIC})")] = None,
    at: Annotated[int | None, typer.Option(help="Compare at this many env steps instead of at the end.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Count env steps until the metric is there. (default: the target)")] = None,
    target: Annotated[float | None, typer.Option(help="What the optimality gap is from. (default: gymnasium's threshold)")] = None,
    minimize: Annotated[bool, typer.Option("--minimize", help="Less is better.")] = False,
    confidence: Annotated[float, typer.Option(help="Of intervals and verdicts.")] = 0.95,
    all_pairs: Annotated[bool, typer.Option("--all-pairs", help="Compare each group with each, however many there are.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a CSV line for every group.")] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="Print a LaTeX table (booktabs).")] = False,
    runs_dir: Annotated[Path | None, typer.Option(help="Where to look; otherwise $RLX_RUNS_DIR, or runs/ here.")] = None,
) -> None:  # fmt: skip
    """Compare groups of seeds: how good, how sure, how fast; and pair by pair who is better, if that can be said.

    Examples:

      rlx compare lr

      rlx compare ppo-run a2c-run --by algo --metric episode/return_mean_100

      rlx compare lr --at 100000 --latex
    """
    from rlx.config.compose import runs_directory
    from rlx.errors import ConfigError
    from rlx.stats.comparison import compare as compare_groups
    from rlx.stats.data import group, load, objective_of

    if not 0.5 <= confidence < 1.0:
        raise ConfigError(f"--confidence {confidence}: expected a share from 0.5 to below 1, e.g. 0.95")
    if sum((as_json, as_csv, as_latex)) > 1:
        raise ConfigError("--json, --csv and --latex: choose one")
    root = runs_dir or runs_directory()
    found, unreadable = load(root, runs)
    own = objective_of(root, found) or (_METRIC, False)
    result = compare_groups(group(found, by), metric=metric or own[0], at=at, threshold=threshold, target=target,
                            minimize=minimize or own == (metric or own[0], True), confidence=confidence, all_pairs=all_pairs)  # fmt: skip
    result.notes += unreadable
    if as_json:
        echo(json.dumps(_finite(asdict(result))))
    elif as_csv:
        _print_csv(result)
    elif as_latex:
        _print_latex(result)
    else:
        _print(result, sweep=_grid_of(root, {run.sweep for run in found}), references=runs)


def _grid_of(root: Path, sweeps: set[str | None]) -> str | None:
    """The sweep that all runs are of, if it can get more seeds: a search cannot."""
    from rlx.store.sweeps import SweepDir

    name = next(iter(sweeps)) if len(sweeps) == 1 else None
    return name if name is not None and SweepDir(root / name).content().get("search") is None else None


def _finite(tree: Any) -> Any:
    """What JSON has no number for, as null."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def _print(result: Comparison, *, sweep: str | None, references: list[str]) -> None:
    from rich.text import Text

    from rlx.render.tables import make_table, terminal

    console = terminal()
    where = "last value" if result.at is None else f"value at {result.at:,} env steps"
    percent = f"{100 * result.confidence:g} %"
    less = " (less is better)" if result.minimize else ""
    console.print(f"{result.metric}{less}, {where} of every run, on {', '.join(result.envs)}", soft_wrap=True, highlight=False)
    table = make_table("group", "seeds", "mean", "median", "IQM", f"{percent} interval", "gap")
    for row in result.rows:
        gap = "–" if row.optimality_gap is None else _number(row.optimality_gap)
        table.add_row(
            row.group, str(row.seeds), _number(row.mean), _number(row.median), _number(row.iqm), _interval(row.iqm_ci, row.seeds), gap
        )
    console.print(table)
    console.print()
    steps = "to threshold" if result.threshold is None else f"to {_number(result.threshold)}"
    table = make_table("group", "mean over training", f"env steps {steps}", "reached", "wall time")
    for row in result.rows:
        table.add_row(row.group, "–" if row.auc is None else _number(row.auc), _steps(row), _reached(row, result), _seconds(row.wall_s))
    console.print(table)
    if result.pairs:
        console.print()
        table = make_table("", "P(better)", f"{percent} interval", "p", "verdict")
        widest = max(len(f"{pair.a} vs {pair.b}") for pair in result.pairs)
        versus = " vs " if widest + 50 <= console.width else "\nvs "
        for pair in result.pairs:
            table.add_row(f"{pair.a}{versus}{pair.b}", f"{pair.improvement:.2f}", _interval(pair.improvement_ci), f"{pair.p_corrected:.3f}",
                          Text(pair.verdict, style=_STYLE[pair.verdict]))  # fmt: skip
        console.print(table)
    _print_notes(console, result, sweep, references)


def _print_notes(console: Console, result: Comparison, sweep: str | None, references: list[str]) -> None:
    from rlx.stats.intervals import FEWEST

    notes = [f"IQM: mean of the middle half; its interval by expanded bootstrap ({result.resamples:,} resamples, seed {result.seed})"]
    if any(not math.isfinite(row.iqm_ci[0]) for row in result.rows):
        notes.append(f"–: no interval from fewer than {FEWEST} seeds (of each environment) or from equal values; --json lists the values")
    if result.target is not None:
        notes.append(f"gap: by how much runs miss {_number(result.target)} on average")
    if result.pairs:
        notes.append(f"p: permutation test of P(better), Holm-corrected for {len(result.pairs)} pair{'s' if len(result.pairs) > 1 else ''}")
    for note in [*notes, *result.notes]:
        console.print(note, style="dim", soft_wrap=True, highlight=False)
    short = [pair for pair in result.pairs if pair.verdict == "too few seeds"]
    if short:
        needed = max(pair.needed or 0 for pair in short)
        how = f": rlx sweep --resume {sweep} --seeds {needed}" if sweep else ""
        console.print(f"too few seeds for a verdict: {needed} for each group is the least{how}", soft_wrap=True, highlight=False)
    elif len(result.rows) == 1 and result.rows[0].seeds == 1:
        console.print("one run: nothing to compare, and no interval from one seed; train more: rlx sweep … --seeds 5", soft_wrap=True)
    console.print(f"next: rlx plot {' '.join(references)}", style="dim", soft_wrap=True, highlight=False)


def _number(value: float) -> str:
    from rlx.render.numbers import number

    return "–" if not math.isfinite(value) else number(value)


def _interval(ends: tuple[float, float], seeds: int | None = None) -> str:
    none = "– (one seed)" if seeds == 1 else "–"
    return f"{_number(ends[0])} to {_number(ends[1])}" if all(map(math.isfinite, ends)) else none


def _steps(row: Row) -> str:
    return "–" if row.steps_to_threshold is None else _number(row.steps_to_threshold)


def _reached(row: Row, result: Comparison) -> str:
    return "–" if result.threshold is None else f"{row.reached} of {row.runs}"


def _seconds(seconds: float | None) -> str:
    from rlx.track.console import duration

    return "–" if seconds is None else duration(seconds)


def _print_csv(result: Comparison) -> None:
    """One line for every group; keys that groups are told apart by have columns of their own."""
    keys = list(result.rows[0].values)
    fields = ["seeds", "mean", "mean_ci_low", "mean_ci_high", "median", "iqm", "iqm_ci_low", "iqm_ci_high", "optimality_gap", "auc",
              "steps_to_threshold", "reached", "wall_s", "env_steps"]  # fmt: skip
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["group", *keys, *fields])
    for row in result.rows:
        flat: dict[str, Any] = _finite(asdict(row))
        for name in ("mean_ci", "iqm_ci"):
            flat[f"{name}_low"], flat[f"{name}_high"] = flat[name]
        writer.writerow([row.group, *[row.values[k] for k in keys], *["" if flat[f] is None else flat[f] for f in fields]])


def _print_latex(result: Comparison) -> None:
    print("% " + f"{result.metric}; IQM with {100 * result.confidence:g} % expanded bootstrap intervals over seeds")
    print("\\begin{tabular}{lrrrrr}\n\\toprule\ngroup & seeds & mean & median & IQM & interval \\\\\n\\midrule")
    for row in result.rows:
        low, high = row.iqm_ci
        interval = f"[{low:.4g}, {high:.4g}]" if math.isfinite(low) else "--"
        print(f"{_escape(row.group)} & {row.seeds} & {row.mean:.4g} & {row.median:.4g} & {row.iqm:.4g} & {interval} \\\\")
    print("\\bottomrule\n\\end{tabular}")


def _escape(text: str) -> str:
    special = {"_": "\\_", "%": "\\%", "&": "\\&", "#": "\\#", "$": "\\$", "{": "\\{", "}": "\\}", "–": "--"}
    return "".join(special.get(c, c) for c in text)
