"""What `rlx watch` shows of a grid world: the board, and beside it the imagined rollout of each action."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlx.render.watch_panel import bar

if TYPE_CHECKING:
    from rlx.envs.grids.gridworld import Grid
    from rlx.evaluation.watching import Decision, Moment

_BAR = 8
_LABEL = 9 + _BAR + 6
"""Columns of the bars of an action."""
_LEAST_LINES = 4
"""Lines of the bars of an action."""
_STATUS = 26
"""Columns of the board's status."""
_SPACE = 2
"""Columns between any two things."""


class Room(NamedTuple):
    """How boards are drawn: as letters, or in colour with two cells above each other in a character, or wide, two characters a cell."""

    colour: bool
    wide_board: bool
    wide_frames: bool
    rows: int  # of cells that are shown of an imagined frame
    columns: int
    depth: int  # frames that are shown of a rollout


def find_room(grid: Grid, depth: int, width: int, height: int, *, colour: bool) -> Room:
    """The largest view of a board and of rollouts of `depth` frames that fits into width x height characters."""
    _, rows, columns = grid.planes_shape
    if not colour:
        return Room(False, False, False, rows, columns, depth)
    lines = max(_LEAST_LINES, (height - 2) // grid.num_actions) - 1  # one is for rewards
    shown = min(rows, 2 * lines)
    for wide_board, wide_frames in ((True, True), (True, False), (False, False)):
        left = width - max(_STATUS, (1 + wide_board) * columns) - _LABEL - 2 * _SPACE
        across = min(columns, ((left + _SPACE) // max(1, depth) - _SPACE) // (1 + wide_frames))
        if not depth or (across >= min(columns, shown) and (lines >= rows or not wide_frames)):
            return Room(True, wide_board, wide_frames, shown, across, depth)
    across = min(columns, max(7, across))  # fewer frames rather than narrower ones, which would show nothing
    return Room(True, False, False, shown, across, max(1, min(depth, (left + _SPACE) // (across + _SPACE))))


def view(moment: Moment, grid: Grid, title: str, room: Room) -> RenderableType:
    """The whole view of a moment."""
    from rlx.render.tables import make_table

    head = Text(f"{moment.when}   {title}", style="bold", no_wrap=True, overflow="ellipsis")
    assert moment.planes is not None
    kinds = grid.kinds(moment.planes[None])[0]
    left = Group(_board(kinds, grid, room, wide=room.wide_board), Text("\n".join(status(moment, grid)), style="dim"))
    whole = make_table("", "")
    whole.show_header = False
    whole.columns[0].width = max(_STATUS, (1 + room.wide_board) * grid.planes_shape[2])
    whole.columns[0].no_wrap = True
    whole.add_row(left, _actions(moment, grid, room) if moment.decision else Text(""))
    return Group(head, whole)


def status(moment: Moment, grid: Grid) -> list[str]:
    """The lines of status below the board."""
    assert moment.planes is not None
    said = grid.ansi(moment.planes).splitlines()[grid.planes_shape[1] :]  # the world's own status
    lines = ", ".join(said).split(", ") if said else []
    if moment.reward is not None:
        lines.append(f"reward {moment.reward:+.1f}")
        lines += [f"  {event}" for event in moment.events if event != "step"]
    decision = moment.decision
    if decision is not None and decision.value is not None:
        lines.append(f"expects {decision.value:+.1f}")
    if decision is not None and decision.shift is not None:
        lines.append(f"policy shift {decision.shift:.3f} nats")
    if moment.action is None:
        lines.append("the episode has ended" if moment.terminated else "cut: no steps are left")
    elif decision is None:
        lines.append(f"goes {grid.action_names[int(moment.action[0])]}")
    return lines


def _actions(moment: Moment, grid: Grid, room: Room) -> RenderableType:
    """A row for each action: its bars and its rollout."""
    decision = moment.decision
    assert decision is not None
    assert moment.planes is not None
    table = Table.grid(padding=(0, _SPACE, 0, 0))
    for action, name in enumerate(grid.action_names):
        row: list[RenderableType] = [_label(decision, action, name, chosen=moment.action is not None and action == moment.action[0])]
        if decision.planes is not None and decision.reward is not None:
            frames = decision.planes[action, : room.depth]
            where = _window(moment.planes[grid.player_plane], room)
            for kinds, reward in zip(grid.kinds(frames), decision.reward[action], strict=False):
                drawn = _board(kinds[where], grid, room, wide=room.wide_frames)
                row.append(
                    Text("\n").join([drawn, Text(_signed(float(reward)).center((1 + room.wide_frames) * room.columns), style="dim")])
                )
        table.add_row(*row)
    return table


def _label(decision: Decision, action: int, name: str, *, chosen: bool) -> Text:
    text = Text().append(f"▶ {name}" if chosen else f"  {name}", style="bold green" if chosen else "bold")
    rows = [
        ("policy", decision.probs, "cyan"),
        ("without", decision.probs_without, "blue"),
        ("saliency", decision.saliency, "magenta"),
    ]
    for title, values, colour in rows:
        if values is not None:
            share = float(values[action])
            text.append(f"\n{title:9}", style="dim").append(bar(share, _BAR), style=colour)
            text.append(f" {share:4.2f}")
    if decision.q_value is not None:
        text.append(f"\n{'Q':9}", style="dim").append(f"{decision.q_value[action]:+.2f}", style="magenta")
    return text


def _window(player: NDArray[np.uint8], room: Room) -> tuple[slice, slice]:
    """The part of a board [H, W] around the player that fits the room."""
    found = np.argwhere(player > 0)
    centre = found[0] if len(found) else np.array(player.shape) // 2
    starts = [
        int(np.clip(c - size // 2, 0, whole - size)) for c, size, whole in zip(centre, (room.rows, room.columns), player.shape, strict=True)
    ]
    return slice(starts[0], starts[0] + room.rows), slice(starts[1], starts[1] + room.columns)


def _signed(reward: float) -> str:
    return f"{reward:+.2f}" if abs(reward) < 9.995 else f"{reward:+.1f}"


# Boards [H, W] of kinds of cells


def _board(kinds: NDArray[np.intp], grid: Grid, room: Room, *, wide: bool) -> Text:
    draw = _letters if not room.colour else _wide if wide else _halves
    return draw(kinds, grid)


def _letters(kinds: NDArray[np.intp], grid: Grid) -> Text:
    return Text("\n".join("".join(grid.glyphs[kind] for kind in row) for row in kinds))


def _wide(kinds: NDArray[np.intp], grid: Grid) -> Text:
    return Text("\n").join([Text.assemble(*(("  ", f"on {_rgb(grid, kind)}") for kind in row)) for row in kinds])


def _halves(kinds: NDArray[np.intp], grid: Grid) -> Text:
    """Two rows of cells in a line: the upper half of a character in the foreground colour, the lower one in the background colour."""
    lines = []
    for upper, lower in zip(kinds[::2], [*kinds[1::2], None][: len(kinds[::2])], strict=True):
        line = Text()
        for i, kind in enumerate(upper):
            line.append("▀", style=_rgb(grid, kind) + (f" on {_rgb(grid, lower[i])}" if lower is not None else ""))
        lines.append(line)
    return Text("\n").join(lines)


def _rgb(grid: Grid, kind: int) -> str:
    red, green, blue = grid.colours[kind].tolist()
    return f"rgb({red},{green},{blue})"
