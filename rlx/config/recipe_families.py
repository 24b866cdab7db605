"""Families of environments that share a recipe: `recipe/ppo_atari.yaml` is for every Atari game without one of its own, and
`recipe/ppo_courses.yaml` for every course of obstacles.
"""

from __future__ import annotations

from rlx.envs.atari.atari_settings import game_of
from rlx.envs.mujoco.course_settings import COURSES


def recipe_family(env_id: str) -> str | None:
    """What a recipe calls an environment's family."""
    if env_id.startswith("MinAtar/"):
        return "minatar"
    if env_id in COURSES:
        return "courses"
    return "atari" if game_of(env_id) else None
