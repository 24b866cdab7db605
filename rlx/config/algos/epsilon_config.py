"""Settings of agents that explore by taking random actions with probability epsilon."""

from __future__ import annotations

from dataclasses import dataclass

from rlx.config.algos.base_config import AlgoConfig
from rlx.config.setting import setting


@dataclass(kw_only=True)
class EpsilonGreedyConfig(AlgoConfig):
    """What every epsilon-greedy agent has."""

    epsilon_start: float = setting(1.0, within="[0, 1]")
    """Probability of a random action in training at the start."""
    epsilon_end: float = setting(0.05, within="[0, 1]")
    """Probability of a random action once epsilon_fraction of the budget is spent."""
    epsilon_fraction: float = setting(0.1, within="[0, 1]")
    """Share of loop.total_env_steps over which the probability changes linearly."""

    def epsilon_at(self, fraction: float) -> float:
        """Probability of a random action when `fraction` of the budget is spent."""
        done = min(1.0, fraction / self.epsilon_fraction) if self.epsilon_fraction > 0.0 else 1.0
        return self.epsilon_start + (self.epsilon_end - self.epsilon_start) * done
