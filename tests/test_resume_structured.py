"""Runs with memories, missions, masks and actions of several parts: killed in the middle of an episode, they go on bit for bit."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from launch import lines
from resumable import assert_equal, final_state, in_child, kill_at, new_run

from rlx.config.compose import Composer
from rlx.run import train

SHORT = [
    "algo=ppo", "recipe=null", "env.num_envs=2", "loop.log_every=60", "loop.checkpoint_every=70", "loop.eval_every=0",
    "algo.rollout_length=20", "algo.num_minibatches=2", "algo.num_epochs=1", "algo.hidden_sizes=[4]",
    "log.wandb=disabled", "log.console=quiet",
]  # fmt: skip
RUNS = {
    "grid with lstm": ["env=MiniGrid-MemoryS7-v0", "algo.memory=lstm", "algo.memory_size=4"],
    "grid with gru": ["env=MiniGrid-MemoryS7-v0", "algo.memory=gru", "algo.memory_size=4"],
    "mission": ["env=MiniGrid-GoToDoor-5x5-v0"],
    "mask": ["env=Taxi-v4"],
    "recall with gru": ["env=recall", "algo.memory=gru", "algo.memory_size=4"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_within_an_episode_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    if "MiniGrid" in RUNS[name][0]:
        pytest.importorskip("minigrid")
    config = Composer().compose([*SHORT, *RUNS[name], "loop.total_env_steps=360"]).config
    straight, killed = new_run(tmp_path, "straight", config), new_run(tmp_path, "killed", config)
    train(straight, config, overrides=[])
    pid = in_child(lambda: train(killed, config, overrides=[]))
    kill_at(pid, killed, config.loop.total_env_steps * random.uniform(0.2, 0.7))
    assert os.waitpid(in_child(lambda: train(killed, config, overrides=[])), 0)[1] == 0
    assert lines(killed) == lines(straight)
    assert_equal(final_state(killed), final_state(straight))


def test_another_memory_or_task_is_refused_when_a_run_is_resumed(tmp_path, run_command, monkeypatch):
    monkeypatch.setenv("RLX_RUNS_DIR", str(tmp_path))
    code, _, err = run_command(f"train {' '.join([*SHORT, *RUNS['recall with gru']])} loop.total_env_steps=40 --name r")
    assert code == 0, err
    for change in ("algo.memory_size=5", "algo.memory=lstm", "env.kwargs.horizon=20"):
        code, _, err = run_command(f"resume r {change}")
        assert code == 2
        assert change.partition("=")[0] in err
        assert "Traceback" not in err
