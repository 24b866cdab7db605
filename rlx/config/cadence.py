"""How often a run logs, evaluates and saves: what is given, or else a share of its budget."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

_SHARES = {"log_every": (10_000, 2_000), "eval_every": (50_000, 100), "checkpoint_every": (50_000, 100)}
"""The shortest cadence that is not given, in env steps, and into how many parts it divides a large budget."""
_BUDGET = "loop.total_env_steps"
CADENCES = [f"loop.{name}" for name in _SHARES]
COMMAND_LINE = "command line"
"""The source of a value that was typed."""


@dataclass(kw_only=True)
class Cadence:
    """Budget and cadences of `loop.train`, in env steps, each as a number."""

    total_env_steps: int
    target_return: float | None
    log_every: int
    eval_every: int
    eval_max_steps: int
    checkpoint_every: int


def usual_cadence(name: str, total_env_steps: int) -> int:
    """The cadence of a budget where none is given: 10,000 env steps for lines, 50,000 for evaluations and checkpoints, or more."""
    shortest, parts = _SHARES[name]
    return max(shortest, -(-total_env_steps // parts))


def outgrown(cadences: Mapping[str, int | None], total_env_steps: int, sources: Mapping[str, str]) -> list[str]:
    """The cadences that belong to a smaller budget, and would give more lines or evaluations than the usual cadence.

    A recipe or an experiment chooses its cadences for its own budget. A cadence that was typed, or stands beside the budget, is kept.

    Args:
        cadences: log_every, eval_every and checkpoint_every; None and 0 never count.
        total_env_steps: the budget.
        sources: where the value of each key came from.
    """
    return [
        name
        for name, (_, parts) in _SHARES.items()
        if (every := cadences.get(name))
        and every * parts < total_env_steps
        and sources.get(f"loop.{name}", "default") not in (COMMAND_LINE, sources.get(_BUDGET, "default"))
    ]


def outgrown_on_resume(cadences: Mapping[str, int | None], total_env_steps: int, typed: Collection[str], now: Collection[str]) -> list[str]:
    """`outgrown` for a run that goes on with a budget that is typed now.

    Args:
        cadences: of the run so far.
        total_env_steps: the budget.
        typed: keys that were typed when the run was started or resumed before.
        now: keys that are typed now.
    """
    if _BUDGET not in now:
        return []
    return outgrown(cadences, total_env_steps, dict.fromkeys([_BUDGET, *typed, *now], COMMAND_LINE))


def cadences_of(loop: object) -> dict[str, int | None]:
    """log_every, eval_every and checkpoint_every as they are given."""
    return {name: getattr(loop, name) for name in _SHARES}
