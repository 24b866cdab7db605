"""The settings of every algorithm: dataclasses with their defaults and their rules.

They live apart from the algorithms so that the command line can check and complete a setting without importing torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, ClassVar

from rlx.errors import ConfigError


class Activation(Enum):
    tanh = "tanh"
    relu = "relu"


class Baseline(Enum):
    none = "none"
    value = "value"


class Objective(Enum):
    clip = "clip"
    adaptive_kl = "adaptive_kl"


def require(condition: bool, key: str, expected: str, got: Any) -> None:
    """Raise a ConfigError about `key` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{key} must be {expected}, got {got}")


_RANGES: dict[str, Callable[[float], bool]] = {
    "at least 0": lambda x: 0.0 <= x < float("inf"),
    "at least 1": lambda x: x >= 1,
    "above 0": lambda x: 0.0 < x < float("inf"),
    "within [0, 1]": lambda x: 0.0 <= x <= 1.0,
    "within [0, 1)": lambda x: 0.0 <= x < 1.0,
    "within (0, 1)": lambda x: 0.0 < x < 1.0,
}
"""What is said of a range, and whether a number lies in it."""


_MOST: dict[str, int] = {
    **dict.fromkeys(("hidden_sizes", "hidden_size", "latent_size", "encoder_size"), 8_192),
    **dict.fromkeys(("num_channels", "num_encoder_channels", "num_model_channels"), 8_192),
    **dict.fromkeys(("num_blocks", "num_model_layers", "ensemble_size", "num_iterations", "rollout_depth", "num_unroll_steps"), 1_000),
    **dict.fromkeys(("num_leaves", "max_considered", "horizon", "num_particles", "max_epochs", "num_epochs"), 10_000),
    **dict.fromkeys(
        ("num_simulations", "num_eval_simulations", "num_cheap_simulations", "num_expert_simulations", "num_search_rollouts"), 100_000
    ),
    **dict.fromkeys(("num_bins", "num_candidates"), 1_000_000),
    "rollout_length": 100_000_000,
}
"""What is more than this is a slip of the keyboard, and would be found out by running out of memory or time."""
_MOST_OTHERS = 2**31 - 1
_LAYERS = 100
_FLOAT32 = 3.4028234e38, 1.1754944e-38
"""The largest number that networks can be told, and the smallest that is not 0."""


def check_numbers(config: AlgoConfig) -> None:
    """Raise a ConfigError about the first number that is no number, or that no computer here can do anything with."""
    for field_ in fields(config):
        key, value = f"algo.{field_.name}", getattr(config, field_.name)
        numbers = value if isinstance(value, list) else [value]
        if isinstance(value, list):
            require(len(value) <= _LAYERS, key, f"at most {_LAYERS} of them", f"{len(value):,}")
        for number in numbers:
            if isinstance(number, int) and not isinstance(number, bool):
                most = _MOST.get(field_.name, _MOST_OTHERS)
                require(number <= most, key, f"at most {most:,}", value if len(numbers) == 1 or len(numbers) > 9 else numbers)
            elif isinstance(number, float) and number not in (0.0, float("inf"), -float("inf")):
                require(not math.isnan(number), key, "a number", number)
                require(_FLOAT32[1] <= abs(number) <= _FLOAT32[0], key, "0, or from 1.2e-38 to 3.4e38, which float32 has", number)


def require_range(config: AlgoConfig, expected: str, *keys: str) -> None:
    """Raise a ConfigError about the first of the settings `keys` of `config` that lies outside a range of `_RANGES`."""
    for key in keys:
        got = getattr(config, key)
        require(_RANGES[expected](got), f"algo.{key}", expected, got)


