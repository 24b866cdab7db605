"""The settings of DQN."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from rlx.config.algos.base_config import Suits
from rlx.config.algos.epsilon_config import EpsilonGreedyConfig
from rlx.config.algos.off_policy_config import OffPolicyConfig
from rlx.config.setting import require, setting


class Distributional(Enum):
    none = "none"
    c51 = "c51"


@dataclass(kw_only=True)
class DQNConfig(OffPolicyConfig, EpsilonGreedyConfig):
    suits: ClassVar[tuple[Suits, ...]] = (Suits.discrete,)

    name: str = "dqn"
    learning_rate: float = setting(5e-4, above=0)
    """Adam's step size at the start."""
    replay_size: int = setting(100_000, at_least=1)
    """Newest env steps to learn from; at least initial_steps."""
    batch_size: int = setting(128, at_least=1, at_most=1_000_000)
    """Env steps of a gradient step, drawn anew for each."""
    n_step: int = setting(3, at_least=1, at_most=1_000)
    """Rewards that a target adds up before it bootstraps; fewer where an episode ends."""
    max_grad_norm: float = setting(10.0, above=0, infinite=True)
    """Gradients are scaled down to this global norm; inf never does."""
    double: bool = True
    """Double Q-learning: the network chooses the action that the target network evaluates, which overestimates less than a maximum
    does (van Hasselt et al. 2016)."""
    target_every: int = setting(250, at_least=1)
    """Gradient steps between updates of the target network."""
    tau: float = setting(1.0, within="(0, 1]")
    """Share of the distance to the network that an update of the target network takes: 1 copies it; e.g. 0.005 with target_every=1 makes
    the target network an exponential average."""
    dueling: bool = False
    """Two networks behind the encoder, of the state's value and of the actions' advantages, instead of one (Wang et al. 2016)."""
    per: bool = False
    """Prioritised experience replay: draw steps in proportion to the sizes of their errors (Schaul et al. 2016)."""
    priority_exponent: float = setting(0.6, above=0, used_if="algo.per=true")
    """Exponent of the error in a step's sampling probability; the paper's alpha."""
    priority_correction: float = setting(0.4, within="[0, 1]", used_if="algo.per=true")
    """Share of the bias of prioritised sampling that importance weights correct at the start; it grows linearly to 1. The paper's beta."""
    distributional: Distributional = Distributional.none
    """c51 learns the distribution of the return over num_atoms fixed values instead of its mean (Bellemare et al. 2017)."""
    num_atoms: int = setting(51, at_least=2, at_most=10_000, used_if="algo.distributional=c51")
    """Values of the distribution, evenly spaced from v_min to v_max."""
    v_min: float = setting(-10.0, used_if="algo.distributional=c51")
    """Least return of the distribution; smaller discounted returns count as this one."""
    v_max: float = setting(10.0, used_if="algo.distributional=c51")
    """Greatest return of the distribution; greater discounted returns count as this one."""
    sign_reward: bool = False
    """Learn from the signs of rewards, as is usual in Atari games (Mnih et al. 2015). Reported returns are those of the environment."""

    def check(self) -> None:
        super().check()
        require(self.v_min < self.v_max, "algo.v_min", f"below algo.v_max={self.v_max}", self.v_min)

    def correction_at(self, fraction: float) -> float:
        """Correction of the importance weights when `fraction` of the budget is spent."""
        return self.priority_correction + (1.0 - self.priority_correction) * fraction
