"""The settings of REINFORCE."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rlx.config.algos.policy_gradient_config import PolicyGradientConfig
from rlx.config.setting import setting


class Baseline(Enum):
    none = "none"
    value = "value"


@dataclass(kw_only=True)
class ReinforceConfig(PolicyGradientConfig):
    name: str = "reinforce"
    rollout_length: int = setting(32, at_least=1, at_most=100_000_000)
    """Env steps per env between collections of finished episodes."""
    episodes_per_update: int = setting(16, at_least=1)
    """Least number of complete episodes per gradient step."""
    baseline: Baseline = Baseline.value
    """What is subtracted from the return: a learned V(s), or nothing."""
    value_coef: float = setting(0.5, at_least=0, used_if="algo.baseline=value")
    """Weight of the value loss."""
    normalize_advantage: bool = True
    """Shift and scale returns minus the baseline to zero mean and unit deviation per update; false is the plain estimator."""
