"""Files in untrusted directories: opened without following links, read within limits, replaced atomically.

A run's directory may come from anywhere. A link in it must not lead a write to somebody's other files, a FIFO must not hang a
reader, and a file must not be larger than what is expected of it. Paths down to a run are the user's own, and may have links in
them; `root` says where the run begins.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rlx.errors import StorageError

JSON_LIMIT = 16 << 20
"""Bytes of a JSON file that is read whole: meta.json, sweep.json and manifests have some thousands."""
_NUMBER_LIMIT = 40
"""Most digits of a whole number; float() refuses hundreds."""
_TEMPORARY = re.compile(r"\.tmp-(\d{1,19})$")
_CREATION_S = 60.0
"""Much longer than a directory with a few small files takes to make."""


class UnreadableError(OSError):
    """A file is not what it should be: missing, no regular file, too large, or not in its format."""

    def __init__(self, path: Path, reason: str, *, missing: bool = False) -> None:
        super().__init__(f"{path} {reason}")
        self.path, self.reason, self.missing = path, reason, missing


# Opening


def open_inside(path: Path, flags: int, *, root: Path | None = None) -> int:
    """A descriptor of a regular file; below `root`, by default its directory, no link is followed.

    Raises:
        UnreadableError: if it is not there, or is a link, a FIFO or another thing than a file.
        OSError: if the system refuses.
    """
    descriptor = None
    with _parent(path, root) as (directory, name):
        try:
            descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644, dir_fd=directory)
        except OSError as error:
            kind = _kind_at(directory, name)
            if kind not in ("", "missing"):
                raise UnreadableError(path, f"is {kind}, and no file") from error
            if isinstance(error, FileNotFoundError):
                raise UnreadableError(path, "is missing", missing=True) from error
            raise
    kind = _kind(os.fstat(descriptor).st_mode)
    if kind and not (kind == "a device" and flags & os.O_APPEND):  # /dev/full stands for a full disk in tests
        os.close(descriptor)
        raise UnreadableError(path, f"is {kind}, and no file")
    os.set_blocking(descriptor, True)
    return descriptor


@contextlib.contextmanager
def _parent(path: Path, root: Path | None) -> Iterator[tuple[int, str]]:
    """A descriptor of the directory that a path is in, reached from `root` without following a link, and the last part of the path."""
    root = path.parent if root is None else root
    *between, name = path.relative_to(root).parts
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        here = root
        for part in between:
            here = here / part
            try:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
            except FileNotFoundError as error:
                raise UnreadableError(here, "is missing", missing=True) from error
            except OSError as error:
                if kind := _kind_at(descriptor, part).replace("a directory", ""):
                    raise UnreadableError(here, f"is {kind}, and no directory") from error
                raise
            os.close(descriptor)
            descriptor = inner
        yield descriptor, name
    finally:
        os.close(descriptor)


def _kind_at(directory: int, name: str) -> str:
    """The kind of a directory entry: "" for a regular file, "missing" where there is none."""
    try:
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except OSError:
        return "missing"
    return _kind(mode)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFREG: "", stat.S_IFLNK: "a link", stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def is_file(path: Path) -> bool:
    """Whether there is a regular file, and no link to one."""
    return _is(path, stat.S_ISREG)


def is_directory(path: Path) -> bool:
    """Whether there is a directory, and no link to one."""
    return _is(path, stat.S_ISDIR)


def _is(path: Path, is_kind: Any) -> bool:
    try:
        return bool(is_kind(path.lstat().st_mode))
    except (OSError, ValueError):  # a name with a null byte
        return False


# Reading


def read_file(path: Path, *, limit: int, root: Path | None = None) -> bytes:
    """A file's content.

    Raises:
        UnreadableError: if it is missing, no regular file, or longer than `limit` bytes.
    """
    try:
        with os.fdopen(open_inside(path, os.O_RDONLY, root=root), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(size) if size <= limit else None
    except UnreadableError:
        raise
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise UnreadableError(path, f"cannot be read ({getattr(error, 'strerror', None) or error})", missing=missing) from error
    if data is None:
        raise UnreadableError(path, f"has more than {limit:,} bytes")
    return data


def read_json(path: Path, *, limit: int = JSON_LIMIT, root: Path | None = None) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        UnreadableError: as `read_file`, and if it is not one JSON object of plain, finite values.
    """
    try:
        return parse_json(read_file(path, limit=limit, root=root))
    except ValueError as error:
        raise UnreadableError(path, f"is damaged ({error})") from error


