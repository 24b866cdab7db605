"""Replays in checkpoints: each row is written once, and whatever happens to a file or a process, what is restored is what was saved."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from resumable import assert_equal, in_child

from rlx.appended import Appended, Kind, items_per_segment
from rlx.checkpoint import FormatError, find_checkpoints, load_algorithm, read_manifest, sealed
from rlx.checkpointer import Checkpointer
from rlx.columns import Column
from rlx.errors import CheckpointError, StorageError
from rlx.replay import PositionReplay, SequenceReplay
from rlx.segments import Stored, decode, encode, entries_of
from rlx.store.details import checkpoint_rows

K = 3
pytestmark = pytest.mark.usefixtures("small_segments")


class Agent:
    """A replay with every kind of column, which is filled from a generator of its own."""

    def __init__(self, capacity: int = 1_000, num_envs: int = 3, *, width: int = 5, exponent: float = 0.6) -> None:
        columns = {
            "obs": {"frames": Column(torch.uint8, (K, 4, 9), num_frames=K), "vector": Column(torch.float32, (width,))},
            "action": Column(torch.long), "policy": Column(torch.float32, (2,), renewed=True), "is_last": Column(torch.bool),
        }  # fmt: skip
        self.num_envs, self.width, self.steps = num_envs, width, 0
        self.replay = SequenceReplay(capacity, num_envs, columns, ahead=2, exponent=exponent, correction=0.4)

    def step(self, num: int = 1) -> Agent:
        """Add some steps at once; what they hold is a function of their number."""
        t, b = (self.steps + torch.arange(num))[:, None], torch.arange(self.num_envs)
        frames = (t[..., None] + torch.arange(K) + 50 * b[:, None]) % 251
        obs = {
            "frames": frames[..., None, None].expand(-1, -1, -1, 4, 9).to(torch.uint8),
            "vector": torch.sin(t[..., None] * 0.7 + b[:, None] + 3.0 * torch.arange(self.width)),
        }  # fmt: skip
        is_last = (7 * t + 13 * b) % 10 == 0
        beyond = {(i, j): {"frames": torch.full((K, 4, 9), j, dtype=torch.uint8), "vector": torch.full((self.width,), -1.0 * i)}
                  for i, j in is_last.nonzero().tolist() if j != 1}  # environment 1 terminates  # fmt: skip
        action, policy = (3 * t + b) % 9, torch.stack([0.1 * t + b, 0.3 * t - b], dim=-1)
        self.replay.add(beyond, obs=obs, is_last=is_last, policy=policy, action=action)
        self.steps += num
        if self.replay.num_ready > 20:
            self.replay.rows["policy"][torch.randint(self.replay.size, (4,))] = -1.0
            self.replay.prioritise(self.replay.draw(4)[0], torch.rand(4))
        return self

    def draws(self, num: int = 200) -> Any:
        """What is drawn from the replay now."""
        with torch.random.fork_rng():
            torch.manual_seed(7)
            index, weight = self.replay.draw(num)
            uniform = self.replay.draw_uniformly(num)
        take = self.replay.rows.take
        return [index, weight, uniform, take("obs", index), take("policy", index), self.replay.next_obs("obs", index),
                self.replay.windows("action", uniform, 2)]  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"replay": self.replay.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.replay.load_state_dict(state["replay"])
        self.steps = state["steps"]


class Run:
    """The checkpoints of an agent in a directory."""

    def __init__(self, directory: Path, agent: Agent, **settings: Any) -> None:
        self.directory, self.agent, self.warnings = directory, agent, list[str]()
        self.checkpointer = Checkpointer(directory, algo="dqn", warn=self.warnings.append, **settings)

    def save(self) -> Path:
        self.checkpointer.save({"algo": self.agent}, self.agent.steps)
        return self.directory / f"{self.agent.steps:012d}"

    def restored(self, **shape: Any) -> Run:
        """A new process's run, restored from the directory."""
        run = Run(self.directory, Agent(**shape) if shape else copy_shape(self.agent))
        assert run.checkpointer.restore({"algo": run.agent})
        return run

    def segments(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in (self.directory / "segments").glob("*")}

    def manifest(self, steps: int) -> dict[str, Any]:
        return read_manifest(self.directory / f"{steps:012d}")


