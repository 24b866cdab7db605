"""Environments by the rules of sb3-contrib's invalid-action environments: the right action is shown, and most others are forbidden.

A forbidden action raises, so that a run which ends has taken none.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

ACTIONS: dict[str, gymnasium.Space[Any]] = {
    "discrete": spaces.Discrete(80),
    "multi": spaces.MultiDiscrete([8, 8]),
    "bits": spaces.MultiBinary(8),
}


class Guess(gymnasium.Env[Any, Any]):
    """The reward is 1 for the action that is observed, in each of 100 steps; a quarter of the choices is allowed, and the right one.

    Args:
        actions: which of `ACTIONS`.
        where: the mask is: obs, info or method.
        stuck_in: a step before which nothing is allowed.
    """

    def __init__(self, actions: str = "discrete", where: str = "info", stuck_in: int = -1) -> None:
        self.action_space = ACTIONS[actions]
        self.where, self.stuck_in = where, stuck_in
        self.choices = {"discrete": [80], "multi": [8, 8], "bits": [2] * 8}[actions]
        self.observation_space = self.action_space
        if where == "obs":
            masks = spaces.MultiBinary(sum(self.choices))
            self.observation_space = spaces.Dict({"observation": self.action_space, "action_mask": masks})
        if where == "method":
            self.action_masks = lambda: np.concatenate(self.masks)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._next()

    def step(self, action: Any) -> Any:
        chosen = np.ravel(action).tolist()
        if not all(mask[i] for mask, i in zip(self.masks, chosen, strict=True)):
            raise RuntimeError(f"action {chosen} is forbidden")
        reward = float(chosen == self.right)
        self.t += 1
        return *self._next()[:1], reward, False, self.t == 100, self.info

    def _next(self) -> Any:
        self.right = [int(self.np_random.integers(n)) for n in self.choices]
        self.masks = []
        for n, right in zip(self.choices, self.right, strict=True):
            mask = np.zeros(n, np.int8)
            mask[self.np_random.choice(n, n // 4, replace=False)] = 1
            mask[right] = 1
            self.masks.append(mask * (self.t != self.stuck_in))
        mask = np.concatenate(self.masks)
        obs = self.right[0] if isinstance(self.action_space, spaces.Discrete) else np.array(self.right, self.action_space.dtype)
        self.info = {"action_mask": mask} if self.where == "info" else {}
        return {"observation": obs, "action_mask": mask} if self.where == "obs" else obs, self.info


def register() -> None:
    """Name them Guess-ACTIONS-WHERE-v0."""
    for actions in ACTIONS:
        for where in ("obs", "info", "method"):
            gymnasium.register(f"Guess-{actions}-{where}-v0", entry_point=Guess, kwargs={"actions": actions, "where": where})
    gymnasium.register("Stuck-v0", entry_point=Guess, kwargs={"stuck_in": 7})
