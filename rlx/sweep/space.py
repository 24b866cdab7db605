"""The points of a grid, or the space that Optuna searches, from overrides in Hydra's sweep syntax.

Hydra parses the overrides. rlx expands them itself, because Hydra composes the base configuration without the swept groups and so refuses
a key of an algorithm that is not the default.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.override_parser.types import ChoiceSweep, FloatRange, Glob, IntervalSweep, RangeSweep, Transformer
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.errors import HydraException

from rlx.config.choices import did_you_mean
from rlx.config.compose import GROUPS, Composer
from rlx.config.override_types import Override, read_overrides
from rlx.config.overrides import check_key
from rlx.config.whole_numbers import whole
from rlx.errors import ConfigError
from rlx.store.sweep_spec import Point, as_texts

if TYPE_CHECKING:
    from optuna.trial import Trial

LOG_FROM = 100.0
"""Ratio of its ends from which an interval has a logarithmic scale, unless it is tagged."""
_MOST = 10_000
"""Largest number of points, values and seeds; more count as a typo."""


Option = tuple[str, Any]
"""The text of a value in Hydra's syntax, and the value as plain data."""


@dataclass(frozen=True, kw_only=True)
class _Swept:
    """An override with the values that it stands for."""

    override: Override
    options: list[Option]
    """None for an interval."""

    @property
    def key(self) -> str:
        return self.override.key

    @property
    def is_sweep(self) -> bool:
        return self.override.is_sweep

    @property
    def is_interval(self) -> bool:
        return isinstance(self.override.parsed.value(), IntervalSweep)

    @property
    def is_group(self) -> bool:
        return self.key in GROUPS


def _read(overrides: Sequence[Override], composer: Composer) -> list[_Swept]:
    return [_Swept(override=override, options=_options(override, composer.options)) for override in overrides]


def _options(override: Override, group_options: Callable[[str], list[str]]) -> list[Option]:
    """The values that an override stands for, without repetitions.

    Raises:
        ConfigError: if there are none.
    """
    parsed = override.parsed
    if not override.is_sweep:
        return [(parsed.get_value_element_as_str(), _plain(parsed.value()))]
    value = parsed.value()
    if isinstance(value, IntervalSweep):
        return []
    if isinstance(value, Glob):
        if override.key not in GROUPS:
            raise ConfigError(f"{override}: glob(…) matches the members of a group: {', '.join(GROUPS)}; list the values of {override.key}")
        there = group_options(override.key)
        matching = value.filter(there)
        if not matching:
            raise ConfigError(f"{override}: matches none of {', '.join(there)}")
        return [(name, name) for name in matching]
    if isinstance(value, RangeSweep):
        _check_length(value, override)
    try:
        if isinstance(value, RangeSweep) and isinstance(value.range(), FloatRange) and not value.shuffle:
            return _at_least_one([(repr(v), v) for v in _decimal_range(value)], override)
        texts = list(map(str, parsed.sweep_iterator(transformer=Transformer.encode)))
        shuffled = bool(getattr(value, "shuffle", False))  # a second iteration would shuffle again
        values = None if shuffled else [_plain(v) for v in parsed.sweep_iterator(transformer=Transformer.identity)]
    except (HydraException, ValueError) as error:
        raise ConfigError(f"{override}: cannot be expanded ({str(error).splitlines()[0]})") from error
    if values is None:
        values = [_plain(Override(override.key, text).parsed.value()) for text in texts]
    return _at_least_one(list(dict(zip(texts, values, strict=True)).items()), override)


def _decimal_range(value: RangeSweep) -> Iterator[float]:
    """The range in decimal arithmetic: 0.1, 0.2, 0.3, and not 0.30000000000000004 or the stop."""
    return FloatRange(*(Decimal(f"{v:.12g}") for v in (value.start, value.stop, value.step)))


def _check_length(value: RangeSweep, override: Override) -> None:
    """Raise a ConfigError if a range has no end, or too many values, before they are counted out."""
    if value.step == 0:
        raise ConfigError(f"{override}: the step of a range cannot be 0")
    ends = [float(v) for v in (value.start, value.stop, value.step) if v is not None]
    if not all(map(math.isfinite, ends)) or not math.isfinite(length := (ends[-2] - ends[0]) / ends[-1]):
        raise ConfigError(f"{override}: expected finite numbers")
    if length > _MOST:
        raise ConfigError(
            f"{override}: {length:,.0f} values; expected at most {_MOST:,}: a larger step, or interval(LOW,HIGH) with --trials N"
        )