def copy_shape(agent: Agent) -> Agent:
    return Agent(agent.replay.rows.capacity, agent.num_envs, width=agent.width, exponent=agent.replay._exponent)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path / "checkpoints", Agent())
    yield run
    run.checkpointer.close()


def named(manifest: dict[str, Any]) -> set[str]:
    return {segment.name for entry in entries_of(manifest).values() for segment in entry.segments}


# What is written


def test_a_checkpoint_after_the_first_costs_what_is_new_and_rewrites_no_segment(tmp_path: Path) -> None:
    run = Run(tmp_path, Agent(capacity=3_000, width=60).step(900))
    first = sum(p.stat().st_size for p in run.save().iterdir())
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in tmp_path.glob("segments/*")}
    size = first + sum(p.stat().st_size for p in before)
    run.agent.step(3)
    second = sum(p.stat().st_size for p in run.save().iterdir())
    after = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in tmp_path.glob("segments/*")}
    assert before.items() <= after.items()
    assert size > 700_000
    assert second + sum(p.stat().st_size for p in after.keys() - before.keys()) < 0.15 * size
    assert second - 2_700 * (8 + 8) < 0.1 * size  # but for what changes in place: policies and priorities


@pytest.mark.parametrize(("capacity", "num_envs"), [(1_000, 3), (97, 1), (64, 4), (13, 2)])
def test_a_replay_goes_on_from_any_checkpoint_as_if_it_had_never_been_saved(capacity: int, num_envs: int, tmp_path: Path) -> None:
    rng = random.Random(capacity)
    torch.manual_seed(0)
    straight = Run(tmp_path / "straight", Agent(capacity, num_envs).step(4))
    other = Run(tmp_path / "other", Agent(capacity, num_envs).step(4))
    for trial in range(7):
        num = rng.choice([1, 2, 5, 60])
        state = torch.get_rng_state()
        straight.agent.step(num)
        torch.set_rng_state(state)
        other.agent.step(num)
        other.save()
        if trial % 3 == 2:
            other = other.restored()
        assert_equal(other.agent.draws(), straight.agent.draws())
    straight.save()
    items: tuple[dict[str, Stored], ...] = ({}, {})
    found = [find_checkpoints(each.directory)[0][0].read("algo.pt", items=at) for each, at in zip((straight, other), items, strict=True)]
    assert_equal(*found)
    assert len(other.segments()) > 3 or capacity < 64


def test_segments_that_no_checkpoint_needs_are_deleted_and_those_of_the_best_are_kept(run: Run) -> None:
    run.agent.step(120)
    run.save()
    run.checkpointer.begin_score(120, 1.0)
    for _ in range(4):
        run.agent.step(170)
        run.save()
    kept = [c.manifest for c in find_checkpoints(run.directory)[0]]
    assert [m["env_steps"] for m in kept] == [800, 630, 120]
    assert set(run.segments()) == set().union(*map(named, kept))
    assert not named(run.manifest(120)) & named(run.manifest(800))
    for name, data in run.segments().items():
        assert name.endswith(f"-{hashlib.sha256(data).hexdigest()[:32]}.seg")


def test_items_of_another_history_are_not_taken_for_those_in_segments(run: Run) -> None:
    run.agent.step(100)
    run.save()
    fresh = Agent()
    fresh.steps = 5_000
    fresh.step(110)  # as many rows and more, with other content
    run.agent.replay = fresh.replay
    run.agent.steps = 5_110
    run.save()
    assert_equal(run.restored().agent.draws(), fresh.draws())


def test_a_segment_that_was_deleted_from_outside_is_written_again(run: Run) -> None:
    run.agent.step(100)
    run.save()
    shutil.rmtree(run.directory / "segments")
    run.agent.step(20)
    run.save()
    find_checkpoints(run.directory)[0][0].verify()
    assert_equal(run.restored().agent.draws(), run.agent.draws())


