"""Aggregates and verdicts: against numbers worked out by hand, against SciPy and rliable, and by simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rlx.errors import ConfigError
from rlx.stats import aggregate, curves, intervals
from rlx.stats.comparison import compare
from rlx.stats.data import Group, RunData, group, label, metrics_of

METRIC = "eval/return_mean"


def run_of(values: list[float], *, seed: int = 0, every: int = 1000, status: str = "finished", **settings: Any) -> RunData:
    lines = [{"env_steps": every * (i + 1), "iteration": i, METRIC: v, "time/elapsed_s": i + 1.0} for i, v in enumerate(values)]
    return RunData(name=f"r{seed}", seed=seed, status=status, settings={"algo": "ppo", "env": "none", **settings}, lines=lines)


def groups_of(**scores: list[float]) -> list[Group]:
    return [
        Group(label=name, values={"k": name}, runs=[run_of([v], seed=i) for i, v in enumerate(values)]) for name, values in scores.items()
    ]


# Aggregates


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 20])
def test_iqm_is_scipys_trimmed_mean(n: int) -> None:
    scores = np.random.default_rng(n).normal(size=n)
    assert aggregate.iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25))


def test_iqm_by_hand_and_over_the_last_axis() -> None:
    assert aggregate.iqm(np.array([100.0, 1.0, 3.0, -50.0])) == 2.0
    np.testing.assert_array_equal(aggregate.iqm(np.array([[0.0, 1.0, 2.0, 9.0], [4.0, 4.0, 4.0, 4.0]])), [1.5, 4.0])


def test_optimality_gap_does_not_let_success_make_up_for_failure() -> None:
    assert aggregate.optimality_gap(np.array([475.0, 500.0, 425.0, 375.0]), 475.0) == 37.5


RLIABLE = np.array([[0.1, 0.9, 0.4], [0.3, 0.8, 0.5], [0.2, 1.1, 0.7], [0.6, 1.0, 0.2], [0.5, 0.7, 0.6]])
"""Five runs of three tasks."""


def test_aggregates_are_rliables() -> None:
    """The definitions of rliable 1.2.0: mean of the middle half of all scores, mean shortfall from 1, Mann-Whitney's U over tasks."""
    flat = RLIABLE.flatten()
    assert aggregate.iqm(flat) == pytest.approx(stats.trim_mean(RLIABLE, proportiontocut=0.25, axis=None))
    assert aggregate.optimality_gap(flat, 1.0) == pytest.approx(1.0 - np.mean(np.minimum(RLIABLE, 1.0)))
    other = RLIABLE[:4] - 0.15
    tasks = [stats.mannwhitneyu(RLIABLE[:, k], other[:, k]).statistic / 20.0 for k in range(3)]
    found = aggregate.probability_of_improvement([RLIABLE[:, k] for k in range(3)], [other[:, k] for k in range(3)])
    assert found == pytest.approx(np.mean(tasks))


# Probability of improvement


def test_probability_of_improvement_by_hand_with_ties() -> None:
    x, y = [np.array([1.0, 2.0, 3.0])], [np.array([2.0, 0.0])]
    assert aggregate.probability_of_improvement(x, y) == pytest.approx((0 + 1 + 0.5 + 1 + 1 + 1) / 6)
    assert aggregate.probability_of_improvement(y, x) == pytest.approx(1 - (0 + 1 + 0.5 + 1 + 1 + 1) / 6)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0])
def test_shifted_normals_have_the_probability_of_improvement_that_they_should(shift: float) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(shift, 1.0, size=4000), rng.normal(size=4000)
    assert aggregate.probability_of_improvement([x], [y]) == pytest.approx(stats.norm.cdf(shift / math.sqrt(2)), abs=0.02)


@pytest.mark.parametrize(("n", "p"), [(2, 2 / 6), (3, 2 / 20), (4, 2 / 70), (5, 2 / 252)])
def test_separated_groups_have_the_smallest_p_there_is(n: int, p: float) -> None:
    x, y = [np.arange(n) + 100.0], [np.arange(n) + 0.0]
    assert aggregate.permutation_p(x, y) == pytest.approx(p)
    assert aggregate.smallest_p(x, y) == pytest.approx(p)


def test_the_exact_test_is_mann_and_whitneys() -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        x, y = rng.normal(0.8, 1.0, size=5), rng.normal(size=6)
        assert aggregate.permutation_p([x], [y]) == pytest.approx(stats.mannwhitneyu(x, y, method="exact").pvalue)


