"""A sweep on disk: sweep.json says what it is, ledger.jsonl what happened, and its runs are ordinary runs beside them.

Whether a run is finished is for the run itself to say. The ledger adds what no run knows: which trials there are, and which attempts
failed, with their errors. It is append-only, and a torn last line is ignored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlx.config.compose import Composed, differences, save_config
from rlx.config.overrides import is_resumable
from rlx.config.schema import RunConfig
from rlx.errors import ConfigError, StorageError
from rlx.files import (
    UnreadableError,
    clean_temporaries,
    flocked,
    is_directory,
    open_to_append,
    parse_json,
    read_file,
    read_json,
    replace_durably,
)
from rlx.store.runs import MEMBER, RunDir, is_unborn, members, new_meta, now
from rlx.store.trust import is_signed, origins, sign, why_unsigned
from rlx.sweep.space import Point

SPEC = "sweep.json"
LEDGER = "ledger.jsonl"
FORMAT = 1
_AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.\d]*\+00:00", re.ASCII)
_LEDGER_LIMIT = 256 << 20
POINT = re.compile(r"\d{3,9}", re.ASCII)
"""Names of points; with a seed they name the directories of runs."""


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
    """What a sweep is. Two commands with the same spec are the same sweep."""

    words: list[str]
    """The KEY=VALUE words of the command, without `seed`."""
    seeds: list[int]
    swept: list[str]
    objective: str
    direction: Literal["maximize", "minimize"] = "maximize"
    aggregate: str = "iqm"
    config_dir: str | None = None
    search: Search | None = None

    def identity(self) -> dict[str, Any]:
        """What must be equal for two commands to be the same sweep."""
        return asdict(self)


@dataclass
class Failure:
    """How the last attempt at a run failed."""

    run: str
    error: str
    exit_code: int = 1
    attempts: int = 1


@dataclass
class History:
    """What the ledger tells."""

    points: dict[str, Point] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    """For every point of a search, the number of its trial in the study."""
    told: dict[str, str] = field(default_factory=dict)
    """For every point of a search that has ended, how: complete, pruned or failed."""
    values: dict[str, float] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)

    def add(self, e: dict[str, Any]) -> None:
        run, point = str(e.get("run", "")), str(e.get("point", ""))
        match e["event"]:
            case "trial" if POINT.fullmatch(point):
                number, found = _count(e["number"]), _point(e)
                self.points[point], self.numbers[point] = found, number
            case "told" if POINT.fullmatch(point) and e["outcome"] in ("complete", "pruned", "failed"):
                self.told[point] = e["outcome"]
                if e.get("value") is not None:
                    self.values[point] = float(e["value"])
            case "failed" if MEMBER.fullmatch(run):
                self.failures[run] = Failure(run, str(e.get("error")), int(e.get("exit_code") or 1), int(e.get("attempt") or 1))
            case "retry":
                self.failures.pop(run, None)
                tried_again = run.rpartition("-s")[0]
                if self.told.get(tried_again) == "failed":
                    del self.told[tried_again]
            case "end" if e.get("status") in ("finished", "paused"):
                self.failures.pop(run, None)


class SweepDir:
    """One sweep on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_trusted = self.is_vouched_for = False
        """Whether it is the user's own, or the user has vouched for it."""

    @property
    def name(self) -> str:
        return self.path.name

    @staticmethod
    def is_sweep(path: Path) -> bool:
        return not path.name.startswith(".") and os.path.lexists(path / SPEC)

    @classmethod
    def create(cls, root: Path, name: str, spec: Spec, points: dict[str, Point], modules: dict[str, str | None] | None = None) -> SweepDir:
        """Make the directory of a new sweep.

        Raises:
            ConfigError: if the name cannot be a directory or is taken.
            StorageError: if it cannot be written.
        """
        content = {"format": FORMAT, "name": name, "created": now(), "id": secrets.token_hex(16), "modules": modules or {}}
        sweep = cls(RunDir.make(root, name, {SPEC: _written(content, spec, points, signed=True)}))
        sweep.is_trusted = True
        return sweep

    def write(self, spec: Spec, points: dict[str, Point]) -> None:
        """Replace sweep.json; a sweep that was not the user's own does not become that."""
        content = {"format": FORMAT, "name": self.name, "created": now(), **self.content()}
        replace_durably(self.path / SPEC, _written(content, spec, points, signed=self.is_own()))

    def is_own(self) -> bool:
        """Whether this user started the sweep, with the modules that are found here, and nobody has changed what it is."""
        content = dict(self.content())
        signature, modules = content.pop("signature", None), content.get("modules")
        if not is_signed(content, signature) or not isinstance(modules, dict):
            return False
        return origins(f"{module}:" for module in modules) == modules

    def trust(self, vouched_for: bool) -> None:
        """Decide whether code that the sweep names may be run, before its words are composed.

        Raises:
            ConfigError: if it is another user's, nobody vouches for it, and it cannot be gone on with as data.
        """
        self.is_vouched_for = vouched_for
        self.is_trusted = vouched_for or self.is_own()
        spec = self.spec()
        search = spec.search or Search(trials=1)
        reasons = {
            f"takes its configuration from the directory {spec.config_dir}": spec.config_dir is not None,
            f"writes its study to {search.storage}": search.storage is not None,
            "has a study of the sampler cmaes, which is kept as a pickle": search.sampler == "cmaes",
        }
        if not self.is_trusted and (reason := next((reason for reason, applies in reasons.items() if applies), None)):
            raise ConfigError(f"{self.path} {reason}; if you trust where this sweep comes from, say --trust{why_unsigned()}")

    def is_own_trial(self, point: str, words: list[str]) -> bool:
        """Whether this user's search wrote that a point has these words."""
        trials = [e for e in self.events() if e["event"] == "trial" and e.get("point") == point and e.get("words") == words]
        return any(is_signed(self._trial(point, words), e.get("signature")) for e in trials)

    def log_trial(self, point: str, number: int, found: Point) -> None:
        """Append the words of a trial, which will be composed when the search goes on, with a signature."""
        words = list(found.words)
        self.log("trial", point=point, number=number, words=words, values=found.values, signature=sign(self._trial(point, words)))

    def _trial(self, point: str, words: list[str]) -> dict[str, Any]:
        return {"sweep": self.content().get("id"), "point": point, "words": words}

    @classmethod
    def open(cls, root: Path, reference: str) -> SweepDir:
        """Find a sweep by name or path, or as `latest`.

        Raises:
            ConfigError: if there is none.
        """
        sweeps = list_sweeps(root)
        if reference == "latest":
            if not sweeps:
                raise ConfigError(f"there are no sweeps in {root} yet; start one: `rlx sweep algo=ppo env=cartpole --seeds 5`")
            return sweeps[-1]
        for path in (root / reference, Path(reference)):
            if cls.is_sweep(path):
                return cls(path)
            if (path / "meta.json").is_file():
                raise ConfigError(
                    f"{path} is a run and no sweep: `rlx resume {reference}` goes on with it, `rlx show {reference}` shows it"
                )
        near = difflib.get_close_matches(reference, [s.name for s in sweeps], n=1)
        there = f"the sweeps there are: {', '.join(s.name for s in sweeps[-8:])}" if sweeps else "there are no sweeps yet"
        raise ConfigError(f"{reference}: no such sweep in {root}; {f'did you mean {near[0]}?' if near else there}")

    def content(self) -> dict[str, Any]:
        """sweep.json, or {} where it is missing or damaged."""
        try:
            return read_json(self.path / SPEC)
        except UnreadableError:
            return {}

    def spec(self) -> Spec:
        """Raises a ConfigError if sweep.json cannot be used."""
        with self._readable() as content:
            search = content["search"]
            given = {name: content[name] for name in Spec.__dataclass_fields__}
            spec = Spec(**given | {"search": Search(**search) if search else None})
            _check(spec)
            return spec

    def grid(self) -> dict[str, Point]:
        """The points that were known when the sweep began: all of a grid, none of a search. Raises as `spec` does."""
        with self._readable() as content:
            points = {key: _point(p) for key, p in content["points"].items()}
            if not all(map(POINT.fullmatch, points)):
                raise ValueError("points")
            return points

    @contextmanager
    def _readable(self) -> Iterator[dict[str, Any]]:
        """sweep.json, which the block may find to be other than it should."""
        try:
            content = self.content()
            if content["format"] != FORMAT:
                raise ValueError(content["format"])
            yield content
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{self.path / SPEC} is damaged, or of another version of rlx; its runs are intact: `rlx compare {self.name}`"
            ) from error

    def runs(self) -> list[RunDir]:
        """The runs that there are so far, in order."""
        return [RunDir(p) for p in members(self.path)]

    def run(self, point: str, seed: int) -> RunDir:
        """The run of a point and a seed, which need not exist yet."""
        name = f"{point}-s{seed}"
        if not MEMBER.fullmatch(name):
            raise ConfigError(f"{self.path} has a run {name!r}, which rlx would not name so; expected 000-s0 and the like")
        return RunDir(self.path / name)

    def create_run(self, point: str, seed: int, composed: Composed, values: dict[str, Any]) -> RunDir:
        """The run of a point and a seed; made if it does not exist."""
        run = self.run(point, seed)
        config = dataclasses.replace(composed.config, seed=seed)
        seeded = dataclasses.replace(composed, config=config)
        meta = {**new_meta(seeded), "sweep": self.name, "point": point, "values": values}
        if not os.path.lexists(run.path) or is_unborn(run.path):
            return RunDir.create(self.path, run.name, config, meta)
        if not is_directory(run.path):
            raise ConfigError(f"{run.path} is a link or a file, and no run of this sweep: remove it")
        if not os.path.lexists(run.path / "config.yaml") and not os.path.lexists(run.path / "meta.json"):
            replace_durably(run.path / "config.yaml", save_config(config).encode())  # what is left of it is not thrown away
        found = self._check_run(run, config)
        if not os.path.lexists(run.path / "meta.json"):
            run.restore_meta(found, meta, signed=self.is_trusted)
        return run

    def _check_run(self, run: RunDir, config: RunConfig) -> RunConfig:
        """Raise a ConfigError if a run that is there is neither the user's own nor what the sweep asks for."""
        found = run.config(trust=True)  # what it names is compared with what the sweep names
        changed = [f"{k} is {a} there and {b} in the sweep" for k, (a, b) in differences(found, config).items() if not is_resumable(k)]
        if changed and not run.is_own():
            raise ConfigError(f"{run.path} is not the run that {self.name} would start: {', '.join(changed)}; move it away")
        return found

    # The ledger

    def log(self, event: str, **details: Any) -> None:
        """Append an event; it reaches the operating system at once."""
        line = json.dumps({"at": now(), "event": event, **details}).encode() + b"\n"
        try:
            with open_to_append(self.path / LEDGER, readable=True) as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - 1))
                torn = size > 0 and file.read(1) != b"\n"  # a power cut may have left half a line
                file.write(b"\n" + line if torn else line)
        except OSError as error:
            why = error.reason if isinstance(error, UnreadableError) else f"cannot be written ({error.strerror})"
            raise StorageError(f"{self.path / LEDGER} {why}; put it aside, or free some space, then resume") from error

    def events(self) -> list[dict[str, Any]]:
        """What happened, in order; lines that cannot be read are left out."""
        events = []
        try:
            lines = read_file(self.path / LEDGER, limit=_LEDGER_LIMIT).split(b"\n")
        except UnreadableError:
            return []
        for line in lines:
            with contextlib.suppress(ValueError):
                event = parse_json(line)
                if isinstance(event.get("event"), str) and _AT.fullmatch(str(event.get("at"))):
                    events.append(event)
        return events

    def history(self) -> History:
        """What the events come to; one that lacks something is left out.

        Raises:
            ConfigError: if sweep.json cannot be used.
        """
        history = History(points=self.grid())
        for event in self.events():
            with contextlib.suppress(KeyError, TypeError, ValueError):
                history.add(event)
        return history

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Drive the sweep; the kernel lets go of it however the process ends.

        Raises:
            ConfigError: if another process drives it.
        """
        with flocked(self.path / ".lock") as free:
            if not free:
                shared = "; a process that shares its study needs a runs directory of its own, RLX_RUNS_DIR=…" if self._is_shared() else ""
                raise ConfigError(
                    f"{self.path} is being worked on by another process; `rlx ls --sweep {self.name}` shows how far it is{shared}"
                )
            clean_temporaries(self.path)
            yield

    def _is_shared(self) -> bool:
        search = self.content().get("search")
        return isinstance(search, dict) and search.get("storage") is not None

    def is_locked(self) -> bool:
        return RunDir(self.path).is_locked()


def _written(content: dict[str, Any], spec: Spec, points: dict[str, Point], *, signed: bool) -> bytes:
    """sweep.json, signed with all that it says."""
    content |= asdict(spec) | {"points": {key: {"words": list(p.words), "values": p.values} for key, p in points.items()}}
    content.pop("signature", None)
    return json.dumps(content | {"signature": sign(content) if signed else None}, indent=1).encode()


def _point(content: dict[str, Any]) -> Point:
    words, values = content["words"], content["values"]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words) or not isinstance(values, dict):
        raise TypeError("point")
    return Point(words=tuple(words), values=values)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("count")
    return value


def _check(spec: Spec) -> None:
    """Raise a ValueError or TypeError unless the types are those that are written down."""
    texts = [spec.objective, spec.aggregate, *spec.words, *spec.swept, *([] if spec.config_dir is None else [spec.config_dir])]
    if not spec.seeds or spec.direction not in ("maximize", "minimize") or spec.aggregate not in ("iqm", "mean", "median", "min", "max"):
        raise ValueError("spec")
    for each in (spec.words, spec.swept, spec.seeds):
        if not isinstance(each, list):
            raise TypeError("spec")
    for seed in spec.seeds:
        _count(seed)
    if spec.search is not None:
        texts += [spec.search.sampler, spec.search.pruner, *([] if spec.search.storage is None else [spec.search.storage])]
        if not _count(spec.search.trials) >= 1 or not 2 <= _count(spec.search.rungs) <= 8:
            raise ValueError("search")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("spec")


def list_sweeps(root: Path) -> list[SweepDir]:
    """Every sweep in a directory, oldest first."""
    if not root.is_dir():
        return []
    sweeps = [SweepDir(p) for p in root.iterdir() if SweepDir.is_sweep(p)]
    return sorted(sweeps, key=lambda s: (str(s.content().get("created", "")), s.name))
