"""What `rlx watch` shows of any environment: the rendered frame, the network's input beside it, and the decision."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rlx.render.cells import BOLD, DIM, Cells, Span
from rlx.render.pictures import Picture, Pictures, largest, pictures_of, scaled
from rlx.render.watch_panel import distributions, in_words, panel

if TYPE_CHECKING:
    from rlx.evaluation.inputs import Input
    from rlx.evaluation.watching import Moment, Watch

_PANEL = 30
"""Least columns of the text."""
_PANEL_MOST = 46
_GAP = 2
"""Columns between any two things."""


class Place(NamedTuple):
    """A rectangle of characters."""

    row: int
    column: int
    height: int
    width: int


class Layout(NamedTuple):
    """Where things are drawn; None where there is nothing to draw."""

    frame: Place | None
    pictures: Place | None
    panel: Place


def screen(moment: Moment, watch: Watch, width: int, height: int, *, colour: bool, still: Moment | None = None) -> Cells:
    """The whole view of a moment.

    Args:
        moment: what is shown.
        watch: names its parts.
        width, height: of the terminal, in characters.
        colour: of the terminal.
        still: the moment before, whose inputs stay where an episode has ended.
    """
    cells = Cells(height, width, colour=colour)
    cells.write(0, 0, [Span(f"{moment.when}   {watch.title}", style=BOLD)])
    given = moment.inputs or (still.inputs if still else ())
    seen = [p for part in given if (p := pictures_of(part)) is not None]
    lines = len(panel(moment, watch, given, _PANEL, height))
    layout = arrange(width, height - 1, moment.frame, [p.shown[0].shape[:2] for p in seen], lines)
    if layout.frame is not None and moment.frame is not None:
        _draw(cells, layout.frame, moment.frame)
    if layout.pictures is not None:
        _draw_inputs(cells, layout.pictures, seen)
    place = layout.panel
    rows = panel(moment, watch, given, place.width, place.height)
    if why := watch.why_no_frame():
        rows += [[], *([Span(line, style=DIM)] for line in textwrap.wrap(f"no frame: {why}", place.width))]
    for i, line in enumerate(rows[: place.height]):
        cells.write(place.row + i, place.column, line, width=place.width)
    return cells


def arrange(width: int, height: int, frame: Picture | None, pictures: list[tuple[int, int]], lines: int) -> Layout:
    """The arrangement in which frame and inputs are largest: the product of their scales is.

    Args:
        width, height: in characters, below the title.
        frame: None if there is none.
        pictures: height and width of the newest picture of every input.
        lines: of the panel.
    """
    kept = Place(1, 0, height, width)
    if frame is None and not pictures:
        return Layout(None, None, kept._replace(width=min(width, _PANEL_MOST)))
    left = width - _PANEL - _GAP
    found: list[tuple[float, Layout]] = []
    if frame is None or not pictures:
        sizes = [frame.shape[:2]] if frame is not None else pictures
        scale, used = _row(sizes, height - (frame is None), max(8, left))
        area = Place(1, 0, height, used)
        place = Place(1, used + _GAP, height, min(_PANEL_MOST, width - used - _GAP))
        return Layout(area if frame is not None else None, None if frame is not None else area, place)
    for share in (0.0, *np.linspace(0.3, 0.75, 10)):
        if share == 0.0:  # the inputs above the panel
            scale, used = _row([frame.shape[:2]], height, max(8, left))
            room = height - lines - 2
            if room < 4:
                continue
            column = used + _GAP
            inner, _ = _row(pictures, room, width - column)
            needed = 1 + max(-(-largest(size, 2 * room, max(1, int(size[1] * inner)))[0] // 2) for size in pictures)
            panel_at = Place(1 + needed + 1, column, height - needed - 1, min(_PANEL_MOST, width - column))
            found.append((scale * inner, Layout(Place(1, 0, height, used), Place(1, column, needed, width - column), panel_at)))
            continue
        first = int((left - _GAP) * share)  # side by side
        scale, used = _row([frame.shape[:2]], height, max(4, first))
        inner, across = _row(pictures, height - 1, max(4, left - _GAP - used))
        column = used + _GAP + across + _GAP
        found.append((scale * inner, Layout(Place(1, 0, height, used), Place(1, used + _GAP, height, across),
                                            Place(1, column, height, min(_PANEL_MOST, width - column)))))  # fmt: skip
        above = int(height * share)  # one above the other
        scale, used = _row([frame.shape[:2]], above, max(8, left))
        inner, across = _row(pictures, height - above - 2, max(8, left))
        column = max(used, across) + _GAP
        found.append((scale * inner, Layout(Place(1, 0, above, used), Place(1 + above + 1, 0, height - above - 1, max(used, across)),
                                            Place(1, column, height, min(_PANEL_MOST, width - column)))))  # fmt: skip
    return max(found, key=lambda pair: pair[0])[1]


def _row(sizes: list[tuple[int, int]], lines: int, columns: int) -> tuple[float, int]:
    """How large pictures are that share a row, at most 1 for their own size, and the columns that they take."""
    across = max(1, (columns - _GAP * (len(sizes) - 1)) // len(sizes))
    drawn = [largest(size, max(1, 2 * lines), across) for size in sizes]
    return min(min(1.0, new / old) for (new, _), (old, _) in zip(drawn, sizes, strict=True)), sum(w for _, w in drawn) + _GAP * (
        len(sizes) - 1
    )


def _draw(cells: Cells, place: Place, picture: Picture) -> None:
    height, width = largest(picture.shape, 2 * place.height, place.width)
    cells.picture(place.row, place.column, scaled(picture, height, width))


def _draw_inputs(cells: Cells, place: Place, seen: list[Pictures]) -> None:
    """The newest picture of every input, each under its name, and older ones where there is room."""
    across = max(1, (place.width - _GAP * (len(seen) - 1)) // len(seen))
    sizes = [largest(of.shown[0].shape, 2 * (place.height - 1), across) for of in seen]
    left = place.width - sum(w for _, w in sizes) - _GAP * (len(sizes) - 1)
    column = place.column
    for of, (height, width) in zip(seen, sizes, strict=True):
        count = 1
        while count < len(of.shown) and left >= width + 1:
            count, left = count + 1, left - width - 1
        note = f"{of.name or 'input'}{_note(of, count)}"
        cells.write(place.row, column, [Span(note, style=DIM)], width=max(8, count * (width + 1) - 1))
        for picture in of.shown[:count]:
            cells.picture(place.row + 1, column, scaled(picture, height, width))
            column += width + 1
        column += _GAP - 1


def _note(of: Pictures, count: int) -> str:
    if len(of.shown) == 1:
        return ""
    if not of.is_stack:
        return f", {count} of {len(of.shown)} planes" if count < len(of.shown) else ""
    return (
        f", newest of {len(of.shown)}"
        if count == 1
        else f", newest {count} of {len(of.shown)}"
        if count < len(of.shown)
        else ", newest first"
    )


def plain(moment: Moment, watch: Watch) -> str:
    """A moment as lines of text, for a pipe."""
    lines = [f"{moment.when}   {watch.title}"]
    said = [f"reward {moment.reward:+g}"] if moment.reward is not None else []
    if moment.decision is not None and moment.decision.value is not None:
        said.append(f"value {moment.decision.value:+.3f}")
    if moment.action is None:
        said.append("the episode has ended" if moment.terminated else "cut: no steps are left")
    lines += [f"  {'   '.join(said)}"] if said else []
    for part, of in zip(watch.parts, distributions(moment, watch.parts), strict=True):
        if of.taken is None:
            continue
        name = f"{part.name or 'action'}:"
        if part.options:
            options = []
            for i, option in enumerate(part.options):
                mark = "▶ " if i == int(of.taken) else ""
                masked = of.allowed is not None and not of.allowed[i]
                prob = "" if of.probs is None else " masked" if masked else f" {of.probs[i]:.3f}"
                options.append(f"{mark}{option}{prob}" if mark or prob else "")
            lines.append(f"  {name} {'   '.join(filter(None, options))}")
        else:
            spread = "" if of.mean is None else f" (mean {of.mean:+.3f}, std {of.std:.3f})"
            lines.append(f"  {name} {of.taken:+.3f}{spread}")
    if moment.decision is not None and moment.decision.imagined is not None and moment.decision.imagined_from is not None:
        for number, (begin, obs) in enumerate(zip(moment.decision.imagined_from.tolist(), moment.decision.imagined, strict=True), start=1):
            if begin >= 0:
                lines.append(f"  imagined {number}: from {f'imagined {begin}' if begin else 'here'} to ({obs[0]:+.2f}, {obs[1]:+.2f})")
    return "\n".join(lines + [f"  input{f' {part.name}' if part.name else ''}: {_numbers(part)}" for part in moment.inputs])


def _numbers(part: Input) -> str:
    """An input as text: all of a few numbers, else what kind they are of and their mean."""
    if (said := in_words(part)) is not None and len(said) < 100:
        return said
    values = part.values
    if values.size > 64 or pictures_of(part) is not None:
        return f"{part.observed.dtype} {list(part.observed.shape)}, mean {values.mean():.4g}"
    return " ".join(f"{value:g}" for value in np.round(values.ravel().astype(float), 4).tolist())
