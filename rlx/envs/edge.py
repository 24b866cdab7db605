"""The wrapper around environments that are not rlx's own: it checks returns and brings observations, actions and masks into rlx's form.

`rlx.spaces` describes these forms; `observations.py`, `actions.py` and `masks.py` convert to and from them.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from rlx.envs.actions import seen_actions
from rlx.envs.contract import check_flag, check_info, check_reset, check_reward, check_step
from rlx.envs.masks import masks_of, refuse_unexpected
from rlx.envs.observations import observations, with_frames
from rlx.errors import ConfigError
from rlx.spaces import ACTION_MASK, mask_width
from rlx.tree_ops import Tree

_NUMBERS = {float, int, np.float64, np.float32}
_FLAGS = {bool, np.bool_}


class Edge(gymnasium.Env[Any, Any]):
    """One environment with checked returns, converted observations and actions, and masks of actions.

    Args:
        env: any environment that gymnasium makes.
        env_id: its name in errors.
        rescale_actions: bring bounded actions to [-1, 1].
        flatten: make an observation one vector, instead of a tree of arrays; masks of actions are then not used.
        mask_in_info: whether the masks of actions are in `info`, unless they are elsewhere.

    Raises:
        ConfigError: if it has no spaces, or observations that cannot be encoded.
        BrokenContract: from reset and step.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], env_id: str, *, rescale_actions: bool, flatten: bool = True, mask_in_info: bool = False
    ) -> None:
        self.env = env
        self.spec, self.metadata, self.render_mode = env.spec, env.metadata, env.render_mode
        original, action_space = (_space_of(env, name, env_id) for name in ("observation_space", "action_space"))
        self.action_space, self._to_env = seen_actions(action_space, env_id, rescale=rescale_actions)
        masks = masks_of(env, action_space, in_info=mask_in_info)
        self._masks = None if flatten else masks
        self._flatten, self._unused_masks = flatten, flatten and masks is not None
        self._has_choices = mask_width(self.action_space) > 0
        self._expects_none = self._has_choices and self._masks is None and not flatten
        without = ACTION_MASK if self._masks is not None and self._masks.in_obs else None
        self._observe = observations(original, env_id, flatten=flatten, without=without)
        self.observation_space = with_frames(self._observe.space, env)
        if self._masks is not None:
            self.observation_space = self._masks.seen(self.observation_space, original)

    @property
    def unwrapped(self) -> gymnasium.Env[Any, Any]:
        return self.env.unwrapped

    @property
    def notes(self) -> list[str]:
        """Oddities of the environment that do no harm, as text for the user."""
        unused = ["it has masks of actions, which only algorithms such as ppo, a2c and reinforce use: forbidden actions may be chosen"]
        return self._observe.notes + unused * self._unused_masks

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tree, dict[str, Any]]:
        result = self.env.reset(seed=seed)
        obs, info = check_reset(result), result[1]
        seen = self._observe(obs)
        if self._masks is not None:
            return self._masks(seen, obs, info), {}
        if self._expects_none and ACTION_MASK in info:
            refuse_unexpected(info)
        self._unused_masks = self._unused_masks or (self._flatten and self._has_choices and ACTION_MASK in info)
        return seen, {}

    def step(self, action: Any) -> tuple[Tree, Any, bool, bool, dict[str, Any]]:
        result: Any = self.env.step(action if self._to_env is None else self._to_env(action))
        obs, reward, terminated, truncated, info = result if result.__class__ is tuple and len(result) == 5 else check_step(result)
        if reward.__class__ not in _NUMBERS:
            reward = check_reward(reward)
        if terminated.__class__ not in _FLAGS:
            terminated = check_flag(terminated, "terminated")
        if truncated.__class__ not in _FLAGS:
            truncated = check_flag(truncated, "truncated")
        if info.__class__ is not dict:
            check_info(info)
        if self._masks is not None:
            ended = terminated or truncated
            return self._masks(self._observe(obs), obs, info, ended=bool(ended)), reward, terminated, truncated, info
        if self._expects_none and ACTION_MASK in info:
            refuse_unexpected(info)
        return self._observe(obs), reward, terminated, truncated, info

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()


def _space_of(env: gymnasium.Env[Any, Any], name: str, env_id: str) -> gymnasium.Space[Any]:
    try:
        space = getattr(env, name, None)
    except Exception as error:
        raise ConfigError(f"env={env_id}: its {name} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(space, gymnasium.Space):
        raise ConfigError(f"env={env_id} has no {name}: its constructor must set it to one of gymnasium.spaces")
    return space
