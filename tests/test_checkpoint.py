"""Checkpoints under failing writes, flipped bits, missing files, foreign owners and full disks."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from launch import POLICY_GRADIENT, lines

import rlx.files
from rlx.build import build_algorithm
from rlx.checkpoint import best_checkpoint, find_checkpoints, read_manifest
from rlx.checkpointer import Checkpointer
from rlx.config.compose import Composer
from rlx.config.schema import RunConfig
from rlx.errors import CheckpointError, EnvError, StorageError
from rlx.run import train
from rlx.store.record import Record
from rlx.store.runs import RunDir
from rlx.types import EnvSpec

FILES = ("algo.pt", "run.pt", "manifest.json")


class Part:
    """Something with a state."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state


def make_state(fill: float = 0.0) -> dict[str, Any]:
    return {
        "algo": Part(weight=torch.full((40,), fill), name="x"),
        "progress": Part(env_steps=int(fill)),
        "collector": Part(obs=np.full((2, 3), float(fill)), rng={"state": 2**100}, flags=[True, (1, "a")], bit=np.float32(0.5)),
    }


class Saved:
    """A checkpointer with everything it warned of."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory, self.warnings = directory, list[str]()
        self.checkpointer = Checkpointer(directory, **{"algo": "ppo", "warn": self.warnings.append, **settings})

    def save(self, *steps: int, score: float | None = None) -> None:
        for env_steps in steps:
            self.checkpointer.save(make_state(env_steps), env_steps)
            if score is not None:
                self.checkpointer.begin_score(env_steps, score)
                self.checkpointer.wait()

    def restore(self) -> int | None:
        """Env steps of what was restored, after checking that all of it belongs together."""
        state = make_state(-1.0)
        if not self.checkpointer.restore(state):
            return None
        env_steps: int = state["progress"].values["env_steps"]
        assert torch.equal(state["algo"].values["weight"], torch.full((40,), float(env_steps)))
        assert torch.equal(state["collector"].values["obs"], torch.full((2, 3), float(env_steps), dtype=torch.float64))
        return env_steps

    def steps(self) -> list[int]:
        return [c.env_steps for c in find_checkpoints(self.directory)[0]]

    def contents(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.directory)): p.read_bytes() for p in self.directory.rglob("*") if p.is_file()}

    def names(self) -> list[str]:
        return sorted(p.name for p in self.directory.iterdir())

    def path(self, env_steps: int) -> Path:
        return self.directory / f"{env_steps:012d}"


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    return Saved(tmp_path / "checkpoints")


def write_manifest(path: Path, **changes: Any) -> None:
    """A manifest that is whole, with the digests that belong to it, but says something else."""
    manifest = {**json.loads((path / "manifest.json").read_text()), **changes}
    del manifest["sha256"]
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


# What is written


def test_state_comes_back_with_arrays_as_tensors(saved: Saved) -> None:
    saved.save(7)
    state = make_state()
    assert saved.checkpointer.restore(state)
    collector = state["collector"].values
    assert collector["rng"] == {"state": 2**100}
    assert collector["flags"] == [True, (1, "a")]
    assert collector["bit"] == 0.5
    assert collector["obs"].dtype == torch.float64


def test_manifest_says_what_it_is_and_holds_every_digest(saved: Saved) -> None:
    saved.save(7, score=3.5)
    manifest = read_manifest(saved.path(7))
    expected = {"format": 5, "env_steps": 7, "algo": "ppo", "score": 3.5, "exact": True, "why_not_exact": None, "threads": 1}
    assert expected.items() <= manifest.items()
    assert manifest["torch"] == torch.__version__
    for name in ("algo.pt", "run.pt"):
        assert manifest["files"][name] == hashlib.sha256((saved.path(7) / name).read_bytes()).hexdigest()


def test_manifest_says_why_a_resume_is_not_exact(tmp_path: Path) -> None:
    saved = Saved(tmp_path, inexact="its physics outlives the episode")
    saved.save(1)
    manifest = read_manifest(saved.path(1))
    assert (manifest["exact"], manifest["why_not_exact"]) == (False, "its physics outlives the episode")


def test_the_last_two_and_the_best_are_kept(saved: Saved) -> None:
    for env_steps, score in ((10, 1.0), (20, 9.0), (30, None), (40, 3.0), (50, None), (60, 2.0)):
        saved.save(env_steps, score=score)
    assert saved.steps() == [60, 50, 20]
    assert best_checkpoint(find_checkpoints(saved.directory)[0]).env_steps == 20  # type: ignore[union-attr]


def test_of_equally_good_checkpoints_the_newest_is_the_best(saved: Saved) -> None:
    saved.save(10, 20, score=5.0)
    saved.save(30, 40, 50)
    assert saved.steps() == [50, 40, 20]


@pytest.mark.parametrize("keep", [1, 4])
def test_as_many_are_kept_as_it_is_told(keep: int, tmp_path: Path) -> None:
    saved = Saved(tmp_path, keep=keep)
    saved.save(*range(10, 70, 10))
    assert saved.steps() == [60, 50, 40, 30][:keep]


def test_without_evaluations_there_is_no_best(saved: Saved) -> None:
    saved.save(10)
    saved.save(20, score=float("nan"))
    assert best_checkpoint(find_checkpoints(saved.directory)[0]) is None


def test_a_score_settles_the_evaluation_that_was_due_and_changes_nothing_else(saved: Saved) -> None:
    saved.checkpointer.begin_save(make_state(10), 10, evaluation_due=True)
    saved.checkpointer.wait()
    (due,), before = find_checkpoints(saved.directory)[0], saved.contents()
    assert (due.owes_evaluation, due.evaluated) == (True, False)
    saved.checkpointer.begin_score(10, 2.5)
    saved.checkpointer.wait()
    (done,), after = find_checkpoints(saved.directory)[0], saved.contents()
    done.verify()
    assert (done.owes_evaluation, done.evaluated, done.score) == (False, True, 2.5)
    assert [name for name in before | after if before.get(name) != after.get(name)] == ["000000000010/manifest.json"]
    assert saved.restore() == 10


def test_a_score_for_a_checkpoint_that_somebody_deleted_is_a_warning(saved: Saved) -> None:
    saved.save(10)
    shutil.rmtree(saved.path(10))
    saved.checkpointer.begin_score(10, 2.5)
    saved.checkpointer.wait()
    assert "it gets no score" in saved.warnings[0]


def test_saving_twice_at_one_step_does_nothing_the_second_time(saved: Saved) -> None:
    saved.save(10, score=1.0)
    before = saved.contents()
    saved.checkpointer.save(make_state(99), 10)
    assert saved.contents() == before


@pytest.mark.parametrize("algo", POLICY_GRADIENT)
def test_a_checkpoint_is_as_large_as_its_parameters_and_their_moments(algo: str, tmp_path: Path) -> None:
    config = Composer().compose([f"algo={algo}", "recipe=null", "algo.hidden_sizes=[256,256]"]).config
    spec = EnvSpec(id="x", observation_space=gymnasium.spaces.Box(-1, 1, (8,)), action_space=gymnasium.spaces.Discrete(4))
    built: Any = build_algorithm(config, spec, torch.device("cpu"))
    Checkpointer(tmp_path, algo=algo).save({"algo": built}, 1)
    num_parameters = sum(p.numel() for p in built.net.parameters())
    size = (tmp_path / f"{1:012d}" / "algo.pt").stat().st_size
    assert 12 * num_parameters < size < 12 * num_parameters + 20_000  # two moments beside every parameter, 4 bytes each


def test_a_view_is_saved_without_what_it_looks_into(saved: Saved) -> None:
    saved.checkpointer.save({"algo": Part(view=torch.zeros(1_000_000)[:10], array=np.zeros(1_000_000)[::1000])}, 1)
    assert (saved.path(1) / "algo.pt").stat().st_size < 20_000


# Writes that fail


def fail_at(number: int, error: Callable[[], BaseException], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, failing at its n-th call, from 0."""
    calls = iter(range(1000))

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            raise error()
        return function(*args, **kwargs)

    return failing


