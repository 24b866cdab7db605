"""An interaction network: what a moving body's step changes, from its relations to each of the fixed bodies.

Battaglia et al. 2016, https://arxiv.org/abs/1612.00222. One network computes the effect of a relation, another the change of the body from
its own numbers and the sum of all effects, so that the order of the bodies does not matter. Deviations: the state after a whole action is
predicted at once; thrust enters as an acceleration, at which bodies of all masses move alike; what is linear in the body has a path of its
own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlx.models.flight import follow
from rlx.nn.mlp import MLP
from rlx.types import Bodies

_MOVED = 4
"""Position and velocity, which the network predicts the change of."""
_WEIGHTS = 1.0, 1.0, 0.2, 0.2
"""Of errors in position and velocity, so that both are errors of about the same share of what varies."""
_EFFECT = 32
"""Numbers of an effect."""


class InteractionNetwork(nn.Module):
    """A learned model of a body among fixed bodies: the next observations as a differentiable function of observations and actions.

    Args:
        bodies: the rules, of which the form of observations and actions is used, not the motion.
        hidden_size: units of hidden layers.
    """

    weights: Tensor

    def __init__(self, bodies: Bodies, hidden_size: int) -> None:
        super().__init__()
        self.bodies = bodies
        own = bodies.num_moving - 1 + 2  # without the number of actions left
        self.relation = MLP([own + 3, hidden_size, hidden_size, _EFFECT], "relu", output_gain=1.0)
        self.change = MLP([own + _EFFECT, hidden_size, hidden_size, _MOVED], "relu", output_gain=0.1)
        self.linear = nn.Linear(own, _MOVED)
        self.register_buffer("weights", torch.tensor(_WEIGHTS), persistent=False)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """The next observations [n, D] of observations [n, D] and actions [n, 2]."""
        return follow(obs, obs[:, :_MOVED] + self._change(obs, action))

    def loss(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """The mean Huber loss of predicted changes: the rare ship that is thrown far out does not own the gradient."""
        wrong = self._change(obs, action) - (next_obs - obs)[:, :_MOVED]
        return F.smooth_l1_loss(wrong * self.weights, torch.zeros_like(wrong), beta=0.1)

    def _change(self, obs: Tensor, action: Tensor) -> Tensor:
        moving = self.bodies.num_moving
        acceleration = action.clamp(-1.0, 1.0) / self.bodies.to_action(obs, torch.ones_like(action))
        own = torch.cat((obs[:, :5], acceleration), dim=1)  # [n, 7]
        fixed = obs[:, moving:].unflatten(1, (-1, 3))  # [n, 5, 3]
        relative = torch.cat((fixed[..., :2] - obs[:, None, :2], fixed[..., 2:]), dim=-1)
        pairs = torch.cat((own[:, None].expand(-1, fixed.shape[1], -1), relative), dim=-1)
        effect = self.relation(pairs.flatten(0, 1)).view(len(obs), -1, _EFFECT).sum(1)
        return self.change(torch.cat((own, effect), dim=1)) + self.linear(own)
