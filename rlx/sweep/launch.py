"""Start, continue and finish sweeps: the functions behind `rlx sweep`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlx.config.compose import Composed, Composer
from rlx.errors import ConfigError, RlxError
from rlx.signals import SignalHandler
from rlx.store.labels import NO_LABELS, Labels
from rlx.store.sweep_spec import Spec
from rlx.store.sweeps import SweepDir
from rlx.sweep.drive import Drive, Watcher
from rlx.sweep.executors.choose import check_ranks_of_runs, job_maker, make_executor
from rlx.sweep.plan import GridPlan, SearchPlan
from rlx.sweep.prepare import Prepared, extend, find, prepare
from rlx.track.wandb import why_offline
from rlx.trust import origins

if TYPE_CHECKING:
    from rlx.store.sweep_spec import Point


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A sweep that is ready to train."""

    root: Path
    spec: Spec
    prepared: Prepared
    found: SweepDir | None
    """The sweep on disk; None if it is new."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a sweep ended."""

    drive: Drive
    stopped_by: int | None
    """The signal that stopped it."""


def to_start(
    root: Path, arguments: list[str], *, seeds: str | None, name: str | None, config_dir: Path | None, objective: str | None,
    minimize: bool, aggregate: str, search: dict[str, Any], trust: bool,
) -> Launch:  # fmt: skip
    """A sweep from its KEY=VALUES arguments. If it was started before, it is continued.

    Args:
        root: the directory of runs.
        arguments: what is swept, and what is set.
        seeds: how many seeds each setting gets, or which: "5", or "3,7,11".
        name: of its directory; None is a name that follows from what is swept.
        config_dir: a directory of the user's own YAML groups.
        objective: the metric that judges a setting; None is the IQM of evaluations.
        minimize: less of the objective is better.
        aggregate: how the seeds of a setting make one number.
        search: trials, sampler, pruner, rungs, storage and space of a search; all None for a grid.
        trust: run the code that a sweep of somebody else names.

    Raises:
        ConfigError: for what cannot be swept, or if another sweep has the name.
    """
    spec, prepared = prepare(arguments, seeds, name, config_dir, objective, minimize, aggregate, search)
    found = find(root, prepared.name, spec)
    if found is not None:
        found.trust(trust)
        if list(found.grid().values()) != [point for point, _ in prepared.points.values()]:
            prepared = Prepared.again(found, spec)  # the values are in another order, or the files that it was expanded from have changed
    return Launch(root=root, spec=spec, prepared=prepared, found=found)


def to_resume(root: Path, reference: str, *, seeds: str | None, trials: int | None, trust: bool) -> Launch:
    """A sweep that was started before (a name, a path, or latest), with more seeds or trials if they are given.

    Raises:
        ConfigError: if there is no such sweep, or it cannot get those.
    """
    found = SweepDir.open(root, reference)
    found.trust(trust)
    spec = extend(found.spec(), seeds=seeds, trials=trials, name=found.name)
    prepared = Prepared.again(found, spec)
    if trials is not None:
        prepared.check()
    return Launch(root=root, spec=spec, prepared=prepared, found=found)


def check_executor(executor: str, *, address: str | None, slurm: list[str] | None) -> None:
    """Raise a ConfigError for options of another executor."""
    for given, option, wants in ((address, "--address", "ray"), (slurm, "--slurm", "slurm")):
        if given and executor != wants:
            raise ConfigError(f"{option} goes with --executor {wants}, and this is --executor {executor}")


