"""Writing files so that a power cut leaves the old or the new, never a torn one."""

from __future__ import annotations

import os
from pathlib import Path

from rlx.errors import StorageError


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, data: bytes) -> None:
    """Replace a file's content in one step: a reader sees the old or the new, also after a power cut."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        write_durably(temporary, data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{path} could not be written ({error.strerror}); free some space and `rlx resume` the run") from error


def sync_directory(path: Path) -> None:
    """Wait until a directory's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
