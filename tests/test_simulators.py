"""Perfect models against their environments, step by step, and where there is none."""

from __future__ import annotations

import importlib.util
from typing import Any

import gymnasium
import numpy as np
import pytest

from rlx.build import env_spec
from rlx.config.schema import EnvConfig
from rlx.envs.control.simulators import SIMULATORS, simulator_of
from rlx.envs.registry import VectorEnvFactory

needs_mujoco = pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="the extra rlx[mujoco] is not installed")
MUJOCO = ("InvertedPendulum-v5", "HalfCheetah-v5", "Swimmer-v5")
IDS = [pytest.param(name, marks=needs_mujoco) if name in MUJOCO else name for name in SIMULATORS]


def compare(env_id: str, steps: int, **kwargs: Any) -> int:
    """Random steps of an environment and of the simulator in its EnvSpec, from each observation; returns how often it terminated."""
    env, rng = VectorEnvFactory(env_id, kwargs=kwargs)(3), np.random.default_rng(0)
    simulator = env_spec(EnvConfig(id=env_id, kwargs=kwargs), env).simulator
    assert simulator is not None
    space: Any = env.single_action_space
    obs, ends = np.array(env.reset(seed=rng.integers(1000, size=3))[0]), 0
    for _ in range(steps):
        action = rng.uniform(space.low, space.high, size=(3, *space.shape)).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        predicted = simulator(obs.astype(np.float32), action)
        np.testing.assert_allclose(predicted[0], next_obs, rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(predicted[1], reward, rtol=1e-4, atol=1e-4)
        assert np.array_equal(predicted[2], terminated)
        obs, ends = np.array(next_obs), ends + int(terminated.sum())
        if (ended := terminated | truncated).any():
            obs = np.array(env.reset(seed=rng.integers(1000, size=3), options={"reset_mask": ended})[0])
    return ends


@pytest.mark.parametrize("env_id", IDS)
def test_a_simulator_steps_as_its_environment_does(env_id):
    ends = compare(env_id, 60)
    assert (ends > 0) == (env_id in ("rlx/CartPoleContinuous-v0", "InvertedPendulum-v5"))


def test_a_simulator_takes_its_environments_arguments():
    compare("Pendulum-v1", 10, g=3.0)


def test_a_simulator_takes_actions_as_algorithms_see_them():
    env, rescaled = (VectorEnvFactory("Pendulum-v1", rescale_actions=rescale)(1) for rescale in (False, True))
    own, seen = (env_spec(EnvConfig(id="Pendulum-v1"), e).simulator for e in (env, rescaled))
    obs = np.array([[0.8, 0.6, 1.0]])
    np.testing.assert_allclose(own(obs, np.array([[1.5]]))[0], seen(obs, np.array([[0.75]]))[0])


def test_there_is_no_simulator_where_dynamics_may_differ():
    assert simulator_of("Hopper-v5", {}) is None
    assert simulator_of("HalfCheetah-v5", {"frame_skip": 2}) is None
    assert simulator_of("HalfCheetah-v5", {"max_episode_steps": 9}) is not None
    config, env = EnvConfig(id="Pendulum-v1", wrappers=[{"target": "gymnasium.wrappers:ClipReward"}]), gymnasium.make("Pendulum-v1")
    assert env_spec(config, env).simulator is None
