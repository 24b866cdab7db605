"""A claim about the runs of a sweep, as an experiment file and sweep.json have it.

- name: floor, steve
  left: experiment=trust_steve algo.model.corruption=independent algo.model.corrupt_prob=0.5
  relation: not below
  right: experiment=trust_off_same_utd
  at: [0.5, 1]
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from rlx.errors import ConfigError

RELATIONS = ("above", "below", "not above", "not below", "falls")
"""above, below: the interval of the difference lies on that side of 0. not above, not below: the difference is no farther on the other side
than half of the right side's interval is wide. falls: every level is below the one before."""
EXPECTED = ("holds", "fails")
STATISTICS = ("last", "mean")
_WORD = re.compile(r"[\w.+-]+=\S+")
_MOST = 200


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One relation between groups of runs. A group is described by the settings that its runs share, as they are typed."""

    name: str
    left: list[str]
    """One group; two are the first minus the second; with `falls` they are the levels in order."""
    relation: str
    right: list[str] = field(default_factory=list)
    """One group, or two as on the left; none with `falls`."""
    metric: str | None = None
    """None is the objective of the sweep."""
    statistic: str = "last"
    """Of a run's values: the last, or their mean over training."""
    at: list[float] = field(default_factory=lambda: [1.0])
    """Shares of the budget at which it is judged, each by itself."""
    times: float = 1.0
    """Factor of the right side."""
    margin: float | None = None
    """How far `not below` may be below; None is half of the right side's interval."""
    expected: str = "holds"
    """fails: a negative control, which shows that the claim can fail."""


def read_claims(content: list[Any], where: object) -> list[Claim]:
    """The claims of an experiment file.

    Raises:
        ConfigError: naming the file, the claim and what is wrong with it.
    """
    claims = [_read(entry, f"{where}: claim {number}") for number, entry in enumerate(content, start=1)]
    names = [claim.name for claim in claims]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{where}: two claims are called {twice!r}; give each a name of its own")
    return claims


def known_claims(content: dict[str, Any]) -> list[Claim]:
    """The claims in a sweep.json; none in one without or with unreadable ones."""
    found = content.get("claims")
    try:
        return read_claims(found, "sweep.json") if isinstance(found, list) and len(found) <= _MOST else []
    except ConfigError:
        return []


def _read(entry: Any, where: str) -> Claim:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: expected name, left, relation and right, got {entry}")
    where = f"{where} ({entry.get('name', 'without a name')})"
    known = [f.name for f in fields(Claim)]
    if unknown := next((key for key in entry if key not in known), None):
        raise ConfigError(f"{where}: has no {unknown}; expected {', '.join(known)}")
    if lacking := next((key for key in ("name", "left", "relation") if key not in entry), None):
        raise ConfigError(f"{where}: {lacking} is missing")
    given = {key: value for key, value in entry.items() if value is not None}
    for key in ("left", "right", "at"):
        if key in given and not isinstance(given[key], list):
            given[key] = [given[key]]
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "name": (lambda v: isinstance(v, str) and bool(v.strip()), "a text"),
        "left": (_are_groups, "one group or several, each as settings are typed: experiment=trust_steve algo.horizon=3"),
        "right": (_are_groups, "one group or two, each as settings are typed: experiment=trust_off"),
        "relation": (lambda v: v in RELATIONS, f"one of {', '.join(RELATIONS)}"),
        "metric": (lambda v: isinstance(v, str) and "/" in v, "the name of a metric, e.g. eval/return_mean"),
        "statistic": (lambda v: v in STATISTICS, f"one of {', '.join(STATISTICS)}"),
        "at": (lambda v: bool(v) and all(_is_number(share) and 0.0 < share <= 1.0 for share in v), "shares of the budget in (0, 1]"),
        "times": (lambda v: _is_number(v) and v > 0.0, "a number above 0"),
        "margin": (lambda v: _is_number(v) and v >= 0.0, "a number from 0"),
        "expected": (lambda v: v in EXPECTED, f"one of {', '.join(EXPECTED)}"),
    }
    for key, value in given.items():
        holds, expected = rules[key]
        if not holds(value):
            raise ConfigError(f"{where}: {key} must be {expected}; got {value}")
    claim = Claim(**given)
    falls = claim.relation == "falls"
    if falls and (len(claim.left) < 2 or claim.right):
        raise ConfigError(f"{where}: `falls` takes two or more levels on the left, in order, and no right side")
    if not falls and not (1 <= len(claim.left) <= 2 and 1 <= len(claim.right) <= 2):
        raise ConfigError(f"{where}: {claim.relation} takes one group, or two for their difference, on the left and on the right")
    return claim


def _are_groups(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v.split() and all(map(_WORD.fullmatch, v.split())) for v in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
