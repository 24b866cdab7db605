"""Times as records have them: ISO 8601, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def parse_time(value: Any) -> datetime | None:
    """A time that was written as ISO 8601, in UTC if it names no zone; None for anything else."""
    try:
        at = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return at if 1 < at.year < 9999 else None  # conversion to another time zone must not overflow
