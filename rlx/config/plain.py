"""YAML of a run's directory, read as data: no tags, no aliases, no interpolations, nothing deep or large."""

from __future__ import annotations

from typing import Any

import yaml

from rlx.errors import ConfigError

LIMIT = 1 << 17
"""Bytes; a configuration has some thousands."""
_DEPTH = 16
_NUMBER_LIMIT = 2**64


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, which can expand to any size, and with a limit on the depth of nesting."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.composer.ComposerError(problem="aliases and anchors are refused", problem_mark=event.start_mark)
        self._depth += 1
        if self._depth > _DEPTH:
            raise yaml.composer.ComposerError(problem="nested too deeply", problem_mark=event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        tree: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(tree) < len(node.value):
            raise yaml.constructor.ConstructorError(problem="a key is there twice", problem_mark=node.start_mark)
        return tree


def parse_plain(text: str, where: object) -> dict[str, Any]:
    """A mapping of texts, numbers, booleans, null, lists and mappings.

    Args:
        text: YAML.
        where: where the text comes from, for messages.

    Raises:
        ConfigError: for anything else, such as an interpolation, however it is escaped.
    """
    try:
        loader = _Loader(text)
        try:
            content = loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # a date in the 13th month, a number of 5,000 digits
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{where} is not readable YAML: {reason[:300]}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{where} must hold key: value lines, got {'nothing' if content is None else type(content).__name__}")
    _check(content, where, "")
    return content


def _check(value: Any, where: object, key: str) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str | int | bool):
                raise ConfigError(f"{where}: {key or 'it'} has a key that is no text: {name!r}")
            _check(name, where, key)
            _check(inner, where, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            _check(inner, where, key)
    elif isinstance(value, str):
        if "${" in value:
            raise ConfigError(
                f"{where} contains '${{' (in {key or value!r}): a run's configuration is plain data, interpolations are refused"
            )
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise ConfigError(f"{where}: {key} is no text that can be written")
    elif isinstance(value, int) and abs(value) > _NUMBER_LIMIT:
        raise ConfigError(f"{where}: {key} is a number of {len(str(abs(value))) if abs(value) < 10**1000 else 'a thousand'} digits")
    elif not isinstance(value, int | float | None):
        raise ConfigError(f"{where}: {key} is {type(value).__name__}; expected a text, a number, true, false, null, a list or a mapping")
