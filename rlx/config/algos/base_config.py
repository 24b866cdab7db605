"""What the settings of every algorithm have in common.

Settings are separate from the algorithms, so that the command line checks and completes them without importing torch.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass, field, make_dataclass
from enum import Enum
from typing import Any, ClassVar

from rlx.config.setting import check_computable, check_ranges, setting
from rlx.errors import ConfigError

WIDE_LAYER, WIDE_CONVOLUTION = 512, 32
"""Least units of a dense layer and channels of a convolution with which a GPU trains faster than a CPU core."""


class Suits(Enum):
    """Kinds of environments."""

    games = "two-player games"
    grids = "grid worlds"
    discrete = "discrete actions"
    continuous = "continuous actions"


@dataclass(kw_only=True)
class AlgoConfig:
    """Settings of any algorithm; those of a plug-in inherit from it."""

    suits: ClassVar[tuple[Suits, ...]] = (Suits.discrete, Suits.continuous)
    """The environments that the algorithm is for."""
    takes_trees: ClassVar[bool] = False
    """Whether it takes a Dict or Tuple observation as a tree of arrays, instead of as one vector."""

    name: str = ""
    """Which algorithm these settings are for; set by algo=NAME."""

    def __post_init__(self) -> None:
        check_computable(self, "algo")
        check_ranges(self, "algo")
        self.check()

    def check(self) -> None:
        """Raise a ConfigError if settings do not fit each other."""

    def check_num_envs(self, num_envs: int) -> None:
        """Raise a ConfigError if the settings do not fit a batch of `num_envs` environments."""

    @property
    def takes_images(self) -> bool:
        """Whether its network has convolutions for images."""
        return self.takes_trees

    def gains_from_gpu(self, *, on_board: bool) -> bool:
        """Whether a GPU was measured to train faster than one core of a CPU; `on_board` if observations are large boards or images.

        Env steps per second, H200 : one core. PPO 512-512 567k : 13k; AlphaZero 4x48 861 : 353, 10x128 778 : 141; I2A 3.7k : 1.4k;
        PETS 19 : 35.
        """
        return False

    def least_weights(self) -> int:
        """A lower bound of the number of weights, to refuse networks that do not fit into memory before they are built."""
        return 0


@dataclass(kw_only=True)
class StoredConfig(AlgoConfig):
    """Settings of a plug-in, read as data from a run's directory; the plug-in is neither imported nor used to check them."""

    suits: ClassVar[tuple[Suits, ...]] = tuple(Suits)

    def __post_init__(self) -> None:
        """There are no rules to check."""


def stored_config(content: dict[str, Any]) -> type[StoredConfig]:
    """A dataclass with these settings as its defaults. Raises a ValueError or TypeError if one has no name."""
    return make_dataclass(
        "StoredConfig",
        [(name, Any, field(default_factory=functools.partial(copy.deepcopy, value))) for name, value in content.items()],
        bases=(StoredConfig,),
        kw_only=True,
    )


@dataclass(kw_only=True)
class GradientConfig(AlgoConfig):
    """Settings of an algorithm that is trained by Adam."""

    learning_rate: float = setting(3e-4, above=0)
    """Adam's step size at the start."""
    anneal_learning_rate: bool = False
    """Let the step size fall linearly to 0 over loop.total_env_steps."""

    def learning_rate_at(self, fraction: float) -> float:
        """Step size when `fraction` of the budget is spent."""
        return self.learning_rate * (1.0 - fraction) if self.anneal_learning_rate else self.learning_rate


def require_divisible(total: int, divisor: int, message: str) -> None:
    """Raise a ConfigError that names the nearest valid divisors unless `divisor` divides `total`."""
    if total % divisor:
        low = [n for n in range(1, math.isqrt(total) + 1) if total % n == 0]
        valid = sorted({*low, *(total // n for n in low)})
        near = [max(n for n in valid if n < divisor), *[n for n in valid if n > divisor][:1]]
        raise ConfigError(f"{message}; nearest that divide it: {' and '.join(map(str, near))}")


def require_minibatches(rollout_length: int, num_envs: int, num_minibatches: int, *, normalize: bool, has_memory: bool = False) -> None:
    """Raise a ConfigError unless a rollout can be split into the minibatches, and each can be normalised if it is to be."""
    if has_memory:
        message = f"algo.num_minibatches={num_minibatches} does not divide env.num_envs={num_envs}, as a memory needs"
        require_divisible(num_envs, num_minibatches, message)
    batch = rollout_length * num_envs
    if normalize and batch // num_minibatches < 2:
        raise ConfigError(
            f"algo.num_minibatches={num_minibatches} leaves minibatches of one step, whose normalised advantage is 0; "
            f"use {f'at most {batch // 2}' if batch > 1 else 'a longer algo.rollout_length'}, or algo.normalize_advantage=false"
        )
    require_divisible(
        batch,
        num_minibatches,
        f"algo.num_minibatches={num_minibatches} does not divide the batch of algo.rollout_length * env.num_envs = "
        f"{rollout_length} * {num_envs} = {batch}",
    )
