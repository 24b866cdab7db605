"""The loop's logger: a record, a console and mirrors behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rlx.clock import Clock
    from rlx.metrics import MetricBuffer
    from rlx.store.record import Record
    from rlx.types import Progress


class Console(Protocol):
    """The output on the terminal while a run trains."""

    def line(self, line: Mapping[str, Any], progress: Progress) -> None: ...

    def tick(self, progress: Progress, metrics: MetricBuffer, clock: Clock) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


class Mirror(Protocol):
    """A copy of the record elsewhere. Its methods never raise."""

    def rewind(self, env_steps: int) -> None:
        """Called once before the first line: the run continues from env_steps, and the record was cut there."""
        ...

    def write(self, line: Mapping[str, Any]) -> None: ...

    def close(self, *, exit_code: int) -> None: ...


class NullMirror:
    def rewind(self, env_steps: int) -> None:
        pass

    def write(self, line: Mapping[str, Any]) -> None:
        pass

    def close(self, *, exit_code: int) -> None:
        pass


class RunLogger:
    """The loop's logger: the record first, then its copies."""

    def __init__(
        self,
        record: Record,
        console: Console,
        mirrors: Sequence[Mirror],
        keep_trace: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.record, self.console, self.mirrors, self._keep_trace = record, console, mirrors, keep_trace

    def write(self, line: Mapping[str, float], progress: Progress) -> None:
        full = {"env_steps": progress.env_steps, "iteration": progress.iteration, **line}
        self.record.write(full)
        self.console.line(full, progress)
        for mirror in self.mirrors:
            mirror.write(full)

    def rewind(self, env_steps: int, *, evaluated: bool) -> None:
        damage = self.record.rewind(env_steps, evaluated=evaluated)
        if damage:
            self.console.note(f"warning: {damage}")
        for mirror in self.mirrors:
            mirror.rewind(env_steps)

    def note(self, text: str, *, trace: str = "") -> None:
        self.console.note(text)
        if trace:
            self._keep_trace(f"{text}\n{trace}")

    def tick(self, progress: Progress, metrics: MetricBuffer, clock: Clock) -> None:
        self.console.tick(progress, metrics, clock)

    def sync(self) -> None:
        self.record.sync()
