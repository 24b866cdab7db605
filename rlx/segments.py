"""Segments: files in a run's checkpoints/ with items of its state that are only ever appended (`rlx.appended`), each written once.

    checkpoints/segments/000000016384-0f3a….seg      16,384 items, shared by the checkpoints that name it in their manifests
    checkpoints/000000012345/items-0.seg             the items of this checkpoint that do not fill a segment yet

A file is a line of JSON, which says what the columns are and how their bytes are ordered, and then the columns. A segment's name has its
first item and its SHA-256; it is never changed, and is deleted when no manifest names it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlx.files import UnreadableError, is_directory, make_directory, read_json, sync_directory, write_durably

if TYPE_CHECKING:
    from torch import Tensor

    from rlx.appended import Appended, Kind

DIRECTORY = "segments"
_HELD_BYTES = 256 << 20
"""Bytes of copies that wait to be written; what is more is written at once, so that memory does not have to hold a replay twice."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TAIL = re.compile(r"items-[0-9]{1,4}\.seg")
_FORMAT = "rlx items 1"
_MOST_ITEMS = 1 << 62


class Segment(NamedTuple):
    """A file in checkpoints/segments/."""

    first: int
    num: int
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        return f"{self.first:012d}-{self.sha256[:32]}.seg"


@dataclass(frozen=True)
class Entry:
    """The files with the items [first, end) at one place of a checkpoint's state, as its manifest names them."""

    first: int
    end: int
    segments: tuple[Segment, ...]
    tail: str | None = None
    """File in the checkpoint with the items after the last segment."""

    def as_json(self) -> dict[str, Any]:
        return {"first": self.first, "end": self.end, "segments": [list(segment) for segment in self.segments], "tail": self.tail}


def entries_of(manifest: Mapping[str, Any]) -> dict[str, Entry]:
    """By place in the state, what a manifest says of items in files.

    Raises:
        ValueError: if that has another shape, or items are left out.
    """
    found = {}
    for place, saved in _mapping(manifest.get("appended", {})).items():
        saved = _mapping(saved)
        segments = tuple(Segment(*each) for each in saved["segments"] if isinstance(each, list) and len(each) == 4)
        entry = Entry(saved["first"], saved["end"], segments, saved["tail"])
        numbers = [entry.first, entry.end, *(n for segment in segments for n in segment[:3])]
        if len(segments) != len(saved["segments"]) or not all(type(n) is int and 0 <= n < _MOST_ITEMS for n in numbers):
            raise ValueError(f"{place} has numbers that are none")
        if not all(isinstance(segment.sha256, str) and _SHA256.fullmatch(segment.sha256) for segment in segments):
            raise ValueError(f"{place} has a digest that is none")
        if entry.tail is not None and not (isinstance(entry.tail, str) and _TAIL.fullmatch(entry.tail)):
            raise ValueError(f"{place} has a file with another name")
        at = min(entry.first, segments[0].first) if segments else entry.first
        for segment in segments:
            if segment.first != at or segment.num < 1:
                raise ValueError(f"{place} leaves out items")
            at += segment.num
        if not entry.first <= at <= entry.end or (at < entry.end) != (entry.tail is not None):
            raise ValueError(f"{place} leaves out items")
        found[place] = entry
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


# One file


def encode(first: int, num: int, kinds: Mapping[str, Kind], columns: Mapping[str, Tensor]) -> bytes:
    """The content of a file with items [first, first + num), from their columns [num, *]."""
    described, contents = [], []
    for name, kind in kinds.items():
        raw = columns[name].contiguous().view(-1).view(_torch().uint8).numpy()
        # Bytes of images shrink 15 to 80 times in 20 microseconds each, numbers of frames a few times, and other numbers hardly.
        shrinks = not kind.dtype.is_floating_point and kind.num_bytes >= 32
        content = zlib.compress(raw.data, 1) if shrinks else raw.tobytes()
        described.append({"name": name, "dtype": str(kind.dtype).removeprefix("torch."), "shape": list(kind.shape),
                          "bytes": len(content), "zlib": shrinks})  # fmt: skip
        contents.append(content)
    header = {"format": _FORMAT, "byteorder": sys.byteorder, "first": first, "num": num, "columns": described}
    return b"".join((json.dumps(header).encode(), b"\n", *contents))


