"""The settings of PPO."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rlx.config.algos.base_config import WIDE_LAYER, require_minibatches
from rlx.config.algos.policy_gradient_config import MemoryKind, PolicyGradientConfig
from rlx.config.setting import setting
from rlx.errors import ConfigError


class Objective(Enum):
    clip = "clip"
    adaptive_kl = "adaptive_kl"
    spo = "spo"


class Mirroring(Enum):
    none = "none"
    augment = "augment"


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
    """Clipped surrogate (eq. 7 of the paper), surrogate with an adaptive KL penalty (eq. 8), or spo: surrogate with a quadratic penalty on
    the probability ratio, r A - |A| (r - 1)^2 / (2 clip) (Xie et al. 2025, https://arxiv.org/abs/2401.16025)."""
    clip: float = setting(0.2, within="(0, 1)", used_if="algo.objective=clip or spo")
    """Half-width of the probability-ratio interval; the papers' epsilon."""
    kl_coef: float = setting(1.0, above=0, used_if="algo.objective=adaptive_kl")
    """Initial weight of the KL penalty; the paper's beta."""
    kl_target: float = setting(0.01, above=0, used_if="algo.objective=adaptive_kl")
    """KL divergence per update to which the penalty's weight is adapted; the paper's d_targ."""
    rpo_alpha: float = setting(0.0, at_least=0)
    """Half-width of uniform noise that is added to the mean of a Gaussian policy in every gradient step, anew in each pass: robust policy
    optimisation (Rahman and Xue 2022, https://arxiv.org/abs/2212.07536; 0.5 there, 0.01 for some tasks of MuJoCo). It keeps the policy
    from narrowing. The divergence that update/approx_kl, target_kl and adaptive_learning_rate see includes the noise. 0 adds none."""
    target_kl: float | None = setting(None, above=0)
    """Stop the passes over a rollout once the mean approximate KL divergence of a pass exceeds this; null never stops."""
    adaptive_learning_rate: bool = False
    """After each pass over a rollout, divide the step size by 1.5 if the pass' approximate KL divergence is above twice learning_rate_kl,
    and multiply it by 1.5 if the divergence is below half of it: the scheduler of rl_games (common/schedulers.py);
    rsl_rl has the same."""
    learning_rate_kl: float = setting(0.008, above=0, used_if="algo.adaptive_learning_rate=true")
    """Divergence that the adaptive step size aims at, nats; 0.008 is rl_games' for MuJoCo."""
    learning_rate_min: float = setting(1e-6, above=0, used_if="algo.adaptive_learning_rate=true")
    """Smallest adaptive step size."""
    learning_rate_max: float = setting(1e-2, above=0, used_if="algo.adaptive_learning_rate=true")
    """Largest adaptive step size."""
    adam_beta1: float = setting(0.9, within="[0, 1)")
    """Decay per gradient step of Adam's running mean of the gradient."""
    adam_beta2: float = setting(0.999, within="[0, 1)")
    """The same of the squared gradient. In long runs, policies of PPO collapse less often if it equals adam_beta1: a mean of squares that
    lags behind that of gradients lets steps grow where gradients suddenly do (Dohare et al. 2023, "Overcoming policy collapse in deep
    reinforcement learning", https://openreview.net/forum?id=m9Jfdz4ymO)."""
    value_clip: float | None = setting(None, above=0)
    """Largest change of a value from the rollout's, in units of the (scaled) return, or of its deviation under
    normalize_value; null does not clip."""
    normalize_advantage: bool = True
    """Shift and scale advantages to zero mean and unit deviation per minibatch."""
    recompute_advantage: bool = setting(False, used_if="algo.num_epochs is above 1")
    """Recompute advantages before each pass, from the current value function."""
    normalize_reward: bool = False
    """Divide rewards by the running standard deviation of the discounted return, then clip to reward_clip."""
    reward_clip: float = setting(10.0, above=0, infinite=True, used_if="algo.normalize_reward=true")
    """Bound on scaled rewards."""
    normalize_value: bool = False
    """Let the critic predict returns in units of their running standard deviation from their running mean (normalize_value of rl_games,
    normalize_returns of sample-factory). It is an alternative to normalize_reward; with both, the scaled returns are normalised."""
    popart: bool = setting(False, used_if="algo.normalize_value=true")
    """Change the critic's output layer whenever the statistics change, so that no value changes by it (van Hasselt et al. 2016,
    https://arxiv.org/abs/1602.07714)."""
    shared_network: bool = False
    """One network for policy and value instead of two. A memory, and an encoder with weights, always serve both."""
    mirror: Mirroring = setting(Mirroring.none, used_if="algo.memory=none")
    """augment learns from every step twice, as it was and as it would have been in a mirror, on bodies with a left and a right: Walker2d,
    Ant and Humanoid. The ratio of a mirrored action is to the mirrored policy, which would have taken it (Abdolhosseini et al. 2019,
    https://dl.acm.org/doi/10.1145/3359566.3360070; Mittal et al. 2024, https://arxiv.org/abs/2403.04359). Updates take twice as long."""
    critic_hidden_sizes: list[int] | None = setting(None, at_least=1, at_most=8_192, expected="positive widths, e.g. [256,256]",
                                                    used_if="algo.shared_network=false")  # fmt: skip
    """Widths of the critic's hidden layers; null for those of the policy, hidden_sizes. Values are harder to represent than actions: a
    wider critic is in Brax' and MuJoCo Playground's PPO (policy 4 x 32, value 5 x 256), and in Andrychowicz et al. 2021
    (https://arxiv.org/abs/2006.05990)."""

    stream_sizes: list[int] = setting([], at_least=1, at_most=8_192, expected="positive widths, e.g. [64]",
                                      used_if=("algo.memory=none", "algo.layer_norm=false"))  # fmt: skip
    """Widths of layers that each vector of a Dict observation has for itself, before those of hidden_sizes see all of them: what a robot
    feels and the terrain that it sees, in Heess et al. 2017 (https://arxiv.org/abs/1707.02286, section 3). [] for none."""

    def network(self) -> dict[str, Any]:
        return {**super().network(), "critic_hidden_sizes": self.critic_hidden_sizes, "stream_sizes": self.stream_sizes}

    def gains_from_gpu(self, *, on_board: bool) -> bool:
        return super().gains_from_gpu(on_board=on_board) or max(self.critic_hidden_sizes or [0]) >= WIDE_LAYER

    def least_weights(self) -> int:
        return super().least_weights() + sum(a * b for a, b in itertools.pairwise(self.critic_hidden_sizes or []))

    def check(self) -> None:
        if self.adaptive_learning_rate:
            self._check_adaptive_learning_rate()

    def _check_adaptive_learning_rate(self) -> None:
        if self.anneal_learning_rate:
            raise ConfigError("algo.adaptive_learning_rate=true and algo.anneal_learning_rate=true both set the step size; switch one off")
        if self.num_epochs == self.num_minibatches == 1:
            raise ConfigError("algo.adaptive_learning_rate=true needs a second gradient step on a rollout, since the divergence before the "
                              "first is 0: set algo.num_epochs or algo.num_minibatches above 1")  # fmt: skip
        low, high = self.learning_rate_min, self.learning_rate_max
        if not low <= self.learning_rate <= high:
            raise ConfigError(f"algo.learning_rate={self.learning_rate} must be from algo.learning_rate_min={low} to "
                              f"algo.learning_rate_max={high} where it is adaptive")  # fmt: skip

    def adapted(self, learning_rate: float, kl: float) -> float:
        """The adaptive step size after a pass with this divergence."""
        if kl > 2.0 * self.learning_rate_kl:
            return max(learning_rate / 1.5, self.learning_rate_min)
        return min(learning_rate * 1.5, self.learning_rate_max) if kl < 0.5 * self.learning_rate_kl else learning_rate

    def check_num_envs(self, num_envs: int) -> None:
        require_minibatches(self.rollout_length, num_envs, self.num_minibatches, normalize=self.normalize_advantage,
                            has_memory=self.memory is not MemoryKind.none)  # fmt: skip
