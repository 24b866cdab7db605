"""The settings of the imagination-based planner."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from rlx.config.algos.base_config import GradientConfig, Suits
from rlx.config.setting import require, setting
from rlx.errors import ConfigError


class Strategy(Enum):
    none = "none"
    one_step = "one_step"
    n_step = "n_step"
    tree = "tree"


class Manager(Enum):
    learned = "learned"
    always = "always"


class PriceSchedule(Enum):
    fixed = "fixed"
    growing = "growing"


class PlannerModel(Enum):
    learned = "learned"
    perfect = "perfect"


_IMAGINES = "algo.strategy=one_step or n_step or tree"
_MANAGED = (_IMAGINES, "algo.manager=learned")
_LEARNED = "algo.model=learned"


@dataclass(kw_only=True)
class IBPConfig(GradientConfig):
    suits: ClassVar[tuple[Suits, ...]] = (Suits.continuous,)

    name: str = "ibp"
    strategy: Strategy = Strategy.one_step
    """Where an action is imagined: one_step, always in the real state; n_step, in the last imagined one; tree, the manager chooses
    between the two. none imagines nothing and leaves a controller that is trained through the model (SVG)."""
    imaginations: int = setting(2, at_least=1, at_most=1_000, used_if=_IMAGINES)
    """Largest number of imagined steps before each action."""
    manager: Manager = setting(Manager.learned, used_if=_IMAGINES, neutral=Manager.learned)
    """learned: a policy that decides before each imagination whether to imagine or to act; always: takes all of them."""
    price: float = setting(0.0, at_least=0, used_if=_MANAGED)
    """What the manager pays for an imagined step, in units of reward. The environment's return does not contain it."""
    price_schedule: PriceSchedule = setting(PriceSchedule.fixed, used_if=_MANAGED)
    """fixed, or growing: the price times one more than the actions that the episode has taken."""
    model: PlannerModel = PlannerModel.learned
    """What is imagined with, and what gradients pass through: learned (an interaction network), or perfect (the environment's rules)."""
    corrupt_prob: float = setting(0.0, within="[0, 1]", used_if=_IMAGINES, neutral=0.0)
    """Share of the imagined steps that show what would happen to another ship among other planets."""
    learning_rate: float = setting(2e-3, above=0)
    """Adam's step size of controller and memory at the start."""
    anneal_learning_rate: bool = True
    """Let all step sizes fall linearly to 0 over loop.total_env_steps."""
    manager_learning_rate: float = setting(1e-3, above=0, used_if=_MANAGED)
    """Adam's step size of the manager at the start."""
    entropy_coef: float = setting(0.01, at_least=0, used_if=_MANAGED)
    """Weight of the entropy of the manager's decisions at the start; it falls linearly to 0 at half of loop.total_env_steps."""
    model_learning_rate: float = setting(3e-3, above=0, used_if=_LEARNED)
    """Adam's step size of the model at the start."""
    model_steps: int = setting(4, at_least=1, at_most=1_000, used_if=_LEARNED)
    """Gradient steps of the model in an update."""
    model_batch_size: int = setting(256, at_least=1, at_most=1_000_000, used_if=_LEARNED)
    """Steps of the environment in each gradient step of the model."""
    model_replay_size: int = setting(16_384, at_least=1, used_if=_LEARNED)
    """Newest env steps that the model is trained on."""
    model_hidden_size: int = setting(64, at_least=1, at_most=8_192, used_if=_LEARNED)
    """Units of the hidden layers of the model."""
    hidden_sizes: list[int] = setting([100, 100], at_least=1, at_most=8_192, expected="positive widths, e.g. [100,100]")
    """Widths of the hidden layers of the controller and of the manager."""
    memory_size: int = setting(100, at_least=1, at_most=8_192)
    """Units of the memory (LSTM) of what was imagined and done."""
    max_grad_norm: float = setting(1.0, above=0)
    """Gradients are scaled down to this global norm."""

    def check(self) -> None:
        require(bool(self.hidden_sizes), "algo.hidden_sizes", "positive widths, e.g. [100,100]", self.hidden_sizes)
        expected = f"at least algo.model_batch_size={self.model_batch_size}"
        require(self.model_replay_size >= self.model_batch_size, "algo.model_replay_size", expected, self.model_replay_size)
        if self.strategy is Strategy.tree and self.manager is Manager.always:
            raise ConfigError(
                "algo.manager=always cannot choose where to imagine, as algo.strategy=tree needs it; use algo.strategy=one_step or n_step"
            )

    @property
    def num_imaginations(self) -> int:
        """Most imagined steps before an action."""
        return 0 if self.strategy is Strategy.none else self.imaginations

    @property
    def is_managed(self) -> bool:
        """Whether there are decisions of a manager."""
        return self.strategy is not Strategy.none and self.manager is Manager.learned

    def least_weights(self) -> int:
        return 4 * self.memory_size**2 + 2 * self.hidden_sizes[0] * self.memory_size
