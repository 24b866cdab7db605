"""rlx train, rlx resume."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlx.cli.complete import complete_overrides, complete_runs

if TYPE_CHECKING:
    from rlx.config.compose import Composed
    from rlx.config.schema import RunConfig
    from rlx.rundir import RunDir

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="What differs from the defaults.", autocompletion=complete_overrides)
]


def train(
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="Directory of the run, runs/NAME; the default says algo, env, seed and time.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compose, check and print the configuration; train nothing.")] = False,
    config_dir: Annotated[Path | None, typer.Option(help="A directory of your own YAML groups, searched before conf/.")] = None,
    auto_resume: Annotated[bool, typer.Option("--auto-resume", help="Go on where the run of this name is, if there is one.")] = False,
) -> None:
    """Train an algorithm on an environment.

    Examples:

      rlx train algo=ppo env=cartpole

      rlx train algo=ppo env=cartpole algo.learning_rate=3e-4 seed=7 loop.total_env_steps=200_000

      rlx train algo=a2c env=LunarLander-v3 --name lander

      rlx train algo=ppo env=my_module:MyEnv-v0 --dry-run

    Keys and values: `rlx config`. Algorithms and environments: `rlx algos`, `rlx envs`.
    """
    from rlx.config.compose import Composer, runs_directory

    composed = Composer(config_dir).compose(overrides or [])
    if dry_run:
        _print_plan(composed)
        return
    run_name = name or default_name(composed, timed=not auto_resume)
    root = runs_directory()
    if auto_resume and (root / run_name).exists():
        _auto_resume(root, run_name, composed)
        return
    from rlx.build import resolve_device
    from rlx.run import new_meta
    from rlx.rundir import RunDir

    resolve_device(composed.config)  # before there is a directory
    _check_env(composed.config)
    run = RunDir.create(root, run_name, composed.config, new_meta(composed))
    recipe = f", recipe {composed.choices['recipe']}" if composed.choices["recipe"] else ", no recipe: the algorithm's defaults"
    typer.echo(f"{run.path}: {composed.config.algo.name} on {composed.config.env.id}, seed {composed.config.seed}{recipe}")
    _train(run, composed.config, overrides=[], inexact=False)


def resume(
    run: Annotated[str, typer.Argument(help="Name or path of a run, or latest.", autocompletion=complete_runs)] = "latest",
    overrides: Overrides = None,
    inexact: Annotated[bool, typer.Option("--inexact", help="Begin new episodes instead of replaying the open ones.")] = False,
    trust: Annotated[bool, typer.Option("--trust", help="Import the module that the run's environment names.")] = False,
) -> None:
    """Continue a run where its last checkpoint is, in its directory, exactly as if it had never stopped.

    Only loop.* (budget, cadences), log.* and runtime.device can be changed; the change is kept in meta.json.

    Examples:

      rlx resume

      rlx resume latest loop.total_env_steps=1_000_000

      rlx resume lander runtime.device=cuda
    """
    from rlx.config.compose import apply_overrides, check_resumable, runs_directory
    from rlx.rundir import RunDir

    arguments = list(overrides or [])
    if "=" in run:
        arguments, run = [run, *arguments], "latest"
    opened = RunDir.open(runs_directory(), run)
    check_resumable(arguments, str(opened.path))
    config = apply_overrides(opened.config(trust=trust), arguments)
    if not arguments and opened.status == "finished":
        typer.echo(f"{opened.path} is finished; train on with a larger budget: `rlx resume {opened.name} loop.total_env_steps=…`"
                   + (" loop.target_return=null" if config.loop.target_return is not None else ""))  # fmt: skip
        return
    typer.echo(f"{opened.path}: resuming {config.algo.name} on {config.env.id}, seed {config.seed}")
    _train(opened, config, overrides=arguments, inexact=inexact)


def default_name(composed: Composed, *, timed: bool) -> str:
    """<algo>-<env>-s<seed>-<time>; without the time where the same command must find the run again."""
    env = str(composed.choices["env"]).replace("/", "-").replace(":", "-")
    name = f"{composed.config.algo.name}-{env}-s{composed.config.seed}"
    return f"{name}-{datetime.now():%Y%m%d-%H%M%S-%f}"[:-3] if timed else name


def _auto_resume(root: Path, name: str, composed: Composed) -> None:
    from rlx.config.compose import leaf_keys
    from rlx.config.schema import RESUMABLE
    from rlx.errors import ConfigError
    from rlx.rundir import RunDir

    run = RunDir.open(root, name)
    saved, wanted = map(leaf_keys, (run.config(trust=True), composed.config))
    changed = [k for k in {**saved, **wanted} if saved.get(k) != wanted.get(k)]
    fixed = [k for k in changed if not any(k == r or k.startswith(r + ".") for r in RESUMABLE)]
    if fixed:
        differences = ", ".join(f"{k} is {saved.get(k)} there and {wanted.get(k)} here" for k in fixed)
        raise ConfigError(f"{run.path} is another run: {differences}; choose another --name, or repeat the command that started it")
    typer.echo(f"{run.path}: resuming {composed.config.algo.name} on {composed.config.env.id}, seed {composed.config.seed}")
    _train(run, composed.config, overrides=[f"{k}={wanted.get(k)}" for k in changed], inexact=False)


def _train(run: RunDir, config: RunConfig, *, overrides: list[str], inexact: bool) -> None:
    from rlx.run import train as train_run

    outcome = train_run(run, config, overrides=overrides, inexact=inexact)
    steps = f"{outcome.progress.env_steps:,} env steps"
    if outcome.finished:
        typer.echo(f"finished after {steps}; next: `rlx eval {run.name}`, `rlx show {run.name}`, or train on with a larger budget: "
                   f"`rlx resume {run.name} loop.total_env_steps=…`")  # fmt: skip
    else:
        typer.echo(f"stopped and saved after {steps}; `rlx resume {run.name}` goes on")
    if outcome.exit_code:
        sys.stdout.flush()
        raise typer.Exit(outcome.exit_code)


def _check_env(config: RunConfig) -> None:
    """Raise before there is a directory if the environment cannot be made."""
    from rlx.envs.registry import EnvFactory

    EnvFactory(config.env.id, config.env.kwargs)().close()


def _print_plan(composed: Composed) -> None:
    from rlx.config.compose import save_config

    typer.echo(f"# recipe: {composed.choices['recipe'] or 'none'}; nothing was trained")
    typer.echo(save_config(composed.config).rstrip())