def test_a_replay_larger_than_what_may_wait_in_memory_is_written_before_the_save_returns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlx.segments._HELD_BYTES", 1_000)
    run.agent.step(200)
    release, submit = [], run.checkpointer._writer.submit
    monkeypatch.setattr(run.checkpointer._writer, "submit", lambda *a: release.append(a) or submit(lambda: None))
    run.checkpointer.begin_save({"algo": run.agent}, 200)
    assert len(run.segments()) > 5
    function, *arguments = release[0]
    function(*arguments)
    assert_equal(run.restored().agent.draws(), run.agent.draws())


def test_a_copy_of_a_run_made_of_hard_links_goes_on_alone(run: Run, tmp_path: Path) -> None:
    run.agent.step(150)
    run.save()
    shutil.copytree(run.directory, tmp_path / "copy", copy_function=os.link)
    before = {p: p.read_bytes() for p in (tmp_path / "copy").rglob("*") if p.is_file()}
    for _ in range(2):
        run.agent.step(300)
        run.save()
    assert {p: p.read_bytes() for p in before} == before
    other = Run(tmp_path / "copy", Agent())
    assert other.checkpointer.restore({"algo": other.agent})
    assert other.agent.steps == 150


def test_rows_and_frames_fill_segments_of_moderate_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert items_per_segment(168, 1_000_000) == 16_384  # 2.8 MB
    assert items_per_segment(84 * 84, 1_000_000) == 1_024  # 7.2 MB
    assert items_per_segment(210 * 160 * 3, 100_000) == 64
    assert items_per_segment(10, 20_000) == 16_384
    assert items_per_segment(168, 20_000) == 1_024
    assert items_per_segment(100_000_000, 10) == 1


def test_positions_of_games_lie_in_segments_too(tmp_path: Path) -> None:
    def add(replay: PositionReplay, begin: int) -> None:
        x = torch.arange(begin, begin + 37).float()
        replay.add(x.view(-1, 1, 1, 1).expand(-1, 2, 3, 3), x[:, None].expand(-1, 4), x)

    class Player(Agent):
        def __init__(self) -> None:
            self.replay, self.steps = PositionReplay(100, (2, 3, 3), 4), 0  # type: ignore[assignment]

    run = Run(tmp_path, Player())
    for begin in range(0, 400, 37):
        add(run.agent.replay, begin)  # type: ignore[arg-type]
        run.agent.steps += 37
        run.save()
    again = Run(tmp_path, Player())
    assert again.checkpointer.restore({"algo": again.agent})
    everything: Any = torch.arange(100)
    assert_equal(again.agent.replay[everything], run.agent.replay[everything])  # type: ignore[index]
    assert run.segments()


# Processes that end, and disks that are full


class Killed(BaseException):
    pass


def killed(*args: Any, **kwargs: Any) -> None:
    raise Killed


@pytest.mark.parametrize("when", ["before its segments have their names", "before its directory has its name"])
def test_a_process_killed_while_it_saves_leaves_the_checkpoint_before_and_its_orphans_are_deleted(
    when: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.agent.step(100)
    run.save()
    before, expected = set(run.segments()), run.agent.draws()
    run.agent.step(80)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace" if "segments" in when else "rename", killed)
        with pytest.raises(Killed):
            run.save()
    assert (len(run.segments()) > len(before)) or "segments" in when
    again = run.restored()
    assert again.agent.steps == 100
    assert_equal(again.agent.draws(), expected)
    assert not list(run.directory.rglob("*.tmp-*"))
    again.agent.step(1)
    again.save()
    assert set(again.segments()) == named(again.manifest(101)) | named(again.manifest(100))


def test_a_process_that_gets_sigkill_between_its_segments_and_its_manifest_goes_on_exactly(run: Run) -> None:
    run.agent.step(100)
    run.save()

    def die() -> None:
        Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign, assignment, return-value]
        child = run.restored()
        child.agent.step(80)
        child.save()

    assert os.WTERMSIG(os.waitpid(in_child(die), 0)[1]) == signal.SIGKILL
    again = run.restored()
    state = torch.get_rng_state()
    again.agent.step(80)
    again.save()
    torch.set_rng_state(state)
    assert_equal(again.agent.draws(), run.agent.step(80).draws())
    find_checkpoints(run.directory)[0][0].verify()


