"""A run's directory: config.yaml, meta.json, metrics.jsonl, checkpoints/. Looking into one needs no torch."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import platform
import re
import secrets
import socket
import time
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlx.checkpoint import find_checkpoints
from rlx.config.cadence import CADENCES, COMMAND_LINE
from rlx.config.saved import differences, parse_config, read_config_text, save_config
from rlx.config.schema import RunConfig, is_resumable
from rlx.errors import ConfigError, StorageError
from rlx.files import (
    UnreadableError,
    clean_temporaries,
    create_directory,
    read_json,
    replace_durably,
)
from rlx.store.labels import NO_LABELS, Labels
from rlx.store.layout import is_run, is_sweep, is_unborn, runs_directory
from rlx.store.lock import is_locked, locked
from rlx.store.provenance import commit
from rlx.store.record import read_metrics
from rlx.store.times import now
from rlx.trust import code_named, is_signed, origins, refuse_module, sign

if TYPE_CHECKING:
    from rlx.config.compose import Composed


_VERSIONS = ("rlx", "torch", "numpy", "gymnasium", "mujoco", "box2d", "ale-py")


class RunDir:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_vouched_for = False

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def reference(self) -> str:
        """The run's name in commands: NAME, SWEEP/NAME, or its path if it is outside the runs directory."""
        path, root = self.path.resolve(), runs_directory().resolve()
        return str(path.relative_to(root)) if path.is_relative_to(root) else str(self.path)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @classmethod
    def create(cls, root: Path, name: str, config: RunConfig, meta: dict[str, Any], *, files: dict[str, bytes] | None = None) -> RunDir:
        """Make the directory of a new run, with other files too.

        Raises:
            ConfigError: if the name cannot be a directory or is taken.
            StorageError: if the directory cannot be made.
        """
        content = _new_content(name, config, meta, signed=True)
        return cls(cls.make(root, name, {"config.yaml": content["config"].encode(), "meta.json": _as_json(content), **(files or {})}))

    @staticmethod
    def check_name(name: str) -> None:
        """Raise a ConfigError unless a run can have this name."""
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}", name):
            raise ConfigError(
                f"--name {name or repr(name)}: expected a letter or digit, and then up to 199 letters, digits, '.', '_', '+' or '-'"
            )
        if name == "latest":
            raise ConfigError("--name latest: that is how every command calls the run that was started last; choose another name")

    @classmethod
    def check_new(cls, root: Path, name: str) -> None:
        """Raise a ConfigError unless a run of this name can be made."""
        cls.check_name(name)
        if os.path.lexists(root / name) and not is_unborn(root / name):
            raise ConfigError(
                f"{root / name} exists already; `rlx resume {name}` continues it, --auto-resume does so by itself, "
                "another --name starts anew"
            )

    @classmethod
    def make(cls, root: Path, name: str, files: dict[str, bytes]) -> Path:
        """Make the directory of a new run or sweep, with its files, in one step. The names of both follow the same rules.

        Raises as `create` does.
        """
        cls.check_new(root, name)
        path = root / name
        try:
            if path.is_dir():  # a killed process left it empty
                clean_temporaries(path)
            create_directory(path, files)
        except OSError as error:
            cls.check_new(root, name)  # another process may have made it meanwhile
            advice = "free some space, or set RLX_RUNS_DIR to a directory you can write"
            raise StorageError(f"{path} cannot be made ({error.strerror}); {advice}") from error
        return path

    @classmethod
    def open(cls, root: Path, reference: str) -> RunDir:
        """Find a run by name, by path, or as `latest`, the one that was trained last.

        Raises:
            ConfigError: if there is none.
        """
        runs = list_runs(root)
        if reference == "latest":
            if not runs and (sweeps := sorted(p.name for p in root.glob("*") if is_sweep(p))):
                raise ConfigError(f"there are only runs of sweeps in {root}; name one: {sweeps[-1]}/000-s0 (`rlx ls --sweep {sweeps[-1]}`)")
            if not runs:
                raise ConfigError(f"there are no runs in {root} yet; start one with `rlx train algo=ppo env=cartpole`")
            return max(runs, key=lambda run: run.last_started)
        for path in (root / reference, Path(reference)):
            if is_run(path):
                return cls(path)
        sweep = next((p for p in (root / reference, Path(reference)) if is_sweep(p)), None)
        if sweep is not None:
            raise ConfigError(
                f"{reference} is a sweep, of many runs: `rlx ls --sweep {reference}` lists them, {reference}/000-s0 names one, "
                f"`rlx sweep --resume {reference}` goes on with all"
            )
        near = difflib.get_close_matches(reference, [run.name for run in runs], n=1, cutoff=0.4)
        advice = f"did you mean {near[0]}?" if near else "`rlx ls` lists the runs"
        raise ConfigError(f"{reference}: no such run in {root}; {advice}")

    def config(self, *, trust: bool) -> RunConfig:
        """The run's configuration, read as data, to train or use the run by.

        Args:
            trust: whether the user trusts the origin of the run; runs that the user started here need no trust.

        Raises:
            ConfigError: if it is not plain data, is not what was started, or needs code that the user has not said to trust.
        """
        text = read_config_text(self.path / "config.yaml")
        config = parse_config(text, self.path / "config.yaml")
        self._check_record(text, config)
        if not trust and not self.is_own():
            for key, reference in code_named(config):
                refuse_module(key, reference, self.path, kind="run")
        self._is_vouched_for |= trust
        return parse_config(text, self.path / "config.yaml", import_plugins=True)

    def digest(self) -> str:
        """SHA-256 of config.yaml. Raises a ConfigError if it cannot be read."""
        return _digest(read_config_text(self.path / "config.yaml"))

    def config_of(self, digest: str) -> RunConfig:
        """The run's configuration, if its digest is still the one given; for a process that cannot ask the user.

        Raises:
            ConfigError: if it is another one.
        """
        text = read_config_text(self.path / "config.yaml")
        if _digest(text) != digest:
            raise ConfigError(f"{self.path / 'config.yaml'} is not what the sweep looked at when it sent the run here: repeat the command")
        return parse_config(text, self.path / "config.yaml", import_plugins=True)

    def is_own(self) -> bool:
        """Whether this user started the run, with modules from the same files as here, and it was not changed since."""
        meta = self.meta()
        try:
            config = parse_config(read_config_text(self.path / "config.yaml"), self.path)
        except ConfigError:
            return False
        return is_signed(_signed_part(meta), meta.get("signature")) and meta.get("modules") == origins(config)

    def is_trusted(self) -> bool:
        """Whether this user started the run, or has said to trust where it comes from."""
        return self._is_vouched_for or self.is_own()

    def changes(self) -> list[str]:
        """Differences between config.yaml and what was started, one for each setting. Raises a ConfigError if it cannot be read."""
        text = read_config_text(self.path / "config.yaml")
        return self._changes(text, parse_config(text, self.path / "config.yaml"))

    def _check_record(self, text: str, config: RunConfig) -> None:
        changes = self._changes(text, config)
        if changes:
            raise ConfigError(
                f"{self.path / 'config.yaml'} is not what was started: {', '.join(changes)}; restore it, or start a new run "
                f"(loop.*, log.* and runtime.device change with `rlx resume {self.reference} KEY=VALUE`)"
            )

    def _changes(self, text: str, config: RunConfig) -> list[str]:
        """Differences to meta.json and to the newest checkpoint, whose budgets and cadences may differ."""
        meta = self.meta()
        started = [record for key in ("config", "config_before") if isinstance(record := meta.get(key), str)]
        changes: list[str] = []
        if started and text not in started:
            found = [differences(config, parse_config(record, self.path / "meta.json")) for record in started]
            changes = [f"{key} is {here} there and {then} in meta.json" for key, (here, then) in min(found, key=len).items()]
        checkpoints, _ = find_checkpoints(self.checkpoints)
        saved = checkpoints[0].manifest.get("config") if checkpoints else None
        if not changes and isinstance(saved, str) and saved != text:
            found_then = differences(config, parse_config(saved, checkpoints[0].path / "manifest.json"))
            changes = [
                f"{key} is {here} there and {then} in its checkpoint" for key, (here, then) in found_then.items() if not is_resumable(key)
            ]
        return changes

    def restore_meta(self, config: RunConfig, meta: dict[str, Any], *, signed: bool) -> None:
        """Write a new meta.json in the place of a lost one; the list of segments is lost."""
        self.write_meta(_new_content(self.name, config, meta, signed=signed))

    def keep_record(self, config: RunConfig, *, changed: bool) -> str | None:
        """Write the configuration to meta.json and, if it was changed, to config.yaml; the run is locked by the caller.

        meta.json also keeps the one before, since a kill between the two writes leaves the old config.yaml.

        Returns:
            A warning, or None.
        """
        note = None
        try:
            meta = read_json(self.path / "meta.json")
        except UnreadableError as error:
            meta = {}
            if not error.missing:
                aside = f"meta.json.damaged-{int(time.time())}"
                (self.path / "meta.json").rename(self.path / aside)
                note = f"{error}; it was put aside as {aside}, and what it said is lost"
        if changed or "config" not in meta or self._is_vouched_for:
            own, old = self.is_trusted(), read_config_text(self.path / "config.yaml")
            new = save_config(config) if changed else old
            meta |= {"config": new, "config_before": old, "modules": origins(config)}
            meta["signature"] = sign(_signed_part(meta)) if own else None
            self.write_meta(meta)
            if new != old:
                replace_durably(self.path / "config.yaml", new.encode())
        return note

    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.metrics_path)

    def meta(self) -> dict[str, Any]:
        """meta.json, or {} where it is missing or damaged."""
        try:
            return read_json(self.path / "meta.json")
        except UnreadableError:
            return {}

    def write_meta(self, meta: dict[str, Any]) -> None:
        replace_durably(self.path / "meta.json", _as_json(meta))

    @property
    def labels(self) -> Labels:
        """The notes and tags of the run."""
        return Labels.of(self.meta())

    def set_labels(self, labels: Labels) -> None:
        """Replace notes and tags, each where `labels` has some; the run is locked by the caller."""
        self.write_meta(self.meta() | labels.as_meta())

    def keep_network(self, report: dict[str, Any] | None) -> None:
        """Write what the network is made of to meta.json, unless it is there."""
        meta = self.meta()
        if report is not None and meta.get("network") != report:
            self.write_meta(meta | {"network": report})

    @property
    def segments(self) -> list[dict[str, Any]]:
        """One entry for each time the run was started or resumed."""
        return segments_of(self.meta())

    def begin_segment(self, segment: dict[str, Any]) -> None:
        """Record that training starts or resumes now."""
        meta = self.meta()
        first = {"started": now(), "host": socket.gethostname(), "pid": os.getpid(), "status": "running", **segment}
        self.write_meta({**meta, "segments": [*self.segments, first]})

    def end_segment(self, **changes: Any) -> None:
        """Record how it ended."""
        segments = self.segments or [{}]  # meta.json was lost meanwhile
        segments[-1] |= {"ended": now(), **changes}
        self.write_meta({**self.meta(), "segments": segments})

    @property
    def typed_keys(self) -> list[str]:
        """Settings that were typed when the run was started, or resumed; every cadence where meta.json does not say."""
        typed = self.meta().get("typed")
        now = [str(o).partition("=")[0] for segment in self.segments for o in segment.get("overrides") or []]
        return [*(map(str, typed) if isinstance(typed, list) else CADENCES), *now]

    @property
    def last_started(self) -> str:
        return last_start(self.meta())

    @property
    def status(self) -> str:
        """See `status_of`."""
        return status_of(self.meta(), is_locked=self.is_locked())

    def is_locked(self) -> bool:
        """Whether a process is training this run on this machine."""
        return is_locked(self.path)

    def lock(self) -> AbstractContextManager[None]:
        """Hold the run while it is trained.

        Raises:
            ConfigError: if another process is training it.
            StorageError: if the directory cannot be written.
        """
        refusal = f"{self.path} is being trained by another process; wait for it, or stop it with Ctrl-C or SIGTERM"
        return locked(self.path, refusal=refusal)


