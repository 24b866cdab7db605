"""Arrays as pictures [h, w, 3] of bytes: images, stacks of frames, grids of codes; and pictures in another size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rlx.evaluation.inputs import Input

Picture = NDArray[np.uint8]

ENLARGED_PX = 48
"""Pixels of the longer side up to which a small picture is enlarged in a terminal."""
_CODES = 32
"""Whole numbers below this are codes."""
_LARGEST_BOARD = 24
"""Cells of the side of a board of codes, where whole numbers may be larger; on anything larger they are the colours of an image."""
_PALETTE = np.array([
    (24, 24, 24), (86, 180, 233), (230, 159, 0), (0, 158, 115), (213, 94, 0), (240, 228, 66), (0, 114, 178), (204, 121, 167),
    (150, 150, 150), (140, 109, 31), (120, 220, 180), (170, 80, 200), (255, 255, 255), (90, 90, 150), (180, 60, 60), (60, 110, 60),
], np.uint8)  # fmt: skip
"""Colours of codes: 0 is dark, the first ones are those of Okabe and Ito (2008)."""


class Pictures(NamedTuple):
    """One input as pictures of one size."""

    name: str
    shown: list[Picture]
    """The newest frame of a stack first; the channels of a grid of codes in their order."""
    is_stack: bool


def pictures_of(part: Input) -> Pictures | None:
    """The pictures of an input that is an image, a stack of images, or a board; None for vectors, numbers and texts."""
    values, space = part.observed, part.space
    whole = values.dtype.kind in "iub"
    if values.ndim not in (2, 3, 4) or (values.ndim != 3 and not whole) or min(values.shape[:2]) < 2:
        return None
    if values.ndim == 4:  # a stack of images
        return Pictures(part.name, [picture for image in values[::-1] for picture in _coloured(image, space)], is_stack=True)
    channels = _channels_first(values)
    if whole and (_highest(space) < _CODES or max(channels.shape[1:]) <= _LARGEST_BOARD):
        if _highest(space) <= 1 and len(channels) > 1:  # planes of zeros and ones
            kinds = np.where(channels.any(0), len(channels) - np.argmax(channels[::-1] > 0, axis=0), 0)
            return Pictures(part.name, [_PALETTE[kinds % len(_PALETTE)]], is_stack=False)
        return Pictures(part.name, list(_PALETTE[channels.astype(np.intp) % len(_PALETTE)]), is_stack=False)
    shown = _coloured(values, space)
    return Pictures(part.name, shown, is_stack=len(shown) > 1)


def _channels_first(values: NDArray[Any]) -> NDArray[Any]:
    """[C, h, w] of an array [h, w], [C, h, w] or [h, w, C]: the channels are fewer than columns, or than rows."""
    if values.ndim == 2:
        return values[None]
    return values if values.shape[0] < values.shape[-1] else np.moveaxis(values, -1, 0)


def _highest(space: Any) -> float:
    if isinstance(space, spaces.Box):
        return float(np.max(space.high))
    return float(np.max(space.nvec) - 1) if isinstance(space, spaces.MultiDiscrete) else 1.0


def _coloured(image: NDArray[Any], space: Any) -> list[Picture]:
    """An image [h, w], [h, w, C] or [C, h, w]: one picture of three colours, or a grey one for every channel, the last first."""
    channels = _channels_first(image)
    levels = _bytes(channels, space)
    if len(channels) == 3:
        return [np.ascontiguousarray(np.moveaxis(levels, 0, -1))]
    return [np.repeat(channel[..., None], 3, axis=2) for channel in levels[::-1]]


def _bytes(values: NDArray[Any], space: Any) -> NDArray[np.uint8]:
    """Brightness of values: bytes as they are, bounded numbers between their bounds, others from -3 to 3."""
    if values.dtype == np.uint8:
        return values
    low, high = -3.0, 3.0
    if values.size and values.min() >= 0.0 and values.max() <= 1.0:
        low, high = 0.0, 1.0
    elif isinstance(space, spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all() and values.dtype == space.dtype:
        low, high = float(space.low.min()), float(space.high.max())
    return ((values - low) * (255.0 / max(1e-9, high - low))).clip(0, 255).astype(np.uint8)


def scaled(pixels: Picture, height: int, width: int) -> Picture:
    """A picture in another size: the mean of what a smaller pixel covers, or each pixel repeated."""
    rows, columns = pixels.shape[:2]
    if (height, width) == (rows, columns):
        return pixels
    if height >= rows and width >= columns:
        return pixels[np.arange(height) * rows // height][:, np.arange(width) * columns // width]
    across = pixels.reshape(rows, -1).astype(np.float32)
    down = (_weights(rows, height) @ across).reshape(height, columns, 3)
    return np.einsum("wc,hck->hwk", _weights(columns, width), down, optimize=True).round().astype(np.uint8)


_known: dict[tuple[int, int], NDArray[np.float32]] = {}


def _weights(old: int, new: int) -> NDArray[np.float32]:
    """[new, old]: the share of each old pixel in a new one."""
    if (found := _known.get((old, new))) is None:
        edges = np.linspace(0.0, old, new + 1)
        begins, ends = np.arange(old), np.arange(1, old + 1)
        overlap = (np.minimum(edges[1:, None], ends) - np.maximum(edges[:-1, None], begins)).clip(0.0)
        found = _known[old, new] = (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)
    return found


def largest(shape: Sequence[int], room_height: int, room_width: int, *, enlarged: int = ENLARGED_PX) -> tuple[int, int]:
    """The height and width, in pixels, of the largest picture of a shape [h, w, ...] in a room.

    Args:
        shape: of the picture.
        room_height, room_width: in pixels.
        enlarged: the longer side up to which a smaller picture is enlarged, by a whole number.
    """
    height, width = shape[:2]
    scale = min(room_height / height, room_width / width)
    if scale >= 1.0:
        scale = min(int(scale), max(1, -(-enlarged // max(height, width))))
    return max(1, int(height * scale)), max(1, int(width * scale))
