"""The changes that `rlx probe` can make: their names, values and meanings. Imports no torch; `probes.py` makes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlx.config.choices import check_choice, did_you_mean
from rlx.envs.mujoco.course_settings import COURSES
from rlx.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One kind of change."""

    name: str
    label: str
    """With {} for the value."""
    meaning: str
    values: tuple[float | str, ...]
    """Those of the panel, or where there are none, of a probe that is named without a value."""
    low: float = 0.01
    high: float = 100.0
    in_panel: bool = True
    whole: bool = False
    choices: tuple[str, ...] = ()
    """Of the values, where they are words instead of numbers."""

    @property
    def example(self) -> str:
        """Its usual values as they are typed."""
        return ",".join(v if isinstance(v, str) else f"{v:g}" for v in self.values)

    def check(self, value: float) -> None:
        """Raise a ConfigError unless the value makes sense."""
        if not (self.low <= value <= self.high) or (self.whole and value != int(value)):
            kind = "a whole number" if self.whole else "a number"
            raise ConfigError(f"--probe {self.name}={value:g}: expected {kind} from {self.low:g} to {self.high:g}, "
                              f"e.g. --probe {self.name}={self.example}")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One probe with its value."""

    probe: Probe
    value: float | str

    @property
    def label(self) -> str:
        if isinstance(self.value, str):
            return self.probe.label.format(self.value)
        return self.probe.label.format(f"{self.value:+g}" if self.probe.low < 0 else f"{self.value:g}")


PROBES = {
    probe.name: probe
    for probe in (
        Probe(name="friction", label="friction × {}", meaning="sliding, torsional and rolling friction of every geom",
              values=(0.3, 0.6, 1.5)),
        Probe(name="mass", label="mass × {}", meaning="mass and inertia of every body",
              values=(0.8, 1.25, 1.5)),
        Probe(name="gravity", label="gravity × {}", meaning="the strength of gravity",
              values=(0.8, 1.2)),
        Probe(name="length", label="length × {}", meaning="the length of the pole, whose mass stays the same",
              values=(0.8, 1.5)),
        Probe(name="incline", label="incline {}°", meaning="a ground that rises along x by this angle, as tilted gravity",
              values=(-6.0, -3.0, 3.0, 6.0), low=-45.0, high=45.0),
        Probe(name="rumble", label="rumble to {} m", meaning="boards across the floor every 0.3 m, each 0.4 to 1 times as high as this",
              values=(0.05,), low=0.001, high=1.0),
        Probe(name="terrain", label="terrain {}", meaning="a course of obstacles, new in each episode, in place of the ground",
              values=("hurdles", "rumble"), choices=tuple(COURSES.values())),
        Probe(name="motor", label="motor × {}", meaning="the force of every actuator for the same action",
              values=(0.8, 1.2)),
        Probe(name="push", label="push {} m/s",
              meaning="every 50 steps, a change of the body's velocity along the ground in a random direction",
              values=(0.5, 1.0), low=0.0, high=100.0),
        Probe(name="obs_noise", label="observation noise {} σ", meaning="Gaussian noise on each number of the observations, in standard "
              "deviations of that number in the nominal episodes", values=(0.1, 0.3), low=0.0, high=100.0),
        Probe(name="action_noise", label="action noise {}", meaning="Gaussian noise on continuous actions, in halves of their range",
              values=(0.1, 0.3), low=0.0, high=100.0),
        Probe(name="delay", label="action delay {}", meaning="actions are taken this many steps late; at first, the first one is",
              values=(1.0,), low=1, high=1000, whole=True),
        Probe(name="sticky", label="sticky {}", meaning="the action taken last is repeated with this probability",
              values=(0.25,), low=0.0, high=1.0),
        Probe(name="random_action", label="random action {}", meaning="a discrete action is replaced by a random one with this probability",
              values=(0.05, 0.2), low=0.0, high=1.0),
        Probe(name="action_scale", label="action × {}", meaning="the distance of continuous actions from the middle of their range",
              values=(0.8,), in_panel=False),
    )
}  # fmt: skip
PANEL = "panel"
"""Stands for all rows that `rlx probe` plays by itself."""


def panel() -> list[Row]:
    """The rows that are played where none is chosen."""
    return [Row(probe, value) for probe in PROBES.values() if probe.in_panel for value in probe.values]


def chosen(words: Sequence[str]) -> list[Row]:
    """The rows that words such as `friction`, `friction=0.6,0.8` and `panel` mean, each once; of none, the panel.

    Raises:
        ConfigError: for an unknown probe, or a value that makes no sense.
    """
    rows = [row for word in words for row in _rows(word)] if words else panel()
    return list({(row.probe.name, row.value): row for row in rows}.values())


def _rows(word: str) -> list[Row]:
    name, equals, values = word.partition("=")
    if name == PANEL and not equals:
        return panel()
    if name not in PROBES:
        raise ConfigError(f"--probe {word}: no such probe; {did_you_mean(name, [*PROBES, PANEL], key='--probe ')}")
    probe = PROBES[name]
    if not equals:
        return [Row(probe, value) for value in probe.values]
    rows = []
    for text in values.split(","):
        if probe.choices:
            check_choice(f"--probe {name}=", text, probe.choices)
            rows.append(Row(probe, text))
            continue
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(f"--probe {word}: expected numbers after the =, e.g. --probe {name}={probe.example}")
        probe.check(value)
        rows.append(Row(probe, value))
    return rows
