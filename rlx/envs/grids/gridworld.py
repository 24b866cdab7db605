"""The base of grid worlds: batches of environments, perfect models, and pictures.

A `Grid` holds the rules, as functions of the arrays of n boards. Batches (`GridVectorEnv`), the single environment of
gymnasium (`grid_env.GridEnv`) and the perfect model (`Grid.step`, see `rlx.types.GridWorld`) are the same rules on different states.
The observed planes [C, H, W] of zeros and ones determine the state but for the random generator, so that a state can be read back from
them.
"""

from __future__ import annotations

import abc
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from rlx.errors import CheckpointError

Array = NDArray[Any]
Boards = dict[str, Array]
"""The state of n boards: arrays [n, *] by name."""
TILE = 8
"""Pixels of a cell's side in an observation; pictures for people are four times as large."""


class Grid(abc.ABC):
    """The rules of a grid world; see `rlx.types.GridWorld` for what algorithms use of it."""

    planes_shape: tuple[int, int, int]
    num_actions: int
    events: tuple[str, ...]
    event_reward: NDArray[np.float32]  # [E]
    termination_solves: bool = False
    """Whether an episode that terminates has been solved."""
    glyphs: str
    """A character for each kind of cell."""
    kind_names: tuple[str, ...]
    colours: NDArray[np.uint8]  # [kinds, 3]
    action_names: tuple[str, ...]
    player_plane: int
    fingerprint: str = ""
    """Identifies the data of the episodes that is not in the settings, such as files of levels."""

    @abc.abstractmethod
    def begin(self, seeds: Array) -> Boards:
        """The first states of the episodes with these seeds [n]."""

    @abc.abstractmethod
    def move(self, boards: Boards, actions: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Changes the boards under actions [n]; returns the events [n, E] and where the episode terminated [n]."""

    @abc.abstractmethod
    def observe(self, boards: Boards) -> NDArray[np.uint8]:
        """Planes [n, C, H, W], which may be the state's own."""

    @abc.abstractmethod
    def read(self, planes: NDArray[np.uint8], rng_state: Array) -> Boards:
        """The boards that planes [n, C, H, W] show, with the generator states [n] int64, which they do not show."""

    @abc.abstractmethod
    def events_of(self, planes: Array, action: Array, next_planes: Array, terminated: Array) -> NDArray[np.bool_]:
        """The events [n, E] of steps, as far as they were observed."""

    @abc.abstractmethod
    def kinds(self, planes: Array) -> NDArray[np.intp]:
        """The index in `glyphs` and `colours` of the kind of every cell [n, H, W]."""

    def step(self, planes: Array, action: Array, rng: np.random.Generator) -> tuple[NDArray[np.uint8], Array, Array]:
        """The perfect model: next planes [n, C, H, W], events [n, E] and terminated [n]; changes none of its arguments."""
        rng_state = rng.integers(2**63, size=len(planes))
        boards = self.read(as_bits(planes), rng_state)
        events, terminated = self.move(boards, np.asarray(action, dtype=np.int64))
        return self.observe(boards), events, terminated

    def ansi(self, planes: Array) -> str:
        """One board, planes [C, H, W], as text."""
        return "\n".join("".join(self.glyphs[kind] for kind in row) for row in self.kinds(as_bits(planes)[None])[0])

    def draw(self, planes: Array, tile: int = TILE) -> NDArray[np.uint8]:
        """Pictures [n, H * tile, W * tile, 3] of planes [n, C, H, W]; every cell is a square with a rim."""
        squares = np.repeat(self.colours[:, None, None], tile, axis=1).repeat(tile, axis=2)
        squares[:, -1, :] = squares[:, :, -1] = self.colours[:, None] // 4 * 3
        cells = squares[self.kinds(planes)]  # [n, H, W, tile, tile, 3]
        n, height, width = cells.shape[:3]
        return np.ascontiguousarray(cells.transpose(0, 1, 3, 2, 4, 5)).reshape(n, height * tile, width * tile, 3)


def as_bits(planes: Array) -> NDArray[np.uint8]:
    """A copy of planes as zeros and ones; predictions of a learned model are rounded."""
    return planes.copy() if planes.dtype == np.uint8 else (planes >= 0.5).astype(np.uint8)


class GridVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """B boards. Gymnasium's vector API with autoreset disabled: reset what has ended through `options={"reset_mask": mask}`.

    The observations that `reset` and `step` return are overwritten by the next call. `info["events"]` is [B, E].

    Args:
        grid: the rules.
        num_envs: B.
        max_episode_steps: env steps after which an episode is cut.
        observation: "planes", uint8 [B, C, H, W] of zeros and ones, or "rgb", uint8 [B, 8 H, 8 W, 3].
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  (the API's own class attribute)

    def __init__(self, grid: Grid, num_envs: int, *, max_episode_steps: int, observation: str) -> None:
        self.num_envs, self.max_episode_steps = num_envs, max_episode_steps
        self.rules, self.termination_solves = grid, grid.termination_solves
        self.grid = grid if observation == "planes" else None  # a model of planes is of no use to a policy that sees pictures
        shape = grid.planes_shape if observation == "planes" else (grid.planes_shape[1] * TILE, grid.planes_shape[2] * TILE, 3)
        high = 1 if observation == "planes" else 255
        self.single_observation_space = gymnasium.spaces.Box(0, high, shape, np.uint8)
        self.single_action_space = gymnasium.spaces.Discrete(grid.num_actions)
        self._boards: Boards = {}
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._obs = np.zeros((num_envs, *shape), dtype=np.uint8)

    def _look(self, boards: Boards) -> NDArray[np.uint8]:
        planes = self.rules.observe(boards)
        return planes if self.grid else self.rules.draw(planes)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Begin episodes where `options["reset_mask"]` (default everywhere); seed is one integer per env."""
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        begun = np.flatnonzero(mask)
        boards = self.rules.begin(np.asarray(seed, dtype=np.int64)[begun])
        if len(begun) == self.num_envs:
            self._boards = boards
        for name, array in self._boards.items():
            array[begun] = boards[name]
        self._elapsed[begun] = 0
        self._obs[begun] = self._look(boards)
        return self._obs, {}

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        events, terminated = self.rules.move(self._boards, actions)
        self._elapsed += 1
        np.copyto(self._obs, self._look(self._boards))
        reward = events.astype(np.float32) @ self.rules.event_reward
        return self._obs, reward, terminated, self._elapsed >= self.max_episode_steps, {"events": events}

    def planes(self) -> NDArray[np.uint8]:
        """The boards as planes [B, C, H, W], also where the observations are pictures."""
        return self.rules.observe(self._boards)

    def state_dict(self) -> dict[str, Any]:
        boards = {name: array.copy() for name, array in self._boards.items()}
        return {"boards": boards, "elapsed": self._elapsed.tolist(), "fingerprint": self.rules.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken.

        Raises:
            CheckpointError: if the levels are not those that the state was taken with.
        """
        if state["fingerprint"] != self.rules.fingerprint:
            raise CheckpointError(
                "the levels in the files of env.kwargs.levels and eval_levels are not those that the run began with, so that it cannot be "
                "resumed exactly: put the files back, or let `rlx resume --inexact` begin new episodes"
            )
        self._boards = {name: np.asarray(array).copy() for name, array in state["boards"].items()}
        self._elapsed = np.array(state["elapsed"], dtype=np.int64)
        self._obs[:] = self._look(self._boards)
