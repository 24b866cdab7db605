"""Errors of Hydra and OmegaConf, explained in the terms of the schema."""

from __future__ import annotations

import dataclasses
import re
from enum import Enum
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from rlx.config.choices import did_you_mean
from rlx.config.synonyms import key_for
from rlx.config.whole_numbers import not_whole
from rlx.errors import ConfigError


def explain(error: Exception) -> str:
    """The cause on one line, in the terms of the schema and without Hydra's advice to append keys."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for cause in chain:
        if isinstance(cause, ConfigError):
            return str(cause)
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            return _explain_setting(cause)
    if found := re.search(r"Merge error: \w+ is not a subclass of \w+\. value: (.*)", str(error)):
        return f"got {found[1]} where a group of settings stands; expected a mapping of their names and values"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _explain_setting(error: OmegaConfBaseException) -> str:
    """What is wrong with one setting: its name, or the type of its value."""
    key, owner = str(error.full_key), error.object_type
    hints = get_type_hints(owner) if dataclasses.is_dataclass(owner) else {}
    parent, _, name = key.rpartition(".")
    prefix = f"{parent}." if parent else ""
    if name in ("recipe", "experiment"):
        return f"{name}s set keys of every group, so that their files begin with the line '# @package _global_'"
    if name in hints and isinstance(error, ValidationError):
        got = "null" if error.value is None else error.value
        expected = _describe(hints[name])
        if expected.startswith("a whole number"):
            expected = expected.replace("a whole number", not_whole(error.value))
        return f"{key} must be {expected}, got {got}"
    if hints and isinstance(error, ConfigKeyError):
        settings = [f.name for f in dataclasses.fields(owner) if f"{prefix}{f.name}" not in ("algo.name", "env.id")]  # type: ignore[arg-type]
        if not parent.count(".") and (meant := key_for(key, _nested(owner, parent))) is not None:
            group, _, inner = meant.removeprefix(prefix).rpartition(".")
            return f"{key}: unknown key; write {meant}{f' ({group}: {{{inner}: VALUE}})' if group else ''}"
        return f"{key}: unknown key; {did_you_mean(name, settings, key=prefix)}"
    return f"{key}: {str(error).splitlines()[0]}"


def _nested(owner: Any, prefix: str) -> list[str]:
    """The keys of the settings that a dataclass has under a prefix."""
    keys = []
    for name, hint in get_type_hints(owner).items():
        key = f"{prefix}.{name}" if prefix else name
        keys += _nested(hint, key) if dataclasses.is_dataclass(hint) else [key]
    return keys


def _describe(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) is UnionType:
        return " or ".join("null" if part is type(None) else _describe(part) for part in get_args(hint))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"one of {', '.join(hint.__members__)}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list[int]: "a list, e.g. '[64,64]'"}
    if get_origin(hint) is list and hint not in words:
        return "a list in brackets, e.g. '[my_module:Wrap]'"
    return words.get(hint, "a mapping, e.g. '{name: value}'")
