"""Deleting runs and sweeps. Refused: directories that are in use, links, and directories that may be no run."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from rlx.errors import ConfigError, StorageError
from rlx.files import UnreadableError, is_directory, read_json
from rlx.store.layout import SPEC, is_sweep, members
from rlx.store.lock import is_locked, locked
from rlx.store.references import find_directories


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A run or sweep that can be deleted."""

    path: Path
    num_runs: int | None
    """Of a sweep; None for a run."""
    num_bytes: int
    """Of its files, without what links lead to."""


def find_removals(root: Path, references: list[str]) -> list[Removal]:
    """The runs and sweeps that references mean, each once, checked.

    Raises:
        ConfigError: if one does not exist, is a link, is in use, or is not known to be a run or sweep.
    """
    paths = dict.fromkeys(path for reference in references for path in find_directories(root, reference))
    resolved = {path.resolve(): path for path in paths}
    kept = [path for path in paths if not any(parent in resolved for parent in path.resolve().parents)]
    return [_checked(root, path) for path in dict.fromkeys(resolved[path.resolve()] for path in kept)]


def remove(removal: Removal) -> None:
    """Delete a run or sweep. It is renamed first, so that no half of it is listed; the next new run cleans up after a kill.

    Raises:
        ConfigError: if it has come into use.
        StorageError: if it cannot be deleted, or not as a whole.
    """
    path = removal.path
    hidden = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with locked(path, refusal=_in_use(path)):
        _refuse_running(members(path) if removal.num_runs is not None else [])
        try:
            path.rename(hidden)
            shutil.rmtree(hidden)  # which unlinks links, and does not follow them
        except OSError as error:
            where = hidden if os.path.lexists(hidden) else path
            raise StorageError(f"{where} cannot be deleted ({error.strerror}: {error.filename or path}); remove it by hand") from error


def _checked(root: Path, path: Path) -> Removal:
    if path.is_symlink() or not is_directory(path):
        raise ConfigError(f"{path} is a link; rlx deletes no run through a link: name the directory that it leads to, or `rm` the link")
    real = path.resolve()
    for inside in (root, Path.cwd()):
        if inside.resolve().is_relative_to(real):
            raise ConfigError(f"{path} contains {inside}, and is no run to delete")
    if not real.is_relative_to(root.resolve()) and not _has_record(path):
        raise ConfigError(f"{path} has neither a meta.json nor a {SPEC} of rlx and is not in {root}: it may be no run; delete it by hand")
    inner = members(path) if is_sweep(path) else []
    _refuse_running([path, *inner])
    return Removal(path=path, num_runs=len(inner) if is_sweep(path) else None, num_bytes=_size(path))


def _refuse_running(directories: list[Path]) -> None:
    for directory in directories:
        if is_locked(directory):
            raise ConfigError(_in_use(directory))


def _in_use(directory: Path) -> str:
    return f"{directory} is in use by a process that trains it; stop that first, with Ctrl-C or SIGTERM"


def _has_record(path: Path) -> bool:
    """Whether rlx wrote the directory's meta.json or sweep.json."""
    for name, key in (("meta.json", "versions"), (SPEC, "format")):
        try:
            if key in read_json(path / name):
                return True
        except UnreadableError:
            continue
    return False


def _size(path: Path) -> int:
    return sum((Path(folder) / name).lstat().st_size for folder, _, names in os.walk(path) for name in names)
