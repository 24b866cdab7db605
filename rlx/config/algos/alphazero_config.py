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
    """Back up proven wins, losses and draws in the search tree; moves that are proven worse are neither played nor targets."""
    forced_playouts: float = setting(2.0, at_least=0, used_if=_PUCT)
    """Forced playouts of visited root moves, which are pruned from the policy target (KataGo's k); 0 forces none."""
    full_search_fraction: float = setting(1.0, within="(0, 1]", used_if=_PUCT)
    """Share of moves that get num_simulations and are trained on (KataGo's playout cap randomization). The others get
    num_cheap_simulations, without noise and forced playouts."""
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
    """Moves at the start of a game that are sampled, by Gumbel noise or in proportion to visits; later ones are the best move."""
    random_moves: float = setting(0.0, within="[0, 1]", used_if="algo.exploration_plies is above 0")
    """Share of those moves that are replaced by a random legal one, to reach rare positions. The policy target there is still the
    search's. Value targets up to there are the search's values, because the outcome depends on the random move."""
    value_mix: float = setting(0.0, within="[0, 1]")
    """Weight of the search's value in the value target; the outcome of the game has the rest."""
    steps_per_update: int = setting(1, at_least=1)
    """Gradient steps per update; between updates, a search uses the cached network evaluations of the search before."""
