"""Requests from outside: stop, or save and go on.

Handlers only set a flag that the loop reads between iterations; saving inside a handler could meet half an update.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType

_asked_to_save = False
"""Whether SIGUSR1 came before there was a `SignalHandler`."""


def expect_requests() -> None:
    """Remember a SIGUSR1 until a `SignalHandler` is there, for a process that imports for seconds: by default it would be killed."""
    signal.signal(signal.SIGUSR1, _remember)


def _remember(number: int, frame: FrameType | None) -> None:
    global _asked_to_save
    _asked_to_save = True


class SignalHandler:
    """SIGINT, SIGTERM and SIGHUP stop after the iteration, a second one at once; SIGUSR1 saves and goes on.

    Python lets only the main thread handle signals; in any other thread this handles none.

    Args:
        announce: print on stderr what a first signal does.
    """

    def __init__(self, *, announce: bool = True) -> None:
        self._announce = announce
        self.stopped_by: signal.Signals | None = None
        self._save = self._stop_requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> SignalHandler:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
                self._previous[number] = signal.signal(number, self._stop)
        self._previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._request_save)
        global _asked_to_save
        self._save, _asked_to_save = self._save or _asked_to_save, False
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by is not None:
            if sys.stdout.isatty():
                _say(1, "\x1b[?25h\n")  # the live view hides the cursor
            os._exit(128 + number)
        self.stopped_by = signal.Signals(number)
        if not self._announce:
            return
        _say(2, "\nstopping after this iteration; once more stops at once, without saving\n")
        _say(1, "")  # a terminal that hung up refuses even that

    def _request_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True

    def request_stop(self) -> None:
        """Stop after the iteration, as for a signal."""
        self._stop_requested = True

    def should_stop(self) -> bool:
        return self._stop_requested or self.stopped_by is not None

    def should_save(self) -> bool:
        requested, self._save = self._save, False
        return requested


def _say(descriptor: int, text: str) -> None:
    """Write at once. After a hangup, redirect the descriptor to /dev/null: an error would end training unsaved."""
    try:
        os.write(descriptor, text.encode())
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
