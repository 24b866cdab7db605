"""Which keys and values of a configuration can be typed next, with what they mean: the data of shell completion.

Imports neither torch nor gymnasium.
"""

from __future__ import annotations

import dataclasses
import operator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from rlx.config import algo_registry
from rlx.config.algo_registry import ALGORITHMS
from rlx.config.compose import Composer
from rlx.config.documentation import key_docs
from rlx.config.saved import typed_value
from rlx.config.schema import RunConfig, is_resumable
from rlx.errors import ConfigError

Candidate = tuple[str, str]
"""A word, and what it means."""

_GROUPS = {
    "algo": "the algorithm",
    "env": "the environment",
    "recipe": "values tuned for one algorithm and environment; null for none",
    "experiment": "a named set of overrides",
}
_DEVICES = ("auto", "cpu", "cuda", "cuda:0", "mps")


@dataclass(frozen=True)
class _Key:
    """A key that can be set."""

    doc: str
    default: Any = None
    nullable: bool = False
    is_group: bool = False


def override_candidates(word: str, given: list[str], config_dir: Path | None, *, resuming: bool) -> list[Candidate]:
    """KEY=VALUE words that may follow; not all of them begin with `word`.

    A key that is the only one to begin with `word` comes together with its values: a shell puts a space after a lone candidate.

    Args:
        word: the part of the word that is typed already.
        given: the KEY=VALUE words before it.
        config_dir: a directory of the user's own YAML groups.
        resuming: offer only keys that `rlx resume` can change.
    """
    composer = Composer(config_dir)
    keys = _keys(composer, given, resuming=resuming)
    name, is_assigned, _ = word.partition("=")
    if is_assigned:
        return _assignments(name, keys[name], composer) if name in keys else []
    taken = {override.partition("=")[0] for override in given}
    left = {key: entry for key, entry in keys.items() if key not in taken and key.startswith(word)}
    whole = [(f"{key}=", entry.doc) for key, entry in left.items() if "." not in key]
    nested = [(f"{key}=", entry.doc) for key, entry in left.items() if "." in key]
    sections = dict.fromkeys(f"{key.partition('.')[0]}." for key, _ in nested)
    candidates = (
        nested if "." in word or (not whole and len(sections) == 1) else [*whole, *((s, f"settings of {s[:-1]}") for s in sections)]
    )
    if len(candidates) == 1:
        key = candidates[0][0].removesuffix("=")
        candidates += _assignments(key, keys[key], composer)
    return candidates


def _keys(composer: Composer, given: list[str], *, resuming: bool) -> dict[str, _Key]:
    """Every key that can be set."""
    algo = _chosen_algo(composer, given)
    config = RunConfig.defaults(algo_registry.algorithm(algo).config())
    keys = {} if resuming else {group: _Key(doc, is_group=True) for group, doc in _GROUPS.items()}
    for key, doc in key_docs(algo).items():
        if resuming and not is_resumable(key):
            continue
        section, _, name = key.rpartition(".")
        owner = operator.attrgetter(section)(config) if section else config
        field = next(f for f in dataclasses.fields(owner) if f.name == name)
        keys[key] = _Key(doc, getattr(owner, name), nullable="None" in str(field.type))
    keys.pop("env.kwargs", None)  # takes env.kwargs.ANYTHING=
    return keys


def _assignments(name: str, key: _Key, composer: Composer) -> list[Candidate]:
    """`name=value` for every value there is to choose from, or for the default."""
    return [(f"{name}={value}", doc) for value, doc in (_members(name, composer) if key.is_group else _values(name, key))]


def _members(group: str, composer: Composer) -> list[Candidate]:
    if group == "env":
        ids = composer.env_ids()
        return [*ids.items(), *((id_, f"same as {name}") for name, id_ in ids.items() if id_ != name)]
    if group == "algo":
        return [(name, ALGORITHMS[name].summary if name in ALGORITHMS else "a plug-in") for name in composer.options("algo")]
    return [*((name, "") for name in composer.options(group)), ("null", "none")]


def _values(name: str, key: _Key) -> list[Candidate]:
    default = typed_value(key.default)
    values = [default]
    if isinstance(key.default, Enum):
        values = [member.name for member in type(key.default)]
    elif isinstance(key.default, bool):
        values = ["true", "false"]
    elif name == "runtime.device":
        values = list(_DEVICES)
    if key.nullable and key.default is not None:
        values.append("null")
    return [(value, "the default" if value == default else "") for value in values]


def _chosen_algo(composer: Composer, given: list[str]) -> str:
    """The algorithm chosen by the given words (an experiment's choice included), else by conf/config.yaml."""
    groups = dict(word.split("=", 1) for word in given)
    found = [groups.get("algo")]
    for path in (composer.file("experiment", groups.get("experiment", "")), *(d / "config.yaml" for d in composer.directories)):
        if path and path.is_file():
            defaults: list[Any] = (yaml.safe_load(path.read_text()) or {}).get("defaults") or []
            found += [d.get("algo") or d.get("override /algo") for d in defaults if not isinstance(d, str)]
    return next((name for name in found if name is not None and _is_usable(name)), next(iter(ALGORITHMS)))


def _is_usable(name: str) -> bool:
    """Whether an algorithm has this name, and can be imported if it is a plug-in."""
    try:
        return algo_registry.is_known(name) and bool(algo_registry.algorithm(name))
    except ConfigError:
        return False
