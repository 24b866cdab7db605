"""A copy of the record as TensorBoard's event files, in a run's tensorboard/; `tensorboard --logdir runs` shows them.

This is the only module that imports tensorboard, and only inside functions.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlx.errors import ConfigError
from rlx.files import make_directory
from rlx.store.record import iterate_metrics

DIRECTORY = "tensorboard"
_FLUSH_S = 5


def check_installed() -> None:
    """Raise a ConfigError if the package for log.tensorboard=true is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("log.tensorboard=true needs a package that is not installed: pip install 'rlx[tensorboard]', or leave it out")


class TensorboardMirror:
    """Writes every number of the record as a scalar at step env_steps. An error of writing ends the copying with one note.

    Args:
        run_dir: of the run.
        note: prints one line.
    """

    def __init__(self, run_dir: Path, note: Callable[[str], None]) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._record, self._note = run_dir / "metrics.jsonl", note
        directory = run_dir / DIRECTORY
        self._is_new = not directory.is_dir() or not any(directory.iterdir())
        make_directory(directory)  # do not follow a link out of the run's directory
        self._writer: Any = EventFileWriter(str(directory), flush_secs=_FLUSH_S)

    def rewind(self, env_steps: int) -> None:
        """Continue from env_steps: later events are purged, and the record's lines of that step are written again.

        The record was rewound already. Where there are no events yet, all of it is written.
        """
        if not self._is_new:
            from tensorboard.compat.proto.event_pb2 import SessionLog

            self._put(env_steps, session_log=SessionLog(status=SessionLog.START))
        for line in iterate_metrics(self._record):
            if self._is_new or line["env_steps"] == env_steps:
                self.write(line)

    def write(self, line: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=key, simple_value=value) for key, value in _scalars(line)]
        self._put(line["env_steps"], summary=Summary(value=values))

    def close(self, *, exit_code: int) -> None:
        if self._writer is not None:
            self._try(self._writer.close)

    def _put(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        if self._writer is not None:
            self._try(lambda: self._writer.add_event(Event(wall_time=time.time(), step=step, **content)))

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # this is only a copy: the record has everything
            self._writer = None
            self._note(f"TensorBoard: stopped ({type(error).__name__}: {error}); nothing is lost, metrics.jsonl is the record")


def _scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in line.items():
        if key != "env_steps" and isinstance(value, int | float) and not isinstance(value, bool):
            yield key, float(value)


def make_tensorboard(run_dir: Path, note: Callable[[str], None]) -> TensorboardMirror | None:
    """The mirror for log.tensorboard=true; None, and a note, where its files cannot be written.

    Raises:
        ConfigError: if TensorBoard is not installed.
    """
    check_installed()
    try:
        return TensorboardMirror(run_dir, note)
    except (OSError, ImportError) as error:
        note(f"TensorBoard: off ({error}); training goes on without it")
        return None