@pytest.mark.parametrize("number", [0, 1, 3, 9])
def test_a_full_disk_leaves_the_earlier_checkpoints_and_no_segment_that_is_not_theirs(
    number: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.agent.step(100)
    run.save()
    contents = lambda: {p: p.read_bytes() for p in run.directory.rglob("*") if p.is_file()}  # noqa: E731
    before, fsync, calls = contents(), os.fsync, iter(range(1_000))

    def full(descriptor: int) -> None:
        if next(calls) >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    run.agent.step(80)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"the checkpoint at 180 env steps could not be written .*No space left on device"):
            run.save()
    assert contents() == before
    run.save()
    assert_equal(run.restored().agent.draws(), run.agent.draws())


# Files that are damaged


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def change_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"first"', b'"First"', 1))


@pytest.mark.parametrize("damage", [flip, link, fifo, Path.unlink, shorten, empty, lengthen, change_header], ids=lambda f: f.__name__)
def test_a_damaged_segment_or_tail_is_damage_of_the_checkpoints_that_need_it(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    for victim in ("segment", "tail"):
        run = Run(tmp_path / victim, Agent())
        run.agent.step(100)
        run.save()
        expected = run.agent.draws()
        run.agent.step(100)
        newest = run.save()
        only_new = sorted(named(run.manifest(200)) - named(run.manifest(100)))
        path = run.directory / "segments" / only_new[1] if victim == "segment" else next(newest.glob("items-*.seg"))
        damage(path)
        again = run.restored()
        assert (again.agent.steps, len(again.warnings)) == (100, 1)
        assert str(path) in again.warnings[0]
        assert "falling back to the checkpoint before it" in again.warnings[0]
        assert_equal(again.agent.draws(), expected)
        assert [p.name.partition("-")[0] for p in sorted(run.directory.glob("0*"))] == ["000000000100", "000000000200.damaged"]


def test_a_damaged_segment_that_every_checkpoint_needs_ends_in_a_refusal(run: Run) -> None:
    run.agent.step(100)
    run.save()
    run.agent.step(10)
    run.save()
    flip(run.directory / "segments" / sorted(named(run.manifest(100)) & named(run.manifest(110)))[0])
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        run.restored()
    assert len(list(run.directory.glob("*.damaged-*"))) == 2


def test_a_run_that_fell_back_writes_a_damaged_segment_anew(run: Run) -> None:
    run.agent.step(100)
    run.save()
    run.agent.step(100)
    run.save()
    flip(run.directory / "segments" / max(named(run.manifest(200)) - named(run.manifest(100))))
    again = run.restored()
    again.agent.step(100)
    again.save()
    find_checkpoints(run.directory)[0][0].verify()
    assert again.restored().agent.steps == 200


def rewrite(path: Path, **changes: Any) -> None:
    """A manifest with a digest of its own that says something else."""
    manifest = {**json.loads((path / "manifest.json").read_text()), **changes}
    del manifest["sha256"]
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_replay_of_another_shape_is_refused_with_what_differs(run: Run) -> None:
    run.agent.step(200)
    run.save()
    for shape, says in (
        ({"width": 6}, r"its column \['obs'\]\['vector'\] is float32 \[5\], expected float32 \[6\]"),
        ({"capacity": 300}, "at most 300 have a place"),
    ):
        with pytest.raises(CheckpointError, match=rf"does not fit this run's algo .*{says}.*was config.yaml changed"):
            run.restored(**shape)
    run.agent.step(300)
    run.save()
    with pytest.raises(CheckpointError, match="999 of 1,500 items were saved, and there is a place for 2,001"):
        run.restored(capacity=2_003)


def entry(**changes: Any) -> dict[str, Any]:
    sha = "0" * 64
    return {"first": 5, "end": 30, "segments": [[0, 10, 99, sha], [10, 10, 99, sha]], "tail": "items-0.seg", **changes}


def test_a_manifest_that_leaves_out_items_or_leads_elsewhere_is_refused(run: Run) -> None:
    sha = "0" * 64
    assert entries_of({"appended": {"x": entry()}})["x"].end == 30
    bad: list[Any] = [
        3, {}, entry(segments=3), entry(segments=[[0, 10, 99]]), entry(segments=[[0, 10, 99, sha], [11, 10, 99, sha]]), entry(end=10),
        entry(segments=[[0, 10, 99, sha], [5, 15, 99, sha]]), entry(segments=[[6, 14, 99, sha]]), entry(segments=[[0, 3, 99, sha]]),
        entry(segments=[[-5, 25, 99, sha]]), entry(segments=[[0, 0, 99, sha]]), entry(segments=[[0, 20, 99, "../../x"]]),
        entry(segments=[[0, True, 99, sha]]), entry(tail="../manifest.json"), entry(tail=None), entry(tail=3), entry(end=20),
        entry(end=2**70), entry(first=-1), entry(first=1.5), entry(first=None),
    ]  # fmt: skip
    run.agent.step(10)
    path = run.save()
    for each in bad:
        rewrite(path, appended={"algo['replay']['rows']['rows']": each})
        with pytest.raises(CheckpointError, match="has a manifest of the wrong shape"):
            read_manifest(path)


def test_a_state_that_names_items_which_no_manifest_has_is_no_checkpoint(run: Run) -> None:
    run.agent.step(10)
    rewrite(run.save(), appended={})
    with pytest.raises(CheckpointError, match="is not plain data and was not loaded: KeyError"):
        run.restored()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.int16, torch.float32, torch.float64, torch.bfloat16])