def decode(data: bytes, first: int, num: int, kinds: Mapping[str, Kind]) -> dict[str, Tensor]:
    """The columns [num, *] of the items in a file.

    Raises:
        ValueError: if it has other items or other columns.
    """
    end = data.find(b"\n", 0, 1 << 20)
    header = _mapping(json.loads(data[:end] if end >= 0 else b"{}"))
    wanted = {"format": _FORMAT, "byteorder": sys.byteorder, "first": first, "num": num}
    for key, value in wanted.items():
        if header.get(key) != value:
            raise ValueError(f"its {key} is {header.get(key)!r}, expected {value!r}")
    columns, at = {}, end + 1
    described = header.get("columns")
    found = [column.get("name") for column in described if isinstance(column, dict)] if isinstance(described, list) else []
    if not isinstance(described, list) or found != list(kinds):
        raise ValueError(f"it has the columns {found}, expected {list(kinds)}")
    for column, (name, kind) in zip(described, kinds.items(), strict=True):
        dtype, shape, wanted_dtype = column.get("dtype"), column.get("shape"), str(kind.dtype).removeprefix("torch.")
        if (dtype, shape) != (wanted_dtype, list(kind.shape)):
            raise ValueError(f"its column {name} is {dtype} {shape}, expected {wanted_dtype} {list(kind.shape)}")
        size = column.get("bytes")
        if type(size) is not int or not 0 <= size <= len(data) - at:
            raise ValueError(f"its column {name} is cut off")
        columns[name] = _column(memoryview(data)[at : at + size], num, kind, compressed=column.get("zlib") is True)
        at += size
    if at != len(data):
        raise ValueError("it is longer than its columns")
    return columns


def _column(content: memoryview, num: int, kind: Kind, *, compressed: bool) -> Tensor:
    size = num * kind.num_bytes
    if compressed:
        try:
            raw = bytearray(zlib.decompressobj().decompress(content, size + 1))  # no more memory than the column takes
        except zlib.error as error:
            raise ValueError(f"it was not saved as compressed data: {error}") from error
    else:
        raw = bytearray(content)
    if len(raw) != size:
        raise ValueError(f"it has {len(raw):,} bytes or more in place of {size:,}")
    torch = _torch()
    flat = torch.frombuffer(raw, dtype=kind.dtype) if size else torch.zeros(0, dtype=kind.dtype)
    return flat.view(num, *kind.shape)


def _torch() -> Any:
    import torch  # only where tensors are read or written: lists of runs need none

    return torch


# Reading


