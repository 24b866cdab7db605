"""Walker2d, Ant and Humanoid on courses with obstacles: hurdles, gaps, platforms, stairs, rumble, mixed and slalom.

After Heess et al. 2017, https://arxiv.org/abs/1707.02286: a new course in each episode, drawn from the episode's seed (`courses.py`), and
heights of the ground ahead as a part of the observation beside the body's own. On flat ground (`hardest=0`) a body observes, earns and
falls as in gymnasium's environment, because all heights are measured from the level of the ground under its torso.

With `reward="heess"` a step is worth, for the velocity v of the body, the height h of the torso above the level, the part n of the torso's
own upward axis that points upwards, the sideways position y and the action a:

    walker    10 v_x + 0.5 n - |h - 1.2| - 10 [h < 0.3] - 0.1 |a|^2
    ant       v_x + 0.05 n - 0.01 |a|^2
    humanoid  min(v_x, 4) - 0.005 (v_x^2 + v_y^2) - 0.05 y^2 - 0.02 |a|^2 + 0.02

Deviation: these are the formulas as they are usually quoted, with weights that were not checked against the paper's appendix. In all of
them speed along the course outweighs the price of torques in actions of [-1, 1]. Episodes end where those of gymnasium's rewards do.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlx.envs.mujoco.batch import MujocoVectorEnv
from rlx.envs.mujoco.course_model import CAMERA, course_model
from rlx.envs.mujoco.course_settings import COURSES, course_settings
from rlx.envs.mujoco.courses import TRACK, Course
from rlx.envs.mujoco.robots import Ant, Humanoid, Robot, Walker2d
from rlx.spaces import ScaledBox
from rlx.tree_ops import Tree, map_tree, pick

Array = NDArray[Any]

_PER_BODY = {"cfrc_ext": (6, 0), "cinert": (10, 1), "cvel": (6, 1)}
"""Of what robots read of every body in turn: the numbers for each, and the bodies that are left out at the front."""


class _AmongBoxes(Robot):
    """A robot that reads nothing of the boxes, which are the last bodies of its model."""

    def views(self, model: Any, data: Any) -> dict[str, Array]:
        views, num_bodies = super().views(model, data), model.nbody - model.nmocap
        sizes = {name: width * (num_bodies - without) for name, (width, without) in _PER_BODY.items() if name in views}
        return views | {name: views[name][:size] for name, size in sizes.items()}


class _Walker(_AmongBoxes, Walker2d):
    pass


class _Ant(_AmongBoxes, Ant):
    pass


class _Humanoid(_AmongBoxes, Humanoid):
    pass


BODIES: dict[str, Robot] = {
    "walker": _Walker(),
    "ant": _Ant(healthy_z_range=(0.2, 1.5)),  # 1.0 on the flat: it may come down from a platform
    "humanoid": _Humanoid(),
}
HEIGHT_RANGE = 0.4
"""Metres above the level that are observed as 1; heights are clipped to [-1, 1]."""
AHEAD = np.concatenate([np.arange(-5, 13) * 0.1, 1.2 + np.arange(1, 11) * 0.18])
"""[28] where a body that moves in a plane sees heights, in metres from its torso along the course: from -0.5 to 3.0."""
GRID_AHEAD, GRID_ACROSS = np.arange(-2, 16) * 0.2, np.arange(-2, 3) * 0.5
"""[18] and [5] the same for other bodies, along the course and across it. No box is shorter than the distance of two points."""


class CourseVectorEnv(MujocoVectorEnv):
    """B bodies, each on a course of its own.

    An observation is a dictionary of `proprioception`, which is what gymnasium's environment observes with the torso's height above the
    level, and `terrain`, the heights ahead above that level; without sight it is the first alone.

    Args:
        env_id: a key of `COURSES`.
        num_envs: B.
        rescale_actions, threads: as of `MujocoVectorEnv`.
        settings: see `CourseSettings`.
    """

    def __init__(self, env_id: str, num_envs: int, *, rescale_actions: bool = False, threads: int = 1, **settings: Any) -> None:
        self.settings = course_settings(env_id, settings)
        self.course = Course(COURSES[env_id], self.settings)
        self._planar = self.settings.body == "walker"
        num_pieces, boxes = self.course.kind.num_pieces, len(self.course.kind.boxes)
        self._next = np.full(num_envs, num_pieces)  # [B] number of the piece that comes next
        self._front = np.zeros(num_envs)
        self._pieces = np.zeros((num_envs, num_pieces, 4 + 3 * boxes))  # piece p of a course is at p % num_pieces
        self._near, self._far, self._level, self._passed = np.moveaxis(self._pieces[:, :, :4], 2, 0)  # [B, P], views
        self._centre = self._pieces[:, :, 4:].reshape(num_envs, num_pieces, boxes, 3, copy=False)
        self._centre[...] = -10.0
        super().__init__(
            BODIES[self.settings.body], num_envs, env_id=env_id, max_episode_steps=self.settings.max_episode_steps,
            rescale_actions=rescale_actions, threads=threads,
        )  # fmt: skip
        self._mocap_pos = [data.mocap_pos.reshape(num_pieces, boxes, 3) for data in self._data]

    def _load_model(self) -> Any:
        return copy.copy(course_model(self.robot.xml, COURSES[self.env_id], self.settings.body))  # a batch may change its own

    def _observation_space(self) -> gymnasium.Space[Any]:
        if not self.settings.sight:
            return super()._observation_space()
        body, heights = self._obs["proprioception"], self._obs["terrain"]
        return spaces.Dict(
            proprioception=spaces.Box(-np.inf, np.inf, body.shape[1:], np.float64),
            terrain=ScaledBox(-1.0, 1.0, heights.shape[1:], np.float32),
        )

    # The course.

    def _begin_episode(self, i: int, rng: np.random.Generator) -> None:
        super()._begin_episode(i, rng)
        self._next[i] = 0
        self._lay(i, self.course.kind.num_pieces, self.course.kind.start)

    def _lay(self, i: int, count: int, front: float) -> None:
        """Put the pieces that come next at x = front and on, in the place of the ones that lie furthest behind."""
        first, places = int(self._next[i]), self._pieces[i]
        pieces = self.course.pieces(int(self._seeds[i]), first, count, front)
        for number, (*along, _, centre) in enumerate(pieces, first):
            places[number % len(places)] = (*along, *centre)
        self._next[i], self._front[i] = first + count, pieces[-1].front
        self._mocap_pos[i][...] = self._centre[i]

    def step(self, actions: Array) -> tuple[Tree, Array, Array, Array, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(actions)
        if not self._planar:
            terminated |= np.abs(self._seen["qpos"][:, 1]) > TRACK
        behind = self._far < (self._seen["qpos"][:, 0] - self.course.kind.behind)[:, None]
        if behind.any():  # further than a body sees, and so are the places that they are moved to
            for i, count in enumerate(behind.sum(1).tolist()):
                if count:
                    self._lay(i, count, float(self._front[i]))
        return obs, reward, terminated, truncated, info

    def level(self) -> Array:
        """[B] height of what a body stands on under its torso."""
        if not self._level.any():
            return np.zeros(self.num_envs)
        x = self._seen["qpos"][:, :1]
        last = np.where(self._near <= x, self._near, -np.inf).argmax(1)
        rows = np.arange(self.num_envs)
        begun = self._near[rows, last] <= x[:, 0]
        on_it = begun if self.course.kind.lowered else begun & (x[:, 0] < self._far[rows, last])
        return np.where(on_it, self._level[rows, last], 0.0)

    def heights(self) -> Array:
        """[B, S] the ground at the points where it is seen, from -1 to 1 for `HEIGHT_RANGE` below and above the level.

        Beyond the edge of the track it is as high as can be.
        """
        x, half = self._seen["qpos"][:, :1], self.course.half
        centre = self._centre.reshape(self.num_envs, -1, 3)
        top = centre[:, :, 2] + half[:, 2]
        covers = np.abs((x + (AHEAD if self._planar else GRID_AHEAD))[:, :, None] - centre[:, None, :, 0]) <= half[:, 0]
        if self._planar:
            height = np.where(covers, top[:, None], self.course.floor).max(2)  # [B, S, K] to [B, S]
        else:
            y = self._seen["qpos"][:, 1:2] + GRID_ACROSS
            across = np.abs(y[:, :, None] - centre[:, None, :, 1]) <= half[:, 1]
            height = np.where(covers[:, :, None] & across[:, None], top[:, None, None], self.course.floor).max(3)
            height = np.where(np.abs(y)[:, None] <= TRACK, height, np.inf).reshape(self.num_envs, -1)
        height = np.maximum(height, self.course.floor)
        seen: Array = ((height - self.level()[:, None]) / HEIGHT_RANGE).clip(-1.0, 1.0).astype(np.float32)
        return seen

    def episode_measures(self) -> dict[str, Array]:
        """{name: [B]} metres from the start, and obstacles that are behind."""
        x = self._seen["qpos"][:, 0]
        passed = self._next - self.course.kind.num_pieces + (self._passed <= x[:, None]).sum(1)
        return {"distance": x.copy(), "obstacles_passed": self.course.kind.obstacles(passed).astype(np.float64)}

    def draw(self, i: int, renderer: Any) -> NDArray[np.uint8]:
        """A picture of environment i, by a `mujoco.Renderer` of its model."""
        renderer.update_scene(self._data[i], camera=CAMERA)
        picture: NDArray[np.uint8] = renderer.render()
        return picture

    # The body.

    def _ground(self) -> Array | float:
        return self.level()

    def _observe(self) -> Tree:
        seen = {**self._seen, "qpos": self._seen["qpos"].copy()}
        seen["qpos"][:, 1 if self._planar else 2] -= self.level()
        body = self.robot.observe(seen)
        return {"proprioception": body, "terrain": self.heights()} if self.settings.sight else body

    def _reward(self, action: Array, velocity: Array, healthy: NDArray[np.bool_]) -> Array:
        if self.settings.reward == "gymnasium":
            return super()._reward(action, velocity, healthy)
        qpos, effort = self._seen["qpos"], np.square(action).sum(1)
        if self._planar:
            height = qpos[:, 1] - self.level()
            upright = 0.5 * np.cos(qpos[:, 2]) - np.abs(height - 1.2) - 10.0 * (height < 0.3)
            return np.asarray(10.0 * velocity[:, 0] + upright - 0.1 * effort)
        if self.settings.body == "ant":
            up = 1.0 - 2.0 * np.square(qpos[:, 4:6]).sum(1)  # of the quaternion w, x, y, z
            return np.asarray(velocity[:, 0] + 0.05 * up - 0.01 * effort)
        strays = 0.005 * np.square(velocity).sum(1) + 0.05 * np.square(qpos[:, 1])
        return np.asarray(np.minimum(velocity[:, 0], 4.0) - strays - 0.02 * effort + 0.02)

    # What the future depends on.

    def state_dict(self) -> dict[str, Any]:
        names = ("next", "front", "pieces")
        return super().state_dict() | {"course": {name: getattr(self, f"_{name}").copy() for name in names}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name, saved in state["course"].items():
            getattr(self, f"_{name}")[...] = np.asarray(saved)


class CourseEnv(gymnasium.Env[Any, Any]):
    """One body on a course, for `gymnasium.make`, which truncates its episodes.

    Args:
        course: a key of `COURSES`.
        render_mode: rgb_array or None.
        settings: see `CourseSettings`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}  # noqa: RUF012  (the API's own class attribute)

    def __init__(self, course: str, render_mode: str | None = None, **settings: Any) -> None:
        self.batch = CourseVectorEnv(course, 1, **settings)
        self.observation_space, self.action_space = self.batch.single_observation_space, self.batch.single_action_space
        self.model, self.render_mode = self.batch.model, render_mode
        self.metadata = {**self.metadata, "render_fps": round(1.0 / (self.model.opt.timestep * self.batch.robot.frame_skip))}
        self._renderer: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        drawn = seed if seed is not None else int(self.np_random.integers(2**31 - 1))
        return self._one(self.batch.reset(seed=np.array([drawn]))[0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, _ = self.batch.step(np.asarray(action)[None])
        measures = {name: float(values[0]) for name, values in self.batch.episode_measures().items()}
        return self._one(obs), float(reward[0]), bool(terminated[0]), bool(truncated[0]), measures

    def _one(self, obs: Tree) -> Tree:
        return map_tree(np.copy, pick(obs, 0))

    def render(self) -> Any:
        if self.render_mode != "rgb_array":
            return None
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self.model, height=480, width=640)
        return self.batch.draw(0, self._renderer)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