def run_sweep(
    launch: Launch, *, executor: str, options: dict[str, Any], retries: int, stall_s: float, retry_failed: bool,
    make_watcher: Callable[[str], Watcher], labels: Labels = NO_LABELS,
) -> Ended:  # fmt: skip
    """Create or open a sweep, and train its runs until all are finished, or a signal stops it.

    Args:
        launch: what is trained.
        executor: local, ray or slurm.
        options: jobs, address and slurm of the executor, and the ranks of each run.
        retries: how often a run is continued when its process dies or hangs.
        stall_s: seconds without a heartbeat after which a run counts as hung; 0 is never.
        retry_failed: try the runs again that failed before.
        make_watcher: makes the display, from the sweep's name.
        labels: notes and tags; those that are given replace those of a sweep that goes on.

    Raises:
        RlxError: if the executor is not available, or the sweep cannot be written.
    """
    prepared, spec, found = launch.prepared, launch.spec, launch.found
    check_ranks_of_runs(prepared.configs, options["ranks"], where=executor)
    place = make_executor(executor, prepared.configs, options, folder=launch.root / prepared.name)
    try:
        points = {key: point for key, (point, _) in prepared.points.items()}
        sweep = found or SweepDir.create(launch.root, prepared.name, spec, points, origins(*prepared.configs), labels)
        with sweep.lock():
            if found is not None and found.spec() != spec:
                sweep.write(spec, points)
            if found is not None and labels:
                sweep.set_labels(labels)
            failures = sweep.history().failures
            if retry_failed:
                for run in failures:
                    sweep.log("retry", run=run)
                failures = {}
            try:
                plan = make_plan(sweep, spec, prepared, where=executor, ranks=options["ranks"], failed=list(failures))
            except RlxError:
                if found is None:
                    shutil.rmtree(sweep.path, ignore_errors=True)  # its study cannot be opened, so the new sweep cannot be continued
                raise
            watcher = make_watcher(sweep.name)
            drive = Drive(sweep, plan, place, retries=retries, stall_s=stall_s, watcher=watcher)
            watcher.begin(drive, new=found is None, space=prepared.space.describe() if prepared.space else [])
            if why := why_offline(prepared.configs[0].log.wandb.value):
                watcher.note(f"W&B: runs are offline ({why}); `wandb login` and then `rlx sync {sweep.name}` uploads them")
            with SignalHandler(announce=False) as signals:
                try:
                    drive.run(signals)
                finally:
                    watcher.close(drive)
    finally:
        place.close()
    return Ended(drive=drive, stopped_by=signals.stopped_by)


def make_plan(sweep: SweepDir, spec: Spec, prepared: Prepared, *, where: str, failed: list[str], ranks: int = 1) -> GridPlan | SearchPlan:
    """The plan of a sweep's runs, from its spec, its ledger and its study.

    Args:
        sweep: the sweep on disk.
        spec: its specification.
        prepared: its points, composed.
        where: the name of the executor.
        failed: runs that failed before and are not tried again.
        ranks: processes of each run.

    Raises:
        ConfigError: if the study of a search cannot be opened.
    """
    make_job = job_maker(prepared.configs, where=where, ranks=ranks)
    if spec.search is None:
        return GridPlan(sweep, spec, prepared.points, make_job=make_job, failed=failed, required=prepared.required)
    from rlx.sweep.study import Study  # imports optuna

    assert prepared.space is not None
    search = spec.search
    doubtful = Composer(Path(spec.config_dir) if spec.config_dir else None, stranger=sweep.path)
    study = Study(
        search.storage or f"sqlite:///{sweep.path.resolve() / 'study.db'}",
        str(sweep.content().get("name") or sweep.name),  # a sweep that was renamed is still the one that it was
        prepared.space,
        sampler=search.sampler,
        pruner=search.pruner,
        direction=spec.direction,
        seed=spec.seeds[0],
        num_rungs=search.rungs if search.pruner != "none" else 1,
        objective=spec.objective,
    )

    def compose_found(key: str, point: Point) -> Composed:
        """Compose a point of the ledger, which the study did not check in this process."""
        composer = prepared.composer if sweep.is_vouched_for or sweep.is_own_trial(key, point) else doubtful
        return composer.compose(point.arguments)

    return SearchPlan(sweep, spec, study, compose=lambda p: prepared.composer.compose(p.arguments), compose_found=compose_found,
                      make_job=make_job)  # fmt: skip
