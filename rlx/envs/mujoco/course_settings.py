"""Settings of the courses, checked without MuJoCo or gymnasium, which take a moment to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlx.envs.grids.grid_settings import is_count, require, settings_from
from rlx.errors import ConfigError

COURSES = {
    "rlx/Hurdles-v0": "hurdles",
    "rlx/Gaps-v0": "gaps",
    "rlx/Platforms-v0": "platforms",
    "rlx/Stairs-v0": "stairs",
    "rlx/Rumble-v0": "rumble",
    "rlx/Mixed-v0": "mixed",
    "rlx/Slalom-v0": "slalom",
}
"""Their ids, with the kind of course."""
BODIES = ("walker", "ant", "humanoid")
MAX_EPISODE_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class CourseSettings:
    body: str = "walker"
    """walker, ant or humanoid: the bodies of Walker2d-v5, Ant-v5 and Humanoid-v5. Only ant and humanoid can run a slalom."""
    curriculum: str = "course"
    """course: obstacles become harder with their distance from the start; none: each is as hard as a random one of the range."""
    easiest: float = 0.15
    """Difficulty of the first obstacle, 0 (flat ground) to 1; with curriculum=none the least one."""
    hardest: float = 1.0
    """Difficulty from `ramp` metres on, at least `easiest` and at most 1; with curriculum=none the greatest one."""
    ramp: float | None = None
    """Metres over which difficulty grows from easiest to hardest, above 0; null is 25 for walker, 60 for ant, 40 for humanoid."""
    sight: bool = True
    """Observe the heights of the ground ahead, as the part `terrain`; false leaves it out."""
    reward: str = "gymnasium"
    """gymnasium: speed, a bonus for not falling and the price of the action, as in Walker2d-v5, Ant-v5 and Humanoid-v5; heess: those of
    Heess et al. 2017."""
    max_episode_steps: int = MAX_EPISODE_STEPS
    """Env steps after which an episode is cut, at least 1."""

    def __post_init__(self) -> None:
        require(self.body in BODIES, "body", "walker, ant or humanoid", self.body)
        require(self.curriculum in ("course", "none"), "curriculum", "course or none", self.curriculum)
        for name, least in (("easiest", 0.0), ("hardest", self.easiest)):
            value = getattr(self, name)
            require(_is_number(value) and least <= value <= 1.0, name, f"a number from {least:g} to 1", value)
        require(self.ramp is None or (_is_number(self.ramp) and 0.0 < self.ramp <= 1e6), "ramp", "a number above 0, or null", self.ramp)
        require(self.ramp is None or self.curriculum == "course", "ramp", "left out where curriculum=none", self.ramp)
        require(isinstance(self.sight, bool), "sight", "true or false", self.sight)
        require(self.reward in ("gymnasium", "heess"), "reward", "gymnasium or heess", self.reward)
        require(is_count(self.max_episode_steps, 1), "max_episode_steps", "a whole number, at least 1", self.max_episode_steps)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def course_settings(env_id: str, kwargs: Mapping[str, Any]) -> CourseSettings:
    """The settings. Raises a ConfigError for an unknown one, or a value that is out of range or does not suit the course."""
    settings = settings_from(CourseSettings, env_id, kwargs)
    if COURSES[env_id] == "slalom" and settings.body == "walker":
        raise ConfigError(
            f"env={env_id} goes round walls, which env.body=walker cannot: it moves in a plane; choose env.body=ant or humanoid"
        )
    return settings


def register() -> None:
    """Register the courses with gymnasium, so that `gymnasium.make` finds them."""
    import gymnasium

    for env_id in COURSES:
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, entry_point="rlx.envs.mujoco.course_env:CourseEnv", kwargs={"course": env_id})
