"""Whole runs on several ranks: the same record as on one, checkpoints for any number of ranks, and one message when a rank fails."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import finish, lines, run_main, saved_steps, start, wait_for
from ranks import on_ranks

from rlx import ranks, run
from rlx.checkpoint import find_checkpoints
from rlx.config.compose import Composer
from rlx.config.schema import RunConfig
from rlx.distributed import World
from rlx.envs.native import NATIVE
from rlx.envs.registry import VectorEnvFactory
from rlx.parts import build
from rlx.shares import join_states, part_of_state
from rlx.store.runs import RunDir, new_meta
from rlx.tree_ops import leaves

SMALL = [
    "recipe=null", "env.num_envs=4", "algo.rollout_length=32", "algo.hidden_sizes=[8]", "loop.log_every=211", "loop.eval_every=701",
    "loop.eval_episodes=3", "loop.checkpoint_every=311", "log.wandb=disabled", "log.console=quiet",
]  # fmt: skip
PPO = ["algo=ppo", "algo.num_minibatches=2", "algo.num_epochs=2", "algo.normalize_observation=true"]
RUNS = {
    "ppo on arrays": ["env=cartpole", *PPO, "algo.normalize_reward=true"],
    "ppo on objects": ["env=acrobot", "env.kwargs.max_episode_steps=90", *PPO],
    "ppo with a memory": ["env=recall", *PPO, "algo.memory=gru"],
    "a2c": ["env=cartpole", "algo=a2c", "algo.normalize_observation=true"],
    "reinforce": ["env=cartpole", "algo=reinforce", "algo.episodes_per_update=5"],
}


def new_run(root: Path, name: str, *words: str) -> tuple[RunDir, RunConfig]:
    composed = Composer().compose([*SMALL, *words])
    return RunDir.create(root, name, composed.config, new_meta(composed)), composed.config


def train(path: Path, budget: int | None = None) -> Callable[[World], Any]:
    """Trains a run on the ranks of a world; rank 0 says whether it is finished, and the others their exit codes."""

    def on_rank(world: World) -> Any:
        from rlx import start as starting

        if not world.is_first:
            return ranks.follow(world)
        words = [] if budget is None else [f"loop.total_env_steps={budget}"]
        again = starting.to_resume(str(path), words, trust=False)
        return run.train(again.run, again.config, overrides=again.overrides).finished

    return on_rank


def on(size: int, function: Callable[[World], Any]) -> list[Any]:
    return on_ranks(size, function, preload=("rlx.run", "rlx.ranks"))


def state(opened: RunDir) -> dict[str, Any]:
    """The newest checkpoint, whole."""
    newest = find_checkpoints(opened.checkpoints)[0][0]
    return {"algo": newest.read_algorithm(), **newest.read("run.pt")}


def close(a: Any, b: Any, *, atol: float) -> None:
    """Fail unless two trees of numbers are equal to `atol`, and everything else in them exactly."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            close(a[key], b[key], atol=atol)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            close(x, y, atol=atol)
    elif isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, atol=atol, rtol=atol)
    else:
        assert a == (pytest.approx(b, abs=atol, rel=atol) if isinstance(a, float) else b)


@pytest.mark.parametrize("name", RUNS)
def test_the_record_and_the_checkpoint_of_two_ranks_are_those_of_one(name: str, tmp_path: Path) -> None:
    opened = []
    for size in (1, 2):
        new, _ = new_run(tmp_path, f"on{size}", *RUNS[name], "loop.total_env_steps=768")
        opened.append(new)
        assert on(size, train(new.path)) == [True, 0][:size]
    one, two = opened
    assert len(lines(one)) > 3
    close(lines(two), lines(one), atol=2e-3)
    of_one, of_two = state(one), state(two)
    for kept in ("collector", "progress", "rng"):
        close(of_two[kept], of_one[kept], atol=1e-5)
    close(of_two["algo"], of_one["algo"], atol=1e-3)
    assert two.segments[0]["ranks"] == 2
    assert "ranks" not in one.segments[0]


@pytest.mark.parametrize("sizes", [(2, 4), (4, 1), (1, 2)])
def test_a_run_goes_on_on_another_number_of_ranks_from_the_same_observations(sizes: tuple[int, int], tmp_path: Path) -> None:
    before, after = sizes
    opened, config = new_run(tmp_path, "run", *RUNS["ppo on objects"], "loop.total_env_steps=512")
    on(before, train(opened.path))
    saved = state(opened)

    def again(world: World) -> Any:
        device = torch.device("cpu")
        parts = build(config, opened.checkpoints, device, world=world)
        ranks.begin_together(world, parts)
        from rlx.rng import GlobalRNG

        whole: dict[str, Any] = {"algo": parts.algo, "collector": parts.collector, "rng": GlobalRNG()}
        parts.checkpointer.restore(whole)
        return {name: part.state_dict() for name, part in whole.items()}

    first, *others = on(after, again)
    for kept in ("algo", "collector", "rng"):
        close(saved[kept], _as_tensors(first[kept]), atol=0.0)
        for other in others:
            if kept != "collector":
                close(saved[kept], _as_tensors(other[kept]), atol=0.0)
    assert on(after, train(opened.path, budget=1024))[0] is True
    assert state(opened)["progress"]["env_steps"] == 1024


