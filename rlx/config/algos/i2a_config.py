"""The settings of I2A."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from rlx.config.algos.base_config import WIDE_CONVOLUTION, AlgoConfig, require, require_minibatches, require_range
from rlx.errors import ConfigError

IMAGINATION_ABLATIONS = ("on", "off", "shuffled", "copy", "perfect")
"""What a trained agent may be asked to read: what it is used to, nothing, rollouts of other states and actions, or another world's."""


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


@dataclass(kw_only=True)
class I2AConfig(AlgoConfig):
    suits: ClassVar[str] = "grid worlds"

    name: str = "i2a"
    learning_rate: float = 1e-3
    """Adam's step size at the start; above 0."""
    imagination: Imagination = Imagination.learned
    """The world to imagine in: learned, perfect (the true rules), or a copy of what is seen; off is model-free, wide is off with the
    parameters of learned."""
    decide: Decide = Decide.network
    """network: the agent reads its rollouts. Otherwise it is model-free, and its evaluations search in the world: search takes the action
    whose rollouts promise most, tree the one that a tree search (PUCT) visits most."""
    rollout_depth: int = 3
    """Imagined steps of each rollout, the paper's tau; at least 1."""
    num_search_rollouts: int = 4
    """search: rollouts for each action; at least 1."""
    num_eval_simulations: int = 64
    """tree: simulations of each decision; at least 1."""
    corrupt_prob: float = 0.0
    """Share of the bits of every imagined frame that are flipped at random, which makes a model poor; within [0, 1]."""
    model_fraction: float = 0.1
    """learned: share of loop.total_env_steps in which the agent is model-free while the model learns from what it sees; within [0, 1)."""
    model_replay_ratio: float = 4.0
    """learned: how often the model is trained on a step until then, on average; above 0."""
    model_replay_ratio_later: float = 0.5
    """learned: the same once the agent imagines, on its own data; 0 freezes the model, as the paper does; at least 0."""
    model_batch_size: int = 128
    """Steps per gradient step of the model; at least 1."""
    model_learning_rate: float = 3e-3
    """Adam's step size of the model; above 0."""
    num_model_channels: int = 24
    """Channels of the model's convolutions; at least 1."""
    num_model_layers: int = 2
    """3x3 convolutions of the model, which see as many cells far: agent, box and what is beyond it take two; at least 1."""
    model_replay_size: int = 100_000
    """Newest env steps that the model is trained on; at least model_batch_size."""
    num_channels: int = 32
    """Channels of the model-free path's convolutions; at least 1."""
    hidden_size: int = 256
    """Units of the layer in which the model-free path and imagination meet; at least 1."""
    num_encoder_channels: int = 16
    """Channels of the encoder's convolutions, and of the rollout policy's; at least 1."""
    encoder_size: int = 32
    """Units of the memory that reads a rollout; at least 1."""
    rollout_length: int = 20
    """Env steps per env between updates, T; at least 1."""
    num_epochs: int = 3
    """Passes over each rollout; 1 with num_minibatches=1 is A2C; at least 1."""
    num_minibatches: int = 8
    """Gradient steps per pass; must divide rollout_length * env.num_envs."""
    discount: float = 0.99
    """Per-step gamma in [0, 1]."""
    gae_lambda: float = 0.95
    """Trace decay of the advantage estimate in [0, 1]."""
    clip: float = 0.2
    """Half-width of the probability-ratio interval, in (0, 1)."""
    normalize_advantage: bool = True
    """Shift and scale advantages to zero mean and unit deviation per minibatch."""
    value_coef: float = 0.5
    """Weight of the value loss; at least 0."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus; at least 0."""
    distill_coef: float = 0.1
    """Weight of the cross-entropy by which the rollout policy imitates the agent's; at least 0."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this global norm; above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "at least 1", "rollout_depth", "num_search_rollouts", "num_eval_simulations", "model_batch_size",
                      "num_model_channels", "num_model_layers", "num_channels", "hidden_size", "num_encoder_channels", "encoder_size",
                      "rollout_length", "num_epochs", "num_minibatches")  # fmt: skip
        require_range(self, "above 0", "model_learning_rate", "model_replay_ratio", "max_grad_norm")
        require_range(self, "at least 0", "model_replay_ratio_later", "value_coef", "entropy_coef", "distill_coef")
        require_range(self, "within [0, 1]", "discount", "gae_lambda", "corrupt_prob")
        require(0.0 < self.clip < 1.0, "algo.clip", "within (0, 1)", self.clip)
        require(0.0 <= self.model_fraction < 1.0, "algo.model_fraction", "within [0, 1)", self.model_fraction)
        expected = f"at least algo.model_batch_size={self.model_batch_size}"
        require(self.model_replay_size >= self.model_batch_size, "algo.model_replay_size", expected, self.model_replay_size)
        if self.decide is not Decide.network and not self.has_world:
            raise ConfigError(
                f"algo.decide={self.decide.value} needs a world to search in, and algo.imagination={self.imagination.value} has none; "
                "use algo.imagination=learned, perfect or copy"
            )

    @property
    def has_world(self) -> bool:
        """Whether there is anything to imagine in."""
        return self.imagination not in (Imagination.off, Imagination.wide)

    def least_weights(self) -> int:
        return 9 * self.num_model_channels**2 + 4 * self.hidden_size**2

    def gains_from_gpu(self, *, on_board: bool) -> bool:
        return max(self.num_channels, self.num_model_channels) >= WIDE_CONVOLUTION

    def check_num_envs(self, num_envs: int) -> None:
        require_minibatches(self.rollout_length, num_envs, self.num_minibatches, normalize=self.normalize_advantage)

    def unused_keys(self) -> dict[str, str]:
        unused: dict[str, str] = {}
        model = (
            "model_fraction",
            "model_replay_ratio",
            "model_replay_ratio_later",
            "model_batch_size",
            "model_learning_rate",
            "model_replay_size",
        )
        if self.imagination is not Imagination.learned:
            unused |= dict.fromkeys(model, "imagination=learned")
        if self.imagination is Imagination.copy:
            unused["corrupt_prob"] = "imagination=learned"
        if self.imagination in (Imagination.perfect, Imagination.copy, Imagination.off):
            unused |= dict.fromkeys(("num_model_channels", "num_model_layers"), "imagination=learned")
        if self.imagination is Imagination.off:
            unused |= dict.fromkeys(("num_encoder_channels", "encoder_size"), "imagination=learned")
        if not self.has_world:
            unused |= dict.fromkeys(("rollout_depth", "distill_coef", "corrupt_prob"), "imagination=learned")
        if self.decide is not Decide.search:
            unused["num_search_rollouts"] = "decide=search"
        if self.decide is not Decide.tree:
            unused["num_eval_simulations"] = "decide=tree"
        if self.decide is not Decide.network:
            unused["encoder_size"] = "decide=network"
        if self.decide is Decide.tree:
            unused |= dict.fromkeys(("rollout_depth", "distill_coef", "num_encoder_channels"), "decide=network")
        return unused
