"""The settings of AlphaGo."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from rlx.config.algos.search_config import SearchSettings, TreeSearchConfig
from rlx.config.setting import require, setting


class Part(Enum):
    search = "search"
    sl_policy = "sl_policy"
    rl_policy = "rl_policy"
    rollout_policy = "rollout_policy"
    value = "value"


class ValueData(Enum):
    one_position = "one_position"
    whole_games = "whole_games"


@dataclass(kw_only=True)
class AlphaGoSearch(SearchSettings):
    """`algo.search.*` of AlphaGo. It searches in evaluations only."""

    num_simulations: int = setting(32, at_least=1, at_most=100_000, used_if="algo.search.num_eval_simulations=null")
    """Simulations of the search before each move."""
    c_puct: float = setting(2.5, above=0)
    """Exploration constant of the search."""


@dataclass(kw_only=True)
class AlphaGoConfig(TreeSearchConfig):
    name: str = "alphago"
    search: AlphaGoSearch = field(default_factory=AlphaGoSearch)
    num_expert_simulations: int = setting(200, at_least=1, at_most=100_000)
    """Simulations of the UCT player that the supervised policy imitates."""
    expert_random_moves: float = setting(0.1, within="[0, 1]")
    """Share of the experts' moves that are replaced by a random legal one, so that games differ."""
    expert_fraction: float = setting(0.1, within="(0, 1)")
    """Share of loop.total_env_steps that the experts play."""
    reinforce_fraction: float = setting(0.5, within="(0, 1)")
    """Share of loop.total_env_steps for the policy gradient. The rest is for the value network and must be above 0."""
    reinforce_learning_rate: float = setting(1e-4, above=0)
    """Adam's step size of the policy gradient."""
    entropy_coef: float = setting(0.02, at_least=0)
    """Weight of the entropy bonus of the policy gradient; at 0 the policy soon plays the same game every time."""
    games_per_update: int = setting(64, at_least=1)
    """Finished games per gradient step of the policy gradient."""
    snapshot_every: int = setting(25, at_least=1)
    """Gradient steps of the policy gradient between copies of the policy for the pool of opponents."""
    value_data: ValueData = ValueData.one_position
    """Training positions of the value network: one_position of each game, or whole_games, whose positions are correlated."""
    mix: float = setting(0.5, within="[0, 1]")
    """Weight of the rollout's outcome in a leaf's value; the value network has the rest; the paper's lambda."""
    temperature: float = setting(1.5, above=0)
    """Softmax temperature of the search's prior, which is the supervised policy."""
    player: Part = Part.search
    """Player in evaluations, as soon as it is trained: the search, or one of its parts."""

    def check(self) -> None:
        super().check()
        both = self.expert_fraction + self.reinforce_fraction
        require(both < 1.0, "algo.expert_fraction + algo.reinforce_fraction", "below 1, to leave steps for the value network", both)
