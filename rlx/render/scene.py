"""A picture of one decision: the board, and beside it the imagined rollout of each action."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.render.page import CHOSEN, FAINT, INK, MARGIN, Page

_GAP = 14
_HEAD = 56
"""Pixels above the boards."""
_LABEL = 210
"""Width in pixels of the bars of an action."""
_BAR = 90
_LINE = 19
_STATUS = 140
"""Height in pixels of the status below the board."""
_SQUARE = 11
"""Pixels of the side of a colour in the legend."""
_COLOURS = {"policy": "#0072B2", "without": "#56B4E9", "saliency": "#CC79A7"}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The content of a picture; all scenes of one film have boards of one size and the same number of frames."""

    title: str
    board: NDArray[np.uint8]  # [h, w, 3]
    status: list[str]
    """Lines below the board."""
    actions: tuple[str, ...]
    chosen: int | None
    shares: dict[str, NDArray[Any]]
    """Values from 0 to 1 of each action [A] by name, drawn as bars: policy, without, saliency."""
    q_value: NDArray[Any] | None  # [A]
    frames: NDArray[np.uint8] | None  # [A, D, h, w, 3]
    reward: NDArray[Any] | None  # [A, D]
    depth: int
    frame_size: tuple[int, int]
    """Height and width in pixels of a frame, also where there is none."""
    legend: list[tuple[str, NDArray[np.uint8]]]
    """The meaning of each colour [3] of a cell."""


def paint(scene: Scene) -> NDArray[np.uint8]:
    """The picture [height, width, 3]; its size depends on the sizes of boards and frames only."""
    board_height, board_width = scene.board.shape[:2]
    frame_height, frame_width = scene.frame_size
    row = max(frame_height + _LINE + 6, 5 * _LINE)
    across = scene.depth * (frame_width + _GAP)
    width = MARGIN + board_width + 2 * MARGIN + _LABEL + across + MARGIN
    legend = _spread([name for name, _ in scene.legend], width - 2 * MARGIN)
    below = _HEAD + max(board_height + _STATUS, row * len(scene.actions)) + MARGIN // 2
    height = below + (1 + max((line for _, line in legend), default=-1)) * _LINE + (MARGIN // 2 if legend else 0)
    page = Page(height, width)
    page.title(scene.title)
    page.image(MARGIN, _HEAD, scene.board)
    for i, line in enumerate(scene.status):
        page.text(MARGIN, _HEAD + board_height + 10 + i * _LINE, line, color=FAINT)
    left = MARGIN + board_width + 2 * MARGIN
    if scene.frames is not None:
        for k in range(scene.depth):
            x = left + _LABEL + k * (frame_width + _GAP) + frame_width / 2
            page.text(x, _HEAD - 18, f"step {k + 1}", color=FAINT, ha="center")
    for action in range(len(scene.actions)):
        _paint_action(page, scene, action, left, _HEAD + action * row)
    for (across, down), (name, colour) in zip(legend, scene.legend, strict=True):
        x, y = MARGIN + across, below + down * _LINE
        page.image(x, y, np.broadcast_to(colour, (_SQUARE, _SQUARE, 3)))
        page.text(x + _SQUARE + 5, y - 1, name, color=FAINT)
    return page.pixels()


def _spread(names: list[str], width: int) -> list[tuple[int, int]]:
    """The position of each name in the legend: pixels from the left, and the line."""
    places, x, line = list[tuple[int, int]](), 0, 0
    for name in names:
        needed = _SQUARE + 5 + 7 * len(name)  # letters of this size are narrower on average
        if x + needed > width and x:
            x, line = 0, line + 1
        places.append((x, line))
        x += needed + _GAP
    return places


def _paint_action(page: Page, scene: Scene, action: int, left: int, top: int) -> None:
    """One row: bars, and the rollout that begins with the action."""
    chosen = action == scene.chosen
    name = scene.actions[action]
    page.text(left, top, f"▶ {name}" if chosen else name, size=11, weight="bold", color=CHOSEN if chosen else INK)
    lines = list(scene.shares.items())
    for i, (title, values) in enumerate(lines):
        y, share = top + (i + 1) * _LINE + 3, float(values[action])
        page.text(left, y, title, color=FAINT)
        page.bar(left + 62, y + 2, _BAR, "#EEEEEE")
        page.bar(left + 62, y + 2, _BAR * share, _COLOURS[title])
        page.text(left + 62 + _BAR + 8, y, f"{share:.2f}")
    if scene.q_value is not None:
        y = top + (len(lines) + 1) * _LINE + 3
        page.text(left, y, "Q", color=FAINT)
        page.text(left + 62, y, f"{scene.q_value[action]:+.2f}")
    if scene.frames is None or scene.reward is None:
        return
    height, width = scene.frame_size
    for k, frame in enumerate(scene.frames[action]):
        x = left + _LABEL + k * (width + _GAP)
        page.image(x, top, frame)
        page.text(x + width / 2, top + height + 3, f"{scene.reward[action, k]:+.2f}", color=FAINT, ha="center")
