"""The settings of PPO."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rlx.config.algos.base_config import require_minibatches
from rlx.config.algos.policy_gradient_config import MemoryKind, PolicyGradientConfig
from rlx.config.setting import setting


class Objective(Enum):
    clip = "clip"
    adaptive_kl = "adaptive_kl"


@dataclass(kw_only=True)
class PPOConfig(PolicyGradientConfig):
    name: str = "ppo"
    num_epochs: int = setting(4, at_least=1, at_most=10_000)
    """Passes over each rollout."""
    num_minibatches: int = setting(4, at_least=1)
    """Gradient steps per pass; must divide rollout_length * env.num_envs. With a memory a minibatch has whole environments, so that it
    must divide env.num_envs."""
    gae_lambda: float = setting(0.95, within="[0, 1]")
    """Trace decay of the advantage estimate."""
    objective: Objective = Objective.clip
    """Clipped surrogate (eq. 7 of the paper) or surrogate with an adaptive KL penalty (eq. 8)."""
    clip: float = setting(0.2, within="(0, 1)", used_if="algo.objective=clip")
    """Half-width of the probability-ratio interval; the paper's epsilon."""
    kl_coef: float = setting(1.0, above=0, used_if="algo.objective=adaptive_kl")
    """Initial weight of the KL penalty; the paper's beta."""
    kl_target: float = setting(0.01, above=0, used_if="algo.objective=adaptive_kl")
    """KL divergence per update to which the penalty's weight is adapted; the paper's d_targ."""
    target_kl: float | None = setting(None, above=0)
    """Stop the passes over a rollout once the mean approximate KL divergence of a pass exceeds this; null never stops."""
    value_clip: float | None = setting(None, above=0)
    """Largest change of a value from the rollout's, in units of the (scaled) return; null does not clip."""
    normalize_advantage: bool = True
    """Shift and scale advantages to zero mean and unit deviation per minibatch."""
    recompute_advantage: bool = setting(False, used_if="algo.num_epochs is above 1")
    """Recompute advantages before each pass, from the current value function."""
    normalize_reward: bool = False
    """Divide rewards by the running standard deviation of the discounted return, then clip to reward_clip."""
    reward_clip: float = setting(10.0, above=0, infinite=True, used_if="algo.normalize_reward=true")
    """Bound on scaled rewards."""
    shared_network: bool = False
    """One network for policy and value instead of two. A memory, and an encoder with weights, always serve both."""

    def check_num_envs(self, num_envs: int) -> None:
        require_minibatches(self.rollout_length, num_envs, self.num_minibatches, normalize=self.normalize_advantage,
                            has_memory=self.memory is not MemoryKind.none)  # fmt: skip
