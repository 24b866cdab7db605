"""The settings of A2C."""

from __future__ import annotations

from dataclasses import dataclass

from rlx.config.algos.policy_gradient_config import Advantage, MemoryKind, PolicyGradientConfig
from rlx.config.setting import setting
from rlx.errors import ConfigError


@dataclass(kw_only=True)
class A2CConfig(PolicyGradientConfig):
    name: str = "a2c"
    rollout_length: int = setting(5, at_least=1, at_most=100_000_000)
    """Env steps per env between updates, T."""
    advantage: Advantage = Advantage.gae
    """What log pi(a|s) is multiplied by: gae, generalised advantage estimates; nstep, n rewards and V after them, minus V(s); q, a learned
    Q(s, a) minus V(s). return, to_go and baseline are for whole episodes, which only algo=reinforce waits for."""
    n_step: int = setting(5, at_least=1, at_most=100_000, used_if="algo.advantage=nstep")
    """Rewards that are added up before the value, n; fewer where the rollout ends on the way."""
    q_steps: int = setting(1, at_least=1, at_most=10_000, used_if="algo.advantage=q")
    """Gradient steps on Q(s, a) for each update of the policy."""
    gae_lambda: float = setting(1.0, within="[0, 1]", used_if="algo.advantage=gae or q")
    """Trace decay of the advantage estimate, and of the returns that Q learns; 1 is the n-step return of the paper, n up to the end of the
    rollout."""
    normalize_advantage: bool = False
    """Shift and scale advantages to zero mean and unit deviation per update."""

    def check(self) -> None:
        if self.advantage not in (Advantage.gae, Advantage.nstep, Advantage.q):
            raise ConfigError(f"algo.advantage={self.advantage.value} needs episodes up to their end, and algo=a2c learns from "
                              "algo.rollout_length steps of them; use algo=reinforce, or algo.advantage=gae algo.gae_lambda=1, which "
                              "counts all rewards up to the end of the rollout")  # fmt: skip
        if self.advantage is Advantage.nstep and self.n_step > self.rollout_length:
            raise ConfigError(f"algo.n_step={self.n_step} is more than a rollout has, algo.rollout_length={self.rollout_length}; use a "
                              f"longer rollout, or algo.n_step={self.rollout_length}")  # fmt: skip
        if self.advantage is Advantage.q and self.memory is not MemoryKind.none:
            raise ConfigError(f"algo.advantage=q learns Q(s, a) of single observations, which algo.memory={self.memory.value} does not "
                              "suffice for; use algo.advantage=gae or nstep")  # fmt: skip
