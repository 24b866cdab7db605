"""The Optuna study of a search, whose trials are points of a sweep.

Optuna's samplers restart their random numbers in every process, so that a resumed study would repeat its first suggestions. Here every
trial has its own sampler, seeded by the study's seed and the trial's number: a suggestion is a function of these and of the history.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from rlx.errors import ConfigError, StorageError
from rlx.store.sweep_spec import Point
from rlx.sweep.plan import RUNG_FACTOR
from rlx.sweep.space import SearchSpace

SAMPLERS = ("tpe", "random", "grid", "qmc", "gp", "cmaes")
PRUNERS = ("hyperband", "halving", "median", "none")
_ATTRIBUTE = "rlx"
_FIRST_ATTEMPT = "rlx:first_attempt"
"""Attribute of a trial that tries a failed one again: the number of the first."""
_DRIVERS = {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""Packages that have another name than their module."""
_OPENINGS = 5
_BUSY_S = 60.0
"""Time to wait for a storage that another process writes to."""


class Study:
    """An Optuna study; a trial's value is the aggregate over its seeds, which the caller computes.

    Args:
        storage: an Optuna storage URL, or journal:PATH for a file that network file systems can share.
        name: of the study; processes with the same storage and name work on one.
        space: what is searched.
        sampler, pruner: of SAMPLERS and PRUNERS.
        direction: maximize or minimize.
        seed: determines the suggestions, together with the history.
        num_rungs: how often the pruner judges a trial.
        objective: metric; studies of different objectives are not joined.

    Raises:
        ConfigError: if the storage cannot be used, or has a study of this name that is another search.
    """

    def __init__(
        self,
        storage: str,
        name: str,
        space: SearchSpace,
        *,
        sampler: str,
        pruner: str,
        direction: Literal["maximize", "minimize"],
        seed: int,
        num_rungs: int,
        objective: str,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._url = space, _without_password(storage)
        self._trials: dict[int, Trial] = {}
        with self._storage_errors(opening=True), _quiet():
            opened = _open(storage)
        with self._storage_errors(), _quiet():
            self._study = optuna.create_study(
                storage=opened,
                study_name=name,
                direction=direction,
                load_if_exists=True,
                sampler=_PerTrialSampler(_make_sampler(sampler, space, seed), seed),
                pruner=_make_pruner(pruner, num_rungs),
            )
            self._check(name, {"space": space.fingerprint(), "objective": objective, "direction": direction})

    def ask(self) -> tuple[int, Point]:
        """A new trial: its number in the study, and its point."""
        with self._storage_errors(), _quiet():
            trial = self._study.ask()
            self._trials[trial.number] = trial
            return trial.number, self._space.suggest(trial)

    def again(self, number: int) -> Point:
        """The point of a trial that is continued: it was running when its process died, or it failed and is retried.

        A failed trial is final for Optuna. The retry is another trial in Optuna; here it keeps the number of the first.
        """
        with self._storage_errors(), _quiet():
            last = self._last_attempt(number)
            if last.state == TrialState.FAIL:
                self._trials.pop(number, None)
                self._study.add_trial(
                    optuna.trial.create_trial(
                        state=TrialState.RUNNING,
                        params=last.params,
                        distributions=last.distributions,
                        user_attrs={_FIRST_ATTEMPT: number},
                    )
                )
            return self._space.suggest(self._trial(number))

    def unfinished(self) -> list[int]:
        """The trials that are running in the storage."""
        with self._storage_errors():
            return [t.number for t in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) if _is_first_attempt(t)]

    def report(self, number: int, rung: int, value: float) -> bool:
        """Report a trial's value at a rung; returns whether to prune the trial."""
        with self._storage_errors(), _quiet():
            trial = self._trial(number)
            step = RUNG_FACTOR**rung
            if step not in self._study._storage.get_trial(trial._trial_id).intermediate_values:  # after a kill, it may be reported twice
                trial.report(value, step)
            return trial.should_prune()

    def tell(self, number: int, value: float | None, outcome: Literal["complete", "pruned", "failed"]) -> None:
        """End a trial; a value that is not finite fails it. Telling the end of a trial twice changes nothing."""
        if outcome == "complete" and (value is None or not math.isfinite(value)):
            outcome = "failed"
        state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[outcome]
        with self._storage_errors(), _quiet():
            attempt = self._last_attempt(number).number
            self._study.tell(attempt, value if outcome == "complete" else None, state=state, skip_if_finished=True)
        self._trials.pop(number, None)

    def claimed(self) -> int:
        """Number of trials begun in the storage by any process, without retries."""
        with self._storage_errors():
            return sum(map(_is_first_attempt, self._study.get_trials(deepcopy=False)))

    def ended(self) -> set[int]:
        """The trials of all processes that are complete or pruned."""
        with self._storage_errors():
            trials = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
            return {t.user_attrs.get(_FIRST_ATTEMPT, t.number) for t in trials}

    def best(self) -> tuple[int, float, dict[str, Any]] | None:
        """Number, value and parameters of the best complete trial of all processes."""
        with self._storage_errors(), contextlib.suppress(ValueError):
            best = self._study.best_trial
            return best.user_attrs.get(_FIRST_ATTEMPT, best.number), float(best.value or 0.0), dict(best.params)
        return None

    def _trial(self, number: int) -> Trial:
        if number not in self._trials:
            self._trials[number] = Trial(self._study, self._last_attempt(number)._trial_id)
        return self._trials[number]

    def _last_attempt(self, number: int) -> FrozenTrial:
        trials = self._study.get_trials(deepcopy=False)
        for trial in reversed(trials):
            if number in (trial.number, trial.user_attrs.get(_FIRST_ATTEMPT)):
                return trial
        raise ConfigError(f"the study in {self._url} has no trial {number}, which the sweep's ledger names: the two do not belong together")

    def _check(self, name: str, mine: dict[str, Any]) -> None:
        """Store what the study searches, or compare it with what is stored."""
        theirs = self._study.user_attrs.get(_ATTRIBUTE)
        mine = json.loads(json.dumps(mine))
        if theirs is None and not self._study.get_trials(deepcopy=False):
            self._study.set_user_attr(_ATTRIBUTE, mine)
            theirs = mine
        if theirs is None:
            raise ConfigError(f"the study {name} in {self._url} was not made by rlx; choose another --name or --storage")
        actual = "minimize" if self._study.direction == StudyDirection.MINIMIZE else "maximize"
        theirs = {**theirs, "direction": actual}
        if theirs == mine:
            return
        different = [key for key in ("objective", "direction") if theirs.get(key) != mine[key]]
        said = [f"{key} {theirs.get(key)} there and {mine[key]} here" for key in different]
        there, here = theirs.get("space", {}), mine["space"]
        keys = [k for k in {**there, **here} if there.get(k) != here.get(k)]
        said += [f"{k} {there.get(k, 'not searched')} there and {here.get(k, 'not searched')} here" for k in keys]
        raise ConfigError(f"the study {name} in {self._url} is another search: {'; '.join(said)}; choose another --name")

    @contextlib.contextmanager
    def _storage_errors(self, *, opening: bool = False) -> Iterator[None]:
        """Turn errors of the storage into one-line messages."""
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

        expected = "expected an Optuna storage URL such as sqlite:///study.db, or journal:PATH"
        try:
            yield
        except (ArgumentError, NoSuchModuleError) as error:
            raise ConfigError(f"--storage {self._url}: {_first_line(error)}; {expected}") from error
        except ImportError as error:
            driver = _DRIVERS.get(str(error.name), error.name)
            raise ConfigError(f"--storage {self._url}: needs a package: pip install {driver}; {expected} without one") from error
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, OSError) as error:
            reason = _first_line(error.__cause__ or error)
            if opening:
                raise ConfigError(f"--storage {self._url} cannot be opened ({reason}); {expected}, of something that is there") from error
            raise StorageError(f"the study's storage {self._url} cannot be used ({reason}); nothing is lost: "
                               "repeat the command when it can") from error  # fmt: skip


