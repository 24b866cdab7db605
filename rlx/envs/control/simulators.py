"""Environments as perfect models: the step from any observation, where observations determine the state.

The state is computed from the observation, so that a step equals the environment's to the precision of float32 observations. HalfCheetah
and Swimmer do not observe where they are, which their dynamics and rewards do not depend on. `tests/test_simulators.py` compares each with
its environment.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rlx.envs.control.cartpole_constants import FORCE
from rlx.envs.control.poles import BALANCE, SWING_UP, Task
from rlx.envs.control.reward_functions import RULES

if TYPE_CHECKING:
    from rlx.types import Simulator  # which imports torch

Array = NDArray[Any]


def _pole(task: Task, state_of: Callable[[Array], Array]) -> Simulator:
    def step(obs: Array, action: Array) -> tuple[Array, Array, Array]:
        state, force = state_of(obs), action[:, 0].astype(np.float64).clip(-1.0, 1.0)
        task.move(state, FORCE * force)
        return task.observe(state), task.reward(state, force), task.terminated(state)

    return step


def _observed(obs: Array) -> Array:
    return obs.T.astype(np.float64)


def _from_angle(obs: Array) -> Array:
    x, x_dot, cos, sin, theta_dot = obs.T.astype(np.float64)
    return np.stack([x, x_dot, np.arctan2(sin, cos), theta_dot])


def _pendulum(g: float = 10.0) -> Simulator:
    """Pendulum-v1: gymnasium/envs/classic_control/pendulum.py, whose mass and length are 1."""

    def step(obs: Array, action: Array) -> tuple[Array, Array, Array]:
        cos, sin, speed = obs.T.astype(np.float64)
        theta, torque = np.arctan2(sin, cos), action[:, 0].astype(np.float64).clip(-2.0, 2.0)
        cost = np.square(theta) + 0.1 * np.square(speed) + 0.001 * np.square(torque)
        speed = (speed + (1.5 * g * np.sin(theta) + 3.0 * torque) * 0.05).clip(-8.0, 8.0)
        theta = theta + 0.05 * speed
        return np.stack([np.cos(theta), np.sin(theta), speed], axis=1), -cost, np.zeros(len(obs), dtype=bool)

    return step


def _mujoco(env_id: str, hidden: int, **kwargs: Any) -> Simulator:
    """An environment of MuJoCo that observes its positions, but for the first `hidden`, and its velocities. One step after another."""
    env: Any = None

    def step(obs: Array, action: Array) -> tuple[Array, Array, Array]:
        nonlocal env
        env = gymnasium.make(env_id, **kwargs).unwrapped if env is None else env
        num_positions, seen = env.model.nq, obs.astype(np.float64)
        next_obs, reward, terminated = np.empty_like(seen), np.empty(len(obs)), np.empty(len(obs), dtype=bool)
        for row, (values, act) in enumerate(zip(seen, action, strict=True)):
            split = num_positions - hidden
            env.set_state(np.concatenate([np.zeros(hidden), values[:split]]), values[split:])
            next_obs[row], reward[row], terminated[row] = env.step(act)[:3]
        return next_obs, reward, terminated

    return step


SIMULATORS: dict[str, Callable[..., Simulator]] = {
    "rlx/CartPoleContinuous-v0": functools.partial(_pole, BALANCE, _observed),
    "rlx/CartPoleSwingUp-v0": functools.partial(_pole, SWING_UP, _from_angle),
    "Pendulum-v1": _pendulum,
    "InvertedPendulum-v5": functools.partial(_mujoco, "InvertedPendulum-v5", 0),
    "HalfCheetah-v5": functools.partial(_mujoco, "HalfCheetah-v5", 1),
    "Swimmer-v5": functools.partial(_mujoco, "Swimmer-v5", 2),
}


def simulator_of(env_id: str, kwargs: Mapping[str, Any]) -> Simulator | None:
    """The perfect model of an environment under these constructor arguments; None if there is none."""
    name = env_id.rpartition(":")[2]
    given = {key: value for key, value in kwargs.items() if key not in ("max_episode_steps", "reset_noise_scale")}
    if name not in SIMULATORS or given.keys() - RULES[name].harmless:
        return None
    return SIMULATORS[name](**given)
