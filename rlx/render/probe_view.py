"""What `rlx probe` measured as a table: of one run in full, of several side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rlx.render.numbers import count, digits
from rlx.render.tables import make_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from rlx.evaluation.evaluate import Ends
    from rlx.evaluation.robustness import ProbeResult, ProbeRow


def print_probes(console: Console, results: Sequence[ProbeResult]) -> None:
    """Print everything but the path of the figure."""
    for result in results:
        console.print(_title(result), soft_wrap=True)
    console.print(_table_of_one(results[0]) if len(results) == 1 else _table_of_several(results))
    for text in _notes(results):
        console.print(text, style="dim", soft_wrap=True)


def labels_of(results: Sequence[ProbeResult]) -> list[str]:
    """The labels of the rows of all runs, in their order; those that one run lacks come where another has them."""
    longest = max(results, key=lambda result: len(result.rows))
    labels = [row.label for row in longest.rows]
    labels += [row.label for result in results for row in result.rows if row.label not in labels]
    return list(dict.fromkeys(labels))


def rows_of(result: ProbeResult) -> dict[str, ProbeRow]:
    """The rows by their labels: nominal, the changes, and their mean where there are several."""
    rows = {row.label: row for row in (result.nominal, *result.rows)}
    return rows | ({result.overall.label: result.overall} if len(result.rows) > 1 else {})


def percent(row: ProbeRow) -> str:
    """The return in percent of the nominal one."""
    return "–" if row.relative is None else f"{100 * row.relative:.0f} %"


def _title(result: ProbeResult) -> str:
    changed = f" with {', '.join(result.env_settings)}" if result.env_settings else ""
    played = f"{len(result.nominal.episodes)} {result.mode} episodes" if len(result.nominal.episodes) > 1 else f"1 {result.mode} episode"
    return f"{result.run} at {result.env_steps:,} env steps, {played} of {result.env}{changed} under {count(len(result.rows), 'change')}:"


def _table_of_one(result: ProbeResult) -> Table:
    table = make_table("probe", "return", "95 %", "length", "difference", "95 %", "of nominal")
    for label, row in rows_of(result).items():
        cells = [label, digits(row.return_mean)[0], _ends(row.return_mean, row.return_ci), digits(row.length_mean)[0]]
        if row.probe != result.nominal.probe:
            cells += [digits(row.difference)[0], _ends(row.difference, row.difference_ci), percent(row)]
        table.add_row(*cells)
    return table


def _table_of_several(results: Sequence[ProbeResult]) -> Table:
    table = make_table("probe", *(header for result in results for header in (result.run, "95 %", "of nominal")))
    found = [rows_of(result) for result in results]
    for label in [results[0].nominal.label, *labels_of(results), results[0].overall.label]:
        cells = [label]
        for rows in found:
            row = rows.get(label)
            cells += ["–", "", ""] if row is None else [digits(row.return_mean)[0], _ends(row.return_mean, row.return_ci), percent(row)]
        table.add_row(*cells)
    return table


def _ends(centre: float, ends: Ends) -> str:
    if ends is None:
        return "–"
    _, low, high = digits(centre, *ends)
    return f"{low} to {high}"


def _notes(results: Sequence[ProbeResult]) -> Iterator[str]:
    if len(results) == 1:
        yield "difference: each episode against itself without the change"
    first = results[0]
    if any(row.return_ci is None for row in (first.nominal, *first.rows)):
        yield "no interval: fewer than 5 episodes, or returns that are all equal"
    for result in results:
        of = f"{result.run}: " if len(results) > 1 else ""
        reasons: dict[str, list[str]] = {}
        for label, why in result.left_out:
            reasons.setdefault(why, []).append(label)
        for why, labels in reasons.items():
            yield f"{of}left out: {', '.join(labels)}: {why}"
