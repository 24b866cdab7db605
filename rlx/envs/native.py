"""rlx's own batches of environments by id, and which environments can be restored by replay."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rlx.envs.control import poles, positions, recall, spaceship
from rlx.envs.control.cartpole import CartPoleVectorEnv
from rlx.envs.control.poles import TASKS, PoleVectorEnv
from rlx.envs.control.positions import POSITIONS, CartPolePositionsVectorEnv
from rlx.envs.control.recall import RecallVectorEnv
from rlx.envs.control.recall_settings import RECALL
from rlx.envs.control.spaceship import SpaceshipVectorEnv
from rlx.envs.control.spaceship_settings import SPACESHIP
from rlx.envs.families import package_missing
from rlx.envs.grids import grid_settings
from rlx.envs.mujoco import course_settings
from rlx.envs.mujoco.course_settings import COURSES
from rlx.envs.mujoco.robots import ROBOTS, make_robot

if TYPE_CHECKING:
    from rlx.envs.grids.splits import Split
    from rlx.types import VectorEnv  # it imports torch, which worker processes do not need

poles.register()
positions.register()
recall.register()
spaceship.register()
grid_settings.register()
course_settings.register()


def _world(env_id: str, num_envs: int, split: Split = "all", **kwargs: Any) -> VectorEnv:
    from rlx.envs.grids.grid_env import make_grid  # compiles kernels

    return make_grid(grid_settings.settings_of(env_id, kwargs), num_envs, split=split)


def _robots(env_id: str, num_envs: int, *, rescale_actions: bool = False, threads: int = 1, **kwargs: Any) -> VectorEnv:
    try:
        from rlx.envs.mujoco.batch import MujocoVectorEnv
    except ImportError as error:
        raise package_missing(env_id, error) from error
    robot, limit = make_robot(env_id, kwargs)
    return MujocoVectorEnv(robot, num_envs, env_id=env_id, max_episode_steps=limit, rescale_actions=rescale_actions, threads=threads)


def _course(env_id: str, num_envs: int, **arguments: Any) -> VectorEnv:
    try:
        from rlx.envs.mujoco.course_env import CourseVectorEnv
    except ImportError as error:
        raise package_missing(env_id, error) from error
    return CourseVectorEnv(env_id, num_envs, **arguments)


def split_of(env_id: str, split: Split) -> dict[str, Any]:
    """The constructor argument that selects a world's levels."""
    return {"split": split} if env_id in grid_settings.WORLDS else {}


NATIVE: dict[str, Callable[..., VectorEnv]] = {
    "CartPole-v1": CartPoleVectorEnv,
    POSITIONS: CartPolePositionsVectorEnv,
    RECALL: RecallVectorEnv,
    SPACESHIP: SpaceshipVectorEnv,
    **{env_id: functools.partial(PoleVectorEnv, task) for env_id, task in TASKS.items()},
    **{env_id: functools.partial(_world, env_id) for env_id in grid_settings.WORLDS},
    **{env_id: functools.partial(_robots, env_id) for env_id in ROBOTS},
    **{env_id: functools.partial(_course, env_id) for env_id in COURSES},
}
"""Environments that rlx implements itself, vectorised in arrays: constructors from the number of envs, and the settings of those in
`HAVE_SETTINGS`."""

IN_THREADS = {*ROBOTS, *COURSES}
"""Of `NATIVE`, those that step in threads and know how to rescale actions: batches of MuJoCo's simulations."""

HAVE_SETTINGS = {RECALL, SPACESHIP, *grid_settings.WORLDS, *IN_THREADS}
"""Of `NATIVE`, those that take arguments."""

REPLAYABLE = {
    *("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"),
    *("LunarLander-v3", "BipedalWalkerHardcore-v3"),
    *(POSITIONS, RECALL, SPACESHIP),
    *TASKS,
    *ROBOTS,
    *COURSES,
    *grid_settings.WORLDS,
}
"""Compared bit by bit over hundreds of steps after a replay; others are probed when a run starts."""

REBUILT = {"BipedalWalker-v3"}
"""Environments that are built anew at each reset: their Box2D world outlives the episode, so an episode would depend on the last one."""
