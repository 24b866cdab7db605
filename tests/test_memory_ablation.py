"""`rlx eval --memory`: acting without a memory, or with that of another episode."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest
import torch

from rlx.algos.ppo import PPO
from rlx.config.algos.policy_gradient_config import MemoryKind
from rlx.config.algos.ppo_config import PPOConfig
from rlx.errors import ConfigError
from rlx.evaluation.evaluate import evaluate_run
from rlx.store.runs import RunDir
from rlx.tree_ops import leaves
from rlx.types import EnvSpec

SPEC = EnvSpec(id="test", observation_space=gymnasium.spaces.Box(-1, 1, (3,), np.float32), action_space=gymnasium.spaces.Discrete(4))


def make(memory: MemoryKind = MemoryKind.gru) -> PPO:
    return PPO(PPOConfig(memory=memory, memory_size=8, hidden_sizes=[8]), SPEC, 3, torch.device("cpu"))


def carries(algo: PPO, obs: torch.Tensor, carry, is_first: torch.Tensor) -> list[torch.Tensor]:
    return leaves(algo.act(obs, carry, is_first, mode="eval").carry)


@pytest.mark.parametrize("memory", [MemoryKind.lstm, MemoryKind.gru])
def test_off_acts_as_if_an_episode_began_and_shuffled_with_the_memory_of_the_episode_before(memory):
    algo = make(memory)
    obs, begins, continues = torch.rand(3, 3), torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    carry = algo.act(torch.rand(3, 3), algo.initial_carry(3), begins, mode="eval").carry
    off, shuffled = (algo.ablate({"memory": choice}, mode="eval") for choice in ("off", "shuffled"))
    expected, empty = carries(algo, obs, carry, continues), carries(algo, obs, carry, begins)
    assert all(map(torch.equal, carries(off, obs, carry, continues), empty))
    rolled = {name: value[[2, 0, 1]] for name, value in carry.items()}
    assert all(map(torch.equal, carries(shuffled, obs, carry, continues), carries(algo, obs, rolled, continues)))
    assert all(map(torch.equal, carries(shuffled, obs, carry, begins), empty))
    assert all(map(torch.equal, carries(algo, obs, carry, continues), expected)), "the algorithm itself is unchanged"
    assert not any(map(torch.equal, expected, empty))
    output, explanation = off.explain(obs, carry, continues, mode="eval")
    assert torch.equal(explanation.probs.argmax(-1), output.action)


def test_an_ablation_that_cannot_be_says_why():
    assert make().ablate({}, mode="eval").net.has_memory
    algo = make()
    assert algo.ablate({"memory": "on"}, mode="eval") is algo
    with pytest.raises(ConfigError, match=r"only one episode is played at a time; play several with rlx eval --episodes 2 or more"):
        make().ablate({"memory": "shuffled"}, mode="eval").initial_carry(1)
    with pytest.raises(ConfigError, match=r"has no memory \(algo.memory=none\); leave it out"):
        make(MemoryKind.none).ablate({"memory": "on"}, mode="eval")


def test_eval_prints_returns_with_and_without_memory(here, run_command):
    quiet = "--name one log.wandb=disabled log.console=quiet"
    settings = "algo.rollout_length=8 algo.memory_size=4 algo.hidden_sizes=[4] env.num_envs=2 loop.total_env_steps=32 loop.eval_every=0"
    code, _, err = run_command(f"train algo=a2c env=cartpole algo.memory=gru recipe=null {settings} {quiet}")
    assert code == 0, err
    code, out, err = run_command("eval one --episodes 5 --memory off")
    assert code == 0, err
    assert "5 deterministic episodes of CartPole-v1, memory off:" in out
    assert "the same episodes with its memory: return" in out
    code, out, _ = run_command("eval one --episodes 5 --memory shuffled --json")
    assert json.loads(out)["memory"] == "shuffled"
    code, _, err = run_command("eval one --episodes 1 --memory shuffled")
    assert code == 2
    assert "--episodes 2 or more" in err
    code, _, err = run_command("eval one --memory sometimes")
    assert code == 2
    assert "expected one of on, off, shuffled" in err


@pytest.mark.parametrize("memory", ["lstm", "gru"])
def test_recall_is_learned_with_a_memory_and_lost_without_it(here, run_command, memory):
    settings = (
        "env=recall env.kwargs.horizon=6 env.kwargs.num_symbols=2 env.num_envs=16 recipe=null algo.rollout_length=24 algo.hidden_sizes=[] "
        "algo.learning_rate=2e-2 algo.num_minibatches=2 loop.total_env_steps=6000 loop.eval_every=0 log.wandb=disabled log.console=quiet"
    )
    code, _, err = run_command(f"train algo=ppo algo.memory={memory} {settings} --name it")
    assert code == 0, err
    returns = {
        choice: evaluate_run(RunDir(here / "runs" / "it"), episodes=64, ablation={"memory": choice}).return_mean
        for choice in ("on", "off", "shuffled")
    }
    assert returns["on"] > 0.9
    assert max(returns["off"], returns["shuffled"]) < 0.5  # guessing earns 0.17
