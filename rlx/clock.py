"""Where the time goes. Everything that depends on the clock is logged under `time/` and nowhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlx.types import State

PHASES = ("collect", "update", "evaluate", "checkpoint")


class Clock:
    """Seconds since the first env step, continuing over resumes, and their split into phases."""

    def __init__(self) -> None:
        self.phase = "start"
        self.phase_s = dict.fromkeys(PHASES, 0.0)  # since the run began
        self._logged = dict(self.phase_s)
        self._logged_steps, self._logged_elapsed = 0, 0.0
        self._before = 0.0
        self._started: float | None = None

    @property
    def elapsed_s(self) -> float:
        return self._before + (time.perf_counter() - self._started if self._started is not None else 0.0)

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Count the block's time under a phase; the first call starts the clock."""
        start = time.perf_counter()
        if self._started is None:
            self._started = start
        self.phase = phase
        try:
            yield
        finally:
            self.phase_s[phase] += time.perf_counter() - start

    def line(self, env_steps: int) -> dict[str, float]:
        """What a log line says of the time since the last one."""
        elapsed = self.elapsed_s
        line = {"time/elapsed_s": elapsed}
        if env_steps > self._logged_steps:
            line["time/steps_per_s"] = (env_steps - self._logged_steps) / max(elapsed - self._logged_elapsed, 1e-9)
        line |= {f"time/{phase}_s": self.phase_s[phase] - self._logged[phase] for phase in PHASES}
        self._logged, self._logged_steps, self._logged_elapsed = dict(self.phase_s), env_steps, elapsed
        return line

    def state_dict(self) -> State:
        return {"elapsed_s": self.elapsed_s, "phase_s": dict(self.phase_s), "logged": dict(self._logged),
                "logged_steps": self._logged_steps, "logged_elapsed": self._logged_elapsed}  # fmt: skip

    def load_state_dict(self, state: State) -> None:
        self._before, self._started = state["elapsed_s"], None
        self.phase_s, self._logged = dict(state["phase_s"]), dict(state["logged"])
        self._logged_steps, self._logged_elapsed = state["logged_steps"], state["logged_elapsed"]
