"""Left-right symmetries of MuJoCo robots, as gymnasium's v5 environments observe them by default.

The mirror is the plane y = 0, which keeps the way forward. A reflection changes the sign of a vector's y, and of the x and z of what turns:
angular velocities, torques, and the vector part of a quaternion. Hinges whose axis is that of the other side, reflected, keep their sign.
`tests/test_mirror.py` compares the maps with the simulator.

Walker2d and Ant are symmetric to rounding. Humanoid is but for a stiffness of 1 of its left knee, which the right one has not, an armature
of 0.01 instead of 0.008 of its left hip, and contact forces, for which the 50 iterations of its solver are too few.
HalfCheetah, Hopper and Swimmer have no left and right; InvertedDoublePendulum's is another mirror.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from rlx.symmetry import Mirror, Signs

_VECTOR, _TURN = [1, -1, 1], [-1, 1, -1]
_SPATIAL = [*_TURN, *_VECTOR]  # angular, then linear
_INERTIA = [1, 1, 1, -1, 1, -1, 1, -1, 1, 1]  # xx, yy, zz, xy, xz, yz, mass times centre, mass

_WALKER2D_JOINTS = [3, 4, 5, 0, 1, 2], [1] * 6
_ANT_JOINTS = [6, 7, 4, 5, 2, 3, 0, 1], [-1, 1] * 4  # hip and ankle of legs 1 to 4: 1 is 4's image, 2 is 3's
_ANT_BODIES = [0, 10, 11, 12, 7, 8, 9, 4, 5, 6, 1, 2, 3]  # the torso, and three of each leg
_HUMANOID_JOINTS = ([0, 1, 2, 7, 8, 9, 10, 3, 4, 5, 6, 14, 15, 16, 11, 12, 13],
                    [-1, 1, -1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, 1, -1, -1, 1])  # fmt: skip
_HUMANOID_BODIES = [0, 1, 2, 6, 7, 8, 3, 4, 5, 11, 12, 9, 10]

Part = tuple[Sequence[int], Sequence[int]]
"""Index and sign of the numbers of a part."""


def _plain(signs: Sequence[int]) -> Part:
    return range(len(signs)), signs


def _each(bodies: Sequence[int], signs: Sequence[int]) -> Part:
    """Numbers of each of some bodies, which change places."""
    return [len(signs) * body + k for body in bodies for k in range(len(signs))], [*signs] * len(bodies)


def _joined(*parts: Part) -> Signs:
    index: list[int] = []
    for part, _ in parts:
        index += [len(index) + i for i in part]
    return Signs(np.array(index), np.array([sign for _, signs in parts for sign in signs], dtype=np.float32))


_QUATERNION = [1, *_TURN]
_MIRRORS = {
    "Walker2d-v5": Mirror(_joined(_plain([1, 1]), _WALKER2D_JOINTS, _plain([1, 1, 1]), _WALKER2D_JOINTS), _joined(_WALKER2D_JOINTS)),
    "Ant-v5": Mirror(
        _joined(_plain([1]), _plain(_QUATERNION), _ANT_JOINTS, _plain(_VECTOR), _plain(_TURN), _ANT_JOINTS, _each(_ANT_BODIES, _SPATIAL)),
        _joined(([2, 3, 0, 1, 6, 7, 4, 5], [-1, 1] * 4)),  # legs 4, 1, 2, 3
    ),
    "Humanoid-v5": Mirror(
        _joined(_plain([1]), _plain(_QUATERNION), _HUMANOID_JOINTS, _plain(_VECTOR), _plain(_TURN), _HUMANOID_JOINTS,
                _each(_HUMANOID_BODIES, _INERTIA), _each(_HUMANOID_BODIES, _SPATIAL), _HUMANOID_JOINTS,
                _each(_HUMANOID_BODIES, _SPATIAL)),
        _joined(([0, 1, 2, *_HUMANOID_JOINTS[0][3:]], [1, -1, -1, *_HUMANOID_JOINTS[1][3:]])),  # abdomen y, z, x
    ),
}  # fmt: skip


def mirror_of(env_id: str, observation: gymnasium.Space[Any], action: gymnasium.Space[Any]) -> Mirror | None:
    """The symmetry of an environment, None if none is declared for what it observes under its settings."""
    mirror = _MIRRORS.get(env_id)
    fits = mirror and observation.shape == mirror.observation.source.shape and action.shape == mirror.action.source.shape
    return mirror if fits else None


MIRRORED = tuple(_MIRRORS)
"""Environments with a symmetry."""
