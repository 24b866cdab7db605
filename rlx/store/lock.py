"""The lock of a run or sweep: one process at a time trains or drives it. The kernel releases it however the process ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlx.errors import ConfigError, StorageError
from rlx.files import UnreadableError, clean_temporaries, open_inside
from rlx.store.layout import LOCK


def is_locked(directory: Path) -> bool:
    """Whether a process on this machine holds the lock of a directory."""
    try:
        with os.fdopen(open_inside(directory / LOCK, os.O_RDONLY), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def locked(directory: Path, *, refusal: str) -> Iterator[None]:
    """Hold the lock of a directory during the block, and remove first what killed processes were writing there.

    Raises:
        ConfigError: with the refusal, if another process holds it.
        StorageError: if the directory cannot be written.
    """
    try:
        file = os.fdopen(open_inside(directory / LOCK, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")
    except OSError as error:
        said = f"{error}: remove it" if isinstance(error, UnreadableError) else f"{directory} cannot be written ({error.strerror})"
        raise StorageError(said) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(refusal) from None
        clean_temporaries(directory)
        yield
