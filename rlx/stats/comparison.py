"""Compare groups of runs: statistics of each, and tests of the differences between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlx.errors import ConfigError
from rlx.stats import aggregate, curves, intervals
from rlx.stats.aggregate import Scores
from rlx.stats.claims import Judged, claims_of, judge_sweeps
from rlx.stats.data import Group, RunData, check_metric, group, load, objective_of, of_one_seed

ALL_PAIRS_UP_TO = 6
"""Up to so many groups, all pairs are compared; beyond, each group is compared with the best."""


@dataclass(kw_only=True)
class Row:
    """One group, summed up."""

    group: str
    values: dict[str, Any]
    seeds: int
    runs: int
    scores: list[float]
    """Last values of the metric, one for each seed (and environment): the mean, where several runs have the same."""
    mean: float
    median: float
    iqm: float
    mean_ci: tuple[float, float]
    iqm_ci: tuple[float, float]
    optimality_gap: float | None
    auc: float | None
    """Mean performance over training: area under the curve up to the common horizon, divided by its length; mean over runs."""
    steps_to_threshold: float | None
    """Median over all runs, those that never reached it counting as never; None if that is most of them."""
    reached: int
    """How many runs reached the threshold."""
    wall_s: float | None
    env_steps: int
    """Median of where the runs ended."""


@dataclass(kw_only=True)
class Pair:
    """Two groups compared."""

    a: str
    b: str
    improvement: float
    """Probability that a run of a is better than a run of b."""
    improvement_ci: tuple[float, float]
    p: float
    p_corrected: float
    verdict: str
    """better, worse, not distinguishable, too few seeds"""
    needed: int | None = None
    """Seeds per group from which a verdict is possible at all, where there are too few."""


@dataclass(kw_only=True)
class Comparison:
    """Groups of runs side by side, and pair by pair."""

    metric: str
    rows: list[Row]
    pairs: list[Pair]
    confidence: float
    minimize: bool
    target: float | None
    threshold: float | None
    at: int | None
    envs: list[str]
    normalized: bool
    all_pairs: bool
    sweep: str | None = None
    """The sweep that all runs are of."""
    notes: list[str] = field(default_factory=list)
    """Runs that were left out, and warnings."""
    claims: list[Judged] = field(default_factory=list)
    """What the sweeps of the runs claim, judged."""
    resamples: int = intervals.RESAMPLES
    seed: int = intervals.SEED


METRIC = "eval/return_mean"


def compare_runs(
    root: Path,
    references: list[str],
    *,
    by: list[str] | None = None,
    metric: str | None = None,
    minimize: bool = False,
    claims: str | None = None,
    **options: Any,
) -> Comparison:
    """Compare runs and sweeps by their names.

    Args:
        root: the directory of runs.
        references: names, paths or patterns of runs and sweeps.
        by: keys that runs are grouped by; None is what differs.
        metric: what is compared; None is the objective of the sweep that all runs are of, or the mean return of evaluations.
        minimize: less is better; known already where a sweep minimizes its objective.
        claims: the experiment whose claims are judged; None is what the sweeps of the runs were started with.
        options: of `compare`.

    Raises:
        ConfigError: if there are no such runs, or they cannot be compared.
    """
    claimed = None if claims is None else claims_of(claims)
    runs, unreadable = load(root, references)
    objective = objective_of(root, runs) or (METRIC, False)
    metric = metric or objective[0]
    result = compare(group(runs, by), metric=metric, minimize=minimize or objective == (metric, True), **options)
    sweeps = {run.sweep for run in runs}
    result.sweep = sweeps.pop() if len(sweeps) == 1 else None
    result.notes += unreadable
    result.claims = judge_sweeps(root, runs, claimed=claimed, confidence=result.confidence)
    return result


def compare(
    groups: Sequence[Group],
    *,
    metric: str,
    at: int | None = None,
    threshold: float | None = None,
    target: float | None = None,
    minimize: bool = False,
    confidence: float = 0.95,
    all_pairs: bool = False,
) -> Comparison:
    """Compare groups of runs by a metric.

    Args:
        at: compare the values at this many env steps instead of the last ones.
        threshold: what sample efficiency is measured by; None is the target.
        target: what the optimality gap is measured from; None is the reward threshold of the environment, where it has one.
        minimize: less is better.
        confidence: of intervals, and one minus the error rate of the verdicts.

    Raises:
        ConfigError: if no run has the metric, or none is as far as `at`.
    """
    if not 0.5 <= confidence < 1.0:
        raise ConfigError(f"--confidence {confidence}: expected a share from 0.5 to below 1, e.g. 0.95")
    runs = [run for g in groups for run in g.runs]
    check_metric(runs, metric)
    notes: list[str] = []
    kept = _keep(groups, metric, at, notes)
    runs = [run for g in kept for run in g.runs]
    envs = sorted({str(run.settings.get("env")) for run in runs})
    spans = any(len({run.settings.get("env") for run in g.runs}) > 1 for g in kept)
    scores = {id(run): value for run in runs if (value := curves.value_at(run, metric, at)) is not None}
    if spans:
        scores = _normalize(runs, scores)
        notes.append("groups span several environments: scores are scaled, 0 for the worst and 1 for the best run of each environment")
    strata = {g.label: _strata(g, scores, envs if spans else [str(g.runs[0].settings.get("env"))]) for g in kept}
    target = target if target is not None or spans else _reward_threshold(runs, metric)
    threshold = threshold if threshold is not None else target
    horizon = float(min(run.env_steps if run.status != "finished" else max(r.env_steps for r in runs) for run in runs))
    _note_horizons(runs, at, notes)
    rows = [_row(g, strata[g.label], metric, target, threshold, horizon, minimize, confidence) for g in kept]
    listed = _pairs(rows, all_pairs=all_pairs, minimize=minimize)
    if len(rows) > ALL_PAIRS_UP_TO:
        rows.sort(key=lambda row: row.iqm, reverse=not minimize)
    pairs = _judge(listed, strata, minimize=minimize, confidence=confidence)
    if len(rows) > ALL_PAIRS_UP_TO and not all_pairs:
        notes.append(f"each group is compared with {listed[0][0]}, the best by IQM; --all-pairs compares each with each")
    if len(rows) > 3:
        notes.append("the score of the best of many groups is biased upwards: confirm it with new seeds before you report it")
    return Comparison(metric=metric, rows=rows, pairs=pairs, confidence=confidence, minimize=minimize, target=target, threshold=threshold,
                      at=at, envs=envs, normalized=spans, all_pairs=all_pairs or len(rows) <= ALL_PAIRS_UP_TO, notes=notes)  # fmt: skip


def _keep(groups: Sequence[Group], metric: str, at: int | None, notes: list[str]) -> list[Group]:
    """Groups less the runs that have no score, which are named."""
    kept, missing, unfinished, repeated = [], [], [], []
    pruned = sum(_is_pruned(run, at) for g in groups for run in g.runs)
    if pruned:
        notes.append(f"left out: {pruned} runs of pruned trials, which had less training; --at includes them")
        groups = [Group(label=g.label, values=g.values, runs=[r for r in g.runs if not _is_pruned(r, at)]) for g in groups]
    for g in groups:
        runs = [run for run in g.runs if curves.value_at(run, metric, at) is not None]
        missing += [f"{run.name} ({run.status})" for run in g.runs if curves.value_at(run, metric, at) is None]
        unfinished += [f"{run.name} ({run.status} at {run.env_steps:,} steps)" for run in runs if run.status != "finished"]
        repeated += [f"{g.label} seed {runs[same[0]].seed}" for same in of_one_seed(runs) if len(same) > 1]
        if runs:
            kept.append(Group(label=g.label, values=g.values, runs=runs))
    where = "" if at is None else f" at {at:,} env steps"
    ends = [run.env_steps for g in groups for run in g.runs]
    if at is not None and at > max(ends):
        raise ConfigError(f"--at {at}: no run of these is that far; the furthest is at {max(ends):,} env steps")
    if not kept:
        raise ConfigError(f"--at {at}: no run of these has {metric} that early; the runs go to {max(ends):,} env steps")
    if missing:
        notes.append(f"left out, without {metric}{where}: {_some(missing)}")
    if unfinished and at is None:
        notes.append(f"not finished, taken where they are: {_some(unfinished)}")
    if repeated:
        notes.append(f"several runs of one seed count once, as their mean: {_some(repeated)}")
    return kept


def _is_pruned(run: RunData, at: int | None) -> bool:
    return at is None and run.sweep is not None and run.status == "paused"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _normalize(runs: list[RunData], scores: dict[int, float]) -> dict[int, float]:
    """Scores scaled to [0, 1] by the worst and best run of each environment."""
    ends: dict[Any, list[float]] = {}
    for run in runs:
        ends.setdefault(run.settings.get("env"), []).append(scores[id(run)])
    spans = {env: (min(v), max(v) - min(v)) for env, v in ends.items()}
    scaled = {}
    for run in runs:
        low, width = spans[run.settings.get("env")]
        scaled[id(run)] = (scores[id(run)] - low) / width if width > 0 else 0.5
    return scaled


def _strata(g: Group, scores: dict[int, float], envs: list[str]) -> list[Scores]:
    """Scores for each environment, one for each seed: runs that share theirs are no independent evidence, and count as their mean."""
    found: dict[str, list[float]] = {env: [] for env in envs}
    for same in of_one_seed(g.runs):
        mean = float(np.mean([scores[id(g.runs[i])] for i in same]))
        found[str(g.runs[same[0]].settings.get("env"))].append(mean)
    lacking = [env for env, values in found.items() if not values]
    if lacking:
        raise ConfigError(
            f"{g.label} has no run on {', '.join(lacking)}, where others have: compare runs of the same environments, or --by env"
        )
    return [np.array(values) for values in found.values()]


def _reward_threshold(runs: list[RunData], metric: str) -> float | None:
    """The return from which gymnasium counts the runs' environment as solved."""
    import gymnasium

    from rlx.config.compose import Composer

    names = {str(run.settings.get("env")) for run in runs}
    if len(names) != 1 or "return" not in metric:
        return None
    (name,) = names
    env_id = Composer().env_ids().get(name, name)
    found = gymnasium.registry.get(env_id)
    return None if found is None or found.reward_threshold is None else float(found.reward_threshold)


