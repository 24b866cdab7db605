"""Lists of the algorithms and environments, with their recipes and the packages that they need."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from rlx.config import algo_registry
from rlx.config.algo_registry import ALGORITHMS
from rlx.config.compose import Composer
from rlx.config.documentation import key_docs
from rlx.envs.atari.atari_settings import game_of
from rlx.envs.families import needs, register_installed
from rlx.envs.native import NATIVE
from rlx.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AlgorithmRow:
    """One algorithm in a list."""

    name: str
    summary: str
    suits: str
    """The environments that it can train on."""
    settings: int
    """How many settings it has."""


@dataclass(frozen=True, kw_only=True)
class EnvironmentRow:
    """One environment in a list."""

    name: str
    """What `env=` takes."""
    id: str
    """What gymnasium calls it."""
    recipes: list[str]
    """The algorithms that have a recipe for it."""
    native: bool
    """Whether rlx has an implementation of its own."""
    missing: str | None
    """The command that installs what it needs; None if it is ready."""


def algorithms() -> list[AlgorithmRow]:
    """Every algorithm."""
    return [_row(name) for name in algo_registry.algorithm_names()]


def _row(name: str) -> AlgorithmRow:
    try:
        suits = ", ".join(kind.value for kind in algo_registry.algorithm(name).config.suits)
        return AlgorithmRow(name=name, summary=algo_registry.summary(name), suits=suits, settings=len(key_docs(name, group="algo")))
    except ConfigError:
        return AlgorithmRow(name=name, summary=algo_registry.summary(name), suits="", settings=0)


def environments(composer: Composer, pattern: str = "") -> list[EnvironmentRow]:
    """The environments that have a short name; with a pattern, all environments of gymnasium whose name contains it.

    Raises:
        ConfigError: if no environment contains the pattern.
    """
    word, short = pattern.lower(), composer.env_ids()
    rows = [
        EnvironmentRow(name=name, id=id_, recipes=_recipes(composer, name, id_), native=_is_native(id_), missing=needs(id_))
        for name, id_ in short.items()
        if word in name.lower() or word in id_.lower()
    ]  # fmt: skip
    if word:
        rows += [
            EnvironmentRow(name=id_, id=id_, recipes=_recipes(composer, id_, id_), native=_is_native(id_), missing=command)
            for id_, command in _gymnasium_ids(word).items()
            if id_ not in short.values()
        ]
    if not rows:
        raise ConfigError(
            f"{pattern}: no environment has that in its name; `rlx envs` lists those with a short name, "
            "env=my_module:MyEnv-v0 imports my_module first"
        )
    return rows


def _recipes(composer: Composer, name: str, env_id: str) -> list[str]:
    return [algo for algo in ALGORITHMS if composer.usual_recipe(algo, name, env_id)]


def _is_native(env_id: str) -> bool:
    return env_id in NATIVE or game_of(env_id) is not None


def _gymnasium_ids(word: str) -> dict[str, str | None]:
    """Newest version of every registered id with `word` in it, and what to install for it."""
    import gymnasium

    absent = register_installed(word)
    newest: dict[tuple[str | None, str], Any] = {}
    for spec in gymnasium.registry.values():
        is_stub = not isinstance(spec.entry_point, str) and spec.namespace != "dm_control"  # a function that only raises
        if not is_stub and word in spec.id.lower():
            key = (spec.namespace, spec.name)
            newest[key] = max(newest.get(key, spec), spec, key=lambda s: s.version or 0)
    needs_jax = None if find_spec("jax") else "pip install jax"
    ids = {s.id: needs_jax if s.namespace in ("phys2d", "tabular") else needs(s.id) for s in newest.values()}
    ids.update({family.pattern: family.install for family in absent})
    return dict(sorted(ids.items()))
