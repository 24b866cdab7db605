"""CartPole-v1 without velocities, a test of memory: the observation is the cart's position and the pole's angle."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rlx.envs.control.cartpole import CartPoleVectorEnv
from rlx.envs.control.cartpole_constants import DT, MAX_STEPS, THETA_LIMIT, X_LIMIT
from rlx.envs.control.poles import draw
from rlx.envs.control.single import SingleEnv

POSITIONS = "rlx/CartPolePositions-v1"
"""Its id."""


class CartPolePositionsVectorEnv(CartPoleVectorEnv):
    """B poles, of which x and theta are observed. What `reset` and `step` return is overwritten by the next call."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        high = np.array([2 * X_LIMIT, 2 * THETA_LIMIT], dtype=np.float32)
        self.single_observation_space = gymnasium.spaces.Box(-high, high, dtype=np.float32)
        self._positions = np.zeros((num_envs, 2), dtype=np.float32)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        obs, info = super().reset(seed=seed, options=options)
        self._positions[:] = obs[:, ::2]
        return self._positions, info

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        obs, *rest = super().step(actions)
        self._positions[:] = obs[:, ::2]
        return self._positions, *rest


class CartPolePositionsEnv(SingleEnv):
    """One pole, for `gymnasium.make`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1.0 / DT)}  # noqa: RUF012  (the API's own class attribute)

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(CartPolePositionsVectorEnv(1))
        self.render_mode = render_mode

    def render(self) -> Any:
        ((x, _, theta, _),) = self.batch.state_dict()["state"]
        return draw(x, theta) if self.render_mode == "rgb_array" else None


def register() -> None:
    """Register it with gymnasium, so that `gymnasium.make` finds it."""
    if POSITIONS not in gymnasium.registry:
        gymnasium.register(POSITIONS, entry_point=CartPolePositionsEnv, max_episode_steps=MAX_STEPS)  # type: ignore[arg-type]
