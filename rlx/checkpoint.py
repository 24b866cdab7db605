"""Checkpoints: directories that are written atomically, verified before they are read, and loaded as data only.

    checkpoints/000000012345/algo.pt  run.pt  items-0.seg  manifest.json
    checkpoints/segments/000000016384-0f3a….seg

`algo.pt` has the algorithm's state, which is all that an evaluation reads; `run.pt` has the rest of the run. Rows of a replay and what else
is only ever appended lie in segments, which are written once and shared by checkpoints, and in `items-*.seg` (`rlx.segments`). The manifest
is written last. It holds the SHA-256 of every file and of itself, because torch.load does not notice a flipped bit in tensor data, nor JSON
one in a number.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlx.errors import CheckpointError, RlxError
from rlx.files import (
    UnreadableError,
    is_directory,
    read_file,
    read_json,
)
from rlx.segments import DIRECTORY, Entry, Segment, Stored, entries_of

if TYPE_CHECKING:
    from rlx.types import State, Stateful  # torch is imported only where tensors are read or written: manifests need none

FORMAT = 5
READABLE = (3, 4, 5)
"""Formats that are read. Before 5 the seeds of episodes came from a generator, so that only the policy and its training state go on."""
WITHOUT_SEGMENTS = 3
"""Format of checkpoints that keep no items in segments; rlx once wrote replays into them whole."""
ALGO, RUN, MANIFEST = "algo.pt", "run.pt", "manifest.json"
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

    def read(self, name: str, *, items: dict[str, Stored] | None = None) -> State:
        """The content of one file, after its digest is checked; unpickles no code.

        Args:
            name: of the file.
            items: gets the appended items, such as a replay's rows, by their places in the state; without it the state has none.

        Raises:
            CheckpointError: if the file is missing, damaged, or holds anything but data.
        """
        from rlx.serialize import deserialize

        data, entries = self._check_digest(name), self.entries

        def find(place: str) -> Any:
            assert items is not None
            items[place] = Stored(entries[place], self._read_items)
            return items[place]

        try:
            return deserialize(data, None if items is None else find)
        except Exception as error:
            raise CheckpointError(f"{self.path / name} is not plain data and was not loaded: {type(error).__name__}") from error

    def read_algorithm(self) -> State:
        """The state of the algorithm without appended items; raises as `read` does."""
        return self.read(ALGO)

    @property
    def entries(self) -> dict[str, Entry]:
        """The files of appended items, by the items' places in the state."""
        return entries_of(self.manifest)

    @property
    def segments(self) -> set[Segment]:
        """The segments that it needs, which it may share with others."""
        return {segment for entry in self.entries.values() for segment in entry.segments}

    def verify(self, *, items: bool = True) -> None:
        """Raise a CheckpointError unless every file has the manifest's digest, those of appended items only if `items`; loads nothing."""
        for name in (ALGO, RUN):
            self._check_digest(name)
        if items:
            for entry in self.entries.values():
                if entry.tail is not None:
                    self._check_digest(entry.tail)
            for segment in sorted(self.segments):
                self._read_items(segment)

    def _read_items(self, file: Segment | str) -> bytes:
        if isinstance(file, str):
            return self._check_digest(file)
        return self._content(self.path.parent / DIRECTORY / file.name, file.sha256)

    def _check_digest(self, name: str) -> bytes:
        """A file's content, if it is what was written."""
        return self._content(self.path / name, self.manifest["files"].get(name))

    def _content(self, path: Path, sha256: object) -> bytes:
        needed = "" if path.parent == self.path else f", and {self.path.name} needs it"
        try:
            data = read_file(path, limit=_memory(), root=self.path.parent)
        except UnreadableError as error:
            raise CheckpointError(f"{path} cannot be read: {error.reason}{needed}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the manifest's{needed}")
        return data


@dataclass(frozen=True)
class CheckpointInMemory(Checkpoint):
    """A checkpoint whose files another rank has read: this one may not see them."""

    files: Mapping[str, bytes]

    def _check_digest(self, name: str) -> bytes:
        return self.files[name]


def in_memory(checkpoint: Checkpoint) -> CheckpointInMemory:
    """A checkpoint without appended items that can be sent to other ranks."""
    files = {name: checkpoint._check_digest(name) for name in (ALGO, RUN)}
    return CheckpointInMemory(checkpoint.path, checkpoint.manifest, files)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint directory.

    Raises:
        CheckpointError: if it is missing or damaged.
        FormatError: if it is of another format.
    """
    try:
        manifest = read_json(path / MANIFEST, root=path.parent)
        format_ = manifest["format"]
        digest = manifest.get("sha256")
    except (UnreadableError, KeyError) as error:
        raise CheckpointError(f"{path} has no readable manifest ({type(error).__name__})") from error
    if digest is not None and digest != _digest(manifest):
        raise CheckpointError(f"{path} has a damaged manifest: its SHA-256 is not the one it holds")
    if format_ not in READABLE:
        raise FormatError(
            f"{path} has checkpoint format {format_}, this rlx reads format {FORMAT}: use the version that wrote it (see meta.json)"
        )
    expected = {"env_steps": int, "files": dict, "score": float | int | None, "exact": bool, "why_not_exact": str | None}
    if not all(isinstance(manifest.get(key), kind) for key, kind in expected.items()) or int(path.name) != manifest["env_steps"]:
        raise CheckpointError(f"{path} has a manifest of the wrong shape")
    try:
        entries_of(manifest)
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path} has a manifest of the wrong shape: {error}") from error
    return manifest


def sealed(manifest: Mapping[str, Any]) -> bytes:
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


def load_algorithm(
    checkpoint: Checkpoint, algo: Stateful, *, name: str, spaces: Mapping[str, str] | None = None, items: dict[str, Stored] | None = None
) -> None:  # fmt: skip
    """Load the algorithm's state of a checkpoint into `algo`, for an evaluation without its replay.

    Args:
        checkpoint: to load.
        algo: is changed.
        name: of the algorithm.
        spaces: descriptions of the environment's current spaces, by "observation" and "action".
        items: see `Checkpoint.read`; with it the replay is loaded too.

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
    load_parts(checkpoint, {"algo": algo}, {"algo": checkpoint.read(ALGO, items=items)})


def load_parts(checkpoint: Checkpoint, parts: Mapping[str, Stateful], saved: State) -> None:
    """Load the states of parts of a run, which are in a checkpoint; a CheckpointError if one does not fit."""
    for name, part in parts.items():
        try:
            part.load_state_dict(saved[name])
        except RlxError:
            raise
        except (LookupError, RuntimeError, ValueError, TypeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            if checkpoint.manifest["format"] == WITHOUT_SEGMENTS and name == "algo" and isinstance(error, LookupError):
                raise FormatError(
                    f"{checkpoint.path} has checkpoint format {WITHOUT_SEGMENTS}, in which this rlx does not read the replay of "
                    f"algo={checkpoint.manifest['algo']} ({reason}): use the version that wrote it (see meta.json)"
                ) from error
            raise CheckpointError(f"{checkpoint.path} does not fit this run's {name} ({reason}); was config.yaml changed?") from error
