"""Train a run in its directory: lock, records, W&B, and how it ended, around `loop.train`."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlx import distributed, loop
from rlx.build import check_ranks, device_of_rank, resolve_device
from rlx.checkpoint import find_checkpoints
from rlx.config.override_types import Override
from rlx.config.saved import save_config
from rlx.config.schema import ConsoleMode, Precision, RunConfig
from rlx.distributed import World
from rlx.errors import ConfigError, LostRankError, RlxError
from rlx.failures import as_rlx_error
from rlx.files import open_to_append
from rlx.finetune import load_initial
from rlx.nn.network_report import observation_line
from rlx.nn.precision import bfloat16_instructions
from rlx.parts import Parts, build
from rlx.ranks import Work, agreed_signal, begin_together, hosts_of, ranks_option, reason, send_work
from rlx.signals import SignalHandler
from rlx.store.layout import LOG
from rlx.store.provenance import save_uncommitted
from rlx.store.record import Record, best_values
from rlx.store.runs import RunDir
from rlx.store.times import now
from rlx.store.wandb_settings import wandb_fields
from rlx.track.console import make_console
from rlx.track.logger import Console, RunLogger
from rlx.track.tensorboard import check_installed, make_tensorboard
from rlx.track.wandb import BEST_OF, make_mirror
from rlx.types import Progress


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How training ended."""

    progress: Progress
    finished: bool
    exit_code: int
    """0, or 128 plus the signal that stopped it."""
    ranks: str = ""
    """What `rlx resume` needs behind the run's name to continue with as many ranks."""


def train(
    run: RunDir,
    config: RunConfig,
    *,
    overrides: Sequence[Override],
    inexact: bool = False,
    console: Console | None = None,
    wandb: str | None = None,
    should_pause: loop.Pause = loop.never_pause,
    argv: list[str] | None = None,
) -> Outcome:
    """Train a run from where it is to its end, in its own directory.

    Args:
        run: held by nobody else.
        config: what to train; saved if it differs from what the run had.
        overrides: what a resumed run changes, for the record.
        inexact: begin new episodes instead of replaying the open ones.
        console: what shows the run, instead of the one that the configuration names.
        wandb: a W&B mode that overrules the configuration's this time.
        should_pause: at which line of the record to save and stop before the end.

    Raises:
        RlxError: for errors that the user can fix; the run can be resumed from its last checkpoint.
    """
    if any(override.key == "loop.total_env_steps" for override in overrides):
        _check_budget(run, config)
    if config.log.tensorboard:
        check_installed()
    world = distributed.current()
    check_ranks(config, world.size)
    device = device_of_rank(resolve_device(config), world)
    with run.lock(), SignalHandler() as signals:
        segment, hosts = len(run.segments), hosts_of(world)
        warnings = [run.keep_record(config, changed=bool(overrides)), _other_bfloat16(run, config, device)]
        run.begin_segment(
            {
                "argv": sys.argv[1:] if argv is None else argv,
                "overrides": list(map(str, overrides)),
                "device": str(device),
                "threads": config.runtime.threads,
                **({"ranks": world.size, "hosts": hosts} if world.size > 1 else {}),
                **({"bfloat16": bfloat16_instructions(device)} if config.runtime.precision is Precision.bf16 else {}),
            }
        )
        saving = save_uncommitted(run.path) if segment == 0 else None
        with _ending(run, config, world) as ending:
            trusted = run.is_trusted()
            send_work(world, Work(config=save_config(config), inexact=inexact, trusted=trusted, run=run.reference))
            parts = build(config, run.checkpoints, device, inexact=inexact, world=world)
            parts.trust(trusted)
            ending["spaces"] = parts.checkpointer.spaces  # as in the checkpoints, where a resume compares them
            with contextlib.closing(parts):
                run.keep_network(parts.network)
                load_initial(run, parts.algo)
                begin_together(world, parts)
                where = f"{world.size} ranks, {device.type}" if world.size > 1 else device
                title = f"{run.name}   {config.algo.name} on {config.env.id}, {config.env.num_envs} envs, {where}"
                console = console or make_console(config.log.console.value, title)
                with contextlib.closing(console):
                    for warning in filter(None, warnings):
                        console.note(f"warning: {warning}")
                    progress, finished = _train(
                        run, config, parts, signals, segment, console, wandb or config.log.wandb.value, should_pause, world
                    )
            status = "finished" if finished else "stopped" if signals.stopped_by else "paused"
            ending |= {"env_steps": progress.env_steps, "status": status}
        if saving is not None:
            saving.join(2.0)
    stopped_by = signals.stopped_by
    code = 128 + stopped_by if stopped_by and not finished else 0
    return Outcome(progress=progress, finished=finished, exit_code=code, ranks=ranks_option(world))


