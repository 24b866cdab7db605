"""Judge what a sweep claims: differences of interquartile means with intervals, and verdicts.

All groups of a claim have the same seeds. The interval of a difference is put together from those of its sides (MOVER, Zou and Donner
2008), which `intervals.percentile_interval` gives; it is that of one claim, not corrected for their number. A claim is judged from
`FEWEST` seeds on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlx.errors import ConfigError, NoEffectError
from rlx.stats import curves
from rlx.stats.aggregate import Scores, iqm
from rlx.stats.data import RunData
from rlx.stats.intervals import FEWEST, Interval, percentile_interval
from rlx.store.claim_spec import Claim, known_claims, read_claims
from rlx.store.sweeps import SweepDir

HOLDS, FAILS, UNDECIDED, TOO_FEW, MISSING = "holds", "fails", "undecided", "not enough seeds", "not trained"
_METRIC = "eval/return_mean"
_NAN: Interval = (math.nan, math.nan)


@dataclass(kw_only=True)
class Level:
    """One group of a claim."""

    words: str
    """The settings that describe it."""
    scores: list[float]
    """One for each seed that all groups of the claim have."""
    iqm: float
    ci: Interval


@dataclass(kw_only=True)
class Judged:
    """A claim at one time on one environment."""

    claim: Claim
    metric: str
    env: str
    at: int | None
    """Env steps; None if no run of the claim was trained."""
    left: list[Level]
    right: list[Level]
    seeds: int
    """Seeds that all of its groups have."""
    left_value: float
    right_value: float
    """The IQM of a side, or the difference of its two; the right one includes its factor. NaN with `falls`."""
    difference: float
    """Left minus right; with `falls` Spearman's rank correlation of the order of the levels and their IQMs."""
    ci: Interval
    margin: float | None
    """How far `not below` and `not above` may be on the other side."""
    verdict: str
    """holds, fails, undecided (the interval is on both sides of 0), not enough seeds, not trained"""
    as_expected: bool | None = None
    """Whether the verdict is the expected one; None unless it is holds or fails."""
    missing: list[str] = field(default_factory=list)
    """Groups without a run that has the metric at that time."""
    pooled: list[str] = field(default_factory=list)
    """Groups in which several runs have one seed, which count as their mean: their settings say too little, or a run was repeated."""
    train: list[str] = field(default_factory=list)
    """Commands that would train them."""


def judge_sweeps(root: Path, runs: Sequence[RunData], *, claimed: Sequence[Claim] | None = None, confidence: float = 0.95) -> list[Judged]:
    """Claims about the sweeps that runs are of, judged on all of these runs.

    Args:
        claimed: what is judged; None is what the sweeps were started with.
    """
    found: list[Judged] = []
    seen: set[str] = set()
    for name in dict.fromkeys(run.sweep for run in runs if run.sweep is not None):
        content = SweepDir(root / name).content()
        claims = [claim for claim in (known_claims(content) if claimed is None else claimed) if claim.name not in seen]
        seen |= {claim.name for claim in claims}
        objective = content.get("objective")
        commands: dict[tuple[str, str], str] = {}
        for judged in judge_claims(claims, runs, metric=objective if isinstance(objective, str) else _METRIC, confidence=confidence):
            judged.train = [commands.setdefault((words, judged.env), _command(words, content, judged.env)) for words in judged.missing]
            found.append(judged)
    return found


def claims_of(experiment: str) -> list[Claim]:
    """The claims of a shipped experiment and of those that it lists.

    Raises:
        ConfigError: if it is none, or has none.
    """
    from rlx.config.compose import Composer  # imports Hydra

    composer = Composer()
    composer.check_option("experiment", experiment)
    arms = composer.arms(experiment)
    nested = [] if arms is None else [claim for name in arms.experiments if composer.arms(name) for claim in claims_of(name)]
    own = [] if arms is None else read_claims(arms.claims, composer.file("experiment", experiment))
    if not (found := [*nested, *own]):
        raise ConfigError(f"--claims {experiment}: the experiment claims nothing; leave it out, or name one of arms, e.g. i2a_arms")
    return found


