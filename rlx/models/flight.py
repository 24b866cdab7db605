"""Models of a body that thrusts among fixed bodies (`types.Bodies`): the rules themselves, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from rlx.types import Bodies


class PerfectFlight:
    """The rules without noise as a function of observations and actions."""

    def __init__(self, bodies: Bodies) -> None:
        self.bodies = bodies

    def __call__(self, obs: Tensor, action: Tensor) -> Tensor:
        """The next observations [n, D] of observations [n, D] and actions [n, 2]."""
        return follow(obs, torch.stack(self.bodies.fly(obs.t(), action.t())[-1], dim=1))


def follow(obs: Tensor, moved: Tensor) -> Tensor:
    """The observations [n, D] after obs [n, D], of the new positions and velocities [n, 4]: one action less is left."""
    return torch.cat((moved, obs[:, 4:5], obs[:, 5:6] - 1.0, obs[:, 6:]), dim=1)
