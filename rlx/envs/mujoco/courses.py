"""Endless courses of obstacles: where the boxes of a course are, as pure functions of a seed and the number of a piece.

After Heess et al. 2017, https://arxiv.org/abs/1707.02286, whose courses are drawn anew in each episode and become harder along the way.
The paper does not give the sizes of its obstacles; these are our own, in proportion to the bodies.

A course runs along x from x = 0, and is a sequence of pieces, each of one or two boxes of fixed size. Only their positions vary: the height
of a hurdle is how far a tall box stands out of the floor, a gap is the distance between two platforms above a lowered floor. A piece that
lies far behind is moved to the front, so that a few boxes make a course without end.

The level at x is the height of what a body stands on there: that of a platform or a step. A hurdle stands on it, and a gap interrupts it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlx.envs.mujoco.course_settings import CourseSettings

Array = NDArray[Any]

TRACK = 4.0
"""Half the width of a track for bodies that move in three dimensions; who leaves it has lost."""
DEPTH = 1.0
"""How far the floor lies under the platforms of a course with gaps."""
_NONE = 1e-3
"""Obstacles smaller than this, in metres, are left out: on flat ground a body stands on the floor alone."""
_SUNK = 3.0
"""How far below the floor a box lies that is left out."""
_HURDLE, _PLATFORM, _STEP, _RUMBLE, _WALL = 0.1, 1.75, 0.375, 0.05, 0.15
"""Half of the lengths of boxes along x."""
_TALL = 0.5
"""Half of their height."""
_FLIGHT = 4
"""Steps up, and steps down again."""
_REST = 2
"""Pieces of level ground above and below a flight."""
_CYCLE = 2 * (_FLIGHT + _REST)
_WORDS = 4
"""Random numbers for each piece."""


class Pieces(NamedTuple):
    """n consecutive pieces of a course."""

    centre: Array  # [n, boxes, 3] of the boxes
    near: Array  # [n] x where a piece begins, and from where its level holds
    far: Array  # [n] x where it ends
    level: Array  # [n]
    passed: Array  # [n] x from which its obstacle is behind
    front: float  # x at which the next piece continues


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of the hardest obstacles for a body, in metres, and the metres over which difficulty grows."""

    hurdle: float
    gap: float
    platform: float
    step: float
    rumble: float
    wall: float = 1.5  # how far a wall reaches over the middle of the track
    ramp: float


SIZES = {
    "walker": Sizes(hurdle=0.35, gap=0.6, platform=0.35, step=0.2, rumble=0.08, ramp=25.0),
    "ant": Sizes(hurdle=0.25, gap=0.7, platform=0.25, step=0.12, rumble=0.08, ramp=60.0),
    "humanoid": Sizes(hurdle=0.3, gap=0.6, platform=0.3, step=0.18, rumble=0.06, ramp=40.0),
}


class Draw(NamedTuple):
    """What is drawn for n pieces."""

    number: Array  # [n] of the pieces in the course, from 0
    difficulty: Array  # [n] in [0, 1]
    uniform: Array  # [n, 4] in [0, 1); the last is the difficulty where there is no curriculum


Lay = Callable[[Sizes, Draw, float], Pieces]
"""A function from the sizes, what was drawn for some pieces, and the x of the front, to these pieces."""


def _along(front: float, steps: Array) -> Array:
    """[n] the positions that these steps [n] from the front lead to; the rounding is that of one step after the other."""
    return np.add.accumulate(np.concatenate(([front], steps)))[1:]


def _nearly(draw: Draw) -> Array:
    """[n] factors of 0.8 to 1, so that obstacles of one difficulty differ."""
    return 0.8 + 0.2 * draw.uniform[:, 1]


def _centres(x: Array, top: Array, *, floor: float = 0.0, y: Array | float = 0.0) -> Array:
    """[n, 3] of boxes by the heights [n] of their tops; those that do not stand out of the floor are sunk."""
    centre = np.empty((len(x), 3))
    centre[:, 0], centre[:, 1] = x, y
    centre[:, 2] = np.where(top - floor < _NONE, floor - _SUNK, top) - _TALL
    return centre


def _hurdles(sizes: Sizes, draw: Draw, front: float) -> Pieces:
    x = _along(front, 3.0 + 1.5 * draw.uniform[:, 0])
    top = sizes.hurdle * draw.difficulty * _nearly(draw)
    far = x + _HURDLE
    return Pieces(_centres(x, top)[:, None], x - _HURDLE, far, np.zeros(len(x)), far, float(x[-1]))


