"""Settings of the spaceship, checked without gymnasium, which takes a moment to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlx.envs.grids.grid_settings import is_count, require, settings_from

SPACESHIP = "rlx/Spaceship-v0"
"""Its id."""


@dataclass(frozen=True, kw_only=True)
class SpaceshipSettings:
    num_actions: int = 1
    """Thrusts of an episode, J, 1 to 100; each is followed by 11 steps without thrust."""
    gravity: float = 2.0
    """The constant of gravity, 0 to 100. From 4 on, flying straight at the goal is no better than drifting."""
    noise: float = 0.02
    """Standard deviation of the factor that every thrust is multiplied with, whose mean is 1; 0 to 1."""
    fuel_price: float = 4e-4
    """Reward lost for each unit of thrust above 8, 0 to 1."""

    def __post_init__(self) -> None:
        require(is_count(self.num_actions, 1, 100), "num_actions", "a whole number from 1 to 100", self.num_actions)
        for name, most in (("gravity", 100), ("noise", 1), ("fuel_price", 1)):
            value = getattr(self, name)
            valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
            require(valid, name, f"a number from 0 to {most}", value)


def spaceship_settings(kwargs: Mapping[str, Any]) -> SpaceshipSettings:
    """The settings. Raises a ConfigError for an unknown one, or a value that is out of range."""
    return settings_from(SpaceshipSettings, SPACESHIP, kwargs)
