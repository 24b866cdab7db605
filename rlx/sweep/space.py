"""What is swept: from words in Hydra's sweep syntax to the points of a grid, or to a space that Optuna searches.

Hydra parses the words; the expansion is rlx's own, because Hydra composes the base configuration without the swept groups and so refuses a
key of an algorithm that is not the default.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.override_parser.types import ChoiceSweep, FloatRange, Glob, IntervalSweep, Override, RangeSweep, Transformer
from hydra.errors import HydraException

from rlx.config.compose import GROUPS, Composer
from rlx.config.overrides import check_key, did_you_mean, parse_overrides
from rlx.config.whole_numbers import whole
from rlx.errors import ConfigError

if TYPE_CHECKING:
    from optuna.trial import Trial

LOG_FROM = 100.0
"""The factor between the ends of an interval from which its scale is logarithmic, unless a tag says otherwise."""
_MOST = 10_000
"""More points than this are a slip of the keyboard."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting of a sweep: what its runs share, whatever their seed."""

    words: tuple[str, ...]
    """Complete single-valued words for `Composer.compose`, without seed."""
    values: dict[str, Any]
    """Swept key and value, as plain data, in the order of the command line."""

    def without(self, key: str) -> Point:
        """The same setting with a key left at its default."""
        words = tuple(word for word in self.words if word.partition("=")[0] != key)
        return Point(words=words, values={k: v for k, v in self.values.items() if k != key})


@dataclass(frozen=True, kw_only=True)
class _Word:
    """One word of the command line with everything that it may stand for."""

    key: str
    options: list[tuple[str, Any]]
    """Text and plain value of each; none for an interval."""
    swept: bool
    override: Override

    @property
    def is_group(self) -> bool:
        return self.key in GROUPS


def _read(words: list[str], composer: Composer) -> list[_Word]:
    return [_Word(key=o.key_or_group, options=_options(o, composer), swept=o.is_sweep_override(), override=o)
            for o in parse_overrides(words, allow_sweeps=True)]  # fmt: skip


def _options(override: Override, composer: Composer) -> list[tuple[str, Any]]:
    """What a word may stand for, repetitions dropped.

    Raises:
        ConfigError: if that is nothing.
    """
    if not override.is_sweep_override():
        return [(override.get_value_element_as_str(), _plain(override.value()))]
    value, line = override.value(), str(override.input_line)
    if isinstance(value, IntervalSweep):
        return []
    if isinstance(value, Glob):
        if override.key_or_group not in GROUPS:
            raise ConfigError(
                f"{line}: glob(…) matches the members of a group: {', '.join(GROUPS)}; list the values of {override.key_or_group}"
            )
        there = composer.options(override.key_or_group)
        matching = value.filter(there)
        if not matching:
            raise ConfigError(f"{line}: matches none of {', '.join(there)}")
        return [(name, name) for name in matching]
    if isinstance(value, RangeSweep):
        _check_length(value, line)
    try:
        if isinstance(value, RangeSweep) and isinstance(value.range(), FloatRange) and not value.shuffle:
            return _at_least_one([(repr(v), v) for v in _decimal_range(value)], override)
        texts = list(override.sweep_iterator(transformer=Transformer.encode))
        values = [_plain(v) for v in override.sweep_iterator(transformer=Transformer.identity)] if not _shuffles(value) else None
    except (HydraException, ValueError) as error:
        raise ConfigError(f"{line}: cannot be expanded ({str(error).splitlines()[0]})") from error
    if values is None:
        values = [_plain(parse_overrides([f"x={text}"])[0].value()) for text in texts]
    return _at_least_one(list(dict(zip(map(str, texts), values, strict=True)).items()), override)


def _decimal_range(value: RangeSweep) -> Iterator[float]:
    """0.1, 0.2, 0.3 and not 0.30000000000000004, nor a stop that was missed by as little."""
    return FloatRange(*(Decimal(f"{v:.12g}") for v in (value.start, value.stop, value.step)))


def _check_length(value: RangeSweep, line: str) -> None:
    """Raise a ConfigError if a range has no end, or more values than anybody wants, before they are counted out."""
    if value.step == 0:
        raise ConfigError(f"{line}: the step of a range cannot be 0")
    ends = [float(v) for v in (value.start, value.stop, value.step) if v is not None]
    if not all(map(math.isfinite, ends)) or not math.isfinite(length := (ends[-2] - ends[0]) / ends[-1]):
        raise ConfigError(f"{line}: expected finite numbers")
    if length > _MOST:
        raise ConfigError(f"{line}: {length:,.0f} values; expected at most {_MOST:,}: a larger step, or interval(LOW,HIGH) with --trials N")


def _at_least_one(options: list[tuple[str, Any]], override: Override) -> list[tuple[str, Any]]:
    value, line = override.value(), str(override.input_line)
    if not options:
        what = f"the range from {value.start} to {value.stop} in steps of {value.step} is" if isinstance(value, RangeSweep) else "this is"
        raise ConfigError(f"{line}: {what} empty; the stop of a range is not in it, and its step must lead there")
    if len(options) > _MOST:
        raise ConfigError(f"{line}: {len(options):,} values; expected at most {_MOST:,}")
    return options


