"""Families of environments that share a recipe: `recipe/ppo_atari.yaml` is for every Atari game without one of its own."""

from __future__ import annotations

from rlx.envs.atari.atari_settings import game_of


def recipe_family(env_id: str) -> str | None:
    """What a recipe calls an environment's family."""
    if env_id.startswith("MinAtar/"):
        return "minatar"
    return "atari" if game_of(env_id) else None