def _at_least_one(options: list[Option], override: Override) -> list[Option]:
    value = override.parsed.value()
    if not options:
        what = f"the range from {value.start} to {value.stop} in steps of {value.step} is" if isinstance(value, RangeSweep) else "this is"
        raise ConfigError(f"{override}: {what} empty; the stop of a range is not in it, and its step must lead there")
    if len(options) > _MOST:
        raise ConfigError(f"{override}: {len(options):,} values; expected at most {_MOST:,}")
    return options


def _plain(value: Any) -> Any:
    """A parsed value as JSON has it."""
    converted = HydraOverride._convert_value(value)
    return converted if converted is None or isinstance(converted, bool | int | float | str | list | dict) else str(converted)


def swept_keys(overrides: Sequence[Override]) -> list[str]:
    """The keys with several values, in order."""
    return [override.key for override in overrides if override.is_sweep]


def seeds_of(overrides: Sequence[Override], seeds: str | None) -> tuple[list[Override], list[int]]:
    """The overrides without `seed`, and the seeds.

    Args:
        overrides: may have `seed=7`, which is where counting starts, or `seed=1,2,3`, which are the seeds.
        seeds: --seeds, how many of them (5) or which (3,7,11).

    Raises:
        ConfigError: unless they are distinct whole numbers from 0, given in one of the two ways.
    """
    mine = next((override for override in overrides if override.key == "seed"), None)
    others = [override for override in overrides if override.key != "seed"]
    base = 0
    if mine is not None:
        found = [value if (number := whole(value)) is None else number for _, value in _options(mine, lambda group: [])]
        if not found or any(not isinstance(v, int) or isinstance(v, bool) or v < 0 for v in found):
            raise ConfigError(f"{mine}: expected whole numbers from 0, e.g. seed=0,1,2 or --seeds 3")
        if mine.is_sweep:
            if seeds is not None:
                raise ConfigError(f"{mine} and --seeds {seeds} both say which seeds; leave one out")
            return others, found
        base = found[0]
    read = [whole(part.strip()) for part in ("1" if seeds is None else seeds).split(",")]
    numbers = [number for number in read if number is not None and number >= 0]
    if len(numbers) < len(read):
        raise ConfigError(f"--seeds {seeds}: expected how many, e.g. 5, or which, e.g. 3,7,11")
    if len(numbers) == 1:
        if numbers[0] < 1:
            raise ConfigError(f"--seeds {seeds}: expected at least 1")
        if numbers[0] > _MOST:
            raise ConfigError(f"--seeds {seeds}: expected at most {_MOST:,}")
        return others, list(range(base, base + numbers[0]))
    if mine is not None:
        raise ConfigError(f"{mine} and --seeds {seeds} both say which seeds; leave one out")
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"--seeds {seeds}: a seed is there twice")
    return others, numbers


def expand(overrides: Sequence[Override], composer: Composer, yields: frozenset[str] = frozenset()) -> list[Point]:
    """The grid: every combination, the last override varying fastest, as Hydra's own sweeper orders it.

    A key that only some of the chosen algorithms have applies to their points and is left out of the others, and so is a key of `yields`
    in the points of an experiment that sets it itself.

    Raises:
        ConfigError: for a key that no algorithm has, and for an interval.
    """
    read = _read(overrides, composer)
    for swept in read:
        if swept.is_interval:
            raise ConfigError(f"{swept.override}: an interval is continuous; say how many settings to try with --trials N, or list values")
    read = _whole_numbers(read, _check_keys(read, composer))
    if math.prod(len(swept.options) for swept in read) > _MOST:
        raise ConfigError(
            f"{math.prod(len(s.options) for s in read):,} combinations; expected at most {_MOST:,}: search instead, with --trials N"
        )
    points: dict[tuple[Override, ...], Point] = {}
    for combination in itertools.product(*(swept.options for swept in read)):
        chosen = list(zip(read, combination, strict=True))
        keys = composer.keys(_groups((swept, option) for swept, option in chosen if swept.is_group))
        own = composer.settings_of("experiment", next((text for s, (text, _) in chosen if s.key == "experiment"), None)) if yields else {}
        kept = [
            (swept, option)
            for swept, option in chosen
            if swept.is_group or (_has(keys, swept.key) and not (swept.key in yields and swept.key in own))
        ]
        point = _point(kept)
        points.setdefault(point.overrides, point)
    return list(points.values())


def _groups(chosen: Iterator[tuple[_Swept, Option]]) -> dict[str, str | None]:
    return {swept.key: None if value is None else str(value) for swept, (_, value) in chosen}


