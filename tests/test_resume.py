"""A run killed at any moment and resumed ends like one that was never killed: parameters, optimiser, every line of metrics."""

from __future__ import annotations

import copy
import functools
import json
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import GAME_PLAYING, lines

from rlx import loop
from rlx.algos import ALGORITHMS
from rlx.build import build
from rlx.checkpoint import find_checkpoints
from rlx.config.compose import Composer
from rlx.config.schema import RunConfig
from rlx.run import train
from rlx.rundir import RunDir, new_meta
from rlx.track.console import QuietConsole
from rlx.track.logger import NullMirror, RunLogger
from rlx.track.record import Record, read_metrics

ENVS = {
    "native": ["env=cartpole"],
    "gymnasium": ["env=acrobot", "env.kwargs.max_episode_steps=90"],
    "continuous": ["env=pendulum", "env.kwargs.max_episode_steps=70"],
    "pole": ["env=cartpole_continuous"],
    "grid": ["env=sokoban", "env.max_episode_steps=50"],
    "game": ["env=connect_four", "env.kwargs.rows=4", "env.kwargs.columns=4", "env.kwargs.x_in_row=3", "env.opponent=uct:5"],
}
# Cadences that divide neither each other nor a rollout, so that no buffer happens to be empty when a checkpoint is taken.
COMMON = [
    "recipe=null", "env.num_envs=3", "loop.log_every=173", "loop.eval_every=997", "loop.eval_episodes=3",
    "loop.checkpoint_every=311", "log.wandb=disabled", "log.console=quiet", "seed=5",
]  # fmt: skip
SETTINGS = {
    "reinforce": ["algo.rollout_length=13", "algo.episodes_per_update=5", "algo.normalize_observation=true"],
    "a2c": ["algo.normalize_observation=true", "algo.anneal_learning_rate=true"],
    "ppo": ["algo.rollout_length=20", "algo.num_minibatches=3", "algo.normalize_observation=true", "algo.normalize_reward=true",
            "algo.anneal_learning_rate=true", "algo.objective=adaptive_kl"],
    "alphazero": ["algo.blocks=1", "algo.channels=4", "algo.num_simulations=4", "algo.batch_size=16", "algo.replay_start=32",
                  "algo.replay_size=301", "algo.search=puct", "algo.full_search_fraction=0.6",
                  "algo.random_moves=0.2", "algo.value_mix=0.3",
                  "algo.cheap_simulations=3", "algo.steps_per_update=3",
                  "algo.anneal_learning_rate=true"],
    "alphago": ["algo.blocks=1", "algo.channels=4", "algo.num_simulations=4", "algo.batch_size=16", "algo.replay_size=301",
                "algo.expert_simulations=5", "algo.expert_fraction=0.3", "algo.reinforce_fraction=0.4", "algo.games_per_update=4",
                "algo.snapshot_every=3"],
    "muzero": ["algo.channels=8", "algo.num_simulations=4", "algo.batch_size=16", "algo.replay_start=100", "algo.replay_size=450",
               "algo.steps_per_update=3", "algo.unroll_steps=3", "algo.td_steps=4", "algo.reanalyse=0.5", "algo.anneal_learning_rate=true"],
    "pets": ["algo.initial_steps=100", "algo.fit_every=190", "algo.hidden_sizes=[8,8]", "algo.ensemble_size=2", "algo.population=6",
             "algo.iterations=1", "algo.horizon=4", "algo.max_epochs=2", "algo.replay_size=500", "algo.anneal_learning_rate=true",
             "algo.learn_variance_bounds=true"],
    "i2a": ["algo.rollout_length=7", "algo.num_minibatches=3", "algo.channels=4", "algo.hidden_size=16", "algo.encoder_channels=4",
            "algo.encoder_size=8", "algo.model_channels=4", "algo.rollout_depth=2", "algo.model_fraction=0.4", "algo.model_reuse=1.3",
            "algo.model_batch_size=16", "algo.model_replay_size=301", "algo.corrupt_prob=0.05", "algo.anneal_learning_rate=true"],
}  # fmt: skip


LENGTHS = {"pets": 900, "muzero": 700, "alphazero": 1100, "alphago": 1500, "i2a": 1100}
"""Env steps of a run whose steps take long: two checkpoints before its end, every phase, a replay that is full."""

composed = functools.cache(lambda *words: Composer().compose(list(words)).config)