def test_columns_of_every_type_come_back_from_a_file(dtype: torch.dtype) -> None:
    kinds = {"a": Kind(dtype, (3, 4)), "b": Kind(dtype)}
    columns = {"a": (torch.randn(6, 3, 4) * 50).to(dtype), "b": (torch.randn(6) * 50).to(dtype)}
    assert_equal(decode(encode(12, 6, kinds, columns), 12, 6, kinds), columns)
    nothing = {"a": columns["a"][:0], "b": columns["b"][:0]}
    assert_equal(decode(encode(12, 0, kinds, nothing), 12, 0, kinds), nothing)


def test_a_file_with_other_items_than_expected_is_refused_before_it_takes_memory() -> None:
    kinds = {"image": Kind(torch.uint8, (64,)), "x": Kind(torch.float32)}
    columns = {"image": torch.zeros(10_000, 64, dtype=torch.uint8), "x": torch.zeros(10_000)}
    data = encode(7, 10_000, kinds, columns)
    assert len(data) < 50_000  # images are compressed
    line, _, rest = data.partition(b"\n")
    header = json.loads(line)

    def with_header(**changes: Any) -> bytes:
        return json.dumps({**header, **changes}).encode() + b"\n" + rest

    image, x = header["columns"]
    for wrong, says in (
        (with_header(first=8), "its first is 8, expected 7"),
        (with_header(num=10_001), "its num is 10001, expected 10000"),
        (with_header(byteorder="big"), "its byteorder is 'big'"),
        (with_header(format="rlx items 2"), "its format is"),
        (with_header(columns=3), "it has the columns"),
        (with_header(columns=[x, image]), "it has the columns"),
        (with_header(columns=[image | {"dtype": "int8"}, x]), "its column image is int8"),
        (with_header(columns=[image | {"shape": [8, 8]}, x]), "its column image is uint8"),
        (with_header(columns=[image | {"bytes": 10**12}, x]), "its column image is cut off"),
        (with_header(columns=[image | {"bytes": -1}, x]), "its column image is cut off"),
        (with_header(columns=[image | {"zlib": False}, x]), "bytes or more in place of"),
        (with_header(columns=[image, x | {"zlib": True}]), "not saved as compressed data"),
        (data + b"\0", "it is longer than its columns"),
        (data[:-1], "its column x is cut off"),
        (b"", "its format is None"),
        (b"[]\n", "no object"),
    ):
        with pytest.raises(ValueError, match=says):
            decode(wrong, 7, 10_000, kinds)
    bomb = encode(7, 10_000, {"image": Kind(torch.uint8, (6_400,))}, {"image": torch.zeros(10_000, 6_400, dtype=torch.uint8)})
    described = json.loads(bomb.partition(b"\n")[0])["columns"][0] | {"shape": [64]}
    smaller = json.dumps({**header, "columns": [described]}).encode() + b"\n" + bomb.partition(b"\n")[2]
    with pytest.raises(ValueError, match="640,001 bytes or more in place of 640,000"):
        decode(smaller, 7, 10_000, {"image": kinds["image"]})


