"""Whole runs on environments with masks of actions; these environments raise where a forbidden action is taken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from guessing import register

import rlx
from rlx.errors import EnvError

BASE = ["algo=ppo", "env.num_envs=8", "loop.eval_every=0", "log.wandb=disabled", "log.console=plain"]
LEARN = [
    "loop.total_env_steps=5_000", "algo.rollout_length=128", "algo.num_epochs=20", "algo.num_minibatches=16", "algo.learning_rate=1e-3",
    "algo.discount=0.4", "algo.hidden_sizes=[256]", "algo.activation=relu",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLX_RUNS_DIR", raising=False)
    known = dict(gymnasium.registry)
    register()
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(known)


@pytest.mark.parametrize("actions", ["multi", pytest.param("bits", marks=pytest.mark.slow)])
def test_the_right_one_of_few_allowed_actions_is_learned_in_5000_steps(actions: str) -> None:
    run = rlx.train([*BASE, *LEARN, f"env=Guess-{actions}-info-v0"])
    assert rlx.evaluate(run, episodes=5).return_mean >= 90  # of 100
    rlx.evaluate(run, episodes=1, stochastic=True)


@pytest.mark.slow
def test_the_right_one_of_eighty_actions_is_learned_in_three_rollouts_of_2048_steps() -> None:
    changed = ["algo.rollout_length=256", "algo.num_minibatches=32", "algo.learning_rate=2e-3", "algo.value_coef=0.1", "algo.gae_lambda=0"]
    names = {x.split("=")[0] for x in changed}
    run = rlx.train([*BASE, *(x for x in LEARN if x.split("=")[0] not in names), *changed, "env=Guess-discrete-info-v0"])
    assert rlx.evaluate(run, episodes=10).return_mean >= 90


def outcome(run: Any) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Metrics without times, and the last network."""
    metrics = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in run.metrics()]
    return metrics, run.load().algorithm.state_dict()["net"]


def test_masks_in_the_observation_in_info_and_from_a_method_give_identical_runs(same: Any) -> None:
    short = ["loop.total_env_steps=600", "algo.rollout_length=16", "algo.memory=gru"]
    first, *others = (outcome(rlx.train([*BASE, *short, f"env=Guess-multi-{where}-v0"])) for where in ("obs", "info", "method"))
    assert len(first[0]) > 0
    assert all(same(first, other) for other in others)


def test_a_state_without_allowed_actions_stops_the_run_by_environment_and_step() -> None:
    with pytest.raises(EnvError, match=r"Stuck-v0\) .* step 7 of the episode with seed \d+: .*action_mask.* allows no action"):
        rlx.train([*BASE, "env=Stuck-v0", "loop.total_env_steps=1_000"])


class ChecksMask(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Raises on an action that `info["action_mask"]` forbade."""

    def reset(self, **kwargs: Any) -> Any:
        obs, info = self.env.reset(**kwargs)
        self.mask = info["action_mask"].copy()
        return obs, info

    def step(self, action: Any) -> Any:
        if not self.mask[action]:
            raise RuntimeError(f"action {action} is forbidden")
        *result, info = self.env.step(action)
        self.mask = info["action_mask"].copy()
        return *result, info


@pytest.mark.parametrize("steps", [2_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_taxi_never_drives_into_walls_or_picks_up_nobody(steps: int) -> None:
    gymnasium.register("Checked-v0", entry_point=lambda: ChecksMask(gymnasium.make("Taxi-v4")), max_episode_steps=200)
    run = rlx.train([*BASE, "env=Checked-v0", f"loop.total_env_steps={steps}"])
    rlx.evaluate(run, episodes=3)
    assert run.status == "finished"
