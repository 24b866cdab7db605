"""Environments with structured spaces, and with masks of actions in any of the places where environments keep them.

Actions that are not in the space, or are forbidden, raise.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

ACTIONS: dict[str, gymnasium.Space[Any]] = {
    "discrete": spaces.Discrete(4, start=3),
    "multi": spaces.MultiDiscrete([2, 3]),
    "bits": spaces.MultiBinary(3),
    "nested": spaces.Dict(
        move=spaces.Discrete(3, start=-1),
        force=spaces.Box(0.0, 5.0, (2, 1)),
        both=spaces.Tuple([spaces.MultiBinary((1, 2)), spaces.MultiDiscrete([[2], [3]])]),
    ),
}
OBSERVATION = spaces.Dict(
    place=spaces.Discrete(5, start=1),
    pair=spaces.MultiDiscrete([2, 3]),
    body=spaces.Tuple([spaces.Box(-9.0, 9.0, (2,)), spaces.MultiBinary(2)]),
)


def a_mask(space: gymnasium.Space[Any], rng: np.random.Generator) -> Any:
    """A random mask that allows something, in the structure of the space."""
    if isinstance(space, spaces.Dict):
        return {key: a_mask(part, rng) for key, part in space.spaces.items() if not isinstance(part, spaces.Box)}
    if isinstance(space, spaces.Tuple):
        return tuple(a_mask(part, rng) for part in space.spaces)
    sizes = [space.n] if isinstance(space, spaces.Discrete) else [2] * int(np.prod(space.shape))
    if isinstance(space, spaces.MultiDiscrete):
        sizes = space.nvec.ravel().tolist()
    masks = []
    for size in sizes:
        masks.append(rng.integers(2, size=size, dtype=np.int8))
        masks[-1][rng.integers(size)] = 1
    if isinstance(space, spaces.MultiBinary):
        return np.stack(masks)
    return masks[0] if isinstance(space, spaces.Discrete) else tuple(masks)


def forbidden(space: gymnasium.Space[Any], action: Any, mask: Any) -> bool:
    """Whether a mask of `a_mask` forbids a part of an action."""
    if isinstance(space, spaces.Dict):
        return any(forbidden(part, action[key], mask[key]) for key, part in space.spaces.items() if key in mask)
    if isinstance(space, spaces.Tuple):
        return any(map(forbidden, space.spaces, action, mask))
    chosen = [action - space.start] if isinstance(space, spaces.Discrete) else np.ravel(action).tolist()
    return not all(part[i] for part, i in zip([mask] if isinstance(space, spaces.Discrete) else mask, chosen, strict=True))


class Masked(gymnasium.Env[Any, Any]):
    """Every step has another mask.

    Args:
        where: the mask is: obs, info, method, or nowhere.
        actions: which of `ACTIONS`.
        bare: observe one number instead of a Dict; not with the mask in obs.
        broken: what the mask is from the third step on.
    """

    def __init__(self, where: str = "info", actions: str = "multi", bare: bool = False, broken: Any = "not") -> None:
        self.where, self.bare, self.broken = where, bare, broken
        self.action_space = ACTIONS[actions]
        self.observation_space = spaces.Discrete(9) if bare else OBSERVATION
        if where == "obs":
            widths = spaces.flatdim(spaces.MultiDiscrete([2, 3]))
            assert actions == "multi"
            self.observation_space = spaces.Dict({**OBSERVATION.spaces, "action_mask": spaces.MultiBinary(widths)})
        if where == "method":
            self.action_masks = lambda: self.mask

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.mask = 0, a_mask(self.action_space, self.np_random)
        return self.look(), self.info()

    def look(self) -> Any:
        if self.bare:
            return self.t
        rng = self.np_random
        body = rng.normal(size=2).astype(np.float32), rng.integers(2, size=2, dtype=np.int8)
        obs = {"place": 1 + int(rng.integers(5)), "pair": rng.integers([2, 3]), "body": body}
        return obs | ({"action_mask": np.concatenate(self.mask)} if self.where == "obs" else {})

    def info(self) -> dict[str, Any]:
        return {"action_mask": self.mask} if self.where == "info" else {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        assert self.where == "nowhere" or not forbidden(self.action_space, action, self.mask), "a forbidden action"
        self.t, self.mask = self.t + 1, a_mask(self.action_space, self.np_random)
        if self.t >= 3 and self.broken != "not":
            self.mask = self.broken
        return self.look(), float(self.t), self.t == 7, False, self.info()


class LearnsLater(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper with the masks of its environment, as a method."""

    def action_masks(self) -> Any:
        return self.env.unwrapped.mask


class Echo(gymnasium.Env[Any, Any]):
    """Observes the numbers of its last action."""

    action_space = spaces.Tuple([spaces.Discrete(4, start=2), spaces.Dict(a=spaces.MultiBinary((2, 1)), b=spaces.Box(-2.0, 6.0, (1, 2)))])
    observation_space = spaces.Box(-9.0, 9.0, (5,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(5, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        numbers = np.concatenate([np.ravel(leaf) for leaf in (action[0], action[1]["a"], action[1]["b"])]).astype(np.float32)
        return numbers, 1.0, bool(self.np_random.random() < 0.1), False, {}