def test_equal_runs_cannot_be_told_apart() -> None:
    assert aggregate.permutation_p([np.full(5, 500.0)], [np.full(5, 500.0)]) == 1.0


def test_random_permutations_agree_with_the_exact_test() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(0.7, 1.0, size=12), rng.normal(size=12)
    assert aggregate.permutations([x], [y]) > 10_000
    assert aggregate.permutation_p([x], [y]) == pytest.approx(stats.mannwhitneyu(x, y, method="exact").pvalue, abs=0.01)


def test_strata_are_exchanged_within_themselves() -> None:
    """Two environments in which x wins by a little and by a lot: pooled, the difference between environments would hide it."""
    x = [np.array([1.0, 1.1, 1.2, 1.3]), np.array([101.0, 101.1, 101.2, 101.3])]
    y = [np.array([0.0, 0.1, 0.2, 0.3]), np.array([100.0, 100.1, 100.2, 100.3])]
    assert aggregate.permutation_p(x, y) < 0.01
    assert aggregate.permutation_p([np.concatenate(x)], [np.concatenate(y)]) > 0.05


def test_holm_by_hand() -> None:
    assert aggregate.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert aggregate.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert aggregate.holm([]) == []


# Verdicts


def verdicts(**scores: list[float]) -> list[str]:
    return [pair.verdict for pair in compare(groups_of(**scores), metric=METRIC).pairs]


def test_verdicts_need_enough_seeds_and_a_difference() -> None:
    assert verdicts(a=[5.0], b=[1.0]) == ["too few seeds"]
    assert verdicts(a=[5, 6, 7], b=[1, 2, 3]) == ["too few seeds"]
    assert verdicts(a=[5, 6, 7, 8], b=[1, 2, 3, 4]) == ["better"]
    assert verdicts(a=[1, 2, 3, 4], b=[5, 6, 7, 8]) == ["worse"]
    assert verdicts(a=[1, 3, 5, 7, 9], b=[2, 4, 6, 8, 10]) == ["not distinguishable"]
    assert verdicts(a=[500.0] * 5, b=[500.0] * 5) == ["not distinguishable"]


def test_copies_of_one_seed_and_settings_pooled_over_it_are_no_more_evidence() -> None:
    a = Group(label="a", values={}, runs=[run_of([v], seed=s) for s in (0, 1) for v in (5.0, 7.0, 9.0)])
    b = Group(label="b", values={}, runs=[run_of([v], seed=s) for s in (0, 1) for v in (1.0, 1.0, 1.0)])
    result = compare([a, b], metric=METRIC)
    assert [(row.seeds, row.runs, row.scores) for row in result.rows] == [(2, 6, [7.0, 7.0]), (2, 6, [1.0, 1.0])]
    assert all(map(math.isnan, result.rows[0].mean_ci))
    assert [pair.verdict for pair in result.pairs] == ["too few seeds"]
    assert any("several runs of one seed count once" in note for note in result.notes)
    _, centre, low, high = curves.band([run_of([v]) for v in (5.0, 7.0, 9.0)], METRIC)
    assert centre.tolist() == [7.0]
    assert np.isnan([low, high]).all()


def test_more_pairs_need_more_seeds() -> None:
    three = {"a": [5.0, 6, 7, 8], "b": [1.0, 2, 3, 4], "c": [9.0, 10, 11, 12]}
    assert verdicts(**three) == ["too few seeds"] * 3
    (pair, *_) = compare(groups_of(**three), metric=METRIC).pairs
    assert pair.needed == 5


def test_less_is_better_where_it_is_said() -> None:
    groups = groups_of(a=[5, 6, 7, 8], b=[1, 2, 3, 4])
    (pair,) = compare(groups, metric=METRIC, minimize=True).pairs
    assert (pair.verdict, pair.improvement) == ("worse", 0.0)


def test_under_the_null_a_verdict_is_rarer_than_the_error_rate() -> None:
    """Three groups of five seeds from one distribution: some pair gets a verdict in at most 5 % of experiments, give or take chance."""
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(120):
        x = {name: rng.normal(size=5) for name in "abc"}
        p = [aggregate.permutation_p([x[a]], [x[b]]) for a, b in ("ab", "ac", "bc")]
        wrong += min(aggregate.holm(p)) < 0.05
    assert wrong / 120 <= 0.09


