"""A short run of every algorithm on every kind of environment it can train on, and how two runs are compared bit for bit.

An algorithm without an entry here fails the tests of resuming.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from launch import GAME_PLAYING

from rlx.appended import Kind
from rlx.checkpoint import find_checkpoints
from rlx.config.algo_registry import ALGORITHMS
from rlx.config.compose import Composer
from rlx.config.schema import RunConfig
from rlx.segments import Stored
from rlx.store.record import read_metrics
from rlx.store.runs import RunDir

ENVS = {
    "native": ["env=cartpole"],
    "gymnasium": ["env=acrobot", "env.kwargs.max_episode_steps=90"],
    "continuous": ["env=pendulum", "env.kwargs.max_episode_steps=70"],
    "pole": ["env=cartpole_continuous"],
    "spaceship": ["env=spaceship", "env.kwargs.num_actions=2"],
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
    "a2c-q": ["algo.advantage=q", "algo.gae_lambda=0.9", "algo.normalize_observation=true"],
    "reinforce-q": ["algo.advantage=q", "algo.rollout_length=13", "algo.episodes_per_update=5"],
    "ppo": ["algo.rollout_length=20", "algo.num_minibatches=3", "algo.normalize_observation=true", "algo.normalize_reward=true",
            "algo.anneal_learning_rate=true", "algo.objective=adaptive_kl"],
    "ppo-settings": ["algo.rollout_length=20", "algo.num_minibatches=3", "algo.adaptive_learning_rate=true",
                     "algo.normalize_value=true", "algo.popart=true", "algo.rpo_alpha=0.1"],
    "dqn": ["algo.initial_steps=97", "algo.batch_size=16", "algo.hidden_sizes=[16]", "algo.replay_size=401", "algo.utd=0.4",
            "algo.target_every=30", "algo.rollout_length=2", "algo.per=true", "algo.dueling=true", "algo.distributional=c51",
            "algo.anneal_learning_rate=true"],
    "pqn": ["algo.rollout_length=20", "algo.num_minibatches=3", "algo.normalize_observation=true", "algo.normalize_reward=true",
            "algo.anneal_learning_rate=true"],
    "alphazero": ["algo.num_blocks=1", "algo.num_channels=4", "algo.search.num_simulations=4", "algo.batch_size=16", "algo.replay_start=32",
                  "algo.replay_size=301", "algo.search.rule=puct", "algo.search.full_search_fraction=0.6",
                  "algo.random_moves=0.2", "algo.value_mix=0.3",
                  "algo.search.num_cheap_simulations=3", "algo.steps_per_update=3",
                  "algo.anneal_learning_rate=true"],
    "alphago": ["algo.num_blocks=1", "algo.num_channels=4", "algo.search.num_simulations=4", "algo.batch_size=16", "algo.replay_size=301",
                "algo.num_expert_simulations=5", "algo.expert_fraction=0.3", "algo.reinforce_fraction=0.4", "algo.games_per_update=4",
                "algo.snapshot_every=3"],
    "muzero": ["algo.num_channels=8", "algo.search.num_simulations=4", "algo.batch_size=16", "algo.replay_start=100",
               "algo.replay_size=450", "algo.steps_per_update=3", "algo.num_unroll_steps=3", "algo.td_steps=4", "algo.reanalyse=0.5",
               "algo.anneal_learning_rate=true"],
    "sac": ["algo.hidden_sizes=[8,8]", "algo.batch_size=16", "algo.initial_steps=100", "algo.utd=0.3", "algo.n_step=3",
            "algo.replay_size=400", "algo.anneal_learning_rate=true"],
    "sac-steve": ["algo.hidden_sizes=[8,8]", "algo.batch_size=16", "algo.initial_steps=100", "algo.utd=0.3", "algo.expansion=steve",
                  "algo.horizon=2", "algo.model.hidden_sizes=[8]", "algo.model.max_epochs=2", "algo.model.fit_every=190",
                  "algo.model.corruption=regional", "algo.model.corrupt_prob=0.2", "algo.model.termination=learned",
                  "algo.model.reward=learned", "algo.model.replay_size=400"],
    "sac-mbpo": ["algo.hidden_sizes=[8,8]", "algo.batch_size=16", "algo.initial_steps=100", "algo.utd=0.3", "algo.imagined=mbpo",
                 "algo.stop=threshold", "algo.rollouts_per_step=0.5", "algo.model.hidden_sizes=[8]", "algo.model.max_epochs=2",
                 "algo.model.fit_every=190", "algo.model.corruption=independent", "algo.model.corrupt_prob=0.2",
                 "algo.model.replay_size=400"],
    "td3": ["algo.hidden_sizes=[8,8]", "algo.batch_size=16", "algo.initial_steps=100", "algo.utd=0.3", "algo.rollout_length=5",
            "algo.replay_size=400"],
    "pets": ["algo.initial_steps=100", "algo.fit_every=190", "algo.hidden_sizes=[8,8]", "algo.ensemble_size=2",
             "algo.planner.num_candidates=6", "algo.planner.num_iterations=1", "algo.planner.horizon=4", "algo.max_epochs=2",
             "algo.replay_size=500", "algo.anneal_learning_rate=true",
             "algo.learn_variance_bounds=true"],
    "ibp": ["algo.strategy=tree", "algo.imaginations=2", "algo.price=0.01", "algo.corrupt_prob=0.3", "algo.hidden_sizes=[8]",
            "algo.memory_size=6", "algo.model_batch_size=16", "algo.model_replay_size=301", "algo.model_hidden_size=8",
            "algo.model_steps=2"],
    "i2a": ["algo.rollout_length=7", "algo.num_minibatches=3", "algo.num_channels=4", "algo.hidden_size=16", "algo.num_encoder_channels=4",
            "algo.encoder_size=8", "algo.num_model_channels=4", "algo.rollout_depth=2", "algo.model_fraction=0.4",
            "algo.model_replay_ratio=1.3", "algo.model_batch_size=16", "algo.model_replay_size=301", "algo.corrupt_prob=0.05",
            "algo.anneal_learning_rate=true"],
}  # fmt: skip


LENGTHS = {"pets": 640, "muzero": 640, "alphazero": 700, "alphago": 1000, "i2a": 700, "sac-steve": 700, "sac-mbpo": 700, "ibp": 700}
"""Env steps of a run whose steps take long: two checkpoints before its end, every phase, a replay that is full."""

composed = functools.cache(lambda *words: Composer().compose(list(words)).config)


def words(algo: str, env: str) -> list[str]:
    """The command line of the short run, without its length."""
    return [f"algo={algo.partition('-')[0]}", *ENVS[env], *COMMON, *SETTINGS[algo]]


def compose(algo: str, env: str, *more: str, total_env_steps: int | None = None) -> RunConfig:
    config: RunConfig = copy.deepcopy(composed(*words(algo, env), *more))
    config.loop.total_env_steps = total_env_steps or LENGTHS.get(algo, 1500)
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
    items: dict[str, Stored] = {}
    algo, rest = newest.read("algo.pt", items=items), newest.read("run.pt", items=items)
    del rest["clock"]
    rest["metrics"]["updates"] = [{k: v for k, v in u.items() if not k.startswith("time/")} for u in rest["metrics"]["updates"]]
    return {"algo": algo, **rest}


def columns_of(stored: Stored) -> dict[str, torch.Tensor]:
    """All items that a checkpoint has at a place, whatever files they lie in."""
    if stored.first == stored.end:
        return {}
    file: Any = (stored._entry.segments or [stored._entry.tail])[0]
    header = json.loads(stored._read(file).partition(b"\n")[0])
    kinds = {column["name"]: Kind(getattr(torch, column["dtype"]), tuple(column["shape"])) for column in header["columns"]}
    parts = [part for _, part in stored.parts(kinds)]
    return {name: torch.cat([part[name] for part in parts]) for name in kinds}


def assert_equal(a: Any, b: Any, path: str = "state") -> None:
    """Compare canonical values, bit for bit, naming the first that differs."""
    assert type(a) is type(b), path
    if isinstance(a, Stored):
        assert (a.first, a.end) == (b.first, b.end), path
        assert_equal(columns_of(a), columns_of(b), path)
    elif isinstance(a, torch.Tensor):
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


OWN = {
    "pqn": ["native", "gymnasium", "grid"],
    "pets": ["continuous", "pole"],
    "sac": ["continuous", "pole"],
    "td3": ["continuous"],
    "dqn": ["native", "gymnasium"],
    "muzero": ["native", "gymnasium", "game"],
    "i2a": ["grid"],
    "ibp": ["spaceship"],
}
VARIANTS = {"a2c-q": ["native"], "reinforce-q": ["continuous"], "ppo-settings": ["pole"], "sac-steve": ["pole"], "sac-mbpo": ["continuous"]}
"""Algorithms in settings with more state, which are tested beside them."""
FIT = {a: ["game"] if a in GAME_PLAYING else OWN.get(a, ["native", "gymnasium", "continuous", "grid"]) for a in ALGORITHMS} | VARIANTS
"""The environments that an algorithm is tested on."""
