"""python tests/bench.py terrain: what courses cost beside flat ground, in CPU time, interleaved."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np


def _seconds(window: Callable[[], None]) -> float:
    begin = time.process_time()
    window()
    return time.process_time() - begin


def terrain() -> None:
    """Physics of Walker2d with 16 boxes over physics without, whole steps of every course, and what a new course adds to a reset."""
    import mujoco

    from rlx.envs.mujoco.batch import MujocoVectorEnv
    from rlx.envs.mujoco.course_env import CourseVectorEnv
    from rlx.envs.mujoco.course_settings import COURSES
    from rlx.envs.mujoco.robots import make_robot

    num_envs, seeds = 16, np.arange(16)
    robot, limit = make_robot("Walker2d-v5", {})
    flat = MujocoVectorEnv(robot, num_envs, env_id="Walker2d-v5", max_episode_steps=limit, rescale_actions=True)
    courses = {kind: CourseVectorEnv(env_id, num_envs, rescale_actions=True) for env_id, kind in COURSES.items() if kind != "slalom"}
    actions = np.random.default_rng(0).uniform(-0.1, 0.1, (60, num_envs, 6)).astype(np.float32)

    def stepping(env: MujocoVectorEnv) -> Callable[[], None]:
        def window() -> None:
            env.reset(seed=seeds)
            for action in actions:
                env.step(action)

        return window

    def physics(env: MujocoVectorEnv) -> Callable[[], None]:
        def window() -> None:
            env.reset(seed=seeds)
            for data in env._data:
                mujoco.mj_step(env.model, data, 4 * len(actions))

        return window

    arms = {"flat": flat, **courses}
    rounds = [{name: (_seconds(stepping(env)), _seconds(physics(env))) for name, env in arms.items()} for _ in range(7)]
    for name, env in courses.items():
        whole, alone = (statistics.median(r[name][i] / r["flat"][i] for r in rounds) for i in (0, 1))
        print(f"{name}: {env.model.nmocap} boxes, physics {alone:.2f} of Walker2d-v5's, whole steps {whole:.2f}", flush=True)

    def resetting(env: MujocoVectorEnv) -> Callable[[], None]:
        return lambda: [env.reset(seed=seeds) for _ in range(20)] and None

    resets = [{name: _seconds(resetting(env)) for name, env in arms.items()} for _ in range(7)]
    for name in courses:
        more = statistics.median(r[name] - r["flat"] for r in resets) / (20 * num_envs)
        print(f"{name}: a new course takes {1e6 * more:.0f} us above a reset of Walker2d-v5", flush=True)