def _train(
    run: RunDir,
    config: RunConfig,
    parts: Parts,
    signals: SignalHandler,
    segment: int,
    console: Console,
    wandb: str,
    should_pause: loop.Pause,
    world: World,
) -> tuple[Progress, bool]:
    meta = run.meta()
    parts.checkpointer.warn = lambda text: console.note(f"warning: {text}")
    if parts.network is not None and config.log.console is not ConsoleMode.quiet and (line := observation_line(parts.network)):
        console.note(line)
    parts.tell(console.note)
    if parts.collector.inexact:
        console.note(f"resume will not be exact: {parts.collector.inexact}")
    with contextlib.closing(Record(run.metrics_path)) as record:
        mirror = make_mirror(
            wandb, run_dir=run.path, run_id=meta.get("wandb_id", run.name), segment=segment, note=console.note,
            best=best_values(run.metrics_path, BEST_OF), **wandb_fields(config, meta, run.name),
        )  # fmt: skip
        mirrors = [mirror]
        if config.log.tensorboard and (board := make_tensorboard(run.path, console.note)) is not None:
            mirrors.append(board)
        exit_code = 1
        try:
            progress, finished = loop.train(
                parts.algo,
                parts.collector,
                parts.evaluator,
                config=config.loop.cadence,
                logger=RunLogger(record, console, mirrors, lambda text: _keep(run, text)),
                checkpointer=parts.checkpointer,
                signals=signals,
                should_pause=should_pause,
                world=world,
            )
            agreed_signal(world, signals)
            exit_code = 128 + signals.stopped_by if signals.stopped_by and not finished else 0
        finally:
            parts.checkpointer.close()
            for mirror in mirrors:
                mirror.close(exit_code=exit_code)
    return progress, finished


@contextlib.contextmanager
def _ending(run: RunDir, config: RunConfig, world: World) -> Iterator[dict[str, Any]]:
    """Record how the block ends, also by an exception; the block adds details to the dictionary."""
    ending: dict[str, Any] = {"status": "failed"}
    try:
        try:
            yield ending
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if isinstance(error, LostRankError):
                raise reason(world, run.reference, error) from error
            if (found := as_rlx_error(error, config)) is not None:
                raise found from error
            raise
    except BaseException as error:
        ending["error"] = f"{type(error).__name__}: {error}"
        trace = error.trace if isinstance(error, RlxError) else "".join(traceback.format_exception(error))
        if trace and _keep(run, trace):
            error.add_note(f"the traceback is in {run.path / LOG}")
        with contextlib.suppress(RlxError):  # a full disk must not hide what happened
            run.end_segment(**ending)
        raise
    run.end_segment(**ending)


def _keep(run: RunDir, text: str) -> bool:
    """Append a traceback to the run's log; whether that could be done."""
    try:
        with open_to_append(run.path / LOG) as file:
            file.write(f"{now()} {text.rstrip()}\n\n".encode(errors="backslashreplace"))
    except OSError:
        return False
    return True


def _other_bfloat16(run: RunDir, config: RunConfig, device: torch.device) -> str | None:
    """A warning where a run in bfloat16 goes on with other instructions for it than before."""
    if config.runtime.precision is not Precision.bf16 or not run.segments or "bfloat16" not in run.segments[-1]:
        return None
    before, now_ = run.segments[-1]["bfloat16"] or "emulation", bfloat16_instructions(device) or "emulation"
    if before == now_:
        return None
    slow = ", which is slow" if now_ == "emulation" else ""
    return f"bfloat16 was computed by {before}, and here by {now_}{slow}: the run goes on with other rounding"


def _check_budget(run: RunDir, config: RunConfig) -> None:
    """Raise a ConfigError if a run has more env steps than its new budget: it would count as finished, and as another experiment."""
    found, _ = find_checkpoints(run.checkpoints)
    done, wanted = max((c.env_steps for c in found), default=0), config.loop.total_env_steps
    if wanted <= done:
        raise ConfigError(
            f"loop.total_env_steps={wanted}: {run.path} has {done} env steps already, so that nothing would be trained; "
            "say more, or leave it out"
        )
