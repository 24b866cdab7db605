"""rlx export."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlx.cli.complete import complete_checkpoints, complete_runs
from rlx.cli.options import Trust, echo

if TYPE_CHECKING:
    from rlx.store.runs import RunDir


class Format(Enum):
    onnx = "onnx"
    torchscript = "torchscript"
    csv = "csv"


def export(
    run: Annotated[str, typer.Argument(help="Name or path of a run, or latest.", autocompletion=complete_runs)] = "latest",
    kind: Annotated[Format, typer.Option("--format", help="onnx or torchscript: the policy. csv: the metrics.")] = Format.onnx,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write; the default is exports/ in the run's directory, and stdout for csv."),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="best, latest, or the env steps of one.", autocompletion=complete_checkpoints)] = "latest",
    trust: Trust = False,
) -> None:
    """Write a trained policy, or a run's metrics, for other programs.

    The policy's graph takes observations and gives actions as the environment has them, B at a time. Normalisation, the most likely
    action, and clipping or rescaling to the action space are inside.

    Examples:

      rlx export

      rlx export lander --format torchscript --checkpoint best -o lander.pt

      rlx export lander --format csv > lander.csv
    """
    from rlx.store.layout import runs_directory
    from rlx.store.runs import RunDir

    opened = RunDir.open(runs_directory(), run)
    if kind is Format.csv:
        _csv(opened, out, checkpoint)
        return
    from rlx.api import load
    from rlx.errors import ConfigError
    from rlx.files import make_directory, replace_durably
    from rlx.policy_graph import SUFFIXES, export_policy

    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError(f"-o {out}: there is no directory {out.parent}; make it first")
    policy = load(opened.path, checkpoint=checkpoint, device="cpu", trust=trust)
    data = export_policy(policy, kind.value, run=opened.name)
    if out is None:
        make_directory(opened.path / "exports")
        out = opened.path / "exports" / f"{policy.env_steps}{SUFFIXES[kind.value]}"
    replace_durably(out, data)
    echo(f"{out}: {policy.config.algo.name} on {policy.config.env.id} at {policy.env_steps:,} env steps, {len(data):,} bytes")


def _csv(run: RunDir, out: Path | None, checkpoint: str) -> None:
    from rlx.errors import ConfigError
    from rlx.store.table import save_csv, write_csv

    if checkpoint != "latest":
        raise ConfigError(f"--checkpoint {checkpoint}: --format csv writes the metrics of the whole run; leave it out")
    if out is None:
        write_csv(run.metrics_path, sys.stdout)
    else:
        echo(f"{out}: {save_csv(run.metrics_path, out):,} lines of metrics")
