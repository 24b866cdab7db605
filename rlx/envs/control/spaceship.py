"""A spaceship among planets, for a batch of environments in one array: thrust once, drift, and arrive at the mothership.

The spaceship task of Pascanu et al. 2017, https://arxiv.org/abs/1707.06170. A ship of random mass begins at rest, five fixed planets
attract it, and the mothership is at 0. Each of the episode's J actions is a thrust in one step of integration, with multiplicative noise;
eleven steps without thrust follow. An episode costs the fuel of large thrusts and the distance in which it ends.

    a = F / m - 0.1 v / max(m, 0.05) + G sum_p m_p (x_p - x) / (|x_p - x|^2 + m_p^2)^(3/2)        v += dt a        x += dt v

Deviations: the paper gives neither dt, G, damping nor the noise. dt = 0.05 lets the thrust that covers the distance at the greatest mass be
just above the price's threshold. G = 2, since gravity then matters and a straight flight is still better than none. Planets attract less
within a radius of their mass, so that nothing is thrown out at any speed.

An observation is position [2], velocity [2] and mass of the ship, the number of actions left, and position [2] and mass of each planet:
21 numbers, of which reward and termination are functions. Rules take NumPy arrays and torch tensors alike, so that the environment and
the perfect model are one function.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from rlx.envs.control.cartpole import seeded_uniform
from rlx.envs.control.single import SingleEnv
from rlx.envs.control.spaceship_picture import draw
from rlx.envs.control.spaceship_settings import SPACESHIP, SpaceshipSettings, spaceship_settings

DT, DAMPING, LEAST_DAMPED_MASS = 0.05, 0.1, 0.05
SUBSTEPS = 12
"""Steps of integration in an action: one with thrust, eleven without."""
SHIP_MASS, PLANET_MASS = (0.004, 0.36), (0.08, 0.4)
SHIP_RADIUS, PLANET_RADIUS = (0.6, 1.0), (0.4, 1.0)
NUM_PLANETS = 5
MOST_THRUST = 40.0 * SHIP_MASS[1]
"""What an action of 1 is."""
FREE_THRUST = 8.0
"""Thrust up to which no fuel is charged."""
MASS, LEFT, FIRST_PLANET = 4, 5, 6
NUM_OBSERVED = FIRST_PLANET + 3 * NUM_PLANETS
_TINY = 1e-12
"""Keeps derivatives of square roots finite at 0."""
Array = NDArray[Any]
Numbers = Any
"""A NumPy array or a torch tensor."""


class Spaceship:
    """The rules. Observations have their numbers in the last dimension, rows in the first."""

    num_moving = LEFT + 1
    """The first numbers of an observation, which a step can change."""

    def __init__(self, settings: SpaceshipSettings) -> None:
        self.settings = settings
        self.num_decisions = settings.num_actions

    def scenes(self, seeds: NDArray[np.int64]) -> Array:
        """The first observations [21, E] of the episodes with these seeds [E], as rows in float64."""
        uniform = seeded_uniform(seeds, 3 * (1 + NUM_PLANETS)).reshape(1 + NUM_PLANETS, 3, -1)
        rows = np.zeros((NUM_OBSERVED, len(seeds)))
        rows[0], rows[1], rows[MASS] = _placed(uniform[0], SHIP_RADIUS, SHIP_MASS)
        rows[LEFT] = self.num_decisions
        rows[FIRST_PLANET::3], rows[FIRST_PLANET + 1 :: 3], rows[FIRST_PLANET + 2 :: 3] = _placed(
            uniform[1:].swapaxes(0, 1), PLANET_RADIUS, PLANET_MASS
        )
        return rows

    def factors(self, seeds: NDArray[np.int64]) -> Array:
        """The factors [J, E] of the thrusts in episodes with these seeds [E], from the last thrust to the first."""
        uniform = seeded_uniform(seeds, 3 * (1 + NUM_PLANETS) + 2 * self.num_decisions)[3 * (1 + NUM_PLANETS) :]
        first, second = uniform[::2], uniform[1::2]
        return 1.0 + self.settings.noise * np.sqrt(-2.0 * np.log1p(-first)) * np.cos(2.0 * np.pi * second)  # Box and Muller 1958

    def fly(self, rows: Numbers, action: Numbers, factor: Any = 1.0) -> list[tuple[Numbers, Numbers, Numbers, Numbers]]:
        """x, y, x velocity and y velocity [n] after each step of integration in an action, without noise the perfect model.

        Args:
            rows: [21, n] observations.
            action: [2, n].
            factor: of the noise, by which the thrust is multiplied.
        """
        x, y, vx, vy, mass = rows[: MASS + 1]
        px, py, pm = rows[FIRST_PLANET::3], rows[FIRST_PLANET + 1 :: 3], rows[FIRST_PLANET + 2 :: 3]  # [5, n]
        pull, soft = (self.settings.gravity * DT) * pm, pm * pm
        kept = 1.0 - DT * DAMPING / mass.clip(LEAST_DAMPED_MASS, 1e9)
        push_x, push_y = action.clip(-1.0, 1.0) * (DT * MOST_THRUST * factor / mass)
        path = []
        for step in range(SUBSTEPS):
            dx, dy = px - x, py - y
            squared = dx * dx + dy * dy + soft
            weight = pull / (squared * squared**0.5)
            vx, vy = kept * vx + (weight * dx).sum(0), kept * vy + (weight * dy).sum(0)
            if step == 0:
                vx, vy = vx + push_x, vy + push_y
            x, y = x + DT * vx, y + DT * vy
            path.append((x, y, vx, vy))
        return path

    def to_action(self, obs: Numbers, acceleration: Numbers) -> Numbers:
        """The actions that accelerate ships of any mass by these multiples [*, 2] of 40 units, of observations [*, 21]."""
        return acceleration * (obs[..., MASS : MASS + 1] / SHIP_MASS[1])

    def reward(self, obs: Numbers, action: Numbers, next_obs: Numbers) -> Numbers:
        """Minus the fuel of an action, and after the last one minus the distance to the mothership; of [*, 21], [*, 2] and [*, 21]."""
        thrust = MOST_THRUST * _length(action[..., 0].clip(-1.0, 1.0), action[..., 1].clip(-1.0, 1.0))
        arrived = 1.0 - next_obs[..., LEFT].clip(0.0, 1.0)
        return -self.settings.fuel_price * (thrust - FREE_THRUST).clip(0.0, 1e9) - arrived * _length(next_obs[..., 0], next_obs[..., 1])

    def terminated(self, next_obs: Numbers) -> Numbers:
        return next_obs[..., LEFT] < 0.5


def _placed(uniform: Array, radius: tuple[float, float], mass: tuple[float, float]) -> tuple[Array, Array, Array]:
    """x, y and mass [*] from numbers [3, *] in [0, 1), in a ring around 0."""
    r = radius[0] + (radius[1] - radius[0]) * uniform[0]
    angle = 2.0 * np.pi * uniform[1]
    return r * np.cos(angle), r * np.sin(angle), mass[0] + (mass[1] - mass[0]) * uniform[2]


def _length(x: Numbers, y: Numbers) -> Numbers:
    return (x * x + y * y + _TINY) ** 0.5


class SpaceshipVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """B ships. Gymnasium's vector API with autoreset disabled: reset what has ended through `options={"reset_mask": mask}`.

    Args:
        num_envs: B.
        settings: fields of `SpaceshipSettings`.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  (the API's own class attribute)

    def __init__(self, num_envs: int, **settings: Any) -> None:
        self.num_envs, self.bodies = num_envs, Spaceship(spaceship_settings(settings))
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (NUM_OBSERVED,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._rows = self.bodies.scenes(np.zeros(num_envs, dtype=np.int64))
        self._factors = np.ones((self.bodies.num_decisions, num_envs))
        self._index = np.arange(num_envs)
        self.path: Array | None = None
        """[13, 2, B] where the ships were in the last action, for drawing; None before it."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin episodes where `options["reset_mask"]` (default everywhere); seed is one integer per env."""
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        seeds = np.asarray(seed, dtype=np.int64)[mask]
        self.path = None
        self._rows[:, mask], self._factors[:, mask] = self.bodies.scenes(seeds), self.bodies.factors(seeds)
        return self._observe(), {}

    def step(self, actions: NDArray[np.float32]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As gymnasium's; where an episode has ended, nothing sensible happens until it is reset."""
        action = actions.astype(np.float64).T
        before = self._rows.T
        factor = self._factors[self._rows[LEFT].astype(np.int64) - 1, self._index]
        self._rows = self._rows.copy()
        path = self.bodies.fly(self._rows, action, factor)
        self._rows[:MASS] = path[-1]
        self.path = np.array([before.T[:2], *(moment[:2] for moment in path)])
        self._rows[LEFT] -= 1.0
        reward = self.bodies.reward(before, action.T, self._rows.T).astype(np.float32)
        return self._observe(), reward, self.bodies.terminated(self._rows.T), np.zeros(self.num_envs, dtype=bool), {}

    def _observe(self) -> NDArray[np.float32]:
        return np.ascontiguousarray(self._rows.T, dtype=np.float32)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows.T.tolist(), "factors": self._factors.T.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rows, self._factors = np.array(state["rows"]).T.copy(), np.array(state["factors"]).T.copy()


class SpaceshipEnv(SingleEnv):
    """One ship, for `gymnasium.make`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 2}  # noqa: RUF012  (the API's own class attribute)

    def __init__(self, render_mode: str | None = None, **settings: Any) -> None:
        super().__init__(SpaceshipVectorEnv(1, **settings))
        self.bodies, self.render_mode = self.batch.bodies, render_mode

    def render(self) -> Any:
        if self.render_mode != "rgb_array":
            return None
        path = self.batch.path
        return draw(np.array(self.batch.state_dict()["rows"][0]), path=None if path is None else path[:, :, 0])


def register() -> None:
    """Register the task with gymnasium, so that `gymnasium.make` finds it."""
    if SPACESHIP not in gymnasium.registry:
        gymnasium.register(SPACESHIP, entry_point=SpaceshipEnv)
