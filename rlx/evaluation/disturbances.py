"""Batches of environments whose observations, actions or velocities are disturbed, for `rlx probe`.

The random numbers of an episode come from a generator that its seed determines, so that a disturbance is the same in every call, for every
policy, and however many environments are stepped side by side. Nothing is drawn from the global generators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rlx.tree_ops import Tree, leaves, map_tree
from rlx.types import VectorEnv

Array = NDArray[Any]
Result = tuple[Tree, Array, Array, Array, dict[str, Any]]

STREAM = 0xD157
"""With the seed of an episode, the seed of its disturbance."""


class Disturbed:
    """B environments as they are; subclasses disturb them.

    Args:
        env: the environments. What they have beyond the vector API is passed on.
    """

    def __init__(self, env: VectorEnv) -> None:
        self.env, self.num_envs = env, env.num_envs
        self.single_observation_space, self.single_action_space = env.single_observation_space, env.single_action_space
        self._rngs = [np.random.default_rng(0)] * env.num_envs
        self._is_first = np.ones(env.num_envs, dtype=bool)
        """[B] whether the next step is the first of its episode."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["env"], name)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Tree, dict[str, Any]]:
        begun = np.flatnonzero((options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool)))
        seeds = np.broadcast_to(seed, self.num_envs)
        for i in begun.tolist():
            self._rngs[i] = np.random.default_rng([STREAM, int(seeds[i])])
        self._is_first[begun] = True
        obs, info = self.env.reset(seed=seed, options=options)
        return self._observed(obs, begun), info

    def step(self, actions: Array) -> Result:
        actions = self._acted(actions)
        self._pushed()
        self._is_first[:] = False
        obs, *rest = self.env.step(actions)
        return (self._observed(obs, np.arange(self.num_envs)), *rest)

    def close(self) -> None:
        self.env.close()

    def _acted(self, actions: Array) -> Array:
        """The actions [B, *] that the environments take instead of these."""
        return actions

    def _observed(self, obs: Tree, new: NDArray[np.int64]) -> Tree:
        """The observations [B, *] that the policy gets instead of these, of which the rows `new` are new."""
        return obs

    def _pushed(self) -> None:
        """Is called before every step."""

    def _normal(self, shape: tuple[int, ...]) -> Array:
        """Unit normal numbers [B, *shape]."""
        return np.stack([rng.standard_normal(shape) for rng in self._rngs])

    def _happens(self, prob: float) -> NDArray[np.bool_]:
        """[B] events of this probability."""
        return np.array([rng.random() < prob for rng in self._rngs])


class Delayed(Disturbed):
    """Each action is taken some steps late; until then, the first action of the episode is."""

    def __init__(self, env: VectorEnv, steps: int) -> None:
        super().__init__(env)
        self._steps, self._waiting = steps, list[Array]()

    def _acted(self, actions: Array) -> Array:
        if not self._waiting:
            self._waiting = [actions.copy() for _ in range(self._steps)]
        for waiting in self._waiting:
            waiting[self._is_first] = actions[self._is_first]
        self._waiting.append(actions.copy())
        return self._waiting.pop(0)


class Sticky(Disturbed):
    """The action that was taken last is repeated with some probability (Machado et al. 2018, https://arxiv.org/abs/1709.06009)."""

    def __init__(self, env: VectorEnv, prob: float) -> None:
        super().__init__(env)
        self._prob, self._last = prob, np.zeros(0)

    def _acted(self, actions: Array) -> Array:
        repeats = self._happens(self._prob) & ~self._is_first
        actions = actions.copy()
        if repeats.any():
            actions[repeats] = self._last[repeats]
        self._last = actions
        return actions


class NoisyActions(Disturbed):
    """Gaussian noise is added to the numbers of an action, within their bounds.

    Args:
        env: whose action space is a bounded Box.
        std: in halves of the range of each number.
    """

    def __init__(self, env: VectorEnv, std: float) -> None:
        super().__init__(env)
        space = env.single_action_space
        assert isinstance(space, gymnasium.spaces.Box)
        self._low, self._high = space.low, space.high
        self._std = std * (space.high - space.low) / 2.0

    def _acted(self, actions: Array) -> Array:
        noise = self._normal(self._low.shape) * self._std
        return (actions + noise).clip(self._low, self._high).astype(actions.dtype)


class ScaledActions(Disturbed):
    """The distance of an action from the middle of its range is multiplied, within its bounds; the action space is a bounded Box."""

    def __init__(self, env: VectorEnv, factor: float) -> None:
        super().__init__(env)
        space = env.single_action_space
        assert isinstance(space, gymnasium.spaces.Box)
        self._low, self._high, self._factor = space.low, space.high, factor

    def _acted(self, actions: Array) -> Array:
        centre = (self._low + self._high) / 2.0
        return (centre + self._factor * (actions - centre)).clip(self._low, self._high).astype(actions.dtype)


class RandomActions(Disturbed):
    """A choice is replaced by a random one with some probability.

    Args:
        env: whose action space is discrete, see `is_discrete`.
        prob: of an action.
    """

    def __init__(self, env: VectorEnv, prob: float) -> None:
        super().__init__(env)
        self._prob, self._draw = prob, _uniform_of(env.single_action_space)

    def _acted(self, actions: Array) -> Array:
        actions = actions.copy()
        for i in np.flatnonzero(self._happens(self._prob)).tolist():
            actions[i] = self._draw(self._rngs[i])
        return actions


