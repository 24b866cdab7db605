"""Steps the environments for every algorithm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlx.transfer import send
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


def to_tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array on the device; without a copy on the CPU, and in single precision where there is no double."""
    tensor = torch.from_numpy(array)
    if device.type == "mps" and tensor.dtype == torch.float64:
        tensor = tensor.to(torch.float32)
    return tensor.to(device)


def map_tree(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Apply a function to every tensor of a tree."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: map_tree(function, value) for key, value in tree.items()}
    return type(tree)(map_tree(function, value) for value in tree)


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
        self._on_cpu = algo.device.type == "cpu"
        num_envs = env.num_envs
        self._obs: NDArray[Any] = np.zeros(0)
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
        env, act, num_envs, obs = self.env, self.algo.act, self.env.num_envs, self._obs
        all_obs = np.empty((num_steps + 1, *obs.shape), dtype=obs.dtype)
        reward = np.empty((num_steps, num_envs), dtype=np.float32)
        terminated, truncated, is_first = (np.empty((num_steps, num_envs), dtype=bool) for _ in range(3))
        actions: list[Tensor] = []
        extras: list[dict[str, Tensor]] = []
        final: list[tuple[int, NDArray[np.int64], NDArray[Any]]] = []
        episodes: list[Episode] = []
        first_carry = carry = self._carry
        for t in range(num_steps):
            all_obs[t], is_first[t] = obs, self._is_first
            seen, begins = self._tensors(all_obs[t], is_first[t])
            action, carry, extra = act(seen, carry, begins, mode="train")
            actions.append(action)
            extras.append(extra)
            obs, reward[t], terminated[t], truncated[t], _ = env.step(self._to_env(action))
            self._return += reward[t]
            self._length += 1
            self._is_first = terminated[t] | truncated[t]
            if self._is_first.any():
                ended = np.flatnonzero(self._is_first)
                final.append((t, ended, obs[ended]))
                solved = solved_of(env, terminated[t])[ended].tolist()
                episodes += map(Episode, self._return[ended].tolist(), self._length[ended].tolist(), solved)
                self._return[ended], self._length[ended] = 0.0, 0
                obs = self._begin_episodes(ended)
        all_obs[num_steps] = obs
        self._obs, self._carry = obs, carry
        arrays = {
            "all_obs": all_obs, "reward": reward, "terminated": terminated, "truncated": truncated, "is_first": is_first,
            "final_t": np.concatenate([np.zeros(0, dtype=np.int64), *(np.full(len(b), t) for t, b, _ in final)]),
            "final_b": np.concatenate([np.zeros(0, dtype=np.int64), *(b for _, b, _ in final)]),
            "final_obs": np.concatenate([all_obs[:0, 0], *(o for _, _, o in final)]),
        }  # fmt: skip
        rollout = Rollout(
            action=torch.stack(actions),
            **dict(zip(arrays, self._tensors(*arrays.values()), strict=True)),
            carry=first_carry,
            extras={name: torch.stack([e[name] for e in extras]) for name in extras[0]},
        )
        return rollout, episodes

    def _begin_episodes(self, ended: NDArray[np.int64]) -> NDArray[Any]:
        seeds = np.zeros(self.env.num_envs, dtype=np.int64)
        seeds[ended] = self._rng.integers(SEED_LIMIT, size=len(ended))
        obs, _ = self.env.reset(seed=seeds, options={"reset_mask": self._is_first})
        return obs

    def _tensors(self, *arrays: NDArray[Any]) -> tuple[Tensor, ...]:
        """Arrays on the algorithm's device, in one transfer."""
        if self._on_cpu:
            return tuple(map(torch.from_numpy, arrays))
        device = self.algo.device
        if device.type == "mps":
            return tuple(to_tensor(array, device) for array in arrays)
        return send(device, *map(torch.from_numpy, arrays))

    def state_dict(self) -> State:
        return {
            "env": None if self.inexact else self.env.state_dict(),  # type: ignore[attr-defined]
            "obs": np.array(self._obs),
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
        self._obs = np.asarray(state["obs"]).copy()
        self._is_first = np.asarray(state["is_first"]).copy()
        self._carry = map_tree(lambda x: x.to(self.algo.device), state["carry"])
        self._return, self._length = np.asarray(state["return"]).copy(), np.asarray(state["length"]).copy()