def judge_claims(claims: Iterable[Claim], runs: Sequence[RunData], *, metric: str, confidence: float = 0.95) -> list[Judged]:
    """Judge claims on each of the environments of the runs, in the order of the environments.

    Args:
        metric: of claims that name none.
    """
    claims, envs = list(claims), sorted({str(run.settings.get("env")) for run in runs})
    found = []
    for env in envs:
        there = [run for run in runs if str(run.settings.get("env")) == env]
        found += [_judge(claim, there, env, claim.metric or metric, share, confidence) for claim in claims for share in claim.at]
    for judged in found:
        judged.as_expected = judged.verdict == judged.claim.expected if judged.verdict in (HOLDS, FAILS) else None
    return found


def _judge(claim: Claim, runs: Sequence[RunData], env: str, metric: str, share: float, confidence: float) -> Judged:
    sides = {words: [run for run in runs if matches(run, words)] for words in [*claim.left, *claim.right]}
    budgets = [int(budget) for found in sides.values() for run in found if (budget := run.settings.get("loop.total_env_steps"))]
    at = math.floor(share * min(budgets)) if budgets else None
    scores = {words: _by_seed(found, metric, claim.statistic, at) for words, found in sides.items()}
    judged = Judged(claim=claim, metric=metric, env=env, at=at, left=[], right=[], seeds=0, left_value=math.nan, right_value=math.nan,
                    difference=math.nan, ci=_NAN, margin=None, verdict=MISSING,
                    missing=[words for words, found in scores.items() if not found])  # fmt: skip
    judged.pooled = [words for words, found in sides.items() if len({run.seed for run in found}) < len(found)]
    falls = claim.relation == "falls"
    if falls and len(scores) - len(judged.missing) >= 2:  # the levels that were trained say whether it falls between them
        scores = {words: found for words, found in scores.items() if found}
    elif judged.missing:
        return judged
    common = sorted(set.intersection(*(set(found) for found in scores.values())))
    judged.seeds = len(common)
    if not common:
        return dataclasses.replace(judged, verdict=TOO_FEW)
    levels = {words: _level(words, [found[seed] for seed in common], confidence) for words, found in scores.items()}
    judged.left, judged.right = ([levels[words] for words in side if words in levels] for side in (claim.left, claim.right))
    return _judge_order(judged) if falls else _judge_difference(judged)


def matches(run: RunData, words: str) -> bool:
    """Whether a run has the settings of a group, as they are typed; a setting without effect in the run is none of its settings."""
    pairs = [word.partition("=")[::2] for word in words.split()]
    return all(key in run.settings and key not in run.unused and _is_typed(run.settings[key], text) for key, text in pairs)