# Readers of checkpoints


def test_an_evaluation_reads_no_rows(run: Run) -> None:
    run.agent.step(100)
    newest = run.save()
    shutil.rmtree(run.directory / "segments")
    next(newest.glob("items-*.seg")).unlink()
    (checkpoint,), _ = find_checkpoints(run.directory)
    checkpoint.verify(items=False)
    with pytest.raises(CheckpointError):
        checkpoint.verify()
    policy = Agent()
    load_algorithm(checkpoint, policy, name="dqn")
    assert (policy.steps, policy.replay.size, policy.replay.num_ready) == (100, 0, 0)
    assert policy.step(30).draws() is not None


def test_a_list_of_checkpoints_shows_what_each_needs_and_leaves_out_the_segments(run: Run) -> None:
    run.agent.step(100)
    path = run.save()
    (row,) = checkpoint_rows(run.directory)
    needed = sum(map(len, run.segments().values())) + sum(p.stat().st_size for p in path.iterdir())
    assert (row.name, row.bytes, row.damage) == (path.name, needed, None)
    flip(next((run.directory / "segments").iterdir()))
    (row,) = checkpoint_rows(run.directory)
    assert "is damaged" in str(row.damage)


def test_a_replay_in_a_checkpoint_of_the_format_before_is_refused_with_the_reason(run: Run) -> None:
    class Old:
        def state_dict(self) -> dict[str, Any]:
            return {"replay": {"rows": {"added": 3, "reward": torch.zeros(3)}, "ready": torch.zeros(3)}, "steps": 3}

        def load_state_dict(self, state: Any) -> None: ...

    run.checkpointer.save({"algo": Old()}, 3)
    (run.directory / f"{3:012d}" / "manifest.json").write_bytes(sealed({**run.manifest(3), "format": 3}))
    with pytest.raises(
        FormatError, match=r"has checkpoint format 3, in which this rlx does not read the replay of algo=dqn .*version that wrote"
    ):
        run.restored()
    assert not list(run.directory.glob("*.damaged-*"))


def test_a_state_in_memory_is_a_snapshot_once_it_is_copied_and_equal_while_nothing_was_added() -> None:
    agent = Agent(capacity=50).step(40)
    live, snapshot = agent.state_dict(), copy.deepcopy(agent.state_dict())
    rows: Appended = live["replay"]["rows"]["rows"]
    assert rows == snapshot["replay"]["rows"]["rows"]
    drawn = agent.draws()
    agent.load_state_dict(live)  # its own state
    assert_equal(agent.draws(), drawn)
    agent.step(10)
    other = Agent(capacity=50)
    other.load_state_dict(snapshot)
    assert_equal(other.draws(), drawn)
    assert agent.state_dict()["replay"]["rows"]["rows"] != snapshot["replay"]["rows"]["rows"]
