"""Seven MuJoCo robots of gymnasium: what they observe and earn, for a batch, with the arithmetic of gymnasium's classes.

Every formula is that of `gymnasium/envs/mujoco/*_v5.py`, in the same order and the same dtypes, so that results are equal to the last bit
(`tests/test_mujoco_native.py`). A setting has gymnasium's name and default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Seen = Mapping[str, Array]
"""{name: [B, *]} the arrays of MjData that a robot reads, copied after a step. The names are those of `Robot.views`."""
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Robot:
    """A robot and its settings. The methods are pure functions of arrays with one row for each environment."""

    xml: ClassVar[str]
    """Its model, in gymnasium's directory of assets."""
    needs_forces: ClassVar[bool] = False
    """Whether it reads what only `mj_rnePostConstraint` computes."""
    normal_velocity: ClassVar[bool] = False
    """Whether the noise of initial velocities is normal; else it is uniform."""
    hidden: ClassVar[int] = 1
    """Leading numbers of qpos that are not observed by default: where the robot is on the track."""

    frame_skip: int = 4
    reset_noise_scale: float = 5e-3

    def views(self, model: Any, data: Any) -> dict[str, Array]:
        """Views into the arrays of an MjData that the robot reads; `qpos` and `qvel` are always among them."""
        return {"qpos": data.qpos, "qvel": data.qvel}

    def draw(self, rng: np.random.Generator, qpos: Array, qvel: Array) -> tuple[Array, Array]:
        """Initial positions and velocities: those of the model, with noise."""
        scale = self.reset_noise_scale
        qpos = qpos + rng.uniform(low=-scale, high=scale, size=len(qpos))
        if self.normal_velocity:
            return qpos, qvel + scale * rng.standard_normal(len(qvel))
        return qpos, qvel + rng.uniform(low=-scale, high=scale, size=len(qvel))

    def position(self, model: Any, seen: Seen) -> Array:
        """[B, 1 or 2] the position of which a reward measures the velocity, as a new array."""
        return seen["qpos"][:, :1].copy()

    def observe(self, seen: Seen) -> Array:
        """[B, D] float64, as a new array."""
        raise NotImplementedError

    def healthy(self, seen: Seen, ground: Array | float) -> NDArray[np.bool_]:
        """[B] whether a robot stands; heights are measured from `ground`, a number or [B]."""
        return np.ones(len(seen["qpos"]), dtype=bool)

    @property
    def terminates(self) -> bool:
        """Whether an episode ends when the robot is not healthy."""
        return False

    def reward(self, seen: Seen, action: Array, velocity: Array, healthy: NDArray[np.bool_]) -> Array:
        """[B] float64 of a step.

        Args:
            seen: after the step.
            action: [B, A] as the simulation was given it.
            velocity: [B, 1 or 2] of `position` in the step.
            healthy: [B] after the step.
        """
        raise NotImplementedError


def _effort(action: Array) -> Array:
    """[B] sum of squares of each row, in the dtype of the action: gymnasium's is float32."""
    total: Array = np.add.reduce(np.square(action), axis=1)  # without the Python around `sum`
    return total


@dataclass(frozen=True, kw_only=True)
class _Runner(Robot):
    """A robot that is paid for its velocity, and pays for its torques."""

    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 1e-3
    exclude_current_positions_from_observation: bool = True

    def observe(self, seen: Seen) -> Array:
        return np.concatenate((self._observed_position(seen), seen["qvel"]), axis=1)

    def _observed_position(self, seen: Seen) -> Array:
        return seen["qpos"][:, self.hidden :] if self.exclude_current_positions_from_observation else seen["qpos"]

    def reward(self, seen: Seen, action: Array, velocity: Array, healthy: NDArray[np.bool_]) -> Array:
        earned: Array = self.forward_reward_weight * velocity[:, 0] - self.ctrl_cost_weight * _effort(action)
        return earned


@dataclass(frozen=True, kw_only=True)
class HalfCheetah(_Runner):
    xml = "half_cheetah.xml"
    normal_velocity = True

    frame_skip: int = 5
    ctrl_cost_weight: float = 0.1
    reset_noise_scale: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Swimmer(_Runner):
    xml = "swimmer.xml"
    hidden = 2

    ctrl_cost_weight: float = 1e-4
    reset_noise_scale: float = 0.1


@dataclass(frozen=True, kw_only=True)
class _Legged(_Runner):
    """A runner that can fall, and is paid for each step in which it has not."""

    healthy_reward: float = 1.0
    terminate_when_unhealthy: bool = True
    healthy_z_range: Range = (0.7, math.inf)

    @property
    def terminates(self) -> bool:
        return self.terminate_when_unhealthy

    def reward(self, seen: Seen, action: Array, velocity: Array, healthy: NDArray[np.bool_]) -> Array:
        rewards = self.forward_reward_weight * velocity[:, 0] + healthy * self.healthy_reward
        earned: Array = rewards - self.costs(seen, action)
        return earned

    def costs(self, seen: Seen, action: Array) -> Array:
        cost: Array = self.ctrl_cost_weight * _effort(action)
        return cost


