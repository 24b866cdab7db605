"""How observations reach the networks of MuZero: planes of a game or a grid world, images, or one vector."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeGuard

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlx.columns import Column, columns_of
from rlx.errors import ConfigError
from rlx.nn.convolutions import ImageLayout
from rlx.transfer import fetch
from rlx.types import EnvSpec, Game, Tree


class Roots(NamedTuple):
    """Observations to search from, as the network takes them."""

    obs: Tensor  # [B, D], [B, C, H, W] or images [B, *]
    legal: NDArray[np.bool_]  # [B, A]
    player: NDArray[np.int64]  # [B] the player to move; 0 where there is one agent


class LatentInputs:
    """Converts an environment's observations for the network and for the replay. Images keep their bytes and their layout.

    Args:
        spec: of the environment; its actions are discrete.
        algo: name of the algorithm in errors.

    Raises:
        ConfigError: for actions that are not discrete, and for games whose players do not take turns.
    """

    def __init__(self, spec: EnvSpec, *, algo: str) -> None:
        self._game, space = spec.game, spec.observation_space
        self.image: gymnasium.spaces.Box | None = None
        """The space of observations that are images."""
        self.sides: tuple[int, int] | None = None
        """Cells or pixels from top to bottom and from left to right, of observations that convolutions can take."""
        self.num_actions = _num_actions(spec, algo)
        planes = spec.game.planes_shape if spec.game is not None else spec.grid.planes_shape if spec.grid is not None else None
        if planes is None and is_image(space):
            self.image, self.column, layout = space, columns_of(space), ImageLayout(space)
            self.sides = layout.height, layout.width
        else:
            self.column = Column(torch.float32, planes or (math.prod(space.shape or (1,)),))
            self.sides = planes and (planes[1], planes[2])
        self.shape = self.column.shape

    def __call__(self, obs: Tree) -> Roots:
        """Observations [B, *] with the legal actions and the player to move."""
        if self._game is None:
            everything = np.ones((len(obs), self.num_actions), dtype=bool)
            flat: Tensor = obs if self.image is not None else obs.reshape(len(obs), *self.shape).float()
            return Roots(flat, everything, np.zeros(len(obs), dtype=np.int64))
        planes, legal, player = fetch(obs["planes"], obs["legal"], obs["player"])
        return Roots(torch.from_numpy(planes).float(), legal.astype(bool), player)


def is_image(space: gymnasium.Space[Any]) -> TypeGuard[gymnasium.spaces.Box]:
    """Whether a space is a Box of bytes with two dimensions, with channels or frames as a third one, or with both."""
    return isinstance(space, gymnasium.spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3, 4) and space.high.max() > 1


def _num_actions(spec: EnvSpec, algo: str) -> int:
    if spec.game is not None:
        _refuse_uneven_turns(spec.game, spec.id)
        return spec.game.num_actions
    if not isinstance(spec.action_space, gymnasium.spaces.Discrete):
        raise ConfigError(
            f"algo={algo} searches over discrete actions, and env={spec.id} has action space {spec.action_space}; try env=cartpole or a "
            "game such as env=connect_four; algo=pets plans continuous actions"
        )
    return int(spec.action_space.n)


def _refuse_uneven_turns(game: Game, env_id: str) -> None:
    """Raise a ConfigError if a player of a random game moves twice in a row: the model would give the value to the wrong player."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        state, before = game.new_state(), -1
        while (who := int(game.look([state]).player[0])) >= 0:
            if who == before:
                raise ConfigError(
                    f"env={env_id}: its players do not take turns, and muzero learns its model on the assumption that they do; "
                    "try algo=alphazero, which uses the rules"
                )
            before = who
            state = state.child(int(rng.choice(game.look([state]).legal)))
