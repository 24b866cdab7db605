"""The policy of an evaluation as a torch module, for exports."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlx.nn.backbone import Backbone
from rlx.types import Tree


class GreedyPolicy(nn.Module):
    """The greedy action of a network, with its normalisation, in operations that torch can trace.

    Args:
        net: shared with the algorithm, not copied.
    """

    def __init__(self, net: Backbone) -> None:
        super().__init__()
        self.net = net

    def forward(self, obs: Tree, carry: Tree, is_first: Tensor) -> tuple[Tensor, Tree]:
        """Observations [B, *], the memory and where episodes begin [B] to actions [B, *] and the next memory."""
        params, _, carry = self.net.step(obs, carry, is_first)
        return torch.atleast_1d(self.net.head.mode(params)), carry
