"""rlx sweep: many runs from one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlx.cli.complete import complete_overrides, complete_sweeps
from rlx.cli.options import Notes, Tags, Trust

if TYPE_CHECKING:
    from rlx.sweep.prepare import Prepared

_OBJECTIVE = "eval/return_iqm"
_SEARCH, _WHERE, _AGAIN = "Search with Optuna", "Where runs are trained", "Continue a sweep"
_EXECUTORS = ("local", "ray", "slurm")


def sweep(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUES", help="Settings; several values, as 1e-4,1e-3, are swept.", autocompletion=complete_overrides),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="How many seeds each setting gets, or which: 5, or 3,7,11.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at a time. (default: as many as the machine has cores for)")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep, and of its directory in runs/. (default: what is swept)")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compose and check every run and list them; train nothing.")] = False,
    config_dir: Annotated[Path | None, typer.Option(help="A directory of your own YAML groups, searched before conf/.")] = None,
    objective: Annotated[str | None, typer.Option(help=f"The metric whose last value judges a setting. (default: {_OBJECTIVE})")] = None,
    minimize: Annotated[bool, typer.Option("--minimize", help="Less of the objective is better.")] = False,
    aggregate: Annotated[str | None, typer.Option(help="How the seeds of a setting make one number: iqm, mean, median, min or max. "
                                                  "(default: iqm)")] = None,
    trials: Annotated[int | None, typer.Option(help="Search: how many settings to try.", rich_help_panel=_SEARCH)] = None,
    sampler: Annotated[str | None, typer.Option(help="tpe, random, grid, qmc, gp, cmaes. (default: tpe)", rich_help_panel=_SEARCH)] = None,
    pruner: Annotated[str | None, typer.Option(help="hyperband, halving, median or none. (default: none)", rich_help_panel=_SEARCH)] = None,
    rungs: Annotated[int | None, typer.Option(help="How often the pruner judges a setting, each time after three times as many steps. "
                                              "(default: 3)", rich_help_panel=_SEARCH)] = None,
    space: Annotated[str | None, typer.Option(help="Search space: NAME of conf/search/NAME.yaml, or a file. (default: the "
                                              "algorithm's, if nothing is swept)", rich_help_panel=_SEARCH)] = None,
    storage: Annotated[str | None, typer.Option(help="Optuna storage URL that several machines share; the default is a file in the sweep.",
                                                rich_help_panel=_SEARCH)] = None,
    executor: Annotated[str, typer.Option(help="local, ray or slurm.", rich_help_panel=_WHERE)] = "local",
    address: Annotated[str | None, typer.Option(help="Ray: address of a cluster, host:port or auto.", rich_help_panel=_WHERE)] = None,
    ranks: Annotated[int, typer.Option(help="Processes of each run, on one machine, see `rlx train --ranks`; cores are counted for each.",
                                       rich_help_panel=_WHERE)] = 1,
    slurm: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="SLURM: partition=gpu, timeout_min=60, …; can be repeated.",
                                                    rich_help_panel=_WHERE)] = None,
    retries: Annotated[int, typer.Option(help="How often a run is continued from its checkpoint when its process dies or hangs.",
                                         rich_help_panel=_WHERE)] = 2,
    stall_timeout: Annotated[float, typer.Option(help="Seconds without a heartbeat after which a run counts as hung; 0 is never.",
                                                 rich_help_panel=_WHERE)] = 1800.0,
    resume: Annotated[str | None, typer.Option(help="Continue the sweep of this name, or latest; more --seeds or --trials extend it.",
                                               autocompletion=complete_sweeps, rich_help_panel=_AGAIN)] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Also try the failed runs again.", rich_help_panel=_AGAIN)] = False,
    notes: Notes = None,
    tags: Tags = None,
    trust: Trust = False,
) -> None:  # fmt: skip
    """Train many runs: every combination of the given values with several seeds, or the settings that a search proposes.

    The same command again continues the sweep: finished runs are kept, others continue from their checkpoints.

    Examples:

      rlx sweep algo=ppo env=cartpole algo.learning_rate=1e-4,3e-4,1e-3 --seeds 5 --jobs 2

      rlx sweep algo=reinforce,a2c,ppo env=cartpole --seeds 5

      rlx sweep algo=ppo env=cartpole 'algo.learning_rate=interval(1e-5,1e-2)' --trials 60 --seeds 3 --pruner hyperband

      rlx sweep --resume latest --seeds 10
    """
    from rlx.config.choices import check_choice
    from rlx.errors import ConfigError, SweepError
    from rlx.launcher import check_is_alone
    from rlx.render.numbers import count
    from rlx.render.sweep_view import make_watcher, print_end
    from rlx.store.labels import Labels
    from rlx.store.layout import runs_directory
    from rlx.store.sweep_spec import AGGREGATES
    from rlx.sweep.executors.choose import check_ranks_of_runs
    from rlx.sweep.launch import check_executor, run_sweep, to_resume, to_start

    check_is_alone("rlx sweep starts the processes of its runs itself", "leave the launcher out, and say `rlx sweep --ranks N`")
    check_choice("--executor", executor, _EXECUTORS)
    if aggregate is not None:
        check_choice("--aggregate", aggregate, AGGREGATES)
    limits = ((jobs, "--jobs", 1, 10_000), (retries, "--retries", 0, 10_000), (stall_timeout, "--stall-timeout", 0, 1e9))
    for number, option, least, most in limits:
        if number is not None and not least <= number <= most:
            raise ConfigError(f"{option} {number:g}: expected at least {least} and at most {most:,.0f}")
    if retry_failed and resume is None and not overrides:
        raise ConfigError("--retry-failed needs to know whose runs: add --resume NAME, or --resume latest")
    check_executor(executor, address=address, slurm=slurm)
    if executor == "local" and not dry_run:
        from rlx.sweep.executors.local import warm_up

        warm_up()
    root, labels = runs_directory(), Labels.given(notes, tags)
    if resume is not None:
        fixed = {"--name": name, "--config-dir": config_dir, "--objective": objective, "--minimize": minimize, "--aggregate": aggregate,
                 "--sampler": sampler, "--pruner": pruner, "--rungs": rungs, "--space": space, "--storage": storage}  # fmt: skip
        given_too = [*(overrides or []), *[option for option, value in fixed.items() if value]]
        if given_too:
            raise ConfigError(
                f"--resume goes on with a sweep as it is, so that {given_too[0]} has no place; only --seeds and --trials extend it"
            )
        launch = to_resume(root, resume, seeds=seeds, trials=trials, trust=trust)
    else:
        search = {"trials": trials, "sampler": sampler, "pruner": pruner, "rungs": rungs, "storage": storage, "space": space}
        launch = to_start(root, overrides or [], seeds=seeds, name=name, config_dir=config_dir, objective=objective, minimize=minimize,
                          aggregate=aggregate or "iqm", search=search, trust=trust)  # fmt: skip
    if dry_run:
        check_ranks_of_runs(launch.prepared.configs, ranks, where=executor)
        _print_points(launch.prepared)
        return
    options = {"jobs": jobs, "address": address, "slurm": slurm or [], "ranks": ranks}
    ended = run_sweep(launch, labels=labels, executor=executor, options=options, retries=retries, stall_s=stall_timeout,
                      retry_failed=retry_failed, make_watcher=make_watcher)  # fmt: skip
    print_end(root, ended.drive)
    if ended.stopped_by is not None:
        raise typer.Exit(128 + ended.stopped_by)
    if failed := len(ended.drive.failures):
        again = f"rlx sweep --resume {ended.drive.sweep.name} --retry-failed"
        raise SweepError(f"{count(failed, 'run')} failed; once the cause is mended: `{again}`")


def _print_points(prepared: Prepared) -> None:
    """Print which runs would be trained."""
    from rlx.render.numbers import count
    from rlx.render.tables import make_table, terminal
    from rlx.sweep.plan import describe

    console, seeds = terminal(), len(prepared.spec.seeds)
    if prepared.space is not None:
        assert prepared.spec.search is not None
        trials = count(prepared.spec.search.trials, "trial")
        console.print(f"{prepared.name}: {trials} × {count(seeds, 'seed')}; nothing was trained", soft_wrap=True)
        for line in prepared.space.describe():
            console.print(f"  {line}", soft_wrap=True)
        return
    what = f"{count(len(prepared.points), 'setting')} × {count(seeds, 'seed')} = {count(len(prepared.points) * seeds, 'run')}"
    console.print(f"{prepared.name}: {what}; nothing was trained", soft_wrap=True)
    table = make_table("runs", "settings", "env steps")
    for key, (point, composed) in prepared.points.items():
        names = f"{key}-s{prepared.spec.seeds[0]}" + (f" … s{prepared.spec.seeds[-1]}" if seeds > 1 else "")
        table.add_row(names, describe(point.values) or "as given", f"{composed.config.loop.total_env_steps:,}")
    console.print(table)
