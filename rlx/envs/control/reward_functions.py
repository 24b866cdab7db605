"""Rewards and terminations that are known functions of the observation, for algorithms that plan with a model.

They take torch tensors whose last dimension is that of the space; the others broadcast. Nothing here imports torch, because worker
processes do not need it: only methods of tensors are used. `tests/test_rules.py` compares each function with its environment.

A module that registers an environment can declare its rules too:
`rlx.envs.control.reward_functions.RULES["MyEnv-v0"] = Rules(…)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlx.envs.control.cartpole import THETA_LIMIT, X_LIMIT
from rlx.envs.control.poles import LENGTH
from rlx.envs.control.spaceship import Spaceship
from rlx.envs.control.spaceship_settings import SPACESHIP, spaceship_settings

if TYPE_CHECKING:
    from rlx.types import RewardFn, Tensor, TerminationFn  # which imports torch


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The known reward and termination of an environment."""

    reward: RewardFn | None = None
    reward_unknown: str = "no reward function is declared"
    """Why there is no `reward`."""
    termination: TerminationFn | None = None
    never_terminates: bool = False
    harmless: frozenset[str] = frozenset()
    """Constructor arguments that change neither reward nor termination."""


def _cosine_reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Pendulum-v1: -(theta^2 + 0.1 theta_dot^2 + 0.001 torque^2), of the state before the step."""
    theta = obs[..., 1].atan2(obs[..., 0])
    return -(theta.square() + 0.1 * obs[..., 2].square() + 0.001 * action[..., 0].clamp(-2.0, 2.0).square())


def _one(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return next_obs[..., 0] * 0.0 + 1.0  # NaN where the state is NaN


def _pole_fell(next_obs: Tensor) -> Tensor:
    return (next_obs[..., 0].abs() > X_LIMIT) | (next_obs[..., 2].abs() > THETA_LIMIT)


def _tip_reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """`rlx.envs.control.poles`: exp(-|tip - goal|^2 / length^2) - 0.01 action^2."""
    squared_distance = (next_obs[..., 0] + LENGTH * next_obs[..., 3]).square() + (LENGTH * next_obs[..., 2] - LENGTH).square()
    return (squared_distance / -(LENGTH**2)).exp() - 0.01 * action[..., 0].clamp(-1.0, 1.0).square()


def _reacher_reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Reacher-v5: -|fingertip - target| - |action|^2, of the state after the step."""
    return -next_obs[..., 8:10].square().sum(-1).sqrt() - action.square().sum(-1)


def _pusher_reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Pusher-v5: -0.5 |object - tip| - |object - goal| - 0.1 |action|^2, of the state after the step."""
    tip, thing, goal = next_obs[..., 14:17], next_obs[..., 17:20], next_obs[..., 20:23]
    near, far = (thing - tip).square().sum(-1).sqrt(), (thing - goal).square().sum(-1).sqrt()
    return -0.5 * near - far - 0.1 * action.square().sum(-1)


def _at_the_top(next_obs: Tensor) -> Tensor:
    """MountainCarContinuous-v0."""
    return (next_obs[..., 0] >= 0.45) & (next_obs[..., 1] >= 0.0)


def _mountain_car_reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return 100.0 * _at_the_top(next_obs).to(next_obs.dtype) - 0.1 * action[..., 0].square()


def _inverted_pendulum_fell(next_obs: Tensor) -> Tensor:
    return ~(next_obs[..., 1].abs() <= 0.2)  # also where it is NaN


def _inverted_pendulum_reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return (~_inverted_pendulum_fell(next_obs)).to(next_obs.dtype)


def _hopper_fell(next_obs: Tensor) -> Tensor:
    """Hopper-v5; velocities beyond 100, which end an episode too, are not observed."""
    return ~((next_obs[..., 1:].abs() < 100.0).all(-1) & (next_obs[..., 0] > 0.7) & (next_obs[..., 1].abs() < 0.2))


def _walker_fell(next_obs: Tensor) -> Tensor:
    """Walker2d-v5."""
    return ~((next_obs[..., 0] > 0.8) & (next_obs[..., 0] < 2.0) & (next_obs[..., 1].abs() < 1.0))


def _of_spaceship(kwargs: Mapping[str, Any]) -> Rules:
    """Its reward depends on the price of fuel, which is a constructor argument."""
    ship = Spaceship(spaceship_settings(kwargs))
    return Rules(reward=ship.reward, termination=ship.terminated)


_SPEED = "it is earned by the mean speed over the step's frames, which is not a function of the observations before and after it"

RULES: dict[str, Rules] = {
    "Pendulum-v1": Rules(reward=_cosine_reward, never_terminates=True, harmless=frozenset({"g"})),
    "rlx/CartPoleContinuous-v0": Rules(reward=_one, termination=_pole_fell),
    "rlx/CartPoleSwingUp-v0": Rules(reward=_tip_reward, never_terminates=True),
    "MountainCarContinuous-v0": Rules(reward=_mountain_car_reward, termination=_at_the_top),
    "Reacher-v5": Rules(reward=_reacher_reward, never_terminates=True),
    "Pusher-v5": Rules(reward=_pusher_reward, never_terminates=True),
    SPACESHIP: _of_spaceship({}),
    "InvertedPendulum-v5": Rules(
        reward=_inverted_pendulum_reward, termination=_inverted_pendulum_fell, harmless=frozenset({"reset_noise_scale"})
    ),
    "HalfCheetah-v5": Rules(
        reward_unknown=_SPEED, never_terminates=True,
        harmless=frozenset({"reset_noise_scale", "forward_reward_weight", "ctrl_cost_weight"}),
    ),
    "Swimmer-v5": Rules(
        reward_unknown=_SPEED, never_terminates=True,
        harmless=frozenset({"reset_noise_scale", "forward_reward_weight", "ctrl_cost_weight"}),
    ),
    "Hopper-v5": Rules(reward_unknown=_SPEED, termination=_hopper_fell, harmless=frozenset({"reset_noise_scale"})),
    "Walker2d-v5": Rules(reward_unknown=_SPEED, termination=_walker_fell, harmless=frozenset({"reset_noise_scale"})),
}  # fmt: skip


def rules_of(env_id: str, kwargs: Mapping[str, Any]) -> Rules:
    """The rules of an environment under these constructor arguments."""
    if env_id == SPACESHIP:
        return _of_spaceship(kwargs)
    rules = RULES.get(env_id.rpartition(":")[2], Rules())
    changed = sorted(kwargs.keys() - rules.harmless - {"max_episode_steps"})
    if not changed:
        return rules
    return Rules(reward_unknown=f"env.kwargs.{changed[0]} may change it")
