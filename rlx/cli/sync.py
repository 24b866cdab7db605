"""rlx sync."""

from __future__ import annotations

from typing import Annotated

import typer

from rlx.cli.complete import complete_runs


def sync(
    run: Annotated[str, typer.Argument(help="Name or path of a run, or latest.", autocompletion=complete_runs)] = "latest",
    project: Annotated[str | None, typer.Option(help="W&B project; the default is what the run was configured with.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Write a directory for `wandb sync` instead of uploading.")] = False,
) -> None:
    """Upload a run to Weights & Biases, whole and clean, from its metrics.jsonl.

    Every time a new W&B run is made, its id being the run's own with the time: W&B writes a step only once, so an older copy could
    not be corrected. Copies share a group with the run; delete the ones you do not need.

    Examples:

      rlx sync

      rlx sync lander --project landing
    """
    import dataclasses
    from datetime import datetime

    from rlx.config.compose import load_config, runs_directory
    from rlx.errors import ConfigError
    from rlx.rundir import RunDir
    from rlx.track.wandb import upload

    opened = RunDir.open(runs_directory(), run)
    config = load_config(opened.path / "config.yaml")  # only read: an env that names a module needs no trust here
    lines = opened.metrics()
    if not lines:
        raise ConfigError(f"{opened.path} has no metrics yet; train it for a while, `rlx resume {opened.name}` goes on")
    wandb_id = str(opened.meta().get("wandb_id") or opened.name)
    where = upload(
        lines,
        run_dir=opened.path,
        run_id=f"{wandb_id}-{datetime.now():%Y%m%d-%H%M%S}",
        group=wandb_id,
        name=opened.name,
        project=project or config.log.wandb_project,
        config=dataclasses.asdict(config),
        tags=[config.algo.name, config.env.id],
        offline=offline,
    )
    typer.echo(f"{len(lines)} lines: `wandb sync {where}` uploads them" if offline else f"{len(lines)} lines: {where}")
