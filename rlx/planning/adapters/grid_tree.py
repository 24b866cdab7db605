"""Searches in a model of a grid world, for an agent that plans instead of encoding rollouts: rollouts of every action, or a tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlx.models.unroll import Imagined
from rlx.planning.search import Array, Expansion, SearchConfig, search
from rlx.types import Model

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From planes [n, C, H, W] to logits [n, A] and values [n]."""


class GridPlan(NamedTuple):
    """Results of a search from B states."""

    q_value: Tensor  # [B, A] expected return of each action
    action: Tensor  # [B] to take
    planes: Tensor  # [B, A, D, C, H, W] frames of a line of play for each action, zeros and ones
    reward: Tensor  # [B, A, D] along it
    calls: Tensor  # [B] steps of the model


def weigh_rollouts(
    imagined: Imagined, evaluate: Evaluate, *, num_actions: int, num_rollouts: int, discount: float,
    reward_scale: float,
) -> GridPlan:  # fmt: skip
    """A plan that takes the action whose rollouts have the highest mean return.

    Q(s, a) = E[sum_{k < D} gamma^k r_k + gamma^D V(s_D)], where rewards and value after a termination are 0.

    Args:
        imagined: D steps of n = B * num_rollouts * A rollouts, with states [D, n, C, H, W].
        evaluate: logits and values of frames.
        num_actions: A.
        num_rollouts: of each action.
        discount: of every step.
        reward_scale: factor from rewards to the unit of values.
    """
    planes, reward, alive = imagined.states, imagined.reward, imagined.alive
    depth = len(reward)
    _, value = evaluate(planes[-1])
    returns = discount**depth * value * (1.0 if alive is None else alive[-1])
    for k in range(depth):
        returns = returns + discount**k * reward_scale * reward[k]
    shape = (-1, num_rollouts, num_actions)
    q_value = returns.view(shape).mean(1)
    frames, rewards = (x.unflatten(1, shape)[:, :, 0].movedim(0, 2) for x in (planes, reward))  # the first rollout of each action
    calls = torch.full((len(q_value),), num_rollouts * num_actions * depth, device=planes.device)
    return GridPlan(q_value, q_value.argmax(-1), frames, rewards, calls)


def search_tree(
    model: Model, evaluate: Evaluate, planes: Tensor, config: SearchConfig, *, depth: int, discount: float, reward_scale: float
) -> GridPlan:
    """A plan that takes the most visited action of a search tree from planes [B, C, H, W].

    Args:
        model: of the grid world.
        evaluate: logits and values of frames.
        planes: of the roots.
        config: of the search, with `track_bounds`.
        depth: length D of the plan's lines of play, which follow the most visited edges. A line that ends earlier repeats its last frame.
            0 where only the action is needed.
        discount: of every step.
        reward_scale: factor from rewards to the unit of values.
    """
    adapter = GridAdapter(model, evaluate, planes, discount=discount, reward_scale=reward_scale, num_nodes=config.num_simulations + 1)
    found = search(adapter, config, np.random.default_rng(0))  # without noise at the roots nothing is drawn
    trees, device = found.trees, planes.device
    num_trees, num_actions = len(planes), int(trees.count[0, 0])
    edges = trees.start[:, :1] + np.arange(num_actions)  # of the roots, [B, A]
    at = np.arange(num_trees)[:, None]
    n, w = trees.n[at, edges], trees.w[at, edges]
    q_value = np.where(n > 0, w / np.maximum(n, 1), trees.value[:, :1]).astype(np.float32)
    frames = planes.new_zeros(*edges.shape, depth, *planes.shape[1:])
    rewards = np.zeros((*edges.shape, depth), dtype=np.float32)
    slot, goes_on = np.zeros((num_trees, num_actions), dtype=np.int64), np.ones((num_trees, num_actions), dtype=bool)
    for k in range(depth):
        if k > 0:
            edges = _most_visited(trees.start[at, slot], trees.count[at, slot], trees.n)
        goes_on &= (edges >= 0) & (trees.child[at, edges] >= 0)
        slot = np.where(goes_on, trees.child[at, edges], slot)
        rewards[:, :, k] = np.where(goes_on, trees.reward[at, edges], 0.0)
        frames[:, :, k] = adapter.planes[torch.from_numpy(at), torch.from_numpy(slot)].to(planes.dtype)
    return GridPlan(
        torch.from_numpy(q_value).to(device), torch.from_numpy(found.best()).to(device), frames,
        torch.from_numpy(rewards).to(device) / reward_scale, torch.from_numpy(adapter.calls).to(device),
    )  # fmt: skip


def _most_visited(start: Array, count: Array, visits: Array) -> Array:
    """The most visited edge of each node [B, A]; -1 where no edge was visited."""
    best = np.full(start.shape, -1)
    for b, a in np.ndindex(start.shape):
        stretch = visits[b, start[b, a] : start[b, a] + count[b, a]]
        if stretch.size and stretch.max() > 0:
            best[b, a] = start[b, a] + int(stretch.argmax())
    return best


class GridAdapter:
    """A model of a grid world with the interface of a tree search.

    Each edge is expanded once, so that its random events are drawn once for the whole search.

    Args:
        model: of the grid world.
        evaluate: logits and values of frames, without imagination.
        planes: [B, C, H, W] of the roots.
        discount: of every step.
        reward_scale: factor from rewards to the unit of values.
        num_nodes: most nodes of a tree.
    """

    def __init__(self, model: Model, evaluate: Evaluate, planes: Tensor, *, discount: float, reward_scale: float, num_nodes: int) -> None:
        self._model, self._evaluate, self._roots = model, evaluate, planes
        self._discount, self._reward_scale = discount, reward_scale
        self.planes = torch.zeros(len(planes), num_nodes, *planes.shape[1:], dtype=torch.uint8, device=planes.device)
        """[B, N, C, H, W] the frames of all nodes."""
        self.calls = np.zeros(len(planes), dtype=np.int64)
        """[B] steps of the model that each tree took."""

    def root(self) -> Expansion:
        self.planes[:, 0] = self._roots
        nothing = np.zeros(len(self._roots), dtype=np.float32)
        return self._found(self._roots, reward=nothing, alive=nothing == 0.0)

    def step(self, trees: Array, parents: Array, actions: Array, slots: Array) -> Expansion:
        np.add.at(self.calls, trees, 1)
        at = torch.from_numpy(trees)
        before = self.planes[at, torch.from_numpy(parents)].to(self._roots.dtype).contiguous(memory_format=torch.channels_last)
        step = self._model.step(before, torch.from_numpy(actions).long().to(before.device))
        self.planes[at, torch.from_numpy(slots)] = step.state.to(torch.uint8)
        alive = np.ones(len(trees), dtype=bool) if step.discount is None else (step.discount > 0.0).cpu().numpy()
        return self._found(step.state, reward=self._reward_scale * step.reward.cpu().numpy(), alive=alive)

    def _found(self, planes: Tensor, *, reward: Array, alive: Array) -> Expansion:
        logits, value = (x.cpu().numpy() for x in self._evaluate(planes))
        num_actions = logits.shape[1]
        return Expansion(
            counts=np.where(alive, num_actions, 0), actions=np.tile(np.arange(num_actions), int(alive.sum())),
            logits=logits[alive].reshape(-1), value=np.where(alive, value, 0.0).astype(np.float32), reward=reward,
            discount=np.where(alive, self._discount, 0.0).astype(np.float32),
        )  # fmt: skip
