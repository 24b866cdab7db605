"""The settings of a model that an agent imagines with, and of where the agent trusts it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from enum import Enum

from rlx.config.algos.off_policy_config import OffPolicyConfig
from rlx.config.algos.pets_config import RewardSource
from rlx.config.setting import require, setting


class Expansion(Enum):
    none = "none"
    mve = "mve"
    steve = "steve"


class Weights(Enum):
    steve = "steve"
    model_free = "model_free"


class Imagined(Enum):
    none = "none"
    mbpo = "mbpo"


class StopRule(Enum):
    fixed = "fixed"
    schedule = "schedule"
    rank = "rank"
    threshold = "threshold"


class ModelKind(Enum):
    learned = "learned"
    perfect = "perfect"
    useless = "useless"


class CorruptionKind(Enum):
    none = "none"
    independent = "independent"
    regional = "regional"
    shared = "shared"


class LearnedTermination(Enum):
    known = "known"
    learned = "learned"
    never = "never"


class DoubtMeasure(Enum):
    std = "std"
    gjs = "gjs"
    one_vs_rest = "one_vs_rest"


class Predicts(Enum):
    change = "change"
    next = "next"


_IMAGINES = "algo.expansion=mve or steve or algo.imagined=mbpo"
_LEARNED = (_IMAGINES, "algo.model.kind=learned")
_MBPO = "algo.imagined=mbpo"
_THRESHOLD = (_MBPO, "algo.stop=threshold")


@dataclass(kw_only=True)
class ModelSettings:
    """`algo.model.*`: the model that expansions and imagined data use."""

    kind: ModelKind = setting(ModelKind.learned, used_if=_IMAGINES)
    """learned: an ensemble; perfect: the environment itself, where observations determine its state, which bounds what a model can
    gain; useless: a model that predicts no change, which must be found out."""
    corruption: CorruptionKind = setting(CorruptionKind.none, used_if=(_IMAGINES, "algo.model.kind=learned or perfect"))
    """Predictions that are replaced by those for another row. independent: by each member on its own; regional: the same, always, in a
    half-space of the observations; shared: by all members alike, which no disagreement can show."""
    corrupt_prob: float = setting(0.5, within="[0, 1]", used_if=(_IMAGINES, "algo.model.corruption=independent or regional or shared"))
    """Probability of a prediction to be replaced; the share of the observations in the region."""
    reward: RewardSource = setting(RewardSource.known, used_if=(_IMAGINES, "algo.model.kind=learned or useless"))
    """known: the environment's declared function; learned: one more output of the ensemble."""
    termination: LearnedTermination = setting(LearnedTermination.known, used_if=(_IMAGINES, "algo.model.kind=learned or useless"))
    """known: the environment's own function of the observation; learned: networks beside the ensemble; never: nothing terminates."""
    measure: DoubtMeasure = setting(DoubtMeasure.std, used_if=_IMAGINES)
    """Disagreement of the members: std, in standard deviations of the changes; gjs: mean divergence of pairs; one_vs_rest: divergence of
    one from the others together."""
    target: Predicts = setting(Predicts.change, used_if=_LEARNED)
    """What the ensemble predicts: the change of an observation, or the next observation."""
    ensemble_size: int = setting(4, at_least=1, at_most=100, used_if=_IMAGINES)
    """Members of the ensemble, K. With an expansion each has a value network of its own, whatever algo.num_critics says."""
    hidden_sizes: list[int] = setting([64, 64], at_least=1, at_most=8_192, expected="positive widths, e.g. [64,64]", used_if=_LEARNED)
    """Widths of the hidden layers of each member."""
    learning_rate: float = setting(1e-3, above=0, used_if=_LEARNED)
    """Adam's step size."""
    weight_decay: float = setting(1e-3, at_least=0, used_if=_LEARNED)
    """Weights shrink by learning_rate times this per gradient step."""
    fit_every: int = setting(250, at_least=1, used_if=_IMAGINES)
    """Env steps, over all environments, between fits, and between rounds of imagined data; the first fit is before learning begins."""
    batch_size: int = setting(64, at_least=1, used_if=_LEARNED)
    """Steps per member and gradient step of a fit."""
    max_epochs: int = setting(20, at_least=1, at_most=10_000, used_if=_LEARNED)
    """Largest number of passes over the data per fit; a pass over little data is repeated to 10 gradient steps."""
    patience: int = setting(4, at_least=1, used_if=_LEARNED)
    """Passes without improvement on held-out steps, a tenth of all, after which a fit ends."""
    replay_size: int = setting(100_000, at_least=1, used_if=_IMAGINES)
    """Newest env steps to fit to, and to imagine from."""