def test_many_groups_are_compared_with_the_best_only_unless_asked() -> None:
    groups = groups_of(**{f"g{i}": [float(i), i + 0.5] for i in range(8)})
    result = compare(groups, metric=METRIC)
    assert [pair.a for pair in result.pairs] == ["g7"] * 7
    assert [row.group for row in result.rows] == [f"g{i}" for i in range(7, -1, -1)]
    assert len(compare(groups, metric=METRIC, all_pairs=True).pairs) == 28


def test_runs_without_a_score_are_left_out_by_name() -> None:
    broken = run_of([], seed=9, status="failed")
    (first, second) = groups_of(a=[5, 6], b=[1, 2])
    result = compare([Group(label="a", values={}, runs=[*first.runs, broken]), second], metric=METRIC)
    assert result.rows[0].seeds == 2
    assert any("r9 (failed)" in note for note in result.notes)


def test_different_budgets_are_said_and_can_be_made_equal() -> None:
    long, short = run_of([1, 2, 3, 4], seed=0), run_of([5, 6], seed=1)
    groups = [Group(label="long", values={}, runs=[long]), Group(label="short", values={}, runs=[short])]
    assert any("--at 2000" in note for note in compare(groups, metric=METRIC).notes)
    result = compare(groups, metric=METRIC, at=2000)
    assert [row.scores for row in result.rows] == [[2.0], [6.0]]
    assert not any("--at" in note for note in result.notes)


def test_groups_over_several_environments_are_scaled_within_each() -> None:
    def on(env: str, values: list[float]) -> list[RunData]:
        return [run_of([v], seed=i, env=env) for i, v in enumerate(values)]

    a = Group(label="a", values={}, runs=[*on("x", [0.0, 10.0]), *on("y", [-100.0, 100.0])])
    b = Group(label="b", values={}, runs=[*on("x", [5.0, 10.0]), *on("y", [0.0, 100.0])])
    result = compare([a, b], metric=METRIC)
    assert result.normalized
    assert [row.scores for row in result.rows] == [[0.0, 1.0, 0.0, 1.0], [0.5, 1.0, 0.5, 1.0]]
    with pytest.raises(ConfigError, match="b has no run on y"):
        compare([a, Group(label="b", values={}, runs=on("x", [1.0]))], metric=METRIC)


# Curves


def test_curves_meet_on_a_grid_that_begins_where_all_have_a_value() -> None:
    early, late = run_of([1, 2, 3, 4]), run_of([10, 20], every=2000)
    x, rows = curves.align([early, late], METRIC)
    assert x.tolist() == [2000.0, 3000.0, 4000.0]
    assert rows.tolist() == [[2.0, 3.0, 4.0], [10.0, 10.0, 20.0]]


def test_a_finished_run_keeps_its_last_value_and_a_running_one_ends_the_grid() -> None:
    whole, short = run_of([1, 2, 3, 4]), run_of([7, 8])
    assert curves.align([whole, short], METRIC)[1][1].tolist() == [7.0, 8.0, 8.0, 8.0]
    running = run_of([7, 8], status="running")
    assert curves.align([whole, running], METRIC)[0].tolist() == [1000.0, 2000.0]


def test_a_band_is_the_statistic_with_its_interval() -> None:
    runs = [run_of([float(i), 2.0 * i, 3.0], seed=i) for i in range(6)]
    x, centre, low, high = curves.band(runs, METRIC)
    np.testing.assert_allclose(centre, [2.5, 5.0, 3.0])
    assert (low < centre)[:2].all()
    assert (centre < high)[:2].all()
    assert np.isnan([low[2], high[2]]).all(), "all seeds have one value"
    assert (low[0], high[0]) == pytest.approx(intervals.percentile_interval([np.arange(6.0)], aggregate.iqm), abs=0.5)
    for again, before in zip(curves.band(runs, METRIC), (x, centre, low, high), strict=True):
        np.testing.assert_array_equal(again, before)


@pytest.mark.parametrize("statistic", ["iqm", "mean"])
def test_a_few_seeds_have_no_band(statistic: str) -> None:
    _, centre, low, high = curves.band([run_of([1, 5 + i], seed=i) for i in range(4)], METRIC, statistic=statistic)
    assert centre.tolist() == [1.0, 6.5]
    assert np.isnan([low, high]).all()
    _, centre, low, high = curves.band([run_of([1, 5 + i], seed=i) for i in range(5)], METRIC, statistic=statistic)
    assert low[1] < centre[1] < high[1]