def is_discrete(space: gymnasium.Space[Any]) -> bool:
    """Whether `RandomActions` can draw from an action space."""
    return isinstance(space, gymnasium.spaces.Discrete | gymnasium.spaces.MultiDiscrete | gymnasium.spaces.MultiBinary)


def is_bounded(space: gymnasium.Space[Any]) -> bool:
    """Whether an action space is a Box of real numbers with bounds."""
    return isinstance(space, gymnasium.spaces.Box) and space.is_bounded() and space.dtype.kind == "f"


def _uniform_of(space: gymnasium.Space[Any]) -> Callable[[np.random.Generator], Any]:
    if isinstance(space, gymnasium.spaces.MultiBinary):
        return lambda rng: rng.integers(2, size=space.shape)
    start = np.asarray(getattr(space, "start", 0))
    choices = space.n if isinstance(space, gymnasium.spaces.Discrete) else space.nvec  # type: ignore[attr-defined]
    return lambda rng: start + rng.integers(choices)


class NoisyObservations(Disturbed):
    """Gaussian noise is added to what is observed; images stay bytes.

    Args:
        env: the environments.
        std: in units of `scale`.
        scale: a tree like an observation: the standard deviation of each number, 0 where it stays as it is.
    """

    def __init__(self, env: VectorEnv, std: float, scale: Tree) -> None:
        super().__init__(env)
        self._scale = map_tree(lambda leaf: std * leaf, scale)
        self._seen: Tree = None

    def _observed(self, obs: Tree, new: NDArray[np.int64]) -> Tree:
        if self._seen is None:
            self._seen = map_tree(np.array, obs)
        map_tree(lambda seen, leaf, scale: self._disturb(seen, leaf, scale, new), self._seen, obs, self._scale)
        return map_tree(np.array, self._seen)

    def _disturb(self, seen: Array, leaf: Array, scale: Array, new: NDArray[np.int64]) -> None:
        if not scale.any():
            seen[new] = leaf[new]
            return
        for i in new.tolist():
            noisy = leaf[i] + scale * self._rngs[i].standard_normal(scale.shape)
            seen[i] = np.rint(noisy).clip(0, 255) if leaf.dtype == np.uint8 else noisy


class Observer(Disturbed):
    """Changes nothing, and measures how much each number of the observations varies."""

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self._count = 0
        self._first: Tree = None  # is subtracted, so that the squares are of numbers about 0
        self._sums: Tree = None  # [2, *] of the numbers and of their squares

    def _observed(self, obs: Tree, new: NDArray[np.int64]) -> Tree:
        if self._first is None:
            self._first = map_tree(lambda leaf: leaf[new[0]].astype(np.float64), obs)
            self._sums = map_tree(lambda first: np.zeros((2, *first.shape)), self._first)
        self._count += len(new)
        map_tree(lambda sums, leaf, first: _add(sums, leaf[new] - first), self._sums, obs, self._first)
        return obs

    def scale(self) -> Tree:
        """The standard deviation of each number, in a tree like an observation; 0 for what is neither a real number nor of an image."""

        def deviation(sums: Array, space: gymnasium.Space[Any]) -> Array:
            mean, square = sums / self._count
            return np.sqrt(np.maximum(0.0, square - np.square(mean))) * _can_be_noisy(space)

        return map_tree(deviation, self._sums, _spaces_tree(self.single_observation_space))


def _add(sums: Array, values: Array) -> None:
    sums[0] += values.sum(axis=0)
    sums[1] += np.square(values).sum(axis=0)


def can_be_noisy(space: gymnasium.Space[Any]) -> bool:
    """Whether an observation has a number that noise can be added to."""
    return any(map(_can_be_noisy, leaves(_spaces_tree(space))))


def _can_be_noisy(space: gymnasium.Space[Any]) -> bool:
    if not isinstance(space, gymnasium.spaces.Box):
        return False
    return space.dtype.kind == "f" or (space.dtype == np.uint8 and int(space.high.max()) == 255)


def _spaces_tree(space: gymnasium.Space[Any]) -> Tree:
    """The spaces of the arrays of an observation, as a tree of the same structure."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {key: _spaces_tree(part) for key, part in space.spaces.items()}
    if isinstance(space, gymnasium.spaces.Tuple):
        return tuple(map(_spaces_tree, space.spaces))
    return space


class Pushed(Disturbed):
    """The body's velocity is changed at regular intervals, in a random direction along the ground.

    Args:
        env: the environments.
        speed: by how much, in m/s.
        velocities: of each environment, a function that returns its velocities as an array that can be written to.
        planar: whether the first two velocities are those along x and y; else the first is, and the direction is forwards or backwards.
        every: steps between pushes.
    """

    def __init__(self, env: VectorEnv, speed: float, velocities: Sequence[Callable[[], Array]], *, planar: bool, every: int = 50) -> None:
        super().__init__(env)
        self._speed, self._velocities, self._planar, self._every = speed, velocities, planar, every
        self._steps = np.zeros(env.num_envs, dtype=np.int64)

    def _pushed(self) -> None:
        self._steps[self._is_first] = 0
        self._steps += 1
        for i in np.flatnonzero(self._steps % self._every == 0).tolist():
            angle = 2.0 * math.pi * self._rngs[i].random()
            velocity = self._velocities[i]()
            if self._planar:
                velocity[:2] += self._speed * np.array([math.cos(angle), math.sin(angle)])
            else:
                velocity[0] += math.copysign(self._speed, math.cos(angle))
