"""Text from directories and environments, made safe to print."""

from __future__ import annotations

import unicodedata


def printable(text: str, *, keep: str = "") -> str:
    """The text with control characters, format characters and lone surrogates escaped, which a terminal would interpret.

    Args:
        keep: control characters that may stay, such as line ends.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep or unicodedata.category(c) == "Zs" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
