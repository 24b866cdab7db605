"""Collects rollouts: steps the environments under an algorithm's policy."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlx.distributed import ALONE, World
from rlx.errors import CheckpointError, PluginError
from rlx.shares import join_states, part_of_state
from rlx.transfer import send_arrays
from rlx.tree_ops import leaves, map_tree, pick, put
from rlx.types import Algorithm, Rollout, State, Tree, VectorEnv

SEED_LIMIT = 2**31 - 1
"""Episode seeds are below this: what every environment accepts."""


def _mix(number: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The hash of each number: splitmix64 (Steele, Lea and Flood 2014), as `rlx.envs.splitmix` has it for kernels."""
    z = number + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class EpisodeSeeds:
    """The seed of each episode: a hash of the run's seed, the environment's index and the episode's number.

    It does not depend on the order in which episodes end, which is another one where the environments are divided among processes.

    Args:
        seed: of the run.
        num_envs: number of environments.
        first: index of the first among all environments of the run.
    """

    def __init__(self, seed: int, num_envs: int, *, first: int = 0) -> None:
        of_run = _mix(np.array([seed % 2**64], dtype=np.uint64))
        envs = np.arange(first, first + num_envs).astype(np.uint64)
        self._of_env = _mix(of_run + envs)  # [B]
        self.num_begun = np.zeros(num_envs, dtype=np.int64)
        """Episodes that have begun in each environment [B]."""

    def next(self, envs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The seeds of the episodes that begin in these environments, in [0, SEED_LIMIT)."""
        number = self.num_begun[envs]
        self.num_begun[envs] = number + 1
        return (_mix(self._of_env[envs] + number.astype(np.uint64)) % np.uint64(SEED_LIMIT)).astype(np.int64)


class Episode(NamedTuple):
    """One finished episode."""

    return_: float  # undiscounted
    length: int  # env steps
    solved: bool | None = None  # None where the environment does not say
    model_calls: int | None = None  # steps of the agent's model; None where it has none
    cut: bool = False  # an evaluation ended the episode at its limit of steps
    measures: dict[str, float] | None = None  # in an evaluation, what the environment measures beside the return


def env_actions(space: gymnasium.Space[Any]) -> Callable[[Tensor], NDArray[Any]]:
    """A function from a policy's actions [B, *] to the environment's: clipped to a Box, or counted from the start of a discrete space."""
    convert = env_array_actions(space)
    return lambda action: convert(action.cpu().numpy())


def env_array_actions(space: gymnasium.Space[Any]) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """`env_actions` for actions that are arrays."""
    dtype = space.dtype
    if isinstance(space, gymnasium.spaces.Box):
        low, high = space.low, space.high
        return lambda action: action.clip(low, high).astype(dtype, copy=False)
    start = np.ravel(getattr(space, "start", 0))
    if start.any():
        return lambda action: (action + start).astype(dtype, copy=False)
    return lambda action: action.astype(dtype, copy=False)


def solved_of(env: VectorEnv, terminated: NDArray[np.bool_]) -> NDArray[Any]:
    """Whether the episodes that ended were solved [B]: `terminated` where the environment declares `termination_solves`, else None."""
    return terminated if getattr(env, "termination_solves", False) else np.full(len(terminated), None)


@runtime_checkable
class ActsOnArrays(Protocol):
    """An algorithm that can act without tensors."""

    def array_policy(self) -> Callable[[NDArray[Any]], NDArray[Any]] | None:
        """A function from observations [B, *] to the actions [B, *] of `act` in mode "train", as a new array.

        None on an accelerator, and where `act` needs a carry or returns extras.
        """
        ...


def array_policy(algo: Algorithm) -> Callable[[NDArray[Any]], NDArray[Any]] | None:
    """The algorithm's `array_policy`; None if it has none, or overrides `act` without it."""
    if not isinstance(algo, ActsOnArrays) or "act" in vars(algo):
        return None
    defined = next(c for c in type(algo).__mro__ if "act" in vars(c) or "array_policy" in vars(c))
    return algo.array_policy() if "array_policy" in vars(defined) else None


class _Acting:
    """Chooses actions from observations [T + 1, B, *] with `act`, and keeps them with its extras."""

    def __init__(
        self, algo: Algorithm, to_env: Callable[[Tensor], NDArray[Any]], carry: Tree, all_obs: Tree, is_first: NDArray[Any]
    ) -> None:
        self.carry = carry
        self._algo, self._to_env, self._all_obs, self._is_first = algo, to_env, all_obs, is_first
        self._actions: list[Tensor] = []
        self._extras: list[dict[str, Tensor]] = []

    def __call__(self, t: int) -> NDArray[Any]:
        """The environments' actions [B, *] in step t."""
        seen, begins = send_arrays(self._algo.device, pick(self._all_obs, t), self._is_first[t])
        action, self.carry, extra = self._algo.act(seen, self.carry, begins, mode="train")
        if t == 0 and action.shape[:1] != begins.shape:
            raise PluginError(f"act() returned actions of shape {tuple(action.shape)}, expected one for each of {len(begins)} environments")
        self._actions.append(action)
        self._extras.append(extra)
        return self._to_env(action)

    def actions(self) -> Tensor:
        """[T, B, *] before clipping to the action space."""
        return torch.stack(self._actions)

    def extras(self) -> dict[str, Tensor]:
        """{name: [T, B, *]}."""
        extras: dict[str, Tensor] = map_tree(lambda *steps: torch.stack(steps), *self._extras)
        return extras


class _ActingOnArrays:
    """As `_Acting`, with an `array_policy`: making and reading tensors would take longer than a small network."""

    def __init__(
        self,
        choose: Callable[[NDArray[Any]], NDArray[Any]],
        to_env: Callable[[NDArray[Any]], NDArray[Any]],
        carry: Tree,
        all_obs: NDArray[Any],
    ) -> None:
        self.carry = carry
        self._choose, self._to_env, self._all_obs = choose, to_env, all_obs
        self._actions: list[NDArray[Any]] = []

    def __call__(self, t: int) -> NDArray[Any]:
        action = self._choose(self._all_obs[t])
        self._actions.append(action)
        return self._to_env(action)

    def actions(self) -> Tensor:
        return torch.from_numpy(np.stack(self._actions))

    def extras(self) -> dict[str, Tensor]:
        return {}


class Collector:
    """Runs a policy in B environments and returns rollouts.

    Args:
        env: gymnasium's vector API with autoreset disabled. If it has `state_dict`, resuming is exact.
        algo: the policy; only `act` is called.
        seed: of the run, from which the seeds of all episodes follow.
        inexact: why the environments cannot be restored, or None.
        world: the ranks among which the run's environments are divided.
    """

    def __init__(self, env: VectorEnv, algo: Algorithm, *, seed: int, inexact: str | None = None, world: World = ALONE) -> None:
        self.env, self.algo, self.inexact = env, algo, inexact
        self._world = world
        self._own = self._world.share(env.num_envs * self._world.size)
        self._seeds = EpisodeSeeds(seed, env.num_envs, first=self._own.start)
        self._to_env, self._arrays_to_env = env_actions(env.single_action_space), env_array_actions(env.single_action_space)
        num_envs = env.num_envs
        self._obs: Tree = np.zeros(0)
        self._is_first = np.ones(num_envs, dtype=bool)
        self._carry = algo.initial_carry(num_envs)
        self._return = np.zeros(num_envs)
        self._length = np.zeros(num_envs, dtype=np.int64)

    def reset(self) -> None:
        """Begin an episode in every environment."""
        num_envs = self.env.num_envs
        self._obs, _ = self.env.reset(seed=self._seeds.next(np.arange(num_envs)))
        self._is_first = np.ones(num_envs, dtype=bool)
        self._carry = self.algo.initial_carry(num_envs)
        self._return = np.zeros(num_envs)
        self._length = np.zeros(num_envs, dtype=np.int64)

    @torch.no_grad()
    def collect(self, num_steps: int) -> tuple[Rollout, list[Episode]]:
        """The rollout of num_steps steps in every environment, and the episodes that ended in it; all ranks call this together.

        Rank 0 gets the episodes of all ranks, and the others get none.
        """
        step, num_envs, obs = self.env.step, self.env.num_envs, self._obs
        all_obs = map_tree(lambda leaf: np.empty((num_steps + 1, *leaf.shape), dtype=leaf.dtype), obs)
        store = all_obs.__setitem__ if isinstance(all_obs, np.ndarray) else functools.partial(put, all_obs)
        reward = np.empty((num_steps, num_envs), dtype=np.float32)
        terminated, truncated = np.empty((num_steps, num_envs), dtype=bool), np.empty((num_steps, num_envs), dtype=bool)
        is_first = np.empty((num_steps + 1, num_envs), dtype=bool)
        is_first[0] = self._is_first
        final: list[tuple[int, NDArray[np.int64], Tree]] = []
        episodes: list[Episode] = []
        counted = 0  # steps that are part of self._return and self._length
        acting = self._acting(all_obs, is_first)
        store(0, obs)
        for t in range(num_steps):
            obs, reward[t], terminated[t], truncated[t], info = step(acting(t))
            ends = np.logical_or(terminated[t], truncated[t], is_first[t + 1])
            if 1 in ends.tobytes():  # a tenth of the time of `ends.any()`
                ended = np.flatnonzero(ends)
                final.append((t, ended, pick(obs, ended)))
                self._count(reward[counted : t + 1])
                counted = t + 1
                solved = solved_of(self.env, terminated[t])[ended].tolist()
                episodes += map(Episode, self._return[ended].tolist(), self._length[ended].tolist(), solved)
                self._return[ended], self._length[ended] = 0.0, 0
                obs = self._begin_episodes(ended, ends)
            if "life_lost" in info:
                terminated[t] |= info["life_lost"]  # for learning only: the episode goes on
            store(t + 1, obs)
        self._count(reward[counted:])
        first_carry, self._carry = self._carry, acting.carry
        self._obs, self._is_first = obs, is_first[num_steps].copy()
        arrays = {
            "all_obs": all_obs, "reward": reward, "terminated": terminated, "truncated": truncated, "is_first": is_first[:num_steps],
            "final_t": np.concatenate([np.zeros(0, dtype=np.int64), *(np.full(len(b), t) for t, b, _ in final)]),
            "final_b": np.concatenate([np.zeros(0, dtype=np.int64), *(b for _, b, _ in final)]),
            "final_obs": map_tree(lambda *parts: np.concatenate(parts), pick(all_obs, (slice(0), 0)), *(o for _, _, o in final)),
        }  # fmt: skip
        rollout = Rollout(
            action=acting.actions(),
            **dict(zip(arrays, send_arrays(self.algo.device, *arrays.values()), strict=True)),
            carry=first_carry,
            extras=acting.extras(),
        )
        return rollout, self._all_episodes(rollout, episodes)

    def _acting(self, all_obs: Tree, is_first: NDArray[np.bool_]) -> _Acting | _ActingOnArrays:
        """How actions are chosen from observations [T + 1, B, *]: on arrays where both the observation and the policy allow it."""
        if isinstance(all_obs, np.ndarray) and not leaves(self._carry) and (choose := array_policy(self.algo)):
            return _ActingOnArrays(choose, self._arrays_to_env, self._carry, all_obs)
        return _Acting(self.algo, self._to_env, self._carry, all_obs, is_first)

    def _count(self, reward: NDArray[np.float32]) -> None:
        """Add rewards [T, B] to the returns of the open episodes, one step after the other: the rounding is that of a running sum."""
        if len(reward) == 1:
            self._return += reward[0]
        else:
            self._return = np.add.accumulate(np.concatenate((self._return[None], reward)), axis=0)[-1]
        self._length += len(reward)

    def _begin_episodes(self, ended: NDArray[np.int64], mask: NDArray[np.bool_]) -> Tree:
        seeds = np.zeros(self.env.num_envs, dtype=np.int64)
        seeds[ended] = self._seeds.next(ended)
        obs, _ = self.env.reset(seed=seeds, options={"reset_mask": mask})
        return obs

    def _all_episodes(self, rollout: Rollout, episodes: list[Episode]) -> list[Episode]:
        """On rank 0 the episodes that ended on all ranks, in the order in which one process would have collected them; else none."""
        if self._world.size == 1:
            return episodes
        ended = zip(rollout.final_t.tolist(), (rollout.final_b + self._own.start).tolist(), episodes, strict=True)
        every = self._world.gather(list(ended))
        return [episode for _, _, episode in sorted(itertools.chain.from_iterable(every or []), key=lambda one: one[:2])]

    def state_dict(self) -> State:
        """The state of all environments, on rank 0; all ranks call this together."""
        if self._world.size == 1:
            return self._state()
        parts = self._world.gather({**self._state(), "carry": map_tree(lambda x: x.cpu(), self._carry)})
        return join_states(parts) if parts else {}

    def _state(self) -> State:
        return {
            "env": None if self.inexact else self.env.state_dict(),  # type: ignore[attr-defined]
            "obs": map_tree(np.array, self._obs),
            "is_first": self._is_first.copy(),
            "carry": self._carry,
            "return": self._return.copy(),
            "length": self._length.copy(),
            "episodes": self._seeds.num_begun.copy(),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue this rank's part of a saved state; begin new episodes if environments cannot be restored.

        Raises:
            CheckpointError: if replaying an environment's episode does not reproduce it, or an rlx with other seeds saved the state.
        """
        if self._world.size > 1:
            state = part_of_state(state, self._own)
        if "episodes" in state:
            self._seeds.num_begun = np.asarray(state["episodes"]).copy()
        elif not self.inexact:
            raise CheckpointError("the checkpoint was saved by an rlx that drew the seeds of episodes in another way: use the version that "
                                  "wrote it (see meta.json); `rlx resume --inexact` goes on with new episodes instead")  # fmt: skip
        if self.inexact or state["env"] is None:
            self.reset()
            return
        self.env.load_state_dict(state["env"])  # type: ignore[attr-defined]
        self._obs = map_tree(lambda leaf: np.asarray(leaf).copy(), state["obs"])
        self._is_first = np.asarray(state["is_first"]).copy()
        self._carry = map_tree(lambda x: x.to(self.algo.device), state["carry"])
        self._return, self._length = np.asarray(state["return"]).copy(), np.asarray(state["length"]).copy()
