"""A small game on images: a ball falls, and a paddle in the last row catches it for +1, or misses it for -1."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Image = NDArray[np.uint8]


class Catch(gymnasium.Env[Image, int]):
    """One ball after another; the paddle stays, or moves a column to the left or to the right.

    Args:
        size: rows and columns of pixels.
        balls: until the episode terminates.
        frame_stack: frames of an observation, before the first one zeros; an observation of 1 has no axis of frames.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  (the API's own class attribute)

    def __init__(self, size: int = 10, *, balls: int = 1, frame_stack: int = 1, render_mode: str | None = None) -> None:
        self.size, self.balls, self.frame_stack, self.render_mode = size, balls, frame_stack, render_mode
        shape = (frame_stack, size, size) if frame_stack > 1 else (size, size)
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.action_space = spaces.Discrete(3)
        self._frames = np.zeros((frame_stack, size, size), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Image, dict[str, Any]]:
        super().reset(seed=seed)
        self._left, self._paddle = self.balls, self.size // 2
        self._frames[:] = 0
        self._drop()
        return self._see(), {}

    def _drop(self) -> None:
        self._row, self._column = 0, int(self.np_random.integers(self.size))

    def _see(self) -> Image:
        self._frames[:-1] = self._frames[1:]
        self._frames[-1] = 0
        self._frames[-1, self._row, self._column] = 255
        self._frames[-1, -1, self._paddle] = 128
        return (self._frames if self.frame_stack > 1 else self._frames[0]).copy()

    def step(self, action: int) -> tuple[Image, float, bool, bool, dict[str, Any]]:
        self._paddle = min(max(self._paddle + int(action) - 1, 0), self.size - 1)
        self._row += 1
        reward = 0.0
        if self._row == self.size - 1:
            reward = 1.0 if self._paddle == self._column else -1.0
            self._left -= 1
            if self._left:
                self._drop()
        return self._see(), reward, self._left == 0, False, {}

    def render(self) -> Image:
        return np.repeat(self._frames[-1][:, :, None], 3, axis=2)
