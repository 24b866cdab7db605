"""A page of text, bars and pictures at places in pixels, as an array or a PNG file."""

from __future__ import annotations

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

INK, FAINT, CHOSEN = "#222222", "#777777", "#009E73"
MARGIN = 24
_DPI = 100
_LETTER = 10
"""Pixels of a letter of the title, on average at most."""


class Page:
    """A white page; places are pixels from its upper left corner.

    Args:
        height, width: in pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        self._height, self._width = height, width
        self._figure = Figure(figsize=((width + 0.01) / _DPI, (height + 0.01) / _DPI), dpi=_DPI, facecolor="white")

    def title(self, text: str) -> None:
        """A line at the top, cut to the width of the page."""
        most = (self._width - 2 * MARGIN) // _LETTER
        self.text(MARGIN, 14, text if len(text) <= most else f"{text[: most - 1]}…", size=11, weight="bold")

    def text(self, x: float, y: float, text: str, *, size: float = 9, color: str = INK, **style: Any) -> None:
        self._figure.text(
            x, self._height - y, text, fontsize=size, color=color, va="top", parse_math=False, transform=IdentityTransform(), **style
        )

    def bar(self, x: float, y: float, width: float, color: str, *, height: float = 9) -> None:
        patch = Rectangle((x, self._height - y - height), width, height, facecolor=color, edgecolor="none", transform=IdentityTransform())
        self._figure.add_artist(patch)

    def image(self, x: float, y: float, pixels: NDArray[np.uint8]) -> None:
        self._figure.figimage(pixels, round(x), round(self._height - y) - len(pixels), origin="upper")

    def pixels(self) -> NDArray[np.uint8]:
        """The page [height, width, 3]."""
        canvas = FigureCanvasAgg(self._figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


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
