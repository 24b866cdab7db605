"""Documentation of each key of the configuration, from the docstrings of the schema's fields."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from typing import Any

from rlx.config import algo_registry, schema
from rlx.config.cadence import CADENCES
from rlx.config.compose import Composed
from rlx.config.saved import leaf_keys
from rlx.config.setting import in_words, rules_of, unused


def key_docs(algo: str, *, group: str | None = None) -> dict[str, str]:
    """What each key means, by dotted key; env.id and algo.name, which no command sets, are left out.

    Args:
        algo: the algorithm whose settings are meant.
        group: return the keys of this group only.
    """
    sections = {"algo": algo_registry.algorithm(algo).config(), "env": schema.EnvConfig(), "loop": schema.LoopConfig(),
                "log": schema.LogConfig(), "runtime": schema.RuntimeConfig()}  # fmt: skip
    docs: dict[str, str] = {}
    for name, section in sections.items():
        docs |= _docs_of(section, f"{name}.") if group in (None, name) else {}
    docs |= {"seed": field_docs(schema.RunConfig)["seed"]} if group in (None, "") else {}
    return {key: doc for key, doc in docs.items() if key not in ("algo.name", "env.id")}


def _docs_of(owner: Any, prefix: str) -> dict[str, str]:
    """What the settings of a dataclass and of those nested in it mean, each with its range and when it is used."""
    docs: dict[str, str] = {}
    written = field_docs(type(owner))
    for field in dataclasses.fields(owner):
        key, value = f"{prefix}{field.name}", getattr(owner, field.name)
        if dataclasses.is_dataclass(value):
            docs |= _docs_of(value, f"{key}.")
            continue
        rules = rules_of(field)
        allowed, used_if = in_words(rules), " and ".join(rules.used_if)
        parts = [written.get(field.name, ""), allowed and f"{allowed[0].upper()}{allowed[1:]}.", used_if and f"Used if {used_if}."]
        docs[key] = " ".join(filter(None, parts))
    return docs


def field_docs(class_: type) -> dict[str, str]:
    """The string below each field of a dataclass, inherited fields included."""
    docs: dict[str, str] = {}
    for base in reversed(class_.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        except (OSError, TypeError, SyntaxError):  # a class that was made by a program
            continue
        for field, below in itertools.pairwise(body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docs[name] = " ".join(text.split())
    return docs


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyRow:
    """One key of a configuration in a list."""

    key: str
    value: Any
    source: str
    """What set it: default, recipe, experiment, the command, …"""
    unused_unless: str | None
    """What the key needs to have an effect, if it has none; None if it has."""
    derived: Any
    """What rlx takes where the value is null and follows from the budget; None elsewhere."""
    doc: str
    """What it means; "" for keys that users name themselves, such as env.kwargs.size."""


def key_rows(composed: Composed) -> list[KeyRow]:
    """Every key of a configuration, in the order of the schema."""
    conditions, docs = unused(composed.config), key_docs(composed.config.algo.name)
    cadence = composed.config.loop.cadence
    derived = {key: getattr(cadence, key.removeprefix("loop.")) for key in CADENCES}
    return [
        KeyRow(
            key=key,
            value=value,
            source=composed.sources.get(key, "default"),
            unused_unless=conditions.get(key),
            derived=derived.get(key) if value is None else None,
            doc=docs.get(key, ""),
        )
        for key, value in leaf_keys(composed.config).items()
    ]
