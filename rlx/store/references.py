"""From what a user calls runs and sweeps (names, paths, patterns, latest) to their directories."""

from __future__ import annotations

import difflib
import fnmatch
from pathlib import Path

from rlx.errors import ConfigError
from rlx.store.layout import is_run, is_sweep
from rlx.store.runs import RunDir, list_runs


def find_directories(root: Path, reference: str) -> list[Path]:
    """The directories of runs and sweeps that a reference means.

    Args:
        root: the directory of runs.
        reference: a name in it, sweep/name, a path, `latest`, or a pattern of names with * ? [.

    Raises:
        ConfigError: if there is none.
    """
    if reference == "latest":
        return [RunDir.open(root, "latest").path]
    if any(c in reference for c in "*?["):
        base, _, pattern = reference.rpartition("/")
        there = [p for p in (root / base).glob("*") if is_run(p) or is_sweep(p)]
        found = sorted(p for p in there if fnmatch.fnmatch(p.name, pattern))
        if not found:
            raise ConfigError(f"{reference}: no run or sweep in {root / base} matches; `rlx ls` lists them")
        return found
    for path in (root / reference, Path(reference)):
        if is_sweep(path) or is_run(path):
            return [path]
    names = [run.name for run in list_runs(root)] + ([p.name for p in root.iterdir() if is_sweep(p)] if root.is_dir() else [])
    near = difflib.get_close_matches(reference, names, n=1)
    raise ConfigError(f"{reference}: no such run or sweep in {root}; {f'did you mean {near[0]}?' if near else '`rlx ls` lists them'}")
