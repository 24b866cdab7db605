"""Files from a foreign directory are opened as regular files, within limits, and no link is followed out of the directory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rlx.errors import ConfigError, StorageError
from rlx.files import (
    UnreadableError,
    clean_temporaries,
    create_directory,
    make_directory,
    open_inside,
    open_to_append,
    parse_json,
    read_file,
    read_json,
    replace_durably,
)
from rlx.store.record import Record, read_metrics
from rlx.store.runs import RunDir


def _socket(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))


NO_FILES: dict[str, Callable[[Path], object]] = {
    "link": lambda p: p.symlink_to(p.parent / "precious"),
    "dangling link": lambda p: p.symlink_to(p.parent / "new"),
    "link to a device": lambda p: p.symlink_to("/dev/zero"),
    "circle": lambda p: p.symlink_to(p),
    "fifo": os.mkfifo,
    "directory": Path.mkdir,
    "socket": _socket,
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_is_no_file_is_neither_read_nor_written(kind: str, here: Path) -> None:
    (here / "precious").write_text("precious")
    path = here / "metrics.jsonl"
    NO_FILES[kind](path)
    with pytest.raises(UnreadableError, match=r"metrics\.jsonl is a"):
        read_file(path, limit=10)
    with pytest.raises(UnreadableError):
        open_to_append(path)
    with pytest.raises(StorageError, match="put it aside"):
        Record(path)
    assert read_metrics(path) == []
    assert (here / "precious").read_text() == "precious"
    assert not (here / "new").exists()


def test_a_link_below_the_root_is_not_followed_and_one_above_is(tmp_path: Path) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "real" / "inner" / "file").write_text("x")
    (tmp_path / "above").symlink_to(tmp_path / "real")
    assert read_file(tmp_path / "above" / "inner" / "file", limit=1, root=tmp_path / "above") == b"x"
    (tmp_path / "real" / "led").symlink_to(tmp_path / "real" / "inner")
    with pytest.raises(UnreadableError, match="led is a link, and no directory"):
        read_file(tmp_path / "real" / "led" / "file", limit=1, root=tmp_path / "real")
    with pytest.raises(UnreadableError, match="gone is missing"):
        open_inside(tmp_path / "real" / "gone" / "file", os.O_RDONLY, root=tmp_path / "real")


def test_a_file_that_is_longer_than_its_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnreadableError, match="more than 10 bytes"):
        read_file(path, limit=10)


def test_appending_to_a_file_of_several_names_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "backup").write_bytes(b"old\n")
    os.link(tmp_path / "backup", tmp_path / "file")
    with open_to_append(tmp_path / "file") as file:
        file.write(b"new\n")
    assert (tmp_path / "file").read_bytes() == b"old\nnew\n"
    assert (tmp_path / "backup").read_bytes() == b"old\n"


def test_replacing_goes_past_links_at_the_name_and_at_the_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    for name in ("meta.json", f"meta.json.tmp-{os.getpid()}"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    replace_durably(tmp_path / "meta.json", b"{}")
    assert (tmp_path / "meta.json").read_bytes() == b"{}"
    assert not (tmp_path / "meta.json").is_symlink()
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested too deeply"), ('{"a":' * 100_000, "nested too deeply"), ("[]", "no JSON object"),
        ("1.2.3", "no JSON"), ("", "no JSON"),
        ('{"a": NaN}', "that is nan"), ('{"a": -Infinity}', "that is -inf"), ('{"a": 1e999}', "that is inf"),
        (f'{{"a": {"9" * 400}}}', "of 400 digits"), (f'{{"a": {"9" * 5000}}}', "of 5000 digits"), ('{"a": 1, "a": 2}', "there twice"),
    ],
)  # fmt: skip
def test_json_that_is_no_plain_object_is_a_value_error(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        parse_json(text.encode())
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UnreadableError, match="damaged"):
        read_json(tmp_path / "x.json")


def test_json_that_is_no_text_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UnreadableError, match="no UTF-8"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("value", ["1e999", "NaN", "Infinity", "9" * 400, "-1", "1.5", "true", "null", "[" * 5000])
def test_a_line_of_the_record_with_impossible_numbers_is_no_line(value: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"env_steps": 1, "a/b": 1}}\n{{"env_steps": {value}}}\n')
    assert [line["env_steps"] for line in read_metrics(path)] == [1]


def test_a_directory_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rlx.files.write_durably", die)
        with pytest.raises(KeyboardInterrupt):
            create_directory(tmp_path / "run", {"a": b"1"})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()  # as a kill of an older version leaves it
    create_directory(tmp_path / "run", {"a": b"1"})
    with pytest.raises(FileExistsError):
        create_directory(tmp_path / "run", {"a": b"2"})
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == {"a": b"1"}
    (tmp_path / "led").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        create_directory(tmp_path / "led", {"a": b"1"})


def test_a_directory_is_no_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "photos")
    with pytest.raises(StorageError, match="is a link, and no directory"):
        make_directory(tmp_path / "checkpoints")
    make_directory(tmp_path / "photos")


def test_what_the_dead_were_writing_is_removed_and_what_the_living_write_is_not(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / f"meta.json.tmp-{dead.pid}").write_text("")
    (tmp_path / f"link.tmp-{dead.pid}").symlink_to(tmp_path / "precious")
    (tmp_path / f"000000000010.tmp-{dead.pid}").mkdir()
    (tmp_path / f"meta.json.tmp-{os.getpid()}").write_text("")
    clean_temporaries(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"meta.json.tmp-{os.getpid()}", "precious"]


def test_a_lock_that_is_a_link_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(StorageError, match="is a link, and no file: remove it"), RunDir(tmp_path).lock():
        pass
    assert not (tmp_path / "made").exists()
    (tmp_path / ".lock").unlink()
    with RunDir(tmp_path).lock(), pytest.raises(ConfigError, match="being trained"), RunDir(tmp_path).lock():
        pass
