"""PQN against a plain implementation that steps through episodes one by one, and what it takes for the end of one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_algos import DISCRETE, build, make_rollout, update
from test_q_networks import MASK, MASKED, masked
from test_recurrent_learning import acted, stepwise
from torch import Tensor, nn

from rlx.algos import pqn
from rlx.config.algos.policy_gradient_config import MemoryKind
from rlx.config.algos.pqn_config import PQNConfig
from rlx.types import Progress, Rollout


def config(**settings: Any) -> PQNConfig:
    return PQNConfig(**{"hidden_sizes": [8], "num_epochs": 1, "num_minibatches": 1, "epsilon_start": 0.3} | settings)


def targets(rollout: Rollout, next_value: Tensor, discount: float, lam: float) -> Tensor:
    """Q(lambda) step by step and env by env."""
    out = torch.zeros_like(next_value)
    for b in range(out.shape[1]):
        for t in reversed(range(len(out))):
            beyond = next_value[t, b]
            if t + 1 < len(out) and not rollout.is_last[t, b]:
                beyond = (1 - lam) * beyond + lam * out[t + 1, b]
            out[t, b] = rollout.reward[t, b] + (0.0 if rollout.terminated[t, b] else discount * beyond)
    return out


@pytest.mark.parametrize("memory", list(MemoryKind), ids=lambda kind: kind.value)
def test_update_equals_a_plain_implementation(memory):
    algo = build(config(memory=memory, memory_size=4, max_grad_norm=0.5), DISCRETE)
    net = copy.deepcopy(algo.net)
    adam = torch.optim.Adam(net.parameters(), lr=algo.config.learning_rate, eps=1e-5)
    for _ in range(3):
        rollout = acted(algo, end_prob=0.4)
        metrics = update(algo, rollout)
        q, value, next_value = stepwise(net, rollout)  # type: ignore[arg-type]
        target = targets(rollout, next_value.detach(), 0.99, 0.65)
        loss = 0.5 * (q.gather(-1, rollout.action.unsqueeze(-1)).squeeze(-1) - target).square().mean()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        adam.step()
        assert metrics["loss/value"] == pytest.approx(loss.item(), abs=1e-5)
        assert metrics["update/q_value"] == pytest.approx(value.mean().item(), abs=1e-5)
        for p, r in zip(algo.net.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(p, r, atol=2e-5, rtol=0)


def cut_each_step(terminated: bool) -> Rollout:
    """A rollout in which every step ends an episode, all of whose observations are alike, with reward 1."""
    rollout = make_rollout(reward=torch.ones(12, 4))
    rollout.terminated, rollout.truncated = torch.full((2, 12, 4), terminated).unbind()
    rollout.truncated = ~rollout.terminated
    rollout.final_t, rollout.final_b = rollout.is_last.nonzero(as_tuple=True)
    rollout.all_obs, rollout.final_obs = torch.ones(13, 4, 3), torch.ones(48, 3)
    rollout.is_first = torch.ones(12, 4, dtype=torch.bool)
    return rollout


@pytest.mark.parametrize(("terminated", "expected"), [(False, 2.0), (True, 1.0)], ids=["truncated", "terminated"])
def test_episodes_that_are_cut_after_one_step_are_worth_as_much_as_endless_ones(terminated, expected):
    algo = build(config(discount=0.5, learning_rate=1e-2, num_epochs=10))
    for _ in range(40):
        metrics = update(algo, cut_each_step(terminated))
    assert metrics["update/q_value"] == pytest.approx(expected, abs=0.02)


def test_targets_at_a_cut_are_those_of_the_allowed_actions_in_the_observation_that_the_episode_ended_in(monkeypatch):
    algo = build(config(), MASKED)
    with torch.no_grad():
        algo.net.trunk.linears[-1].bias[:] = torch.tensor([0.0, 50.0, 0.0, 50.0])
    rollout, seen = cut_each_step(False), []
    rollout.action = torch.full((12, 4), 2)
    rollout.final_obs = masked(torch.randn(48, 3))
    rollout.all_obs = {key: leaf.view(13, 4, -1) for key, leaf in masked(torch.randn(52, 3)).items()}
    q = algo.net(algo.net.preprocess(rollout.final_obs)).detach()
    steps = pqn.gradient_steps
    monkeypatch.setattr(pqn, "gradient_steps", lambda *args, **kwargs: (seen.append(args[4]), steps(*args, **kwargs))[1])
    update(algo, rollout)
    torch.testing.assert_close(seen[0], 1.0 + 0.99 * q[:, MASK[0]].amax(-1))


def test_the_next_rollout_explores_as_the_env_steps_before_it_say():
    algo = build(config(epsilon_start=0.9, epsilon_end=0.1, epsilon_fraction=0.5))
    progress, seen = Progress(total_env_steps=4 * 48), [algo.epsilon]
    for _ in range(3):
        update(algo, make_rollout(), progress)
        seen.append(algo.epsilon)
    assert seen == pytest.approx([0.9, 0.5, 0.1, 0.1])
    other = build(algo.config)
    other.load_state_dict(copy.deepcopy(algo.state_dict()))
    assert other.epsilon == algo.epsilon
