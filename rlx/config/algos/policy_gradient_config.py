"""Settings that REINFORCE, A2C and PPO have in common."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rlx.config.algos.base_config import WIDE_LAYER, GradientConfig
from rlx.config.setting import setting


class Activation(Enum):
    tanh = "tanh"
    relu = "relu"


@dataclass(kw_only=True)
class PolicyGradientConfig(GradientConfig):
    """What every algorithm of the policy-gradient family has."""

    rollout_length: int = setting(128, at_least=1, at_most=100_000_000)
    """Env steps per env between updates, T."""
    discount: float = setting(0.99, within="[0, 1]")
    """Per-step gamma."""
    max_grad_norm: float = setting(0.5, above=0, infinite=True)
    """Gradients are scaled down to this global norm."""
    value_coef: float = setting(0.5, at_least=0)
    """Weight of the value loss."""
    entropy_coef: float = setting(0.0, at_least=0)
    """Weight of the entropy bonus."""
    hidden_sizes: list[int] = setting([64, 64], at_least=1, at_most=8_192, expected="positive widths, e.g. [64,64]")
    """Widths of the hidden layers of the policy and of the value network."""
    activation: Activation = Activation.tanh
    """Non-linearity of the hidden layers."""
    log_std_init: float = setting(0.0, within="[-20, 20]")
    """Initial log standard deviation of a continuous policy, the same in every state."""
    normalize_observation: bool = False
    """Shift and scale observations by their running mean and standard deviation, then clip to observation_clip."""
    observation_clip: float = setting(10.0, above=0, infinite=True, used_if="algo.normalize_observation=true")
    """Bound on normalised observations, in standard deviations."""

    def gains_from_gpu(self, *, on_board: bool) -> bool:
        return max(self.hidden_sizes, default=0) >= WIDE_LAYER

    def least_weights(self) -> int:
        return sum(a * b for a, b in itertools.pairwise(self.hidden_sizes))

    def network(self) -> dict[str, Any]:
        """The settings as `rlx.nn.networks.Network` takes them."""
        return {
            "hidden_sizes": self.hidden_sizes,
            "activation": self.activation.value,
            "log_std_init": self.log_std_init,
            "observation_clip": self.observation_clip if self.normalize_observation else None,
        }