def _note_horizons(runs: list[RunData], at: int | None, notes: list[str]) -> None:
    ends = sorted(run.env_steps for run in runs)
    if at is None and ends[-1] > 1.02 * ends[0]:
        span = f"{ends[0]:,} and {ends[-1]:,} env steps"
        notes.append(f"runs ended between {span}, with different budgets behind their last values; --at {ends[0]} compares them at one")


def _row(
    g: Group,
    strata: list[Scores],
    metric: str,
    target: float | None,
    threshold: float | None,
    horizon: float,
    minimize: bool,
    confidence: float,
) -> Row:
    scores = np.concatenate(strata)
    sign = -1.0 if minimize else 1.0
    areas = [a for run in g.runs if (a := curves.area_under_curve(run, metric, horizon)) is not None]
    reached = [None if threshold is None else curves.steps_to(run, metric, threshold, minimize=minimize) for run in g.runs]
    times = [run.elapsed_s for run in g.runs if run.elapsed_s is not None]
    middle = float(np.median([math.inf if steps is None else steps for steps in reached]))
    return Row(
        group=g.label,
        values=g.values,
        seeds=len({run.seed for run in g.runs}),
        runs=len(g.runs),
        scores=[float(s) for s in scores],
        mean=float(scores.mean()),
        median=float(np.median(scores)),
        iqm=float(aggregate.iqm(scores)),
        mean_ci=intervals.mean_interval(strata, confidence=confidence),
        iqm_ci=intervals.percentile_interval(strata, aggregate.iqm, confidence=confidence),
        optimality_gap=None if target is None else aggregate.optimality_gap(sign * scores, sign * target),
        auc=float(np.mean(areas)) if areas and len({run.settings.get("env") for run in g.runs}) == 1 else None,
        steps_to_threshold=middle if math.isfinite(middle) else None,
        reached=sum(steps is not None for steps in reached),
        wall_s=float(np.median(times)) if times else None,
        env_steps=int(np.median([run.env_steps for run in g.runs])),
    )


