"""The settings of TD3, of which DDPG is a case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlx.config.algos.base_config import Suits
from rlx.config.algos.off_policy_config import OffPolicyConfig
from rlx.config.setting import setting


@dataclass(kw_only=True)
class TD3Config(OffPolicyConfig):
    suits: ClassVar[tuple[Suits, ...]] = (Suits.continuous,)

    name: str = "td3"
    twin: bool = True
    """Two value networks, of which a target takes the lesser; false is DDPG's single one."""
    delay: int = setting(2, at_least=1, at_most=1_000)
    """Gradient steps of the values for each one of the policy and of the target networks; DDPG has 1."""
    smoothing: float = setting(0.2, at_least=0)
    """Standard deviation of the noise on the target policy's actions, where 1 is half of the action's range; DDPG has 0."""
    smoothing_clip: float = setting(0.5, above=0, infinite=True, used_if="algo.smoothing is above 0")
    """Bound on that noise."""
    exploration_std: float = setting(0.1, at_least=0)
    """Standard deviation of the noise on actions in training, where 1 is half of the action's range."""
    tau: float = setting(0.005, within="(0, 1]")
    """Share of the distance by which the target networks move towards the networks."""
