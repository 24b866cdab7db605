"""Notes and tags that a user gives a run or sweep, to find it again. They are kept in meta.json and sweep.json, and sent to W&B."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlx.errors import ConfigError
from rlx.text import printable

_LONGEST_TAG = 64
"""Characters of a tag; W&B takes no more."""
_LONGEST_NOTES = 10_000
_MOST_TAGS = 50


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Notes and tags of a run or sweep."""

    notes: str = ""
    tags: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.notes or self.tags)

    @classmethod
    def given(cls, notes: str | None, tags: Sequence[str] | None) -> Labels:
        """Labels from a command line.

        Args:
            notes: any text.
            tags: tags, or several with commas between them.

        Raises:
            ConfigError: for a tag that is empty, too long or not printable, and for notes that are too long.
        """
        found = [tag.strip() for part in tags or () for tag in part.split(",")]
        for tag in found:
            if not tag or len(tag) > _LONGEST_TAG or not tag.isprintable():
                raise ConfigError(f"--tags {printable(tag) or repr(tag)}: expected tags of 1 to {_LONGEST_TAG} printable characters: a,b,c")
        if len(found) > _MOST_TAGS:
            raise ConfigError(f"--tags: {len(found)} tags; expected at most {_MOST_TAGS}")
        if notes is not None and len(notes) > _LONGEST_NOTES:
            raise ConfigError(f"--notes: {len(notes):,} characters; expected at most {_LONGEST_NOTES:,}")
        return cls(notes=notes or "", tags=tuple(dict.fromkeys(found)))

    @classmethod
    def of(cls, meta: dict[str, Any]) -> Labels:
        """The labels in meta.json or sweep.json; values of another type are left out."""
        notes, tags = meta.get("notes"), meta.get("tags")
        texts = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
        return cls(notes=notes[:_LONGEST_NOTES] if isinstance(notes, str) else "", tags=tuple(texts[:_MOST_TAGS]))

    def as_meta(self) -> dict[str, Any]:
        """The entries of meta.json; empty labels have none."""
        return ({"notes": self.notes} if self.notes else {}) | ({"tags": list(self.tags)} if self.tags else {})


NO_LABELS = Labels()
