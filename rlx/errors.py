"""The errors a user can cause or meet, each with its exit code.

Every message says what was got, what was expected and what to type next. Anything that is not an `RlxError` is a bug in rlx.

Exit codes: 0 done; 1 a bug; 2 usage or configuration; 3 training became non-finite; 4 a checkpoint cannot be used;
5 an environment or a plug-in failed; 6 the disk refused a write; 7 W&B cannot be reached; 8 some runs of a sweep failed; 9 memory ran out;
10 another rank of the run failed; 130 and 143 stopped by SIGINT and SIGTERM after saving; 141 nobody reads the output any more.
"""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_INSTALLED = (str(Path(__file__).parent), sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), sysconfig.get_path("stdlib"))


def user_line(error: BaseException) -> str:
    """File and line of the innermost frame of an exception that is of the user's code, or else of a package; "" if all are rlx's."""
    others = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((_INSTALLED[0], "<"))]
    frames = [f for f in others if not f.filename.startswith(_INSTALLED)] or others
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


class RlxError(Exception):
    exit_code = 1
    trace: str = ""
    """The traceback of the user's own code that failed, where that is the cause; it may have been raised in another process."""


class ConfigError(RlxError, ValueError):
    """The command line, a YAML file or a run directory asks for something that cannot be."""

    exit_code = 2


class NoEffectError(ConfigError):
    """A setting is given that has no effect beside the others."""

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class NonFiniteError(RlxError, ArithmeticError):
    """A loss or gradient is NaN or infinite; raised before the optimiser step that would have spread it."""

    exit_code = 3


class CheckpointError(RlxError, ValueError):
    """A checkpoint is missing, damaged, foreign, or does not reproduce the environment it was taken from."""

    exit_code = 4


class EnvError(RlxError, RuntimeError):
    """An environment raised, hung, or lost its worker process."""

    exit_code = 5


class PluginError(RlxError, RuntimeError):
    """The code of a plug-in failed, or returned something that cannot be used."""

    exit_code = 5


class EvaluationError(RlxError, RuntimeError):
    """An evaluation could not be done; what is trained is saved, and training goes on without it."""

    exit_code = 5


class StorageError(RlxError, OSError):
    """The run directory cannot be written."""

    exit_code = 6


class SyncError(RlxError, ConnectionError):
    """W&B cannot be reached or refuses; the record on disk is complete."""

    exit_code = 7


class OutOfMemoryError(RlxError):
    """The machine or the device has no memory left."""

    exit_code = 9


class RankError(RlxError):
    """Another rank of the run has ended, or is no longer equal to this one."""

    exit_code = 10


class LostRankError(RankError):
    """Another rank of the run has ended or cannot be reached, and may have said why."""

    detail: str = ""
    """What torch says."""


class SweepError(RlxError):
    """Some runs of a sweep failed; the others are finished."""

    exit_code = 8