def test_area_under_the_curve_by_hand() -> None:
    run = run_of([0, 10, 10])
    assert curves.area_under_curve(run, METRIC) == pytest.approx(7.5)
    assert curves.area_under_curve(run, METRIC, 2500.0) == pytest.approx((5 * 1000 + 10 * 500) / 1500)
    assert curves.area_under_curve(run, METRIC, 5000.0) == pytest.approx((5 * 1000 + 10 * 3000) / 4000)


def test_steps_to_a_threshold() -> None:
    run = run_of([1, 5, 3, 9])
    assert curves.steps_to(run, METRIC, 4.0) == 2000.0
    assert curves.steps_to(run, METRIC, 10.0) is None
    assert curves.steps_to(run, METRIC, 0.5, minimize=True) is None
    assert curves.steps_to(run, METRIC, 1.0, minimize=True) == 1000.0


def test_the_value_at_a_budget() -> None:
    run = run_of([1, 5, 3])
    assert curves.value_at(run, METRIC) == 3.0
    assert curves.value_at(run, METRIC, 2500) == 5.0
    assert curves.value_at(run, METRIC, 500) is None
    assert curves.value_at(run_of([1, 5], status="stopped"), METRIC, 5000) is None


# Groups


def test_runs_of_a_sweep_are_grouped_by_what_it_swept() -> None:
    runs = [run_of([1.0], seed=s, **{"algo.clip": c, "algo.other": s}) for c in (0.2, 0.1) for s in range(2)]
    runs = [RunData(**{**run.__dict__, "sweep": "s", "swept": ("algo.clip",)}) for run in runs]
    groups = group(runs)
    assert [g.label for g in groups] == ["clip=0.1", "clip=0.2"]
    assert [len(g.runs) for g in groups] == [2, 2]


def test_loose_runs_are_grouped_by_what_differs_but_not_by_how_they_were_watched() -> None:
    a = run_of([1.0], **{"algo.clip": 0.1, "log.wandb": "auto", "loop.log_every": 1})
    b = run_of([1.0], **{"algo.clip": 0.2, "log.wandb": "disabled", "loop.log_every": 2})
    assert [g.label for g in group([a, b])] == ["clip=0.1", "clip=0.2"]


def test_algorithms_are_told_apart_by_name_and_lack_keys_that_they_do_not_have() -> None:
    ppo, a2c = run_of([1.0], **{"algo.clip": 0.1}), run_of([1.0], algo="a2c")
    assert [g.label for g in group([ppo, a2c])] == ["a2c", "ppo"]
    assert [g.label for g in group([ppo, a2c], by=["algo", "clip"])] == ["a2c", "ppo clip=0.1"]


def test_runs_that_lack_the_key_they_are_grouped_by_are_called_that() -> None:
    ppo, a2c = run_of([1.0], **{"algo.clip": 0.1}), run_of([1.0], algo="a2c")
    assert [g.label for g in group([ppo, a2c], by=["clip"])] == ["clip=0.1", "without clip"]


def test_groups_are_in_the_order_of_numbers() -> None:
    runs = [run_of([1.0], **{"algo.n": n}) for n in (10, 9, 100)]
    assert [g.label for g in group(runs, by=["n"])] == ["n=9", "n=10", "n=100"]


def test_a_key_that_no_run_has_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean algo.clip\?"):
        group([run_of([1.0], **{"algo.clip": 0.1})], by=["algo.clipp"])


def test_labels_are_short_and_never_the_same_for_two_groups() -> None:
    assert (
        label({"algo": "ppo", "algo.learning_rate": 0.001, "algo.hidden_sizes": [64, 64]}) == "ppo learning_rate=0.001 hidden_sizes=[64,64]"
    )
    assert label({"env.kwargs.bad": False, "algo.target_kl": None}) == "bad=false target_kl=null"
    runs = [run_of([1.0], **{"algo.x": x}) for x in (0.123451, 0.123452)]
    assert len({g.label for g in group(runs)}) == 2


def test_metrics_are_what_was_logged() -> None:
    assert metrics_of([run_of([1.0])]) == [METRIC, "time/elapsed_s"]
