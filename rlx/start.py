"""Starting and continuing runs: the checks and decisions that `rlx train`, `rlx resume` and `rlx.train` share. Nothing is printed here."""

from __future__ import annotations

import itertools
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlx.config.algos.policy_gradient_config import Activation, MemoryKind, PolicyGradientConfig, RolloutConfig
from rlx.config.algos.sac_config import SACConfig
from rlx.config.algos.td3_config import TD3Config
from rlx.config.compose import apply_overrides
from rlx.config.override_types import Override, read_overrides
from rlx.config.overrides import check_resumable
from rlx.config.saved import leaf_keys, typed_value
from rlx.config.schema import is_resumable
from rlx.errors import ConfigError
from rlx.store.labels import NO_LABELS, Labels
from rlx.store.layout import is_unborn, runs_directory
from rlx.store.runs import RunDir, new_meta

if TYPE_CHECKING:
    from rlx.compiled_code import KernelModule
    from rlx.config.compose import Composed
    from rlx.config.schema import RunConfig
    from rlx.finetune import Source


@dataclass(frozen=True, kw_only=True)
class Start:
    """A run that is ready to be trained by `rlx.run.train`."""

    run: RunDir
    config: RunConfig
    overrides: list[Override] = field(default_factory=list)
    """What a resumed run changes."""
    is_finished: bool = False
    """Whether nothing is left to train: the run is finished and its budget is what it was."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What the checks of a new run found."""

    warnings: list[str]
    """About its environment."""
    network: dict[str, Any] | None
    """What its network is made of, see `rlx.nn.network_report`; None if the algorithm does not say."""
    meta: dict[str, Any] = field(default_factory=dict)
    """For meta.json: where its weights are from, if it starts from some."""
    files: dict[str, bytes] = field(default_factory=dict)
    """For its directory."""


def default_name(composed: Composed, *, timed: bool) -> str:
    """<algo>-<env>-s<seed>-<time>; without the time where the same command must find the run again."""
    name = re.sub(r"[^A-Za-z0-9._+-]", "-", f"{composed.config.algo.name}-{composed.choices['env']}-s{composed.config.seed}")
    return f"{name}-{datetime.now():%Y%m%d-%H%M%S-%f}"[:-3] if timed else name


def begin_compiling(config: RunConfig) -> None:
    """Compile the kernels that a run probably needs, if none of this machine's runs did; it takes as long as all that comes before them."""
    from rlx import compiled_code

    if config.runtime.device in ("cpu", "auto") and (needed := _kernels_of(config)):
        compiled_code.begin_compiling(needed)


def _kernels_of(config: RunConfig) -> KernelModule | None:
    """The kernels of gradient steps, if the networks of the algorithm probably use some."""
    from rlx.nn.kernel_modules import GRU_UNROLL, LEARNING, MOST_WEIGHTS, OFF_POLICY

    algo = config.algo
    if isinstance(algo, RolloutConfig):
        if algo.memory is MemoryKind.gru:
            return GRU_UNROLL
        return LEARNING if algo.memory is MemoryKind.none and isinstance(algo, PolicyGradientConfig) else None
    if isinstance(algo, SACConfig | TD3Config):
        is_small = max((a * b for a, b in itertools.pairwise(algo.hidden_sizes)), default=0) <= MOST_WEIGHTS
        if is_small and not algo.layer_norm and algo.activation in (Activation.relu, Activation.tanh):
            return OFF_POLICY
    return None


def check_new(
    composed: Composed, name: str, *, may_exist: bool = False, source: Source | None = None, num_ranks: int | None = None
) -> Checked:
    """Check everything about a new run that can be checked before there is a directory.

    Args:
        composed: its settings.
        name: of its directory.
        may_exist: whether a run of this name is no error.
        source: the weights that it starts from.
        num_ranks: processes that train it; by default those of the world.

    Raises:
        ConfigError: if the name is taken or cannot be one, W&B is to be online without a login, the device is missing, the environment
            cannot be made, the algorithm cannot train on it, or its networks do not fit those of `source`.
    """
    if may_exist:
        RunDir.check_name(name)
    else:
        RunDir.check_new(runs_directory(), name)
    checked = check_parts(composed.config, source, num_ranks=num_ranks)
    check_loggers(composed.config)
    return checked


def create(composed: Composed, name: str, checked: Checked, labels: Labels = NO_LABELS) -> Start:
    """Make the directory of a new run, after `check_new`."""
    meta = new_meta(composed, labels) | checked.meta
    run = RunDir.create(runs_directory(), name, composed.config, meta, files=checked.files)
    return Start(run=run, config=composed.config)


