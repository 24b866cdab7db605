"""Acting without memory, or with that of another episode: what a policy's memory is worth (`rlx eval --memory`)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from rlx.errors import ConfigError
from rlx.nn.memories import Memory
from rlx.nn.network_agent import NetworkAgent
from rlx.tree_ops import map_tree
from rlx.types import Mode, Tree

CHOICES = ("on", "off", "shuffled")


class AblatesMemory(NetworkAgent):
    """An algorithm whose policy is one network, with the methods of `Ablatable`."""

    @classmethod
    def ablations(cls) -> Mapping[str, Sequence[str]]:
        return {"memory": CHOICES}

    def ablate(self, choices: Mapping[str, str], *, mode: Mode) -> Self:
        """This algorithm, or a copy that acts with another memory; raises as `Ablatable.ablate`.

        Choices of "memory": on changes nothing; off empties the memory before every step, as if an episode began; shuffled gives every
        episode the memory of another one that is played at the same time, a different one at every step.
        """
        if "memory" not in choices:
            return self
        choice = choices["memory"]
        if not self.net.has_memory:
            raise ConfigError(f"--memory {choice}: this run has no memory (algo.memory=none); leave it out, or train with algo.memory=lstm")
        if choice == "on":
            return self
        other = copy.copy(self)
        other.net = copy.deepcopy(self.net)
        other.net.memory = _Ablated(other.net.memory, shuffled=choice == "shuffled")  # type: ignore[assignment]
        return other


class _Ablated(nn.Module):
    """A memory whose carry is exchanged before every step. It only acts: it has no `unroll`."""

    def __init__(self, memory: Memory, *, shuffled: bool) -> None:
        super().__init__()
        self.memory, self.shuffled = memory, shuffled
        self.num_features = memory.num_features

    def initial(self, batch_size: int) -> Tree:
        if self.shuffled and batch_size < 2:
            raise ConfigError("--memory shuffled gives every episode the memory of another, but only one episode is played at a time; "
                              "play several with rlx eval --episodes 2 or more, or choose --memory off")  # fmt: skip
        return self.memory.initial(batch_size)

    def step(self, features: Tensor, carry: Tree, is_first: Tensor) -> tuple[Tensor, Tree]:
        """As of every memory. Shuffling moves all carries on by one episode, so that none keeps its own and no random number is drawn."""
        exchange = (lambda leaf: leaf.roll(1, dims=0)) if self.shuffled else torch.zeros_like
        return self.memory.step(features, map_tree(exchange, carry), is_first)
