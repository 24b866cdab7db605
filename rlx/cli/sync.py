"""rlx sync."""

from __future__ import annotations

from typing import Annotated

import typer

from rlx.cli.complete import complete_runs_and_sweeps
from rlx.cli.options import echo


def sync(
    run: Annotated[
        str, typer.Argument(help="Name or path of a run or a sweep, or latest.", autocompletion=complete_runs_and_sweeps)
    ] = "latest",
    project: Annotated[str | None, typer.Option(help="W&B project. (default: that of the run's configuration)")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Write a directory for `wandb sync` instead of uploading.")] = False,
) -> None:
    """Upload a run to Weights & Biases from its metrics.jsonl, or every run of a sweep.

    Each sync makes a new W&B run, because W&B keeps the first value of a step. Copies have the group of the run or sweep; delete the
    ones that you do not need.

    Examples:

      rlx sync

      rlx sync lander --project landing
    """
    from rlx.render.numbers import count
    from rlx.store.layout import runs_directory
    from rlx.uploads import runs_to_upload, upload_run

    for opened in runs_to_upload(runs_directory(), run):
        done = upload_run(opened, project=project, offline=offline)
        if done.problem:
            echo(f"warning: {opened.metrics_path}: {done.problem}", err=True)
        head = f"{done.name}: {count(done.num_lines, 'line')}"
        echo(f"{head}: `wandb sync {done.where}` uploads them" if offline else f"{head}: {done.where}")