def parse_json(data: bytes) -> dict[str, Any]:
    """One JSON object of finite numbers and distinct keys.

    Raises:
        ValueError: for anything else, such as nesting that exhausts the stack.
    """
    try:
        tree = json.loads(data.decode(), parse_int=_whole, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("no UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} in line {error.lineno}") from None
    if not isinstance(tree, dict):
        raise ValueError("no JSON object")
    return tree


def _whole(text: str) -> int:
    if len(text) > _NUMBER_LIMIT:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a number that is {value}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        raise ValueError("a key is there twice")
    return tree


# Writing


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on the disk; what was at this name, be it a link, is replaced."""
    _write(path, data, durable=True)


def _write(path: Path, data: bytes, *, durable: bool) -> None:
    try:
        file = path.open("xb")  # which follows no link
    except FileExistsError:
        path.unlink()
        file = path.open("xb")
    with file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def replace_durably(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace a file's content in one step: a reader sees the old or the new, also after a power cut.

    A link at the name is replaced, and what it leads to is left alone.

    Raises:
        StorageError: if the disk refuses.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        _write(temporary, data, durable=durable)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StorageError(f"{path} could not be written ({error.strerror}); free some space and `rlx resume` the run") from error


def open_to_append(path: Path, *, root: Path | None = None, readable: bool = False) -> IO[bytes]:
    """A file to append to, made if it is missing. One that has other names too (hard links) is copied first: these keep their content.

    Raises:
        UnreadableError: if it is a link or no regular file.
        OSError: if the system refuses.
    """
    flags = (os.O_RDWR if readable else os.O_WRONLY) | os.O_APPEND | os.O_CREAT
    descriptor = open_inside(path, flags, root=root)
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        with os.fdopen(open_inside(path, os.O_RDONLY, root=root), "rb") as old:
            _write(temporary, b"", durable=False)
            with os.fdopen(open_inside(temporary, os.O_WRONLY, root=root), "wb") as new:
                shutil.copyfileobj(old, new)
        temporary.replace(path)
        descriptor = open_inside(path, flags, root=root)
    return os.fdopen(descriptor, "a+b" if readable else "ab")


def append_line(path: Path, line: bytes, *, durable: bool = False) -> None:
    """Append a line to a file of lines; it gets a line of its own if a power cut left half a line before it.

    Args:
        path: the file, made if it is missing.
        line: with its newline.
        durable: return only when it is on the disk.

    Raises as `open_to_append`.
    """
    with open_to_append(path, readable=True) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        torn = size > 0 and file.read(1) != b"\n"
        file.write(b"\n" + line if torn else line)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def make_directory(path: Path) -> None:
    """Make a directory in one that is there; nothing is done if it exists.

    Raises:
        StorageError: if a link or something else is in its place.
        OSError: if the system refuses.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    if not is_directory(path):
        kind = _kind(path.lstat().st_mode) or "a file"
        raise StorageError(f"{path} is {kind}, and no directory; rlx follows no link in a run: remove it")


def create_directory(path: Path, files: dict[str, bytes]) -> None:
    """Make a directory with its files in one step: it is there whole or not at all, also after a kill.

    Raises:
        FileExistsError: if there is something at the path that is no empty directory.
        OSError: if the system refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clean_creations(path.parent)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for name, data in files.items():
            write_durably(temporary / name, data)
        sync_directory(temporary)
        if path.is_symlink():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        try:
            temporary.rename(path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
            raise
        sync_directory(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sync_directory(path: Path) -> None:
    """Wait until a directory's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Cleaning up


def is_temporary(name: str) -> bool:
    """Whether a name is that of a temporary file or directory."""
    return _TEMPORARY.search(name) is not None


def clean_temporaries(directory: Path, *, of_anybody: bool = False) -> None:
    """Remove the temporary files of dead processes, or with `of_anybody` of all: the caller holds the run's lock."""
    if not is_directory(directory):
        return
    for path in directory.iterdir():
        owner = _TEMPORARY.search(path.name)
        if owner is not None and (of_anybody or not _is_alive(int(owner[1]))):
            _remove(path)


def _clean_creations(directory: Path) -> None:
    """Remove directories of runs that a kill interrupted; recent ones are left, since another machine may be making them."""
    for path in directory.glob(".*.tmp-*"):
        owner = _TEMPORARY.search(path.name)
        with contextlib.suppress(OSError):
            if owner is not None and not _is_alive(int(owner[1])) and time.time() - path.lstat().st_mtime > _CREATION_S:
                _remove(path)


def _remove(path: Path) -> None:
    """Remove a file, a link or a whole directory; what a link leads to is left alone."""
    if is_directory(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    except OverflowError:
        return False
    return pid > 0
