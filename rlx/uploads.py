"""Copies of runs in Weights & Biases, made from their metrics.jsonl after the fact. Nothing is printed here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rlx.config.saved import load_config
from rlx.errors import ConfigError
from rlx.store.layout import is_sweep
from rlx.store.record import read_record
from rlx.store.runs import RunDir
from rlx.store.sweeps import SweepDir
from rlx.store.wandb_settings import wandb_config, wandb_group, wandb_notes, wandb_tags
from rlx.track.wandb import upload


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A copy of a run."""

    name: str
    """Of the run, or SWEEP/RUN."""
    num_lines: int
    where: str
    """Its address, or the directory for `wandb sync` if it is offline."""
    problem: str
    """What of metrics.jsonl could not be read and is left out; "" if nothing."""


def runs_to_upload(root: Path, reference: str) -> list[RunDir]:
    """The run, or the runs of the sweep, that a name, a path or `latest` stands for.

    Raises:
        ConfigError: if there is none, or none has metrics.
    """
    path = next((p for p in (root / reference, Path(reference)) if is_sweep(p)), None)
    if path is None:
        run = RunDir.open(root, reference)
        if not run.metrics():
            raise ConfigError(f"{run.path} has no metrics yet; train it for a while, `rlx resume {run.name}` goes on")
        return [run]
    runs = [run for run in SweepDir(path).runs() if run.metrics()]
    if not runs:
        raise ConfigError(f"{path} has no run with metrics yet; `rlx sweep --resume {path.name}` goes on")
    return runs


def upload_run(run: RunDir, *, project: str | None = None, offline: bool = False) -> Upload:
    """Copy a run to W&B.

    Each copy is a new W&B run whose id is the run's own with the time: W&B keeps the first value of a step, so that an older copy cannot
    be corrected.

    Args:
        run: the run.
        project: a W&B project; None is the one that the run was configured with.
        offline: write a directory for `wandb sync` instead of uploading.
    """
    config = load_config(run.path / "config.yaml")  # only read: an env that names a module needs no trust here
    record, meta = read_record(run.metrics_path), run.meta()
    sweep = meta.get("sweep")
    name = f"{sweep}/{run.name}" if sweep else run.name
    where = upload(
        record.good,
        run_dir=run.path,
        run_id=f"{meta.get('wandb_id') or run.name}-{datetime.now():%Y%m%d-%H%M%S}",
        group=wandb_group(config, meta, run.name),
        name=name,
        project=project or config.log.wandb_project,
        config=wandb_config(config, meta),
        tags=wandb_tags(config, meta),
        notes=wandb_notes(meta),
        offline=offline,
    )
    return Upload(name=name, num_lines=len(record.good), where=str(where), problem=record.problem)
