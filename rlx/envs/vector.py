"""Batches of gymnasium environments without autoreset, and snapshots of them by replay.

The interface is Gymnasium's vector API (`AutoresetMode.DISABLED`): the caller resets what has ended, each episode with a seed
of its own, so that no reset observation is ever mistaken for a successor. Gymnasium's own SyncVectorEnv speaks the same
language; it is not used because merging info dictionaries that nobody reads costs 10 to 15 microseconds a step, a quarter of
a HalfCheetah step, and because a snapshot needs the environments one by one.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from rlx.errors import CheckpointError, EnvError

Array = NDArray[Any]
MakeEnv = Callable[[], "gymnasium.Env[Any, Any]"]


class RestorableEnv(Protocol):
    """A vector env (`rlx.types.VectorEnv`) whose every episode follows from its seed and its actions."""

    num_envs: int
    single_observation_space: gymnasium.Space[Any]
    single_action_space: gymnasium.Space[Any]

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]: ...

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]: ...

    def restore(self, seeds: Sequence[int], actions: Sequence[Array]) -> Array:
        """Reset env i with seeds[i], apply actions[i] [steps, *], and return the observations [B, *]."""
        ...

    def close(self) -> None: ...


class GymVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """B gymnasium environments stepped one after the other in this process.

    Args:
        make: builds one environment; its observation space is a Box.
        num_envs: B.

    Raises:
        EnvError: from reset, step and restore, when an environment raises.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  (the API's own class attribute)

    def __init__(self, make: MakeEnv, num_envs: int) -> None:
        self.num_envs = num_envs
        self.envs = [make() for _ in range(num_envs)]
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self._discrete = isinstance(self.single_action_space, gymnasium.spaces.Discrete)
        space = self.single_observation_space
        self._obs = np.zeros((num_envs, *space.shape), dtype=space.dtype)  # type: ignore[misc]
        self._reward = np.zeros(num_envs, dtype=np.float32)
        self._terminated = np.zeros(num_envs, dtype=bool)
        self._truncated = np.zeros(num_envs, dtype=bool)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin episodes where `options["reset_mask"]` (default everywhere); seed is one integer per env.

        The arrays returned here and by `step` are overwritten by the next call.
        """
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        for i in np.flatnonzero(mask):
            try:
                self._obs[i], _ = self.envs[i].reset(seed=int(seed[i]))
            except Exception as error:
                raise _env_error(self.envs[i], int(i), "reset", error) from error
        return self._obs, {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        obs, reward, terminated, truncated = self._obs, self._reward, self._terminated, self._truncated
        per_env = actions.tolist() if self._discrete else actions.copy()  # an env may change its action in place; the log must not
        i = 0
        try:
            for i, env in enumerate(self.envs):
                obs[i], reward[i], terminated[i], truncated[i], _ = env.step(per_env[i])
        except Exception as error:
            raise _env_error(self.envs[i], i, "step", error) from error
        return obs, reward, terminated, truncated, {}

    def restore(self, seeds: Sequence[int], actions: Sequence[Array]) -> Array:
        for i, env in enumerate(self.envs):
            try:
                self._obs[i], _ = env.reset(seed=int(seeds[i]))
                for action in actions[i].tolist() if self._discrete else map(np.copy, actions[i]):
                    self._obs[i], *_ = env.step(action)
            except Exception as error:
                raise _env_error(env, i, "replay", error) from error
        return self._obs

    def close(self, **kwargs: Any) -> None:
        for env in self.envs:
            env.close()


def _env_error(env: gymnasium.Env[Any, Any], index: int, call: str, error: Exception) -> EnvError:
    name = env.spec.id if env.spec else type(env).__name__
    return EnvError(f"environment {index} ({name}) raised {type(error).__name__} in {call}: {error}")


class ReplayVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Gives a restorable vector env a state: the seed and the actions of every open episode.

    Pickling would be shorter and wrong: MuJoCo and Box2D environments pickle to their constructor arguments.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  (the API's own class attribute)

    def __init__(self, env: RestorableEnv) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.single_observation_space = env.single_observation_space
        self.single_action_space = env.single_action_space
        self._seeds = np.zeros(env.num_envs, dtype=np.int64)
        self._start = np.zeros(env.num_envs, dtype=np.int64)  # step at which the open episode began
        self._now = 0
        self._actions: deque[Array] = deque()  # of steps [now - len, now)
        self._obs: Array = np.zeros(0)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        self._seeds[mask] = np.asarray(seed, dtype=np.int64)[mask]
        self._start[mask] = self._now
        for _ in range(len(self._actions) - int(self._now - self._start.min())):
            self._actions.popleft()
        self._obs, info = self.env.reset(seed=seed, options=options)
        return self._obs, info

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        self._actions.append(actions)
        self._now += 1
        result = self.env.step(actions)
        self._obs = result[0]
        return result

    def state_dict(self) -> dict[str, Any]:
        log = np.stack(self._actions) if self._actions else np.zeros((0, self.num_envs, *self.single_action_space.shape))  # type: ignore[misc]
        lengths = self._now - self._start
        return {
            "seeds": self._seeds.tolist(),
            "actions": [log[len(log) - n :, i] for i, n in enumerate(lengths)],
            "obs": np.array(self._obs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replay the open episodes.

        Raises:
            CheckpointError: if the environment does not arrive at the observations it was saved with.
        """
        self._seeds = np.asarray(state["seeds"], dtype=np.int64)
        actions = [np.asarray(a) for a in state["actions"]]
        self._obs = self.env.restore(self._seeds.tolist(), actions)
        if not np.array_equal(self._obs, np.asarray(state["obs"]), equal_nan=True):
            wrong = [i for i in range(self.num_envs) if not np.array_equal(self._obs[i], np.asarray(state["obs"])[i], equal_nan=True)]
            raise CheckpointError(
                f"replaying the open episodes did not lead environments {wrong} back to the observations they were saved with: "
                "the environment's code, its version or this machine's arithmetic differs from the run's; "
                "`rlx resume --inexact` goes on with new episodes instead"
            )
        lengths = np.array([len(a) for a in actions])
        self._now = int(lengths.max())
        self._start = self._now - lengths
        self._actions = deque()
        for t in range(self._now):
            row = [
                a[t - self._start[i]] if t >= self._start[i] else np.zeros_like(actions[int(lengths.argmax())][0])
                for i, a in enumerate(actions)
            ]
            self._actions.append(np.stack(row))

    def close(self, **kwargs: Any) -> None:
        self.env.close()


def replay_defect(make: MakeEnv, *, steps: int = 100) -> str | None:
    """Why an environment cannot be restored by replay, or None: an episode in a used env against the same in a new one."""
    used, new = make(), make()
    try:
        used.action_space.seed(0)
        actions = [used.action_space.sample() for _ in range(steps)]
        _follow(used, 1, actions[: steps // 3])  # of another length, so that what is counted over episodes shows
        expected = _follow(new, 2, actions)
        for _ in range(2):  # what outlives an episode may show only in the third
            trace = _follow(used, 2, actions)
            same = (np.array_equal(a, b, equal_nan=True) for x, y in zip(trace, expected, strict=False) for a, b in zip(x, y, strict=True))
            if len(trace) != len(expected) or not all(same):
                return "the same seed and actions did not give the same episode twice"
    except Exception as error:
        raise EnvError(f"the environment raised {type(error).__name__} on its first steps: {error}") from error
    finally:
        used.close()
        new.close()
    return None


def _follow(env: gymnasium.Env[Any, Any], seed: int, actions: list[Any]) -> list[tuple[Any, ...]]:
    trace: list[tuple[Any, ...]] = [(np.array(env.reset(seed=seed)[0]), 0.0, False, False)]
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(copy.copy(action))
        trace.append((np.array(obs), reward, terminated, truncated))
        if terminated or truncated:
            break
    return trace
