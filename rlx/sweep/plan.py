"""Plans of a sweep's runs: all points of a grid, or the trials of a search, seed by seed and rung by rung."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rlx.config.choices import did_you_mean
from rlx.config.schema import RunConfig
from rlx.envs.grids.grid_settings import WORLDS
from rlx.envs.mujoco.course_settings import COURSES
from rlx.errors import ConfigError
from rlx.stats.aggregate import AGGREGATES
from rlx.store.runs import RunDir
from rlx.store.sweep_spec import Point, Spec
from rlx.store.sweeps import SweepDir
from rlx.sweep.executors.executor import Job, Result

if TYPE_CHECKING:
    from rlx.config.compose import Composed


RUNG_FACTOR = 3
"""Every rung of a search trains this many times as long as the one before (Li et al. 2018, Hyperband's eta)."""

LOGGED = {
    "eval": ("return_mean", "return_iqm", "return_std", "length_mean"),
    "episode": ("return", "length", "count", "return_mean_100"),
}
"""Metrics that every run logs, by group. The ends of intervals are left out, because few episodes give none. Metrics of other groups
depend on the algorithm; games may add eval/optimal_moves, grid worlds solve_rate, courses
eval/distance and eval/obstacles_passed."""

MakeJob = Callable[[RunDir, RunConfig], Job]


class Study(Protocol):
    """The part of `rlx.sweep.study.Study` that a search uses."""

    def ask(self) -> tuple[int, Point]: ...
    def again(self, number: int) -> Point: ...
    def unfinished(self) -> list[int]: ...
    def report(self, number: int, rung: int, value: float) -> bool: ...
    def tell(self, number: int, value: float | None, outcome: Literal["complete", "pruned", "failed"]) -> None: ...
    def claimed(self) -> int: ...
    def ended(self) -> set[int]: ...
    def best(self) -> tuple[int, float, dict[str, Any]] | None: ...


def cores(config: RunConfig) -> int:
    """CPU cores that a run keeps busy: torch's threads or the environments' processes, which take turns."""
    return max(config.runtime.threads, config.env.workers, config.env.threads)


class Scores:
    """Objective of the finished runs of a sweep, by point and seed."""

    def __init__(self, sweep: SweepDir, spec: Spec, *, required: bool) -> None:
        self.sweep, self.spec, self._required = sweep, spec, required
        self._aggregate = AGGREGATES[spec.aggregate]
        self._values: dict[str, dict[int, float]] = {}

    def add(self, point: str, seed: int) -> float | None:
        """Read the objective of a finished run.

        Raises:
            ConfigError: if it did not log the objective and must have.
        """
        run = self.sweep.run(point, seed)
        value = last_value(run, self.spec.objective)
        if value is None and self._required:
            raise missing_metric(run, self.spec.objective)
        if value is not None:
            self._values.setdefault(point, {})[seed] = value
        return value

    def best(self) -> tuple[str, float] | None:
        """The best of the points whose seeds are all finished."""
        whole = {p: self._aggregate(list(v.values())) for p, v in self._values.items() if len(v) == len(self.spec.seeds)}
        finite = {p: v for p, v in whole.items() if math.isfinite(v)}
        if not finite:
            return None
        choose = max if self.spec.direction == "maximize" else min
        point = choose(sorted(finite), key=finite.__getitem__)  # of equal values, the first point
        return point, finite[point]


class GridPlan:
    """Every point with every seed.

    Args:
        points: with their compositions, by key.
        failed: runs that failed before and are not to be tried again.
        required: whether every run must log the objective.
    """

    def __init__(
        self,
        sweep: SweepDir,
        spec: Spec,
        points: dict[str, tuple[Point, Composed]],
        *,
        make_job: MakeJob,
        failed: Sequence[str] = (),
        required: bool = False,
    ) -> None:
        self.sweep, self.points = sweep, points
        self.scores = Scores(sweep, spec, required=required)
        self.total_runs = len(points) * len(spec.seeds)
        self._make_job = make_job
        self._finished = 0
        self._open: dict[str, tuple[str, int]] = {}
        self._todo: list[tuple[str, int]] = []
        for key in points:
            for seed in spec.seeds:
                run = sweep.run(key, seed)
                if run.status == "finished":
                    self._finished += 1
                    self.scores.add(key, seed)
                elif run.name not in failed:
                    self._todo.append((key, seed))

    def next(self) -> Job | None:
        if not self._todo:
            return None
        key, seed = self._todo.pop(0)
        point, composed = self.points[key]
        run = self.sweep.create_run(key, seed, composed, point.values)
        self._open[run.name] = (key, seed)
        return self._make_job(run, composed.config)

    def ended(self, job: Job, result: Result) -> list[str]:
        key, seed = self._open.pop(job.name)
        if result.status == "failed":
            return [f"{job.name} failed: {result.error}"]
        self._finished += 1
        value = self.scores.add(key, seed)
        shown = f"{self.scores.spec.objective} {value:.4g}" if value is not None else "finished"
        return [f"{job.name}  {shown}  {describe(self.points[key][0].values)}"]

    def finished_runs(self) -> int:
        return self._finished

    def finished_elsewhere(self) -> int:
        return 0

    def best(self) -> tuple[str, float, dict[str, Any]] | None:
        best = self.scores.best()
        return (*best, self.points[best[0]][0].values) if best else None

    def values_of(self, job: Job) -> dict[str, Any]:
        return self.points[self._open[job.name][0]][0].values if job.name in self._open else {}


@dataclass
class _Trial:
    """A point of a search that is being trained."""

    key: str
    number: int
    point: Point
    composed: Composed
    rung: int = 0
    todo: list[int] = field(default_factory=list)
    open: int = 0
    values: dict[int, float] = field(default_factory=dict)
    """Objective at this rung, by seed."""
    error: str | None = None


class SearchPlan:
    """Trials of a study: a point is trained with all its seeds to one rung, judged by their aggregate, and goes on or is pruned.

    A failed trial counts as one of the trials and is not replaced; it can be retried. A paused run resumes exactly from its checkpoint,
    so a bad point costs no more than the first rung of every seed.
    """

    def __init__(
        self,
        sweep: SweepDir,
        spec: Spec,
        study: Study,
        *,
        compose: Callable[[Point], Composed],
        compose_found: Callable[[str, Point], Composed] | None = None,
        make_job: MakeJob,
    ) -> None:
        assert spec.search is not None
        self.sweep, self.spec, self.study = sweep, spec, study
        self.search = spec.search
        self.total_runs = self.search.trials * len(spec.seeds)
        self._compose, self._make_job = compose, make_job
        self._compose_found = compose_found or (lambda _, point: compose(point))
        self._aggregate = AGGREGATES[spec.aggregate]
        self._open: dict[str, tuple[_Trial, int]] = {}
        self._trials: dict[str, _Trial] = {}
        history = sweep.history()
        self._told = dict(history.told)
        self._values = dict(history.values)
        self._points = dict(history.points)
        self._keys = {number: key for key, number in history.numbers.items()}
        if self.search.storage is None:  # the process was killed in between, or it is another process's trial in a shared storage
            for number in sorted(set(study.unfinished()) - set(self._keys)):
                self._log_trial(number, study.again(number))
            history = sweep.history()
        for key, number in history.numbers.items():
            if key not in self._told:
                study.again(number)
                self._begin(key, number, history.points[key], self._compose_found(key, history.points[key]))

    @property
    def num_rungs(self) -> int:
        return 1 if self.search.pruner == "none" else self.search.rungs

    def next(self) -> Job | None:
        while True:
            for trial in self._trials.values():
                if trial.todo and trial.error is None:
                    return self._job(trial, trial.todo.pop(0))
            if self.study.claimed() >= self.search.trials:
                return None
            number, point = self.study.ask()
            self._begin(self._log_trial(number, point), number, point, self._compose(point))

    def _log_trial(self, number: int, point: Point) -> str:
        key = f"{len(self._points):03d}"
        self._points[key], self._keys[number] = point, key
        self.sweep.log_trial(key, number, point)
        return key

    def _begin(self, key: str, number: int, point: Point, composed: Composed) -> None:
        trial = _Trial(key=key, number=number, point=point, composed=composed)
        self._trials[key] = trial
        self._climb(trial)

    def _job(self, trial: _Trial, seed: int) -> Job:
        run = self.sweep.create_run(trial.key, seed, trial.composed, trial.point.values)
        job = self._make_job(run, trial.composed.config)
        at = self._steps(trial)
        if at is not None:
            job = replace(job, pause_at=at, pause_metric=self.spec.objective)
        trial.open += 1
        self._open[run.name] = (trial, seed)
        return job

    def _steps(self, trial: _Trial) -> int | None:
        return rung_steps(trial.composed.config.loop.total_env_steps, self.num_rungs)[trial.rung]

    def ended(self, job: Job, result: Result) -> list[str]:
        trial, _ = self._open.pop(job.name)
        trial.open -= 1
        if result.status == "failed":
            trial.error = result.error
            said = [f"{job.name} failed: {result.error}"]
            if trial.open == 0:
                self._tell(trial, None, "failed")
            return said
        if trial.error is not None:
            if trial.open == 0:
                self._tell(trial, None, "failed")
            return []
        return self._climb(trial) if trial.open == 0 and not trial.todo else []

    def _climb(self, trial: _Trial) -> list[str]:
        """Read the objective of every seed; once all are there, judge the point and go to its next rung."""
        while True:
            at = self._steps(trial)
            trial.todo, trial.values = [], {}
            for seed in self.spec.seeds:
                run = self.sweep.run(trial.key, seed)
                finished = run.status == "finished"
                value = last_value(run, self.spec.objective, None if finished else at) if finished or at is not None else None
                if value is None and finished:
                    raise missing_metric(run, self.spec.objective)
                if value is None:
                    trial.todo.append(seed)
                else:
                    trial.values[seed] = value
            if trial.todo:
                return []
            value = self._aggregate(list(trial.values.values()))
            pruned = self.study.report(trial.number, trial.rung, value) if math.isfinite(value) else False
            last = at is None or all(self.sweep.run(trial.key, seed).status == "finished" for seed in self.spec.seeds)
            if last or pruned:
                self._tell(trial, value, "complete" if last else "pruned")
                how = "" if last else f"pruned at {at:,} steps, "
                return [f"{trial.key}  {how}{self.spec.objective} {value:.4g}  {describe(trial.point.values)}"]
            trial.rung += 1

    def _tell(self, trial: _Trial, value: float | None, outcome: Literal["complete", "pruned", "failed"]) -> None:
        self.study.tell(trial.number, value, outcome)
        self.sweep.log("told", point=trial.key, number=trial.number, outcome=outcome, value=value)
        self._told[trial.key] = outcome
        if value is not None:
            self._values[trial.key] = value
        del self._trials[trial.key]

    def finished_runs(self) -> int:
        ended = {key for key, outcome in self._told.items() if outcome != "failed"}
        others = [key for key in self._points if key not in ended]
        done = sum(self.sweep.run(key, seed).status == "finished" for key in others for seed in self.spec.seeds)
        return len(ended) * len(self.spec.seeds) + done + self.finished_elsewhere()

    def finished_elsewhere(self) -> int:
        if self.search.storage is None:
            return 0
        return len(self.study.ended() - set(self._keys)) * len(self.spec.seeds)

    def best(self) -> tuple[str, float, dict[str, Any]] | None:
        shared = self.study.best() if self.search.storage is not None else None
        if shared is not None and shared[0] not in self._keys:
            return f"elsewhere, trial {shared[0]}", *shared[1:]
        complete = {k: v for k, v in self._values.items() if self._told.get(k) == "complete" and math.isfinite(v)}
        if not complete:
            return None
        choose = max if self.spec.direction == "maximize" else min
        key = choose(sorted(complete), key=complete.__getitem__)
        return key, complete[key], self._points[key].values

    def values_of(self, job: Job) -> dict[str, Any]:
        return self._open[job.name][0].point.values if job.name in self._open else {}


def last_value(run: RunDir, metric: str, at: int | None = None) -> float | None:
    """The last value of a metric in a run's record, or the first at `at` env steps or later; None if there is none."""
    values = [(line["env_steps"], float(line[metric])) for line in run.metrics() if isinstance(line.get(metric), int | float)]
    if at is not None:
        return next((value for steps, value in values if steps >= at), None)
    return values[-1][1] if values else None


def missing_metric(run: RunDir, metric: str) -> ConfigError:
    """The error for a finished run that never logged the objective."""
    logged = sorted({name for line in run.metrics() for name in line if "/" in name})
    return ConfigError(f"--objective {metric}: {run.path} has ended and no line of it has that, and a sweep keeps its objective: "
                       f"start it again under another --name; {did_you_mean(metric, logged)}")  # fmt: skip


def describe(values: dict[str, Any]) -> str:
    """Settings as they are typed, with the last part of their keys."""
    return "  ".join(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in values.items())


def _short(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "null"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace(" ", "")


def rung_steps(total: int, num_rungs: int) -> list[int | None]:
    """Env steps of every rung; None for the last one, which is the whole run."""
    return [*(math.ceil(total / RUNG_FACTOR**above) for above in range(num_rungs - 1, 0, -1)), None]


def check_objective(spec: Spec, config: RunConfig) -> None:
    """Raise a ConfigError if no run of a configuration can log the objective, or none before the pruner's last rung."""
    group, _, name = spec.objective.partition("/")
    evaluated = group == "eval"
    more = ["optimal_moves"] if config.env.is_game else ["solve_rate"] if config.env.id in WORLDS else []
    if evaluated and config.env.id in COURSES:
        more = ["distance", "obstacles_passed"]
    if group in LOGGED and name not in [*LOGGED[group], *more]:
        raise ConfigError(f"--objective {spec.objective}: no run logs it; {did_you_mean(name, list(LOGGED[group]), key=f'{group}/')}")
    if evaluated and config.loop.eval_every == 0:
        raise ConfigError(f"--objective {spec.objective}: loop.eval_every=0 never evaluates; set it, or choose episode/return_mean_100")
    if spec.search is None or spec.search.pruner == "none":
        return
    key, every = ("eval_every", config.loop.cadence.eval_every) if evaluated else ("log_every", config.loop.cadence.log_every)
    rungs = [steps for steps in rung_steps(config.loop.total_env_steps, spec.search.rungs) if steps is not None]
    if every > rungs[-1]:
        looks = f"rung{'s' if len(rungs) > 1 else ''} at {' and '.join(f'{steps:,}' for steps in rungs)}"
        raise ConfigError(f"--pruner {spec.search.pruner} could prune nothing: {spec.objective} is logged every {every:,} env steps, "
                          f"after the {looks}; set loop.{key}={rungs[0]}")  # fmt: skip