def _shuffles(value: Any) -> bool:
    return bool(getattr(value, "shuffle", False))


def _plain(value: Any) -> Any:
    """A parsed value as JSON has it."""
    converted = Override._convert_value(value)
    return converted if converted is None or isinstance(converted, bool | int | float | str | list | dict) else str(converted)


def swept_keys(words: list[str]) -> list[str]:
    """The keys that have several values, in the order of the words."""
    return [o.key_or_group for o in parse_overrides(words, allow_sweeps=True) if o.is_sweep_override()]


def seeds_of(words: list[str], seeds: str | None) -> tuple[list[str], list[int]]:
    """Take the seeds out of the words.

    Args:
        words: may have `seed=7`, which is where counting starts, or `seed=1,2,3`, which are the seeds.
        seeds: --seeds, how many of them (5) or which (3,7,11).

    Raises:
        ConfigError: unless they are distinct whole numbers from 0, said in one way.
    """
    mine = [o for o in parse_overrides(words, allow_sweeps=True) if o.key_or_group == "seed"]
    others = [w for w in words if w.partition("=")[0] != "seed"]
    base = 0
    if mine:
        found = [value if (number := whole(value)) is None else number for _, value in _options(mine[0], None)]  # type: ignore[arg-type]  # a seed is no group
        if not found or any(not isinstance(v, int) or isinstance(v, bool) or v < 0 for v in found):
            raise ConfigError(f"{mine[0].input_line}: expected whole numbers from 0, e.g. seed=0,1,2 or --seeds 3")
        if mine[0].is_sweep_override():
            if seeds is not None:
                raise ConfigError(f"{mine[0].input_line} and --seeds {seeds} both say which seeds; leave one out")
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
    if mine:
        raise ConfigError(f"{mine[0].input_line} and --seeds {seeds} both say which seeds; leave one out")
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"--seeds {seeds}: a seed is there twice")
    return others, numbers


def expand(words: list[str], composer: Composer) -> list[Point]:
    """The grid: every combination, the last word varying fastest, as Hydra's own sweeper orders it.

    A key that only some of the chosen algorithms have applies to their points and is left out of the others.

    Raises:
        ConfigError: for a key that none has, and for what cannot be listed.
    """
    read = _read(words, composer)
    for word in read:
        if isinstance(word.override.value(), IntervalSweep):
            raise ConfigError(
                f"{word.override.input_line}: an interval is continuous; say how many settings to try with --trials N, or list values"
            )
    read = _whole_numbers(read, _check_keys(read, composer))
    if math.prod(len(word.options) for word in read) > _MOST:
        raise ConfigError(
            f"{math.prod(len(w.options) for w in read):,} combinations; expected at most {_MOST:,}: search instead, with --trials N"
        )
    points: dict[tuple[str, ...], Point] = {}
    for combination in itertools.product(*(word.options for word in read)):
        chosen = list(zip(read, combination, strict=True))
        keys = composer.keys(_groups((word, option) for word, option in chosen if word.is_group))
        kept = [(word, option) for word, option in chosen if word.is_group or _has(keys, word.key)]
        point = _point(kept)
        points.setdefault(point.words, point)
    return list(points.values())


def _groups(chosen: Iterator[tuple[_Word, tuple[str, Any]]]) -> dict[str, str | None]:
    return {word.key: None if value is None else str(value) for word, (_, value) in chosen}


def _point(chosen: list[tuple[_Word, tuple[str, Any]]]) -> Point:
    words = tuple(f"{word.key}={text}" for word, (text, _) in chosen)
    return Point(words=words, values={word.key: value for word, (_, value) in chosen if word.swept})


def _has(keys: dict[str, Any], key: str) -> bool:
    return key in keys or key == "env.kwargs" or key.startswith("env.kwargs.")


def _whole_numbers(read: list[_Word], keys: dict[str, Any]) -> list[_Word]:
    """The words, with 1e3 as 1000 where a setting is a whole number."""
    found = []
    for word in read:
        if isinstance(keys.get(word.key), int) and not isinstance(keys[word.key], bool):
            options = {text if (n := whole(value)) is None else str(n): value if n is None else n for text, value in word.options}
            word = dataclasses.replace(word, options=list(options.items()))
        found.append(word)
    return found