class Stored:
    """Items in the files of a checkpoint, read one file at a time when they are asked for.

    Args:
        entry: the files.
        read: returns the content of a segment, or of a tail by its name, once its digest is checked.
    """

    def __init__(self, entry: Entry, read: Callable[[Segment | str], bytes]) -> None:
        self.first, self.end, self._entry, self._read = entry.first, entry.end, entry, read
        self.history: object = object()
        """Of whoever loads these items first."""
        self._inherited = False

    def heir(self) -> object:
        if self._inherited:
            return object()
        self._inherited = True
        return self.history

    def parts(self, kinds: Mapping[str, Kind]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        at = self.first
        for segment in self._entry.segments:
            skip = at - segment.first  # the first segment may begin with items that are overwritten by now
            columns = self._decoded(segment, segment.first, segment.num, kinds)
            yield at, {name: column[skip:] for name, column in columns.items()}
            at = segment.first + segment.num
        if self._entry.tail is not None:
            yield at, self._decoded(self._entry.tail, at, self.end - at, kinds)

    def _decoded(self, file: Segment | str, first: int, num: int, kinds: Mapping[str, Kind]) -> dict[str, Tensor]:
        data = self._read(file)
        try:
            return decode(data, first, num, kinds)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{file if isinstance(file, str) else file.name}: {error}") from error


# Writing


@dataclass
class _Batch:
    """Items at one place of a state, of which some are to be written."""

    appended: Appended
    segments: list[Segment]
    """Those that are on the disk."""
    copies: list[tuple[int, int, dict[str, Tensor]]] = field(default_factory=list)
    """Items that fill segments: the first, their number, and their columns."""
    tail: tuple[int, int, dict[str, Tensor]] | None = None


class Pending:
    """Items of one state, copied, whose files have not been written yet."""

    def __init__(self) -> None:
        self.batches: dict[str, _Batch] = {}
        self.written: list[Segment] = []


class SegmentWriter:
    """Writes the segments of one run, and knows those that its newest checkpoint names.

    Args:
        directory: checkpoints/segments/.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._known: dict[str, tuple[object, tuple[Segment, ...]]] = {}  # by place in the state: whose history, and its segments

    def remember(self, histories: Mapping[str, object], entries: Mapping[str, Entry]) -> None:
        """Take the segments of a checkpoint, which was written or read, for those of its histories."""
        self._known = {place: (history, entries[place].segments) for place, history in histories.items()}

    def take(self, pending: Pending, place: str, appended: Appended) -> None:
        """Copy the items at a place of a state that are not in a segment yet."""
        segments = self._reusable(place, appended)
        at = segments[-1].first + segments[-1].num if segments else appended.first
        batch = pending.batches[place] = _Batch(appended, segments)
        held = 0
        while (end := (at // appended.per_segment + 1) * appended.per_segment) <= appended.end:
            columns = appended.read(at, end)
            held += sum(column.nbytes for column in columns.values())
            batch.copies.append((at, end - at, columns))
            at = end
            if held > _HELD_BYTES:
                self._write_batch(pending, batch)
                held = 0
        if at < appended.end:
            batch.tail = (at, appended.end - at, appended.read(at, appended.end))

    def _reusable(self, place: str, appended: Appended) -> list[Segment]:
        """The segments on the disk with items of a state."""
        history, known = self._known.get(place, (None, ()))
        if history is not appended.history or not known:
            return []
        sizes = {}
        with contextlib.suppress(OSError), os.scandir(self.directory) as there:
            sizes = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in there if entry.is_file(follow_symlinks=False)}
        kept: list[Segment] = []
        for segment in known:
            if segment.first + segment.num <= appended.first:
                continue
            if sizes.get(segment.name) != segment.bytes:  # deleted from outside
                break
            kept.append(segment)
        is_whole = bool(kept) and kept[0].first <= appended.first and kept[-1].first + kept[-1].num <= appended.end
        return kept if is_whole else []

    def write(self, pending: Pending) -> tuple[dict[str, Entry], dict[str, bytes]]:
        """Write the segments; returns what the manifest says of them, and the contents of the checkpoint's own files.

        Raises:
            OSError: if the system refuses.
        """
        entries: dict[str, Entry] = {}
        tails: dict[str, bytes] = {}
        for place, batch in pending.batches.items():
            self._write_batch(pending, batch)
            name = None
            if batch.tail is not None:
                name = f"items-{len(tails)}.seg"
                first, num, columns = batch.tail
                tails[name] = encode(first, num, batch.appended.kinds, columns)
            entries[place] = Entry(batch.appended.first, batch.appended.end, tuple(batch.segments), name)
        if pending.written:
            sync_directory(self.directory)
        return entries, tails

    def _write_batch(self, pending: Pending, batch: _Batch) -> None:
        for first, num, columns in batch.copies:
            data = encode(first, num, batch.appended.kinds, columns)
            segment = Segment(first, num, len(data), hashlib.sha256(data).hexdigest())
            make_directory(self.directory.parent)
            make_directory(self.directory)
            path = self.directory / segment.name
            temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
            try:
                write_durably(temporary, data)
                temporary.replace(path)
            except OSError:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
            pending.written.append(segment)
            batch.segments.append(segment)
        batch.copies.clear()

    def clean(self, checkpoints: Path, manifest: str) -> None:
        """Delete the segments that no manifest in the directories of checkpoints/ names, be they in use, put aside or of another version.

        Does nothing while the manifest of a checkpoint that was not put aside cannot be read: what it names is unknown.
        """
        if not is_directory(self.directory):
            return
        named = set()
        for path in checkpoints.iterdir():
            try:
                saved = read_json(path / manifest, root=checkpoints).get("appended", {})
                named |= {Segment(*each).name for place in saved.values() for each in place["segments"]}
            except UnreadableError as error:
                if path.name.isdigit() and not error.missing:
                    return
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                if path.name.isdigit():
                    return
        for path in self.directory.iterdir():
            if path.name not in named:
                with contextlib.suppress(OSError):
                    path.unlink()
