"""The settings of MuZero."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from rlx.config.algos.base_config import WIDE_CONVOLUTION, WIDE_LAYER, Suits
from rlx.config.algos.search_config import GuidedSearchConfig, GuidedSearchSettings
from rlx.config.setting import GAME, NO_GAME, setting


class Layers(Enum):
    auto = "auto"
    dense = "dense"
    conv = "conv"


@dataclass(kw_only=True)
class MuZeroSearch(GuidedSearchSettings):
    """`algo.search.*` of MuZero."""

    c_scale: float = setting(0.1, above=0, used_if="algo.search.rule=gumbel")
    """Weight of values, scaled to [0, 1], against logits."""
    min_return_range: float = setting(0.1, above=0, used_if=NO_GAME)
    """Minimum range for normalising returns: those of a search tree that differ by less are scaled as if they differed by this."""


@dataclass(kw_only=True)
class MuZeroConfig(GuidedSearchConfig):
    suits: ClassVar[tuple[Suits, ...]] = (Suits.games, Suits.discrete)

    name: str = "muzero"
    search: MuZeroSearch = field(default_factory=MuZeroSearch)
    learning_rate: float = setting(1e-3, above=0)
    """Adam's step size at the start."""
    layers: Layers = Layers.auto
    """dense: fully connected layers; conv: convolutions, for boards and images; auto: conv for more than 16 cells or pixels, else dense."""
    num_blocks: int = setting(1, at_least=1, at_most=1_000)
    """Residual blocks of the representation, and as many of the dynamics."""
    num_channels: int = setting(128, at_least=1, at_most=8_192)
    """Units of each layer, or channels of each convolution."""
    batch_size: int = setting(128, at_least=1)
    """Windows of num_unroll_steps per gradient step."""
    replay_start: int = 2_000
    """Env steps to collect before the first gradient step, at least batch_size; until then actions are random."""
    steps_per_update: int = setting(1, at_least=1)
    """Gradient steps per update; the search uses the new weights only after the last of them."""
    max_grad_norm: float = setting(5.0, above=0)
    """Gradients are scaled down to this global norm."""
    num_unroll_steps: int = setting(5, at_least=1, at_most=1_000)
    """Steps that the model is unrolled in training, K."""
    td_steps: int | None = setting(None, at_least=1)
    """Rewards in a value target before it bootstraps from the network; null is 10, and in games all."""
    discount: float | None = setting(None, within="(0, 1]")
    """Per-step gamma; null is 0.997, and in games 1."""
    value_limit: float | None = setting(None, above=0)
    """Largest absolute value of rewards and discounted returns, to which larger ones are clipped; null is 300, and in games 1."""
    num_bins: int = setting(51, at_least=2, at_most=1_000_000)
    """Bins of the categorical distributions of values and rewards."""
    value_coef: float = setting(0.5, at_least=0)
    """Weight of the value loss; the policy's and the reward's have 1."""
    entropy_coef: float = setting(0.0, at_least=0)
    """Weight of the entropy bonus. Each search adds its values to the logits of its prior. Without a bonus, errors of the model
    accumulate until the policy is deterministic."""
    reanalyse: float = setting(1.0, at_least=0)
    """Reanalysis: old steps per new step that are searched again for fresh policy targets."""
    priority_exponent: float = setting(0.6, at_least=0)
    """Exponent of the value error in a step's sampling probability; 0 is uniform; the alpha of prioritised replay."""
    priority_correction: float = setting(0.4, within="[0, 1]", used_if="algo.priority_exponent is above 0")
    """Share of the bias of prioritised sampling that importance weights correct; the beta of prioritised replay."""
    exploration_plies: int | None = setting(None, at_least=0, used_if=GAME)
    """Moves at the start of a game that are sampled; later ones are the best move; null is 15. Elsewhere every action is sampled."""
    symmetries: bool = setting(True, used_if=GAME)
    """Augment training positions by random symmetries of the board."""

    @property
    def takes_images(self) -> bool:
        return self.layers is not Layers.dense

    def least_weights(self) -> int:
        return 2 * self.num_blocks * 2 * self.num_channels**2  # of dense layers; convolutions have nine times as many

    def gains_from_gpu(self, *, on_board: bool) -> bool:
        convolves = self.layers is Layers.conv or (self.layers is Layers.auto and on_board)
        return self.num_channels >= (WIDE_CONVOLUTION if convolves else WIDE_LAYER)
