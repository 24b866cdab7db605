"""Checkpoints: directories that are written atomically, verified before they are read, and loaded as data only.

    checkpoints/000000012345/algo.pt  run.pt  manifest.json

`algo.pt` has the algorithm's state, which is all that an evaluation reads; `run.pt` has the rest of the run. The manifest is written last.
It holds the SHA-256 of both files and of itself, because torch.load does not notice a flipped bit in tensor data, nor JSON one in a number.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlx.errors import CheckpointError, RlxError, StorageError
from rlx.files import (
    UnreadableError,
    clean_temporaries,
    is_directory,
    make_directory,
    read_file,
    read_json,
    replace_durably,
    sync_directory,
    write_durably,
)

if TYPE_CHECKING:
    from rlx.types import State, Stateful  # torch is imported only where tensors are read or written: manifests need none

FORMAT = 3
_ALGO, _RUN, _MANIFEST = "algo.pt", "run.pt", "manifest.json"
_NAME = re.compile(r"[0-9]{12,15}")


class FormatError(CheckpointError):
    """A checkpoint of another version of rlx, which is intact and must not be renamed as damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint directory with a readable manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def env_steps(self) -> int:
        return int(self.manifest["env_steps"])

    @property
    def score(self) -> float:
        """Mean evaluation return when it was saved; minus infinity if there was no evaluation."""
        score = self.manifest.get("score")
        return -math.inf if score is None else float(score)

    @property
    def owes_evaluation(self) -> bool:
        """Whether an evaluation was due when the checkpoint was saved, and its result has not been written since."""
        return self.manifest.get("evaluation_due") is True

    @property
    def evaluated(self) -> bool:
        """Whether the run had ever been evaluated."""
        return self.manifest.get("evaluated") is True or self.score > -math.inf

    def read(self, name: str) -> State:
        """The content of one file, after its digest is checked; unpickles no code.

        Raises:
            CheckpointError: if the file is missing, damaged, or holds anything but data.
        """
        import torch

        data = self._check_digest(name)
        try:
            return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        except Exception as error:
            raise CheckpointError(f"{self.path / name} is not plain data and was not loaded: {type(error).__name__}") from error

    def read_algorithm(self) -> State:
        """The state of the algorithm; raises as `read` does."""
        return self.read(_ALGO)

    def verify(self) -> None:
        """Raise a CheckpointError unless every file has the manifest's digest; loads nothing."""
        for name in (_ALGO, _RUN):
            self._check_digest(name)

    def _check_digest(self, name: str) -> bytes:
        """A file's content, if it is what was written."""
        try:
            data = read_file(self.path / name, limit=_memory(), root=self.path.parent)
        except UnreadableError as error:
            raise CheckpointError(f"{self.path / name} cannot be read: {error.reason}") from error
        if hashlib.sha256(data).hexdigest() != self.manifest["files"].get(name):
            raise CheckpointError(f"{self.path / name} is damaged: its SHA-256 is not the manifest's")
        return data


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint directory.

    Raises:
        CheckpointError: if it is missing or damaged.
        FormatError: if it is of another format.
    """
    try:
        manifest = read_json(path / _MANIFEST, root=path.parent)
        format_ = manifest["format"]
        digest = manifest.get("sha256")
    except (UnreadableError, KeyError) as error:
        raise CheckpointError(f"{path} has no readable manifest ({type(error).__name__})") from error
    if digest is not None and digest != _digest(manifest):
        raise CheckpointError(f"{path} has a damaged manifest: its SHA-256 is not the one it holds")
    if format_ != FORMAT:
        raise FormatError(
            f"{path} has checkpoint format {format_}, this rlx reads format {FORMAT}: use the version that wrote it (see meta.json)"
        )
    expected = {"env_steps": int, "files": dict, "score": float | int | None, "exact": bool, "why_not_exact": str | None}
    if not all(isinstance(manifest.get(key), kind) for key, kind in expected.items()) or int(path.name) != manifest["env_steps"]:
        raise CheckpointError(f"{path} has a manifest of the wrong shape")
    return manifest


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """The content of a manifest's file, with the manifest's own digest."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return json.dumps({**content, "sha256": _digest(content)}, indent=1).encode()


