"""Which directories are runs and sweeps, and what their files are called. No file is read here."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rlx.files import is_directory, is_temporary

SPEC = "sweep.json"
"""In a sweep's directory: what it sweeps."""
LEDGER = "ledger.jsonl"
"""In a sweep's directory: what happened."""
LOG = "log.txt"
"""In a run's directory: tracebacks; runs of sweeps also write there what they print."""
LOCK = ".lock"
"""In both: held by the process that trains the run or drives the sweep."""

POINT = re.compile(r"\d{3,9}", re.ASCII)
"""Names of points; with a seed they name the runs of a sweep."""
MEMBER = re.compile(r"\d{3,9}-s\d{1,19}", re.ASCII)
"""Names of the runs of a sweep."""


def runs_directory() -> Path:
    """Where runs are kept: $RLX_RUNS_DIR, or runs/ in the current directory."""
    return Path(os.environ.get("RLX_RUNS_DIR") or "runs").expanduser()


def is_run(path: Path) -> bool:
    """Whether a directory is a run; what it holds may still be unreadable."""
    return any(os.path.lexists(path / name) for name in ("meta.json", "config.yaml"))


def is_sweep(path: Path) -> bool:
    """Whether a directory is a sweep; what it holds may still be unreadable."""
    return not path.name.startswith(".") and os.path.lexists(path / SPEC)


def members(sweep: Path) -> list[Path]:
    """The directories of a sweep's runs, in order; links and directories of other names are left out."""
    return sorted(p for p in sweep.iterdir() if MEMBER.fullmatch(p.name) and is_directory(p) and is_run(p))


def is_unborn(path: Path) -> bool:
    """Whether a directory is empty but for temporary files: a process was killed before it wrote the first file."""
    try:
        return is_directory(path) and all(map(is_temporary, os.listdir(path)))
    except OSError:
        return False
