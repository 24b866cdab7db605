"""A comparison of groups of runs: as tables in the terminal, as CSV, as LaTeX."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from rlx.render.claims_view import print_claims
from rlx.render.numbers import count, digits, number
from rlx.render.tables import make_table
from rlx.stats.comparison import Comparison, Row
from rlx.stats.intervals import FEWEST
from rlx.store.measures import in_words
from rlx.track.console import duration

_STYLE = {"better": "green", "worse": "red", "too few seeds": "yellow", "not distinguishable": "dim"}


def print_comparison(console: Console, result: Comparison, *, extendable: str | None) -> None:
    """Print tables of groups and pairs, what they mean, and what to type next.

    Args:
        console: where.
        result: what is printed.
        extendable: the sweep that all runs are of, if it can get more seeds.
    """
    where = "last value" if result.at is None else f"value at {result.at:,} env steps"
    percent = f"{100 * result.confidence:g} %"
    less = " (less is better)" if result.minimize else ""
    console.print(f"{in_words(result.metric)}{less}, {where} of every run, on {', '.join(result.envs)}", soft_wrap=True, highlight=False)
    table = make_table("group", "seeds", "mean", "median", "IQM", f"{percent} interval", "gap")
    for row in result.rows:
        gap = "–" if row.optimality_gap is None else _number(row.optimality_gap)
        mean, median, iqm, low, high = digits(row.mean, row.median, row.iqm, *row.iqm_ci)
        table.add_row(row.group, str(row.seeds), mean, median, iqm, _ends(row, low, high), gap)
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
    _print_notes(console, result, extendable)
    if result.claims:
        console.print()
        print_claims(console, result.claims, confidence=result.confidence, extendable=extendable)


def _print_notes(console: Console, result: Comparison, extendable: str | None) -> None:
    notes = [f"IQM: mean of the middle half; its interval by expanded bootstrap ({result.resamples:,} resamples, seed {result.seed})"]
    if any(not math.isfinite(row.iqm_ci[0]) for row in result.rows):
        notes.append(f"–: no interval from fewer than {FEWEST} seeds (of each environment) or from equal values; --json lists the values")
    if result.target is not None:
        notes.append(f"gap: by how much runs miss {_number(result.target)} on average")
    if result.pairs:
        notes.append(f"p: permutation test of P(better), Holm-corrected for {count(len(result.pairs), 'pair')}")
    for note in [*notes, *result.notes]:
        console.print(note, style="dim", soft_wrap=True, highlight=False)
    short = [pair for pair in result.pairs if pair.verdict == "too few seeds"]
    if short:
        needed = max(pair.needed or 0 for pair in short)
        how = f": rlx sweep --resume {extendable} --seeds {needed}" if extendable else ""
        console.print(f"too few seeds for a verdict: {needed} for each group is the least{how}", soft_wrap=True, highlight=False)
    elif len(result.rows) == 1 and result.rows[0].seeds == 1:
        console.print("one run: nothing to compare, and no interval from one seed; train more: rlx sweep … --seeds 5", soft_wrap=True)


def _number(value: float) -> str:
    return "–" if not math.isfinite(value) else number(value)


def _ends(row: Row, low: str, high: str) -> str:
    """The interval of a group's IQM, from its ends as text; – if there is none."""
    if all(map(math.isfinite, row.iqm_ci)):
        return f"{low} to {high}"
    return "– (one seed)" if row.seeds == 1 else "–"


def _interval(ends: tuple[float, float]) -> str:
    return f"{_number(ends[0])} to {_number(ends[1])}" if all(map(math.isfinite, ends)) else "–"


def _steps(row: Row) -> str:
    return "–" if row.steps_to_threshold is None else _number(row.steps_to_threshold)


def _reached(row: Row, result: Comparison) -> str:
    return "–" if result.threshold is None else f"{row.reached} of {row.runs}"


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else duration(seconds)


def comparison_csv(result: Comparison) -> str:
    """One line for every group, with a column for each key that the groups differ in."""
    keys = list(result.rows[0].values)
    fields = ["metric", "seeds", "mean", "mean_ci_low", "mean_ci_high", "median", "iqm", "iqm_ci_low", "iqm_ci_high", "optimality_gap",
              "auc", "steps_to_threshold", "reached", "wall_s", "env_steps"]  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["group", *keys, *fields])
    for row in result.rows:
        flat: dict[str, Any] = finite(asdict(row)) | {"metric": result.metric}
        for name in ("mean_ci", "iqm_ci"):
            flat[f"{name}_low"], flat[f"{name}_high"] = flat[name]
        writer.writerow([row.group, *[row.values[k] for k in keys], *["" if flat[f] is None else flat[f] for f in fields]])
    return text.getvalue()


def comparison_latex(result: Comparison) -> str:
    """A table in booktabs' style."""
    lines = [
        f"% {in_words(result.metric)}; IQM with {100 * result.confidence:g} % expanded bootstrap intervals over seeds",
        "\\begin{tabular}{lrrrrr}\n\\toprule\ngroup & seeds & mean & median & IQM & interval \\\\\n\\midrule",
    ]
    for row in result.rows:
        mean, median, iqm, low, high = digits(row.mean, row.median, row.iqm, *row.iqm_ci)
        interval = f"[{low}, {high}]" if math.isfinite(row.iqm_ci[0]) else "--"
        lines.append(f"{_escape(row.group)} & {row.seeds} & {mean} & {median} & {iqm} & {interval} \\\\")
    return "\n".join([*lines, "\\bottomrule\n\\end{tabular}\n"])


def _escape(text: str) -> str:
    special = {"_": "\\_", "%": "\\%", "&": "\\&", "#": "\\#", "$": "\\$", "{": "\\{", "}": "\\}", "–": "--"}
    return "".join(special.get(c, c) for c in text)


def finite(tree: Any) -> Any:
    """A tree of values with None for numbers that JSON does not have: NaN and infinities."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
