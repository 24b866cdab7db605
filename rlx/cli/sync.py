"""rlx sync: copies of runs in W&B, made after the fact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlx.cli.complete import complete_runs_and_sweeps
from rlx.cli.options import echo

if TYPE_CHECKING:
    from rlx.store.runs import RunDir


def sync(
    run: Annotated[
        str, typer.Argument(help="Name or path of a run or a sweep, or latest.", autocompletion=complete_runs_and_sweeps)
    ] = "latest",
    project: Annotated[str | None, typer.Option(help="W&B project; the default is what the run was configured with.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Write a directory for `wandb sync` instead of uploading.")] = False,
) -> None:
    """Upload a run to Weights & Biases, whole and clean, from its metrics.jsonl; or every run of a sweep, in one group.

    Every time a new W&B run is made, its id being the run's own with the time: W&B writes a step only once, so an older copy could
    not be corrected. Copies share a group with the run or the sweep; delete the ones you do not need.

    Examples:

      rlx sync

      rlx sync lander --project landing
    """
    from rlx.config.compose import runs_directory
    from rlx.errors import ConfigError
    from rlx.store.layout import is_sweep
    from rlx.store.runs import RunDir
    from rlx.store.sweeps import SweepDir

    root = runs_directory()
    path = next((p for p in (root / run, Path(run)) if is_sweep(p)), None)
    if path is None:
        opened = RunDir.open(root, run)
        if not opened.metrics():
            raise ConfigError(f"{opened.path} has no metrics yet; train it for a while, `rlx resume {opened.name}` goes on")
        _upload(opened, project, offline=offline)
        return
    runs = [r for r in SweepDir(path).runs() if r.metrics()]
    if not runs:
        raise ConfigError(f"{path} has no run with metrics yet; `rlx sweep --resume {path.name}` goes on")
    for opened in runs:
        _upload(opened, project, offline=offline)


def _upload(run: RunDir, project: str | None, *, offline: bool) -> None:
    from datetime import datetime

    from rlx.config.compose import load_config
    from rlx.store.record import read_record
    from rlx.store.wandb_settings import wandb_config, wandb_group, wandb_notes, wandb_tags
    from rlx.track.wandb import upload

    config = load_config(run.path / "config.yaml")  # only read: an env that names a module needs no trust here
    record, meta = read_record(run.metrics_path), run.meta()
    lines = record.good
    if record.problem:
        typer.echo(f"warning: {run.metrics_path}: {record.problem}", err=True)
    wandb_id, sweep = str(meta.get("wandb_id") or run.name), meta.get("sweep")
    where = upload(
        lines,
        run_dir=run.path,
        run_id=f"{wandb_id}-{datetime.now():%Y%m%d-%H%M%S}",
        group=wandb_group(config, meta, run.name),
        name=f"{sweep}/{run.name}" if sweep else run.name,
        project=project or config.log.wandb_project,
        config=wandb_config(config, meta),
        tags=wandb_tags(config, meta),
        notes=wandb_notes(meta),
        offline=offline,
    )
    head = f"{sweep}/{run.name}: {len(lines)} lines" if sweep else f"{len(lines)} lines"
    echo(f"{head}: `wandb sync {where}` uploads them" if offline else f"{head}: {where}")
