"""The settings of REINFORCE."""

from __future__ import annotations

from dataclasses import dataclass

from rlx.config.algos.policy_gradient_config import Advantage, MemoryKind, PolicyGradientConfig
from rlx.config.setting import setting
from rlx.errors import ConfigError


@dataclass(kw_only=True)
class ReinforceConfig(PolicyGradientConfig):
    name: str = "reinforce"
    rollout_length: int = setting(32, at_least=1, at_most=100_000_000)
    """Env steps per env between collections of finished episodes."""
    episodes_per_update: int = setting(16, at_least=1)
    """Least number of complete episodes per gradient step."""
    advantage: Advantage = Advantage.baseline
    """What log pi(a|s) is multiplied by: return, all rewards of the episode; to_go, those that follow; baseline, these minus a learned
    V(s); q, a learned Q(s, a) minus V(s); nstep, n rewards and V after them, minus V(s); gae, generalised advantage estimates. The first
    two learn no V."""
    n_step: int = setting(5, at_least=1, at_most=100_000, used_if="algo.advantage=nstep")
    """Rewards that are added up before the value, n."""
    q_steps: int = setting(20, at_least=1, at_most=10_000, used_if="algo.advantage=q")
    """Gradient steps on Q(s, a) for each update of the policy; with 1 Q stays noise, and CartPole is never learned."""
    gae_lambda: float = setting(0.95, within="[0, 1]", used_if="algo.advantage=gae")
    """Trace decay of the advantage estimate: 1 is baseline, 0 is the error of one step."""
    value_coef: float = setting(0.5, at_least=0, used_if="algo.advantage=baseline or q or nstep or gae")
    """Weight of the value loss."""
    normalize_advantage: bool = True
    """Shift and scale advantages to zero mean and unit deviation per update; false is the plain estimator."""

    @property
    def has_critic(self) -> bool:
        """Whether V is learned."""
        return self.advantage not in (Advantage["return"], Advantage.to_go)

    def check(self) -> None:
        if self.advantage is Advantage.q and self.memory is not MemoryKind.none:
            raise ConfigError(f"algo.advantage=q learns Q(s, a) of single observations, which algo.memory={self.memory.value} does not "
                              "suffice for; use algo.advantage=baseline, nstep or gae")  # fmt: skip
