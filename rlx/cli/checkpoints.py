"""The checkpoints of a run, as `rlx show` lists them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rlx.files import is_directory, is_temporary

_VERIFY_BYTES = 200_000_000  # larger checkpoints are not read only to be shown


def read_checkpoints(directory: Path) -> list[dict[str, Any]]:
    """What is in a run's checkpoints/, newest first, without torch; files of moderate size are compared with their digests."""
    from rlx.checkpoint import Checkpoint, best_checkpoint, read_manifest
    from rlx.errors import CheckpointError

    rows, whole = [], []
    there = directory.iterdir() if is_directory(directory) else ()
    for path in sorted((p for p in there if is_directory(p) and not is_temporary(p.name)), reverse=True):
        row: dict[str, Any] = {"name": path.name, "bytes": sum(p.lstat().st_size for p in path.iterdir())}
        row |= dict.fromkeys(("env_steps", "score", "exact", "why_not_exact", "damage"))
        rows.append(row)
        if not path.name.isdigit():
            row["damage"] = "found damaged and put aside" if ".damaged-" in path.name else "not a checkpoint"
            continue
        try:
            checkpoint = Checkpoint(path, read_manifest(path))
            row |= {key: checkpoint.manifest.get(key) for key in ("env_steps", "exact", "why_not_exact")}
            row["score"] = checkpoint.score if math.isfinite(checkpoint.score) else None
            if row["bytes"] <= _VERIFY_BYTES:
                checkpoint.verify()
            whole.append(checkpoint)
        except CheckpointError as error:
            row["damage"] = str(error).removeprefix(str(path)).lstrip("/ ").partition(":")[0]
    best = best_checkpoint(whole)
    return [{**row, "best": best is not None and row["name"] == best.path.name} for row in rows]