def compose(algo: str, env: str, *more: str, total_env_steps: int | None = None) -> RunConfig:
    config: RunConfig = copy.deepcopy(composed(f"algo={algo}", *ENVS[env], *COMMON, *SETTINGS[algo], *more))
    config.loop.total_env_steps = total_env_steps or LENGTHS.get(algo, 2000)
    return config


def new_run(root: Path, name: str, config: RunConfig) -> RunDir:
    return RunDir.create(root, name, config, {"algo": config.algo.name, "wandb_id": "x"})


def in_child(function: Callable[[], Any]) -> int:
    """Run a function in a forked process; returns its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def kill_at(pid: int, run: RunDir, env_steps: float) -> None:
    """SIGKILL a process at some moment after its record has reached env_steps."""
    while not any(line["env_steps"] >= env_steps for line in read_metrics(run.metrics_path)):
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the run ended before it could be killed"
        time.sleep(0.001)
    time.sleep(random.uniform(0.0, 0.02))
    os.kill(pid, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]), "the run ended before it could be killed"


def final_state(run: RunDir) -> dict[str, Any]:
    """Everything the last checkpoint holds, less what depends on the clock."""
    newest = find_checkpoints(run.checkpoints)[0][0]
    rest = newest.read("run.pt")
    del rest["clock"]
    rest["metrics"]["updates"] = [{k: v for k, v in u.items() if not k.startswith("time/")} for u in rest["metrics"]["updates"]]
    return {"algo": newest.read("algo.pt"), **rest}


def assert_equal(a: Any, b: Any, path: str = "state") -> None:
    """Compare canonical values, bit for bit, naming the first that differs."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, path
        assert torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


OWN = {"pets": ["continuous", "pole"], "muzero": ["native", "gymnasium", "game"], "i2a": ["grid"]}
FIT = {a: ["game"] if a in GAME_PLAYING else OWN.get(a, ["native", "gymnasium", "continuous", "grid"]) for a in ALGORITHMS}
"""The environments that an algorithm is tested on."""


