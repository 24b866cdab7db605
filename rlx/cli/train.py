"""rlx train, rlx resume."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlx.cli.complete import complete_overrides, complete_runs
from rlx.cli.options import Notes, Tags, Trust, echo

if TYPE_CHECKING:
    from rlx.config.compose import Composed
    from rlx.start import Checked, Start

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that differ from the defaults.", autocompletion=complete_overrides)
]

Ranks = Annotated[int | None, typer.Option(help="Train in so many processes, among which the environments are divided. (default: 1)")]


def train(
    overrides: Overrides = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run, and of its directory in runs/. (default: algo, env, seed and time)")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compose, check and print the configuration; train nothing.")] = False,
    config_dir: Annotated[Path | None, typer.Option(help="A directory of your own YAML groups, searched before conf/.")] = None,
    auto_resume: Annotated[bool, typer.Option("--auto-resume", help="Continue the run of this name if it exists.")] = False,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN[@CHECKPOINT]", help="Start from the networks of another run.", autocompletion=complete_runs),
    ] = None,
    notes: Notes = None,
    tags: Tags = None,
    trust: Trust = False,
    ranks: Ranks = None,
    multirun: Annotated[bool, typer.Option("--multirun", "-m", help="The same as `rlx sweep`, with its options.")] = False,
) -> None:
    """Train an algorithm on an environment.

    Examples:

      rlx train algo=ppo env=cartpole

      rlx train algo=ppo env=cartpole algo.learning_rate=3e-4 seed=7 loop.total_env_steps=200_000

      rlx train algo=a2c env=LunarLander-v3 --name lander

      rlx train algo=ppo env=my_module:MyEnv-v0 --dry-run

      rlx train algo=ppo env=walker2d algo.learning_rate=1e-4 --from walker@best --name tuned

      rlx train algo=ppo env=walker2d env.num_envs=16 --ranks 4

    Keys and values: `rlx config`. Algorithms and environments: `rlx algos`, `rlx envs`.
    """
    _launch(ranks, dry_run=dry_run)
    from rlx import start
    from rlx.store.labels import Labels
    from rlx.track.console import say

    composed, labels = start.compose(overrides or [], config_dir), Labels.given(notes, tags)
    run_name = start.default_name(composed, timed=not auto_resume) if name is None else name
    again = start.to_auto_resume(composed, run_name, trust=trust, labels=labels, source=from_) if auto_resume and not dry_run else None
    if again is not None:
        if again.is_finished:
            say(f"{again.run.path} is finished; the same command with a larger loop.total_env_steps trains on")
        else:
            _say_resuming(again)
            _train(again)
        return
    if not dry_run:
        start.begin_compiling(composed.config)
    source = start.find_source(from_, warn=lambda text: echo(f"warning: {text}", err=True)) if from_ is not None else None
    checked = start.check_new(composed, run_name, may_exist=auto_resume, source=source, num_ranks=ranks)
    if dry_run:
        _print_plan(composed, checked)
        return
    begun = start.create(composed, run_name, checked, labels)
    recipe = f", recipe {composed.choices['recipe']}" if composed.choices["recipe"] else ", no recipe: the algorithm's defaults"
    say(f"{begun.run.path}: {composed.config.algo.name} on {composed.config.env.id}, seed {composed.config.seed}{recipe}")
    if source is not None:
        say(f"starts from {source.origin['run']} at {source.origin['env_steps']:,} env steps: {', '.join(checked.meta['from']['parts'])}")
    _train(begun)


def resume(
    run: Annotated[str, typer.Argument(help="Name or path of a run, or latest.", autocompletion=complete_runs)] = "latest",
    overrides: Overrides = None,
    inexact: Annotated[bool, typer.Option("--inexact", help="Begin new episodes instead of replaying the open ones.")] = False,
    ranks: Ranks = None,
    trust: Trust = False,
) -> None:
    """Continue a run from its last checkpoint, exactly as if it had never stopped.

    Only loop.* (budget, cadences), log.* and runtime.device can be changed; the change is kept in meta.json. The number of ranks can be
    another one each time.

    Examples:

      rlx resume

      rlx resume latest loop.total_env_steps=1_000_000

      rlx resume lander runtime.device=cuda

      rlx resume walker --ranks 2
    """
    _launch(ranks)
    from rlx import start
    from rlx.track.console import say

    arguments = list(overrides or [])
    if "=" in run or run.startswith("-"):
        arguments, run = [run, *arguments], "latest"
    again = start.to_resume(run, arguments, trust=trust)
    if again.is_finished:
        reached = " loop.target_return=null" if again.config.loop.target_return is not None else ""
        say(f"{again.run.path} is finished; train on with a larger budget: "
                   f"`rlx resume {again.run.reference} loop.total_env_steps=…{reached}`")  # fmt: skip
        return
    _say_resuming(again)
    _train(again, inexact=inexact)


def _launch(num_ranks: int | None, *, dry_run: bool = False) -> None:
    """Start the ranks and wait for them, if this process is none of them; then the command is done."""
    if num_ranks is None:
        return
    from rlx.launcher import check_num_ranks, is_rank, launch

    check_num_ranks(num_ranks)
    if num_ranks > 1 and not dry_run and not is_rank():
        raise typer.Exit(launch(sys.argv[1:], num_ranks))


def _say_resuming(again: Start) -> None:
    from rlx.track.console import say

    say(f"{again.run.path}: resuming {again.config.algo.name} on {again.config.env.id}, seed {again.config.seed}")


def _train(start: Start, *, inexact: bool = False) -> None:
    from rlx.run import train as train_run
    from rlx.track.console import say

    outcome = train_run(start.run, start.config, overrides=start.overrides, inexact=inexact)
    steps = f"{outcome.progress.env_steps:,} env steps"
    name = start.run.reference
    if outcome.finished:
        say(f"finished after {steps}; next: `rlx eval {name}`, `rlx show {name}`, or train on with a larger budget: "
                   f"`rlx resume {name}{outcome.ranks} loop.total_env_steps=…`")  # fmt: skip
    else:
        say(f"stopped and saved after {steps}; `rlx resume {name}{outcome.ranks}` goes on")
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def _print_plan(composed: Composed, checked: Checked) -> None:
    from rlx.config.saved import save_config
    from rlx.render.network_view import network_lines

    echo(f"# recipe: {composed.choices['recipe'] or 'none'}; nothing was trained")
    for text in checked.warnings:
        typer.echo(f"# warning: {text}")
    for text in network_lines(checked.network):
        echo(f"# {text}")
    cadence = composed.config.loop.cadence
    evaluations = f"every {cadence.eval_every:,}" if cadence.eval_every else "never"
    saves = f"every {cadence.checkpoint_every:,}" if cadence.checkpoint_every else "before evaluations and at the end"
    echo(f"# env steps: a line every {cadence.log_every:,}, evaluations {evaluations}, checkpoints {saves}")
    echo(save_config(composed.config).rstrip())
