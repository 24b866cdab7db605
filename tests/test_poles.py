"""Rendering of the poles; their dynamics and rules are tested in `test_rules.py`."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import rlx.envs.registry  # noqa: F401  (registers the poles)
from rlx.envs.control.poles import TASKS, draw

POLE, CART = np.array([202, 152, 101]), np.array([0, 0, 0])


def pixels(frame: np.ndarray, colour: np.ndarray) -> tuple[float, float]:
    """Mean position of the pixels of a colour, in pixels to the right of the middle and above it."""
    rows, columns = (frame == colour).all(-1).nonzero()
    return columns.mean() + 0.5 - frame.shape[1] / 2, frame.shape[0] / 2 - rows.mean() - 0.5


@pytest.mark.parametrize(
    ("theta", "right", "up"), [(0.0, 0, 1), (np.pi / 2, 1, 0), (-np.pi / 2, -1, 0), (np.pi, 0, -1), (0.6, np.sin(0.6), np.cos(0.6))]
)
def test_the_pole_points_where_its_angle_says(theta: float, right: float, up: float) -> None:
    x, y = pixels(draw(0.5, theta), POLE)
    assert np.hypot(x - 50, y) == pytest.approx(50, abs=5), "its middle is half a metre from the axle"
    assert np.arctan2(x - 50, y) == pytest.approx(np.arctan2(right, up), abs=0.03)


@pytest.mark.parametrize(("x", "shown"), [(0.0, 0.0), (-1.0, -100.0), (1.8, 180.0), (7.0, 180.0), (-30.0, -180.0)])
def test_the_view_follows_a_cart_that_would_leave_it(x: float, shown: float) -> None:
    assert pixels(draw(x, 0.0)[140:160], CART)[0] == pytest.approx(shown, abs=1)


@pytest.mark.parametrize(("env_id", "fps"), [("rlx/CartPoleContinuous-v0", 50), ("rlx/CartPoleSwingUp-v0", 25)])
def test_an_environment_draws_its_state_in_real_time(env_id: str, fps: int) -> None:
    env = gymnasium.make(env_id, render_mode="rgb_array")
    assert env.metadata["render_fps"] == fps
    env.reset(seed=0)
    before = env.render()
    for _ in range(5):
        env.step(np.ones(1, np.float32))
    assert isinstance(before, np.ndarray)
    assert (before.shape, before.dtype) == ((300, 600, 3), np.uint8)
    assert pixels(env.render(), CART)[0] > pixels(before, CART)[0] + 1.0, "pushed to the right"  # type: ignore[arg-type]


@pytest.mark.parametrize("env_id", TASKS)
def test_an_environment_draws_nothing_unless_it_is_asked_to(env_id: str) -> None:
    env = gymnasium.make(env_id, disable_env_checker=True).unwrapped
    env.reset(seed=0)
    assert env.render() is None
