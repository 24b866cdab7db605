"""The settings of A2C."""

from __future__ import annotations

from dataclasses import dataclass

from rlx.config.algos.policy_gradient_config import PolicyGradientConfig
from rlx.config.setting import setting


@dataclass(kw_only=True)
class A2CConfig(PolicyGradientConfig):
    name: str = "a2c"
    rollout_length: int = setting(5, at_least=1, at_most=100_000_000)
    """Env steps per env between updates, T."""
    gae_lambda: float = setting(1.0, within="[0, 1]")
    """Trace decay of the advantage estimate; 1 is the n-step return of the paper."""
    normalize_advantage: bool = False
    """Shift and scale advantages to zero mean and unit deviation per update."""
