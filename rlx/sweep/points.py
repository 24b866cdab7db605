"""The points of a grid composed and checked, each without the settings that have no effect there."""

from __future__ import annotations

from rlx.config.compose import Composed, Composer
from rlx.errors import ConfigError, NoEffectError
from rlx.store.sweep_spec import Point


def compose_all(points: list[Point], composer: Composer) -> list[Composed]:
    """Compose and check every point.

    Raises:
        ConfigError: naming the first point that cannot be.
    """
    return [_compose(point, composer, alone=len(points) == 1) for point in points]


def compose_grid(points: list[Point], composer: Composer) -> list[tuple[Point, Composed]]:
    """Compose and check every point of a grid, without those of its settings that have no effect there.

    Points that become equal to another one are left out: ensembles of 1 and 5 members, each with and without algo.trust, are three
    settings, because one member cannot disagree. Where several experiments are compared, this holds for settings with one value too: they
    are those of the experiments that use them.

    Raises:
        ConfigError: naming the first point that cannot be, and for a setting that has no effect anywhere.
    """
    refused: dict[str, NoEffectError] = {}
    pairs = [_compose_effective(point, composer, refused) for point in points]
    given = {point.overrides for point in points}
    known = {repr(composed.config) for point, composed in pairs if point.overrides in given}
    kept = []
    for point, composed in pairs:
        if point.overrides not in given:
            if repr(composed.config) in known:
                continue
            known.add(repr(composed.config))
        kept.append((point, composed))
    for key, refusal in refused.items():
        if not any(override.key == key for point, _ in kept for override in point.overrides):
            raise refusal
    return kept


def _compose_effective(point: Point, composer: Composer, refused: dict[str, NoEffectError]) -> tuple[Point, Composed]:
    """Leave out settings without effect, one after another, and note the first refusal of each in `refused`."""
    try:
        return point, _compose(point, composer)
    except NoEffectError as error:
        fixed_for_all_arms = "experiment" in point.values and any(override.key == error.key for override in point.overrides)
        if error.key not in point.values and not fixed_for_all_arms:
            raise
        refused.setdefault(error.key, error)
        return _compose_effective(point.without(error.key), composer, refused)


def _compose(point: Point, composer: Composer, *, alone: bool = False) -> Composed:
    try:
        return composer.compose(point.arguments)
    except ConfigError as error:
        if alone or not point.values:
            raise
        message = f"{error} (with {' '.join(f'{k}={v}' for k, v in point.values.items())})"
        raise (NoEffectError(message, error.key) if isinstance(error, NoEffectError) else ConfigError(message)) from error
