"""What every algorithm has whose policy is one network."""

from __future__ import annotations

from typing import Any

from rlx.nn.backbone import Backbone
from rlx.nn.greedy import GreedyPolicy
from rlx.nn.network_report import network_report
from rlx.types import Tree


class NetworkAgent:
    """The methods of an algorithm that follow from its network: its first memory, its report, and its export."""

    net: Backbone

    def initial_carry(self, batch_size: int) -> Tree:
        return self.net.memory.initial(batch_size)

    def network_report(self) -> dict[str, Any]:
        return network_report(self.net)

    def policy_module(self) -> GreedyPolicy:
        """The policy of evaluations, for exports."""
        return GreedyPolicy(self.net)
