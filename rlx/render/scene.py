"""A picture of one decision: the board, and beside it the imagined rollout of each action."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.patches import Rectangle
from matplotlib.transforms import IdentityTransform
from numpy.typing import NDArray

from rlx.errors import StorageError

_DPI = 100
_MARGIN, _GAP = 24, 14
_HEAD = 56
"""Pixels above the boards."""
_LABEL = 210
"""Width in pixels of the bars of an action."""
_BAR = 90
_LINE = 19
_STATUS = 140
"""Height in pixels of the status below the board."""
_LETTER = 10
"""Pixels of a letter of the title, on average at most."""
_SQUARE = 11
"""Pixels of the side of a colour in the legend."""
_INK, _FAINT, _CHOSEN = "#222222", "#777777", "#009E73"
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
    width = _MARGIN + board_width + 2 * _MARGIN + _LABEL + across + _MARGIN
    legend = _spread([name for name, _ in scene.legend], width - 2 * _MARGIN)
    below = _HEAD + max(board_height + _STATUS, row * len(scene.actions)) + _MARGIN // 2
    height = below + (1 + max((line for _, line in legend), default=-1)) * _LINE + (_MARGIN // 2 if legend else 0)
    figure = Figure(figsize=((width + 0.01) / _DPI, (height + 0.01) / _DPI), dpi=_DPI, facecolor="white")
    page = _Page(figure, height)
    most = (width - 2 * _MARGIN) // _LETTER
    title = scene.title if len(scene.title) <= most else f"{scene.title[: most - 1]}…"
    page.text(_MARGIN, 14, title, size=11, weight="bold")
    page.image(_MARGIN, _HEAD, scene.board)
    for i, line in enumerate(scene.status):
        page.text(_MARGIN, _HEAD + board_height + 10 + i * _LINE, line, color=_FAINT)
    left = _MARGIN + board_width + 2 * _MARGIN
    if scene.frames is not None:
        for k in range(scene.depth):
            x = left + _LABEL + k * (frame_width + _GAP) + frame_width / 2
            page.text(x, _HEAD - 18, f"step {k + 1}", color=_FAINT, ha="center")
    for action in range(len(scene.actions)):
        _paint_action(page, scene, action, left, _HEAD + action * row)
    for (across, down), (name, colour) in zip(legend, scene.legend, strict=True):
        x, y = _MARGIN + across, below + down * _LINE
        page.image(x, y, np.broadcast_to(colour, (_SQUARE, _SQUARE, 3)))
        page.text(x + _SQUARE + 5, y - 1, name, color=_FAINT)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


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


def save(picture: NDArray[np.uint8], path: Path) -> None:
    """Write a picture as PNG.

    Raises:
        StorageError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        imsave(path, picture, format="png", metadata={"Software": "rlx"})
    except OSError as error:
        raise StorageError(f"--png {path} cannot be written ({error.strerror}); choose another place") from error


def _paint_action(page: _Page, scene: Scene, action: int, left: int, top: int) -> None:
    """One row: bars, and the rollout that begins with the action."""
    chosen = action == scene.chosen
    name = scene.actions[action]
    page.text(left, top, f"▶ {name}" if chosen else name, size=11, weight="bold", color=_CHOSEN if chosen else _INK)
    lines = list(scene.shares.items())
    for i, (title, values) in enumerate(lines):
        y, share = top + (i + 1) * _LINE + 3, float(values[action])
        page.text(left, y, title, color=_FAINT)
        page.bar(left + 62, y + 2, _BAR, "#EEEEEE")
        page.bar(left + 62, y + 2, _BAR * share, _COLOURS[title])
        page.text(left + 62 + _BAR + 8, y, f"{share:.2f}")
    if scene.q_value is not None:
        y = top + (len(lines) + 1) * _LINE + 3
        page.text(left, y, "Q", color=_FAINT)
        page.text(left + 62, y, f"{scene.q_value[action]:+.2f}")
    if scene.frames is None or scene.reward is None:
        return
    height, width = scene.frame_size
    for k, frame in enumerate(scene.frames[action]):
        x = left + _LABEL + k * (width + _GAP)
        page.image(x, top, frame)
        page.text(x + width / 2, top + height + 3, f"{scene.reward[action, k]:+.2f}", color=_FAINT, ha="center")


class _Page:
    """A figure in pixels from its upper left corner."""

    def __init__(self, figure: Figure, height: int) -> None:
        self._figure, self._height = figure, height

    def text(self, x: float, y: float, text: str, *, size: float = 9, color: str = _INK, **style: Any) -> None:
        self._figure.text(x, self._height - y, text, fontsize=size, color=color, va="top", transform=IdentityTransform(), **style)

    def bar(self, x: float, y: float, width: float, color: str) -> None:
        patch = Rectangle((x, self._height - y - 9), width, 9, facecolor=color, edgecolor="none", transform=IdentityTransform())
        self._figure.add_artist(patch)

    def image(self, x: int, y: int, pixels: NDArray[np.uint8]) -> None:
        self._figure.figimage(pixels, x, self._height - y - len(pixels), origin="upper")