def _point(chosen: list[tuple[_Swept, Option]]) -> Point:
    overrides = tuple(Override(swept.key, text) for swept, (text, _) in chosen)
    return Point(overrides=overrides, values={swept.key: value for swept, (_, value) in chosen if swept.is_sweep})


def _has(keys: dict[str, Any], key: str) -> bool:
    return key in keys or key == "env.kwargs" or key.startswith("env.kwargs.")


def _whole_numbers(read: list[_Swept], keys: dict[str, Any]) -> list[_Swept]:
    """The overrides, with 1e3 as 1000 where a setting is a whole number."""
    found = []
    for swept in read:
        if isinstance(keys.get(swept.key), int) and not isinstance(keys[swept.key], bool):
            options = {text if (n := whole(value)) is None else str(n): value if n is None else n for text, value in swept.options}
            swept = dataclasses.replace(swept, options=list(options.items()))
        found.append(swept)
    return found


def _check_keys(read: list[_Swept], composer: Composer) -> dict[str, Any]:
    """All keys that some choice of the groups has; raises for a key that none has."""
    groups = [swept for swept in read if swept.is_group]
    choices = [
        composer.keys(_groups(zip(groups, combination, strict=True))) for combination in itertools.product(*(g.options for g in groups))
    ]
    union = {key: value for keys in choices for key, value in keys.items()}
    algos = next((", ".join(text for text, _ in g.options) for g in groups if g.key == "algo"), str(union.get("algo.name")))
    for swept in read:
        if not swept.is_group:
            check_key(swept.override.parsed, union, algos)
    return union


# A space to search


@dataclass(frozen=True, kw_only=True)
class _Range:
    """An interval or a range of numbers."""

    low: float
    high: float
    step: float | None
    log: bool
    whole: bool

    def suggest(self, trial: Trial, key: str) -> Option:
        value: float
        if self.whole:
            value = trial.suggest_int(key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        else:
            value = trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)
        return repr(value), value

    def describe(self) -> str:
        low, high = (f"{int(v)}" if self.whole else f"{v:g}" for v in (self.low, self.high))
        step = f" in steps of {self.step:g}" if self.step is not None and (not self.whole or self.step != 1) else ""
        return f"{low} to {high}{step}, {'whole numbers, ' if self.whole else ''}{'log' if self.log else 'linear'} scale"


