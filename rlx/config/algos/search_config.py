"""Settings that algorithms with tree search have in common: `algo.search.*`, the network and the replay."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from rlx.config.algos.base_config import WIDE_CONVOLUTION, GradientConfig, Suits
from rlx.config.setting import require, setting


class SearchRule(Enum):
    gumbel = "gumbel"
    puct = "puct"


_PUCT, _GUMBEL = "algo.search.rule=puct", "algo.search.rule=gumbel"


@dataclass(kw_only=True)
class SearchSettings:
    """`algo.search.*` of every tree search."""

    num_simulations: int = setting(32, at_least=1, at_most=100_000)
    """Simulations of the search before each move."""
    num_eval_simulations: int | None = setting(None, at_least=1, at_most=100_000)
    """Simulations before each move in evaluations; null is num_simulations."""
    num_leaves: int = setting(1, at_least=1, at_most=10_000)
    """Leaves of one tree per network evaluation, spread by virtual losses; more than 1 helps where few games run at a time."""
    c_puct: float = setting(1.25, above=0)
    """PUCT's exploration constant; values are within [-1, 1], in MuZero scaled to [0, 1]."""


@dataclass(kw_only=True)
class GuidedSearchSettings(SearchSettings):
    """`algo.search.*` where the policy is trained on the search's targets."""

    rule: SearchRule = SearchRule.gumbel
    """gumbel: improves the policy even with few simulations; puct: the search of the papers, for hundreds of simulations."""
    max_considered: int = setting(16, at_least=1, at_most=10_000, used_if=_GUMBEL)
    """Largest number of moves that the search considers at the root."""
    c_visit: float = setting(50.0, at_least=0, used_if=_GUMBEL)
    """Weight of values against logits at 0 visits, to which the largest visit count of a move is added."""
    c_scale: float = setting(1.0, above=0, used_if=_GUMBEL)
    """Weight of values, scaled to [0, 1], against logits."""
    num_leaves: int = setting(1, at_least=1, at_most=10_000, used_if=_PUCT)
    """Leaves of one tree per network evaluation, spread by virtual losses; more than 1 helps where few games run at a time."""
    c_puct: float = setting(1.25, above=0, used_if=_PUCT)
    """PUCT's exploration constant; values are within [-1, 1], in MuZero scaled to [0, 1]."""
    fpu_reduction: float = setting(0.25, at_least=0, used_if=_PUCT)
    """First-play urgency: an unvisited move's value is its parent's minus this times the square root of the visited prior."""
    dirichlet_alpha: float | None = setting(None, above=0, used_if=(_PUCT, "algo.search.dirichlet_fraction is above 0"))
    """Concentration of the noise on the root's prior; null is 10 divided by the number of legal moves."""
    dirichlet_fraction: float = setting(0.25, within="[0, 1]", used_if=_PUCT)
    """Share of the noise in the root's prior."""

    def arguments(self, *, explore: bool) -> dict[str, Any]:
        """The settings as `rlx.planning.search.SearchConfig` takes them; without `explore` there is no noise at the root."""
        return {
            "gumbel": self.rule is SearchRule.gumbel,
            "max_considered": self.max_considered,
            "c_visit": self.c_visit,
            "c_scale": self.c_scale,
            "gumbel_scale": 1.0 if explore else 0.0,
            "c_init": self.c_puct,
            "fpu_reduction": self.fpu_reduction,
            "dirichlet_alpha": self.dirichlet_alpha if explore else 0.0,
            "dirichlet_fraction": self.dirichlet_fraction,
            "num_leaves": self.num_leaves,
        }


@dataclass(kw_only=True)
class TreeSearchConfig(GradientConfig):
    """What every algorithm with tree search has."""

    suits: ClassVar[tuple[Suits, ...]] = (Suits.games,)

    search: SearchSettings = field(default_factory=SearchSettings)
    learning_rate: float = setting(2e-3, above=0)
    """Adam's step size at the start."""
    num_blocks: int = setting(5, at_least=1, at_most=1_000)
    """Residual blocks of the network."""
    num_channels: int = setting(64, at_least=1, at_most=8_192)
    """Channels of each convolution."""
    batch_size: int = setting(512, at_least=1)
    """Positions per gradient step."""
    replay_ratio: float = setting(4.0, above=0)
    """Times that a position is trained on, on average."""
    replay_size: int = 200_000
    """Newest positions to train on; at least batch_size."""
    weight_decay: float = setting(1e-4, at_least=0)
    """The papers' c: this times the squared norm of the weights is part of the loss."""

    def check(self) -> None:
        expected = f"at least algo.batch_size={self.batch_size}"
        require(self.replay_size >= self.batch_size, "algo.replay_size", expected, self.replay_size)

    def least_weights(self) -> int:
        return self.num_blocks * 2 * 9 * self.num_channels**2

    def gains_from_gpu(self, *, on_board: bool) -> bool:
        return self.num_channels >= WIDE_CONVOLUTION


@dataclass(kw_only=True)
class GuidedSearchConfig(TreeSearchConfig):
    """What AlphaZero and MuZero have in common."""

    search: GuidedSearchSettings = field(default_factory=GuidedSearchSettings)
    replay_start: int = 5_000
    """Positions to collect before the first gradient step; at least batch_size."""

    def check(self) -> None:
        super().check()
        require(self.replay_start >= self.batch_size, "algo.replay_start", f"at least algo.batch_size={self.batch_size}", self.replay_start)
        require(
            self.replay_start <= self.replay_size, "algo.replay_start", f"at most algo.replay_size={self.replay_size}", self.replay_start
        )
