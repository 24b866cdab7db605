"""Intervals: coverage by simulation; few values, equal values and shares; the table in docs/results."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rlx.stats import aggregate, intervals
from rlx.stats.elo import rate
from rlx.stats.intervals import Interval, Scores

Draw = Callable[[np.random.Generator, int], Scores]
DATA: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "uniform": lambda rng, n: rng.uniform(size=n),
    "t, 3 degrees of freedom": lambda rng, n: rng.standard_t(3, size=n),
    "lognormal, σ = 0.5": lambda rng, n: rng.lognormal(0.0, 0.5, size=n),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "lognormal, σ = 1": lambda rng, n: rng.lognormal(0.0, 1.0, size=n),
    "37 % at a ceiling": lambda rng, n: np.minimum(500.0, rng.normal(480.0, 60.0, size=n)),
    "two groups, half each": lambda rng, n: rng.normal(0.0, 0.1, size=n) + (rng.random(n) < 0.5),
    "20 % fail": lambda rng, n: rng.normal(1.0, 0.1, size=n) - (rng.random(n) < 0.2),
}


def of_mean(x: Scores) -> Interval:
    return intervals.mean_interval([x], resamples=1000)


def of_iqm(x: Scores) -> Interval:
    return intervals.percentile_interval([x], aggregate.iqm, resamples=1000)


def coverage(draw: Draw, truth: float, interval: Callable[[Scores], Interval], n: int, repeats: int) -> float:
    """Of the intervals that there are; of values which are all equal there is none."""
    rng = np.random.default_rng(n)
    ends = np.array([interval(draw(rng, n)) for _ in range(repeats)])
    ends = ends[np.isfinite(ends[:, 0])]
    return float(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean())


def truths(draw: Draw) -> tuple[float, float]:
    many = draw(np.random.default_rng(0), 2_000_000)
    return float(many.mean()), float(aggregate.iqm(many))


# How often they cover


@pytest.mark.parametrize("n", [5, 10])
@pytest.mark.parametrize(("name", "mean", "iqm"), [("normal", 0.0, 0.0), ("exponential", 1.0, 0.7384)])
def test_intervals_of_means_and_interquartile_means_cover_what_they_say(name: str, mean: float, iqm: float, n: int) -> None:
    """From 0.92 to 0.98, give or take what 400 repetitions leave to chance; percentiles of a bootstrap come to 0.78 to 0.90 here."""
    assert 0.91 <= coverage(DATA[name], mean, of_mean, n, 400) <= 0.99
    assert 0.91 <= coverage(DATA[name], iqm, of_iqm, n, 400) <= 0.99


@pytest.mark.parametrize(("m", "n", "spread"), [(5, 5, 1.0), (10, 10, 1.0), (5, 20, 5.0)])
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_intervals_of_the_probability_of_improvement_cover_what_they_say(m: int, n: int, spread: float, shift: float) -> None:
    rng, truth = np.random.default_rng(m), stats.norm.cdf(shift / math.sqrt(spread**2 + 1.0))
    ends = np.array([intervals.improvement_interval([rng.normal(shift, spread, m)], [rng.normal(size=n)]) for _ in range(400)])
    assert 0.90 <= ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean() <= 0.99


def test_intervals_of_a_mean_over_environments_cover_what_they_say() -> None:
    rng = np.random.default_rng(0)
    ends = [intervals.mean_interval([rng.normal(0.0, 1.0, 5), rng.normal(100.0, 3.0, 8)], resamples=1000) for _ in range(300)]
    truth = 800.0 / 13.0
    assert 0.91 <= np.mean([low <= truth <= high for low, high in ends]) <= 0.99


def test_intervals_of_scores_of_games_cover_what_they_say() -> None:
    rng, covered = np.random.default_rng(0), []
    for chances in ((0.3, 0.2, 0.5), (0.05, 0.05, 0.9), (0.1, 0.8, 0.1)):
        truth = chances[1] / 2 + chances[2]
        for _ in range(300):
            low, high = intervals.score_interval(rng.choice([0.0, 0.5, 1.0], p=chances, size=20))
            covered.append(low <= truth <= high)
    assert 0.92 <= np.mean(covered) <= 0.99


def test_intervals_of_ratings_cover_also_where_one_side_wins_nearly_everything() -> None:
    """A bootstrap over ten openings covers 0.68 at 500 points of difference."""
    rng, wins = np.random.default_rng(0), 1.0 / (1.0 + 10.0 ** (-500.0 / 400.0))
    ends = [rate({(1, 0): rng.binomial(2, wins, size=10).astype(float)}, 2, anchor=0) for _ in range(60)]
    assert 0.9 <= np.mean([r.low[1] <= 500.0 <= r.high[1] for r in ends]) <= 1.0


# What there is no interval of


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_fewer_than_five_values_have_no_interval(n: int) -> None:
    few, enough = np.arange(float(n)), np.arange(9.0)
    for found in (
        of_mean(few),
        of_iqm(few),
        intervals.mean_interval([enough, few]),
        intervals.improvement_interval([few], [enough]),
        intervals.improvement_interval([enough], [few]),
        intervals.score_interval(np.ones(n)),
        tuple(ends[0] for ends in rate({(0, 1): np.ones(n)}, 2)[1:]),
    ):
        assert all(map(math.isnan, found))


def test_equal_values_say_nothing_of_how_they_vary_but_equal_shares_do() -> None:
    assert all(map(math.isnan, of_mean(np.full(10, 500.0))))
    assert all(map(math.isnan, of_iqm(np.full(10, 500.0))))
    assert all(map(math.isnan, intervals.mean_interval([np.full(6, 1.0), np.full(6, 9.0)])))
    low, high = intervals.share_interval(1.0, 10)
    assert (round(low, 3), high) == (0.722, 1.0)
    low, high = intervals.score_interval(np.full(100, 0.5))
    assert 0.47 < low < 0.5 < high < 0.53
    low, high = intervals.improvement_interval([np.full(5, 500.0)], [np.full(5, 500.0)])
    assert low < 0.25
    assert high > 0.75
    low, high = intervals.improvement_interval([np.arange(5) + 9.0], [np.arange(5.0)])
    assert 0.4 < low < 0.8
    assert high == 1.0


# The parts


def test_quantiles_of_t_are_scipys() -> None:
    for p in (0.75, 0.975, 0.9995):
        for freedom in (1.0, 2.5, 4.0, 37.3, 1e6):
            assert intervals.t_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-4)


def test_a_share_has_wilsons_interval() -> None:
    for k, n in ((0, 7), (3, 10), (95, 100)):
        expected = stats.binomtest(k, n).proportion_ci(method="wilson")
        assert intervals.share_interval(k / n, n) == pytest.approx((expected.low, expected.high))
        points = np.repeat([1.0, 0.0], [k, n - k])
        assert intervals.score_interval(points) == pytest.approx((expected.low, expected.high)), "wins and losses are a share"


def test_intervals_hold_their_centre_follow_the_data_and_are_reproducible() -> None:
    x = np.random.default_rng(3).lognormal(size=12)
    for interval, centre in ((of_mean, x.mean()), (of_iqm, float(aggregate.iqm(x)))):
        low, high = interval(x)
        assert low < centre < high
        assert interval(x) == (low, high)
        assert interval(3.0 * x - 7.0) == pytest.approx((3.0 * low - 7.0, 3.0 * high - 7.0))
        assert interval(-x)[0] == pytest.approx(-high, rel=0.05)


def test_a_skewed_mean_has_more_room_on_its_long_side() -> None:
    x = np.array([1.0, 1.1, 1.3, 1.2, 1.0, 4.0, 1.4, 1.1])
    low, high = of_mean(x)
    assert high - x.mean() > 1.5 * (x.mean() - low)


def test_many_values_are_drawn_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=40)
    whole = of_mean(x)
    monkeypatch.setattr(intervals, "_CELLS", 4000)
    assert of_mean(x) == pytest.approx(whole)


def test_a_higher_confidence_is_wider() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 8))
    for narrow, wide in (
        (intervals.mean_interval([x], confidence=0.5), intervals.mean_interval([x])),
        (intervals.percentile_interval([x], aggregate.iqm, confidence=0.5), intervals.percentile_interval([x], aggregate.iqm)),
        (intervals.improvement_interval([x], [y], confidence=0.5), intervals.improvement_interval([x], [y])),
    ):
        assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.slow
def test_the_table_of_coverage_is_what_the_results_say() -> None:
    """Prints the table of docs/results with -s; every row there is one here."""
    written = (Path(__file__).parents[1] / "docs/results/README.md").read_text()
    sizes = (5, 8, 10, 20, 50)
    rows = []
    for name, draw in DATA.items():
        cells = []
        for truth, interval in zip(truths(draw), (of_mean, of_iqm), strict=True):
            found = [coverage(draw, truth, interval, n, 3000) for n in sizes]
            cells += [f"{share:.2f}" for share in found]
        rows.append(f"| {name} | {' | '.join(cells)} |")
        print(rows[-1])
    assert all(row in written for row in rows)
