"""CartPole-v1 for a batch of environments in one array: the dynamics of Gymnasium's scalar env, step for step.

Barto, Sutton and Anderson 1983; constants, order of operations and limits are those of gymnasium/envs/classic_control/cartpole.py,
so that a trajectory from the same state under the same actions is equal to the last bit. Only the initial states differ: they
are a hash of the episode's seed, because making a NumPy generator per episode would cost more than the episode's first steps.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from rlx.compiled_code import KernelModule, load, with_arguments
from rlx.envs.control.cartpole_constants import (
    GRAVITY,
    HALF_LENGTH,
    MASS_POLE,
    POLE_MASS_LENGTH,
    THETA_LIMIT,
    TOTAL_MASS,
    X_LIMIT,
)

_KERNELS = KernelModule(
    "rlx.envs.control.cartpole_kernels", (("step", "p"), ("reset", "p")), parts=("rlx.envs.control.cartpole_constants",)
)


def accelerations(theta: NDArray[np.float64], theta_dot: NDArray[np.float64], force: NDArray[np.float64]) -> tuple[Any, Any]:
    """Of the cart and of the pole, whose angle is 0 when it is upright; [B] each."""
    cos, sin = np.cos(theta), np.sin(theta)
    temp = (force + POLE_MASS_LENGTH * np.square(theta_dot) * sin) / TOTAL_MASS
    theta_acc = (GRAVITY * sin - cos * temp) / (HALF_LENGTH * (4.0 / 3.0 - MASS_POLE * np.square(cos) / TOTAL_MASS))
    return temp - POLE_MASS_LENGTH * theta_acc * cos / TOTAL_MASS, theta_acc


def seeded_uniform(seeds: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """Give n numbers in [0, 1) for each seed [E]: splitmix64 (Steele, Lea and Flood 2014); returns [n, E]."""
    with np.errstate(over="ignore"):
        z = seeds.astype(np.uint64) + np.arange(1, n + 1, dtype=np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


class CartPoleVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """B poles. Gymnasium's vector API with autoreset disabled: reset what has ended through `options={"reset_mask": mask}`."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  (the API's own class attribute)

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        # The bounds of the scalar env: twice the limits at which an episode ends, unbounded velocities.
        high = np.array([2 * X_LIMIT, np.inf, 2 * THETA_LIMIT, np.inf], dtype=np.float32)
        self.single_observation_space = gymnasium.spaces.Box(-high, high, dtype=np.float32)
        self.single_action_space = gymnasium.spaces.Discrete(2)
        self._state = np.zeros((4, num_envs))  # x, x velocity, theta, theta velocity
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._theta, self._sin, self._cos = self._state[2], np.zeros(num_envs), np.zeros(num_envs)
        self._actions, self._seeds = np.zeros(num_envs, dtype=np.int64), np.zeros(num_envs, dtype=np.int64)
        self._mask = np.ones(num_envs, dtype=bool)
        obs, terminated, truncated = np.zeros((num_envs, 4), dtype=np.float32), np.zeros(num_envs, bool), np.zeros(num_envs, bool)
        self._first: tuple[Any, dict[str, Any]] = (obs, {})
        self._result: tuple[Any, Any, Any, Any, dict[str, Any]] = (obs, np.ones(num_envs, dtype=np.float32), terminated, truncated, {})
        step, reset = load(_KERNELS)
        self._step = with_arguments(
            step, num_envs, self._state, self._elapsed, self._actions, self._sin, self._cos, obs, terminated, truncated
        )
        self._reset = with_arguments(reset, num_envs, self._state, self._elapsed, self._seeds, self._mask, obs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin episodes where `options["reset_mask"]` (default everywhere); seed is one integer per env.

        The arrays returned here and by `step` are overwritten by the next call.
        """
        self._mask[:] = (options or {}).get("reset_mask", True)
        self._seeds[:] = seed
        self._reset()
        return self._first

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self._actions[:] = actions
        np.sin(self._theta, self._sin)  # by NumPy, whose last bits another library's do not share
        np.cos(self._theta, self._cos)
        self._step()
        return self._result

    def state_dict(self) -> dict[str, Any]:
        return {"state": self._state.T.tolist(), "elapsed": self._elapsed.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state[:] = np.array(state["state"]).T
        self._elapsed[:] = np.array(state["elapsed"], dtype=np.int64)