class SearchSpace:
    """The space of a search: groups first, then the keys that exist for them.

    Raises:
        ConfigError: for keys that do not exist, empty ranges, and scales that cannot be.
    """

    def __init__(self, overrides: Sequence[Override], composer: Composer) -> None:
        self._composer = composer
        self._read = _read(overrides, composer)
        self._read = _whole_numbers(self._read, _check_keys(self._read, composer))
        groups = [s for s in self._read if s.is_group]
        if not any(swept.is_sweep for swept in self._read):
            raise ConfigError("nothing to search: give a key several values, e.g. 'algo.learning_rate=interval(1e-5,1e-2)', or a --space")
        self._choices = [list(zip(groups, c, strict=True)) for c in itertools.product(*(g.options for g in groups))]
        union = {key: value for choice in self._choices for key, value in composer.keys(_groups(iter(choice))).items()}
        self._ranges = {s.key: found for s in self._read if (found := _range(s, union)) is not None}

    def suggest(self, trial: Trial) -> Point:
        """The point of a trial; the same point when it is called again with the same trial."""
        chosen: dict[str, Option] = {}
        groups = [swept for swept in self._read if swept.is_group]
        for swept in groups:
            chosen[swept.key] = self._suggest(trial, swept)
        keys = self._composer.keys(_groups((swept, chosen[swept.key]) for swept in groups))
        for swept in self._read:
            if not swept.is_group and _has(keys, swept.key):
                chosen[swept.key] = self._suggest(trial, swept)
        return _point([(swept, chosen[swept.key]) for swept in self._read if swept.key in chosen])

    def _suggest(self, trial: Trial, swept: _Swept) -> Option:
        if not swept.is_sweep:
            return swept.options[0]
        if swept.key in self._ranges:
            return self._ranges[swept.key].suggest(trial, swept.key)
        texts = [text for text, _ in swept.options]
        text = trial.suggest_categorical(swept.key, texts)
        return text, dict(swept.options)[text]

    def examples(self) -> list[Point]:
        """Points to check the space with: for every choice of groups, each key at each end, or at each of its values."""
        points: dict[tuple[Override, ...], Point] = {}
        for choice in self._choices:
            keys = self._composer.keys(_groups(iter(choice)))
            mine = [s for s in self._read if not s.is_group and _has(keys, s.key)]
            ends = {s.key: self._ends(s) for s in mine}
            base = {s.key: ends[s.key][0] for s in mine} | {s.key: option for s, option in choice}
            for varied in mine:
                for end in ends[varied.key]:
                    chosen = {**base, varied.key: end}
                    point = _point([(s, chosen[s.key]) for s in self._read if s.key in chosen])
                    points.setdefault(point.overrides, point)
            point = _point([(s, base[s.key]) for s in self._read if s.key in base])
            points.setdefault(point.overrides, point)
        return list(points.values())

    def _ends(self, swept: _Swept) -> list[Option]:
        found = self._ranges.get(swept.key)
        if found is None:
            return swept.options
        return [(repr(v), v) for v in ((int(found.low), int(found.high)) if found.whole else (found.low, found.high))]

    def describe(self) -> list[str]:
        """One line for every key that is searched."""
        return [f"{s.key}: {self._ranges[s.key].describe() if s.key in self._ranges else ', '.join(t for t, _ in s.options)}"
                for s in self._read if s.is_sweep]  # fmt: skip

    def fingerprint(self) -> dict[str, str]:
        """The searched keys with their ranges, and the fixed keys; studies are joined only if these are equal."""
        searched = dict(line.split(": ", 1) for line in self.describe())
        return searched | {s.key: f"={s.options[0][0]}" for s in self._read if not s.is_sweep}

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, as parameters and values of an Optuna trial.

        Raises:
            ConfigError: if anything is continuous.
        """
        for swept in self._read:
            if swept.is_interval:
                raise ConfigError(f"--sampler grid takes listed values, and {swept.override} is an interval; list them, or choose tpe")
        grid: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
        for point in expand([s.override for s in self._read], self._composer):
            texts = as_texts(point.overrides)
            told = {k: v if k in self._ranges else texts[k] for k, v in point.values.items()}
            grid.setdefault(tuple((k, str(v)) for k, v in told.items()), told)
        return list(grid.values())


def _range(swept: _Swept, keys: dict[str, Any]) -> _Range | None:
    """The range of an interval or range; None for listed values."""
    value, line = swept.override.parsed.value(), swept.override
    if isinstance(value, ChoiceSweep):
        return None
    whole = isinstance(keys.get(swept.key), int) and not isinstance(keys.get(swept.key), bool)
    if isinstance(value, RangeSweep):
        numbers = sorted(v for _, v in swept.options)
        if len(numbers) < 2 or not all(isinstance(v, int | float) for v in numbers):
            return None
        integers = all(isinstance(v, int) for v in numbers)
        return _Range(low=numbers[0], high=numbers[-1], step=abs(float(value.step)), log=False, whole=integers)
    if not isinstance(value, IntervalSweep):
        return None
    assert value.start is not None
    assert value.end is not None
    low, high, tags = float(value.start), float(value.end), set(value.tags or ())
    if unknown := tags - {"log", "linear"}:
        raise ConfigError(f"{line}: unknown tag {sorted(unknown)[0]!r}; expected tag(log, …) or tag(linear, …)")
    if not low < high or not math.isfinite(high - low):
        raise ConfigError(f"{line}: expected a lower end and a higher one, got {low:g} and {high:g}")
    log = "log" in tags or ("linear" not in tags and low > 0.0 and high / low >= LOG_FROM)
    if log and low <= 0.0:
        raise ConfigError(f"{line}: a log scale begins above 0, got {low:g}")
    if whole and (low != int(low) or high != int(high)):
        raise ConfigError(f"{line}: {swept.key} is a whole number, and so must be the ends of its interval")
    return _Range(low=low, high=high, step=None, log=log, whole=whole)


def load_space(name: str, composer: Composer) -> list[Override]:
    """The overrides of a search space: conf/search/<name>.yaml or a file, a mapping from keys to sweeps as on the command line.

    Raises:
        ConfigError: if there is none, or it is no such mapping.
    """
    candidates = [*(d / "search" / f"{name}.yaml" for d in composer.directories), Path(name)]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise ConfigError(f"--space {name}: no such search space or file; {did_you_mean(name, composer.options('search'))}")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path}: expected lines like `algo.learning_rate: interval(1e-5, 1e-2)`")
    nested = next((key for key, value in content.items() if isinstance(value, dict | list) or value is None), None)
    if nested is not None:
        raise ConfigError(f"{path}: {nested} must be one line, e.g. `{nested}: choice(1, 2)`")
    return read_overrides(f"{key}={'true' if value is True else 'false' if value is False else value}" for key, value in content.items())
