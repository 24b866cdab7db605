"""Advice for a misspelt choice."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from rlx.errors import ConfigError


def did_you_mean(word: str, options: list[str], *, key: str = "") -> str:
    """Advice: the nearest option, or all of them."""
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.65)
    return f"did you mean {key}{near[0]}?" if near else f"expected one of {', '.join(options)}"


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Raise a ConfigError that names the nearest choice unless a value is one of them."""
    if value not in choices:
        raise ConfigError(f"{option}{'' if option.endswith('=') else ' '}{value}: {did_you_mean(value, list(choices))}")
