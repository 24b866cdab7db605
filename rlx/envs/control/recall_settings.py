"""Settings of the recall task, checked without gymnasium, which takes a moment to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlx.envs.grids.grid_settings import is_count, require, settings_from

RECALL = "rlx/Recall-v0"
"""Its id."""


@dataclass(frozen=True, kw_only=True)
class RecallSettings:
    horizon: int = 52
    """Steps of an episode, and symbols shown in it; at least 1."""
    num_symbols: int = 4
    """Kinds of symbols, as many as actions; at least 2."""

    def __post_init__(self) -> None:
        require(is_count(self.horizon, 1, 10_000), "horizon", "a whole number from 1 to 10,000", self.horizon)
        require(is_count(self.num_symbols, 2, 1000), "num_symbols", "a whole number from 2 to 1,000", self.num_symbols)

    @property
    def return_without_memory(self) -> float:
        """The best expected return of a policy that sees the current observation only: the first step is right, the others are guesses."""
        return (1 + (self.horizon - 1) * (2 / self.num_symbols - 1)) / self.horizon


def recall_settings(kwargs: Mapping[str, Any]) -> RecallSettings:
    """The settings. Raises a ConfigError for an unknown one, or a value that is out of range."""
    return settings_from(RecallSettings, RECALL, kwargs)
