"""The settings of I2A."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from rlx.config.algos.base_config import WIDE_CONVOLUTION, GradientConfig, Suits, require_minibatches
from rlx.config.setting import require, setting
from rlx.errors import ConfigError

IMAGINATION_ABLATIONS = ("on", "off", "shuffled", "copy", "perfect")
"""Ablations of a trained agent's imagination: on (unchanged), off, rollouts shuffled over states and actions, or another model."""


class Imagination(Enum):
    learned = "learned"
    perfect = "perfect"
    copy = "copy"
    off = "off"
    wide = "wide"


class Decide(Enum):
    network = "network"
    search = "search"
    tree = "tree"


_LEARNED = "algo.imagination=learned"
_IMAGINES = "algo.imagination=learned or perfect or copy"
_ENCODES = "algo.imagination=learned or perfect or copy or wide"
_MODEL = "algo.imagination=learned or wide"


@dataclass(kw_only=True)
class I2ASearch:
    """`algo.search.*` of I2A, for the control arms that search in evaluations."""

    num_rollouts: int = setting(4, at_least=1, at_most=100_000, used_if="algo.decide=search")
    """Rollouts for each action."""
    num_eval_simulations: int = setting(64, at_least=1, at_most=100_000, used_if="algo.decide=tree")
    """Simulations of each decision of the tree search."""


@dataclass(kw_only=True)
class I2AConfig(GradientConfig):
    suits: ClassVar[tuple[Suits, ...]] = (Suits.grids,)

    name: str = "i2a"
    search: I2ASearch = field(default_factory=I2ASearch)
    learning_rate: float = setting(1e-3, above=0)
    """Adam's step size at the start."""
    imagination: Imagination = Imagination.learned
    """The model to imagine with: learned, perfect (the true rules), or copy (observations never change); off is model-free, wide is off
    with the number of parameters of learned."""
    decide: Decide = Decide.network
    """network: the agent encodes its rollouts. Otherwise it is model-free, and its evaluations search in the model: search takes the
    action with the highest return of its rollouts, tree the one that a tree search (PUCT) visits most."""
    rollout_depth: int = setting(3, at_least=1, at_most=1_000, used_if=(_IMAGINES, "algo.decide=network or search"))
    """Imagined steps of each rollout, the paper's tau."""
    corrupt_prob: float = setting(0.0, within="[0, 1]", used_if="algo.imagination=learned or perfect")
    """Share of the bits of every imagined frame that are flipped at random, to degrade the model."""
    model_fraction: float = setting(0.1, within="[0, 1)", used_if=_LEARNED)
    """Share of loop.total_env_steps that pretrains the model; meanwhile the agent is model-free."""
    model_replay_ratio: float = setting(4.0, above=0, used_if=_LEARNED)
    """Replay ratio of the model during pretraining: how often it is trained on a step, on average."""
    model_replay_ratio_later: float = setting(0.5, at_least=0, used_if=_LEARNED)
    """Replay ratio of the model after pretraining; 0 freezes the model, as the paper does."""
    model_batch_size: int = setting(128, at_least=1, used_if=_LEARNED)
    """Steps per gradient step of the model."""
    model_learning_rate: float = setting(3e-3, above=0, used_if=_LEARNED)
    """Adam's step size of the model."""
    num_model_channels: int = setting(24, at_least=1, at_most=8_192, used_if=_MODEL)
    """Channels of the model's convolutions."""
    num_model_layers: int = setting(2, at_least=1, at_most=1_000, used_if=_MODEL)
    """3x3 convolutions of the model, each of which widens its view by one cell; pushing a box takes two."""
    model_replay_size: int = setting(100_000, used_if=_LEARNED)
    """Newest env steps that the model is trained on; at least model_batch_size."""
    num_channels: int = setting(32, at_least=1, at_most=8_192)
    """Channels of the model-free path's convolutions."""
    hidden_size: int = setting(256, at_least=1, at_most=8_192)
    """Units of the layer that joins the model-free path and the encoded rollouts."""
    num_encoder_channels: int = setting(16, at_least=1, at_most=8_192, used_if=(_ENCODES, "algo.decide=network or search"))
    """Channels of the encoder's convolutions, and of the rollout policy's."""
    encoder_size: int = setting(32, at_least=1, at_most=8_192, used_if=(_ENCODES, "algo.decide=network"))
    """Units of the recurrent encoder of a rollout."""
    rollout_length: int = setting(20, at_least=1, at_most=100_000_000)
    """Env steps per env between updates, T."""
    num_epochs: int = setting(3, at_least=1, at_most=10_000)
    """Passes over each rollout; 1 with num_minibatches=1 is A2C."""
    num_minibatches: int = setting(8, at_least=1)
    """Gradient steps per pass; must divide rollout_length * env.num_envs."""
    discount: float = setting(0.99, within="[0, 1]")
    """Per-step gamma."""
    gae_lambda: float = setting(0.95, within="[0, 1]")
    """Trace decay of the advantage estimate."""
    clip: float = setting(0.2, within="(0, 1)")
    """Half-width of the probability-ratio interval."""
    normalize_advantage: bool = True
    """Shift and scale advantages to zero mean and unit deviation per minibatch."""
    value_coef: float = setting(0.5, at_least=0)
    """Weight of the value loss."""
    entropy_coef: float = setting(0.01, at_least=0)
    """Weight of the entropy bonus."""
    distill_coef: float = setting(0.1, at_least=0, used_if=(_IMAGINES, "algo.decide=network or search"))
    """Weight of the distillation loss: the cross-entropy of the rollout policy to the agent's policy."""
    max_grad_norm: float = setting(0.5, above=0)
    """Gradients are scaled down to this global norm."""

    def check(self) -> None:
        expected = f"at least algo.model_batch_size={self.model_batch_size}"
        require(self.model_replay_size >= self.model_batch_size, "algo.model_replay_size", expected, self.model_replay_size)
        if self.decide is not Decide.network and not self.has_world:
            raise ConfigError(
                f"algo.decide={self.decide.value} needs a world to search in, and algo.imagination={self.imagination.value} has none; "
                "use algo.imagination=learned, perfect or copy"
            )

    @property
    def has_world(self) -> bool:
        """Whether there is a model to imagine with."""
        return self.imagination not in (Imagination.off, Imagination.wide)

    def least_weights(self) -> int:
        return 9 * self.num_model_channels**2 + 4 * self.hidden_size**2

    def gains_from_gpu(self, *, on_board: bool) -> bool:
        return max(self.num_channels, self.num_model_channels) >= WIDE_CONVOLUTION

    def check_num_envs(self, num_envs: int) -> None:
        require_minibatches(self.rollout_length, num_envs, self.num_minibatches, normalize=self.normalize_advantage)
