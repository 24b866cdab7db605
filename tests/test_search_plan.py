"""A trial of a search is several seeds of one setting: trained rung by rung, judged by their aggregate, pruned together."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Literal

import pytest
from launch import lines

from rlx.collect import Episode
from rlx.config.compose import Composer
from rlx.config.override_types import read_overrides
from rlx.errors import ConfigError
from rlx.evaluation.evaluator import summarize
from rlx.metrics import MetricBuffer
from rlx.stats.aggregate import AGGREGATES
from rlx.store.runs import RunDir
from rlx.store.sweep_spec import Point, Search, Spec
from rlx.store.sweeps import SweepDir
from rlx.sweep.executors.executor import Job, Result
from rlx.sweep.executors.worker import work
from rlx.sweep.plan import LOGGED, SearchPlan, last_value

WORDS = (
    "algo=ppo", "env=cartpole", "recipe=null", "env.num_envs=2", "algo.rollout_length=32", "algo.num_epochs=1",
    "algo.num_minibatches=2", "loop.total_env_steps=1800", "loop.log_every=180", "loop.eval_every=200", "loop.eval_episodes=3",
    "loop.checkpoint_every=620", "log.wandb=disabled",
)  # fmt: skip


composed = functools.cache(lambda words: Composer().compose(list(words)))


class FakeStudy:
    """Proposes learning rates in order, and prunes at the first rung what is below a bar."""

    def __init__(self, rates: list[float], bar: float = float("-inf")) -> None:
        self.rates, self.bar = rates, bar
        self.asked = 0
        self.reports: list[tuple[int, int, float]] = []
        self.told: dict[int, tuple[float | None, str]] = {}

    def point(self, number: int) -> Point:
        rate = self.rates[number]
        return Point(overrides=tuple(read_overrides([*WORDS, f"algo.learning_rate={rate}"])), values={"algo.learning_rate": rate})

    def ask(self) -> tuple[int, Point]:
        self.asked += 1
        return self.asked - 1, self.point(self.asked - 1)

    def again(self, number: int) -> Point:
        self.told.pop(number, None)
        return self.point(number)

    def unfinished(self) -> list[int]:
        return [number for number in range(self.asked) if number not in self.told]

    def report(self, number: int, rung: int, value: float) -> bool:
        self.reports.append((number, rung, value))
        return value < self.bar

    def tell(self, number: int, value: float | None, outcome: Literal["complete", "pruned", "failed"]) -> None:
        self.told[number] = (value, outcome)

    def claimed(self) -> int:
        return self.asked

    def ended(self) -> set[int]:
        return {number for number, (_, outcome) in self.told.items() if outcome != "failed"}

    def best(self) -> tuple[int, float, dict[str, object]] | None:
        whole = {number: value for number, (value, outcome) in self.told.items() if outcome == "complete" and value is not None}
        number = max(whole, key=whole.__getitem__, default=None)
        return None if number is None else (number, whole[number], {})


def make_job(run: RunDir, config: object) -> Job:
    return Job(run=str(run.path))


def new_plan(root: Path, study: FakeStudy, *, trials: int = 2, seeds: int = 2, pruner: str = "median", aggregate: str = "mean",
             objective: str = "eval/return_mean", storage: str | None = None) -> SearchPlan:  # fmt: skip
    spec = Spec(overrides=read_overrides(WORDS), seeds=list(range(seeds)), swept=["algo.learning_rate"], objective=objective,
                aggregate=aggregate,
                search=Search(trials=trials, pruner=pruner, rungs=3, storage=storage))  # fmt: skip
    sweep = SweepDir(root / "s") if (root / "s").exists() else SweepDir.create(root, "s", spec, {})
    return SearchPlan(sweep, spec, study, compose=lambda p: copy.deepcopy(composed(tuple(p.arguments))), make_job=make_job)


def run_all(plan: SearchPlan) -> list[Job]:
    """Work off every job, one after the other, in this process."""
    jobs = []
    while (job := plan.next()) is not None:
        jobs.append(job)
        plan.ended(job, work(job))
    return jobs


def test_a_trial_climbs_its_rungs_with_all_seeds_and_reports_their_aggregate(tmp_path: Path) -> None:
    study = FakeStudy([1e-2])
    jobs = run_all(new_plan(tmp_path, study, trials=1))
    assert [(job.name, job.pause_at) for job in jobs] == [
        ("000-s0", 200), ("000-s1", 200), ("000-s0", 600), ("000-s1", 600), ("000-s0", None), ("000-s1", None)
    ]  # fmt: skip
    runs = [RunDir(tmp_path / "s" / f"000-s{seed}") for seed in (0, 1)]
    for number, rung, value in study.reports:
        at = {0: 200, 1: 600, 2: None}[rung]
        values = [last_value(run, "eval/return_mean", at) for run in runs]
        assert (number, value) == (0, pytest.approx(sum(v for v in values if v is not None) / 2))
    assert [rung for _, rung, _ in study.reports] == [0, 1, 2]
    assert study.told == {0: (study.reports[-1][2], "complete")}


def test_a_trial_is_pruned_on_the_aggregate_and_costs_one_rung_of_every_seed(tmp_path: Path) -> None:
    study = FakeStudy([1e-9], bar=1e9)
    jobs = run_all(new_plan(tmp_path, study, trials=1, seeds=3))
    assert [job.name for job in jobs] == ["000-s0", "000-s1", "000-s2"]
    assert study.told[0][1] == "pruned"
    for seed in range(3):
        run = RunDir(tmp_path / "s" / f"000-s{seed}")
        assert run.status == "paused"
        assert 200 <= run.metrics()[-1]["env_steps"] < 600


def test_a_run_that_was_paused_at_its_rungs_equals_one_that_was_not(tmp_path: Path) -> None:
    run_all(new_plan(tmp_path / "paused", FakeStudy([1e-2]), trials=1, seeds=1))
    run_all(new_plan(tmp_path / "straight", FakeStudy([1e-2]), trials=1, seeds=1, pruner="none"))
    paused, straight = (RunDir(tmp_path / name / "s/000-s0") for name in ("paused", "straight"))
    assert lines(paused) == lines(straight)
    assert [s["status"] for s in paused.segments] == ["paused", "paused", "finished"]
    assert [s["status"] for s in straight.segments] == ["finished"]


def test_a_search_taken_up_again_goes_on_with_the_trials_that_were_open(tmp_path: Path) -> None:
    study = FakeStudy([1e-2, 1e-3])
    plan = new_plan(tmp_path, study)
    for _ in range(3):  # both seeds of the first rung, one of the second; then the process dies
        job = plan.next()
        assert job is not None
        plan.ended(job, work(job))
    plan.next()
    again = new_plan(tmp_path, study)
    assert again.finished_runs() == 0
    jobs = run_all(again)
    assert [(job.name, job.pause_at) for job in jobs][:2] == [("000-s1", 600), ("000-s0", None)]
    assert {number: outcome for number, (_, outcome) in study.told.items()} == {0: "complete", 1: "complete"}
    assert study.asked == 2
    assert again.finished_runs() == 4


def test_a_failing_seed_fails_its_trial_and_no_more_seeds_are_spent_on_it(tmp_path: Path) -> None:
    study = FakeStudy([1e-2, 1e-2])
    plan = new_plan(tmp_path, study, seeds=3)
    job = plan.next()
    assert job is not None
    plan.ended(job, Result(status="failed", error="no"))
    assert study.told == {0: (None, "failed")}
    following = plan.next()
    assert following is None or following.name == "001-s0"


def test_a_search_whose_trials_all_fail_ends(tmp_path: Path) -> None:
    study = FakeStudy([1e-2] * 10)
    plan = new_plan(tmp_path, study, trials=3, seeds=1)
    failed = 0
    while (job := plan.next()) is not None:
        plan.ended(job, Result(status="failed", error="no"))
        failed += 1
    assert failed == 3


def test_a_failed_trial_is_not_finished_not_replaced_and_goes_on_when_it_is_retried(tmp_path: Path) -> None:
    def fail_first(plan: SearchPlan) -> None:
        job = plan.next()
        assert job is not None
        plan.ended(job, Result(status="failed", error="no"))

    study = FakeStudy([1e-2, 1e-3, 1e-4])
    plan = new_plan(tmp_path, study, seeds=1, pruner="none")
    fail_first(plan)
    run_all(plan)
    assert (plan.finished_runs(), plan.total_runs, study.asked) == (1, 2, 2)
    again = new_plan(tmp_path, study, seeds=1, pruner="none")
    assert (again.next(), again.finished_runs(), study.asked) == (None, 1, 2)
    again.sweep.log("retry", run="000-s0")
    retried = new_plan(tmp_path, study, seeds=1, pruner="none")
    assert [job.name for job in run_all(retried)] == ["000-s0"]
    assert (retried.finished_runs(), study.asked, study.told[0][1]) == (2, 2, "complete")


def test_a_shared_study_counts_what_others_finished_and_knows_its_best(tmp_path: Path) -> None:
    study = FakeStudy([1e-2, 1e-3])
    study.told[study.ask()[0]] = (7e9, "complete")  # by another process
    plan = new_plan(tmp_path, study, seeds=1, pruner="none", storage="sqlite:///shared.db")
    run_all(plan)
    assert (plan.finished_runs(), plan.finished_elsewhere(), plan.total_runs) == (2, 1, 2)
    assert plan.best() == ("elsewhere, trial 0", 7e9, {})


def test_an_objective_that_is_never_logged_ends_the_search_naming_those_that_are(tmp_path: Path) -> None:
    plan = new_plan(tmp_path, FakeStudy([1e-2]), trials=1, seeds=1, pruner="none", objective="eval/retrun_mean")
    with pytest.raises(ConfigError, match=r"did you mean eval/return_mean\?"):
        run_all(plan)


def test_the_metrics_that_an_objective_is_checked_against_are_those_that_are_logged() -> None:
    played = [Episode(1.0, 1), Episode(2.0, 1)]
    buffer = MetricBuffer()
    buffer.add_episodes(played)
    assert sorted([*summarize(played), *buffer.flush()]) == sorted(f"{group}/{name}" for group, names in LOGGED.items() for name in names)


@pytest.mark.parametrize(("how", "expected"), [("iqm", 4.5), ("mean", 13.625), ("median", 4.5), ("min", 1.0), ("max", 80.0)])
def test_aggregates(how: str, expected: float) -> None:
    aggregate = AGGREGATES[how]
    assert aggregate([80.0, 1.0, 3.0, 4.0, 5.0, 6.0, 8.0, 2.0]) == pytest.approx(expected)


def test_iqm_of_few_values_is_their_mean() -> None:
    iqm = AGGREGATES["iqm"]
    assert iqm([1.0, 2.0, 6.0]) == 3.0
    assert iqm([0.0, 1.0, 2.0, 100.0]) == 1.5
