"""A picture of the spaceship's scene: mothership, planets, the ship, where it flew, and what an agent imagined."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SIZE, _REACH = 400, 1.35
"""Pixels of a side, and the distance from the middle to an edge."""
_SPACE, _RING, _MOTHERSHIP, _PLANET, _SHIP = (16, 18, 32), (44, 50, 78), (0, 200, 120), (150, 128, 110), (240, 240, 255)
_IMAGINED = ((255, 190, 60), (255, 120, 60), (225, 70, 120), (160, 90, 220), (90, 120, 255), (60, 190, 230))
"""Of the first imagination, the second, and so on."""
_FIRST_PLANET = 6


class Imagined(NamedTuple):
    """An imagined action."""

    begin: Any  # [2] where it is imagined from
    end: Any  # [2] where it is imagined to lead


def draw(obs: NDArray[Any], imagined: Sequence[Imagined] = (), path: NDArray[Any] | None = None) -> NDArray[np.uint8]:
    """A frame [400, 400, 3].

    Shapes are distances from every pixel, so that edges are smooth and no library that draws is needed.

    Args:
        obs: [21] of the spaceship; one that left the picture is drawn at its edge.
        imagined: drawn as lines that end in a dot, in the order in which they were imagined.
        path: [n, 2] where the ship flew to get here.
    """
    scale = _REACH / (SIZE / 2.0)  # length of a pixel
    across = (np.arange(SIZE) + 0.5 - SIZE / 2.0) * scale
    up = -across[:, None]
    frame = np.empty((SIZE, SIZE, 3))
    frame[:] = _SPACE

    def paint(distance: NDArray[Any], colour: tuple[int, int, int]) -> None:
        cover = np.clip(0.5 - distance / scale, 0.0, 1.0)
        inside = cover > 0.0
        frame[inside] += cover[inside, None] * (np.array(colour) - frame[inside])

    def disc(at: Any, radius: float, colour: tuple[int, int, int]) -> None:
        paint(np.hypot(across - at[0], up - at[1]) - radius, colour)

    def line(begin: Any, end: Any, width: float, colour: tuple[int, int, int]) -> None:
        (x, y), along = begin, np.subtract(end, begin)
        share = np.clip(((across - x) * along[0] + (up - y) * along[1]) / max(1e-9, float(along @ along)), 0.0, 1.0)
        paint(np.hypot(across - x - share * along[0], up - y - share * along[1]) - width, colour)

    def near(at: Any) -> NDArray[Any]:
        return np.clip(np.asarray(at, dtype=np.float64), -_REACH + 0.03, _REACH - 0.03)

    for ring in (0.5, 1.0):
        paint(np.abs(np.hypot(across, up) - ring) - scale / 2.0, _RING)
    for x, y, mass in np.reshape(obs[_FIRST_PLANET:], (-1, 3)).tolist():
        disc((x, y), 0.05 + 0.3 * mass, _PLANET)
    disc((0.0, 0.0), 0.05, _MOTHERSHIP)
    for number, (begin, end) in enumerate(imagined):
        colour = _IMAGINED[number % len(_IMAGINED)]
        line(near(begin), near(end), 0.8 * scale, colour)
        disc(near(end), 0.032, colour)
    flown = [] if path is None else [near(point) for point in path]
    for start, stop in itertools.pairwise(flown):
        line(start, stop, 0.8 * scale, _SHIP)
    disc(near(obs[:2]), 0.02 + 0.06 * float(obs[4]), _SHIP)
    return np.round(frame).astype(np.uint8)