def _pairs(rows: list[Row], *, all_pairs: bool, minimize: bool) -> list[tuple[str, str]]:
    if all_pairs or len(rows) <= ALL_PAIRS_UP_TO:
        return [(a.group, b.group) for a, b in itertools.combinations(rows, 2)]
    best = (min if minimize else max)(rows, key=lambda row: row.iqm)
    return [(best.group, row.group) for row in rows if row is not best]


def _judge(listed: list[tuple[str, str]], strata: dict[str, list[Scores]], *, minimize: bool, confidence: float) -> list[Pair]:
    """Probability of improvement of every pair, and a verdict that holds for all pairs together (Holm 1979)."""
    alpha = 1.0 - confidence
    sides = [([-s for s in strata[a]], [-s for s in strata[b]]) if minimize else (strata[a], strata[b]) for a, b in listed]
    p_values = [aggregate.permutation_p(x, y) for x, y in sides]
    corrected = aggregate.holm(p_values)
    pairs = []
    for (a, b), (x, y), p, p_all in zip(listed, sides, p_values, corrected, strict=True):
        improvement = aggregate.probability_of_improvement(x, y)
        needed = None
        if p_all < alpha:
            verdict = "better" if improvement > 0.5 else "worse"
        elif aggregate.smallest_p(x, y) * len(listed) >= alpha:
            verdict, needed = "too few seeds", _needed(alpha, len(listed), len(x))
        else:
            verdict = "not distinguishable"
        pairs.append(Pair(a=a, b=b, improvement=improvement, improvement_ci=intervals.improvement_interval(x, y, confidence=confidence),
                          p=p, p_corrected=p_all, verdict=verdict, needed=needed))  # fmt: skip
    return pairs


def _needed(alpha: float, pairs: int, strata: int) -> int:
    """Seeds per group (and environment) from which the exact test of so many pairs can fall below alpha."""
    return next(n for n in itertools.count(2) if 2.0 * pairs / math.comb(2 * n, n) ** strata < alpha)