def _without_password(url: str) -> str:
    return re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)


def _is_first_attempt(trial: FrozenTrial) -> bool:
    return _FIRST_ATTEMPT not in trial.user_attrs


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _open(url: str) -> BaseStorage:
    """An open storage. When several processes create its tables at the same time, all but one fail once and try again."""
    from sqlalchemy.exc import DBAPIError

    for _ in range(_OPENINGS - 1):
        try:
            return _storage(url)
        except DBAPIError as error:
            if not any(word in str(error).lower() for word in ("already exists", "unique", "duplicate")):
                raise
        time.sleep(0.2)
    return _storage(url)


def _storage(url: str) -> BaseStorage:
    scheme, _, path = url.partition(":")
    if scheme == "journal":
        from optuna.storages.journal import JournalFileBackend

        return JournalStorage(JournalFileBackend(path.removeprefix("//")))
    options = {"connect_args": {"timeout": _BUSY_S}} if scheme == "sqlite" else {}
    return RDBStorage(url, engine_kwargs=options)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's warnings about experimental and deprecated parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)  # TPESampler's gamma, which goes with Optuna 6
        yield


def _make_pruner(name: str, num_rungs: int) -> BasePruner:
    """A pruner that looks at resources 1, 3, 9, … of rungs 0, 1, 2, …"""
    if name == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=RUNG_FACTOR ** (num_rungs - 1), reduction_factor=RUNG_FACTOR)
    if name == "halving":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=RUNG_FACTOR)
    if name == "median":
        return MedianPruner(n_startup_trials=4, n_warmup_steps=0)
    return NopPruner()


