"""Checks of a command line's `key=value` words before Hydra parses them, because Hydra's advice for a typo is to add the typo."""

from __future__ import annotations

import dataclasses
import difflib
import re
import textwrap
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from rlx.config.algo_registry import ALGORITHMS
from rlx.config.schema import RunConfig, is_resumable
from rlx.config.setting import all_fields, unused
from rlx.config.synonyms import as_typed, key_for
from rlx.errors import ConfigError, NoEffectError


def parse_overrides(arguments: list[str], *, allow_sweeps: bool = False) -> list[Override]:
    """Parse `key=value` words.

    Raises:
        ConfigError: for words that are not, for Hydra's +key, ++key and ~key, and for several values unless `allow_sweeps`.
    """
    overrides = []
    for argument in arguments:
        if argument.startswith("-"):
            raise ConfigError(f"{argument}: unknown option; --help lists those there are")
        if argument.startswith(("+", "~")):
            raise ConfigError(f"{argument}: keys are not added or removed; write {argument.lstrip('+~').partition('=')[0]}=VALUE")
        if "=" not in argument[1:]:
            raise ConfigError(f"{argument or repr(argument)}: expected key=value, e.g. algo=ppo or algo.learning_rate=3e-4")
        key, _, value = argument.partition("=")
        if not value.strip():
            raise ConfigError(f"{key}: no value after the =; write {key}=VALUE, or {key}=null for none (`rlx config` shows the value)")
        if value == "None":  # as Python writes it
            argument = f"{key}=null"
        try:
            override = OverridesParser.create().parse_override(argument)
        except (HydraException, ValueError, RecursionError) as error:  # a number of 5,000 digits, a list in a thousand others
            raise ConfigError(f"{textwrap.shorten(argument, 80)}: {_why_unreadable(argument.partition('=')[2], error)}") from error
        if override.package is not None:
            raise ConfigError(f"{argument}: a key has no '@'; write {override.key_or_group}={argument.partition('=')[2]}")
        if override.is_sweep_override() and not allow_sweeps:
            key, _, value = argument.partition("=")
            raise ConfigError(
                f"{key}: one run takes one value, got several ({value}); did you mean `rlx sweep`, which trains with each of them? "
                f"A list is written '{key}=[...]', a text with commas \"{key}='...'\""
            )
        overrides.append(override)
    refuse_twice(overrides)
    return overrides


def refuse_twice(overrides: list[Override]) -> None:
    """Raise a ConfigError if two overrides have one key."""
    seen: dict[str, str] = {}
    for override in overrides:
        if override.key_or_group in seen:
            raise ConfigError(f"{override.key_or_group} is given twice: {seen[override.key_or_group]} and {override.input_line}")
        seen[override.key_or_group] = str(override.input_line)


_FORMS = {
    "range": "range(START,STOP) or range(START,STOP,STEP), of numbers",
    "interval": "interval(LOW,HIGH), of numbers",
    "choice": "choice(A,B,…), of at least one value",
    "sort": "sort(A,B,…), of at least one value",
    "glob": "glob(PATTERN)",
}


def _why_unreadable(value: str, error: Exception) -> str:
    form = next((form for name, form in _FORMS.items() if f"{name}(" in value), None)
    if form is not None and "while evaluating" in str(error):
        return f"expected {form}"
    if re.search(r"^,|,,|,$", value):
        return "a comma stands between two values, as in 1,2; one is missing here"
    if re.search("[\u201c\u201d\u2018\u2019]", value):
        return "it has typographic quotes; write plain ones, ' or \""
    return f"cannot be read ({str(error).splitlines()[0]}); quote it for the shell and write lists as 'key=[1,2]'"


def group_value(override: Override) -> str | None:
    value = override.value()
    if not isinstance(value, str | int | float) and (value is not None or override.key_or_group in ("algo", "env")):
        raise ConfigError(f"{override.input_line}: expected one name")
    return None if value is None else str(value)


def hydra_argument(override: Override) -> str:
    line = str(override.input_line)
    return f"++{line}" if override.key_or_group.startswith("env.kwargs") else line  # a free dictionary


def short_names(keys: dict[str, Any]) -> dict[str, Any]:
    """`env.NAME` for each `env.kwargs.NAME` that an environment's file lists, unless rlx has a setting of that name itself."""
    named = {f"env.{key.removeprefix('env.kwargs.')}": value for key, value in keys.items() if key.startswith("env.kwargs.")}
    return {key: value for key, value in named.items() if key not in keys}


def in_full(override: Override, keys: dict[str, Any]) -> Override:
    """An override whose key is no short name; `keys` are those without short names."""
    if override.key_or_group not in short_names(keys):
        return override
    full = f"env.kwargs.{override.key_or_group.removeprefix('env.')}"
    return dataclasses.replace(override, key_or_group=full, input_line=f"{full}={str(override.input_line).partition('=')[2]}")


def check_key(override: Override, keys: dict[str, Any], algo: str) -> None:
    key = override.key_or_group
    if key in ("env.id", "algo.name"):
        raise ConfigError(f"{key}: is not set by itself; write {key.partition('.')[0]}={override.value()}")
    if key in keys or key == "env.kwargs" or key.startswith("env.kwargs."):
        return
    if any(k.startswith(key + ".") for k in keys):
        raise ConfigError(f"{key}: is a group of settings; set one of {', '.join(k for k in keys if k.startswith(key + '.'))}")
    meant = key_for(key, keys)
    if meant is not None and not key.startswith("env.kwargs"):
        value = str(override.input_line).partition("=")[2]
        raise ConfigError(
            f"{key}: unknown key{f' for algo={algo}' if key.startswith('algo.') else ''}; write {as_typed(key, value, meant)}"
        )
    if owners := [other for other, info in ALGORITHMS.items() if key in {own for own, *_ in all_fields(info.config(), "algo")}]:
        raise ConfigError(f"{key}: unknown key for algo={algo}; it is a setting of algo={', '.join(owners)}")
    near = difflib.get_close_matches(key, [k for k in keys if not k.startswith(("algo.name", "env.id"))], n=1, cutoff=0.6)
    where = f" for algo={algo}" if key.startswith("algo.") else ""
    advice = f"did you mean {near[0]}?" if near else "`rlx config` lists every key"
    raise ConfigError(f"{key}: unknown key{where}; {advice}")


def refuse_unused(config: RunConfig, keys: list[str]) -> None:
    """Raise a NoEffectError about the first of the keys that were set although they have no effect beside the others."""
    conditions = unused(config)
    for key in keys:
        if key in conditions:
            raise NoEffectError(f"{key} has no effect unless {conditions[key]}; set that too, or leave {key} out", key)


def check_resumable(arguments: list[str], path: str) -> None:
    """Raise a ConfigError naming the first override that a resumed run may not change."""
    for override in parse_overrides(arguments):
        key = override.key_or_group
        if not is_resumable(key):
            raise ConfigError(
                f"{key} cannot be changed when {path} is resumed: only loop.* (budget and cadences), log.* and runtime.device can; "
                f"start a new run with `rlx train … {override.input_line}`"
            )
