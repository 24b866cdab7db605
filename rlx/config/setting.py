"""A setting: a field of a dataclass that states its range and the condition under which it has an effect.

    horizon: int = setting(15, at_least=1, at_most=10_000)
    keep_elites: float = setting(0.3, within="[0, 1]", used_if="algo.planner.kind=icem")

A condition is `KEY=VALUE`, `KEY=VALUE or VALUE`, `KEY=VALUE or KEY=VALUE`, `KEY is above NUMBER`, `KEY is below NUMBER`, GAME, NO_GAME or
ATARI; keys are written in full.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, field, fields, is_dataclass
from enum import Enum
from numbers import Integral
from typing import Any, NamedTuple

from rlx.errors import ConfigError

GAME = "env is a two-player game"
NO_GAME = "the environment is no two-player game"
ATARI = "env is an Atari game"

_RULES = "rlx"
_LARGEST_INT = 2**31 - 1
_LONGEST_LIST = 100
_FLOAT32 = 1.1754944e-38, 3.4028234e38
"""The smallest positive and the largest number of float32, in which networks compute."""
_INTERVAL = re.compile(r"([\[(])(.+), (.+)([\])])")
_COMPARISON = re.compile(r"([\w.]+) is (above|below) (\S+)")


class Rules(NamedTuple):
    """What a field declares beside its type and default."""

    at_least: float | None
    above: float | None
    at_most: float | None
    within: str | None
    infinite: bool
    expected: str | None
    used_if: tuple[str, ...]
    neutral: Any


NO_RULES = Rules(None, None, None, None, False, None, (), MISSING)


def setting(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    within: str | None = None,
    infinite: bool = False,
    expected: str | None = None,
    used_if: str | tuple[str, ...] = (),
    neutral: Any = MISSING,
) -> Any:
    """A dataclass field with rules.

    Args:
        default: its value; a list is copied for every instance, a class is instantiated.
        at_least: lower bound, of every member where the value is a list.
        above: lower bound that is itself excluded.
        at_most: upper bound; a larger number would only be found out by running out of memory or time.
        within: an interval such as "(0, 1]", instead of the other bounds.
        infinite: whether `inf` is allowed.
        expected: what a message calls the range, instead of its bounds.
        used_if: conditions without which the setting has no effect. Setting it is then refused.
        neutral: a value that may be set even then, because it changes nothing.
    """
    conditions = (used_if,) if isinstance(used_if, str) else used_if
    metadata = {_RULES: Rules(at_least, above, at_most, within, infinite, expected, conditions, neutral)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    if isinstance(default, type) and not issubclass(default, Enum):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def rules_of(field_: Field[Any]) -> Rules:
    """What a field declares; no rules for a plain field."""
    found: Rules = field_.metadata.get(_RULES, NO_RULES)
    return found


def all_fields(owner: Any, prefix: str) -> Iterator[tuple[str, Field[Any], Any]]:
    """Key, field and value of every setting of a dataclass instance, those of nested dataclasses included."""
    for field_ in fields(owner):
        key, value = f"{prefix}.{field_.name}" if prefix else field_.name, getattr(owner, field_.name)
        if is_dataclass(value):
            yield from all_fields(value, key)
        else:
            yield key, field_, value


def require(condition: bool, key: str, expected: str, got: Any) -> None:
    """Raise a ConfigError about `key` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{key} must be {expected}, got {got}")


def require_whole(key: str, value: Any, *, at_least: int, at_most: int) -> None:
    """Raise a ConfigError about `key` unless the value is a whole number in this range; True and False are none."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool) and at_least <= int(value) <= at_most
    require(is_whole, key, f"a whole number from {at_least:,} to {at_most:,}", repr(value))


# Ranges


def check_ranges(owner: Any, prefix: str) -> None:
    """Raise a ConfigError about the first setting of a dataclass that is out of its range."""
    for key, field_, value in all_fields(owner, prefix):
        rules = rules_of(field_)
        suffix = ", or null" if "None" in str(field_.type) else ""
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                expected = rules.expected or in_words(rules._replace(at_most=None)) or "finite"
                require(_is_in_range(number, rules), key, expected + suffix, value)
                if rules.at_most is not None:
                    require(number <= rules.at_most, key, f"at most {rules.at_most:,}{suffix}", value)


def check_computable(owner: Any, prefix: str) -> None:
    """Raise a ConfigError about the first number of a dataclass that networks cannot compute with, whatever its meaning."""
    for key, field_, value in all_fields(owner, prefix):
        if isinstance(value, list):
            require(len(value) <= _LONGEST_LIST, key, f"at most {_LONGEST_LIST} of them", f"{len(value):,}")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and number not in (0.0, math.inf, -math.inf):
                require(not math.isnan(number), key, "a number", number)
                in_float32 = _FLOAT32[0] <= abs(number) <= _FLOAT32[1]
                require(in_float32, key, "0, or from 1.2e-38 to 3.4e38, which float32 has", number)
            elif isinstance(number, int) and not isinstance(number, bool) and rules_of(field_).at_most is None:
                require(number <= _LARGEST_INT, key, f"at most {_LARGEST_INT:,}", value)


def _is_in_range(number: float, rules: Rules) -> bool:
    """Whether a number is in the range of a setting, its upper limit `at_most` left aside."""
    if rules.within is not None:
        opening, low, high, closing = _INTERVAL.fullmatch(rules.within).groups()  # type: ignore[union-attr]
        above = number >= float(low) if opening == "[" else number > float(low)
        return above and (number <= float(high.replace(",", "")) if closing == "]" else number < float(high.replace(",", "")))
    if math.isinf(number) and not rules.infinite:
        return False
    if rules.above is None and rules.at_least is None:
        return True
    return number >= rules.at_least if rules.at_least is not None else number > rules.above  # type: ignore[operator]


def in_words(rules: Rules) -> str:
    """A range in words, e.g. "within [0, 1]"; "" for a setting without one."""
    if rules.within is not None:
        return f"within {rules.within}"
    if rules.above is not None:
        return f"above {rules.above}" + (f" and at most {rules.at_most:,}" if rules.at_most is not None else "")
    if rules.at_least is not None:
        return f"{rules.at_least} to {rules.at_most:,}" if rules.at_most is not None else f"at least {rules.at_least}"
    return "" if rules.at_most is None else f"at most {rules.at_most:,}"


# Conditions


def unused(config: Any) -> dict[str, str]:
    """The settings of a RunConfig that have no effect, each with the condition that would give it one."""
    found = {}
    for key, field_, value in all_fields(config, ""):
        rules = rules_of(field_)
        failed = [condition for condition in rules.used_if if not _holds(condition, config)]
        if failed and value != rules.neutral:
            found[key] = " and ".join(failed)
    return found


def _holds(condition: str, config: Any) -> bool:
    if condition in (GAME, NO_GAME):
        return bool(config.env.is_game == (condition == GAME))
    if condition == ATARI:
        return bool(config.env.is_atari)
    if compared := _COMPARISON.fullmatch(condition):
        key, relation, number = compared.groups()
        value = _value(config, key)
        if value is None:  # a number that rlx derives, which is above 0
            return relation == "above"
        return bool(value > float(number) if relation == "above" else value < float(number))
    key = ""
    for alternative in condition.split(" or "):
        *keys, value = alternative.split("=")
        key = keys[0] if keys else key  # the key before holds for a value without one
        if _as_typed(_value(config, key)) == value:
            return True
    return False


def _value(config: Any, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), config)


def _as_typed(value: Any) -> str:
    """A value as a command line has it."""
    if isinstance(value, Enum):
        return value.name
    return {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(value)
