"""The networks of an imagination-based planner: a controller and its memory, and a manager with a value, which read that memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlx.nn.memories import LSTMMemory
from rlx.nn.mlp import MLP
from rlx.types import Tree


class Controller(nn.Module):
    """Chooses accelerations [n, 2] for states, given a memory of what was imagined and done.

    Args:
        num_observed: D, numbers of an observation.
        num_noted: numbers of what the memory is told of a step.
        memory_size: units of the memory.
        hidden_sizes: widths of the hidden layers.
    """

    def __init__(self, num_observed: int, num_noted: int, memory_size: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.memory = LSTMMemory(num_noted, memory_size)
        self.policy = MLP([num_observed + memory_size, *hidden_sizes, 2], "relu", output_gain=0.01)

    def forward(self, obs: Tensor, memory: Tree) -> Tensor:
        """Accelerations [n, 2] of observations [n, D]."""
        return self.policy(torch.cat((obs, memory["hidden"]), dim=1))

    def note(self, step: Tensor, memory: Tree) -> Tree:
        """The memory after it was told of a step [n, num_noted]."""
        return self.memory.step(step, memory, step.new_zeros(len(step), dtype=torch.bool))[1]


class ManagerNetworks(nn.Module):
    """Logits of the routes, and the value that is expected from here on; neither passes a gradient into what they read.

    Args:
        num_observed: D, numbers of an observation.
        memory_size: units of the controller's memory.
        hidden_sizes: widths of the hidden layers.
        num_routes: choices.
    """

    def __init__(self, num_observed: int, memory_size: int, hidden_sizes: Sequence[int], num_routes: int) -> None:
        super().__init__()
        self.policy = MLP([num_observed + memory_size, *hidden_sizes, num_routes], "relu", output_gain=0.01)
        self.value = MLP([num_observed + memory_size, *hidden_sizes, 1], "relu", output_gain=1.0)

    @staticmethod
    def inputs(obs: Tensor, memory: Tree) -> Tensor:
        """What both read, [n, D + memory_size]."""
        return torch.cat((obs.detach(), memory["hidden"].detach()), dim=1)
