"""A body's left-right symmetry: which numbers of an observation and of an action change places, and which change sign."""

from __future__ import annotations

from typing import Any, NamedTuple


class Signs(NamedTuple):
    """A mirrored vector y of x [D]: y[i] = sign[i] * x[source[i]]. Both are arrays, or tensors for tensors."""

    source: Any  # [D] integers
    sign: Any  # [D] of 1 and -1

    def __call__(self, x: Any) -> Any:
        """Vectors [*, D], mirrored."""
        return x[..., self.source] * self.sign


class Mirror(NamedTuple):
    """What the world looks like in a mirror: the mirrored state and action lead to the mirrored next state, and to the same reward."""

    observation: Signs
    action: Signs
