"""Settings that the agents have in common which learn from rollouts: REINFORCE, A2C and PPO, and PQN."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from rlx.config.algos.base_config import WIDE_LAYER, GradientConfig
from rlx.config.setting import setting


class Activation(Enum):
    tanh = "tanh"
    relu = "relu"
    silu = "silu"
    gelu = "gelu"
    elu = "elu"


class EncoderKind(Enum):
    auto = "auto"
    nature = "nature"
    impala = "impala"
    grid = "grid"
    mlp = "mlp"


class MemoryKind(Enum):
    none = "none"
    lstm = "lstm"
    gru = "gru"


Advantage = Enum("Advantage", {"return": "return", "to_go": "to_go", "baseline": "baseline", "q": "q", "nstep": "nstep", "gae": "gae"})
"""What a step's score is multiplied by, see `rlx.nn.advantages`. Made by a call, because `return` cannot be an attribute."""


@dataclass(kw_only=True)
class RolloutConfig(GradientConfig):
    """What every algorithm has that learns from rollouts of its newest network and then forgets them."""

    takes_trees: ClassVar[bool] = True

    rollout_length: int = setting(128, at_least=1, at_most=100_000_000)
    """Env steps per env between updates, T."""
    discount: float = setting(0.99, within="[0, 1]")
    """Per-step gamma."""
    max_grad_norm: float = setting(0.5, above=0, infinite=True)
    """Gradients are scaled down to this global norm."""
    encoder: EncoderKind = EncoderKind.auto
    """What turns observations into features. auto chooses by the space of each part of the observation (`rlx show RUN` says what and
    why); nature and impala are the convolutions for images of Mnih et al. 2015 (https://doi.org/10.1038/nature14236) and of Espeholt et
    al. 2018 (https://arxiv.org/abs/1802.01561); grid are those for small boards; mlp flattens everything into one vector."""
    memory: MemoryKind = MemoryKind.none
    """A recurrent network behind the encoder, for tasks in which an observation does not show everything that matters."""
    memory_size: int = setting(64, at_least=1, at_most=8_192, used_if="algo.memory=lstm or gru")
    """Units of the memory."""
    hidden_sizes: list[int] = setting([64, 64], at_least=1, at_most=8_192, expected="positive widths, e.g. [64,64]")
    """Widths of the hidden layers of each network, behind encoder and memory; [] for none."""
    activation: Activation = Activation.tanh
    """Non-linearity of the hidden layers."""
    layer_norm: bool = False
    """Normalise what goes into each non-linearity of the hidden layers."""
    normalize_observation: bool = False
    """Shift and scale observations by their running mean and standard deviation, then clip to observation_clip."""
    observation_clip: float = setting(10.0, above=0, infinite=True, used_if="algo.normalize_observation=true")
    """Bound on normalised observations, in standard deviations."""

    sign_reward: bool = False
    """Learn from the signs of rewards, as is usual in Atari games (Mnih et al. 2015). Reported returns are those of the environment."""

    def gains_from_gpu(self, *, on_board: bool) -> bool:
        return self.encoder in (EncoderKind.nature, EncoderKind.impala) or max(self.hidden_sizes, default=0) >= WIDE_LAYER

    def least_weights(self) -> int:
        return sum(a * b for a, b in itertools.pairwise(self.hidden_sizes))

    def network(self) -> dict[str, Any]:
        """The settings as networks of `rlx.nn` take them."""
        return {
            "hidden_sizes": self.hidden_sizes,
            "activation": self.activation.value,
            "layer_norm": self.layer_norm,
            "encoder": self.encoder.value,
            "memory": self.memory.value,
            "memory_size": self.memory_size,
            "observation_clip": self.observation_clip if self.normalize_observation else None,
        }


@dataclass(kw_only=True)
class PolicyGradientConfig(RolloutConfig):
    """What every algorithm of the policy-gradient family has."""

    value_coef: float = setting(0.5, at_least=0)
    """Weight of the value loss."""
    entropy_coef: float = setting(0.0, at_least=0)
    """Weight of the entropy bonus."""
    log_std_init: float = setting(0.0, within="[-20, 20]")
    """Initial log standard deviation of a continuous policy, the same in every state."""

    def network(self) -> dict[str, Any]:
        return {**super().network(), "log_std_init": self.log_std_init}

    def trunk(self) -> dict[str, Any]:
        """The settings of one more network like the critic, and of its optimiser."""
        return {
            "hidden_sizes": self.hidden_sizes,
            "activation": self.activation.value,
            "layer_norm": self.layer_norm,
            "max_grad_norm": self.max_grad_norm,
        }