def _gaps(sizes: Sizes, draw: Draw, front: float) -> Pieces:
    gap = np.where(draw.number == 0, 0.0, sizes.gap * draw.difficulty * _nearly(draw))
    far = _along(front, gap + 2.0 * _PLATFORM)
    near, level = far - 2.0 * _PLATFORM, np.zeros(len(far))
    return Pieces(_centres(far - _PLATFORM, level, floor=-DEPTH)[:, None], near, far, level, near, float(far[-1]))


def _platforms(sizes: Sizes, draw: Draw, front: float) -> Pieces:
    far = _along(front, 2.0 + draw.uniform[:, 0] + 2.0 * _PLATFORM)
    top = sizes.platform * draw.difficulty * _nearly(draw)
    return Pieces(_centres(far - _PLATFORM, top)[:, None], far - 2.0 * _PLATFORM, far, top, far, float(far[-1]))


def _stairs(sizes: Sizes, draw: Draw, front: float) -> Pieces:
    phase = draw.number % _CYCLE
    steps = np.minimum(np.minimum(phase + 1, _FLIGHT), np.maximum(2 * _FLIGHT + _REST - 1 - phase, 0))
    far = _along(front, np.full(len(phase), 2.0 * _STEP))
    top = steps * sizes.step * draw.difficulty * _nearly(draw)
    return Pieces(_centres(far - _STEP, top)[:, None], far - 2.0 * _STEP, far, top, far, float(far[-1]))


def _rumble(sizes: Sizes, draw: Draw, front: float) -> Pieces:
    x = _along(front, 0.3 + 0.2 * draw.uniform[:, 0])
    top = sizes.rumble * draw.difficulty * (0.3 + 0.7 * draw.uniform[:, 1])
    far = x + _RUMBLE
    return Pieces(_centres(x, top)[:, None], x - _RUMBLE, far, np.zeros(len(x)), far, float(x[-1]))


def _mixed(sizes: Sizes, draw: Draw, front: float) -> Pieces:
    """Platforms, each of which follows a gap, is higher than the others, or has a hurdle in its middle; the first is plain."""
    kind = np.where(draw.number == 0, -1, (3.0 * draw.uniform[:, 2]).astype(np.int64))
    size = draw.difficulty * _nearly(draw)
    far = _along(front, 2.0 * _PLATFORM + np.where(kind == 0, sizes.gap * size, 0.0))
    level = np.where(kind == 1, sizes.platform * size, 0.0)
    hurdle = np.where(kind == 2, sizes.hurdle * size, -DEPTH)
    centre = np.stack([_centres(far - _PLATFORM, top, floor=-DEPTH) for top in (level, hurdle)], axis=1)
    return Pieces(centre, far - 2.0 * _PLATFORM, far, level, far, float(far[-1]))


