"""Snapshots of environments that can save and restore their state: faster to restore than by replaying their episodes.

An environment has snapshots if it, or what gymnasium's own `make` wraps, has both of

    state_dict() -> dict            tensors, arrays, numbers, strings, bytes, and dictionaries, lists and tuples of them
    load_state_dict(state) -> None  after which every step is as it would have been; arrays arrive as NumPy arrays

A class may set `restores_exactly = False` to be replayed nevertheless, and `has_native_state = True` where a changed state could harm the
process, which then reads only states of runs that the user started or trusts.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from rlx.envs.edge import Edge
from rlx.envs.masks import RandomPlayer
from rlx.errors import CheckpointError
from rlx.tree_ops import Tree, leaves, map_tree

_STATELESS = Edge, OrderEnforcing, PassiveEnvChecker


class VectorEnvWithSnapshots(Protocol):
    """A vector env (`rlx.types.VectorEnv`) of environments with snapshots."""

    num_envs: int
    single_observation_space: gymnasium.Space[Any]
    single_action_space: gymnasium.Space[Any]
    has_native_state: bool

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Tree, dict[str, Any]]: ...

    def step(self, actions: Any) -> tuple[Tree, Any, Any, Any, dict[str, Any]]: ...

    def snapshots(self) -> list[dict[str, Any]]:
        """The state of every environment."""
        ...

    def restore_snapshots(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Bring every environment to its state.

        Raises:
            CheckpointError: if one does not accept it.
        """
        ...

    def close(self) -> None: ...


def _layers(env: Any) -> tuple[list[TimeLimit[Any, Any]], Any]:
    """The time limits around an environment, and the environment itself."""
    limits = []
    while isinstance(env, (*_STATELESS, TimeLimit)):
        limits += [env] if isinstance(env, TimeLimit) else []
        env = env.env
    return limits, env


def has_snapshots(env: Any) -> bool:
    """Whether an environment can be saved and restored."""
    _, inner = _layers(env)
    return all(callable(getattr(inner, name, None)) for name in ("state_dict", "load_state_dict")) and getattr(
        inner, "restores_exactly", True
    )


def has_native_state(env: Any) -> bool:
    """Whether a changed state could harm the process that restores it."""
    return bool(getattr(_layers(env)[1], "has_native_state", False))


def take(env: Any) -> dict[str, Any]:
    """An environment's state."""
    limits, inner = _layers(env)
    return {"elapsed": [limit._elapsed_steps for limit in limits], "state": inner.state_dict()}


def put_back(env: Any, saved: Mapping[str, Any]) -> None:
    """Bring an environment to a state that `take` gave."""
    limits, inner = _layers(env)
    for limit, elapsed in zip(limits, saved["elapsed"], strict=True):
        limit._elapsed_steps = elapsed
    layer = env
    while layer is not inner:
        if isinstance(layer, OrderEnforcing):
            layer._has_reset = True
        layer = layer.env
    inner.load_state_dict(saved["state"])


class SnapshotVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Adds a `state_dict` to a vector env of environments with snapshots."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  (the API's own class attribute)

    def __init__(self, env: VectorEnvWithSnapshots) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.single_observation_space, self.single_action_space = env.single_observation_space, env.single_action_space
        self.reset, self.step = env.reset, env.step  # type: ignore[method-assign]
        self.is_trusted = True
        """Whether the states that are to be restored come from a run that the user started or trusts."""

    def state_dict(self) -> dict[str, Any]:
        return {"snapshots": self.env.snapshots()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring the environments to their saved states.

        Raises:
            CheckpointError: if they do not accept them, or the states are not to be trusted.
        """
        snapshots = state.get("snapshots")
        if not isinstance(snapshots, list) or len(snapshots) != self.num_envs:
            raise CheckpointError("the checkpoint does not hold the states of its environments, which this version of them would continue; "
                                  "`rlx resume --inexact` goes on with new episodes")  # fmt: skip
        if self.env.has_native_state and not self.is_trusted:
            raise CheckpointError("the checkpoint holds the memory of an emulator, which could harm this process if somebody changed it, "
                                  "and you did not start this run; if you trust where it comes from, say --trust, or --inexact for new "
                                  "episodes")  # fmt: skip
        self.env.restore_snapshots([_with_arrays(snapshot) for snapshot in snapshots])

    def close(self, **kwargs: Any) -> None:
        self.env.close()


def _with_arrays(value: Any) -> Any:
    """A state as a checkpoint has it with arrays in the place of tensors, which worker processes do not know."""
    if isinstance(value, Mapping):
        return {key: _with_arrays(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_with_arrays, value))
    return value.numpy() if hasattr(value, "numpy") else value


def snapshot_defect(make: Callable[[], Any], *, steps: int = 60) -> str | None:
    """Why an environment's snapshots do not restore it; None if they do.

    An episode is saved half way and continued in another environment that has played before. Only one environment exists at a time.
    """
    with contextlib.closing(make()) as env:
        choose = RandomPlayer(env.observation_space, env.action_space)
        obs, _, _ = _play(env, env.reset(seed=2)[0], choose, steps)
        saved = copy.deepcopy(take(env))
        _, actions, expected = _play(env, obs, choose, steps)
    with contextlib.closing(make()) as env:
        choose = RandomPlayer(env.observation_space, env.action_space)
        _play(env, env.reset(seed=1)[0], choose, steps // 3)
        put_back(env, saved)
        again = iter(actions)
        _, _, found = _play(env, obs, lambda _: next(again), steps)
    same = all(np.array_equal(a, b, equal_nan=True) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True))
    return None if same else "the state that state_dict() gave did not continue the episode"


def _play(env: Any, obs: Tree, choose: Callable[[Tree], Any], steps: int) -> tuple[Tree, list[Any], list[list[Any]]]:
    """The last observation, the actions and what they gave; another episode begins whenever one ends."""
    actions, trace = [], []
    for _ in range(steps):
        actions.append(choose(obs))
        obs, reward, terminated, truncated, _ = env.step(actions[-1])
        trace.append([leaf.copy() for leaf in leaves(map_tree(np.asarray, obs))] + [reward, terminated, truncated])
        if terminated or truncated:
            obs, _ = env.reset(seed=3)
    return obs, actions, trace