MakeSampler = Callable[[int], BaseSampler]


def _make_sampler(name: str, space: SearchSpace, seed: int) -> MakeSampler:
    """A function from a trial's seed to its sampler."""
    samplers = optuna.samplers
    if name == "grid":
        order = np.random.default_rng(seed).permutation(len(points := space.grid()))
        grid = [points[i] for i in order]
        return lambda _: _GridSampler(grid)
    if name == "qmc":
        return lambda own: samplers.QMCSampler(
            scramble=True, seed=seed, independent_sampler=samplers.RandomSampler(seed=own), warn_independent_sampling=False
        )
    if name == "gp":
        return lambda own: samplers.GPSampler(seed=own, independent_sampler=samplers.RandomSampler(seed=own))
    if name == "cmaes":
        if importlib.util.find_spec("cmaes") is None:
            raise ConfigError("--sampler cmaes needs a package: pip install cmaes; or choose tpe, random, qmc or gp")
        return lambda own: samplers.CmaEsSampler(
            seed=own, independent_sampler=samplers.RandomSampler(seed=own), warn_independent_sampling=False
        )
    if name == "random":
        return lambda own: samplers.RandomSampler(seed=own)
    return lambda own: samplers.TPESampler(seed=own, multivariate=True, group=True, constant_liar=True, gamma=_good_trials)


def _good_trials(finished: int) -> int:
    """How many trials TPE models as the good ones: a quarter, at most 25.

    Optuna's default of a tenth is one to three trials of the 30 that a search with many seeds can afford. With so few, TPE's prior
    dominates, and of several trials with the highest return all but the first count as bad.
    """
    return min(math.ceil(finished / 4), 25)


class _PerTrialSampler(BaseSampler):
    """A new sampler for every trial, seeded by the study's seed and the trial's number."""

    def __init__(self, make: MakeSampler, seed: int) -> None:
        self._make, self._seed = make, seed
        self._samplers: dict[int, BaseSampler] = {}

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if trial.number not in self._samplers:
            own = int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0])
            self._samplers[trial.number] = self._make(own)
        return self._samplers[trial.number]

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._of(trial).before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # fmt: skip
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._of(trial).after_trial(study, trial, state, values)
        self._samplers.pop(trial.number, None)


class _GridSampler(BaseSampler):
    """The points of a grid in order. The position is the number of trials before, so that processes need to share nothing else."""

    def __init__(self, grid: list[dict[str, Any]]) -> None:
        self._grid = grid

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # fmt: skip
        before = sum(t.number < trial.number and _is_first_attempt(t) for t in study.get_trials(deepcopy=False))
        return self._grid[before % len(self._grid)][param_name]  # processes that take the last point at the same time get one too many
