"""What each key of the configuration means, read off the docstrings of the schema's fields."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import textwrap
from enum import Enum
from typing import Any

from rlx.algos import ALGORITHMS
from rlx.config import schema
from rlx.config.compose import Composed, leaf_keys


def key_docs(algo: str, *, group: str | None = None) -> dict[str, str]:
    """What each key means, by dotted key; env.id and algo.name, which no command sets, are left out.

    Args:
        algo: the algorithm whose settings are meant.
        group: return the keys of this group only.
    """
    docs: dict[str, str] = {}
    classes = {"algo": ALGORITHMS[algo].config, "env": schema.EnvConfig, "loop": schema.LoopConfig,
               "log": schema.LogConfig, "runtime": schema.RuntimeConfig, "": schema.RunConfig}  # fmt: skip
    for name, class_ in classes.items():
        if group not in (None, name):
            continue
        written = field_docs(class_)
        prefix = f"{name}." if name else ""
        docs |= {f"{prefix}{f.name}": written.get(f.name, "") for f in dataclasses.fields(class_) if prefix or f.name not in classes}
    return {key: doc for key, doc in docs.items() if key not in ("algo.name", "env.id")}


def field_docs(class_: type) -> dict[str, str]:
    """The string below each field of a dataclass, inherited fields included."""
    docs: dict[str, str] = {}
    for base in reversed(class_.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docs[name] = " ".join(text.split())
    return docs


def typed_value(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, Enum):
        return value.name
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyRow:
    """One key of a configuration in a list."""

    key: str
    value: Any
    source: str
    """What set it: default, recipe, experiment, the command, …"""
    unused_unless: str | None
    """The setting under which the key would have an effect, if it has none; None if it has."""
    doc: str
    """What it means; "" for keys that users name themselves, such as env.kwargs.size."""


def key_rows(composed: Composed) -> list[KeyRow]:
    """Every key of a configuration, in the order of the schema."""
    algo = composed.config.algo
    unused, docs = {f"algo.{key}": setting for key, setting in algo.unused_keys().items()}, key_docs(algo.name)
    return [
        KeyRow(key=key, value=value, source=composed.sources.get(key, "default"), unused_unless=unused.get(key), doc=docs.get(key, ""))
        for key, value in leaf_keys(composed.config).items()
    ]
