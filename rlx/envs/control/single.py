"""One environment of a batch that rlx implements as arrays, as `gymnasium.make` gives it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class SingleEnv(gymnasium.Env[Any, Any]):
    """A batch of one environment, which never truncates: gymnasium's TimeLimit does.

    Args:
        batch: a vector env with autoreset disabled, of one environment.
    """

    def __init__(self, batch: gymnasium.vector.VectorEnv[Any, Any, Any]) -> None:
        self.batch: Any = batch
        self.observation_space, self.action_space = batch.single_observation_space, batch.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        drawn = seed if seed is not None else int(self.np_random.integers(2**31 - 1))
        return self.batch.reset(seed=np.array([drawn]))[0][0].copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, _, info = self.batch.step(np.asarray(action)[None])
        return obs[0].copy(), float(reward[0]), bool(terminated[0]), False, info