def disk_full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


POINTS = {
    "the directory": (Path, "mkdir", range(1)),
    "opening": (Path, "open", range(3)),
    "fsync": (os, "fsync", range(4)),
    "renaming": (Path, "rename", range(1)),
}


@pytest.mark.parametrize(("point", "number"), [(point, n) for point, (*_, numbers) in POINTS.items() for n in numbers])
def test_a_failing_write_leaves_the_earlier_checkpoints_and_nothing_else(
    point: str, number: int, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved.save(10, 20)
    before, names = saved.contents(), saved.names()
    where, name, _ = POINTS[point]
    with monkeypatch.context() as patch:
        patch.setattr(where, name, fail_at(number, disk_full, getattr(where, name)))
        with pytest.raises(StorageError) as caught:
            saved.save(30)
    assert caught.value.exit_code == 6
    assert "the checkpoint at 30 env steps could not be written" in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert "rlx resume" in str(caught.value)
    assert (saved.contents(), saved.names()) == (before, names)
    assert saved.restore() == 20
    saved.save(30)
    assert saved.restore() == 30
    assert saved.warnings == []


@pytest.mark.parametrize("number", range(5))
def test_a_process_that_ends_while_it_saves_leaves_whole_checkpoints(number: int, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    saved.save(10, 20)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_at(number, Killed, os.fsync))
        with pytest.raises(Killed):
            saved.save(30)
    assert saved.restore() == (30 if number == 4 else 20)
    assert [name for name in saved.names() if "tmp" in name] == []
    assert saved.warnings == []


def test_temporary_directories_of_a_killed_process_are_removed(saved: Saved) -> None:
    saved.save(10)
    shutil.copytree(saved.path(10), saved.directory / "000000000020.tmp-1")
    assert saved.steps() == [10]
    assert saved.restore() == 10
    assert saved.names() == ["000000000010"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full exists on Linux alone")
def test_a_record_that_cannot_be_written_is_one_error_also_when_it_is_closed() -> None:
    record = Record(Path("/dev/full"))
    with pytest.raises(StorageError, match="No space left on device"):
        record.write({"env_steps": 1})
    record.close()


def test_a_replaced_file_keeps_its_old_content_when_the_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "meta.json"
    rlx.files.replace_durably(path, b"old")
    for name in ("open", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, fail_at(0, disk_full, getattr(Path, name)))
            with pytest.raises(StorageError, match="No space left on device"):
                rlx.files.replace_durably(path, b"new")
        assert [p.name for p in tmp_path.iterdir()] == ["meta.json"]
        assert path.read_bytes() == b"old"


# Reads of what is damaged


def flip(path: Path, position: int, mask: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_byte_is_noticed_and_the_checkpoint_before_is_used(name: str, tmp_path: Path) -> None:
    rng = random.Random(0)
    for trial in range(40):
        saved = Saved(tmp_path / str(trial))
        saved.save(10, 20)
        path, manifest = saved.path(20), read_manifest(saved.path(20))
        position, mask = rng.randrange((path / name).stat().st_size), rng.randrange(1, 256)
        flip(path / name, position, mask)
        if name == "manifest.json" and _reads_as(path, manifest):  # one blank for another
            continue
        assert saved.restore() == 10, (position, mask)
        assert len(saved.warnings) == 1
        assert str(path) in saved.warnings[0]
        assert "falling back to the checkpoint before it" in saved.warnings[0]
        assert [n.partition("-")[0] for n in saved.names()] == ["000000000010", "000000000020.damaged"]


def _reads_as(path: Path, manifest: dict[str, Any]) -> bool:
    try:
        return json.loads((path / "manifest.json").read_text()) == manifest
    except ValueError:
        return False


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [_empty, _halve, _shorten, _lengthen, Path.unlink], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_torn_or_missing_file_is_noticed_and_the_checkpoint_before_is_used(
    name: str, damage: Callable[[Path], None], saved: Saved
) -> None:
    saved.save(10, 20)
    damage(saved.path(20) / name)
    assert saved.restore() == 10
    assert len(saved.warnings) == 1


@pytest.mark.parametrize(
    "text",
    ["[]", "3", "null", "{}", '{"format": 3}', '{"format": 3, "env_steps": "7", "files": {}}', '{"format": 3, "env_steps": 7, "files": []}',
     '{"format": 3, "env_steps": 7, "files": {}, "score": "high"}', '{"format": 3, "env_steps": 7, "files": {}}'],
)  # fmt: skip
def test_a_manifest_of_another_shape_is_damage(text: str, saved: Saved) -> None:
    saved.save(10, 20)
    (saved.path(20) / "manifest.json").write_text(text)
    best_checkpoint(find_checkpoints(saved.directory)[0])
    assert saved.restore() == 10


def test_a_run_that_fell_back_saves_again_where_the_damaged_one_was(saved: Saved) -> None:
    saved.save(10, 20)
    _halve(saved.path(20) / "run.pt")
    assert saved.restore() == 10
    saved.save(20)
    assert saved.restore() == 20
    assert len(saved.warnings) == 1


def test_several_damaged_ones_are_passed_over_one_after_the_other(saved: Saved) -> None:
    saved.checkpointer.keep = 4
    saved.save(10, 20, 30, 40)
    _empty(saved.path(40) / "manifest.json")
    _shorten(saved.path(30) / "algo.pt")
    assert saved.restore() == 20
    assert len(saved.warnings) == 2


def test_when_all_are_damaged_the_run_is_refused_now_and_the_next_time(saved: Saved) -> None:
    saved.save(10, 20)
    for env_steps in (10, 20):
        _shorten(saved.path(env_steps) / "algo.pt")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged") as caught:
            saved.restore()
        assert caught.value.exit_code == 4
    assert len(saved.warnings) == 2


def test_without_any_checkpoint_there_is_nothing_to_restore(saved: Saved) -> None:
    assert saved.restore() is None
    saved.directory.mkdir()
    assert saved.restore() is None


# Reads of what is foreign


def test_a_manifest_that_a_kill_kept_from_getting_its_score_is_cleaned_up(saved: Saved) -> None:
    saved.save(10)
    left = saved.path(10) / "manifest.json.tmp-99999999"
    left.write_text("{")
    saved.restore()
    assert not left.exists()


def test_a_checkpoint_of_another_algorithm_is_refused_and_left_alone(saved: Saved) -> None:
    saved.save(10, 20)
    write_manifest(saved.path(20), algo="a2c")
    names = saved.names()
    with pytest.raises(CheckpointError, match=r"000000000020 was written for algo=a2c, this run is algo=ppo") as caught:
        saved.restore()
    assert caught.value.exit_code == 4
    assert saved.names() == names


def test_a_checkpoint_of_another_format_is_refused_and_left_alone(saved: Saved) -> None:
    saved.save(10, 20)
    write_manifest(saved.path(20), format=1)
    names = saved.names()
    with pytest.raises(CheckpointError, match="has checkpoint format 1, this rlx reads format 5") as caught:
        saved.restore()
    assert caught.value.exit_code == 4
    assert saved.names() == names
    assert saved.warnings == []


def test_a_checkpoint_of_other_networks_is_refused_on_one_line(saved: Saved) -> None:
    saved.checkpointer.save({"algo": torch.nn.Linear(3, 2)}, 10)
    with pytest.raises(CheckpointError, match="does not fit this run's algo") as caught:
        saved.checkpointer.restore({"algo": torch.nn.Linear(4, 2)})
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_a_part_of_the_run_is_refused(saved: Saved) -> None:
    saved.save(10)
    with pytest.raises(CheckpointError, match=r"does not fit this run's replay .*KeyError"):
        saved.checkpointer.restore({**make_state(), "replay": Part()})


def test_an_environment_that_raises_while_it_is_restored_is_not_called_a_bad_checkpoint(saved: Saved) -> None:
    class Broken(Part):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise EnvError("environment 0 (Toy-v0) raised KeyError in replay")

    saved.save(10)
    with pytest.raises(EnvError):
        saved.checkpointer.restore({**make_state(), "collector": Broken()})


class Payload:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["algo.pt", "run.pt"])
def test_code_in_a_checkpoint_is_refused_and_not_executed(name: str, saved: Saved, tmp_path: Path) -> None:
    saved.save(10)
    torch.save({"weight": Payload(tmp_path / "executed")}, saved.path(10) / name)
    files = read_manifest(saved.path(10))["files"]
    write_manifest(saved.path(10), files={**files, name: hashlib.sha256((saved.path(10) / name).read_bytes()).hexdigest()})
    with pytest.raises(CheckpointError, match=f"{name} is not plain data and was not loaded") as caught:
        saved.restore()
    assert caught.value.exit_code == 4
    assert not (tmp_path / "executed").exists()


# A disk that is really full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if mounted.returncode:
        pytest.skip(f"mounting a file system is not allowed here: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def short_run(root: Path, name: str) -> tuple[RunDir, RunConfig]:
    config = Composer().compose(
        ["algo=ppo", "env=cartpole", "recipe=null", "env.num_envs=3", "algo.rollout_length=20", "algo.num_minibatches=3",
         "loop.total_env_steps=2400", "loop.log_every=173", "loop.eval_every=997", "loop.eval_episodes=3",
         "loop.checkpoint_every=311", "log.wandb=disabled", "log.console=quiet"]
    ).config  # fmt: skip
    return RunDir.create(root, name, config, {}), config


def fill(path: Path) -> None:
    """Leave no free byte on path's file system."""
    with path.open("wb", buffering=0) as file:
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size):
                    pass


def test_a_full_disk_ends_the_run_with_one_message_and_it_goes_on_exactly_when_there_is_space(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, config = short_run(tmp_path, "straight")
    train(straight, config, overrides=[])
    run, config = short_run(small_disk, "run")
    filler, begin_save = small_disk / "filler", Checkpointer.begin_save

    def save_and_fill(self: Checkpointer, *args: Any, **kwargs: Any) -> None:
        begin_save(self, *args, **kwargs)
        self.wait()
        if not filler.exists() and len(find_checkpoints(self.directory)[0]) == 2:
            fill(filler)
            before.update({p: p.read_bytes() for p in run.checkpoints.rglob("*") if p.is_file()})

    before: dict[Path, bytes] = {}
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "begin_save", save_and_fill)
        with pytest.raises(StorageError, match="No space left on device") as caught:
            train(run, config, overrides=[])
    assert caught.value.exit_code == 6
    assert "rlx resume" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in run.checkpoints.rglob("*") if p.is_file()} == before
    assert [p.name for p in run.path.rglob("*.tmp-*")] == []
    assert run.meta()["name"] == "run"

    with pytest.raises(StorageError):  # still full
        train(run, config, overrides=[])
    filler.unlink()
    train(run, dataclasses.replace(config), overrides=[])
    assert lines(run) == lines(straight)
    newest = [find_checkpoints(r.checkpoints)[0][0] for r in (run, straight)]
    assert newest[0].manifest["files"]["algo.pt"] == newest[1].manifest["files"]["algo.pt"]
    assert "Traceback" not in capsys.readouterr().err
