"""Starting, resuming and ending a run: everything around `loop.train` that has to do with its directory."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from rlx import loop
from rlx.build import Parts, build, resolve_device
from rlx.config.compose import Composed, save_config
from rlx.config.schema import RunConfig
from rlx.errors import RlxError
from rlx.files import replace_durably
from rlx.rundir import RunDir
from rlx.signals import SignalHandler
from rlx.track.console import make_console
from rlx.track.logger import RunLogger
from rlx.track.record import Record
from rlx.track.wandb import make_mirror
from rlx.types import Progress


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How training ended."""

    progress: Progress
    finished: bool
    exit_code: int
    """0, or 128 plus the signal that stopped it."""


def new_meta(composed: Composed) -> dict[str, Any]:
    """What meta.json says of a run from the start."""
    return {**composed.choices, "algo": composed.config.algo.name, "env_id": composed.config.env.id,
            "seed": composed.config.seed, "wandb_id": secrets.token_hex(4)}  # fmt: skip


def train(run: RunDir, config: RunConfig, *, overrides: list[str], inexact: bool = False) -> Outcome:
    """Train a run from where it is to its end, in its own directory.

    Args:
        run: held by nobody else.
        config: what to train; saved if it differs from what the run had.
        overrides: what a resumed run changes, for the record.
        inexact: begin new episodes instead of replaying the open ones.

    Raises:
        RlxError: for what the user can mend; the run can be resumed from its last checkpoint.
    """
    device = resolve_device(config)
    with run.lock(), SignalHandler() as signals:
        segment = len(run.segments)
        run.begin_segment({"argv": sys.argv[1:], "overrides": overrides, "device": str(device), "threads": config.runtime.threads})
        if overrides:
            replace_durably(run.path / "config.yaml", save_config(config).encode())
        with _ending(run) as ending:
            parts = build(config, run.checkpoints, device, inexact=inexact)
            with contextlib.closing(parts):
                progress, finished = _train(run, config, parts, device, signals, segment)
            ending |= {"env_steps": progress.env_steps, "status": "finished" if finished else "stopped"}
    stopped_by = signals.stopped_by
    return Outcome(progress=progress, finished=finished, exit_code=128 + stopped_by if stopped_by and not finished else 0)


def _train(
    run: RunDir, config: RunConfig, parts: Parts, device: torch.device, signals: SignalHandler, segment: int
) -> tuple[Progress, bool]:
    meta = run.meta()
    title = f"{run.name}   {config.algo.name} on {config.env.id}, {config.env.num_envs} envs, {device}"
    console = make_console(config.log.console.value, title)
    try:
        parts.checkpointer.warn = lambda text: console.note(f"warning: {text}")
        if parts.collector.inexact:
            console.note(f"resume will not be exact: {parts.collector.inexact}")
        with contextlib.closing(Record(run.metrics_path)) as record:
            mirror = make_mirror(
                config.log.wandb.value,
                run_dir=run.path,
                run_id=meta.get("wandb_id", run.name),
                name=run.name,
                project=config.log.wandb_project,
                config=dataclasses.asdict(config),
                tags=[config.algo.name, config.env.id],
                segment=segment,
                note=console.note,
            )
            exit_code = 1
            try:
                progress, finished = loop.train(
                    parts.algo,
                    parts.collector,
                    parts.evaluator,
                    config=config.loop,
                    logger=RunLogger(record, console, mirror),
                    checkpointer=parts.checkpointer,
                    signals=signals,
                )
                exit_code = 128 + signals.stopped_by if signals.stopped_by and not finished else 0
            finally:
                parts.checkpointer.close()
                mirror.close(exit_code=exit_code)
    finally:
        console.close()
    return progress, finished


@contextlib.contextmanager
def _ending(run: RunDir) -> Iterator[dict[str, Any]]:
    """Write down how the block ended, whichever way it does; the block says more through the dictionary it gets."""
    ending: dict[str, Any] = {"status": "failed"}
    try:
        yield ending
    except BaseException as error:
        ending["error"] = f"{type(error).__name__}: {error}"
        with contextlib.suppress(RlxError):  # a full disk must not hide what happened
            run.end_segment(**ending)
        raise
    run.end_segment(**ending)
