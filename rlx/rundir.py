"""A run's directory: config.yaml, meta.json, metrics.jsonl, checkpoints/. rlx owns its layout; torch is not needed to look into one."""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import platform
import re
import secrets
import shutil
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
from rlx.files import replace_durably
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
        path = cls.make(root, name)
        run = cls(path)
        try:
            replace_durably(path / "config.yaml", save_config(config).encode())
            run.write_meta({"name": name, "created": now(), **meta, "versions": versions(), "segments": []})
        except StorageError as error:
            shutil.rmtree(path, ignore_errors=True)
            raise StorageError(f"{path} cannot be written; free some space, or set RLX_RUNS_DIR to another disk") from error
        return run

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
        if (root / name).exists():
            raise ConfigError(
                f"{root / name} exists already; `rlx resume {name}` continues it, --auto-resume does so by itself, "
                "another --name starts anew"
            )

    @classmethod
    def make(cls, root: Path, name: str) -> Path:
        """Make an empty directory for a new run, or for a sweep, whose names follow the same rules. Raises as `create` does."""
        cls.check_new(root, name)
        path = root / name
        try:
            path.mkdir(parents=True)
        except OSError as error:
            cls.check_new(root, name)  # somebody may have been faster
            raise StorageError(f"{path} cannot be made ({error.strerror}); set RLX_RUNS_DIR to a directory you can write") from error
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
            if (path / "meta.json").is_file() or (path / "config.yaml").is_file():
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
        """meta.json, or what little can be said without it."""
        try:
            meta = json.loads((self.path / "meta.json").read_text())
        except (OSError, ValueError):
            meta = {}
        return meta if isinstance(meta, dict) else {}

    def write_meta(self, meta: dict[str, Any]) -> None:
        replace_durably(self.path / "meta.json", json.dumps(meta, indent=1).encode())

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
        segments = self.segments
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
        try:
            with (self.path / ".lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run; the kernel lets go of it however the process ends.

        Raises:
            ConfigError: if another process is training it.
            StorageError: if the directory cannot be written.
        """
        try:
            file = (self.path / ".lock").open("ab")  # not "wb": in a stranger's run it may be a link to anything
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written ({error.strerror})") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"{self.path} is being trained by another process; wait for it, or stop it with Ctrl-C or SIGTERM"
                ) from None
            yield


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
    runs = [RunDir(p) for p in root.iterdir() if (p / "meta.json").is_file()]
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
