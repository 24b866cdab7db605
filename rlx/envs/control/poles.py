"""Two poles on carts with a continuous force, for a batch of environments in one array: balancing and swinging up.

Under an action in [-1, 1] the force is 10 N times it; the accelerations are those of CartPole-v1 (`cartpole.py`). Both earn at most 1 a
step for 200 steps, so that 200 is the bound and 180 counts as solved:

- `rlx/CartPoleContinuous-v0`: CartPole-v1 with a continuous action, cut at 200 steps; the `cartpole_continuous` of mbrl-lib. It begins
  upright, earns 1 a step, and terminates where CartPole does. Under actions of -1 and 1 it is CartPole-v1 to the last bit.
- `rlx/CartPoleSwingUp-v0`: the cartpole of PETS (Chua et al. 2018, https://arxiv.org/abs/1805.12114) with these dynamics instead of
  MuJoCo's: it begins hanging, earns exp(-|tip - goal|^2 / length^2) - 0.01 action^2, where the goal is the tip of a pole that stands at
  x = 0, and is only ever cut. An action lasts two steps of integration, 0.04 s, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from rlx.envs.control.cartpole import accelerations, seeded_uniform
from rlx.envs.control.cartpole_constants import DT, FORCE, HALF_LENGTH, THETA_LIMIT, X_LIMIT
from rlx.envs.control.single import SingleEnv

LENGTH = 2.0 * HALF_LENGTH
MAX_STEPS = 200
Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task; a state is (x, x velocity, theta, theta velocity) [4, B], theta 0 when it is upright."""

    first: Callable[[Array], Array]  # four numbers in [0, 1) [4, E] to an initial state [4, E]
    move: Callable[[Array, Array], None]  # changes the state under a force [B]
    observe: Callable[[Array], Array]  # [B, D]
    reward: Callable[[Array, Array], Array]  # of the state that an action [B] led to
    terminated: Callable[[Array], Array]
    high: tuple[float, ...]  # bounds of the observation
    step_s: float  # simulated seconds of an action


def _euler(state: Array, force: Array) -> None:
    """Explicit Euler, as CartPole-v1: positions use the old velocities."""
    x_acc, theta_acc = accelerations(state[2], state[3], force)
    state[0] += DT * state[1]
    state[1] += DT * x_acc
    state[2] += DT * state[3]
    state[3] += DT * theta_acc


def _two_symplectic_steps(state: Array, force: Array) -> None:
    """Semi-implicit Euler: positions use the new velocities. With explicit Euler a hanging pole gains energy and swings up."""
    force = 2.0 * force
    for _ in range(2):
        x_acc, theta_acc = accelerations(state[2], state[3], force)
        state[1] += DT * x_acc
        state[3] += DT * theta_acc
        state[0] += DT * state[1]
        state[2] += DT * state[3]


def _observe_angle(state: Array) -> Array:
    x, x_dot, theta, theta_dot = state
    return np.stack([x, x_dot, np.cos(theta), np.sin(theta), theta_dot], axis=1)


def _tip_reward(state: Array, action: Array) -> Array:
    x, _, theta, _ = state
    squared_distance = np.square(x + LENGTH * np.sin(theta)) + np.square(LENGTH * np.cos(theta) - LENGTH)
    return np.exp(-squared_distance / LENGTH**2) - 0.01 * np.square(action)


BALANCE = Task(
    first=lambda uniform: uniform * 0.1 - 0.05,
    move=_euler,
    observe=lambda state: state.T,
    reward=lambda state, action: np.ones_like(action),
    terminated=lambda state: (np.abs(state[0]) > X_LIMIT) | (np.abs(state[2]) > THETA_LIMIT),
    high=(2 * X_LIMIT, np.inf, 2 * THETA_LIMIT, np.inf),
    step_s=DT,
)
SWING_UP = Task(
    first=lambda uniform: uniform * 0.1 - 0.05 + np.array([[0.0], [0.0], [np.pi], [0.0]]),
    move=_two_symplectic_steps,
    observe=_observe_angle,
    reward=_tip_reward,
    terminated=lambda state: np.zeros(state.shape[1], dtype=bool),
    high=(np.inf, np.inf, 1.0, 1.0, np.inf),
    step_s=2.0 * DT,
)


class PoleVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """B poles. Gymnasium's vector API with autoreset disabled: reset what has ended through `options={"reset_mask": mask}`."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  (the API's own class attribute)

    def __init__(self, task: Task, num_envs: int) -> None:
        self.task, self.num_envs = task, num_envs
        high = np.array(task.high, dtype=np.float32)
        self.single_observation_space = gymnasium.spaces.Box(-high, high, dtype=np.float32)
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._state = np.zeros((4, num_envs))
        self._elapsed = np.zeros(num_envs, dtype=np.int64)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin episodes where `options["reset_mask"]` (default everywhere); seed is one integer per env."""
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        self._state[:, mask] = self.task.first(seeded_uniform(np.asarray(seed, dtype=np.int64)[mask], 4))
        self._elapsed[mask] = 0
        return self.task.observe(self._state).astype(np.float32), {}

    def step(self, actions: NDArray[np.float32]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        action = actions[:, 0].astype(np.float64).clip(-1.0, 1.0)
        self.task.move(self._state, FORCE * action)
        self._elapsed += 1
        reward = self.task.reward(self._state, action).astype(np.float32)
        obs = self.task.observe(self._state).astype(np.float32)
        return obs, reward, self.task.terminated(self._state), self._elapsed >= MAX_STEPS, {}

    def state_dict(self) -> dict[str, Any]:
        return {"state": self._state.T.tolist(), "elapsed": self._elapsed.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = np.array(state["state"]).T.copy()
        self._elapsed = np.array(state["elapsed"], dtype=np.int64)


class PoleEnv(SingleEnv):
    """One pole, for `gymnasium.make`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1.0 / DT)}  # noqa: RUF012  (the API's own class attribute)

    def __init__(self, task: Task, render_mode: str | None = None) -> None:
        super().__init__(PoleVectorEnv(task, 1))
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": round(1.0 / task.step_s)}

    def render(self) -> Any:
        ((x, _, theta, _),) = self.batch.state_dict()["state"]
        return draw(x, theta) if self.render_mode == "rgb_array" else None


_HEIGHT, _WIDTH, _PIXELS_PER_M, _FOLLOW_FROM = 300, 600, 100.0, 1.8
_TRACK, _MARK, _CART, _POLE, _AXLE = (120, 120, 120), (190, 60, 60), (0, 0, 0), (202, 152, 101), (129, 132, 203)


def draw(x: float, theta: float) -> NDArray[np.uint8]:
    """A frame [300, 600, 3] of a cart at x metres with its pole at angle theta, 0 when it is upright.

    Shapes are distances from every pixel, so that edges are smooth and no library that draws is needed. The view follows a cart that
    would leave it; the track has a mark every metre, a red one at x = 0.
    """
    middle = x - np.clip(x, -_FOLLOW_FROM, _FOLLOW_FROM)
    across = (np.arange(_WIDTH) + 0.5 - _WIDTH / 2.0) / _PIXELS_PER_M + middle  # metres
    up = (_HEIGHT / 2.0 - np.arange(_HEIGHT) - 0.5)[:, None] / _PIXELS_PER_M
    frame = np.full((_HEIGHT, _WIDTH, 3), 255.0)

    def paint(distance: Array, colour: tuple[int, int, int]) -> None:
        """Fill where the distance [H, W], in metres, is below 0, with anti-aliased edges."""
        cover = np.broadcast_to(np.clip(0.5 - distance * _PIXELS_PER_M, 0.0, 1.0), frame.shape[:2])
        inside = cover > 0.0
        frame[inside] += cover[inside, None] * (colour - frame[inside])

    def box(at: Array | float, width: float, height: float) -> Array:
        return np.maximum(np.abs(across - at) - width / 2.0, np.abs(up) - height / 2.0)

    paint(box(middle, 2.0 * _WIDTH / _PIXELS_PER_M, 0.01), _TRACK)
    paint(box(np.round(across), 0.02, 0.12), _TRACK)
    paint(box(0.0, 0.03, 0.16), _MARK)
    paint(box(x, 0.5, 0.3), _CART)
    sin, cos = np.sin(theta), np.cos(theta)
    along = np.clip((across - x) * sin + up * cos, 0.0, LENGTH)
    paint(np.hypot(across - x - along * sin, up - along * cos) - 0.05, _POLE)
    paint(np.hypot(across - x, up) - 0.04, _AXLE)
    return np.round(frame).astype(np.uint8)


TASKS = {"rlx/CartPoleContinuous-v0": BALANCE, "rlx/CartPoleSwingUp-v0": SWING_UP}


def register() -> None:
    """Register the poles with gymnasium, so that `gymnasium.make` finds them."""
    for env_id, task in TASKS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, entry_point=PoleEnv, kwargs={"task": task}, max_episode_steps=MAX_STEPS)  # type: ignore[arg-type]
