"""rlx's batches of MuJoCo robots against gymnasium's environments, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("mujoco")

from rlx.collect import env_array_actions
from rlx.envs.mujoco.batch import MujocoVectorEnv
from rlx.envs.mujoco.robots import ROBOTS, make_robot
from rlx.envs.registry import EnvFactory
from rlx.envs.vector import GymVectorEnv


def native(env_id: str, num_envs: int, *, rescale: bool = True, threads: int = 1, **kwargs: Any) -> MujocoVectorEnv:
    robot, limit = make_robot(env_id, kwargs)
    return MujocoVectorEnv(robot, num_envs, env_id=env_id, max_episode_steps=limit, rescale_actions=rescale, threads=threads)


def assert_same_steps(ours: MujocoVectorEnv, theirs: GymVectorEnv, num_steps: int) -> int:
    """The number of episodes that ended while both took the same steps."""
    rng, to_env = np.random.default_rng(0), env_array_actions(ours.single_action_space)
    shape, ended = (ours.num_envs, *ours.single_action_space.shape), 0  # type: ignore[misc]
    seeds = rng.integers(2**31 - 1, size=ours.num_envs)
    np.testing.assert_array_equal(ours.reset(seed=seeds)[0], theirs.reset(seed=seeds)[0], strict=True)
    for _ in range(num_steps):
        actions = to_env(rng.normal(size=shape).astype(np.float32))
        found, expected = ours.step(actions)[:4], theirs.step(actions)[:4]
        for mine, yours in zip(found, expected, strict=True):
            np.testing.assert_array_equal(mine, yours, strict=True)
        if (ends := expected[2] | expected[3]).any():
            ended, seeds, options = ended + ends.sum(), rng.integers(2**31 - 1, size=ours.num_envs), {"reset_mask": ends}
            np.testing.assert_array_equal(ours.reset(seed=seeds, options=options)[0], theirs.reset(seed=seeds, options=options)[0])
    return ended


@pytest.mark.parametrize("env_id", ROBOTS)
def test_every_number_is_that_of_gymnasium(env_id: str) -> None:
    ours, theirs = native(env_id, 3, max_episode_steps=70), GymVectorEnv(EnvFactory(env_id, {"max_episode_steps": 70}, True), 3)
    assert ours.single_action_space == theirs.single_action_space
    assert ours.single_observation_space == theirs.single_observation_space
    assert assert_same_steps(ours, theirs, 75) >= 3
