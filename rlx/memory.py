"""Free memory, to refuse settings that cannot fit before the system kills the process."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rlx.errors import ConfigError

_REFUSALS = ("can't allocate memory", "not enough memory", "out of memory", "size calculation overflowed", "invalid buffer size")


def free_bytes() -> int | None:
    """Memory that this process could still get, within the limit of its cgroup, if its ranks take equal parts; None if unknown."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return None
    with contextlib.suppress(OSError, ValueError):
        most, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, max(0, most - used))
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return free // max(1, int(ranks)) if ranks.isdecimal() else free


def check_fits(num_bytes: float, what: str, *, share: float = 1.0, advice: Callable[[float], str] = lambda _: "") -> None:
    """Raise a ConfigError if so many bytes are more than there are.

    Args:
        num_bytes: bytes.
        what: takes them.
        share: part of the free memory that it may take.
        advice: from the fraction of `num_bytes` that would fit, the end of the message.
    """
    free = free_bytes()
    if free is not None and num_bytes > share * free:
        there = f"{what}: that takes {num_bytes / 1e9:,.0f} GB of memory, and {free / 1e9:,.1f} GB are free here"
        raise ConfigError(there + advice(share * free / num_bytes))


@contextlib.contextmanager
def within_memory(what: str, *, limited: bool = True) -> Iterator[None]:
    """Raise a ConfigError about `what` if the block asks for more memory than is free.

    Linux overcommits memory and kills a process that uses it. So the block runs under a limit, unless `limited` is false: a GPU's driver
    maps more than it uses.
    """
    free = free_bytes() if limited and sys.platform == "linux" else None
    with contextlib.ExitStack() as undo:
        if free is not None:
            import resource

            soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            lines = Path("/proc/self/status").read_text().splitlines()
            used = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData")), 0)
            limit = used + free if soft == resource.RLIM_INFINITY else min(soft, used + free)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
            undo.callback(resource.setrlimit, resource.RLIMIT_DATA, (soft, hard))
        try:
            yield
        except (MemoryError, RuntimeError, ValueError) as error:
            if not isinstance(error, MemoryError) and not any(words in str(error).lower() for words in _REFUSALS):
                raise
            there = f"the {free / 1e9:,.1f} GB that are free here" if free is not None else "there is"
            raise ConfigError(f"{what} need more memory than {there}; choose smaller ones") from error
