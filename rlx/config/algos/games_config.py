"""The settings of algorithms with tree search."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from rlx.config.algos.base_config import WIDE_CONVOLUTION, AlgoConfig, require, require_range


class Search(Enum):
    gumbel = "gumbel"
    puct = "puct"


@dataclass(kw_only=True)
class TreeSearchConfig(AlgoConfig):
    """What every algorithm with tree search has."""

    suits: ClassVar[str] = "two-player games"
    plays_games: ClassVar[bool] = True

    learning_rate: float = 2e-3
    """Adam's step size at the start; above 0."""
    num_simulations: int = 32
    """Positions that each move's search looks at; at least 1."""
    num_eval_simulations: int | None = None
    """Simulations of each move in evaluations, at least 1; null is num_simulations."""
    num_leaves: int = 1
    """PUCT: descents of one tree, with virtual losses, whose leaves are evaluated together, at least 1; more is for few games at a time."""
    num_blocks: int = 5
    """Residual blocks of the network; at least 1."""
    num_channels: int = 64
    """Channels of each convolution; at least 1."""
    batch_size: int = 512
    """Positions per gradient step; at least 1."""
    replay_ratio: float = 4.0
    """How often a position is trained on, on average; above 0."""
    replay_size: int = 200_000
    """Newest positions to train on; at least batch_size."""
    weight_decay: float = 1e-4
    """The papers' c: this times the squared norm of the weights is part of the loss; at least 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "at least 1", "num_simulations", "num_leaves", "num_blocks", "num_channels", "batch_size")
        require_range(self, "above 0", "replay_ratio")
        require_range(self, "at least 0", "weight_decay")
        expected = f"at least algo.batch_size={self.batch_size}"
        require(self.replay_size >= self.batch_size, "algo.replay_size", expected, self.replay_size)
        simulations = self.num_eval_simulations
        require(simulations is None or simulations >= 1, "algo.num_eval_simulations", "at least 1, or null", simulations)

    def least_weights(self) -> int:
        return self.num_blocks * 2 * 9 * self.num_channels**2

    def gains_from_gpu(self, *, on_board: bool) -> bool:
        return self.num_channels >= WIDE_CONVOLUTION


@dataclass(kw_only=True)
class GuidedSearchConfig(TreeSearchConfig):
    """A search that a policy guides, and that improves it."""

    replay_start: int = 5_000
    """Positions to collect before the first gradient step; at least batch_size."""
    search: Search = Search.gumbel
    """gumbel improves the policy with few simulations; puct is the search of the papers, for hundreds."""
    max_considered: int = 16
    """Moves that Gumbel search begins with at the root; at least 1."""
    c_visit: float = 50.0
    """Gumbel: how much values count before there are visits; at least 0."""
    c_scale: float = 1.0
    """Gumbel: weight of values, scaled to [0, 1], against logits; above 0."""
    c_puct: float = 1.25
    """PUCT: exploration rate beside values, which are within [-1, 1], in MuZero scaled to [0, 1]; above 0."""
    fpu_reduction: float = 0.25
    """PUCT: how much less an unvisited move is worth than its parent, times the square root of the prior already visited; at least 0."""
    dirichlet_alpha: float | None = None
    """PUCT: concentration of the noise on the root's prior, above 0; null is 10 over a root's legal moves."""
    dirichlet_fraction: float = 0.25
    """PUCT: the noise's share of the root's prior, within [0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "at least 1", "max_considered")
        require_range(self, "above 0", "c_scale", "c_puct")
        require_range(self, "at least 0", "c_visit", "fpu_reduction")
        require(
            self.dirichlet_alpha is None or self.dirichlet_alpha > 0.0, "algo.dirichlet_alpha", "above 0, or null", self.dirichlet_alpha
        )
        require_range(self, "within [0, 1]", "dirichlet_fraction")
        expected = f"at least algo.batch_size={self.batch_size}"
        require(self.replay_start >= self.batch_size, "algo.replay_start", expected, self.replay_start)
        expected = f"at most algo.replay_size={self.replay_size}"
        require(self.replay_start <= self.replay_size, "algo.replay_start", expected, self.replay_start)

    def unused_keys(self) -> dict[str, str]:
        if self.search is Search.gumbel:
            return dict.fromkeys(("num_leaves", "c_puct", "fpu_reduction", "dirichlet_alpha", "dirichlet_fraction"), "search=puct")
        unused = dict.fromkeys(("max_considered", "c_visit", "c_scale"), "search=gumbel")
        return unused | ({"dirichlet_alpha": "dirichlet_fraction above 0"} if self.dirichlet_fraction == 0.0 else {})

    def search_settings(self, *, explore: bool) -> dict[str, Any]:
        """The settings as `rlx.planning.search.SearchConfig` takes them; only a search that is to explore has noise at its root."""
        return {
            "gumbel": self.search is Search.gumbel,
            "max_considered": self.max_considered,
            "c_visit": self.c_visit,
            "c_scale": self.c_scale,
            "gumbel_scale": 1.0 if explore else 0.0,
            "c_init": self.c_puct,
            "fpu_reduction": self.fpu_reduction,
            "dirichlet_alpha": self.dirichlet_alpha if explore else 0.0,
            "dirichlet_fraction": self.dirichlet_fraction,
            "leaves": self.num_leaves,
        }


