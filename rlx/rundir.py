"""A run's directory: config.yaml, meta.json, metrics.jsonl, checkpoints/. rlx owns its layout; torch is not needed to look into one."""

from __future__ import annotations

import difflib
import json
import os
import platform
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rlx.config.compose import Composed, load_config, runs_directory, save_config
from rlx.config.schema import RunConfig
from rlx.errors import ConfigError, StorageError
from rlx.files import (
    UnreadableError,
    clean_temporaries,
    create_directory,
    flocked,
    is_directory,
    is_flocked,
    is_temporary,
    read_json,
    replace_durably,
)
from rlx.track.record import read_metrics

_VERSIONS = ("rlx", "torch", "numpy", "gymnasium", "mujoco", "box2d", "ale-py")


class RunDir:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def reference(self) -> str:
        """What commands call the run by: its name, sweep/name within a sweep, or its path if it is elsewhere."""
        path, root = self.path.resolve(), runs_directory().resolve()
        return str(path.relative_to(root)) if path.is_relative_to(root) else str(self.path)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @classmethod
    def create(cls, root: Path, name: str, config: RunConfig, meta: dict[str, Any]) -> RunDir:
        """Make the directory of a new run.

        Raises:
            ConfigError: if the name cannot be a directory or is taken.
            StorageError: if the directory cannot be made.
        """
        content = {"name": name, "created": now(), **meta, "versions": versions(), "segments": []}
        return cls(cls.make(root, name, {"config.yaml": save_config(config).encode(), "meta.json": _as_json(content)}))

    @staticmethod
    def check_name(name: str) -> None:
        """Raise a ConfigError unless a run can have this name."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}", name):
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
        """Make the directory of a new run, or of a sweep, whose names follow the same rules, whole or not at all.

        Raises as `create` does.
        """
        cls.check_new(root, name)
        path = root / name
        try:
            if path.is_dir():  # a kill of an older rlx came before its first file
                clean_temporaries(path)
            create_directory(path, files)
        except OSError as error:
            cls.check_new(root, name)  # somebody may have been faster
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
            if not runs:
                raise ConfigError(f"there are no runs in {root} yet; start one with `rlx train algo=ppo env=cartpole`")
            return max(runs, key=lambda run: run.last_started)
        for path in (root / reference, Path(reference)):
            if is_run(path):
                return cls(path)
        sweep = next((p for p in (root / reference, Path(reference)) if (p / "sweep.json").is_file()), None)
        if sweep is not None:
            raise ConfigError(
                f"{reference} is a sweep, of many runs: `rlx ls --sweep {reference}` lists them, {reference}/000-s0 names one, "
                f"`rlx sweep --resume {reference}` goes on with all"
            )
        near = difflib.get_close_matches(reference, [run.name for run in runs], n=1, cutoff=0.4)
        advice = f"did you mean {near[0]}?" if near else "`rlx ls` lists the runs"
        raise ConfigError(f"{reference}: no such run in {root}; {advice}")

    def config(self, *, trust: bool) -> RunConfig:
        """The run's configuration, read as data.

        Raises:
            ConfigError: if it is not plain data, or needs code that the user has not said to trust.
        """
        config = load_config(self.path / "config.yaml")
        module, colon, _ = config.env.id.rpartition(":")
        if colon and not trust and not config.env.is_game:
            raise ConfigError(
                f"{self.path} uses env={config.env.id}, which imports the module {module!r} and so runs its code; "
                "if you trust where this run comes from, say --trust"
            )
        return config

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
    def segments(self) -> list[dict[str, Any]]:
        """What is known of each time the run was started or resumed."""
        segments = self.meta().get("segments")
        return [s for s in segments if isinstance(s, dict)] if isinstance(segments, list) else []

    def begin_segment(self, segment: dict[str, Any]) -> None:
        """Record that training starts or goes on now."""
        meta = self.meta()
        first = {"started": now(), "host": socket.gethostname(), "pid": os.getpid(), "status": "running", **segment}
        self.write_meta({**meta, "segments": [*self.segments, first]})

    def end_segment(self, **changes: Any) -> None:
        """Record how it ended."""
        segments = self.segments or [{}]  # meta.json was lost meanwhile
        segments[-1] |= {"ended": now(), **changes}
        self.write_meta({**self.meta(), "segments": segments})

    @property
    def last_started(self) -> str:
        segments = self.segments
        return str(segments[-1].get("started", "")) if segments else str(self.meta().get("created", ""))

    @property
    def status(self) -> str:
        """running, finished, stopped, failed, killed (it said running and no process holds it), or new."""
        if self.is_locked():
            return "running"
        segments = self.segments
        status = str(segments[-1].get("status", "?")) if segments else "new"
        return "killed" if status == "running" else status

    def is_locked(self) -> bool:
        """Whether a process is training this run on this machine."""
        return is_flocked(self.path / ".lock")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run; the kernel lets go of it however the process ends.

        Raises:
            ConfigError: if another process is training it.
            StorageError: if the directory cannot be written.
        """
        with flocked(self.path / ".lock") as free:
            if not free:
                raise ConfigError(f"{self.path} is being trained by another process; wait for it, or stop it with Ctrl-C or SIGTERM")
            clean_temporaries(self.path)
            yield


def is_run(path: Path) -> bool:
    """Whether a directory is a run; what it holds may still be unreadable."""
    return any(os.path.lexists(path / name) for name in ("meta.json", "config.yaml"))


def is_unborn(path: Path) -> bool:
    """Whether a directory has nothing in it yet but what a process was about to write: a kill came before its first file."""
    try:
        return is_directory(path) and all(map(is_temporary, os.listdir(path)))
    except OSError:
        return False


def _as_json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


def new_meta(composed: Composed) -> dict[str, Any]:
    """What meta.json says of a run from the start."""
    return {**composed.choices, "algo": composed.config.algo.name, "env_id": composed.config.env.id,
            "seed": composed.config.seed, "wandb_id": secrets.token_hex(4)}  # fmt: skip


def wandb_tags(config: RunConfig, meta: dict[str, Any]) -> list[str]:
    """What a run's copies in W&B are found by."""
    return [config.algo.name, config.env.id, *([f"sweep:{meta['sweep']}"] if meta.get("sweep") else [])]


def list_runs(root: Path) -> list[RunDir]:
    """Every run in a directory, oldest first."""
    if not root.is_dir():
        return []
    runs = [RunDir(p) for p in root.iterdir() if not p.name.startswith(".") and os.path.lexists(p / "meta.json")]
    return sorted(runs, key=lambda run: (str(run.meta().get("created", "")), run.name))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def versions() -> dict[str, str]:
    """Versions of what a run's results depend on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
