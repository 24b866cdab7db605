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


class Piece(NamedTuple):
    """A piece of a course."""

    near: float  # x where it begins, and from where its level holds
    far: float  # x where it ends
    level: float
    passed: float  # x from which its obstacle is behind
    front: float  # x at which the next piece continues
    centre: tuple[float, ...]  # x, y and z of each of its boxes


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


_BITS = 2**64 - 1


def _mixed_bits(z: int) -> int:
    """splitmix64 (Steele, Lea and Flood 2014) of a number below 2^64."""
    z = (z + 0x9E3779B97F4A7C15) & _BITS
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _BITS
    return z ^ (z >> 31)


class Draw(NamedTuple):
    """What is drawn for a piece: Python's numbers, which are faster than arrays of the few pieces that are laid at once."""

    number: int  # of the piece in the course, from 0
    difficulty: float  # in [0, 1]
    stream: int  # a hash of the seed
    word: int  # number of its first random word

    def uniform(self, k: int) -> float:
        """Number k of 4 in [0, 1); the last is the difficulty where there is no curriculum."""
        return (_mixed_bits(self.stream ^ (self.word + k)) >> 11) * 2.0**-53

    def size(self) -> float:
        """Of an obstacle, as a share of the hardest: 0.8 to 1 times its difficulty, so that obstacles of one difficulty differ."""
        return self.difficulty * (0.8 + 0.2 * self.uniform(1))


Lay = Callable[[Sizes, Draw, float], Piece]
"""A function from the sizes, what was drawn for a piece, and the x of the front, to this piece."""


def _centre(x: float, top: float, *, floor: float = 0.0, y: float = 0.0) -> tuple[float, float, float]:
    """Of a box by the height of its top; one that does not stand out of the floor is sunk."""
    return x, y, (floor - _SUNK if top - floor < _NONE else top) - _TALL


def _hurdles(sizes: Sizes, draw: Draw, front: float) -> Piece:
    x = front + (3.0 + 1.5 * draw.uniform(0))
    far = x + _HURDLE
    return Piece(x - _HURDLE, far, 0.0, far, x, _centre(x, sizes.hurdle * draw.size()))


def _gaps(sizes: Sizes, draw: Draw, front: float) -> Piece:
    far = front + ((sizes.gap * draw.size() if draw.number else 0.0) + 2.0 * _PLATFORM)
    near = far - 2.0 * _PLATFORM
    return Piece(near, far, 0.0, near, far, _centre(far - _PLATFORM, 0.0, floor=-DEPTH))


def _platforms(sizes: Sizes, draw: Draw, front: float) -> Piece:
    far = front + (2.0 + draw.uniform(0) + 2.0 * _PLATFORM)
    top = sizes.platform * draw.size()
    return Piece(far - 2.0 * _PLATFORM, far, top, far, far, _centre(far - _PLATFORM, top))


def _stairs(sizes: Sizes, draw: Draw, front: float) -> Piece:
    phase = draw.number % _CYCLE
    steps = min(phase + 1, _FLIGHT, max(2 * _FLIGHT + _REST - 1 - phase, 0))
    far = front + 2.0 * _STEP
    top = steps * sizes.step * draw.size() if steps else 0.0
    return Piece(far - 2.0 * _STEP, far, top, far, far, _centre(far - _STEP, top))


def _rumble(sizes: Sizes, draw: Draw, front: float) -> Piece:
    x = front + (0.4 + 0.2 * draw.uniform(0))
    far = x + _RUMBLE
    top = sizes.rumble * draw.difficulty * (0.3 + 0.7 * draw.uniform(1))
    return Piece(x - _RUMBLE, far, 0.0, far, x, _centre(x, top))


def _mixed(sizes: Sizes, draw: Draw, front: float) -> Piece:
    """A platform that follows a gap, is higher than the others, or has a hurdle in its middle; the first is plain."""
    kind = int(3.0 * draw.uniform(2)) if draw.number else -1
    size = draw.size()
    far = front + (2.0 * _PLATFORM + (sizes.gap * size if kind == 0 else 0.0))
    level = sizes.platform * size if kind == 1 else 0.0
    hurdle = sizes.hurdle * size if kind == 2 else -DEPTH
    centre = _centre(far - _PLATFORM, level, floor=-DEPTH) + _centre(far - _PLATFORM, hurdle, floor=-DEPTH)
    return Piece(far - 2.0 * _PLATFORM, far, level, far, far, centre)


def _slalom(sizes: Sizes, draw: Draw, front: float) -> Piece:
    """A wall from the left or the right edge of the track to its middle and, where it is harder, beyond it."""
    x = front + (4.0 + draw.uniform(0))
    reach = (1.0 + sizes.wall) * draw.size() - 1.0
    y = (TRACK - reach) * (-1.0 if draw.uniform(2) < 0.5 else 1.0)
    far = x + _WALL
    return Piece(x - _WALL, far, 0.0, far, x, _centre(x, 0.0 if draw.difficulty < _NONE else 0.8, y=y))


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
    "hurdles": Kind(lay=_hurdles, start=0.0, pitch=3.75, num_pieces=4, boxes=((_HURDLE, _WHOLE),)),
    "gaps": Kind(lay=_gaps, start=-1.5, pitch=3.75, num_pieces=4, boxes=((_PLATFORM, _WHOLE),), lowered=True, obstacles=_without_start),
    "platforms": Kind(lay=_platforms, start=0.5, pitch=6.0, num_pieces=3, boxes=((_PLATFORM, _WHOLE),)),
    "stairs": Kind(lay=_stairs, start=2.5, pitch=2.0 * _STEP, num_pieces=11, boxes=((_STEP, _WHOLE),), behind=3.0, group=_CYCLE,
                   obstacles=_flights),
    "rumble": Kind(lay=_rumble, start=2.0, pitch=0.5, num_pieces=12, boxes=((_RUMBLE, _WHOLE),), behind=1.2),
    "mixed": Kind(lay=_mixed, start=-1.5, pitch=3.6, num_pieces=4, boxes=((_PLATFORM, _WHOLE), (_HURDLE, _WHOLE)), lowered=True,
                  obstacles=_without_start),
    "slalom": Kind(lay=_slalom, start=0.0, pitch=4.5, num_pieces=4, boxes=((_WALL, TRACK),)),
}  # fmt: skip
"""Every box adds about 1.5 % to the physics of Walker2d, so that there are as many as reach from `behind` the body to what it sees."""
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

    def pieces(self, seed: int, first: int, count: int, front: float) -> list[Piece]:
        """The pieces with the numbers first to first + count - 1 of the course with this seed, from x = front on."""
        kind, sizes, easiest = self.kind, self._sizes, self._settings.easiest
        span, pitch, stream = self._settings.hardest - easiest, self.kind.group * self.kind.pitch / self._ramp, _mixed_bits(seed)
        laid = []
        for number in range(first, first + count):
            group = number // kind.group
            draw = Draw(number, easiest + span * min(group * pitch, 1.0), stream, _WORDS * group)
            if self._settings.curriculum == "none":
                draw = draw._replace(difficulty=easiest + span * draw.uniform(_WORDS - 1))
            piece = kind.lay(sizes, draw, front)
            front = piece.front
            laid.append(piece)
        return laid