@dataclass(kw_only=True)
class TrustedConfig(OffPolicyConfig):
    """An agent with value networks that may use a model: where, and how far it trusts it."""

    expansion: Expansion = Expansion.none
    """Targets that look ahead in a model. mve: a fixed number of steps (https://arxiv.org/abs/1803.00101); steve: every number of steps,
    weighted by how well the members agree (https://arxiv.org/abs/1807.01675)."""
    horizon: int = setting(3, at_least=1, at_most=1_000, used_if="algo.expansion=mve or steve")
    """Imagined steps of a target, H."""
    weights: Weights = setting(Weights.steve, used_if="algo.expansion=steve", neutral=Weights.steve)
    """steve: inverse variances; model_free: all weight on no imagined step, with the same value networks, as a control."""
    td_k: bool = setting(False, used_if="algo.expansion=mve", neutral=False)
    """Let the value networks learn from the imagined states of the targets too."""
    imagined: Imagined = Imagined.none
    """mbpo: batches are mostly steps that the model imagined, in short rollouts from the replay (https://arxiv.org/abs/1906.08253)."""
    stop: StopRule = setting(StopRule.fixed, used_if=_MBPO)
    """fixed: rollouts have rollout_steps; schedule: from 1 to these over the run; rank: the least doubtful share of every step is kept
    (https://arxiv.org/abs/2010.04893); threshold: a rollout ends where it is too doubtful (https://arxiv.org/abs/2405.19014)."""
    rollout_steps: int = setting(5, at_least=1, at_most=1_000, used_if=_MBPO)
    """Most steps of an imagined rollout."""
    rollouts_per_step: float = setting(20.0, above=0, at_most=10_000, used_if=_MBPO)
    """Imagined rollouts per env step; those of the last fit are kept."""
    real_fraction: float = setting(0.05, within="[0, 1]", used_if=_MBPO)
    """Share of a batch that are real steps."""
    stop_scale: float = setting(1.0, above=0, used_if=_THRESHOLD)
    """Factor of the doubt's quantile that gives the threshold, xi."""
    stop_quantile: float = setting(0.95, within="(0, 1]", used_if=_THRESHOLD)
    """Quantile of the doubt at the first steps of a round, zeta; the threshold follows its mean over all rounds."""
    stop_limit: float = setting(0.3, above=0, infinite=True, used_if=(*_THRESHOLD, "algo.model.measure=std"))
    """Largest threshold, in standard deviations of the changes: a threshold that only compares a model with its own past keeps most of a
    model however bad. Members that are half wrong disagree by 0.6, good ones by less than 0.1."""
    model: ModelSettings = field(default_factory=ModelSettings)

    @property
    def imagines(self) -> bool:
        """Whether a model is used anywhere."""
        return self.imagined is not Imagined.none or self.expands

    @property
    def expands(self) -> bool:
        """Whether targets look ahead, or are computed as if they did."""
        return self.expansion is not Expansion.none

    def check(self) -> None:
        super().check()
        model = self.model
        require(bool(model.hidden_sizes), "algo.model.hidden_sizes", "positive widths, e.g. [64,64]", model.hidden_sizes)
        many = model.ensemble_size > 1
        why = "at least 2 with algo.expansion=steve, whose weights are variances over members"
        require(many or self.expansion is not Expansion.steve, "algo.model.ensemble_size", why, model.ensemble_size)
        doubts = self.imagined is Imagined.mbpo and self.stop in (StopRule.rank, StopRule.threshold)
        why = f"at least 2 with algo.stop={self.stop.value}: doubt is the disagreement of members"
        require(many or not doubts, "algo.model.ensemble_size", why, model.ensemble_size)

    def least_weights(self) -> int:
        sizes = self.model.hidden_sizes
        return super().least_weights() + self.imagines * self.model.ensemble_size * sum(a * b for a, b in itertools.pairwise(sizes))
