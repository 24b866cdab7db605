"""The settings of SAC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlx.config.algos.base_config import Suits
from rlx.config.algos.trusted_config import TrustedConfig
from rlx.config.setting import setting


@dataclass(kw_only=True)
class SACConfig(TrustedConfig):
    suits: ClassVar[tuple[Suits, ...]] = (Suits.continuous,)

    name: str = "sac"
    num_critics: int = setting(2, at_least=1, at_most=100, used_if="algo.expansion=none")
    """Value networks, K, of which a target takes the least. With an expansion there is one for each member of the model."""
    tau: float = setting(0.005, within="(0, 1]")
    """Share of the distance by which the target networks move towards the value networks in every gradient step."""
    delay: int = setting(1, at_least=1, at_most=1_000)
    """Gradient steps of the values for each one of the policy."""
    entropy_coef: float = setting(1.0, within="[4.6e-5, 7.3]")
    """Weight of the entropy, alpha; its initial value if it is adapted."""
    adapt_entropy_coef: bool = True
    """Learn alpha, within [exp(-10), exp(2)], so that the policy has target_entropy."""
    target_entropy: float | None = setting(None, used_if="algo.adapt_entropy_coef=true", neutral=None)
    """Entropy of the policy, nats, of actions in [-1, 1]; null is minus the number of an action's dimensions."""
