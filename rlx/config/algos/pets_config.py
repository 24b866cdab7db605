"""The settings of PETS."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from rlx.config.algos.base_config import AlgoConfig, require, require_range


class Planner(Enum):
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
class PETSConfig(AlgoConfig):
    suits: ClassVar[str] = "continuous actions"

    name: str = "pets"
    learning_rate: float = 1e-3
    """Adam's step size at the start; above 0."""
    initial_steps: int = 200
    """Env steps, over all environments, with random actions before the first fit and the first plan; at least 1."""
    fit_every: int = 200
    """Env steps, over all environments, between fits of the ensemble; at least 1."""
    reward: RewardSource = RewardSource.known
    """known: the environment's declared function (`rlx.envs.control.reward_functions`); learned: one more output of the ensemble."""
    termination: TerminationSource = TerminationSource.known
    """known is the environment's own function of what is observed; never plans as if no episode terminated."""
    ensemble_size: int = 5
    """Members of the ensemble, K; at least 1."""
    hidden_sizes: list[int] = field(default_factory=lambda: [64, 64])
    """Widths of the hidden layers of each member."""
    learn_variance_bounds: bool = False
    """Learn the bounds of the predicted variance, as the paper does, instead of keeping them."""
    bootstrap: bool = True
    """Draw for every step and member how often the step is in the member's data (Poisson with mean 1); false shows all to all."""
    holdout_fraction: float = 0.1
    """Share of the steps that is held out of the fits and stops them; within [0, 1), and 0 always takes max_epochs."""
    batch_size: int = 64
    """Steps per member and gradient step; at least 1."""
    max_epochs: int = 20
    """Passes over the data of a fit, at most; a pass over little data is repeated to 10 gradient steps; at least 1."""
    patience: int = 4
    """Passes without progress on the held-out steps after which a fit ends; at least 1."""
    weight_decay: float = 1e-3
    """Weights shrink by learning_rate times this per gradient step; at least 0."""
    replay_size: int = 100_000
    """Newest env steps to fit to; at least initial_steps."""
    propagation: Propagation = Propagation.ts_inf
    """ts_inf: a particle stays with its member; ts_1: it is dealt another at every step; mean: the members' mean, without particles."""
    num_particles: int = 1
    """Particles of each member and candidate; more for noisy environments; at least 1."""
    planner: Planner = Planner.icem
    """icem has coloured noise and a shrinking population, and needs half the candidates of cem, the paper's; mppi weighs all candidates."""
    horizon: int = 15
    """Env steps that a plan looks ahead, H; at least 1."""
    num_candidates: int = 150
    """Candidates per iteration of the planner, N; at least 2."""
    num_iterations: int = 3
    """Iterations of the planner per env step; at least 1."""
    elite_fraction: float = 0.1
    """cem, icem: share of the candidates that the next iteration is fitted to; within (0, 1]."""
    momentum: float = 0.1
    """cem, icem: share of the old mean and variance that an iteration keeps; within [0, 1)."""
    init_std: float = 0.5
    """Deviation of the first candidates, where 1 is half of the action's range; above 0."""
    noise_beta: float = 2.0
    """icem, mppi: the noise's power falls with frequency to this power; 0 is white; at least 0."""
    population_decay: float = 1.25
    """icem: the population is divided by this with every iteration; at least 1."""
    keep_elites: float = 0.3
    """icem: share of the elites that compete again in the next iteration and at the next env step; within [0, 1]."""
    temperature: float = 0.3
    """mppi: candidates are weighed by exp(return / temperature), in standard deviations of their returns; above 0."""
    trust: TrustRule = TrustRule.none
    """disagreement: plans pay for where members disagree; truncate: plans end there; none: plans are believed. Takes several members."""
    trust_cost: float = 1.0
    """disagreement: reward that a step of a plan loses per unit of disagreement (see model/disagreement); above 0."""
    trust_limit: float = 0.5
    """truncate: disagreement at which the plans of a state end; above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "at least 1", "initial_steps", "fit_every", "ensemble_size", "batch_size", "max_epochs", "patience",
                      "num_particles", "horizon", "num_iterations")  # fmt: skip
        require(self.num_candidates >= 2, "algo.num_candidates", "at least 2", self.num_candidates)
        require(bool(self.hidden_sizes) and min(self.hidden_sizes) >= 1, "algo.hidden_sizes", "positive widths, e.g. [64,64]",
                self.hidden_sizes)  # fmt: skip
        require_range(self, "above 0", "init_std", "temperature", "trust_cost", "trust_limit")
        require_range(self, "at least 0", "weight_decay", "noise_beta")
        require_range(self, "within [0, 1)", "holdout_fraction", "momentum")
        require_range(self, "within [0, 1]", "keep_elites")
        require(0.0 < self.elite_fraction <= 1.0, "algo.elite_fraction", "within (0, 1]", self.elite_fraction)
        require(1.0 <= self.population_decay < float("inf"), "algo.population_decay", "at least 1", self.population_decay)
        expected = f"at least algo.initial_steps={self.initial_steps}"
        require(self.replay_size >= self.initial_steps, "algo.replay_size", expected, self.replay_size)

    @property
    def num_elites(self) -> int:
        """Candidates that an iteration is fitted to."""
        return max(1, round(self.elite_fraction * self.num_candidates))

    def least_weights(self) -> int:
        return self.ensemble_size * sum(a * b for a, b in itertools.pairwise(self.hidden_sizes))

    def unused_keys(self) -> dict[str, str]:
        used_by = {"elite_fraction": "cem", "momentum": "cem", "noise_beta": "icem", "population_decay": "icem", "keep_elites": "icem",
                   "temperature": "mppi"}  # fmt: skip
        also = {"elite_fraction": "icem", "momentum": "icem", "noise_beta": "mppi"}
        now = self.planner.value
        unused = {key: f"planner={planner}" for key, planner in used_by.items() if now not in (planner, also.get(key))}
        if self.planner is Planner.icem and self.num_iterations == 1:  # no next one that would be smaller
            unused["population_decay"] = "num_iterations above 1"
        if self.propagation is Propagation.mean:
            unused["num_particles"] = "propagation=ts_inf"
        if self.holdout_fraction == 0.0:
            unused["patience"] = "holdout_fraction above 0"
        if self.ensemble_size == 1 and self.trust is not TrustRule.none:
            unused["trust"] = "ensemble_size above 1"  # one member agrees with itself
        if self.trust is not TrustRule.disagreement:
            unused["trust_cost"] = "trust=disagreement"
        if self.trust is not TrustRule.truncate:
            unused["trust_limit"] = "trust=truncate"
        return unused
