"""Numbers as people write them: 1e6 is a whole number, 1.5 is none, and nothing has more than 64 bits."""

from __future__ import annotations

import math
import re
from typing import Any

from omegaconf import IntegerNode
from omegaconf.errors import ValidationError

MOST = 2**63 - 1
"""The largest whole number that anything here can be."""


def whole(value: Any) -> int | None:
    """The whole number of at most 64 bits that a value is, or is a text of: 3, 3.0, 1e6, "1_000". None if it is none."""
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value != int(value):
        return None
    return int(value) if abs(int(value)) <= MOST else None


def not_whole(value: Any) -> str:
    """What was expected instead of a value that is no whole number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return "a whole number, e.g. 1000 or 1e6" if re.fullmatch(r"[\d.]+[kKmM]", str(value)) else "a whole number"
    return "a whole number" if math.isnan(number) or abs(number) <= MOST else "a whole number of at most 64 bits"


def accept_whole_floats() -> None:
    """Let OmegaConf take 1e6, which it reads as a float, for a whole number: on the command line, in YAML files, within lists."""

    def convert(self: IntegerNode, value: Any) -> int:
        number = whole(value)
        if number is None:
            raise ValidationError("Value '$VALUE' of type '$VALUE_TYPE' could not be converted to Integer")
        return number

    IntegerNode._validate_and_convert_impl = convert  # type: ignore[method-assign]  # OmegaConf offers no other way