def _check_keys(read: list[_Word], composer: Composer) -> dict[str, Any]:
    """All keys that some choice of the groups has; raises for a key that none has."""
    groups = [word for word in read if word.is_group]
    choices = [
        composer.keys(_groups(zip(groups, combination, strict=True))) for combination in itertools.product(*(g.options for g in groups))
    ]
    union = {key: value for keys in choices for key, value in keys.items()}
    algos = next((", ".join(text for text, _ in g.options) for g in groups if g.key == "algo"), str(union.get("algo.name")))
    for word in read:
        if not word.is_group:
            check_key(word.override, union, algos)
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

    def suggest(self, trial: Trial, key: str) -> tuple[str, Any]:
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
    """What a search may try: groups first, then the keys that exist for them.

    Raises:
        ConfigError: for keys that do not exist, empty ranges, and scales that cannot be.
    """

    def __init__(self, words: list[str], composer: Composer) -> None:
        self._composer = composer
        self._read = _read(words, composer)
        self._read = _whole_numbers(self._read, _check_keys(self._read, composer))
        groups = [w for w in self._read if w.is_group]
        if not any(word.swept for word in self._read):
            raise ConfigError("nothing to search: give a key several values, e.g. 'algo.learning_rate=interval(1e-5,1e-2)', or a --space")
        self._choices = [list(zip(groups, c, strict=True)) for c in itertools.product(*(g.options for g in groups))]
        union = {key: value for choice in self._choices for key, value in composer.keys(_groups(iter(choice))).items()}
        self._ranges = {w.key: found for w in self._read if (found := _range(w, union)) is not None}

    def suggest(self, trial: Trial) -> Point:
        """The point that a trial stands for; asked again of the same trial, the same point."""
        chosen: dict[str, tuple[str, Any]] = {}
        groups = [word for word in self._read if word.is_group]
        for word in groups:
            chosen[word.key] = self._suggest(trial, word)
        keys = self._composer.keys(_groups((word, chosen[word.key]) for word in groups))
        for word in self._read:
            if not word.is_group and _has(keys, word.key):
                chosen[word.key] = self._suggest(trial, word)
        return _point([(word, chosen[word.key]) for word in self._read if word.key in chosen])

    def _suggest(self, trial: Trial, word: _Word) -> tuple[str, Any]:
        if not word.swept:
            return word.options[0]
        if word.key in self._ranges:
            return self._ranges[word.key].suggest(trial, word.key)
        texts = [text for text, _ in word.options]
        text = trial.suggest_categorical(word.key, texts)
        return text, dict(word.options)[text]

    def examples(self) -> list[Point]:
        """Points that show whether the space is valid: for every choice of groups, each key at each end, or at each of its values."""
        points: dict[tuple[str, ...], Point] = {}
        for choice in self._choices:
            keys = self._composer.keys(_groups(iter(choice)))
            mine = [w for w in self._read if not w.is_group and _has(keys, w.key)]
            ends = {w.key: self._ends(w) for w in mine}
            base = {w.key: ends[w.key][0] for w in mine} | {w.key: option for w, option in choice}
            for varied in mine:
                for end in ends[varied.key]:
                    chosen = {**base, varied.key: end}
                    point = _point([(w, chosen[w.key]) for w in self._read if w.key in chosen])
                    points.setdefault(point.words, point)
            point = _point([(w, base[w.key]) for w in self._read if w.key in base])
            points.setdefault(point.words, point)
        return list(points.values())

    def _ends(self, word: _Word) -> list[tuple[str, Any]]:
        found = self._ranges.get(word.key)
        if found is None:
            return word.options
        return [(repr(v), v) for v in ((int(found.low), int(found.high)) if found.whole else (found.low, found.high))]

    def describe(self) -> list[str]:
        """One line for every key that is searched."""
        return [f"{w.key}: {self._ranges[w.key].describe() if w.key in self._ranges else ', '.join(t for t, _ in w.options)}"
                for w in self._read if w.swept]  # fmt: skip

    def fingerprint(self) -> dict[str, str]:
        """What two studies must have in common: the searched keys with their ranges, and what is fixed."""
        searched = dict(line.split(": ", 1) for line in self.describe())
        return searched | {w.key: f"={w.options[0][0]}" for w in self._read if not w.swept}

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, as what a trial is to be told: parameter and value.

        Raises:
            ConfigError: if anything is continuous.
        """
        for word in self._read:
            if isinstance(word.override.value(), IntervalSweep):
                raise ConfigError(
                    f"--sampler grid takes listed values, and {word.override.input_line} is an interval; list them, or choose tpe"
                )
        grid: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
        for point in expand([str(w.override.input_line) for w in self._read], self._composer):
            texts = dict(word.split("=", 1) for word in point.words)
            told = {k: v if k in self._ranges else texts[k] for k, v in point.values.items()}
            grid.setdefault(tuple((k, str(v)) for k, v in told.items()), told)
        return list(grid.values())


def _range(word: _Word, keys: dict[str, Any]) -> _Range | None:
    """The numbers that an interval or a range stands for; None for listed values."""
    value, line = word.override.value(), word.override.input_line
    if isinstance(value, ChoiceSweep):
        return None
    whole = isinstance(keys.get(word.key), int) and not isinstance(keys.get(word.key), bool)
    if isinstance(value, RangeSweep):
        numbers = sorted(v for _, v in word.options)
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
        raise ConfigError(f"{line}: {word.key} is a whole number, and so must be the ends of its interval")
    return _Range(low=low, high=high, step=None, log=log, whole=whole)


def load_space(name: str, composer: Composer) -> list[str]:
    """The words of a search space: conf/search/<name>.yaml or a file, a mapping from keys to sweeps as on the command line.

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
    return [f"{key}={'true' if value is True else 'false' if value is False else value}" for key, value in content.items()]
