"""Starting and continuing runs: the checks and decisions that `rlx train`, `rlx resume` and `rlx.train` share. Nothing is printed here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlx.config.compose import apply_overrides, leaf_keys, runs_directory
from rlx.config.override_types import Override, read_overrides
from rlx.config.overrides import check_resumable, is_resumable
from rlx.errors import ConfigError
from rlx.store.labels import NO_LABELS, Labels
from rlx.store.layout import is_unborn
from rlx.store.runs import RunDir, new_meta

if TYPE_CHECKING:
    from rlx.config.compose import Composed
    from rlx.config.schema import RunConfig


@dataclass(frozen=True, kw_only=True)
class Start:
    """A run that is ready to be trained by `rlx.run.train`."""

    run: RunDir
    config: RunConfig
    overrides: list[Override] = field(default_factory=list)
    """What a resumed run changes."""
    is_finished: bool = False
    """Whether nothing is left to train: the run is finished and its budget is what it was."""


def default_name(composed: Composed, *, timed: bool) -> str:
    """<algo>-<env>-s<seed>-<time>; without the time where the same command must find the run again."""
    env = re.sub(r"[^A-Za-z0-9._+-]", "-", str(composed.choices["env"]))
    name = f"{composed.config.algo.name}-{env}-s{composed.config.seed}"
    return f"{name}-{datetime.now():%Y%m%d-%H%M%S-%f}"[:-3] if timed else name


def check_new(composed: Composed, name: str, *, may_exist: bool = False) -> list[str]:
    """Check everything about a new run that can be checked before there is a directory; returns warnings about its environment.

    Raises:
        ConfigError: if the name is taken or cannot be one, W&B is to be online without a login, the device is missing, the environment
            cannot be made, or the algorithm cannot train on it.
    """
    if may_exist:
        RunDir.check_name(name)
    else:
        RunDir.check_new(runs_directory(), name)
    notes = check_parts(composed.config)
    check_login(composed.config)
    return notes


def create(composed: Composed, name: str, labels: Labels = NO_LABELS) -> Start:
    """Make the directory of a new run, after `check_new`."""
    run = RunDir.create(runs_directory(), name, composed.config, new_meta(composed, labels))
    return Start(run=run, config=composed.config)


def to_resume(reference: str, arguments: list[str], *, trust: bool) -> Start:
    """How to continue a run (a name, a path, or latest) under KEY=VALUE changes of loop.*, log.* and runtime.device.

    Raises:
        ConfigError: if there is no such run, or a change would make it another run.
    """
    run = RunDir.open(runs_directory(), reference)
    check_resumable(arguments, str(run.path))
    config = apply_overrides(run.config(trust=trust), arguments)
    start = Start(
        run=run,
        config=config,
        overrides=read_overrides(arguments, allow_sweeps=False),
        is_finished=not arguments and run.status == "finished",
    )
    if not start.is_finished:
        check_login(config)
    return start


def to_auto_resume(composed: Composed, name: str, *, trust: bool, labels: Labels = NO_LABELS) -> Start | None:
    """How to continue the run of this name under the settings composed; None if there is no such run yet.

    Notes and tags that are given replace those of the run.

    Raises:
        ConfigError: if the run of this name was started with other settings than those that a resume may change.
    """
    RunDir.check_name(name)
    root = runs_directory()
    if not os.path.lexists(root / name) or is_unborn(root / name):
        return None
    run = RunDir.open(root, name)
    saved, wanted = map(leaf_keys, (run.config(trust=trust), composed.config))
    changed = [k for k in {**saved, **wanted} if saved.get(k) != wanted.get(k)]
    fixed = [k for k in changed if not is_resumable(k)]
    if fixed:
        differences = ", ".join(f"{k} is {saved.get(k)} there and {wanted.get(k)} here" for k in fixed)
        raise ConfigError(f"{run.path} is another run: {differences}; choose another --name, or repeat the command that started it")
    overrides = [Override(k, str(wanted.get(k))) for k in changed]
    start = Start(run=run, config=composed.config, overrides=overrides, is_finished=not changed and run.status == "finished")
    if not start.is_finished:
        check_login(composed.config)
    if labels:
        with run.lock():
            run.set_labels(labels)
    return start


def check_login(config: RunConfig) -> None:
    """Raise a ConfigError if W&B is to be online and has no login."""
    if config.log.wandb.value == "online":
        from rlx.track.wandb import check_login as check

        check("online")


def check_parts(config: RunConfig) -> list[str]:
    """Warnings about a run's environment.

    Raises:
        ConfigError: if the device is missing, the environment cannot be made, or the algorithm cannot train on it.
    """
    import gymnasium

    from rlx.build import build_algorithm, env_factory, env_spec, image_notes, resolve_device
    from rlx.envs.registry import GameEnvFactory

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


def compose(arguments: list[str], config_dir: Path | None = None) -> Composed:
    """The configuration that KEY=VALUE words mean. Raises a ConfigError where they mean none."""
    from rlx.config.compose import Composer

    return Composer(config_dir).compose(arguments)
