"""A test of memory for a batch of environments in one array: name the first symbol of an episode at every step.

The rules are those of RepeatFirst in POPGym (Morad et al. 2023, https://arxiv.org/abs/2303.01859): each observation shows a random
symbol, the first one is marked, and each action names a symbol. It earns 1 / horizon if that is the episode's first symbol, else
-1 / horizon, so that the greatest return is 1. The later symbols only distract. A policy without memory is right at the first step and
guesses afterwards; `RecallSettings.return_without_memory` is its expected return, -0.47 by default.

Deviation: symbols are independent, where POPGym deals a deck of 52 cards, of which a card that was seen is less likely to come again.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from rlx.envs.control.cartpole import seeded_uniform
from rlx.envs.control.recall_settings import RECALL, recall_settings
from rlx.envs.control.single import SingleEnv

Array = NDArray[Any]


class RecallVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """B episodes. Gymnasium's vector API with autoreset disabled: reset what has ended through `options={"reset_mask": mask}`.

    An observation is one-hot [1 + num_symbols]: whether this is the first step, and the symbol that is shown.

    Args:
        num_envs: B.
        settings: fields of `RecallSettings`.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  (the API's own class attribute)

    def __init__(self, num_envs: int, **settings: Any) -> None:
        self.num_envs, self.settings = num_envs, recall_settings(settings)
        self.single_observation_space = gymnasium.spaces.Box(0.0, 1.0, (1 + self.settings.num_symbols,), np.float32)
        self.single_action_space = gymnasium.spaces.Discrete(self.settings.num_symbols)
        self._seeds = np.zeros(num_envs, dtype=np.int64)
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._rows = np.arange(num_envs)
        self._symbols = self._symbols_of(self._seeds)

    def _symbols_of(self, seeds: NDArray[np.int64]) -> NDArray[np.int64]:
        """The symbols [1 + horizon, E] of the episodes with these seeds [E]; the last is in the observation after the last step."""
        uniform = seeded_uniform(seeds, 1 + self.settings.horizon)
        return (uniform * self.settings.num_symbols).astype(np.int64)

    def _observe(self) -> NDArray[np.float32]:
        obs = np.zeros((self.num_envs, 1 + self.settings.num_symbols), dtype=np.float32)
        obs[:, 0] = self._elapsed == 0
        obs[self._rows, 1 + self._symbols[self._elapsed, self._rows]] = 1.0
        return obs

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin episodes where `options["reset_mask"]` (default everywhere); seed is one integer per env."""
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        self._seeds[mask] = np.asarray(seed, dtype=np.int64)[mask]
        self._symbols[:, mask] = self._symbols_of(self._seeds[mask])
        self._elapsed[mask] = 0
        return self._observe(), {}

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        unit = np.float32(1.0 / self.settings.horizon)
        reward = np.where(actions == self._symbols[0], unit, -unit)
        self._elapsed += 1
        terminated = self._elapsed >= self.settings.horizon
        return self._observe(), reward, terminated, np.zeros(self.num_envs, dtype=bool), {}

    def state_dict(self) -> dict[str, Any]:
        return {"seeds": self._seeds.tolist(), "elapsed": self._elapsed.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seeds = np.array(state["seeds"], dtype=np.int64)
        self._elapsed = np.array(state["elapsed"], dtype=np.int64)
        self._symbols = self._symbols_of(self._seeds)


class RecallEnv(SingleEnv):
    """One episode at a time, for `gymnasium.make`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(RecallVectorEnv(1, **settings))


def register() -> None:
    """Register the task with gymnasium, so that `gymnasium.make` finds it."""
    if RECALL not in gymnasium.registry:
        gymnasium.register(RECALL, entry_point=RecallEnv)
