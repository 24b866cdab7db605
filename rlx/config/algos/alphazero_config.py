"""The settings of AlphaZero."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlx.config.algos.search_config import GuidedSearchConfig, GuidedSearchSettings
from rlx.config.setting import setting

_PUCT = "algo.search.rule=puct"


@dataclass(kw_only=True)
class AlphaZeroSearch(GuidedSearchSettings):
    """`algo.search.*` of AlphaZero."""

    prove: bool = True
    """Carry wins, losses and draws that are certain up the search tree, and play and learn none but the best of them."""
    forced_playouts: float = setting(2.0, at_least=0, used_if=_PUCT)
    """Visits forced on a root's moves that have begun to be visited, taken off the target again (KataGo's k); 0 forces none."""
    full_search_fraction: float = setting(1.0, within="(0, 1]", used_if=_PUCT)
    """Share of moves that get num_simulations and are trained on. The others get num_cheap_simulations, without noise and forced
    playouts."""
    num_cheap_simulations: int = setting(16, at_least=1, at_most=100_000,
                                         used_if=(_PUCT, "algo.search.full_search_fraction is below 1"))  # fmt: skip
    """Simulations of the moves that are not trained on."""


@dataclass(kw_only=True)
class AlphaZeroConfig(GuidedSearchConfig):
    name: str = "alphazero"
    search: AlphaZeroSearch = field(default_factory=AlphaZeroSearch)
    value_coef: float = setting(1.0, at_least=0)
    """Weight of (z - v)^2 beside the policy's cross-entropy."""
    exploration_plies: int = setting(15, at_least=0)
    """Moves at the beginning of a game that are drawn, by Gumbel noise or in proportion to the visits; later ones are the best."""
    random_moves: float = setting(0.0, within="[0, 1]", used_if="algo.exploration_plies is above 0")
    """Share of those moves that are any legal one, so that rare positions are seen. At such a move the policy still learns the search's
    target. Values up to there learn the search's value, because the outcome does not tell how good earlier moves were."""
    value_mix: float = setting(0.0, within="[0, 1]")
    """Share of the search's own value of a position in the target of the value network, beside the outcome of the game."""
    steps_per_update: int = setting(1, at_least=1)
    """Gradient steps that are taken together; until they are due, searches reuse network evaluations of the search before."""
