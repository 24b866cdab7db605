"""Sweeps on Ray: requested resources, how a run ends there, and a node that dies in the middle.

Tests that start Ray take seconds each and are marked slow; they are skipped where ray is not installed.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launch import SETTINGS, TIMEOUT_S, drain, finish, lines, new_job, start, wait_for

from rlx.config.compose import Composer
from rlx.errors import ConfigError
from rlx.run import train
from rlx.store.runs import RunDir, new_meta
from rlx.sweep.executors import ray as ours
from rlx.sweep.executors.executor import Job
from rlx.sweep.executors.ray import RayExecutor
from rlx.track.console import QuietConsole

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'rlx[ray]'")


def until(condition: Any, timeout_s: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Without Ray


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'rlx\[ray\]'"):
        RayExecutor(None)


@pytest.mark.parametrize("address", ["here", "host:", "host:port", "http://host:6379", "host:70000", "ray://host"])
def test_an_address_that_cannot_be_one_is_refused_with_the_forms_it_can_have(address: str) -> None:
    with pytest.raises(ConfigError, match=r"expected auto, host:port .* or ray://host:port"):
        ours._check_address(address)


def test_an_address_where_nothing_listens_is_refused_at_once_and_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"--address {address}: .*ray start --head"):
            ours._check_address(address)


@needs_ray
def test_a_service_that_is_not_ray_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_ANSWER_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ConfigError, match="does not answer as Ray does"):
        ours._check_address(f"127.0.0.1:{other.getsockname()[1]}")


@pytest.mark.parametrize(
    ("cores", "gpus", "fit"), [(1, 0, 7), (2, 0, 3), (3, 0, 1), (4, 0, 1), (5, 0, 0), (1, 1, 2), (2, 1, 1), (1, 2, 1), (1, 3, 0)]
)
def test_a_job_is_not_spread_over_nodes(cores: int, gpus: int, fit: int) -> None:
    nodes = [{"CPU": 4.0, "GPU": 2.0} if gpus else {"CPU": 4.0}, {"CPU": 1.0}, {"CPU": 2.0}, {"memory": 1e9}]
    if gpus == 1:
        nodes = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}, {"CPU": 8.0}]
    assert ours._capacity(nodes, cores, gpus) == fit


def test_no_jobs_are_refused() -> None:
    with pytest.raises(ConfigError, match="--jobs 0"):
        RayExecutor(None, slots=0)


def test_a_node_that_does_not_see_the_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_VISIBLE_WITHIN_S", 0.0)
    result = ours._train(Job(run=str(tmp_path / "elsewhere")), str(tmp_path))
    assert (result.status, result.exit_code) == ("failed", 2)
    assert f"elsewhere is not visible on {socket.gethostname()}" in str(result.error)
    assert "RLX_RUNS_DIR" in str(result.error)


def test_what_a_run_says_goes_to_its_own_file_and_what_follows_does_not(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").write_text("before\n")
    with ours._output_to(os.open(tmp_path / "log", os.O_WRONLY | os.O_APPEND)):
        os.write(1, b"out\n")
        os.write(2, b"err\n")
    os.write(1, b"after\n")
    assert (tmp_path / "log").read_text() == "before\nout\nerr\n"
    assert capfd.readouterr() == ("after\n", "")


# With Ray


@pytest.fixture(scope="module")
def executor() -> Iterator[RayExecutor]:
    """A Ray of this machine, with two tasks at once, however few cores there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "available_cores", lambda: 2)
        opened = RayExecutor(None, slots=2)
        yield opened
        opened.close()


def training(job: Job) -> bool:
    return len(RunDir(Path(job.run)).metrics()) >= 2


@needs_ray
@pytest.mark.slow
def test_runs_finish_and_say_what_they_say_in_their_directories(tmp_path: Path, executor: RayExecutor) -> None:
    jobs = [new_job(tmp_path, f"00{i}-s0", "loop.total_env_steps=6000") for i in range(3)]
    for job in jobs:
        executor.start(job)
    assert sorted((j.name, r.status) for j, r in drain(executor, 3)) == [(j.name, "finished") for j in jobs]
    assert [RunDir(Path(j.run)).status for j in jobs] == ["finished"] * 3
    assert all((Path(j.run) / "log.txt").is_file() for j in jobs)
    assert executor.wait(0.0) == []


@needs_ray
@pytest.mark.slow
def test_a_run_that_is_stopped_saves_and_its_worker_goes_on_to_the_next(tmp_path: Path, executor: RayExecutor) -> None:
    job = new_job(tmp_path, "long", "loop.total_env_steps=100_000_000")
    executor.start(job)
    until(lambda: training(job))
    executor.stop(job)
    executor.stop(job)  # asked twice, as a sweep may that is interrupted while it stops: must not end it unsaved
    [(ended, result)] = drain(executor)
    assert (ended, result.status, result.exit_code) == (job, "stopped", 130)
    run = RunDir(Path(job.run))
    assert run.status == "stopped"
    saved = run.segments[-1]["env_steps"]
    assert (run.checkpoints / f"{saved:012d}").exists() or any(str(saved) in p.name for p in run.checkpoints.iterdir())
    short = new_job(tmp_path, "short", "loop.total_env_steps=2000")
    executor.start(short)
    assert [r.status for _, r in drain(executor)] == ["finished"]


