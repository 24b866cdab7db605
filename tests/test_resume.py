"""A run killed at any moment and resumed ends like one that was never killed: parameters, optimiser, every line of metrics."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import lines
from resumable import FIT, assert_equal, compose, final_state, in_child, kill_at, new_run

from rlx import loop
from rlx.config.compose import Composer
from rlx.config.schema import RunConfig
from rlx.parts import build
from rlx.run import train
from rlx.store.record import Record
from rlx.store.runs import RunDir, new_meta
from rlx.track.console import QuietConsole
from rlx.track.logger import RunLogger

pytestmark = pytest.mark.usefixtures("small_segments")
KILLED = [*[("ppo", env) for env in FIT["ppo"]], ("ppo-settings", "pole"), ("reinforce", "continuous"), ("a2c", "gymnasium"),
          ("alphazero", "game"), ("alphago", "game"), ("muzero", "game"), ("pets", "continuous"), ("i2a", "grid"), ("dqn", "native"),
          ("pqn", "grid"), ("sac", "continuous"), ("td3", "continuous"), ("sac-steve", "pole"), ("sac-mbpo", "continuous"),
          ("a2c-q", "native"), ("reinforce-q", "continuous"),
          ("ibp", "spaceship")]  # fmt: skip
"""Every algorithm, and every kind of environment; tests/test_kills.py kills them on all that they can train on, many times."""


def test_every_algorithm_and_every_kind_of_environment_is_killed() -> None:
    assert {algo for algo, _ in KILLED} == set(FIT)
    assert {env for _, env in KILLED} | {"native", "pole"} == {env for envs in FIT.values() for env in envs}


@pytest.mark.parametrize(("algo", "env"), KILLED)
def test_resume_after_sigkill_is_bit_exact(algo: str, env: str, tmp_path: Path) -> None:
    config = compose(algo, env)
    config.loop.eval_every = min(config.loop.eval_every, config.loop.total_env_steps * 9 // 10)  # before the end, however early that is
    straight, killed = new_run(tmp_path, "straight", config), new_run(tmp_path, "killed", config)
    train(straight, config, overrides=[])  # here, so that the children find modules and compiled kernels loaded

    pid = in_child(lambda: train(killed, config, overrides=[]))
    kill_at(pid, killed, config.loop.total_env_steps * random.uniform(0.2, 0.7))
    assert os.waitpid(in_child(lambda: train(killed, config, overrides=[])), 0)[1] == 0

    assert lines(killed) == lines(straight)
    assert_equal(final_state(killed), final_state(straight))
    has_replay = any(field.name.endswith("replay_size") for field in dataclasses.fields(config.algo))
    assert bool(list(killed.checkpoints.glob("segments/*.seg"))) == has_replay


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
            parts.algo, parts.collector, parts.evaluator, config=config.loop, logger=RunLogger(record, QuietConsole(), []),
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
    "episode seeds": keep_fresh("collector", "episodes"),
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
DQN = ("dqn", "native", 700, 60, 20)
SAC, TD3 = ("sac", "continuous", 700, 60, 20), ("td3", "continuous", 700, 14, 4)
STEVE, MBPO = ("sac-steve", "pole", 700, 100, 20), ("sac-mbpo", "continuous", 700, 100, 20)
A2C_Q = ("a2c-q", "native", 300, 11)
PQN, IBP = ("pqn", "native", 700, 5, 5), ("ibp", "spaceship", 700, 5, 5)
PPO_SETTINGS = ("ppo-settings", "pole", 700, 5, 5)


@pytest.mark.parametrize(
    "where",
    [PPO, REINFORCE, ALPHAZERO, *ALPHAGO, PETS, *I2A, MUZERO, DQN, SAC, TD3, STEVE, MBPO, A2C_Q, PQN, IBP, PPO_SETTINGS],
    ids=lambda w: f"{w[0]}-{w[3]}",
)
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


@pytest.mark.parametrize("piece", ["ensemble", "optimizer", "replay", "windows", "obs_scale", "num_fits", "num_fitted"])
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


@pytest.mark.parametrize("piece", ["net", "optimizer", "target", "experience", "epsilon"])
def test_resume_without_one_piece_of_a_learner_of_action_values_is_noticed(
    piece: str, halfway: Callable[..., Halfway], tmp_path: Path
) -> None:
    half = halfway(*DQN)
    with pytest.raises((AssertionError, LookupError, RuntimeError)):
        half.go_on(tmp_path, keep_fresh("algo", piece))


@pytest.mark.parametrize(
    ("where", "piece"),
    [(PPO_SETTINGS, p) for p in ("net", "optimizer", "learning_rate", "value_scale")]
    + [(SAC, p) for p in ("actor", "values", "actor_optimizer", "values_optimizer", "target", "experience", "env_steps")]
    + [(TD3, "target_actor"), (STEVE, "imagination"), (MBPO, "imagination")]
    + [(PQN, p) for p in ("net", "optimizer", "reward_scaler", "epsilon")]
    + [(A2C_Q, p) for p in ("net", "optimizer", "q")]
    + [(IBP, p) for p in ("controller", "controller_optimizer", "manager", "manager_optimizer", "model", "model_optimizer", "replay")],
    ids=lambda x: x if isinstance(x, str) else x[0],
)
def test_resume_without_one_piece_of_an_actor_critic_or_ibp_is_noticed(
    where: tuple[Any, ...], piece: str, halfway: Callable[..., Halfway], tmp_path: Path
) -> None:
    half = halfway(*where)
    with pytest.raises((AssertionError, LookupError, RuntimeError)):
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
