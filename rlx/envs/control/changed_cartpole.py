"""CartPole-v1 with other constants than its own, to measure how far a policy depends on them; slower than the kernels of `cartpole.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.envs.control.cartpole import CartPoleVectorEnv
from rlx.envs.control.cartpole_constants import (
    DT,
    FORCE,
    GRAVITY,
    HALF_LENGTH,
    MASS_CART,
    MASS_POLE,
    MAX_STEPS,
    THETA_LIMIT,
    X_LIMIT,
)


class ChangedCartPole(CartPoleVectorEnv):
    """B poles whose constants are multiplied by factors; with factors of 1, the steps are those of CartPole-v1 to the last bit.

    Args:
        num_envs: B.
        gravity: factor of the gravity.
        mass: of the masses of cart and pole.
        length: of the pole's length, whose mass stays the same.
        motor: of the force.
    """

    def __init__(self, num_envs: int, *, gravity: float = 1.0, mass: float = 1.0, length: float = 1.0, motor: float = 1.0) -> None:
        super().__init__(num_envs)
        self._gravity, self._half_length, self._force = gravity * GRAVITY, length * HALF_LENGTH, motor * FORCE
        self._mass_pole, self._total_mass = mass * MASS_POLE, mass * MASS_CART + mass * MASS_POLE

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        x, x_dot, theta, theta_dot = self._state
        sin, cos, moment = np.sin(theta), np.cos(theta), self._mass_pole * self._half_length
        temp = (np.where(actions == 1, self._force, -self._force) + moment * np.square(theta_dot) * sin) / self._total_mass
        denominator = self._half_length * (4.0 / 3.0 - self._mass_pole * np.square(cos) / self._total_mass)
        theta_acc = (self._gravity * sin - cos * temp) / denominator
        x_acc = temp - moment * theta_acc * cos / self._total_mass
        for value, change in ((x, x_dot), (x_dot, x_acc), (theta, theta_dot), (theta_dot, theta_acc)):
            value += DT * change  # in this order: positions move by the old velocities
        self._elapsed += 1
        obs, _, terminated, truncated, _ = self._result
        obs[:] = self._state.T
        terminated[:] = (np.abs(x) > X_LIMIT) | (np.abs(theta) > THETA_LIMIT)
        truncated[:] = self._elapsed >= MAX_STEPS
        return self._result