def _inside(values: Array, bounds: Range) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (bounds[0] < values) & (values < bounds[1])
    return inside


@dataclass(frozen=True, kw_only=True)
class _Planar(_Legged):
    """Hopper and Walker2d: qpos begins with x, z and the torso's angle."""

    healthy_angle_range: Range = (-0.2, 0.2)

    def observe(self, seen: Seen) -> Array:
        return np.concatenate((self._observed_position(seen), seen["qvel"].clip(-10, 10)), axis=1)

    def healthy(self, seen: Seen, ground: Array | float) -> NDArray[np.bool_]:
        qpos = seen["qpos"]
        return _inside(qpos[:, 1] - ground, self.healthy_z_range) & _inside(qpos[:, 2], self.healthy_angle_range)


@dataclass(frozen=True, kw_only=True)
class Hopper(_Planar):
    xml = "hopper.xml"

    healthy_state_range: Range = (-100.0, 100.0)

    def healthy(self, seen: Seen, ground: Array | float) -> NDArray[np.bool_]:
        state = np.concatenate((seen["qpos"][:, 2:], seen["qvel"]), axis=1)
        return super().healthy(seen, ground) & _inside(state, self.healthy_state_range).all(axis=1)


@dataclass(frozen=True, kw_only=True)
class Walker2d(_Planar):
    xml = "walker2d_v5.xml"

    healthy_z_range: Range = (0.8, 2.0)
    healthy_angle_range: Range = (-1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Ant(_Legged):
    xml = "ant.xml"
    needs_forces = True
    normal_velocity = True
    hidden = 2

    frame_skip: int = 5
    forward_reward_weight: float = 1
    ctrl_cost_weight: float = 0.5
    contact_cost_weight: float = 5e-4
    main_body: int | str = 1
    healthy_z_range: Range = (0.2, 1.0)
    contact_force_range: Range = (-1.0, 1.0)
    reset_noise_scale: float = 0.1
    include_cfrc_ext_in_observation: bool = True

    def views(self, model: Any, data: Any) -> dict[str, Array]:
        torso = data.body(self.main_body).xpos[:2]
        return super().views(model, data) | {"torso": torso, "cfrc_ext": data.cfrc_ext.reshape(-1)}

    def position(self, model: Any, seen: Seen) -> Array:
        return seen["torso"].copy()

    def observe(self, seen: Seen) -> Array:
        parts = [self._observed_position(seen), seen["qvel"]]
        if self.include_cfrc_ext_in_observation:
            parts.append(self._forces(seen)[:, 6:])  # without those on the world
        return np.concatenate(parts, axis=1)

    def _forces(self, seen: Seen) -> Array:
        return seen["cfrc_ext"].clip(*self.contact_force_range)

    def healthy(self, seen: Seen, ground: Array | float) -> NDArray[np.bool_]:
        height, (low, high) = seen["qpos"][:, 2] - ground, self.healthy_z_range
        finite = np.isfinite(seen["qpos"]).all(axis=1) & np.isfinite(seen["qvel"]).all(axis=1)
        stands: NDArray[np.bool_] = finite & (low <= height) & (height <= high)
        return stands

    def costs(self, seen: Seen, action: Array) -> Array:
        cost: Array = super().costs(seen, action) + self.contact_cost_weight * np.square(self._forces(seen)).sum(axis=1)
        return cost


@dataclass(frozen=True, kw_only=True)
class Humanoid(_Legged):
    xml = "humanoid.xml"
    needs_forces = True
    hidden = 2

    frame_skip: int = 5
    forward_reward_weight: float = 1.25
    ctrl_cost_weight: float = 0.1
    contact_cost_weight: float = 5e-7
    contact_cost_range: Range = (-math.inf, 10.0)
    healthy_reward: float = 5.0
    healthy_z_range: Range = (1.0, 2.0)
    reset_noise_scale: float = 1e-2
    include_cinert_in_observation: bool = True
    include_cvel_in_observation: bool = True
    include_qfrc_actuator_in_observation: bool = True
    include_cfrc_ext_in_observation: bool = True

    def views(self, model: Any, data: Any) -> dict[str, Array]:
        views = super().views(model, data) | {"ctrl": data.ctrl, "xipos": data.xipos, "cfrc_ext": data.cfrc_ext.reshape(-1)}
        if self.include_cinert_in_observation:
            views["cinert"] = data.cinert[1:].reshape(-1)
        if self.include_cvel_in_observation:
            views["cvel"] = data.cvel[1:].reshape(-1)
        if self.include_qfrc_actuator_in_observation:
            views["qfrc_actuator"] = data.qfrc_actuator[6:]
        return views

    def position(self, model: Any, seen: Seen) -> Array:
        """The centre of mass, with one einsum for each robot: over a batch it would sum in another order."""
        mass = model.body_mass
        centre: Array = np.stack([np.einsum("b,bj->j", mass, xipos) for xipos in seen["xipos"]]) / mass.sum()
        return centre[:, :2]

    def observe(self, seen: Seen) -> Array:
        parts = [self._observed_position(seen), seen["qvel"]]
        parts += [seen[name] for name in ("cinert", "cvel", "qfrc_actuator") if name in seen]
        if self.include_cfrc_ext_in_observation:
            parts.append(seen["cfrc_ext"][:, 6:])  # without those on the world
        return np.concatenate(parts, axis=1)

    def healthy(self, seen: Seen, ground: Array | float) -> NDArray[np.bool_]:
        return _inside(seen["qpos"][:, 2] - ground, self.healthy_z_range)

    def costs(self, seen: Seen, action: Array) -> Array:
        contact = self.contact_cost_weight * np.square(seen["cfrc_ext"]).sum(axis=1)
        cost: Array = self.ctrl_cost_weight * _effort(seen["ctrl"]) + contact.clip(*self.contact_cost_range)
        return cost


@dataclass(frozen=True, kw_only=True)
class InvertedDoublePendulum(Robot):
    xml = "inverted_double_pendulum.xml"
    normal_velocity = True

    frame_skip: int = 5
    healthy_reward: float = 10.0
    reset_noise_scale: float = 0.1

    def views(self, model: Any, data: Any) -> dict[str, Array]:
        return super().views(model, data) | {"tip": data.site_xpos[0], "qfrc_constraint": data.qfrc_constraint}

    def observe(self, seen: Seen) -> Array:
        angles, force = seen["qpos"][:, 1:].copy(), seen["qfrc_constraint"][:, :1]
        return np.concatenate(
            (seen["qpos"][:, :1], np.sin(angles), np.cos(angles), seen["qvel"].clip(-10, 10), force.clip(-10, 10)), axis=1
        )

    def healthy(self, seen: Seen, ground: Array | float) -> NDArray[np.bool_]:
        fallen: NDArray[np.bool_] = seen["tip"][:, 2] - ground <= 1
        return ~fallen

    @property
    def terminates(self) -> bool:
        return True

    def reward(self, seen: Seen, action: Array, velocity: Array, healthy: NDArray[np.bool_]) -> Array:
        """With Python's floats: `x**2` of an array is `x * x`, which may differ from a number's in the last bit."""
        rows = zip(seen["tip"].tolist(), seen["qvel"].tolist(), healthy.tolist(), strict=True)
        return np.array([self._reward(x, y, v1, v2, stands) for (x, _, y), (_, v1, v2), stands in rows])

    def _reward(self, x: float, y: float, v1: float, v2: float, stands: bool) -> float:
        distance = 0.01 * x**2 + (y - 2) ** 2
        speed = 1e-3 * v1**2 + 5e-3 * v2**2
        return self.healthy_reward * int(stands) - distance - speed


ROBOTS: dict[str, type[Robot]] = {f"{robot.__name__}-v5": robot for robot in (Ant, HalfCheetah, Hopper, Humanoid, InvertedDoublePendulum,
                                                                              Swimmer, Walker2d)}  # fmt: skip
MAX_EPISODE_STEPS = 1000
"""Of all of them, as gymnasium registers them."""


def unknown_settings(env_id: str, kwargs: Mapping[str, Any]) -> list[str]:
    """The settings of a robot's environment that only gymnasium's own has, by name, and those whose values only it can judge."""
    known = {field.name: str(field.type) for field in fields(ROBOTS[env_id])} | {"max_episode_steps": "steps"}
    return [key for key, value in kwargs.items() if not _fits(known.get(key, ""), value)]


def _fits(kind: str, value: Any) -> bool:
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "Range":
        return isinstance(value, list | tuple) and len(value) == 2 and all(_fits("float", end) for end in value)
    if isinstance(value, bool):
        return False
    if kind == "float":
        return isinstance(value, int | float)
    if kind == "int":
        return isinstance(value, int) and value > 0
    return kind == "steps" and isinstance(value, int) and (value > 0 or value == -1)


def make_robot(env_id: str, kwargs: Mapping[str, Any]) -> tuple[Robot, int | None]:
    """A robot with its settings, none of which are `unknown_settings`, and the steps after which its episodes are truncated."""
    settings: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in kwargs.items()}
    limit: int = settings.pop("max_episode_steps", MAX_EPISODE_STEPS)
    return ROBOTS[env_id](**settings), None if limit == -1 else limit
