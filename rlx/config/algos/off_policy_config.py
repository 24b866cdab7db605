"""Settings that the agents have in common which learn from a replay: SAC, TD3 and DQN."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

from rlx.config.algos.base_config import WIDE_LAYER, GradientConfig
from rlx.config.algos.policy_gradient_config import Activation, EncoderKind
from rlx.config.setting import require, setting


@dataclass(kw_only=True)
class OffPolicyConfig(GradientConfig):
    """What every agent with a replay of single steps has."""

    takes_trees: ClassVar[bool] = True

    rollout_length: int = setting(1, at_least=1, at_most=1_000_000)
    """Env steps per env between updates, T. It changes how often the agent learns, not how much: see utd."""
    utd: float = setting(1.0, above=0, at_most=1_000)
    """Gradient steps per env step, over all environments (update-to-data ratio): 8 environments take as many as one for the same steps."""
    initial_steps: int = setting(1_000, at_least=1)
    """Env steps, over all environments, with random actions before learning begins."""
    replay_size: int = setting(1_000_000, at_least=1)
    """Newest env steps to learn from; at least initial_steps."""
    batch_size: int = setting(256, at_least=1, at_most=1_000_000)
    """Env steps of a gradient step, drawn anew for each."""
    discount: float = setting(0.99, within="[0, 1]")
    """Per-step gamma."""
    n_step: int = setting(1, at_least=1, at_most=1_000)
    """Rewards that a target adds up before it bootstraps; fewer where an episode ends."""
    max_grad_norm: float = setting(math.inf, above=0, infinite=True)
    """Gradients are scaled down to this global norm; inf never does."""
    encoder: EncoderKind = EncoderKind.auto
    """What turns observations into features. auto chooses by the space of each part of the observation (`rlx show RUN` says what and
    why); nature and impala are the convolutions for images of Mnih et al. 2015 (https://doi.org/10.1038/nature14236) and of Espeholt et
    al. 2018 (https://arxiv.org/abs/1802.01561); grid are those for small boards; mlp flattens everything into one vector."""
    hidden_sizes: list[int] = setting([256, 256], at_least=1, at_most=8_192, expected="positive widths, e.g. [256,256]")
    """Widths of the hidden layers of each network, behind the encoder; [] for none."""
    activation: Activation = Activation.relu
    """Non-linearity of the hidden layers."""
    layer_norm: bool = False
    """Normalise what goes into each non-linearity of the networks of values."""

    def check(self) -> None:
        expected = f"at least algo.initial_steps={self.initial_steps}"
        require(self.replay_size >= self.initial_steps, "algo.replay_size", expected, self.replay_size)

    def check_num_envs(self, num_envs: int) -> None:
        """A window of n steps can be drawn once n steps of its environment follow the first one."""
        many = f"algo.n_step={self.n_step} and env.num_envs={num_envs}"
        least = self.n_step * num_envs
        require(self.initial_steps >= least, "algo.initial_steps", f"at least {least} for {many}", self.initial_steps)
        require(self.replay_size >= least + num_envs, "algo.replay_size", f"at least {least + num_envs} for {many}", self.replay_size)

    def gains_from_gpu(self, *, on_board: bool) -> bool:
        return self.encoder in (EncoderKind.nature, EncoderKind.impala) or max(self.hidden_sizes, default=0) > WIDE_LAYER

    def least_weights(self) -> int:
        return sum(a * b for a, b in itertools.pairwise(self.hidden_sizes))
