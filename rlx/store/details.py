"""Everything that `rlx show` prints about one run: row, settings, checkpoints, evaluations and last metrics. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlx.checkpoint import Checkpoint, best_checkpoint, read_manifest
from rlx.config.algo_registry import ALGORITHMS
from rlx.config.algos.base_config import AlgoConfig
from rlx.config.saved import leaf_keys, load_config
from rlx.config.schema import RunConfig
from rlx.errors import CheckpointError
from rlx.files import is_directory, is_temporary
from rlx.segments import DIRECTORY
from rlx.store.evaluations import read_evaluations
from rlx.store.rows import RunRow, read_row
from rlx.store.runs import RunDir

_VERIFY_BYTES = 200_000_000  # a larger checkpoint is not read only to be shown


@dataclass(kw_only=True)
class CheckpointRow:
    """One checkpoint in a list."""

    name: str
    bytes: int
    """Of all that it needs; of a replay's rows, checkpoints share most."""
    env_steps: int | None = None
    score: float | None = None
    """Mean return of its evaluation; None if it was not evaluated."""
    exact: bool | None = None
    """Whether a run resumes from it exactly."""
    why_not_exact: str | None = None
    damage: str | None = None
    """Why it cannot be used."""
    best: bool = False


@dataclass(kw_only=True)
class RunDetails(RunRow):
    """One run in full."""

    path: str
    meta: dict[str, Any]
    """Its meta.json."""
    problems: list[str]
    """Everything that is wrong with it, one sentence each."""
    resumable: bool
    """Whether its configuration can be read."""
    differences: dict[str, Any]
    """Settings that are not the defaults."""
    checkpoints: list[CheckpointRow]
    """Newest first."""
    metrics: dict[str, Any]
    """The newest value of every metric."""
    notes: str
    evaluations: list[dict[str, Any]]
    """Results of `rlx eval`, oldest first."""


def run_details(run: RunDir, lines: list[dict[str, Any]]) -> RunDetails:
    """Read a run as far as it can be read.

    Args:
        run: the run.
        lines: of its metrics.jsonl.
    """
    row = read_row(run)
    problems = [row.problem.partition(": see")[0]] if row.problem else []
    if run.segments and run.segments[-1].get("error"):
        problems.append(str(run.segments[-1]["error"]))
    differences, resumable = {}, True
    try:
        differences = settings_changed(run)
        problems += [f"config.yaml is not what was started: {', '.join(changes)}" for changes in [run.changes()] if changes]
    except ValueError as error:  # a ConfigError, or text that is none
        problems, resumable = [*problems, str(error)], False
    evaluations = read_evaluations(run.path)
    if evaluations.num_skipped:
        problems.append(f"{evaluations.num_skipped} lines of evaluations.jsonl cannot be read and are left out")
    if evaluations.problem:
        problems.append(evaluations.problem)
    return RunDetails(
        **{**vars(row), "problem": "; ".join(problems) or None},
        path=str(run.path),
        meta=run.meta(),
        problems=problems,
        resumable=resumable,
        differences=differences,
        checkpoints=checkpoint_rows(run.checkpoints),
        metrics=_last_values(lines),
        notes=run.labels.notes,
        evaluations=evaluations.good,
    )


def settings_changed(run: RunDir) -> dict[str, Any]:
    """The settings of a run that are not the defaults of the schema, but for the environment's id.

    Raises:
        ConfigError: if config.yaml cannot be read.
    """
    config = load_config(run.path / "config.yaml")
    known = ALGORITHMS.get(config.algo.name)
    default = RunConfig.defaults(known.config() if known else AlgoConfig())
    mine, theirs = map(leaf_keys, (config, default))
    return {k: v for k, v in mine.items() if k != "env.id" and (k not in theirs or theirs[k] != v)}


def checkpoint_rows(directory: Path) -> list[CheckpointRow]:
    """One row for each checkpoint in a run's checkpoints/, newest first. Files of moderate size are compared with their digests."""
    rows, whole = [], []
    there = directory.iterdir() if is_directory(directory) else ()
    for path in sorted((p for p in there if is_directory(p) and not is_temporary(p.name) and p.name != DIRECTORY), reverse=True):
        row = CheckpointRow(name=path.name, bytes=sum(p.lstat().st_size for p in path.iterdir()))
        rows.append(row)
        if not path.name.isdigit():
            row.damage = "found damaged and put aside" if ".damaged-" in path.name else "not a checkpoint"
            continue
        try:
            checkpoint = Checkpoint(path, read_manifest(path))
            row.env_steps, row.exact, row.why_not_exact = map(checkpoint.manifest.get, ("env_steps", "exact", "why_not_exact"))
            row.bytes += sum(segment.bytes for segment in checkpoint.segments)
            row.score = checkpoint.score if math.isfinite(checkpoint.score) else None
            if row.bytes <= _VERIFY_BYTES:
                checkpoint.verify()
            whole.append(checkpoint)
        except CheckpointError as error:
            row.damage = str(error).removeprefix(str(path)).lstrip("/ ").partition(":")[0]
    if (best := best_checkpoint(whole)) is not None:
        for row in rows:
            row.best = row.name == best.path.name
    return rows


def _last_values(lines: list[dict[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for line in lines:
        values |= line
    return {name: value for name, value in sorted(values.items()) if "/" in name}
