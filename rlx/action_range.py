"""Bounded continuous actions, in units in which they lie in [-1, 1]."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlx.errors import ConfigError
from rlx.types import EnvSpec


class ActionRange:
    """Between the actions of an environment and those in [-1, 1].

    Args:
        spec: gives the action space.
        device: of the actions.
        verb: what the algorithm does with actions, for messages, e.g. "algo=pets plans".

    Raises:
        ConfigError: unless the action space is a bounded Box of floats.
    """

    def __init__(self, spec: EnvSpec, device: torch.device, *, verb: str) -> None:
        space = spec.action_space
        if not (isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)):
            raise ConfigError(
                f"{verb} continuous actions, and env={spec.id} has action space {space}; try env=cartpole_continuous or env=pendulum, "
                "or algo=ppo for discrete actions"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # bounds as large as float32 has mean that there are none
            low, high = space.low.astype(np.float32), space.high.astype(np.float32)
            self.centre_array, self.half_array = (high + low) / 2.0, (high - low) / 2.0
        if not (np.isfinite(self.centre_array).all() and np.isfinite(self.half_array).all()):
            raise ConfigError(f"{verb} within bounds, and env={spec.id} has the unbounded action space {space}; clip it in the env")
        self.size = len(low)
        """A."""
        self._centre, self.half = (torch.from_numpy(x).to(device) for x in (self.centre_array, self.half_array))
        """[A] half of the range, as a tensor in `half`."""
        self._inverse = torch.where(self.half > 0.0, 1.0 / self.half, 0.0)

    def to_env(self, normalised: Tensor) -> Tensor:
        """Actions [*, A] in [-1, 1] to the environment's."""
        return torch.addcmul(self._centre, normalised, self.half)

    def normalised(self, action: Tensor) -> Tensor:
        """Actions [*, A] of the environment to those in [-1, 1]."""
        return ((action - self._centre) * self._inverse).clamp_(-1.0, 1.0)
