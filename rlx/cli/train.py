"""rlx train, rlx resume."""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlx.cli.complete import complete_overrides, complete_runs
from rlx.cli.options import Trust, echo

if TYPE_CHECKING:
    from rlx.config.compose import Composed
    from rlx.config.schema import RunConfig
    from rlx.store.runs import RunDir

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="What differs from the defaults.", autocompletion=complete_overrides)
]


def train(
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="Directory of the run, runs/NAME; the default says algo, env, seed and time.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compose, check and print the configuration; train nothing.")] = False,
    config_dir: Annotated[Path | None, typer.Option(help="A directory of your own YAML groups, searched before conf/.")] = None,
    auto_resume: Annotated[bool, typer.Option("--auto-resume", help="Go on where the run of this name is, if there is one.")] = False,
    trust: Trust = False,
    multirun: Annotated[bool, typer.Option("--multirun", "-m", help="The same as `rlx sweep`, with its options.")] = False,
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
    from rlx.store.runs import RunDir, is_unborn
    from rlx.track.console import say

    composed = Composer(config_dir).compose(overrides or [])
    run_name = default_name(composed, timed=not auto_resume) if name is None else name
    root = runs_directory()
    if auto_resume:
        RunDir.check_name(run_name)
        if os.path.lexists(root / run_name) and not is_unborn(root / run_name) and not dry_run:
            _auto_resume(root, run_name, composed, trust=trust)
            return
    else:
        RunDir.check_new(root, run_name)
    notes = _check_parts(composed.config)  # before there is a directory
    _check_login(composed.config)
    if dry_run:
        _print_plan(composed, notes)
        return
    from rlx.store.runs import new_meta

    run = RunDir.create(root, run_name, composed.config, new_meta(composed))
    recipe = f", recipe {composed.choices['recipe']}" if composed.choices["recipe"] else ", no recipe: the algorithm's defaults"
    say(f"{run.path}: {composed.config.algo.name} on {composed.config.env.id}, seed {composed.config.seed}{recipe}")
    _train(run, composed.config, overrides=[], inexact=False)


def resume(
    run: Annotated[str, typer.Argument(help="Name or path of a run, or latest.", autocompletion=complete_runs)] = "latest",
    overrides: Overrides = None,
    inexact: Annotated[bool, typer.Option("--inexact", help="Begin new episodes instead of replaying the open ones.")] = False,
    trust: Trust = False,
) -> None:
    """Continue a run where its last checkpoint is, in its directory, exactly as if it had never stopped.

    Only loop.* (budget, cadences), log.* and runtime.device can be changed; the change is kept in meta.json.

    Examples:

      rlx resume

      rlx resume latest loop.total_env_steps=1_000_000

      rlx resume lander runtime.device=cuda
    """
    from rlx.config.compose import apply_overrides, runs_directory
    from rlx.config.overrides import check_resumable
    from rlx.store.runs import RunDir
    from rlx.track.console import say

    arguments = list(overrides or [])
    if "=" in run or run.startswith("-"):
        arguments, run = [run, *arguments], "latest"
    opened = RunDir.open(runs_directory(), run)
    check_resumable(arguments, str(opened.path))
    config = apply_overrides(opened.config(trust=trust), arguments)
    if not arguments and opened.status == "finished":
        reached = " loop.target_return=null" if config.loop.target_return is not None else ""
        say(f"{opened.path} is finished; train on with a larger budget: "
                   f"`rlx resume {opened.reference} loop.total_env_steps=…{reached}`")  # fmt: skip
        return
    _check_login(config)
    say(f"{opened.path}: resuming {config.algo.name} on {config.env.id}, seed {config.seed}")
    _train(opened, config, overrides=arguments, inexact=inexact)


def default_name(composed: Composed, *, timed: bool) -> str:
    """<algo>-<env>-s<seed>-<time>; without the time where the same command must find the run again."""
    env = re.sub(r"[^A-Za-z0-9._+-]", "-", str(composed.choices["env"]))
    name = f"{composed.config.algo.name}-{env}-s{composed.config.seed}"
    return f"{name}-{datetime.now():%Y%m%d-%H%M%S-%f}"[:-3] if timed else name


def _auto_resume(root: Path, name: str, composed: Composed, *, trust: bool) -> None:
    from rlx.config.compose import leaf_keys
    from rlx.config.overrides import is_resumable
    from rlx.errors import ConfigError
    from rlx.store.runs import RunDir
    from rlx.track.console import say

    run = RunDir.open(root, name)
    saved, wanted = map(leaf_keys, (run.config(trust=trust), composed.config))
    changed = [k for k in {**saved, **wanted} if saved.get(k) != wanted.get(k)]
    fixed = [k for k in changed if not is_resumable(k)]
    if fixed:
        differences = ", ".join(f"{k} is {saved.get(k)} there and {wanted.get(k)} here" for k in fixed)
        raise ConfigError(f"{run.path} is another run: {differences}; choose another --name, or repeat the command that started it")
    if not changed and run.status == "finished":
        say(f"{run.path} is finished; the same command with a larger loop.total_env_steps trains on")
        return
    _check_login(composed.config)
    say(f"{run.path}: resuming {composed.config.algo.name} on {composed.config.env.id}, seed {composed.config.seed}")
    _train(run, composed.config, overrides=[f"{k}={wanted.get(k)}" for k in changed], inexact=False)


def _train(run: RunDir, config: RunConfig, *, overrides: list[str], inexact: bool) -> None:
    from rlx.run import train as train_run
    from rlx.track.console import say

    outcome = train_run(run, config, overrides=overrides, inexact=inexact)
    steps = f"{outcome.progress.env_steps:,} env steps"
    name = run.reference
    if outcome.finished:
        say(f"finished after {steps}; next: `rlx eval {name}`, `rlx show {name}`, or train on with a larger budget: "
                   f"`rlx resume {name} loop.total_env_steps=…`")  # fmt: skip
    else:
        say(f"stopped and saved after {steps}; `rlx resume {name}` goes on")
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def _check_login(config: RunConfig) -> None:
    """Raise if W&B is to be online and has no login."""
    if config.log.wandb.value == "online":
        from rlx.track.wandb import check_login

        check_login("online")


def _check_parts(config: RunConfig) -> list[str]:
    """What there is to say of the environment.

    Raises:
        ConfigError: if the device is not there, the environment cannot be made, or the algorithm cannot train on it.
    """
    import gymnasium

    from rlx.build import build_algorithm, env_factory, env_spec, image_notes, resolve_device
    from rlx.envs.registry import GameEnvFactory
    from rlx.errors import ConfigError

    device = resolve_device(config)
    factory = env_factory(config)
    env: Any = factory(1) if isinstance(factory, GameEnvFactory) else factory.single()
    try:
        spec = env_spec(config.env, env)
    finally:
        env.close()
    if not config.env.rescale_actions and not isinstance(spec.action_space, gymnasium.spaces.Box):
        raise ConfigError(f"env.rescale_actions=false has no effect: env={spec.id} has discrete actions; leave it out")
    build_algorithm(config, spec, device)
    return image_notes(spec)


def _print_plan(composed: Composed, notes: list[str]) -> None:
    from rlx.config.compose import save_config

    echo(f"# recipe: {composed.choices['recipe'] or 'none'}; nothing was trained")
    for text in notes:
        typer.echo(f"# warning: {text}")
    echo(save_config(composed.config).rstrip())
