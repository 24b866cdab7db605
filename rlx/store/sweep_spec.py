"""sweep.json: the specification of a sweep. It is signed when it is written, and checked when it is read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from rlx.config.override_types import Override
from rlx.store.claim_spec import Claim, known_claims
from rlx.store.layout import POINT
from rlx.trust import sign

FORMAT = 2
AGGREGATES = ("iqm", "mean", "median", "min", "max")
"""Ways to make one number of the seeds of a setting."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting of a sweep; its runs differ in their seed only."""

    overrides: tuple[Override, ...]
    """Complete and single-valued, without the seed."""
    values: dict[str, Any]
    """Swept key and value, as plain data, in the order of the command line."""

    @property
    def arguments(self) -> list[str]:
        """The overrides as `Composer.compose` takes them."""
        return list(map(str, self.overrides))

    def without(self, key: str) -> Point:
        """The same setting with a key left at its default."""
        overrides = tuple(override for override in self.overrides if override.key != key)
        return Point(overrides=overrides, values={k: v for k, v in self.values.items() if k != key})


@dataclass(kw_only=True)
class Search:
    """How the points of a sweep are found, if they are not a grid."""

    trials: int
    sampler: str = "tpe"
    pruner: str = "none"
    rungs: int = 3
    storage: str | None = None
    """An Optuna storage URL; None is study.db in the sweep's directory."""


@dataclass(kw_only=True)
class Spec:
    """The specification of a sweep. Two commands with equal specifications are the same sweep."""

    overrides: list[Override]
    """Everything that the command swept or set, but `seed`."""
    seeds: list[int]
    swept: list[str]
    """The keys that have several values."""
    objective: str
    direction: Literal["maximize", "minimize"] = "maximize"
    aggregate: str = "iqm"
    config_dir: str | None = None
    search: Search | None = None
    claims: list[Claim] = field(default_factory=list)
    """What `rlx compare` judges."""

    def identity(self) -> dict[str, Any]:
        """The specification as plain data, without the claims: what is claimed of a sweep does not change its runs."""
        plain = asdict(self) | {"overrides": as_texts(self.overrides)}
        del plain["claims"]
        return plain


def as_texts(overrides: Iterable[Override]) -> dict[str, str]:
    """Overrides as JSON has them: key and text."""
    return {override.key: override.text for override in overrides}


def from_texts(content: dict[str, str]) -> list[Override]:
    """The overrides that `as_texts` wrote. Raises a TypeError or AttributeError if there are none."""
    if not all(isinstance(text, str) for text in content.values()):
        raise TypeError("overrides")
    return [Override(key, text) for key, text in content.items()]


def write_spec(content: dict[str, Any], spec: Spec, points: dict[str, Point], *, signed: bool) -> bytes:
    """sweep.json: `content` with a spec and its points, and a signature of it all."""
    known = {key: {"overrides": as_texts(p.overrides), "values": p.values} for key, p in points.items()}
    content = content | spec.identity() | {"points": known, "claims": [asdict(claim) for claim in spec.claims]}
    content.pop("signature", None)
    return json.dumps(content | {"signature": sign(content) if signed else None}, indent=1).encode()


def read_spec(content: dict[str, Any]) -> Spec:
    """The spec in a sweep.json. Raises a KeyError, TypeError, ValueError or AttributeError if it is damaged."""
    if content["format"] != FORMAT:
        raise ValueError(content["format"])
    given = {f.name: content[f.name] for f in fields(Spec) if f.name != "claims"}
    search = given["search"]
    spec = Spec(**given | {"overrides": from_texts(given["overrides"]), "search": Search(**search) if search else None},
                claims=known_claims(content))  # fmt: skip
    _check(spec)
    return spec


def read_points(content: dict[str, Any]) -> dict[str, Point]:
    """The points in a sweep.json. Raises as `read_spec` does."""
    if content["format"] != FORMAT:
        raise ValueError(content["format"])
    points = {key: read_point(p) for key, p in content["points"].items()}
    if not all(map(POINT.fullmatch, points)):
        raise ValueError("points")
    return points


def read_point(content: dict[str, Any]) -> Point:
    """A point of sweep.json or of the ledger. Raises as `read_spec` does."""
    if not isinstance(content["values"], dict):
        raise TypeError("point")
    return Point(overrides=tuple(from_texts(content["overrides"])), values=content["values"])


def count(value: Any) -> int:
    """The value, if it is a whole number from 0. Raises a ValueError if it is not."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("count")
    return value


def _check(spec: Spec) -> None:
    """Raise a ValueError or TypeError unless the types are those that are written."""
    texts = [spec.objective, spec.aggregate, *spec.swept, *([] if spec.config_dir is None else [spec.config_dir])]
    if not spec.seeds or spec.direction not in ("maximize", "minimize") or spec.aggregate not in AGGREGATES:
        raise ValueError("spec")
    for each in (spec.swept, spec.seeds):
        if not isinstance(each, list):
            raise TypeError("spec")
    for seed in spec.seeds:
        count(seed)
    if spec.search is not None:
        texts += [spec.search.sampler, spec.search.pruner, *([] if spec.search.storage is None else [spec.search.storage])]
        if not count(spec.search.trials) >= 1 or not 2 <= count(spec.search.rungs) <= 8:
            raise ValueError("search")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("spec")
