"""The claims of a sweep in the terminal: a table with verdicts, and differences drawn with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from rlx.render.numbers import count, digits
from rlx.render.tables import make_table
from rlx.stats.claims import FAILS, HOLDS, MISSING, TOO_FEW, UNDECIDED, Judged, Level
from rlx.stats.intervals import FEWEST

_STYLES = {HOLDS: "green", FAILS: "red", UNDECIDED: "dim", TOO_FEW: "yellow", MISSING: "yellow"}


def print_claims(console: Console, claims: Sequence[Judged], *, confidence: float, extendable: str | None) -> None:
    """Print a table of claims, what they say, and what to type where one cannot be judged.

    Args:
        console: where.
        claims: what is printed.
        confidence: of the intervals.
        extendable: the sweep that all runs are of, if it can get more seeds.
    """
    for env in dict.fromkeys(judged.env for judged in claims):
        there = [judged for judged in claims if judged.env == env]
        console.print(f"claims on {env}, IQM over seeds", soft_wrap=True, highlight=False)
        table = make_table("claim", "env steps", "left", "right", "difference", f"{100 * confidence:g} % interval", "seeds", "verdict")
        for judged in there:
            steps = "–" if judged.at is None else f"{judged.at:,}"
            table.add_row(judged.claim.name, steps, *_numbers(judged), str(judged.seeds), Text(verdict(judged), style=style(judged)))
        console.print(table)
        for sentence in dict.fromkeys(map(in_words, there)):
            console.print(sentence, style="dim", soft_wrap=True, highlight=False)
    for line in dict.fromkeys(_advice(claims, extendable)):
        console.print(line, soft_wrap=True, highlight=False)


def _numbers(judged: Judged) -> list[str]:
    """Left, right, difference and interval."""
    if judged.claim.relation == "falls":
        values = digits(*[level.iqm for level in judged.left])
        return [" → ".join(values) or "–", "–", f"Spearman {judged.difference:.2f}" if math.isfinite(judged.difference) else "–", "–"]
    if not math.isfinite(judged.difference):
        return ["–", "–", "–", "–"]
    left, right, difference, low, high = digits(judged.left_value, judged.right_value, judged.difference, *judged.ci)
    return [left, right, difference, f"{low} to {high}" if math.isfinite(judged.ci[0]) else "–"]


def verdict(judged: Judged) -> str:
    """The verdict, and for a negative control whether it is the one that it must have."""
    if judged.claim.expected == HOLDS or judged.as_expected is None:
        return judged.verdict
    return f"{judged.verdict}, as it must" if judged.as_expected else f"{judged.verdict}, but must fail"


def style(judged: Judged) -> str:
    return _STYLES[judged.verdict] if judged.as_expected is None else "green" if judged.as_expected else "red"


def short(words: str) -> str:
    """The settings of a group with the last part of their keys; an experiment by its name alone."""
    pairs = [word.partition("=")[::2] for word in words.split()]
    return " ".join(value if key == "experiment" else f"{key.rpartition('.')[2]}={value}" for key, value in pairs)


def in_words(judged: Judged) -> str:
    """What a claim says, in one sentence."""
    what = judged.metric if judged.claim.statistic == "last" else f"{judged.metric}, mean over training"
    claim = judged.claim
    if judged.claim.relation == "falls":
        return f"{judged.claim.name}: {what} falls from {' to '.join(map(short, claim.left))}"
    left, right = (" minus ".join(map(short, side)) for side in (claim.left, claim.right))
    factor = f"{claim.times:g} times " if claim.times != 1.0 else ""
    must = "; a negative control, which must fail" if judged.claim.expected == FAILS else ""
    return f"{judged.claim.name}: {what} of {left} is {judged.claim.relation} {factor}{right}{must}"


def _advice(claims: Sequence[Judged], extendable: str | None) -> list[str]:
    lines = []
    if any(judged.claim.relation.startswith("not") and judged.margin is not None for judged in claims):
        lines.append("not below, not above: by more than half of the right side's interval")
    for judged in claims:
        lines += [f"several runs of one seed count as their mean: {short(words)}" for words in judged.pooled]
    lacking = {command: words for judged in claims for words, command in zip(judged.missing, judged.train, strict=True)}
    if lacking:
        lines.append("groups that no run was trained of as far, or that lack the metric:")
        lines += [f"  {short(words)}: `{command}`" for command, words in lacking.items()]
    if any(judged.verdict == TOO_FEW for judged in claims):
        how = f": rlx sweep --resume {extendable} --seeds {FEWEST}" if extendable else ""
        lines.append(f"not enough seeds: a claim is judged from {count(FEWEST, 'seed')} that all of its groups have{how}")
    return lines


def draw_claims(console: Console, claims: Sequence[Judged]) -> None:
    """Draw the differences with their intervals, those of one metric and environment on one axis."""
    panels: dict[tuple[str, str], list[Judged]] = {}
    for judged in claims:
        panels.setdefault((judged.env, judged.metric), []).append(judged)
    for (env, metric), rows in panels.items():
        drawn = [judged for judged in rows if judged.claim.relation != "falls" and math.isfinite(judged.difference)]
        if drawn:
            console.print(f"{metric} on {env}: left minus right, IQM over seeds", soft_wrap=True, highlight=False)
            _draw_differences(console, drawn)
        for judged in rows:
            if judged.claim.relation == "falls" and judged.left:
                console.print(f"{judged.claim.name}: {metric} on {env}", soft_wrap=True, highlight=False)
                _draw_levels(console, judged.left)


def _draw_differences(console: Console, rows: Sequence[Judged]) -> None:
    names = [f"{judged.claim.name} {'' if judged.at is None else f'{judged.at:,}'}" for judged in rows]
    bars = _bars([(judged.difference, judged.ci) for judged in rows], console.width, max(map(len, names)), zero=True)
    gutter = max(map(len, names))
    for name, bar, judged in zip(names, bars, rows, strict=True):
        console.print(Text(f"{name:<{gutter}}  ").append(bar, style=style(judged)).append(f"  {verdict(judged)}", style=style(judged)),
                      soft_wrap=True)  # fmt: skip


def _draw_levels(console: Console, levels: Sequence[Level]) -> None:
    names = [short(level.words) for level in levels]
    gutter = max(map(len, names))
    values = digits(*[level.iqm for level in levels])
    bars = _bars([(level.iqm, level.ci) for level in levels], console.width, gutter, zero=False)
    for name, bar, value in zip(names, bars, values, strict=True):
        console.print(Text(f"{name:<{gutter}}  {bar}  {value}"), soft_wrap=True)


def _bars(estimates: Sequence[tuple[float, tuple[float, float]]], width: int, gutter: int, *, zero: bool) -> list[str]:
    """For every estimate with its interval ├──●──┤ on a common axis, on which ┊ is 0."""
    columns = max(20, min(width, 110) - gutter - 24)
    ends = [v for value, ci in estimates for v in (value, *ci) if math.isfinite(v)] + [0.0] * zero
    low, high = min(ends), max(ends)
    scale = (columns - 1) / (high - low) if high > low else 0.0

    def at(value: float) -> int:
        return round((value - low) * scale)

    bars = []
    for value, (left, right) in estimates:
        cells = [" "] * columns
        if math.isfinite(left):
            cells[at(left) : at(right) + 1] = ["─"] * (at(right) + 1 - at(left))
            cells[at(left)], cells[at(right)] = "├", "┤"
        if zero:
            cells[at(0.0)] = "┼" if cells[at(0.0)] != " " else "┊"
        cells[at(value)] = "●"
        bars.append("".join(cells))
    return bars
