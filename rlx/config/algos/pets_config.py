"""The settings of PETS."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from rlx.config.algos.base_config import GradientConfig, Suits
from rlx.config.setting import require, setting


class PlannerKind(Enum):
    cem = "cem"
    icem = "icem"
    mppi = "mppi"


class Propagation(Enum):
    ts_inf = "ts_inf"
    ts_1 = "ts_1"
    mean = "mean"


class RewardSource(Enum):
    known = "known"
    learned = "learned"


class TerminationSource(Enum):
    known = "known"
    never = "never"


class TrustRule(Enum):
    none = "none"
    disagreement = "disagreement"
    truncate = "truncate"


@dataclass(kw_only=True)
class PlannerSettings:
    """`algo.planner.*`: the search for action sequences in the model."""

    kind: PlannerKind = PlannerKind.icem
    """cem: the paper's; icem: coloured noise and fewer candidates per iteration, needs half of cem's; mppi: a mean weighted by return."""
    horizon: int = setting(15, at_least=1, at_most=10_000)
    """Env steps of a plan, H."""
    num_candidates: int = setting(150, at_least=2, at_most=1_000_000)
    """Candidates per iteration of the planner, N."""
    num_iterations: int = setting(3, at_least=1, at_most=1_000)
    """Iterations of the planner per env step."""
    elite_fraction: float = setting(0.1, within="(0, 1]", used_if="algo.planner.kind=cem or icem")
    """Share of the candidates, the best ones, that the next iteration is fitted to."""
    momentum: float = setting(0.1, within="[0, 1)", used_if="algo.planner.kind=cem or icem")
    """Share of the old mean and variance that an iteration keeps."""
    init_std: float = setting(0.5, above=0)
    """Standard deviation of the first candidates, where 1 is half of the action's range."""
    noise_beta: float = setting(2.0, at_least=0, used_if="algo.planner.kind=icem or mppi")
    """Exponent with which the noise's power falls with frequency; 0 is white noise."""
    population_decay: float = setting(1.25, at_least=1, used_if=("algo.planner.kind=icem", "algo.planner.num_iterations is above 1"))
    """Factor by which the number of candidates shrinks per iteration."""
    keep_elites: float = setting(0.3, within="[0, 1]", used_if="algo.planner.kind=icem")
    """Share of the elites that are candidates again in the next iteration and at the next env step."""
    temperature: float = setting(0.3, above=0, used_if="algo.planner.kind=mppi")
    """Temperature of the candidates' weights exp(return / temperature), in standard deviations of their returns."""

    @property
    def num_elites(self) -> int:
        """Candidates that an iteration is fitted to."""
        return max(1, round(self.elite_fraction * self.num_candidates))


@dataclass(kw_only=True)
class PETSConfig(GradientConfig):
    suits: ClassVar[tuple[Suits, ...]] = (Suits.continuous,)

    name: str = "pets"
    planner: PlannerSettings = field(default_factory=PlannerSettings)
    learning_rate: float = setting(1e-3, above=0)
    """Adam's step size at the start."""
    initial_steps: int = setting(200, at_least=1)
    """Env steps, over all environments, with random actions before the first fit and the first plan."""
    fit_every: int = setting(200, at_least=1)
    """Env steps, over all environments, between fits of the ensemble."""
    reward: RewardSource = RewardSource.known
    """known: the environment's declared function (`rlx.envs.control.reward_functions`); learned: one more output of the ensemble."""
    termination: TerminationSource = TerminationSource.known
    """known: the environment's own function of the observation; never: plans assume that no episode terminates."""
    ensemble_size: int = setting(5, at_least=1, at_most=1_000)
    """Members of the ensemble, K."""
    hidden_sizes: list[int] = setting([64, 64], at_least=1, at_most=8_192, expected="positive widths, e.g. [64,64]")
    """Widths of the hidden layers of each member."""
    learn_variance_bounds: bool = False
    """Learn the bounds of the predicted variance, as the paper does; false keeps them fixed."""
    bootstrap: bool = True
    """Resample each member's data: each step counts Poisson(1) times; false gives every member all data."""
    holdout_fraction: float = setting(0.1, within="[0, 1)")
    """Share of the steps that is held out of the fits to stop them early; 0 always takes max_epochs."""
    batch_size: int = setting(64, at_least=1)
    """Steps per member and gradient step."""
    max_epochs: int = setting(20, at_least=1, at_most=10_000)
    """Largest number of passes over the data per fit; a pass over little data is repeated to 10 gradient steps."""
    patience: int = setting(4, at_least=1, used_if="algo.holdout_fraction is above 0")
    """Passes without improvement on the held-out steps after which a fit ends."""
    weight_decay: float = setting(1e-3, at_least=0)
    """Weights shrink by learning_rate times this per gradient step."""
    replay_size: int = 100_000
    """Newest env steps to fit to; at least initial_steps."""
    propagation: Propagation = Propagation.ts_inf
    """ts_inf: a particle stays with its member; ts_1: it moves to a random member at every step; mean: the members' mean, no particles."""
    num_particles: int = setting(1, at_least=1, at_most=10_000, used_if="algo.propagation=ts_inf or ts_1")
    """Particles of each member and candidate; more for noisy environments."""
    trust: TrustRule = setting(TrustRule.none, used_if="algo.ensemble_size is above 1", neutral=TrustRule.none)
    """Uncertainty penalty. disagreement: lower the return of plans where members disagree; truncate: end plans there; none: neither."""
    trust_cost: float = setting(1.0, above=0, used_if="algo.trust=disagreement")
    """Reward that a step of a plan loses per unit of disagreement (see model/disagreement)."""
    trust_limit: float = setting(0.5, above=0, used_if="algo.trust=truncate")
    """Disagreement at which the plans of a state end."""

    def check(self) -> None:
        require(bool(self.hidden_sizes), "algo.hidden_sizes", "positive widths, e.g. [64,64]", self.hidden_sizes)
        expected = f"at least algo.initial_steps={self.initial_steps}"
        require(self.replay_size >= self.initial_steps, "algo.replay_size", expected, self.replay_size)

    def least_weights(self) -> int:
        return self.ensemble_size * sum(a * b for a, b in itertools.pairwise(self.hidden_sizes))
