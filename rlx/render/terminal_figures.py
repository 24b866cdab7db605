"""Learning curves and slices of a search as braille in the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlx.render.braille import letter, plot_many
from rlx.store.measures import in_words

if TYPE_CHECKING:
    from rich.console import Console

    from rlx.render.figures import Trial
    from rlx.stats.data import Group

_STYLES = ("blue", "red", "green", "magenta", "yellow", "cyan", "white", "bright_black")
_MOST_IN_TERMINAL = 12


def print_curves(console: Console, groups: Sequence[Group], metric: str, *, x: str, statistic: str) -> None:
    from rlx.stats.curves import band
    from rlx.stats.data import of_one_seed

    drawn = []
    silent = [g.label for g in groups if not any(len(run.series(metric, x)[0]) for run in g.runs)]
    groups = [g for g in groups if g.label not in silent]
    for g in groups[:_MOST_IN_TERMINAL]:
        steps, centre, _, _ = band(g.runs, metric, x, statistic)
        drawn.append(list(zip(steps.tolist(), centre.tolist(), strict=True)))
    label = "env steps" if x == "env_steps" else "seconds of training"
    console.print(f"{in_words(metric)}, {'IQM' if statistic == 'iqm' else 'mean'} over seeds", highlight=False)
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


def print_slices(console: Console, found: Sequence[Trial], metric: str) -> None:
    """Draw the results against the values of each key, as dots. A value that is no number is drawn at its position in the legend."""
    from rlx.render.figures import scale_of

    for key in found[0].values:
        scale = scale_of([t.values[key] for t in found])
        at = [math.log10(p) if scale.log else float(p) for p in scale.positions]
        dots = [(p, score) for p, t in zip(at, found, strict=True) for score in t.scores]
        names = f": {', '.join(f'{i} {name}' for i, name in enumerate(scale.names))}" if scale.names else ""
        console.print(f"\n{in_words(metric)} against {'log10 of ' if scale.log else ''}{key}{names}", soft_wrap=True, highlight=False)
        print_drawing(console, [dots], [], key, joined=False)