def _as_tensors(tree: Any) -> Any:
    from rlx.serialize import plain

    return plain(tree)


@pytest.mark.parametrize("env_id", sorted(NATIVE.keys() - {"rlx/Slalom-v0"}))  # which is a course as the others, for other robots
def test_a_share_of_the_environments_continues_as_it_would_among_all(env_id: str) -> None:
    make = VectorEnvFactory(env_id)
    four, _ = make.training(4)
    halves = [make.training(2)[0] for _ in range(2)]
    four.reset(seed=np.arange(4))
    space = four.single_action_space
    space.seed(0)
    actions = [np.stack([space.sample() for _ in range(4)]) for _ in range(6)]
    before, after = (0, 1) if "Spaceship" in env_id else (3, 6)  # an episode of the spaceship has one step
    for action in actions[:before]:
        four.step(action)
    saved = four.state_dict()  # type: ignore[attr-defined]
    parts = []
    for half, envs in zip(halves, (slice(0, 2), slice(2, 4)), strict=True):
        half.load_state_dict(part_of_state(saved, envs))  # type: ignore[attr-defined]
        parts.append(half.state_dict())  # type: ignore[attr-defined]
    close(_as_tensors(join_states(parts)), _as_tensors(saved), atol=0.0)
    for action in actions[before:after]:
        obs, reward, *_ = four.step(action)
        seen = [half.step(action[envs]) for half, envs in zip(halves, (slice(0, 2), slice(2, 4)), strict=True)]
        for i, leaf in enumerate(leaves(obs)):
            assert np.array_equal(leaf, np.concatenate([leaves(part[0])[i] for part in seen]), equal_nan=True)
        assert np.array_equal(reward, np.concatenate([part[1] for part in seen]))
    for env in (four, *halves):
        env.close()


