"""Copies of runs in Weights & Biases, made from their metrics.jsonl after the fact. Nothing is printed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rlx.config.saved import load_config
from rlx.errors import ConfigError, SyncError
from rlx.files import is_file
from rlx.store.layout import is_sweep
from rlx.store.record import read_record
from rlx.store.runs import RunDir
from rlx.store.sweeps import SweepDir
from rlx.store.wandb_settings import wandb_fields
from rlx.track.wandb import Description, is_online
from rlx.track.wandb_upload import add_videos, upload


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

    Videos of evaluations are copied too.
    """
    config = load_config(run.path / "config.yaml")  # only read: an env that names a module needs no trust here
    record, meta = read_record(run.metrics_path), run.meta()
    fields = wandb_fields(config, meta, run.name)
    where = upload(
        record.good,
        run_dir=run.path,
        run_id=f"{meta.get('wandb_id') or run.name}-{datetime.now():%Y%m%d-%H%M%S}",
        videos=sorted(path for path in (run.path / "videos").glob("*.mp4") if is_file(path)),
        offline=offline,
        **{**fields, "project": project or fields["project"]},
    )
    return Upload(name=fields["name"], num_lines=len(record.good), where=str(where), problem=record.problem)


def upload_videos(run: RunDir, videos: Sequence[Path]) -> None:
    """Add films to a run's W&B run, if it is mirrored online and there is a login; nothing is done otherwise.

    Raises:
        SyncError: if W&B has no such run or cannot be reached, or the run is being trained, which holds its W&B run.
    """
    config, meta = load_config(run.path / "config.yaml"), run.meta()
    if not videos or not is_online(config.log.wandb.value):
        return
    fields = wandb_fields(config, meta, run.name)
    if run.is_locked():
        raise SyncError(f"W&B: {run.name} is being trained; `rlx sync {fields['name']}` uploads its videos afterwards")
    add_videos(videos, Description(directory=run.path, id=str(meta.get("wandb_id") or run.name), **fields))
