"""The settings of PQN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlx.config.algos.base_config import Suits, require_minibatches
from rlx.config.algos.epsilon_config import EpsilonGreedyConfig
from rlx.config.algos.policy_gradient_config import Activation, MemoryKind, RolloutConfig
from rlx.config.setting import setting


@dataclass(kw_only=True)
class PQNConfig(RolloutConfig, EpsilonGreedyConfig):
    suits: ClassVar[tuple[Suits, ...]] = (Suits.discrete,)

    name: str = "pqn"
    learning_rate: float = setting(5e-4, above=0)
    """Adam's step size at the start."""
    rollout_length: int = setting(32, at_least=1, at_most=100_000_000)
    """Env steps per env between updates, T."""
    num_epochs: int = setting(2, at_least=1, at_most=10_000)
    """Passes over each rollout."""
    num_minibatches: int = setting(4, at_least=1)
    """Gradient steps per pass; must divide rollout_length * env.num_envs. With a memory a minibatch has whole environments, so that it
    must divide env.num_envs."""
    q_lambda: float = setting(0.65, within="[0, 1]")
    """Trace decay of the targets, lambda of Q(lambda): 0 bootstraps after one step, 1 at the end of the episode or of the rollout."""
    epsilon_fraction: float = setting(0.5, within="[0, 1]")
    """Share of loop.total_env_steps over which the probability changes linearly."""
    max_grad_norm: float = setting(10.0, above=0, infinite=True)
    """Gradients are scaled down to this global norm."""
    activation: Activation = Activation.relu
    """Non-linearity of the hidden layers."""
    layer_norm: bool = True
    """Normalise what goes into each non-linearity of the hidden layers. It takes the place of a target network: without it, values may
    diverge."""
    normalize_reward: bool = False
    """Divide rewards by the running standard deviation of the discounted return, then clip to reward_clip."""
    reward_clip: float = setting(10.0, above=0, infinite=True, used_if="algo.normalize_reward=true")
    """Bound on scaled rewards."""

    def check_num_envs(self, num_envs: int) -> None:
        has_memory = self.memory is not MemoryKind.none
        require_minibatches(self.rollout_length, num_envs, self.num_minibatches, normalize=False, has_memory=has_memory)
