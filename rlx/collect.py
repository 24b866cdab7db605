"""Steps the environments for every algorithm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlx.transfer import send_arrays
from rlx.tree_ops import leaves, map_tree, pick
from rlx.types import Algorithm, Rollout, State, Tree, VectorEnv

SEED_LIMIT = 2**31 - 1
"""Episode seeds are below this: what every environment accepts."""


class Episode(NamedTuple):
    """One finished episode: undiscounted return, length in env steps, and what is known of some only.

    These are whether it was solved, of environments that say so, and how many steps of a model the agent asked for, of agents that do.
    An episode is cut if an evaluation ended it at its limit.
    """

    return_: float
    length: int
    solved: bool | None = None
    model_calls: int | None = None
    cut: bool = False


def env_actions(space: gymnasium.Space[Any]) -> Callable[[Tensor], NDArray[Any]]:
    """How a policy's actions [B, *] become an environment's: clipped to a Box, counted from a Discrete's start."""
    dtype = space.dtype
    if isinstance(space, gymnasium.spaces.Box):
        low, high = space.low, space.high
        return lambda action: action.cpu().numpy().clip(low, high).astype(dtype, copy=False)
    start = int(getattr(space, "start", 0))
    return lambda action: (action.cpu().numpy() + start if start else action.cpu().numpy()).astype(dtype, copy=False)


def solved_of(env: VectorEnv, terminated: NDArray[np.bool_]) -> NDArray[Any]:
    """Whether episodes that ended were solved [B]: terminated, where the environment says that this is what it means; else None."""
    return terminated if getattr(env, "termination_solves", False) else np.full(len(terminated), None)


class Collector:
    """Runs a policy in B environments and keeps what it saw.

    Args:
        env: gymnasium's vector API with autoreset disabled. If it has `state_dict`, resuming is exact.
        algo: the policy; only `act` is called.
        seed: of the generator that draws a seed for every episode.
        inexact: why the environments cannot be restored, or None.
    """

    def __init__(self, env: VectorEnv, algo: Algorithm, *, seed: int, inexact: str | None = None) -> None:
        self.env, self.algo, self.inexact = env, algo, inexact
        self._rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
        self._to_env = env_actions(env.single_action_space)
        num_envs = env.num_envs
        self._obs: Tree = np.zeros(0)
        self._is_first = np.ones(num_envs, dtype=bool)
        self._carry = algo.initial_carry(num_envs)
        self._return = np.zeros(num_envs)
        self._length = np.zeros(num_envs, dtype=np.int64)

    def reset(self) -> None:
        """Begin an episode in every environment."""
        num_envs = self.env.num_envs
        self._obs, _ = self.env.reset(seed=self._rng.integers(SEED_LIMIT, size=num_envs))
        self._is_first = np.ones(num_envs, dtype=bool)
        self._carry = self.algo.initial_carry(num_envs)
        self._return = np.zeros(num_envs)
        self._length = np.zeros(num_envs, dtype=np.int64)

    @torch.no_grad()
    def collect(self, num_steps: int) -> tuple[Rollout, list[Episode]]:
        """Take num_steps steps in every environment; also returns the episodes that ended."""
        env, act, device = self.env, self.algo.act, self.algo.device
        num_envs, obs = env.num_envs, self._obs
        all_obs = map_tree(lambda leaf: np.empty((num_steps + 1, *leaf.shape), dtype=leaf.dtype), obs)
        columns = leaves(all_obs)
        reward = np.empty((num_steps, num_envs), dtype=np.float32)
        terminated, truncated, is_first = (np.empty((num_steps, num_envs), dtype=bool) for _ in range(3))
        actions: list[Tensor] = []
        extras: list[dict[str, Tensor]] = []
        final: list[tuple[int, NDArray[np.int64], Tree]] = []
        episodes: list[Episode] = []
        first_carry = carry = self._carry
        for t in range(num_steps):
            is_first[t] = self._is_first
            for column, leaf in zip(columns, leaves(obs), strict=True):
                column[t] = leaf
            seen, begins = send_arrays(device, pick(all_obs, t), is_first[t])
            action, carry, extra = act(seen, carry, begins, mode="train")
            actions.append(action)
            extras.append(extra)
            obs, reward[t], terminated[t], truncated[t], _ = env.step(self._to_env(action))
            self._return += reward[t]
            self._length += 1
            self._is_first = terminated[t] | truncated[t]
            if self._is_first.any():
                ended = np.flatnonzero(self._is_first)
                final.append((t, ended, pick(obs, ended)))
                solved = solved_of(env, terminated[t])[ended].tolist()
                episodes += map(Episode, self._return[ended].tolist(), self._length[ended].tolist(), solved)
                self._return[ended], self._length[ended] = 0.0, 0
                obs = self._begin_episodes(ended)
        for column, leaf in zip(columns, leaves(obs), strict=True):
            column[num_steps] = leaf
        self._obs, self._carry = obs, carry
        arrays = {
            "all_obs": all_obs, "reward": reward, "terminated": terminated, "truncated": truncated, "is_first": is_first,
            "final_t": np.concatenate([np.zeros(0, dtype=np.int64), *(np.full(len(b), t) for t, b, _ in final)]),
            "final_b": np.concatenate([np.zeros(0, dtype=np.int64), *(b for _, b, _ in final)]),
            "final_obs": map_tree(lambda *parts: np.concatenate(parts), pick(all_obs, (slice(0), 0)), *(o for _, _, o in final)),
        }  # fmt: skip
        rollout = Rollout(
            action=torch.stack(actions),
            **dict(zip(arrays, send_arrays(device, *arrays.values()), strict=True)),
            carry=first_carry,
            extras=map_tree(lambda *steps: torch.stack(steps), *extras),
        )
        return rollout, episodes

    def _begin_episodes(self, ended: NDArray[np.int64]) -> Tree:
        seeds = np.zeros(self.env.num_envs, dtype=np.int64)
        seeds[ended] = self._rng.integers(SEED_LIMIT, size=len(ended))
        obs, _ = self.env.reset(seed=seeds, options={"reset_mask": self._is_first})
        return obs

    def state_dict(self) -> State:
        return {
            "env": None if self.inexact else self.env.state_dict(),  # type: ignore[attr-defined]
            "obs": map_tree(np.array, self._obs),
            "is_first": self._is_first.copy(),
            "carry": self._carry,
            "return": self._return.copy(),
            "length": self._length.copy(),
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        """Go on where the state was taken; where environments cannot be restored, begin new episodes.

        Raises:
            CheckpointError: if an environment does not lead back to where it was.
        """
        self._rng.bit_generator.state = state["rng"]
        if self.inexact or state["env"] is None:
            self.reset()
            return
        self.env.load_state_dict(state["env"])  # type: ignore[attr-defined]
        self._obs = map_tree(lambda leaf: np.asarray(leaf).copy(), state["obs"])
        self._is_first = np.asarray(state["is_first"]).copy()
        self._carry = map_tree(lambda x: x.to(self.algo.device), state["carry"])
        self._return, self._length = np.asarray(state["return"]).copy(), np.asarray(state["length"]).copy()
