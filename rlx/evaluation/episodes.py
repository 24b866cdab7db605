"""One generator of episodes of a policy in a vector environment, which evaluations, recordings, videos and `rlx watch` consume.

E episodes, one for every seed, are played in B environments side by side; an environment that ends one begins the next that is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlx.collect import SEED_LIMIT, Episode, env_actions, solved_of
from rlx.transfer import send_arrays
from rlx.tree_ops import Tree, map_tree, pick
from rlx.types import Mode, Policy, VectorEnv

MAX_PARALLEL = 64
"""Most environments that episodes are played in side by side."""


class Stopped(Exception):
    """The episodes were interrupted, because `should_stop` returned True."""


def never() -> bool:
    """The `should_stop` of episodes that nobody interrupts."""
    return False


class Begun(NamedTuple):
    """Some environments were reset."""

    envs: NDArray[np.int64]  # [n] which
    episode: NDArray[np.int64]  # [B] index of the episode that each environment plays; E or more: a surplus one, to be ignored
    obs: Tree  # [B, *] may be reused by the environment's next step


class Stepped(NamedTuple):
    """Every environment took a step, and none was reset since."""

    episode: NDArray[np.int64]  # [B] as in `Begun`
    action: NDArray[Any]  # [B, *] as the environments took them
    extras: dict[str, Tensor]  # of the policy's output
    obs: Tree  # [B, *] the successor; may be reused by the environment's next step
    reward: NDArray[Any]  # [B]
    terminated: NDArray[np.bool_]  # [B]
    truncated: NDArray[np.bool_]  # [B] by the environment
    is_last: NDArray[np.bool_]  # [B] terminated, truncated, or cut at max_steps
    info: dict[str, Any]
    return_: NDArray[np.float64]  # [B] undiscounted, of the episode so far
    length: NDArray[np.int64]  # [B] env steps of the episode so far


def play_steps(
    env: VectorEnv,
    policy: Policy,
    seeds: NDArray[np.int64],
    *,
    mode: Mode = "eval",
    max_steps: int = 0,
    should_stop: Callable[[], bool] = never,
) -> Iterator[Begun | Stepped]:
    """Every reset and every step of one episode for each seed, until all have ended.

    Every episode that was started is finished and counted, so that short episodes do not crowd out long ones. The consumer may look at
    the environments between two items: after a `Stepped` they show where the step led.

    Args:
        env: is left in the middle of surplus episodes.
        policy: chooses the actions.
        seeds: [E] of the episodes.
        mode: how the policy acts.
        max_steps: an episode that has not ended after so many env steps is cut; 0 sets no limit.
        should_stop: is asked before the first reset and before every step.

    Raises:
        Stopped: when `should_stop` returns True.
    """
    num_envs, num_episodes = env.num_envs, len(seeds)
    to_env = env_actions(env.single_action_space)
    if should_stop():
        raise Stopped
    obs, _ = env.reset(seed=np.resize(seeds, num_envs))
    episode, next_episode = np.arange(num_envs), num_envs
    carry, is_first = policy.initial_carry(num_envs), np.ones(num_envs, dtype=bool)
    returns, lengths = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)
    yield Begun(np.arange(num_envs), episode.copy(), obs)
    ended = 0
    while ended < num_episodes:
        if should_stop():
            raise Stopped
        seen, begins = send_arrays(policy.device, map_tree(np.array, obs), is_first)
        with torch.no_grad():
            output = policy.act(seen, carry, begins, mode=mode)
        carry, action = output.carry, to_env(output.action)
        obs, reward, terminated, truncated, info = env.step(action)
        returns += reward
        lengths += 1
        is_first = terminated | truncated | (lengths == max_steps)
        yield Stepped(episode.copy(), action, output.extras, obs, reward, terminated, truncated, is_first, info,
                      return_=returns.copy(), length=lengths.copy())  # fmt: skip
        if not is_first.any():
            continue
        resets = np.flatnonzero(is_first)
        ended += int((episode[resets] < num_episodes).sum())
        episode[resets] = np.arange(next_episode, next_episode + len(resets))
        next_episode += len(resets)
        returns[resets], lengths[resets] = 0.0, 0
        if ended < num_episodes:
            obs, _ = env.reset(seed=seeds[episode % num_episodes], options={"reset_mask": is_first})
            yield Begun(resets, episode.copy(), obs)


def run_episodes(
    env: VectorEnv,
    policy: Policy,
    seeds: NDArray[np.int64],
    *,
    mode: Mode = "eval",
    max_steps: int = 0,
    should_stop: Callable[[], bool] = never,
) -> list[Episode]:
    """Return, length and outcome of one episode for every seed, in the order of the seeds; arguments as of `play_steps`.

    An environment may have `episode_measures() -> {name: [B]}`, what it measures of the episodes so far beside their returns.
    """
    episodes: dict[int, Episode] = {}
    calls = np.zeros(env.num_envs, dtype=np.int64)
    for step in play_steps(env, policy, seeds, mode=mode, max_steps=max_steps, should_stop=should_stop):
        if isinstance(step, Begun):
            calls[step.envs] = 0
            continue
        if counts_calls := "model_calls" in step.extras:
            calls += step.extras["model_calls"].cpu().numpy()
        if step.is_last.any():
            solved = solved_of(env, step.terminated).tolist()
            measured = env.episode_measures() if hasattr(env, "episode_measures") else None
            for i in np.flatnonzero(step.is_last):
                if step.episode[i] < len(seeds):
                    cut = not (step.terminated[i] or step.truncated[i])
                    measures = None if measured is None else {name: float(values[i]) for name, values in measured.items()}
                    episodes[int(step.episode[i])] = Episode(float(step.return_[i]), int(step.length[i]), solved[i],
                                                             int(calls[i]) if counts_calls else None, cut, measures)  # fmt: skip
    return [episodes[i] for i in range(len(seeds))]


class Recording(NamedTuple):
    """Observations and actions of an episode of L steps."""

    obs: list[Tree]  # [L + 1][*], the last of which is where it ended
    action: list[NDArray[Any]]  # [L][*], as the environment took them


def record_episodes(
    env: VectorEnv, policy: Policy, seeds: NDArray[np.int64], *, should_stop: Callable[[], bool] = never
) -> list[Recording]:
    """What was observed and done in one episode for every seed, in the order of the seeds; raises as `play_steps`."""
    recordings = [Recording([], []) for _ in seeds]
    for step in play_steps(env, policy, seeds, should_stop=should_stop):
        action = None if isinstance(step, Begun) else step.action
        for i in step.envs if isinstance(step, Begun) else range(env.num_envs):
            if step.episode[i] < len(seeds):
                recording = recordings[step.episode[i]]
                recording.obs.append(map_tree(np.copy, pick(step.obs, i)))
                if action is not None:
                    recording.action.append(action[i].copy())
    return recordings


def episode_seeds(num_episodes: int, *, stream: list[int], paired: bool = False) -> NDArray[np.int64]:
    """The seeds of num_episodes episodes; the first n are the same whatever num_episodes is.

    Args:
        num_episodes: how many.
        stream: seeds the generator that draws them.
        paired: an even seed is followed by the odd one above it: against an opponent, the same opening from the other side.
    """
    rng = np.random.default_rng(np.random.SeedSequence(stream))
    if not paired:
        return rng.integers(SEED_LIMIT, size=num_episodes)
    evens = 2 * rng.integers(SEED_LIMIT // 2, size=(num_episodes + 1) // 2)
    return np.stack([evens, evens + 1], axis=1).reshape(-1)[:num_episodes]
