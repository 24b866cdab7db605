"""Whole episodes of a policy that explores as in training, with everything that a policy gradient is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlx.collect import Collector
from rlx.evaluation.episodes import Stopped, never
from rlx.nn.advantages import Outcomes, next_values
from rlx.tree_ops import Tree, map_tree, pick
from rlx.types import Algorithm, Rollout, VectorEnv

_CHUNK = 64
"""Env steps per env between two looks at how many episodes have ended."""


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """E episodes: observations and actions as N rows, one episode after the other; numbers of steps on a grid [L, E], 0 after the end."""

    obs: Tree  # [N, *]
    action: Tensor  # [N, *]
    final_obs: Tree  # [E, *] what each ended with
    length: Tensor  # [E] long
    reward: Tensor  # [L, E]
    is_last: Tensor  # [L, E] bool
    terminated: Tensor  # [L, E] bool

    @property
    def num_steps(self) -> int:
        return int(self.length.sum())

    @property
    def exists(self) -> Tensor:
        """[E, L] bool: which steps there are."""
        return torch.arange(len(self.reward)) < self.length.unsqueeze(1)

    def on_grid(self, rows: Tensor) -> Tensor:
        """[N] to [L, E]."""
        return torch.zeros(self.exists.shape, dtype=rows.dtype).masked_scatter_(self.exists, rows).t().contiguous()

    def rows(self, grid: Tensor) -> Tensor:
        """[L, E] to [N]."""
        return grid.t()[self.exists]

    def outcomes(self, value: Tensor, final_value: Tensor, gain: Tensor | None = None) -> Outcomes:
        """What estimators take, from values of the rows [N] and of `final_obs` [E], and Q - V of the rows."""
        grid = self.on_grid(value)
        final = final_value.expand_as(grid)
        return Outcomes(
            reward=self.reward,
            value=grid,
            next_value=next_values(grid, final, self.is_last),
            terminated=self.terminated,
            is_last=self.is_last,
            gain=None if gain is None else self.on_grid(gain),
        )


@torch.no_grad()
def collect_episodes(
    env: VectorEnv, algo: Algorithm, num_episodes: int, *, seed: int, sign_reward: bool = False, should_stop: Callable[[], bool] = never
) -> Episodes:
    """The first episodes of every environment, as many of each, so that short episodes do not crowd out long ones.

    Args:
        env: num_envs divides num_episodes.
        algo: acts.
        num_episodes: E.
        seed: of the episodes.
        sign_reward: take the signs of rewards.
        should_stop: is asked now and then.

    Raises:
        Stopped: when `should_stop` returns True.
    """
    each, collector, parts = num_episodes // env.num_envs, Collector(env, algo, seed=seed), list[Rollout]()
    collector.reset()
    ended = np.zeros(env.num_envs, dtype=np.int64)
    while ended.min() < each:
        if should_stop():
            raise Stopped
        rollout, _ = collector.collect(_CHUNK)
        parts.append(rollout)
        ended += np.bincount(rollout.final_b.numpy(), minlength=env.num_envs)
    obs, action = map_tree(lambda *x: torch.cat(x), *(p.obs for p in parts)), torch.cat([p.action for p in parts])
    reward, terminated = torch.cat([p.reward for p in parts]), torch.cat([p.terminated for p in parts])
    final_obs = map_tree(lambda *x: torch.cat(x), *(p.final_obs for p in parts))
    final_t = torch.cat([p.final_t + _CHUNK * i for i, p in enumerate(parts)])
    final_b = torch.cat([p.final_b for p in parts])
    begins, ends, envs, finals = list[int](), list[int](), list[int](), list[int]()
    for b in range(env.num_envs):
        chosen = (final_b == b).nonzero()[:, 0][:each]
        at = final_t[chosen].tolist()
        begins += [0, *(t + 1 for t in at[:-1])]
        ends, envs, finals = ends + at, envs + [b] * each, finals + chosen.tolist()
    index = torch.cat([torch.arange(begin, end + 1) for begin, end in zip(begins, ends, strict=True)])
    length = torch.tensor(ends) - torch.tensor(begins) + 1
    rows = (index, torch.tensor(envs).repeat_interleave(length))
    grid = (int(length.max()), num_episodes)
    exists = torch.arange(grid[0]) < length.unsqueeze(1)

    def on_grid(x: Tensor) -> Tensor:
        return torch.zeros((grid[1], grid[0]), dtype=x.dtype).masked_scatter_(exists, x[rows]).t().contiguous()

    is_last = torch.zeros(grid, dtype=torch.bool)
    is_last[length - 1, torch.arange(num_episodes)] = True
    return Episodes(obs=pick(obs, rows), action=action[rows], final_obs=pick(final_obs, torch.tensor(finals)), length=length,
                    reward=on_grid(reward.sign() if sign_reward else reward), is_last=is_last,
                    terminated=on_grid(terminated) & is_last)  # fmt: skip
