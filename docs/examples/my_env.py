"""Walk to the bright square: an image and a vector as observation, an action of two parts, and a mask. `rlx train env=my_env:Squares`."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SIDE, STEPS = 6, 20
MOVES = np.array([[0, 0], [0, 1], [1, 0], [0, -1], [-1, 0]])


class Squares(gymnasium.Env[Any, Any]):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Dict(
            {"image": spaces.Box(0, 255, (6 * SIDE, 6 * SIDE, 3), np.uint8), "time": spaces.Box(0.0, 1.0, (1,), np.float32)}
        )
        self.action_space = spaces.MultiDiscrete([len(MOVES), 2])  # where to go, and whether to stop here

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.goal = self.np_random.integers(SIDE, size=(2, 2))
        self.elapsed = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position = self.position + MOVES[action[0]]
        self.elapsed += 1
        stops = bool(action[1])
        return self.observe(), float(stops and (self.position == self.goal).all()), stops, self.elapsed >= STEPS, {}

    def observe(self) -> dict[str, Any]:
        cells = np.zeros((SIDE, SIDE, 3), np.uint8)
        cells[tuple(self.goal)] += np.array([255, 255, 0], np.uint8)
        cells[tuple(self.position)] += np.array([0, 0, 255], np.uint8)
        return {"image": cells.repeat(6, 0).repeat(6, 1), "time": np.array([self.elapsed / STEPS], np.float32)}

    def action_masks(self) -> np.ndarray:
        """Choices of both parts, one after the other: no step leaves the board."""
        after = self.position + MOVES
        return np.concatenate([((after >= 0) & (after < SIDE)).all(1), [True, True]])

    def render(self) -> Any:
        return self.observe()["image"] if self.render_mode == "rgb_array" else None