@pytest.mark.parametrize("faulty", [0, 1])
def test_a_failure_on_one_rank_ends_all_with_its_message_and_its_exit_code(faulty: int, tmp_path: Path) -> None:
    opened, _ = new_run(tmp_path, "run", "env=cartpole", *PPO, "loop.total_env_steps=4096")

    def on_rank(world: World) -> Any:
        from rlx.collect import Collector
        from rlx.errors import EnvError

        collect, calls = Collector.collect, []

        def failing(self: Collector, num_steps: int) -> Any:
            calls.append(num_steps)
            if world.rank == faulty and len(calls) == 3:
                raise EnvError("the door is stuck")
            return collect(self, num_steps)

        Collector.collect = failing  # type: ignore[method-assign]
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(ranks, "_ANSWER_S", 10.0)
            if world.is_first:
                try:
                    with ranks.leading(world):
                        train(opened.path)(world)
                except EnvError as error:
                    return str(error)
            return ranks.follow(world)

    first, second = on(2, on_rank)
    assert first == ("the door is stuck" if faulty == 0 else "rank 1: the door is stuck")
    assert second == 5, "silent, with the exit code of rank 0"
    assert opened.segments[0]["status"] == "failed"
    assert "the door is stuck" in opened.segments[0]["error"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train algo=ppo env=cartpole --ranks 0", "--ranks 0: expected a number from 1"),
        ("train algo=ppo env=cartpole env.num_envs=6 --ranks 4 --dry-run", "among 4 ranks: use a multiple of 4, or 3 ranks"),
        ("train algo=dqn env=cartpole env.num_envs=1 --ranks 2 --dry-run", "algo=dqn learns in one process"),
        ("train algo=alphazero env=tic_tac_toe env.num_envs=2 --ranks 2 --dry-run", "algo=alphazero learns in one process"),
        ("train algo=ppo env=acrobot env.num_envs=4 env.workers=2 --ranks 2 --dry-run", "env.workers=2 has no place beside 2 ranks"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_divided_is_refused_with_what_to_do(
    command: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(command, monkeypatch) == 2
    assert said in capsys.readouterr().err


LAUNCHED = [
    "env=cartpole", *PPO, *SMALL[:4], "loop.checkpoint_every=1999", "loop.log_every=1009", "loop.eval_every=4001", "loop.eval_episodes=3",
    "log.wandb=disabled", "--name", "run", "--ranks", "2",
]  # fmt: skip


def others(process: subprocess.Popen[str]) -> list[int]:
    """The processes of the ranks, by rank."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    return sorted(map(int, found))


def test_killing_a_rank_ends_the_others_with_one_message_that_says_what_to_type(tmp_path: Path) -> None:
    process = start("train", *LAUNCHED, "loop.total_env_steps=10000000", cwd=tmp_path)
    opened = RunDir(tmp_path / "runs" / "run")
    wait_for(lambda: find_checkpoints(opened.checkpoints)[0], process)
    os.kill(others(process)[1], signal.SIGKILL)
    code, _, err = finish(process)
    assert (code, opened.status) == (10, "failed")
    assert err.count("rlx: ") == 1
    assert "a rank ended without a word" in err
    assert "`rlx resume run --ranks 2` continues" in err
    assert saved_steps(opened)


# Slow: many processes


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    directory = tmp_path_factory.mktemp("undisturbed")
    code, _, err = finish(start("train", *LAUNCHED, "loop.total_env_steps=16000", cwd=directory), 300.0)
    assert code == 0, err
    return RunDir(directory / "runs" / "run")


def same(opened: RunDir, expected: RunDir, atol: float = 0.0) -> None:
    close(lines(opened), lines(expected), atol=atol)
    found, wanted = state(opened), state(expected)
    for each in (found, wanted):
        each.pop("clock")
        each.pop("metrics")
    close(found, wanted, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_whose_rank_was_killed_and_that_is_resumed_equals_one_that_nobody_disturbed(
    rank: int, number: int, undisturbed: RunDir, tmp_path: Path
) -> None:
    process = start("train", *LAUNCHED, "loop.total_env_steps=16000", cwd=tmp_path)
    opened = RunDir(tmp_path / "runs" / "run")
    wait_for(lambda: find_checkpoints(opened.checkpoints)[0], process)
    os.kill(others(process)[rank], number)
    code, _, err = finish(process)
    assert code == (10 if number == signal.SIGKILL else 143), err
    assert finish(start("resume", "run", "--ranks", "2", cwd=tmp_path), 300.0)[0] == 0
    same(opened, undisturbed)


def torchrun(*words: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *words, "--no-python", sys.executable, "-m", "rlx.cli.main", "train"]


@pytest.mark.slow
def test_torchrun_restarts_all_ranks_after_each_was_killed_and_the_run_equals_one_that_nobody_disturbed(
    undisturbed: RunDir, tmp_path: Path
) -> None:
    words = [*LAUNCHED[:-2], "loop.total_env_steps=16000", "--auto-resume"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment.pop("RLX_RUNS_DIR", None)
    process = subprocess.Popen(
        [*torchrun("--standalone", "--nproc-per-node=2", "--max-restarts=2"), *words], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    opened = RunDir(tmp_path / "runs" / "run")
    for rank, steps in ((0, 2000), (1, 6000)):

        def is_far_enough(steps: int = steps) -> bool:
            return any(found.env_steps >= steps for found in find_checkpoints(opened.checkpoints)[0])

        wait_for(is_far_enough, process, 300.0)
        os.kill(others(process)[rank], signal.SIGKILL)
    code, _, err = finish(process, 600.0)
    assert code == 0, err
    same(opened, undisturbed)
    assert len(opened.segments) == 3


@pytest.fixture
def hosts() -> Iterator[tuple[list[str], list[str]]]:
    """Two network namespaces that are joined by a cable, as commands that run in each."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2 to make network namespaces")
    names = [f"rlx{os.getpid()}a", f"rlx{os.getpid()}b"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "rlxa", "netns", names[0], "type", "veth", "peer", "name", "rlxb", "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr!r}")
        for number, (name, cable) in enumerate(zip(names, ("rlxa", "rlxb"), strict=True), start=1):
            ip("-n", name, "addr", "add", f"10.77.9.{number}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield tuple(["ip", "netns", "exec", name] for name in names)  # type: ignore[misc]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.slow
def test_two_hosts_without_a_file_system_in_common_train_as_one_does(
    hosts: tuple[list[str], list[str]], undisturbed: RunDir, tmp_path: Path
) -> None:
    processes = []
    for number, host in enumerate(hosts):
        here = tmp_path / f"host{number}"
        here.mkdir()
        environment = os.environ | {"PYTHONPATH": str(here), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"rlx{'ab'[number]}"}
        environment.pop("RLX_RUNS_DIR", None)
        meeting = ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={number}", "--master-addr=10.77.9.1", "--master-port=29512"]
        processes.append(
            subprocess.Popen([*host, *torchrun(*meeting), *LAUNCHED[:-2], "loop.total_env_steps=16000"], cwd=here, env=environment,
                             text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        )  # fmt: skip
    ended = [finish(process, 300.0) for process in processes]
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert not (tmp_path / "host1" / "runs").exists()
    same(RunDir(tmp_path / "host0" / "runs" / "run"), undisturbed)
