"""Writing the checkpoints of a run in a thread, and restoring the newest intact one."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlx.checkpoint import (
    ALGO,
    FORMAT,
    MANIFEST,
    RUN,
    Checkpoint,
    FormatError,
    best_checkpoint,
    checkpoint_paths,
    find_checkpoints,
    in_memory,
    load_algorithm,
    load_parts,
    read_manifest,
    sealed,
)
from rlx.distributed import ALONE, World
from rlx.errors import CheckpointError, StorageError
from rlx.files import clean_temporaries, make_directory, replace_durably, sync_directory, write_durably
from rlx.segments import DIRECTORY, Pending, SegmentWriter, Stored

if TYPE_CHECKING:
    from rlx.types import Stateful


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
        world: the ranks of the run, which save and restore together; only rank 0 has the directory.
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
        world: World = ALONE,
    ) -> None:
        self._world = world
        self.directory, self.algo, self.keep, self.inexact, self.warn = directory, algo, keep, inexact, warn
        self.config, self.spaces = config, spaces
        self._segments = SegmentWriter(directory / DIRECTORY)
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

        The state is copied before this returns; of appended items, only those that are not in a segment yet.

        Args:
            state: the parts of the run.
            env_steps: of the checkpoint.
            evaluation_due: whether the policy is evaluated next; a resume from here evaluates it, unless `begin_score` was called.
            evaluated: whether the run was ever evaluated.
            first: called in the thread before anything is written.

        Raises:
            StorageError: if the save before this one could not be written, or there is no space for the first of many appended items.
        """
        import torch

        from rlx.serialize import digest, serialize

        self.wait()
        target = self.directory / f"{env_steps:012d}"
        if self._world.broadcast(self._world.is_first and os.path.lexists(target)):
            return
        content = {name: part.state_dict() for name, part in state.items()}
        if self._world.size > 1:
            self._world.check_equal(digest({name: content[name] for name in ("algo", "rng") if name in content}))
        if not self._world.is_first:
            return
        pending = Pending()
        take = functools.partial(self._segments.take, pending)
        try:
            files = {
                ALGO: serialize(content.pop("algo"), "algo", take=take),
                RUN: serialize(content, "run", take=take),
            }
        except OSError as error:
            raise self._refused(target, error) from error
        manifest: dict[str, Any] = {
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
        } | ({} if self.config is None else {"config": self.config})
        self._writing = self._writer.submit(self._write, target, files, pending, manifest, first)

    def _write(
        self, target: Path, files: dict[str, bytes], pending: Pending, manifest: dict[str, Any], first: Callable[[], None]
    ) -> None:  # fmt: skip
        temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
        try:
            first()
            make_directory(self.directory)
            entries, tails = self._segments.write(pending)
            files |= tails
            manifest["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
            if entries:
                manifest["appended"] = {place: entry.as_json() for place, entry in entries.items()}
            files[MANIFEST] = sealed(manifest)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            for name, data in files.items():
                write_durably(temporary / name, data)
            sync_directory(temporary)
            temporary.rename(target)
            sync_directory(self.directory)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise self._refused(target, error) from error
        self._segments.remember({place: batch.appended.history for place, batch in pending.batches.items()}, entries)
        self._drop()

    def _refused(self, target: Path, error: OSError) -> StorageError:
        with contextlib.suppress(OSError):
            self._segments.clean(self.directory, MANIFEST)
        if isinstance(error, StorageError):  # its message already names the file or directory
            return error
        return StorageError(
            f"the checkpoint at {int(target.name)} env steps could not be written to {self.directory} ({error.strerror or error}); "
            "earlier checkpoints are intact: free some space and `rlx resume` the run"
        )

    def begin_score(self, env_steps: int, score: float, *, first: Callable[[], None] = lambda: None) -> None:
        """Add the score of an evaluation to a checkpoint's manifest, in the thread, without writing its other files again.

        Args:
            env_steps: of the checkpoint.
            score: mean evaluation return.
            first: as for `begin_save`; writes the evaluation's metrics, which must be on the disk before the score is.

        Raises:
            StorageError: if the save before could not be written.
        """
        if not self._world.is_first:
            return
        self.wait()
        self._writing = self._writer.submit(self._write_score, self.directory / f"{env_steps:012d}", score, first)

    def _write_score(self, path: Path, score: float, first: Callable[[], None]) -> None:
        first()
        try:
            manifest = read_manifest(path)
        except CheckpointError as error:  # deleted or damaged from outside; the next checkpoint is a new one
            self.warn(f"{error}; it gets no score")
            return
        replace_durably(path / MANIFEST, sealed({**manifest, "score": score, "evaluation_due": False}))
        self._drop()  # the previous best

    def restore(self, state: Mapping[str, Stateful]) -> Checkpoint | None:
        """Load the newest intact checkpoint into `state`, and return it; None if there never was one.

        Damaged ones are renamed to `*.damaged-*`, so that the run can write checkpoints at the same env steps again.

        Raises:
            CheckpointError: if there are only damaged ones, or the newest belongs to another algorithm, networks or format.
        """
        checkpoint = self._newest() if self._world.is_first else None
        if self._world.size > 1:
            checkpoint = self._world.broadcast(checkpoint and in_memory(checkpoint))
        if checkpoint is None:
            return None
        items: dict[str, Stored] = {}
        load_algorithm(checkpoint, state["algo"], name=self.algo, spaces=self.spaces, items=items)
        load_parts(checkpoint, {name: part for name, part in state.items() if name != "algo"}, checkpoint.read(RUN, items=items))
        self._segments.remember({place: each.history for place, each in items.items()}, checkpoint.entries)
        return checkpoint

    def _newest(self) -> Checkpoint | None:
        paths = checkpoint_paths(self.directory)
        for directory in (
            self.directory,
            self._segments.directory,
            *paths,
        ):  # a checkpoint may have a temporary manifest of an interrupted `begin_score`
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
        with contextlib.suppress(OSError):
            self._segments.clean(self.directory, MANIFEST)
