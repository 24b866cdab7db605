"""Batches of gymnasium environments without autoreset, and snapshots of them by replay.

The interface is Gymnasium's vector API (`AutoresetMode.DISABLED`): the caller resets what has ended, each episode with a seed
of its own, so that no reset observation is ever mistaken for a successor. Gymnasium's own SyncVectorEnv has the same
interface. It is not used because it merges info dictionaries, which costs 10 to 15 microseconds a step, a quarter of a
HalfCheetah step, and because a snapshot needs the environments one by one.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import create_empty_array
from numpy.typing import NDArray

from rlx.envs.contract import env_error, non_finite
from rlx.envs.masks import RandomPlayer
from rlx.envs.snapshots import has_native_state, has_snapshots, put_back, snapshot_defect, take
from rlx.errors import CheckpointError, ConfigError, RlxError
from rlx.spaces import original_space
from rlx.tree_ops import Tree, leaves, map_tree, pick, put

Array = NDArray[Any]
MakeEnv = Callable[[], "gymnasium.Env[Any, Any]"]

_LONG_EPISODE = 100_000
"""Steps of an open episode after which the growth of its log is announced."""
_PATIENCE_S = 0.5
"""A replay that takes longer is announced."""


OnReplay = Callable[[int], None]
"""Called with the number of steps that have been replayed since the last call."""


class RestorableEnv(Protocol):
    """A vector env (`rlx.types.VectorEnv`) whose every episode follows from its seed and its actions."""

    num_envs: int
    single_observation_space: gymnasium.Space[Any]
    single_action_space: gymnasium.Space[Any]

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Tree, dict[str, Any]]: ...

    def step(self, actions: Array) -> tuple[Tree, Array, Array, Array, dict[str, Any]]: ...

    def restore(self, seeds: Sequence[int], actions: Sequence[Array], on_replay: OnReplay) -> tuple[Tree, list[Array]]:
        """Reset env i with seeds[i] and apply actions[i] [steps, *].

        Returns:
            The observations [B, *], and for each env the rewards [steps], fewer where the episode ended before the last step.
        """
        ...

    def close(self) -> None: ...


class GymVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """B gymnasium environments stepped one after the other in this process.

    Args:
        make: builds one environment; its observation space is a Box, or a Dict or Tuple of them.
        num_envs: B.
        first: number of the first one in errors, where these are a part of a larger batch.

    Raises:
        EnvError: from reset, step and restore, when an environment raises, breaks gymnasium's contract or returns numbers that are
            not finite.
        ConfigError: if the environments differ in their spaces.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  (the API's own class attribute)

    def __init__(self, make: MakeEnv, num_envs: int, *, first: int = 0) -> None:
        self.num_envs, self._first = num_envs, first
        self.envs: list[gymnasium.Env[Any, Any]] = []
        try:
            for _ in range(num_envs):
                self.envs.append(make())
        except BaseException:
            self.close()
            raise
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        for i, env in enumerate(self.envs):
            ours = self.single_observation_space, self.single_action_space
            check_same_spaces(ours, (env.observation_space, env.action_space), first + i)
        self.reports_life_loss = bool(getattr(self.envs[0].unwrapped, "reports_life_loss", False))
        self.has_snapshots, self.has_native_state = has_snapshots(self.envs[0]), has_native_state(self.envs[0])
        obs = create_empty_array(self.single_observation_space, num_envs, fn=np.zeros)
        self.write_to(obs, np.zeros(num_envs, np.float32), *(np.zeros(num_envs, bool) for _ in range(3)))
        self._now, self._start, self._seeds = 0, [0] * num_envs, [0] * num_envs  # for errors: steps taken, when and how episodes began

    def write_to(self, obs: Tree, reward: Array, terminated: Array, truncated: Array, life_lost: Array) -> None:
        """Write the environments' returns into these arrays [B, *] from now on."""
        self._obs, self._reward, self._terminated, self._truncated, self._life_lost = obs, reward, terminated, truncated, life_lost
        self._floats = [leaf for leaf in leaves(obs) if leaf.dtype.kind == "f"]
        self._set_obs = obs.__setitem__ if isinstance(obs, np.ndarray) else functools.partial(put, obs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Tree, dict[str, Any]]:
        """Begin episodes where `options["reset_mask"]` (default everywhere); seed is one integer per env.

        The arrays returned here and by `step` are overwritten by the next call.
        """
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        for i in np.flatnonzero(mask).tolist():
            self._begin(i, int(seed[i]))
        return self._obs, {}

    def _begin(self, i: int, seed: int) -> None:
        self._seeds[i], self._start[i] = seed, self._now
        try:
            obs, _ = self.envs[i].reset(seed=seed)
            self._set_obs(i, obs)
        except (Exception, SystemExit) as error:
            raise self._error(i, "reset", error) from error
        if not all(np.isfinite(leaf[i]).all() for leaf in self._floats):
            raise non_finite(self._name(i), self._first + i, self._where(i, "reset"), pick(self._obs, i), 0.0, None)

    def step(self, actions: Array) -> tuple[Tree, Array, Array, Array, dict[str, Any]]:
        set_obs, reward, terminated, truncated = self._set_obs, self._reward, self._terminated, self._truncated
        life_lost = self._life_lost if self.reports_life_loss else None
        self._now += 1
        i = 0
        try:
            for i, action in enumerate(actions.copy()):  # an env may keep its action or change it; the log must not change
                obs, reward[i], terminated[i], truncated[i], info = self.envs[i].step(action)
                set_obs(i, obs)
                if life_lost is not None:
                    life_lost[i] = info.get("life_lost", False)
        except (Exception, SystemExit) as error:
            raise self._error(i, "step", error) from error
        if not (np.isfinite(reward).all() and all(np.isfinite(leaf).all() for leaf in self._floats)):
            self._refuse_non_finite(actions)
        return self._obs, reward, terminated, truncated, {} if life_lost is None else {"life_lost": life_lost}

    def _refuse_non_finite(self, actions: Array) -> None:
        for i in range(self.num_envs):
            if not (np.isfinite(self._reward[i]) and all(np.isfinite(leaf[i]).all() for leaf in self._floats)):
                where = self._where(i, "step")
                raise non_finite(self._name(i), self._first + i, where, pick(self._obs, i), self._reward[i], actions[i])

    def restore(self, seeds: Sequence[int], actions: Sequence[Array], on_replay: OnReplay = lambda _: None) -> tuple[Tree, list[Array]]:
        rewards = []
        for i, env in enumerate(self.envs):
            self._begin(i, int(seeds[i]))
            earned: list[Any] = []
            for t, action in enumerate(np.array(actions[i])):
                self._start[i] = self._now - t - 1
                try:
                    obs, reward, terminated, truncated, _ = env.step(action)
                    self._set_obs(i, obs)
                except (Exception, SystemExit) as error:
                    raise self._error(i, "replay", error) from error
                earned.append(reward)
                on_replay(1)
                if (terminated or truncated) and t + 1 < len(actions[i]):
                    break
            rewards.append(np.array(earned, dtype=np.float32))
        return self._obs, rewards

    def models(self) -> list[Any]:
        """The MjModel of each environment that has one; a change of it shows in the steps that follow."""
        found = (getattr(env.unwrapped, "model", None) for env in self.envs)
        return [model for model in found if type(model).__name__ == "MjModel"]

    def snapshots(self) -> list[dict[str, Any]]:
        """The state of every environment."""
        return list(map(take, self.envs))

    def restore_snapshots(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Bring every environment to its state.

        Raises:
            CheckpointError: if one does not accept it.
        """
        for i, (env, state) in enumerate(zip(self.envs, states, strict=True)):
            self._start[i] = self._now
            try:
                put_back(env, state)
            except CheckpointError:
                raise
            except (Exception, SystemExit) as error:
                raise CheckpointError(
                    f"environment {self._first + i} ({self._name(i)}) does not accept its saved state ({type(error).__name__}: {error}); "
                    "`rlx resume --inexact` goes on with new episodes instead"
                ) from error

    def close(self, **kwargs: Any) -> None:
        """Close all environments; errors are ignored, so that one of them does not keep the others open."""
        for env in self.envs:
            with contextlib.suppress(Exception, SystemExit):
                env.close()

    def _name(self, i: int) -> str:
        env = self.envs[i]
        return env.spec.id if env.spec else type(env.unwrapped).__name__

    def _where(self, i: int, call: str) -> str:
        if call == "reset":
            return f"reset with seed {self._seeds[i]}"
        return f"step {self._now - self._start[i]} of the episode with seed {self._seeds[i]}"

    def _error(self, i: int, call: str, error: BaseException) -> RlxError:
        return env_error(self._name(i), self._first + i, call, self._where(i, call), error)


Spaces = tuple[gymnasium.Space[Any], gymnasium.Space[Any]]
"""Of observations and of actions."""


def check_same_spaces(expected: Spaces, found: Spaces, index: int) -> None:
    """Raise a ConfigError if an environment of a batch differs from the first in its spaces."""
    for kind, ours, theirs in zip(("observation", "action"), expected, found, strict=True):
        if ours != theirs or original_space(ours) != original_space(theirs):
            raise ConfigError(
                f"environment {index} has {kind} space {original_space(theirs)}, where the first one has {original_space(ours)}: "
                "all environments of a run must have the same spaces"
            )


class ReplayVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Adds a `state_dict` to a restorable vector env: the seed and the actions of every open episode.

    Pickling would lose the state: MuJoCo and Box2D environments pickle to their constructor arguments.
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
        self._rewards: deque[Array] = deque()  # of the same
        self._obs: Tree = np.zeros(0)
        self._has_warned = False
        self.note: Callable[[str], None] = lambda _: None
        """Called with a message about a replay that takes long, or an episode that does not end."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Tree, dict[str, Any]]:
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        self._seeds[mask] = np.asarray(seed, dtype=np.int64)[mask]
        self._start[mask] = self._now
        for _ in range(len(self._actions) - int(self._now - self._start.min())):
            self._actions.popleft()
            self._rewards.popleft()
        self._obs, info = self.env.reset(seed=seed, options=options)
        return self._obs, info

    def step(self, actions: Array) -> tuple[Tree, Array, Array, Array, dict[str, Any]]:
        self._actions.append(actions)
        self._now += 1
        result = self.env.step(actions)
        self._obs = result[0]
        self._rewards.append(result[1].copy())
        if len(self._actions) >= _LONG_EPISODE and not self._has_warned:
            self._has_warned = True
            self.note(
                f"warning: an episode has not ended for {_LONG_EPISODE:,} steps; its actions are kept and replayed by a resume, so that "
                "memory and checkpoints grow with it: give the environment a time limit, or state_dict() and load_state_dict()"
            )
        return result

    def state_dict(self) -> dict[str, Any]:
        log = np.stack(self._actions) if self._actions else np.zeros((0, self.num_envs, *self.single_action_space.shape))  # type: ignore[misc]
        rewards = np.stack(self._rewards) if self._rewards else np.zeros((0, self.num_envs), dtype=np.float32)
        lengths = self._now - self._start
        return {
            "seeds": self._seeds.tolist(),
            "actions": [log[len(log) - n :, i] for i, n in enumerate(lengths)],
            "rewards": [rewards[len(log) - n :, i] for i, n in enumerate(lengths)],
            "obs": map_tree(np.array, self._obs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replay the open episodes.

        Raises:
            CheckpointError: if an environment gives other rewards than were saved, or ends at another observation.
        """
        if "seeds" not in state:
            raise CheckpointError("the checkpoint holds states of environments that are replayed here: the environment's package has "
                                  "another version; `rlx resume --inexact` goes on with new episodes instead")  # fmt: skip
        self._seeds = np.asarray(state["seeds"], dtype=np.int64)
        actions = [np.asarray(a) for a in state["actions"]]
        lengths = np.array([len(a) for a in actions])
        self._obs, rewards = self.env.restore(self._seeds.tolist(), actions, _Announcement(int(lengths.sum()), self.note))
        saved = [np.asarray(r) for r in state["rewards"]] if "rewards" in state else rewards  # checkpoints once had none
        for i in range(self.num_envs):
            found = _first_difference(rewards[i], saved[i], pick(self._obs, i), pick(state["obs"], i))
            if found is not None:
                raise CheckpointError(
                    f"replaying the open episodes, environment {i} {found}: the environment's code, its version or this machine's "
                    "arithmetic differs from the run's; `rlx resume --inexact` goes on with new episodes instead"
                )
        self._now = int(lengths.max())
        self._start = self._now - lengths
        self._actions, self._rewards = _by_step(actions, self._start, self._now), _by_step(rewards, self._start, self._now)

    def close(self, **kwargs: Any) -> None:
        self.env.close()


def _by_step(logs: Sequence[Array], start: Array, now: int) -> deque[Array]:
    """The logs of the episodes that are open at step `now`: one array [B, *] per step, zeros where an episode had not begun."""
    longest = logs[int(start.argmin())]
    rows = ([a[t - start[i]] if t >= start[i] else np.zeros_like(longest[0]) for i, a in enumerate(logs)] for t in range(now))
    return deque(map(np.stack, rows))


def _first_difference(rewards: Array, saved: Array, obs: Tree, saved_obs: Tree) -> str | None:
    """How a replayed episode differs from the saved one; None if they are equal."""
    different = np.flatnonzero(rewards != saved[: len(rewards)])
    if len(different):
        t = int(different[0])
        return f"gave the reward {rewards[t]:g} in step {t + 1} of its episode, where it had given {saved[t]:g}"
    if len(rewards) < len(saved):
        return f"ended its episode with step {len(rewards)}, where it had gone on"
    if not all(np.array_equal(a, np.asarray(b), equal_nan=True) for a, b in zip(leaves(obs), leaves(saved_obs), strict=True)):
        return f"did not come back to the observation it had been at after {len(saved)} steps"
    return None


class _Announcement:
    """Announces once, half a second into a replay, how long the whole replay takes.

    Args:
        total: steps to replay, of all environments.
        note: called with the message if the replay is long.
    """

    def __init__(self, total: int, note: Callable[[str], None]) -> None:
        self._total, self._note = total, note
        self._done, self._said, self._began = 0, False, time.monotonic()

    def __call__(self, steps: int) -> None:
        self._done += steps
        if self._said or (elapsed_s := time.monotonic() - self._began) < _PATIENCE_S:
            return
        self._said = True
        self._note(f"replaying {self._total:,} steps of the open episodes (about {elapsed_s * self._total / self._done:.0f} s); "
                   "rlx resume --inexact skips it")  # fmt: skip


class Restoring(NamedTuple):
    """How an environment can be restored."""

    by_snapshots: bool
    defect: str | None
    """Why it cannot; None if it can."""
    notes: list[str]
    """Its other oddities."""


def restoring(make: MakeEnv) -> Restoring:
    """Find out by playing how an environment can be restored.

    Raises:
        EnvError: if the environment fails on these steps.
    """
    defect, notes = None, list[str]()
    with contextlib.closing(GymVectorEnv(make, 1)) as env:
        is_stateful = env.has_snapshots
    del env  # what it holds may be freed with it
    if is_stateful:
        try:
            defect = snapshot_defect(make)
        except Exception as error:
            defect = f"state_dict() or load_state_dict() raised {type(error).__name__}: {error}"
        if defect is None:
            return Restoring(True, None, [])
        notes = [f"{defect}; its episodes are replayed instead"]
    defect, more = replay_defect(make)
    return Restoring(False, defect, notes + more)


def replay_defect(make: MakeEnv, *, steps: int = 100) -> tuple[str | None, list[str]]:
    """Why an environment cannot be restored by replay (None if it can), and its other oddities.

    The same episode is played in a new environment and in a used one, and compared. Only one environment exists at a time, because
    some simulators allow only one.

    Raises:
        EnvError: if the environment fails on these steps.
    """
    with contextlib.closing(GymVectorEnv(make, 1)) as new:
        expected = _follow(new, 2, steps)
        notes = list(getattr(new.envs[0], "notes", []))
    del new  # what it holds may be freed with it
    with contextlib.closing(GymVectorEnv(make, 1)) as used:
        _follow(used, 1, steps // 3)  # of another length, to reveal counters that run across episodes
        for _ in range(2):  # state that outlives an episode may show only in the third
            trace = _follow(used, 2, steps)
            same = (np.array_equal(a, b, equal_nan=True) for x, y in zip(trace, expected, strict=False) for a, b in zip(x, y, strict=True))
            if len(trace) != len(expected) or not all(same):
                return "the same seed and actions did not give the same episode twice", notes
    return None, notes


def _follow(env: GymVectorEnv, seed: int, steps: int) -> list[tuple[Array, ...]]:
    """The observations, rewards and flags of one environment's episode under random actions, the same ones in every call."""
    choose = RandomPlayer(env.single_observation_space, env.single_action_space)
    obs, _ = env.reset(seed=[seed])
    trace = [tuple(leaf.copy() for leaf in leaves(obs))]
    for _ in range(steps):
        obs, reward, terminated, truncated, _ = env.step(choose(pick(obs, 0))[None])
        trace.append(tuple(leaf.copy() for leaf in leaves((obs, reward, terminated, truncated))))
        if terminated[0] or truncated[0]:
            break
    return trace
