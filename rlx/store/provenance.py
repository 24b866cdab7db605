"""Which code a run was made with: the commit of the current directory, and what was not committed. Nothing of a repository is executed."""

from __future__ import annotations

import functools
import os
import subprocess
import threading
from pathlib import Path

from rlx.errors import StorageError
from rlx.files import replace_durably

_MOST_BYTES = 1_000_000
_SAFE = ("core.fsmonitor=false", "core.hooksPath=/dev/null", "protocol.allow=never", "core.pager=cat")


def _git(*arguments: str, timeout_s: float) -> bytes | None:
    """Output of git in the current directory; None if there is no git, no repository, or no answer in time."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environment = own | {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}
    options = [word for setting in _SAFE for word in ("-c", setting)]
    try:
        done = subprocess.run(["git", "--no-pager", *options, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=timeout_s, check=True)  # fmt: skip
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return done.stdout


@functools.cache
def commit() -> str | None:
    """The commit that the current directory is at, asked for once in a process."""
    answer = _git("rev-parse", "--verify", "HEAD", timeout_s=1.0)
    return answer.decode("ascii", "replace").strip()[:64] if answer else None


def uncommitted() -> bytes:
    """The changes of tracked files since the commit, cut at a megabyte; empty for a repository with filters of its own.

    `git diff` would run such filters, which are programs.
    """
    filters = _git("config", "--show-scope", "--includes", "--name-only", "--get-regexp", r"^filter\.", timeout_s=1.0) or b""
    if any(line.startswith((b"local", b"worktree")) for line in filters.splitlines()):
        return b""
    changes = _git("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--ignore-submodules=all", "HEAD", timeout_s=10.0) or b""
    return changes if len(changes) <= _MOST_BYTES else changes[:_MOST_BYTES] + b"\n[cut here]\n"


def save_uncommitted(directory: Path) -> threading.Thread:
    """Write the uncommitted changes to code.diff in a run's directory, beside training; a run never fails for it."""

    def save() -> None:
        if commit() is None or not (changes := uncommitted()):
            return
        try:
            replace_durably(directory / "code.diff", changes)
        except (StorageError, OSError):
            return

    thread = threading.Thread(target=save, name="rlx-code", daemon=True)
    thread.start()
    return thread
