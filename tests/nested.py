"""Settings of an algorithm in tests, without writing out which are nested."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from rlx.config.algos.base_config import AlgoConfig

C = TypeVar("C", bound=AlgoConfig)


def settings_of(config: type[C], /, **given: Any) -> C:
    """The settings of an algorithm; those of `search` and `planner` are given by their own names, e.g. num_simulations=4."""
    usual = config()
    for group in [f.name for f in fields(usual) if is_dataclass(getattr(usual, f.name))]:
        inner = getattr(usual, group)
        own = {f.name: given.pop(f.name) for f in fields(inner) if f.name in given and f.name not in {g.name for g in fields(usual)}}
        if own:
            given[group] = type(inner)(**own)
    return config(**given)