@dataclass(kw_only=True)
class AlphaZeroConfig(GuidedSearchConfig):
    plays_others: ClassVar[bool] = False

    name: str = "alphazero"
    value_coef: float = 1.0
    """Weight of (z - v)^2 beside the policy's cross-entropy; at least 0."""
    exploration_plies: int = 15
    """Moves at the beginning of a game that are drawn, by Gumbel's noise or in proportion to the visits; then the best is played."""
    random_moves: float = 0.0
    """Share of those moves that are any legal one, so that rare positions are seen; within [0, 1]. There policies learn what the search
    found, and values up to there learn the search's value, as the outcome no longer tells how good the moves before were."""
    value_mix: float = 0.0
    """Share of the search's own value of a position, beside what the game led to, in what the value network learns; within [0, 1]."""
    prove: bool = True
    """Carry wins, losses and draws that are certain up the search tree, and play and learn none but the best of them."""
    steps_per_update: int = 1
    """Gradient steps that are taken together, at least 1; until they are due, searches know what the network said in the one before."""
    forced_playouts: float = 2.0
    """PUCT: visits forced on a root's moves that have begun to be visited, taken off the target again (KataGo's k); 0 forces none."""
    full_search_fraction: float = 1.0
    """PUCT: share of moves that get num_simulations and are trained on; the others get num_cheap_simulations, without noise and
    forced playouts; within (0, 1]."""
    num_cheap_simulations: int = 16
    """PUCT: simulations of the moves that are not trained on; at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "at least 1", "num_cheap_simulations", "steps_per_update")
        require_range(self, "at least 0", "value_coef", "exploration_plies", "forced_playouts")
        require_range(self, "within [0, 1]", "random_moves", "value_mix")
        require(0.0 < self.full_search_fraction <= 1.0, "algo.full_search_fraction", "within (0, 1]", self.full_search_fraction)

    def unused_keys(self) -> dict[str, str]:
        unused = super().unused_keys()
        if self.exploration_plies == 0:
            unused["random_moves"] = "exploration_plies above 0"
        if self.search is Search.gumbel:
            return unused | dict.fromkeys(("forced_playouts", "full_search_fraction", "num_cheap_simulations"), "search=puct")
        return unused | ({"num_cheap_simulations": "full_search_fraction below 1"} if self.full_search_fraction == 1.0 else {})


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
class AlphaGoConfig(TreeSearchConfig):
    plays_others: ClassVar[bool] = False

    name: str = "alphago"
    num_expert_simulations: int = 200
    """Of the UCT player that the supervised policy imitates; at least 1."""
    expert_random_moves: float = 0.1
    """Share of the experts' moves that are replaced by any legal one, so that games differ; within [0, 1]."""
    expert_fraction: float = 0.1
    """Share of loop.total_env_steps that the experts play; above 0."""
    reinforce_fraction: float = 0.5
    """Share of loop.total_env_steps for the policy gradient, above 0; the rest is for the value network, above 0 too."""
    reinforce_learning_rate: float = 1e-4
    """Adam's step size of the policy gradient; above 0."""
    entropy_coef: float = 0.02
    """Weight of the entropy bonus of the policy gradient, without which the policy soon plays one game only; at least 0."""
    games_per_update: int = 64
    """Finished games per step of the policy gradient; at least 1."""
    snapshot_every: int = 25
    """Steps of the policy gradient after which the policy joins the pool of its opponents; at least 1."""
    value_data: ValueData = ValueData.one_position
    """one_position of each game for the value network, or whole_games, whose positions resemble each other."""
    mix: float = 0.5
    """Lambda: the share of a rollout's outcome, beside the value network, in what a leaf is worth; within [0, 1]."""
    c_puct: float = 2.5
    """Exploration rate of the search; above 0."""
    temperature: float = 1.5
    """The supervised policy's logits are divided by it before they guide the search; above 0."""
    player: Part = Part.search
    """What evaluations play with once it is trained: the search, or one of its parts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "at least 1", "num_expert_simulations", "games_per_update", "snapshot_every")
        require_range(self, "above 0", "reinforce_learning_rate", "c_puct", "temperature")
        require_range(self, "at least 0", "entropy_coef")
        require_range(self, "within [0, 1]", "expert_random_moves", "mix")
        require_range(self, "within (0, 1)", "expert_fraction", "reinforce_fraction")
        both = self.expert_fraction + self.reinforce_fraction
        require(both < 1.0, "algo.expert_fraction + algo.reinforce_fraction", "below 1, to leave steps for the value network", both)

    def unused_keys(self) -> dict[str, str]:
        return {} if self.num_eval_simulations is None else {"num_simulations": "num_eval_simulations=null"}  # only evaluations search
