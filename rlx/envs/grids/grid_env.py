"""Makes grid worlds from their settings: a batch of boards, or one gymnasium environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from rlx.envs.grids.grid_settings import MiniPacmanSettings, Settings, SokobanSettings, settings_of
from rlx.envs.grids.gridworld import TILE, Grid, GridVectorEnv
from rlx.envs.grids.minipacman import MiniPacman
from rlx.envs.grids.sokoban import Sokoban

if TYPE_CHECKING:
    from rlx.envs.grids.splits import Split


def make_grid(settings: Settings, num_envs: int, *, split: Split = "all") -> GridVectorEnv:
    """B boards of a grid world.

    Args:
        settings: their class says which world.
        num_envs: B.
        split: levels for training, for evaluation, or all.

    Raises:
        ConfigError: if files of levels cannot be read, or have no level in the split.
    """
    grid: Grid
    if isinstance(settings, SokobanSettings):
        grid = Sokoban(settings, split)
    else:
        assert isinstance(settings, MiniPacmanSettings)
        grid = MiniPacman(settings, split)
    return GridVectorEnv(grid, num_envs, max_episode_steps=settings.max_episode_steps, observation=settings.observation)


class GridEnv(gymnasium.Env[Any, Any]):
    """One board, for `gymnasium.make`, whose TimeLimit truncates the episodes.

    Args:
        world: the id that the world is registered under.
        render_mode: "rgb_array", "ansi" or None.
        split: which levels it shows, see `rlx.envs.grids.splits`.
        settings: of the world, see `rlx.envs.grids.grid_settings`.
    """

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 8}  # noqa: RUF012  (the API's own class attribute)

    def __init__(self, world: str, render_mode: str | None = None, split: Split = "all", **settings: Any) -> None:
        self._env = make_grid(settings_of(world, settings), 1, split=split)
        self.grid = self._env.grid
        self.render_mode = render_mode
        self.observation_space, self.action_space = self._env.single_observation_space, self._env.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        drawn = seed if seed is not None else int(self.np_random.integers(2**31 - 1))
        return self._env.reset(seed=np.array([drawn]))[0][0].copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, _, info = self._env.step(np.asarray(action, dtype=np.int64)[None])
        happened = {name: bool(event) for name, event in zip(self._env.rules.events, info["events"][0], strict=True)}
        return obs[0].copy(), float(reward[0]), bool(terminated[0]), False, {"events": happened}

    def render(self) -> Any:
        planes = self._env.planes()
        return self._env.rules.ansi(planes[0]) if self.render_mode == "ansi" else self._env.rules.draw(planes, 4 * TILE)[0]