@pytest.mark.parametrize(("algo", "env"), [(a, e) for a, envs in FIT.items() for e in envs])
def test_resume_after_sigkill_is_bit_exact(algo: str, env: str, tmp_path: Path) -> None:
    config = compose(algo, env)
    config.loop.eval_every = min(config.loop.eval_every, config.loop.total_env_steps * 9 // 10)  # before the end, however early that is
    straight, killed = new_run(tmp_path, "straight", config), new_run(tmp_path, "killed", config)
    with closing(build(config, tmp_path / "unused", torch.device("cpu"))) as parts:
        parts.collector.reset()  # modules and compiled kernels are loaded here once, and not in each of the children
    assert os.waitpid(in_child(lambda: train(straight, config, overrides=[])), 0)[1] == 0

    for low, high in ((0.1, 0.4), (0.5, 0.7)):
        pid = in_child(lambda: train(killed, config, overrides=[]))
        kill_at(pid, killed, config.loop.total_env_steps * random.uniform(low, high))
    assert os.waitpid(in_child(lambda: train(killed, config, overrides=[])), 0)[1] == 0

    assert lines(killed) == lines(straight)
    assert_equal(final_state(killed), final_state(straight))


class StopAfter:
    """Signals that ask to stop after a number of iterations."""

    def __init__(self, iterations: int | None) -> None:
        self.left = iterations

    def should_stop(self) -> bool:
        if self.left is None:
            return False
        self.left -= 1
        return self.left < 0

    def should_save(self) -> bool:
        return False


def train_part(run: RunDir, config: RunConfig, iterations: int | None, spoil: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Train for some iterations in this process, or to the end; `spoil` may damage what is restored."""
    parts = build(config, run.checkpoints, torch.device("cpu"))
    if spoil is not None:
        restore = parts.checkpointer.restore

        def restore_spoilt(state: Any) -> bool:
            fresh = {name: copy.deepcopy(part.state_dict()) for name, part in state.items()}  # a state may share a network's memory
            restored = restore(state)
            spoil({"state": state, "fresh": fresh})
            return restored

        parts.checkpointer.restore = restore_spoilt  # type: ignore[method-assign]
    with closing(Record(run.metrics_path)) as record, closing(parts):
        loop.train(
            parts.algo, parts.collector, parts.evaluator, config=config.loop, logger=RunLogger(record, QuietConsole(), NullMirror()),
            checkpointer=parts.checkpointer, signals=StopAfter(iterations),
        )  # fmt: skip


def keep_fresh(part: str, key: str | None = None) -> Callable[[dict[str, Any]], None]:
    """Spoil a restore by putting back what the part, or one entry of its state, was before it."""

    def spoil(what: dict[str, Any]) -> None:
        state, fresh = what["state"][part], what["fresh"][part]
        state.load_state_dict(fresh if key is None else {**state.state_dict(), key: fresh[key]})

    return spoil


PIECES = {
    "global generators": keep_fresh("rng"),
    "metric buffer": keep_fresh("metrics"),
    "networks": keep_fresh("algo", "net"),
    "optimiser": keep_fresh("algo", "optimizer"),
    "reward scale": keep_fresh("algo", "reward_scaler"),
    "penalty weight": keep_fresh("algo", "kl_coef"),
    "episode seeds": keep_fresh("collector", "rng"),
    "running returns": keep_fresh("collector", "return"),
    "iteration count": keep_fresh("progress", "iteration"),
}


@dataclass
class Halfway:
    """A run that was stopped after some iterations, and what it is compared with when it has gone on: one that nothing interrupted."""

    config: RunConfig
    begun: RunDir
    straight: RunDir
    left: int | None

    def go_on(self, root: Path, spoil: Callable[[dict[str, Any]], None] | None = None) -> None:
        run = RunDir(shutil.copytree(self.begun.path, root / "run"))
        train_part(run, self.config, self.left, spoil)
        assert_equal([lines(run), final_state(run)], [lines(self.straight), final_state(self.straight)])


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Halfway]:
    """Runs that are halfway, each trained once. They go on for `left` iterations, or to their end."""

    @functools.cache
    def trained(algo: str, env: str, total: int, iterations: int, left: int | None = None) -> Halfway:
        root, config = tmp_path_factory.mktemp(algo), compose(algo, env, total_env_steps=total)
        begun, straight = new_run(root, "begun", config), new_run(root, "straight", config)
        train_part(begun, config, iterations)
        while algo == "alphazero" and not final_state(begun)["algo"]["waiting"]:  # for a game that it overtook
            train_part(begun, config, 1)
            iterations += 1
        train_part(straight, config, None if left is None else iterations + left)
        return Halfway(config, begun, straight, left)

    return trained


PPO = ("ppo", "native", 2000, 17)
REINFORCE = ("reinforce", "continuous", 2000, 17)
ALPHAZERO = ("alphazero", "game", 600, 98, 30)
ALPHAGO = [("alphago", "game", 600, iterations, 30) for iterations in (40, 110, 170)]  # another phase each time
PETS = ("pets", "continuous", 500, 107)  # env step 321: a model has been fitted, promises are open; another fit comes
I2A = [("i2a", "grid", 600, 6, 8), ("i2a", "grid", 600, 20, 5)]  # it begins to imagine after 12, when 240 env steps are taken
MUZERO = ("muzero", "native", 700, 127, 30)


@pytest.mark.parametrize("where", [PPO, REINFORCE, ALPHAZERO, *ALPHAGO, PETS, *I2A, MUZERO], ids=lambda w: f"{w[0]}-{w[3]}")
def test_resume_with_every_piece_of_state_leaves_no_trace(where: tuple[Any, ...], halfway: Callable[..., Halfway], tmp_path: Path) -> None:
    halfway(*where).go_on(tmp_path)


@pytest.mark.parametrize("piece", PIECES)
def test_resume_without_one_piece_of_state_is_noticed(piece: str, halfway: Callable[..., Halfway], tmp_path: Path) -> None:
    half = halfway(*PPO)
    with pytest.raises(AssertionError):
        half.go_on(tmp_path, PIECES[piece])


@pytest.mark.parametrize(
    ("where", "piece"),
    [(ALPHAZERO, p) for p in ("net", "optimizer", "replay", "steps", "open", "order", "begun", "released", "waiting")]
    + [(ALPHAGO[0], p) for p in ("optimizers", "expert_moves", "steps")]
    + [(ALPHAGO[1], p) for p in ("nets", "optimizers", "steps", "fraction", "pool", "opponent", "played")]
    + [(ALPHAGO[2], p) for p in ("nets", "values", "steps")],
    ids=lambda x: x if isinstance(x, str) else f"{x[0]}-{x[3]}",
)
def test_resume_without_one_piece_of_a_player_of_games_is_noticed(
    where: tuple[Any, ...], piece: str, halfway: Callable[..., Halfway], tmp_path: Path
) -> None:
    half = halfway(*where)
    with pytest.raises((AssertionError, LookupError, RuntimeError, ValueError)):
        half.go_on(tmp_path, keep_fresh("algo", piece))


@pytest.mark.parametrize("piece", ["ensemble", "optimizer", "replay", "windows", "obs_scale", "fits", "seen"])
def test_resume_without_one_piece_of_a_planner_is_noticed(piece: str, halfway: Callable[..., Halfway], tmp_path: Path) -> None:
    half = halfway(*PETS)
    with pytest.raises((AssertionError, RuntimeError)):
        half.go_on(tmp_path, keep_fresh("algo", piece))


def test_resume_without_the_plan_is_noticed(halfway: Callable[..., Halfway], tmp_path: Path) -> None:
    half = halfway(*PETS)
    with pytest.raises(AssertionError):
        half.go_on(tmp_path, keep_fresh("collector", "carry"))


@pytest.mark.parametrize(
    ("where", "piece"),
    [(I2A[0], p) for p in ("net", "optimizer", "model", "model_optimizer", "replay", "owed")]
    + [(I2A[1], p) for p in ("net", "optimizer", "model", "model_optimizer", "replay", "owed", "in_use")],
    ids=lambda x: x if isinstance(x, str) else str(x[3]),
)
def test_resume_without_one_piece_of_an_imagining_agent_is_noticed(
    where: tuple[Any, ...], piece: str, halfway: Callable[..., Halfway], tmp_path: Path
) -> None:
    half = halfway(*where)
    with pytest.raises((AssertionError, RuntimeError)):
        half.go_on(tmp_path, keep_fresh("algo", piece))


@pytest.mark.parametrize("where", [I2A[0], ("i2a", "grid", 600, 12, 5), I2A[1]], ids=lambda w: str(w[3]))
def test_stopping_in_either_phase_of_an_imagining_agent_leaves_no_trace(
    where: tuple[Any, ...], halfway: Callable[..., Halfway], tmp_path: Path
) -> None:
    half = halfway(*where)
    assert final_state(half.begun)["algo"]["in_use"] == (where[3] >= 12)
    assert final_state(half.straight)["algo"]["in_use"], "it goes on beyond the beginning of phase two"
    half.go_on(tmp_path)


@pytest.mark.parametrize("piece", ["net", "optimizer", "replay", "steps", "reanalysed", "length"])
def test_resume_without_one_piece_of_a_latent_model_is_noticed(piece: str, halfway: Callable[..., Halfway], tmp_path: Path) -> None:
    half = halfway(*MUZERO)
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        half.go_on(tmp_path, keep_fresh("algo", piece))


def test_resume_without_the_open_episodes_of_reinforce_is_noticed(halfway: Callable[..., Halfway], tmp_path: Path) -> None:
    half = halfway(*REINFORCE)
    with pytest.raises(AssertionError):
        half.go_on(tmp_path, keep_fresh("algo", "pending"))


@pytest.mark.parametrize("stop", [1, 17, 18])
def test_stopping_between_iterations_leaves_no_trace_in_the_metrics(stop: int, halfway: Callable[..., Halfway], tmp_path: Path) -> None:
    halfway("ppo", "continuous", 1500, stop).go_on(tmp_path)


def test_evaluating_more_often_does_not_change_training(tmp_path: Path) -> None:
    often, never = compose("ppo", "native", total_env_steps=2000), compose("ppo", "native", total_env_steps=2000)
    often.loop.eval_every, never.loop.eval_every = 61, 0
    runs = new_run(tmp_path, "often", often), new_run(tmp_path, "never", never)
    for run, config in zip(runs, (often, never), strict=True):
        train_part(run, config, None)
    kept = [[line for line in lines(run) if "eval/return_mean" not in line] for run in runs]
    assert kept[0] == kept[1]
    assert_equal(final_state(runs[0]), final_state(runs[1]))


def test_the_same_seed_gives_the_same_metrics_and_another_seed_others(tmp_path: Path) -> None:
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        config = compose("ppo", "native", total_env_steps=1500)
        config.seed = seed
        run = new_run(tmp_path, name, config)
        train_part(run, config, None)
        texts.append(json.dumps(lines(run)))
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_a_run_in_worker_processes_equals_one_without(tmp_path: Path) -> None:
    results = []
    for workers in (0, 2):
        config = compose("a2c", "continuous", f"env.workers={workers}", total_env_steps=700)
        run = new_run(tmp_path, f"w{workers}", config)
        train_part(run, config, 20)
        train_part(run, config, None)
        results.append(lines(run))
    assert results[0] == results[1]


def test_meta_names_the_group_choices() -> None:
    composed = Composer().compose(["algo=a2c", "env=cartpole"])
    assert {"algo": "a2c", "env": "cartpole", "recipe": "a2c_cartpole"}.items() <= new_meta(composed).items()