def require_divisible(total: int, divisor: int, message: str) -> None:
    """Raise a ConfigError that names the nearest valid divisors unless `divisor` divides `total`."""
    if total % divisor:
        low = [n for n in range(1, math.isqrt(total) + 1) if total % n == 0]
        valid = sorted({*low, *(total // n for n in low)})
        near = [max(n for n in valid if n < divisor), *[n for n in valid if n > divisor][:1]]
        raise ConfigError(f"{message}; nearest that divide it: {' and '.join(map(str, near))}")


def require_minibatches(rollout_length: int, num_envs: int, num_minibatches: int, *, normalize: bool) -> None:
    """Raise a ConfigError unless a rollout can be dealt into so many minibatches, each of which can be normalised if it is to be."""
    batch = rollout_length * num_envs
    if normalize and batch // num_minibatches < 2:
        raise ConfigError(
            f"algo.num_minibatches={num_minibatches} leaves minibatches of one step, whose normalised advantage is 0; "
            f"use at most {batch // 2}, or algo.normalize_advantage=false"
        )
    require_divisible(
        batch,
        num_minibatches,
        f"algo.num_minibatches={num_minibatches} does not divide the batch of algo.rollout_length * env.num_envs = "
        f"{rollout_length} * {num_envs} = {batch}",
    )


WIDE_LAYER, WIDE_CONVOLUTION = 512, 32
"""Units of a dense layer and channels of a convolution from which a GPU is faster; below, every step's waiting costs more than it saves."""


@dataclass(kw_only=True)
class AlgoConfig:
    """What every algorithm has."""

    suits: ClassVar[str] = "discrete and continuous actions"
    """What it is for."""
    plays_games: ClassVar[bool] = False
    """Whether it is for two-player games."""
    plays_others: ClassVar[bool] = True
    """Whether it is for environments that are no two-player games."""
    used_in_games: ClassVar[tuple[str, ...]] = ()
    """Settings that have no effect unless the environment is a two-player game."""
    used_elsewhere: ClassVar[tuple[str, ...]] = ()
    """Settings that have no effect if it is one."""

    name: str = ""
    """Which algorithm these settings are for; set by algo=NAME."""
    learning_rate: float = 3e-4
    """Adam's step size at the start; above 0."""
    anneal_learning_rate: bool = False
    """Let the step size fall linearly to 0 over loop.total_env_steps."""

    def __post_init__(self) -> None:
        check_numbers(self)
        require_range(self, "above 0", "learning_rate")

    def gains_from_gpu(self, *, on_board: bool) -> bool:
        """Whether a GPU was measured to train faster than one core of a CPU, in observations that are large boards or not.

        Env steps per second, H200 : one core. PPO 512-512 567k : 13k; AlphaZero 4x48 861 : 353, 10x128 778 : 141; I2A 3.7k : 1.4k;
        PETS 19 : 35.
        """
        return False

    def least_weights(self) -> int:
        """A lower bound of the networks' weights, for those that could take minutes to initialise and all memory."""
        return 0

    def check_num_envs(self, num_envs: int) -> None:
        """Raise a ConfigError if the settings do not fit a batch of `num_envs` environments."""

    def unused_keys(self) -> dict[str, str]:
        """Settings that have no effect under the others, each with the setting that would give it one."""
        return {}

    def learning_rate_at(self, fraction: float) -> float:
        """Step size when `fraction` of the budget is spent."""
        return self.learning_rate * (1.0 - fraction) if self.anneal_learning_rate else self.learning_rate


@dataclass(kw_only=True)
class PolicyGradientConfig(AlgoConfig):
    """What every algorithm of the policy-gradient family has."""

    rollout_length: int = 128
    """Env steps per env between updates, T; at least 1."""
    discount: float = 0.99
    """Per-step gamma in [0, 1]."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this global norm; above 0."""
    value_coef: float = 0.5
    """Weight of the value loss; at least 0."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus; at least 0."""
    hidden_sizes: list[int] = field(default_factory=lambda: [64, 64])
    """Widths of the hidden layers of the policy and of the value network."""
    activation: Activation = Activation.tanh
    """Non-linearity of the hidden layers."""
    log_std_init: float = 0.0
    """Initial log standard deviation of a continuous policy, the same in every state."""
    normalize_observation: bool = False
    """Shift and scale observations by their running mean and standard deviation, then clip to observation_clip."""
    observation_clip: float = 10.0
    """Bound on normalised observations, in standard deviations; above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "at least 1", "rollout_length")
        require_range(self, "within [0, 1]", "discount")
        require(self.max_grad_norm > 0.0, "algo.max_grad_norm", "above 0", self.max_grad_norm)
        require_range(self, "at least 0", "value_coef", "entropy_coef")
        require(all(n >= 1 for n in self.hidden_sizes), "algo.hidden_sizes", "positive widths, e.g. [64,64]", self.hidden_sizes)
        require(abs(self.log_std_init) <= 20.0, "algo.log_std_init", "within [-20, 20]", self.log_std_init)
        require(self.observation_clip > 0.0, "algo.observation_clip", "above 0", self.observation_clip)

    def gains_from_gpu(self, *, on_board: bool) -> bool:
        return max(self.hidden_sizes, default=0) >= WIDE_LAYER

    def unused_keys(self) -> dict[str, str]:
        return {} if self.normalize_observation else {"observation_clip": "normalize_observation=true"}

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


@dataclass(kw_only=True)
class ReinforceConfig(PolicyGradientConfig):
    name: str = "reinforce"
    rollout_length: int = 32
    """Env steps per env between two looks at which episodes have ended; at least 1."""
    episodes_per_update: int = 16
    """Complete episodes that a gradient step waits for; at least 1."""
    baseline: Baseline = Baseline.value
    """What is subtracted from the return: a learnt V(s), or nothing."""
    normalize_advantage: bool = True
    """Shift and scale returns-minus-baseline to zero mean and unit deviation per update; false is the plain estimator."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "at least 1", "episodes_per_update")

    def unused_keys(self) -> dict[str, str]:
        unused = super().unused_keys()
        if self.baseline is Baseline.none:
            unused["value_coef"] = "baseline=value"
        return unused


@dataclass(kw_only=True)
class A2CConfig(PolicyGradientConfig):
    name: str = "a2c"
    rollout_length: int = 5
    """Env steps per env between updates, T; at least 1."""
    gae_lambda: float = 1.0
    """Trace decay of the advantage estimate in [0, 1]; 1 is the n-step return of the paper."""
    normalize_advantage: bool = False
    """Shift and scale advantages to zero mean and unit deviation per update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "within [0, 1]", "gae_lambda")


@dataclass(kw_only=True)
class PPOConfig(PolicyGradientConfig):
    name: str = "ppo"
    num_epochs: int = 4
    """Passes over each rollout; at least 1."""
    num_minibatches: int = 4
    """Gradient steps per pass; must divide rollout_length * env.num_envs."""
    gae_lambda: float = 0.95
    """Trace decay of the advantage estimate in [0, 1]."""
    objective: Objective = Objective.clip
    """Clipped surrogate (eq. 7 of the paper) or surrogate with an adaptive KL penalty (eq. 8)."""
    clip: float = 0.2
    """Half-width of the probability-ratio interval, in (0, 1); the paper's epsilon. Used by objective=clip."""
    kl_coef: float = 1.0
    """Initial weight of the KL penalty, above 0; the paper's beta. Used by objective=adaptive_kl."""
    kl_target: float = 0.01
    """KL divergence per update that the penalty's weight is steered to, above 0; the paper's d_targ. Used by adaptive_kl."""
    target_kl: float | None = None
    """End the passes over a rollout when the mean approximate KL divergence of a pass exceeds this; null never does."""
    value_clip: float | None = None
    """Bound on how far a value may move from the rollout's, in units of the (scaled) return; null does not bound it."""
    normalize_advantage: bool = True
    """Shift and scale advantages to zero mean and unit deviation per minibatch."""
    recompute_advantage: bool = False
    """Estimate advantages anew before each pass, from the current value function."""
    normalize_reward: bool = False
    """Divide rewards by the running standard deviation of the discounted return, then clip to reward_clip."""
    reward_clip: float = 10.0
    """Bound on scaled rewards; above 0."""
    shared_network: bool = False
    """One network for policy and value instead of two."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "at least 1", "num_epochs", "num_minibatches")
        require_range(self, "within [0, 1]", "gae_lambda")
        require_range(self, "within (0, 1)", "clip")
        require(self.kl_coef > 0.0, "algo.kl_coef", "above 0", self.kl_coef)
        require(self.kl_target > 0.0, "algo.kl_target", "above 0", self.kl_target)
        require(self.target_kl is None or self.target_kl > 0.0, "algo.target_kl", "above 0, or null", self.target_kl)
        require(self.value_clip is None or self.value_clip > 0.0, "algo.value_clip", "above 0, or null", self.value_clip)
        require(self.reward_clip > 0.0, "algo.reward_clip", "above 0", self.reward_clip)

    def unused_keys(self) -> dict[str, str]:
        unused = super().unused_keys()
        if self.num_epochs == 1:
            unused["recompute_advantage"] = "num_epochs above 1"
        if not self.normalize_reward:
            unused["reward_clip"] = "normalize_reward=true"
        if self.objective is Objective.clip:
            unused |= {"kl_coef": "objective=adaptive_kl", "kl_target": "objective=adaptive_kl"}
        else:
            unused["clip"] = "objective=clip"
        return unused

    def check_num_envs(self, num_envs: int) -> None:
        require_minibatches(self.rollout_length, num_envs, self.num_minibatches, normalize=self.normalize_advantage)
