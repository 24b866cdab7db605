"""A sweep's directory: sweep.json (`sweep_spec`), ledger.jsonl (`ledger`), a study, and the directories of its runs."""

from __future__ import annotations

import dataclasses
import difflib
import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlx.config.saved import differences, save_config
from rlx.config.schema import RunConfig, is_resumable
from rlx.errors import ConfigError
from rlx.files import UnreadableError, is_directory, read_json, replace_durably
from rlx.store.labels import NO_LABELS, Labels
from rlx.store.layout import LEDGER, MEMBER, SPEC, is_sweep, is_unborn, members
from rlx.store.ledger import History, append_event, read_events, read_history
from rlx.store.lock import is_locked, locked
from rlx.store.runs import RunDir, new_meta
from rlx.store.sweep_spec import FORMAT, Point, Search, Spec, as_texts, read_points, read_spec, write_spec
from rlx.store.times import now
from rlx.trust import is_signed, origins_of, sign, why_unsigned

if TYPE_CHECKING:
    from rlx.config.compose import Composed


class SweepDir:
    """One sweep on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_trusted = self.is_vouched_for = False
        """Whether the user started it, or has said --trust; whether the user has said --trust."""

    @property
    def name(self) -> str:
        return self.path.name

    @classmethod
    def create(
        cls,
        root: Path,
        name: str,
        spec: Spec,
        points: dict[str, Point],
        modules: dict[str, str | None] | None = None,
        labels: Labels = NO_LABELS,
    ) -> SweepDir:
        """Make the directory of a new sweep.

        Raises:
            ConfigError: if the name cannot be a directory or is taken.
            StorageError: if it cannot be written.
        """
        content = {
            "format": FORMAT,
            "name": name,
            "created": now(),
            "id": secrets.token_hex(16),
            "modules": modules or {},
            **labels.as_meta(),
        }
        sweep = cls(RunDir.make(root, name, {SPEC: write_spec(content, spec, points, signed=True)}))
        sweep.is_trusted = True
        return sweep

    def write(self, spec: Spec, points: dict[str, Point], labels: Labels = NO_LABELS) -> None:
        """Replace sweep.json; it is signed only if it was."""
        content = {"format": FORMAT, "name": self.name, "created": now(), **self.content(), **labels.as_meta()}
        replace_durably(self.path / SPEC, write_spec(content, spec, points, signed=self.is_own()))

    @property
    def labels(self) -> Labels:
        """The notes and tags of the sweep, which its runs get."""
        return Labels.of(self.content())

    def set_labels(self, labels: Labels) -> None:
        """Replace notes and tags of the sweep and its runs, each where `labels` has some; the sweep is locked by the caller."""
        self.write(self.spec(), self.grid(), labels)
        for run in self.runs():
            if not run.is_locked():
                run.set_labels(labels)

    def is_own(self) -> bool:
        """Whether this user started the sweep, with modules from the same files as here, and sweep.json was not changed."""
        content = dict(self.content())
        signature, modules = content.pop("signature", None), content.get("modules")
        if not is_signed(content, signature) or not isinstance(modules, dict):
            return False
        return origins_of(modules) == modules

    def trust(self, vouched_for: bool) -> None:
        """Decide whether code that the sweep names may be run, before its overrides are composed.

        Raises:
            ConfigError: if it is not trusted and needs more than plain data.
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

    def is_own_trial(self, key: str, point: Point) -> bool:
        """Whether this user's search wrote that a point has these overrides."""
        content = as_texts(point.overrides)
        trials = [e for e in self.events() if e["event"] == "trial" and e.get("point") == key and e.get("overrides") == content]
        return any(is_signed(self._trial(key, content), e.get("signature")) for e in trials)

    def log_trial(self, key: str, number: int, point: Point) -> None:
        """Append a trial with its overrides, signed, since a resumed search composes them."""
        content = as_texts(point.overrides)
        self.log("trial", point=key, number=number, overrides=content, values=point.values, signature=sign(self._trial(key, content)))

    def _trial(self, key: str, content: dict[str, str]) -> dict[str, Any]:
        return {"sweep": self.content().get("id"), "point": key, "overrides": list(content.items())}

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
            if is_sweep(path):
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
        """The specification. Raises a ConfigError if sweep.json cannot be used."""
        with self._readable() as content:
            return read_spec(content)

    def grid(self) -> dict[str, Point]:
        """The points in sweep.json: all of a grid, none of a search. Raises as `spec` does."""
        with self._readable() as content:
            return read_points(content)

    @contextmanager
    def _readable(self) -> Iterator[dict[str, Any]]:
        """sweep.json for the block, which raises if it is damaged."""
        try:
            yield self.content()
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
        meta = {**new_meta(seeded, self.labels), "sweep": self.name, "point": point, "values": values}
        if not os.path.lexists(run.path) or is_unborn(run.path):
            return RunDir.create(self.path, run.name, config, meta)
        if not is_directory(run.path):
            raise ConfigError(f"{run.path} is a link or a file, and no run of this sweep: remove it")
        if not os.path.lexists(run.path / "config.yaml") and not os.path.lexists(run.path / "meta.json"):
            replace_durably(run.path / "config.yaml", save_config(config).encode())  # a killed run without both: its checkpoints are kept
        found = self._check_run(run, config)
        if not os.path.lexists(run.path / "meta.json"):
            run.restore_meta(found, meta, signed=self.is_trusted)
        return run

    def _check_run(self, run: RunDir, config: RunConfig) -> RunConfig:
        """Raise a ConfigError if a run on disk is neither the user's own nor the one of the sweep."""
        found = run.config(trust=True)  # only compared with the sweep's
        changed = [f"{k} is {a} there and {b} in the sweep" for k, (a, b) in differences(found, config).items() if not is_resumable(k)]
        if changed and not run.is_own():
            raise ConfigError(f"{run.path} is not the run that {self.name} would start: {', '.join(changed)}; move it away")
        return found

    # The ledger

    def log(self, event: str, **details: Any) -> None:
        """Append an event to the ledger. Raises a StorageError if it cannot be written."""
        append_event(self.path / LEDGER, {"at": now(), "event": event, **details})

    def events(self) -> list[dict[str, Any]]:
        """The events of the ledger, in order."""
        return read_events(self.path / LEDGER)

    def history(self) -> History:
        """The state that the events add up to. Raises a ConfigError if sweep.json cannot be used."""
        return read_history(self.grid(), self.events())

    # The lock

    def lock(self) -> AbstractContextManager[None]:
        """Hold the sweep while it is driven. Raises a ConfigError if another process drives it."""
        shared = "; a process that shares its study needs a runs directory of its own, RLX_RUNS_DIR=…" if self._is_shared() else ""
        refusal = f"{self.path} is being worked on by another process; `rlx ls --sweep {self.name}` shows how far it is{shared}"
        return locked(self.path, refusal=refusal)

    def _is_shared(self) -> bool:
        search = self.content().get("search")
        return isinstance(search, dict) and search.get("storage") is not None

    def is_locked(self) -> bool:
        """Whether a process drives the sweep on this machine."""
        return is_locked(self.path)


def list_sweeps(root: Path) -> list[SweepDir]:
    """Every sweep in a directory, oldest first."""
    if not root.is_dir():
        return []
    sweeps = [SweepDir(p) for p in root.iterdir() if is_sweep(p)]
    return sorted(sweeps, key=lambda s: (str(s.content().get("created", "")), s.name))