def _digest(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def find_checkpoints(directory: Path) -> tuple[list[Checkpoint], list[CheckpointError]]:
    """Checkpoints in a directory, newest first, and an error for each one without a valid manifest."""
    found, broken = [], []
    try:
        paths = checkpoint_paths(directory)
    except CheckpointError as error:
        return [], [error]
    for path in paths:
        try:
            found.append(Checkpoint(path, read_manifest(path)))
        except CheckpointError as error:
            broken.append(error)
    return found, broken


def checkpoint_paths(directory: Path) -> list[Path]:
    """Paths in a run's checkpoints/ with the name of a checkpoint, newest first.

    Raises:
        CheckpointError: if the directory is a link or a file; a link could lead to files outside the run.
    """
    if not is_directory(directory):
        if os.path.lexists(directory):
            raise CheckpointError(f"{directory} is a link or a file, and no directory: remove it; rlx follows no link in a run")
        return []
    return sorted((p for p in directory.iterdir() if _NAME.fullmatch(p.name)), reverse=True)


def _memory() -> int:
    """Largest size of a file that is loaded, in bytes: the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def best_checkpoint(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """The checkpoint with the highest evaluation return, of equal ones the newest; None if none was evaluated."""
    scored = [c for c in checkpoints if c.score > -math.inf]
    return max(scored, key=lambda c: (c.score, c.env_steps), default=None)


def load_algorithm(checkpoint: Checkpoint, algo: Stateful, *, name: str, spaces: Mapping[str, str] | None = None) -> None:
    """Load the algorithm's state of a checkpoint into `algo`.

    Args:
        checkpoint: to load.
        algo: is changed.
        name: of the algorithm.
        spaces: descriptions of the environment's current spaces, by "observation" and "action".

    Raises:
        CheckpointError: if it was written by another algorithm or for other spaces, or is damaged.
    """
    saved = checkpoint.manifest.get("algo")
    if saved != name:
        raise CheckpointError(
            f"{checkpoint.path} was written for algo={saved}, this run is algo={name}; start a new run or pass algo={saved}"
        )
    before = checkpoint.manifest.get("spaces")
    for kind, now in (spaces or {}).items():
        if isinstance(before, dict) and before.get(kind, now) != now:
            from rlx.spaces import changed_part  # imports gymnasium, which lists of runs do without

            path, was, is_ = changed_part(str(before[kind]), now)
            where = f"{kind} space at {path}" if path else f"{kind} space"
            raise CheckpointError(
                f"{checkpoint.path} does not fit the environment, whose code has changed: its {where} was {was} when this "
                f"was saved and is {is_} now; put the environment back, or start a new run"
            )
    _load(checkpoint, {"algo": algo}, {"algo": checkpoint.read(_ALGO)})


def _load(checkpoint: Checkpoint, parts: Mapping[str, Stateful], saved: State) -> None:
    for name, part in parts.items():
        try:
            part.load_state_dict(saved[name])
        except RlxError:
            raise
        except (LookupError, RuntimeError, ValueError, TypeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise CheckpointError(f"{checkpoint.path} does not fit this run's {name} ({reason}); was config.yaml changed?") from error


class Checkpointer:
    """Writes and restores the checkpoints of one run.

    Args:
        directory: the run's `checkpoints/`.
        algo: name of the algorithm, checked on restore.
        keep: number of the newest to keep, beside the best.
        inexact: why a resume from these is not exact, or None.
        config: the run's config as text, for the manifest.
        spaces: descriptions of the environment's spaces, compared on restore.
        warn: called with a message for every checkpoint that is skipped.
    """

    def __init__(
        self,
        directory: Path,
        *,
        algo: str,
        keep: int = 2,
        inexact: str | None = None,
        config: str | None = None,
        spaces: Mapping[str, str] | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.directory, self.algo, self.keep, self.inexact, self.warn = directory, algo, keep, inexact, warn
        self.config, self.spaces = config, spaces
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, state: Mapping[str, Stateful], env_steps: int) -> None:
        """Write a checkpoint atomically, then delete those that need not be kept. Does nothing if there is one at env_steps.

        Raises:
            StorageError: if it cannot be written; earlier checkpoints are not changed.
        """
        self.begin_save(state, env_steps)
        self.wait()

    def wait(self) -> None:
        """Return when the last `begin_save` or `begin_score` is on the disk.

        Raises:
            StorageError: if it could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Wait for a save in progress. Its error is suppressed, so that it does not hide the error that ended the run."""
        with contextlib.suppress(StorageError):
            self.wait()
        self._writer.shutdown()

    def begin_save(
        self,
        state: Mapping[str, Stateful],
        env_steps: int,
        *,
        evaluation_due: bool = False,
        evaluated: bool = False,
        first: Callable[[], None] = lambda: None,
    ) -> None:
        """`save` in a thread, because waiting for the disk takes longer than the rest of a small run's checkpoint.

        The state is copied before this returns.

        Args:
            state: the parts of the run.
            env_steps: of the checkpoint.
            evaluation_due: whether the policy is evaluated next; a resume from here evaluates it, unless `begin_score` was called.
            evaluated: whether the run was ever evaluated.
            first: called in the thread before anything is written.

        Raises:
            StorageError: if the save before this one could not be written.
        """
        import torch

        self.wait()
        target = self.directory / f"{env_steps:012d}"
        if os.path.lexists(target):
            return
        files = {
            _ALGO: serialize(state["algo"].state_dict()),
            _RUN: serialize({name: part.state_dict() for name, part in state.items() if name != "algo"}),
        }
        manifest = {
            "format": FORMAT,
            "env_steps": env_steps,
            "algo": self.algo,
            "score": None,
            "evaluation_due": evaluation_due,
            "evaluated": evaluated,
            "exact": self.inexact is None,
            "why_not_exact": self.inexact,
            "spaces": self.spaces,
            "saved_unix_s": time.time(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        } | ({} if self.config is None else {"config": self.config})
        files[_MANIFEST] = _sealed(manifest)
        self._writing = self._writer.submit(self._write, target, files, first)

    def _write(self, target: Path, files: dict[str, bytes], first: Callable[[], None]) -> None:
        temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
        try:
            first()
            make_directory(self.directory)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            for name, data in files.items():
                write_durably(temporary / name, data)
            sync_directory(temporary)
            temporary.rename(target)
            sync_directory(self.directory)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, StorageError):  # its message already names the file or directory
                raise
            raise StorageError(
                f"the checkpoint at {int(target.name)} env steps could not be written to {self.directory} ({error.strerror or error}); "
                "earlier checkpoints are intact: free some space and `rlx resume` the run"
            ) from error
        self._drop()

    def begin_score(self, env_steps: int, score: float, *, first: Callable[[], None] = lambda: None) -> None:
        """Add the score of an evaluation to a checkpoint's manifest, in the thread, without writing its other files again.

        Args:
            env_steps: of the checkpoint.
            score: mean evaluation return.
            first: as for `begin_save`; writes the evaluation's metrics, which must be on the disk before the score is.

        Raises:
            StorageError: if the save before could not be written.
        """
        self.wait()
        self._writing = self._writer.submit(self._write_score, self.directory / f"{env_steps:012d}", score, first)

    def _write_score(self, path: Path, score: float, first: Callable[[], None]) -> None:
        first()
        try:
            manifest = read_manifest(path)
        except CheckpointError as error:  # deleted or damaged from outside; the next checkpoint is a new one
            self.warn(f"{error}; it gets no score")
            return
        replace_durably(path / _MANIFEST, _sealed({**manifest, "score": score, "evaluation_due": False}))
        self._drop()  # the previous best

    def restore(self, state: Mapping[str, Stateful]) -> Checkpoint | None:
        """Load the newest intact checkpoint into `state`, and return it; None if there never was one.

        Damaged ones are renamed to `*.damaged-*`, so that the run can write checkpoints at the same env steps again.

        Raises:
            CheckpointError: if there are only damaged ones, or the newest belongs to another algorithm, networks or format.
        """
        paths = checkpoint_paths(self.directory)
        for directory in (self.directory, *paths):  # a checkpoint may have a temporary manifest of an interrupted `begin_score`
            clean_temporaries(directory, of_anybody=True)
        for path in paths:
            try:
                checkpoint = Checkpoint(path, read_manifest(path))
                checkpoint.verify()
            except FormatError:
                raise
            except CheckpointError as error:
                self.warn(f"{error}; falling back to the checkpoint before it")
                path.rename(path.with_name(f"{path.name}.damaged-{int(time.time())}"))
                continue
            if checkpoint.manifest.get("why_not_exact"):
                self.warn(f"{path} was saved without the environments, which begin new episodes: {checkpoint.manifest['why_not_exact']}")
            load_algorithm(checkpoint, state["algo"], name=self.algo, spaces=self.spaces)
            _load(checkpoint, {name: part for name, part in state.items() if name != "algo"}, checkpoint.read(_RUN))
            return checkpoint
        if paths or any(self.directory.glob("*.damaged-*")):  # raised every time, so that the run does not start again unnoticed
            raise CheckpointError(f"every checkpoint in {self.directory} is damaged; they were renamed to *.damaged-*: start a new run")
        return None

    def _drop(self) -> None:
        found, _ = find_checkpoints(self.directory)
        best = best_checkpoint(found)
        for checkpoint in found[self.keep :]:
            if best is None or checkpoint.path != best.path:
                shutil.rmtree(checkpoint.path, ignore_errors=True)


def serialize(state: State) -> bytes:
    """A state in torch's file format, with only what `weights_only` reads back."""
    import torch

    buffer = io.BytesIO()
    torch.save(_plain(state), buffer)
    return buffer.getvalue()


def _plain(value: Any, name: str = "state_dict()") -> Any:
    """A state with NumPy arrays as tensors and scalars as numbers, which `weights_only` can read back; a CheckpointError for others."""
    import numpy as np
    import torch

    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {k: _plain(v, f"{name}[{k!r}]") for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        raise CheckpointError(
            f"{name}: {type(value).__name__} would be read back as another type; put a tuple or a dictionary into the state"
        )
    if isinstance(value, list | tuple):
        return type(value)(_plain(v, f"{name}[{i}]") for i, v in enumerate(value))
    if isinstance(value, torch.Tensor):
        return value.detach().clone()  # torch saves the whole storage of a view
    if value is not None and type(value) not in (bool, int, float, str, bytes):
        raise CheckpointError(f"{name} is a {type(value).__name__}, which cannot be saved as data; a state is made of tensors, arrays, "
                              "numbers, strings, dictionaries, lists and tuples")  # fmt: skip
    return value