def to_resume(reference: str, arguments: list[str], *, trust: bool) -> Start:
    """How to continue a run (a name, a path, or latest) under KEY=VALUE changes of loop.*, log.* and runtime.device.

    Raises:
        ConfigError: if there is no such run, or a change would make it another run.
    """
    run = RunDir.open(runs_directory(), reference)
    check_resumable(arguments, str(run.path))
    config = apply_overrides(run.config(trust=trust), arguments, typed=run.typed_keys)
    start = Start(
        run=run,
        config=config,
        overrides=read_overrides(arguments, allow_sweeps=False),
        is_finished=not arguments and run.status == "finished",
    )
    if not start.is_finished:
        check_loggers(config)
    return start


def to_auto_resume(composed: Composed, name: str, *, trust: bool, labels: Labels = NO_LABELS, source: str | None = None) -> Start | None:
    """How to continue the run of this name under the settings composed; None if there is no such run yet.

    Args:
        composed: the settings.
        name: of the run.
        trust: see `RunDir.config`.
        labels: notes and tags; those that are given replace those of the run.
        source: what the run starts from, as it was typed.

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
    before = run.meta().get("from")
    began_from = before.get("reference") if isinstance(before, dict) else None
    if fixed or began_from != source:
        told = [f"{k} is {saved.get(k)} there and {wanted.get(k)} here" for k in fixed]
        told += [f"--from is {began_from} there and {source} here"] if began_from != source else []
        differences = ", ".join(told)
        raise ConfigError(f"{run.path} is another run: {differences}; choose another --name, or repeat the command that started it")
    overrides = [Override(k, typed_value(wanted.get(k))) for k in changed]
    start = Start(run=run, config=composed.config, overrides=overrides, is_finished=not changed and run.status == "finished")
    if not start.is_finished:
        check_loggers(composed.config)
    if labels:
        with run.lock():
            run.set_labels(labels)
    return start


def check_loggers(config: RunConfig) -> None:
    """Raise a ConfigError if W&B is to be online and has no login, or TensorBoard is wanted and not installed."""
    if config.log.tensorboard:
        from rlx.track.tensorboard import check_installed

        check_installed()
    if config.log.wandb.value == "online":
        from rlx.track.wandb import check_login

        check_login("online")


def check_parts(config: RunConfig, source: Source | None = None, *, num_ranks: int | None = None) -> Checked:
    """Build the environment and the algorithm of a run once, to see that they can be built.

    Raises:
        ConfigError: if the device is missing, the environment cannot be made, the algorithm cannot train on it, or its networks do not fit
            those of `source`.
    """
    import gymnasium

    from rlx.build import (
        build_algorithm,
        check_ranks,
        env_factory,
        env_spec,
        resolve_device,
        run_notes,
        spaces_in_words,
    )
    from rlx.distributed import current
    from rlx.envs.registry import GameEnvFactory
    from rlx.finetune import FILE, check_fits
    from rlx.types import ReportsNetwork

    device = resolve_device(config)
    factory = env_factory(config)
    env: Any = factory(1) if isinstance(factory, GameEnvFactory) else factory.single()
    try:
        spec, spaces = env_spec(config.env, env), spaces_in_words(env)
    finally:
        env.close()
    if not config.env.rescale_actions and not isinstance(spec.action_space, gymnasium.spaces.Box):
        raise ConfigError(f"env.rescale_actions=false has no effect: env={spec.id} has discrete actions; leave it out")
    algo = build_algorithm(config, spec, device)
    check_ranks(config, current().size if num_ranks is None else num_ranks)
    notes = run_notes(algo, spec, config)
    network = algo.network_report() if isinstance(algo, ReportsNetwork) else None
    if source is None:
        return Checked(warnings=notes, network=network)
    check_fits(source, algo, name=config.algo.name, spaces=spaces)
    data, origin = source.file(algo)
    return Checked(warnings=notes, network=network, meta={"from": origin}, files={FILE: data})


def find_source(reference: str, *, warn: Callable[[str], None] = warnings.warn) -> Source:
    """The weights that RUN or RUN@CHECKPOINT names, to start another run from; see `rlx.finetune.find_source`."""
    from rlx import finetune

    return finetune.find_source(reference, warn=warn)


def compose(arguments: list[str], config_dir: Path | None = None) -> Composed:
    """The configuration that KEY=VALUE words mean. Raises a ConfigError where they mean none."""
    from rlx.config.compose import Composer

    return Composer(config_dir).compose(arguments)