def _is_typed(value: Any, text: str) -> bool:
    if value is None or isinstance(value, bool):
        return text == {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        try:
            return float(text) == value
        except ValueError:
            return False
    return str(value).replace(" ", "") == text


def _by_seed(runs: Sequence[RunData], metric: str, statistic: str, at: int | None) -> dict[int, float]:
    """The metric of each seed; several runs of one count as their mean."""
    found: dict[int, list[float]] = {}
    for run in runs:
        value = curves.value_at(run, metric, at)
        if value is not None and statistic == "mean":
            value = curves.area_under_curve(run, metric, at)
        if value is not None and math.isfinite(value):
            found.setdefault(run.seed, []).append(value)
    return {seed: float(np.mean(values)) for seed, values in found.items()}


def _level(words: str, scores: list[float], confidence: float) -> Level:
    values: Scores = np.array(scores)
    ci = percentile_interval([values], iqm, confidence=confidence)
    if len(scores) >= FEWEST and np.ptp(values) == 0.0:
        ci = (scores[0], scores[0])  # equal values: the other side's interval is the one of the difference
    return Level(words=words, scores=scores, iqm=float(iqm(values)), ci=ci)


def _judge_order(judged: Judged) -> Judged:
    """Spearman's rank correlation of the order of the levels and their IQMs; the claim is that it is -1."""
    values = np.array([level.iqm for level in judged.left])
    judged.difference = _spearman(values)
    if judged.seeds >= FEWEST:
        judged.verdict = HOLDS if (np.diff(values) < 0.0).all() else FAILS
    else:
        judged.verdict = TOO_FEW
    return judged


def _spearman(values: Scores) -> float:
    """Rank correlation of the values with their order; ties share their mean rank, and equal values have none (NaN)."""
    ranks = np.array([(values < v).sum() + ((values == v).sum() - 1) / 2.0 for v in values])
    return math.nan if np.ptp(ranks) == 0.0 else float(np.corrcoef(np.arange(len(values)), ranks)[0, 1])


def _judge_difference(judged: Judged) -> Judged:
    claim = judged.claim
    left, right = _side(judged.left, 1.0), _side(judged.right, claim.times)
    judged.left_value, judged.right_value = left[0], right[0]
    judged.difference, judged.ci = _minus(left, right)
    low, high = judged.ci
    if claim.relation.startswith("not"):
        judged.margin = claim.margin if claim.margin is not None else (right[1][1] - right[1][0]) / 2.0
    if not math.isfinite(low):
        judged.verdict = TOO_FEW
        return judged
    if claim.relation in ("above", "not above"):  # as below and not below of the negative
        low, high, difference = -high, -low, -judged.difference
    else:
        difference = judged.difference
    if judged.margin is None:
        judged.verdict = HOLDS if high < 0.0 else FAILS if low > 0.0 or low == high else UNDECIDED
    else:
        judged.verdict = HOLDS if difference >= -judged.margin else FAILS if high < 0.0 else UNDECIDED
    return judged


_Estimate = tuple[float, Interval]


def _side(levels: list[Level], times: float) -> _Estimate:
    """The value of a side with its interval."""
    scaled = [(times * level.iqm, (times * level.ci[0], times * level.ci[1])) for level in levels]
    return scaled[0] if len(scaled) == 1 else _minus(*scaled)


def _minus(a: _Estimate, b: _Estimate) -> _Estimate:
    """The difference of two independent estimates and its interval (Zou and Donner 2008, https://doi.org/10.1002/sim.3095, eq. 9)."""
    (x, (x_low, x_high)), (y, (y_low, y_high)) = a, b
    below, above = math.hypot(x - x_low, y_high - y), math.hypot(x_high - x, y - y_low)
    return x - y, (x - y - below, x - y + above)


def _command(words: str, content: dict[str, Any], env: str) -> str:
    """What trains a group that a sweep lacks, with its seeds and with what it set, as far as that has an effect in this group."""
    overrides, seeds, swept = content.get("overrides"), content.get("seeds"), content.get("swept")
    given = {word.partition("=")[0] for word in words.split()} | {"env", *(swept if isinstance(swept, list) else ())}
    fixed = {str(k): str(v) for k, v in overrides.items() if k not in given} if isinstance(overrides, dict) else {}
    typed = [*words.split(), f"env={env}", *_effective(words, env, fixed)]
    return " ".join(["rlx sweep", *typed, f"seed={','.join(map(str, seeds)) if isinstance(seeds, list) else 0}"])


def _effective(words: str, env: str, fixed: dict[str, str]) -> list[str]:
    """The settings without those that have no effect; all of them if that cannot be found out."""
    from rlx.config.compose import Composer  # imports Hydra

    kept = dict(fixed)
    composer = Composer(stranger=Path("sweep.json"))  # whoever wrote it: no module is imported
    while kept:
        try:
            composer.compose([*words.split(), f"env={env}", *[f"{key}={text}" for key, text in kept.items()]])
        except NoEffectError as error:
            if kept.pop(error.key, None) is None:
                break
        except ConfigError:
            break
        else:
            break
    return [f"{key}={text}" for key, text in kept.items()]
