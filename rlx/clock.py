"""Time per phase of the loop. All metrics that depend on the clock are logged under `time/`."""

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
        self._logged_steps, self._logged_elapsed, self._logged_evaluate = 0, 0.0, 0.0
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
        """The `time/` metrics of a training line, since the last one."""
        elapsed, evaluate = self.elapsed_s, self.phase_s["evaluate"]
        line = {"time/elapsed_s": elapsed}
        if env_steps > self._logged_steps:
            spent = (elapsed - self._logged_elapsed) - (evaluate - self._logged_evaluate)
            line["time/steps_per_s"] = (env_steps - self._logged_steps) / max(spent, 1e-9)
        line |= {f"time/{phase}_s": self.phase_s[phase] - self._logged[phase] for phase in PHASES if phase != "evaluate"}
        self._logged = {**self.phase_s, "evaluate": self._logged["evaluate"]}
        self._logged_steps, self._logged_elapsed, self._logged_evaluate = env_steps, elapsed, evaluate
        return line

    def evaluation_line(self, env_steps: int) -> dict[str, float]:
        """The `time/` metrics of an evaluation line; joined with the training line of the same step, it changes no value."""
        spent = self.phase_s["evaluate"] - self._logged["evaluate"]
        self._logged["evaluate"] = self.phase_s["evaluate"]
        reached = self._logged_elapsed if env_steps == self._logged_steps else max(self._logged_elapsed, self.elapsed_s - spent)
        return {"time/elapsed_s": reached, "time/evaluate_s": spent}

    def state_dict(self) -> State:
        return {"elapsed_s": self.elapsed_s, "phase_s": dict(self.phase_s), "logged": dict(self._logged),
                "logged_steps": self._logged_steps, "logged_elapsed": self._logged_elapsed,
                "logged_evaluate": self._logged_evaluate}  # fmt: skip

    def load_state_dict(self, state: State) -> None:
        self._before, self._started = state["elapsed_s"], None
        self.phase_s, self._logged = dict(state["phase_s"]), dict(state["logged"])
        self._logged_steps, self._logged_elapsed = state["logged_steps"], state["logged_elapsed"]
        self._logged_evaluate = state.get("logged_evaluate", self.phase_s["evaluate"])  # older checkpoints have none
