"""A learned latent model as the model of a tree search: no rules, and one network call for each simulation of all trees."""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rlx.planning.search import Array, Expansion
from rlx.transfer import send


class LatentNetwork(Protocol):
    """MuZero's three functions (Schrittwieser et al. 2020, eq. 1), joined as a search calls them; without gradients."""

    def root(self, obs: Tensor) -> tuple[Tensor, Array, Array]:
        """Latents [n, *], logits [n, A] and values [n] of observations [n, *]."""
        ...

    def expand(self, latent: Tensor, action: Tensor) -> tuple[Tensor, Array, Array, Array]:
        """Latents [n, *] after actions [n], the rewards [n] of these, and logits [n, A] and values [n] of where they lead."""
        ...


class LatentAdapter:
    """A latent model with the interface of a tree search. Below the roots every action is legal, and no position is terminal.

    Args:
        net: the network.
        obs: [B, *] of the roots.
        legal: [B, A] bool, legal actions at the roots.
        discount: of every step; negative if players take turns.
        num_nodes: most nodes of a tree.
    """

    def __init__(self, net: LatentNetwork, obs: Tensor, legal: Array, *, discount: float, num_nodes: int) -> None:
        self._net, self._obs, self._legal = net, obs, legal
        self._discount, self._num_nodes = np.float32(discount), num_nodes
        self._latents: Tensor = torch.zeros(0)  # [B, N, *]
        self.calls = 0
        self.network_s = 0.0

    def root(self) -> Expansion:
        began = time.perf_counter()
        latents, logits, value = self._net.root(self._obs)
        self._count_call(began)
        self._latents = latents.new_zeros(len(latents), self._num_nodes, *latents.shape[1:])
        self._latents[:, 0] = latents
        nothing = np.zeros(len(value), dtype=np.float32)
        return Expansion(self._legal.sum(axis=1), np.nonzero(self._legal)[1], logits[self._legal], value, nothing, nothing)

    def step(self, trees: Array, parents: Array, actions: Array, slots: Array) -> Expansion:
        began = time.perf_counter()
        at, parent, action, slot = send(self._latents.device, *map(torch.from_numpy, (trees, parents, actions, slots)))
        latents, reward, logits, value = self._net.expand(self._latents[at, parent], action)
        self._latents[at, slot] = latents
        self._count_call(began)
        n, num_actions = logits.shape
        everything = np.tile(np.arange(num_actions), n)
        return Expansion(np.full(n, num_actions), everything, logits.reshape(-1), value, reward, np.full(n, self._discount))

    def _count_call(self, began: float) -> None:
        self.calls += 1
        self.network_s += time.perf_counter() - began