@needs_ray
@pytest.mark.slow
def test_a_job_that_waits_for_room_is_told_from_one_that_trains_and_can_be_stopped(tmp_path: Path, executor: RayExecutor) -> None:
    jobs = [new_job(tmp_path, f"r{i}", "loop.total_env_steps=100_000_000") for i in range(3)]
    for job in jobs:
        executor.start(job)  # the third has to wait
    assert executor.waiting(jobs[2])
    until(lambda: not executor.waiting(jobs[0]) and not executor.waiting(jobs[1]))
    assert executor.waiting(jobs[2])
    for job in jobs:
        executor.stop(job)
    assert [r.status for _, r in drain(executor, 3)] == ["stopped"] * 3


@needs_ray
@pytest.mark.slow
def test_a_run_that_is_killed_or_whose_worker_dies_is_lost(tmp_path: Path, executor: RayExecutor) -> None:
    killed, died = (new_job(tmp_path, name, "loop.total_env_steps=100_000_000") for name in ("killed", "died"))
    for job in (killed, died):
        executor.start(job)
    until(lambda: training(killed) and training(died))
    executor.kill(killed)
    os.kill(RunDir(Path(died.run)).segments[-1]["pid"], signal.SIGKILL)
    results = dict(drain(executor, 2))
    assert {job: r.status for job, r in results.items()} == {killed: "lost", died: "lost"}
    assert results[died].error == "its Ray worker died"
    assert all("\n" not in str(r.error) for r in results.values())
    assert RunDir(Path(died.run)).status == "killed"


@needs_ray
@pytest.mark.slow
def test_a_run_that_fails_is_failed_and_one_that_is_a_bug_too(tmp_path: Path, executor: RayExecutor) -> None:
    broken = new_job(tmp_path, "broken", "loop.total_env_steps=6000")
    (Path(broken.run) / "config.yaml").write_text("algo: [")
    executor.start(broken)
    [(_, result)] = drain(executor)
    assert result.status == "failed"
    assert result.exit_code in (1, 2)
    bug = new_job(tmp_path, "bug")
    (Path(bug.run) / "log.txt").mkdir()  # cannot be opened: raised outside of `work`
    executor.start(bug)
    [(_, result)] = drain(executor)
    assert (result.status, result.exit_code) == ("failed", 1)
    assert str(result.error).startswith("IsADirectoryError: ")


@needs_ray
@pytest.mark.slow
def test_a_job_that_is_larger_than_every_node_is_refused(executor: RayExecutor) -> None:
    with pytest.raises(ConfigError, match=r"one run needs 3 cores and no node of Ray on this machine has that .*runtime\.threads"):
        RayExecutor(None, cores=3)  # Ray is started already, and stays
    with pytest.raises(ConfigError, match="--jobs 3: Ray on this machine has room for 2"):
        RayExecutor(None, slots=3)
    with pytest.raises(ConfigError, match="1 GPU"):
        RayExecutor(None, gpus=1)
    assert executor.wait(0.0) == []


# The whole command, on a cluster


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}, shutdown_at_exit=False)
    yield made
    made.shutdown()


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_sweep_survives_the_death_of_a_node(tmp_path: Path, cluster: Any) -> None:
    doomed = cluster.add_node(num_cpus=1)
    words = [*SETTINGS, "loop.total_env_steps=150_000"]
    process = start("sweep", *words, "--seeds", "6", "--name", "w", "--executor", "ray", "--address", cluster.address, cwd=tmp_path)
    root = tmp_path / "runs" / "w"
    names = [f"000-s{seed}" for seed in range(6)]

    def under_way() -> list[RunDir]:
        opened = [RunDir(root / name) for name in names]
        return [run for run in opened if run.is_locked() and any(line["env_steps"] > 20_000 for line in run.metrics())]

    wait_for(lambda: len(under_way()) == 2, process, 120)  # both nodes work, past several checkpoints
    cluster.remove_node(doomed, allow_graceful=False)
    code, out, err = finish(process, 240)
    assert code == 0, (out, err)
    assert "raylet" not in out + err, "Ray's own words are not for the reader of a sweep"

    ended = {name: Counter(segment["status"] for segment in RunDir(root / name).segments) for name in names}
    assert [c["finished"] for c in ended.values()] == [1] * 6
    assert sum(c["running"] for c in ended.values()) == 1, "one run was cut off and not more"
    assert sum(c.total() for c in ended.values()) == 7

    for seed, name in enumerate(names):
        record = lines(RunDir(root / name))
        steps = [line["env_steps"] for line in record]
        assert all(a <= b for a, b in itertools.pairwise(steps))
        composed = Composer().compose([*words, f"seed={seed}"])
        alone = RunDir.create(tmp_path / "alone", name, composed.config, new_meta(composed))
        train(alone, composed.config, overrides=[], console=QuietConsole())
        assert lines(alone) == record, name


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_cluster_that_grows_is_made_use_of(tmp_path: Path, cluster: Any) -> None:
    words = [*SETTINGS, "loop.total_env_steps=100_000_000"]
    process = start("sweep", *words, "--seeds", "3", "--name", "w", "--executor", "ray", "--address", cluster.address, cwd=tmp_path)
    runs = [RunDir(tmp_path / "runs" / "w" / f"000-s{seed}") for seed in range(3)]
    wait_for(lambda: sum(run.is_locked() for run in runs) == 1, process, 120)
    cluster.add_node(num_cpus=2)
    wait_for(lambda: sum(run.is_locked() and len(run.metrics()) > 1 for run in runs) == 3, process, 120)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process, 120)
    assert code == 130, (out, err)
    assert [run.status for run in runs] == ["stopped"] * 3
