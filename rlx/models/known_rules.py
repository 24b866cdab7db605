"""Rewards and terminations that are known functions of the observation, and what to do where they are not."""

from __future__ import annotations

from rlx.errors import ConfigError
from rlx.types import EnvSpec, RewardFn, TerminationFn


def known_reward(spec: EnvSpec, key: str) -> RewardFn:
    """The environment's reward function.

    Args:
        spec: of the environment.
        key: of the setting that says that it is known.

    Raises:
        ConfigError: if it is not.
    """
    if spec.reward_fn is None:
        raise ConfigError(
            f"{key}=known: the reward of env={spec.id} is not known as a function of its observations ({spec.reward_unknown}); "
            f"use {key}=learned"
        )
    return spec.reward_fn


def known_termination(spec: EnvSpec, key: str, otherwise: str) -> TerminationFn | None:
    """The environment's termination function; None if its episodes never terminate.

    Args:
        spec: of the environment.
        key: of the setting that says that it is known.
        otherwise: what to do if it is not, for the message.

    Raises:
        ConfigError: if it is not known when they terminate.
    """
    if spec.termination_fn is None and not spec.never_terminates:
        raise ConfigError(f"{key}=known: it is not known when the episodes of env={spec.id} terminate{otherwise}")
    return spec.termination_fn
