"""Names, protocols and settings of Atari games, checked without ale-py or gymnasium, which take a moment to import."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rlx.errors import ConfigError

_ID = re.compile(r"ALE/([A-Za-z0-9]+)-v5|([A-Za-z0-9]+)NoFrameskip-v4")


class AtariProtocol(Enum):
    """How a game is played and scored; results under different protocols cannot be compared."""

    v5 = "v5"
    v4 = "v4"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a protocol lays down."""

    sticky: float
    """Probability with which a frame repeats the action of the frame before."""
    noops: int
    """Most frames without an action at the start of an episode, at least 1 of them; 0 for none."""
    fire: bool
    """Press FIRE at the start, in games that have it."""
    lives: bool
    """Report lost lives, which end a return in training."""


RULES = {
    AtariProtocol.v5: Rules(sticky=0.25, noops=0, fire=False, lives=False),
    AtariProtocol.v4: Rules(sticky=0.0, noops=30, fire=True, lives=True),
}
"""v5: Machado et al. 2018, https://arxiv.org/abs/1709.06009. v4: Mnih et al. 2015, as OpenAI's baselines and most libraries have it."""


@dataclass(frozen=True, kw_only=True)
class AtariSettings:
    """What `env.kwargs` takes beside the protocol."""

    frame_stack: int = 4
    """Frames in an observation, the newest last."""
    full_action_space: bool = False
    """Offer all 18 actions instead of those that the game uses."""
    mode: int | None = None
    """A game's mode; null is its default."""
    difficulty: int | None = None
    """A game's difficulty; null is its default."""
    max_frames: int = 108_000
    """Frames after which an episode is cut: half an hour of play."""
    sticky: float | None = None
    """Probability that a frame repeats the action before; null is the protocol's."""

    def __post_init__(self) -> None:
        self._require_count("frame_stack", 1, 64)
        self._require_count("max_frames", 1, 2**31 - 1)
        for name in ("mode", "difficulty"):
            if getattr(self, name) is not None:
                self._require_count(name, 0, 255)
        _require(isinstance(self.full_action_space, bool), "full_action_space", "true or false", self.full_action_space)
        is_number = isinstance(self.sticky, int | float) and not isinstance(self.sticky, bool) and 0 <= self.sticky < 1
        _require(self.sticky is None or is_number, "sticky", "at least 0 and below 1, or null", self.sticky)

    def _require_count(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        is_count = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        _require(is_count, name, f"a whole number from {low} to {high:,}", value)


def _require(condition: bool, name: str, expected: str, got: Any) -> None:
    if not condition:
        raise ConfigError(f"env.kwargs.{name} must be {expected}, got {got!r}")


def game_of(env_id: str) -> str | None:
    """The name of an Atari game with its capitals, such as SpaceInvaders; None for any other id."""
    found = _ID.fullmatch(env_id)
    return found and (found[1] or found[2])


def usual_protocol(env_id: str) -> AtariProtocol:
    """The protocol that an Atari id stands for."""
    return AtariProtocol.v5 if env_id.startswith("ALE/") else AtariProtocol.v4


def atari_settings(env_id: str, kwargs: Mapping[str, Any]) -> AtariSettings:
    """The settings of a game.

    Raises:
        ConfigError: for an unknown setting, or a value that is out of range.
    """
    known = [field.name for field in dataclasses.fields(AtariSettings)]
    for name in kwargs:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean env.kwargs.{near[0]}? " if near else ""
            raise ConfigError(f"env.kwargs.{name}: {env_id} has no such setting; {advice}It has {', '.join(sorted(known))}; "
                              "env.native=false takes those of gymnasium's own environment")  # fmt: skip
    return AtariSettings(**kwargs)
