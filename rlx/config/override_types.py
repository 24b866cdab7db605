"""One KEY=VALUE of a command line, a sweep or a search space, as an object."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override as HydraOverride


@dataclass(frozen=True)
class Override:
    """One KEY=VALUE. In a sweep the value may stand for several."""

    key: str
    text: str
    """The value as it is typed, in Hydra's syntax."""

    def __str__(self) -> str:
        return f"{self.key}={self.text}"

    @functools.cached_property
    def parsed(self) -> HydraOverride:
        """What Hydra reads. Raises a ConfigError if it cannot be read."""
        from rlx.config.overrides import parse_overrides  # imports Hydra, which a list of sweeps does without

        return parse_overrides([str(self)], allow_sweeps=True)[0]

    @property
    def is_sweep(self) -> bool:
        """Whether it stands for several values."""
        return bool(self.parsed.is_sweep_override())


def read_overrides(arguments: Iterable[str], *, allow_sweeps: bool = True) -> list[Override]:
    """Parse KEY=VALUE arguments. Raises the ConfigErrors of `parse_overrides`."""
    from rlx.config.overrides import parse_overrides

    found = []
    for parsed in parse_overrides(list(arguments), allow_sweeps=allow_sweeps):
        override = Override(parsed.key_or_group, parsed.get_value_string())
        vars(override)["parsed"] = parsed  # what the cached property would find again
        found.append(override)
    return found