def _slalom(sizes: Sizes, draw: Draw, front: float) -> Pieces:
    """Walls from the left or the right edge of the track to its middle and, where they are harder, beyond it."""
    x = _along(front, 4.0 + draw.uniform[:, 0])
    side = np.where(draw.uniform[:, 2] < 0.5, -1.0, 1.0)
    reach = (1.0 + sizes.wall) * draw.difficulty * _nearly(draw) - 1.0
    top = np.where(draw.difficulty < _NONE, 0.0, 0.8)
    far = x + _WALL
    return Pieces(_centres(x, top, y=side * (TRACK - reach))[:, None], x - _WALL, far, np.zeros(len(x)), far, float(x[-1]))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of course."""

    lay: Lay
    start: float
    """x at which the first piece begins, or the distance to it."""
    pitch: float
    """Mean length of a piece, in metres: difficulty grows by the number of a piece, times this."""
    num_pieces: int
    boxes: tuple[tuple[float, float | None], ...]
    """Of each box of a piece: half its length, and half its width; None is the whole track."""
    behind: float = 4.0
    """Metres behind a body from where pieces are moved to the front."""
    lowered: bool = False
    """Whether the floor lies `DEPTH` below the start, so that nothing stands on it."""
    group: int = 1
    """Consecutive pieces that have the same random numbers and difficulty."""
    obstacles: Callable[[Array], Array] = lambda passed: passed
    """The number of obstacles among the first pieces [*]."""


def _flights(passed: Array) -> Array:
    cycles, phase = np.divmod(passed, _CYCLE)
    return 2 * _FLIGHT * cycles + np.minimum(phase, _FLIGHT) + np.clip(phase - _FLIGHT - _REST, 0, _FLIGHT)


def _without_start(passed: Array) -> Array:
    return np.maximum(passed - 1, 0)


_WHOLE = None
KINDS = {
    "hurdles": Kind(lay=_hurdles, start=0.0, pitch=3.75, num_pieces=8, boxes=((_HURDLE, _WHOLE),)),
    "gaps": Kind(lay=_gaps, start=-1.5, pitch=3.75, num_pieces=8, boxes=((_PLATFORM, _WHOLE),), lowered=True, obstacles=_without_start),
    "platforms": Kind(lay=_platforms, start=0.5, pitch=6.0, num_pieces=6, boxes=((_PLATFORM, _WHOLE),)),
    "stairs": Kind(lay=_stairs, start=2.5, pitch=2.0 * _STEP, num_pieces=16, boxes=((_STEP, _WHOLE),), group=_CYCLE, obstacles=_flights),
    "rumble": Kind(lay=_rumble, start=2.0, pitch=0.4, num_pieces=16, boxes=((_RUMBLE, _WHOLE),), behind=1.5),
    "mixed": Kind(lay=_mixed, start=-1.5, pitch=3.6, num_pieces=6, boxes=((_PLATFORM, _WHOLE), (_HURDLE, _WHOLE)), lowered=True,
                  obstacles=_without_start),
    "slalom": Kind(lay=_slalom, start=0.0, pitch=4.5, num_pieces=8, boxes=((_WALL, TRACK),)),
}  # fmt: skip
NARROW = 0.6
"""Half the width of the boxes of a body that moves in a plane."""


class Course:
    """Draws the pieces of courses of one kind, for one body.

    Args:
        kind: a name of `KINDS`.
        settings: with the body, and how hard the obstacles are.
    """

    def __init__(self, kind: str, settings: CourseSettings) -> None:
        self.kind, self._settings, self._sizes = KINDS[kind], settings, SIZES[settings.body]
        width = NARROW if settings.body == "walker" else TRACK + 1.0
        halves = [(length, half_width or width, _TALL) for length, half_width in self.kind.boxes]
        self.half = np.array(halves * self.kind.num_pieces)
        """[K, 3] half sizes of the boxes, those of one piece after the other."""
        self.floor = -DEPTH if self.kind.lowered else 0.0
        self._ramp = settings.ramp or self._sizes.ramp

    def pieces(self, seed: int, first: int, count: int, front: float) -> Pieces:
        """The pieces with the numbers first to first + count - 1 of the course with this seed, from x = front on."""
        number = np.arange(first, first + count)
        group = number // self.kind.group
        uniform = _uniform(seed, group)
        easiest, hardest = self._settings.easiest, self._settings.hardest
        if self._settings.curriculum == "course":
            share = np.minimum(group * (self.kind.group * self.kind.pitch / self._ramp), 1.0)
        else:
            share = uniform[:, _WORDS - 1]
        return self.kind.lay(self._sizes, Draw(number, easiest + (hardest - easiest) * share, uniform), front)


_STEP_OF_STREAM = np.uint64(0x9E3779B97F4A7C15)
_SHIFTS = tuple(map(np.uint64, (30, 27, 31, 11)))
_FACTORS = tuple(map(np.uint64, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)))


def _mixed_bits(z: Array) -> Array:
    """splitmix64 (Steele, Lea and Flood 2014) of an array of uint64."""
    z = z + _STEP_OF_STREAM
    z = (z ^ (z >> _SHIFTS[0])) * _FACTORS[0]
    z = (z ^ (z >> _SHIFTS[1])) * _FACTORS[1]
    return z ^ (z >> _SHIFTS[2])


def _uniform(seed: int, number: Array) -> Array:
    """[n, 4] numbers in [0, 1), a hash of the seed and the numbers [n]."""
    words = np.uint64(_WORDS) * number.astype(np.uint64)[:, None] + np.arange(_WORDS, dtype=np.uint64)
    stream = _mixed_bits(np.array([seed], dtype=np.uint64))
    uniform: Array = (_mixed_bits(stream ^ words) >> _SHIFTS[3]) * 2.0**-53
    return uniform
