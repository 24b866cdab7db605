"""Settings of the grid worlds, checked without their rules or gymnasium, which take a moment to import."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from rlx.errors import ConfigError


def require(condition: bool, name: str, expected: str, got: Any) -> None:
    if not condition:
        raise ConfigError(f"env.kwargs.{name} must be {expected}, got {got!r}")


def is_count(value: Any, low: int, high: int = 2**31) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of every grid world."""

    max_episode_steps: int = 120
    """Env steps after which an episode is cut; at least 1."""
    observation: str = "planes"
    """planes (zeros and ones, [C, H, W]) or rgb (pictures with 8 pixels to a cell's side)."""

    def __post_init__(self) -> None:
        require(is_count(self.max_episode_steps, 1), "max_episode_steps", "a whole number, at least 1", self.max_episode_steps)
        require(self.observation in ("planes", "rgb"), "observation", "planes or rgb", self.observation)


@dataclass(frozen=True, kw_only=True)
class SokobanSettings(Settings):
    levels: str | None = None
    """A file or a directory of levels in the Boxoban format; null generates a new level for every episode."""
    eval_levels: str | None = None
    """The same for evaluations, which then use all of these; null reserves one in five of all levels for evaluations."""
    size: int | None = None
    """Height and width with the outer walls, 5 to 50; null is 7, or the size of the levels in the files."""
    num_boxes: int | None = None
    """Boxes, as many as goals; null is 1, or the number in each level of the files."""
    pulls: int = 12
    """Pulls for each box by which a level is generated backwards from its solution, 1 to 1000: more make it harder."""
    min_distance: int = 1
    """Least mean distance in cells of generated boxes from their goals, where such a room can be found; more is harder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.levels is None or isinstance(self.levels, str), "levels", "a file, a directory or null", self.levels)
        require(
            self.eval_levels is None or isinstance(self.eval_levels, str), "eval_levels", "a file, a directory or null", self.eval_levels
        )
        require(self.size is None or is_count(self.size, 5, 50), "size", "a whole number from 5 to 50, or null", self.size)
        require(self.num_boxes is None or is_count(self.num_boxes, 1), "num_boxes", "a whole number, at least 1, or null", self.num_boxes)
        require(is_count(self.pulls, 1, 1000), "pulls", "a whole number from 1 to 1000", self.pulls)
        require(is_count(self.min_distance, 1), "min_distance", "a whole number, at least 1", self.min_distance)
        if self.levels is not None:
            for name in ("pulls", "min_distance"):
                require(
                    getattr(self, name) == getattr(SokobanSettings, name),
                    name,
                    "left out where levels come from files",
                    getattr(self, name),
                )
        else:
            size, num_boxes = self.size or 7, self.num_boxes or 1
            most = (size - 2) ** 2 // 6
            require(num_boxes <= most, "num_boxes", f"at most {most} in a generated level of size {size}", num_boxes)
            require(self.min_distance <= size - 4, "min_distance", f"at most {size - 4} in a level of size {size}", self.min_distance)


TASKS = ("regular", "avoid", "hunt", "ambush", "rush")


@dataclass(frozen=True, kw_only=True)
class MiniPacmanSettings(Settings):
    task: str = "regular"
    """regular, avoid, hunt, ambush or rush: the rewards of food, pills, ghosts and death."""
    max_episode_steps: int = 3000
    """Env steps after which an episode is cut; at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.task in TASKS, "task", f"one of {', '.join(TASKS)}", self.task)


S = TypeVar("S")
_SETTINGS: dict[str, type[Settings]] = {"rlx/Sokoban-v0": SokobanSettings, "rlx/MiniPacman-v0": MiniPacmanSettings}
WORLDS = tuple(_SETTINGS)
"""Ids of the grid worlds."""


def settings_of(env_id: str, kwargs: Mapping[str, Any]) -> Settings:
    """The settings of a world.

    Raises:
        ConfigError: for an unknown setting, or a value that is out of range.
    """
    return settings_from(_SETTINGS[env_id], env_id, kwargs)


def settings_from(settings: type[S], env_id: str, kwargs: Mapping[str, Any]) -> S:
    """The settings of an environment, whose class of settings is a dataclass.

    Raises:
        ConfigError: for an unknown setting, or a value that is out of range.
    """
    known = [field.name for field in dataclasses.fields(settings)]  # type: ignore[arg-type]
    for name in kwargs:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean env.kwargs.{near[0]}? " if near else ""
            raise ConfigError(f"env.kwargs.{name}: {env_id} has no such setting; {advice}It has {', '.join(sorted(known))}")
    return settings(**kwargs)


def register() -> None:
    """Register the worlds with gymnasium, so that `gymnasium.make` finds them."""
    import gymnasium

    for env_id, settings in _SETTINGS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(
                env_id,
                entry_point="rlx.envs.grids.grid_env:GridEnv",
                kwargs={"world": env_id},
                max_episode_steps=settings().max_episode_steps,
            )