def segments_of(meta: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of a meta.json for each time the run was started or resumed."""
    segments = meta.get("segments")
    return [s for s in segments if isinstance(s, dict)] if isinstance(segments, list) else []


def last_start(meta: dict[str, Any]) -> str:
    """When the run was last started or resumed, or created, by meta.json; "" if it has no time."""
    segments = segments_of(meta)
    return str(segments[-1].get("started", "")) if segments else str(meta.get("created", ""))


def status_of(meta: dict[str, Any], *, is_locked: bool) -> str:
    """running, finished, stopped, paused, failed, killed (meta.json says running and no process holds the run), or new."""
    if is_locked:
        return "running"
    segments = segments_of(meta)
    status = str(segments[-1].get("status", "?")) if segments else "new"
    return "killed" if status == "running" else status


def _new_content(name: str, config: RunConfig, meta: dict[str, Any], *, signed: bool) -> dict[str, Any]:
    """meta.json of a run that has not begun."""
    content = {"name": name, "created": now(), **meta, "versions": versions(), "config": save_config(config)}
    content |= {"modules": origins(config), "segments": []}
    return content | {"signature": sign(_signed_part(content)) if signed else None}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _signed_part(meta: dict[str, Any]) -> dict[str, Any]:
    """The part of meta.json that is signed: what was started, and the files of its modules."""
    return {key: meta.get(key) for key in ("name", "config", "config_before", "modules")}


def _as_json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


def new_meta(composed: Composed, labels: Labels = NO_LABELS) -> dict[str, Any]:
    """meta.json of a new run, but for the configuration."""
    typed = [key for key, source in composed.sources.items() if source == COMMAND_LINE]
    return {**composed.choices, **labels.as_meta(), "typed": typed, "algo": composed.config.algo.name, "env_id": composed.config.env.id,
            "seed": composed.config.seed, "commit": commit(), "wandb_id": secrets.token_hex(4)}  # fmt: skip


def list_runs(root: Path) -> list[RunDir]:
    """Every run in a directory, oldest first."""
    if not root.is_dir():
        return []
    runs = [RunDir(p) for p in root.iterdir() if not p.name.startswith(".") and os.path.lexists(p / "meta.json")]
    return sorted(runs, key=lambda run: (str(run.meta().get("created", "")), run.name))


def versions() -> dict[str, str]:
    """Versions of what a run's results depend on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
