"""The settings of MuZero."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from rlx.config.algos.base_config import WIDE_CONVOLUTION, WIDE_LAYER, require, require_range
from rlx.config.algos.games_config import GuidedSearchConfig


class Layers(Enum):
    auto = "auto"
    dense = "dense"
    conv = "conv"


@dataclass(kw_only=True)
class MuZeroConfig(GuidedSearchConfig):
    suits: ClassVar[str] = "two-player games, discrete actions"
    used_in_games: ClassVar[tuple[str, ...]] = ("exploration_plies", "symmetries")
    used_elsewhere: ClassVar[tuple[str, ...]] = ("min_return_range",)

    name: str = "muzero"
    learning_rate: float = 1e-3
    """Adam's step size at the start; above 0."""
    layers: Layers = Layers.auto
    """dense layers, or conv where observations are boards; auto convolves boards of more than 16 cells."""
    num_blocks: int = 1
    """Residual blocks of the representation, and as many of the dynamics; at least 1."""
    num_channels: int = 128
    """Units of each layer, or channels of each convolution; at least 1."""
    batch_size: int = 128
    """Windows of num_unroll_steps per gradient step; at least 1."""
    replay_start: int = 2_000
    """Env steps to collect before the first gradient step, at least batch_size; until then actions are random."""
    steps_per_update: int = 1
    """Gradient steps that are taken together before the search uses what they learnt; at least 1."""
    max_grad_norm: float = 5.0
    """Gradients are scaled down to this global norm; above 0."""
    num_unroll_steps: int = 5
    """Steps that the model is unrolled in training, K; at least 1."""
    td_steps: int | None = None
    """Rewards in a value target before it is bootstrapped from the network, at least 1; null is 10, and in games all."""
    discount: float | None = None
    """Per-step gamma within (0, 1]; null is 0.997, and in games 1."""
    value_limit: float | None = None
    """Greatest size of a reward and of a discounted return, above 0, which larger ones are cut to; null is 300, and in games 1."""
    num_bins: int = 51
    """Bins of the distributions that values and rewards are learnt as; at least 2."""
    value_coef: float = 0.5
    """Weight of the value loss beside the policy's and the reward's; at least 0."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, at least 0. Each search adds its values to the policy that it began from: without a bonus errors of the
    model add up, until the policy is certain of what nobody knows."""
    reanalyse: float = 1.0
    """Old steps that are searched again for each new one, to renew the policies to learn; at least 0."""
    priority_exponent: float = 0.6
    """How much more often steps with wrong values are trained on, at least 0; 0 draws all alike."""
    priority_correction: float = 0.4
    """How much the bias of that is corrected, within [0, 1]; the beta of prioritised replay."""
    exploration_plies: int | None = None
    """Moves at the beginning of a game that are drawn instead of the best, at least 0; null is 15. Elsewhere all are drawn."""
    c_scale: float = 0.1
    """Gumbel: weight of values, scaled to [0, 1], against logits; above 0."""
    min_return_range: float = 0.1
    """Returns in a search tree that differ by less are scaled as if they differed by this, lest noise look like knowledge; above 0.
    Not used in games, whose returns are within [-1, 1]."""
    symmetries: bool = True
    """Games: train on positions turned at random by the symmetries of the board."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "at least 1", "steps_per_update", "num_unroll_steps")
        require(self.num_bins >= 2, "algo.num_bins", "at least 2", self.num_bins)
        require(self.td_steps is None or self.td_steps >= 1, "algo.td_steps", "at least 1, or null", self.td_steps)
        require(self.discount is None or 0.0 < self.discount <= 1.0, "algo.discount", "within (0, 1], or null", self.discount)
        limit = self.value_limit
        require(limit is None or 0.0 < limit < float("inf"), "algo.value_limit", "above 0, or null", limit)
        require_range(self, "above 0", "max_grad_norm", "min_return_range")
        require_range(self, "at least 0", "value_coef", "entropy_coef", "reanalyse", "priority_exponent")
        require_range(self, "within [0, 1]", "priority_correction")
        plies = self.exploration_plies
        require(plies is None or plies >= 0, "algo.exploration_plies", "at least 0, or null", plies)

    def least_weights(self) -> int:
        return 2 * self.num_blocks * 2 * self.num_channels**2  # of dense layers; convolutions have nine times as many

    def gains_from_gpu(self, *, on_board: bool) -> bool:
        convolves = self.layers is Layers.conv or (self.layers is Layers.auto and on_board)
        return self.num_channels >= (WIDE_CONVOLUTION if convolves else WIDE_LAYER)

    def unused_keys(self) -> dict[str, str]:
        unused = super().unused_keys()
        return unused | ({"priority_correction": "priority_exponent above 0"} if self.priority_exponent == 0.0 else {})
