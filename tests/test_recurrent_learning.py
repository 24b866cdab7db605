"""PPO, A2C and REINFORCE with a memory, against plain implementations that step through episodes one by one."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_algos import CONTINUOUS, DISCRETE, build, make_rollout, update, weights
from torch import Tensor

from rlx import ops
from rlx.algos import ppo, reinforce
from rlx.config.algo_registry import ALGORITHMS
from rlx.config.algos.a2c_config import A2CConfig
from rlx.config.algos.policy_gradient_config import MemoryKind
from rlx.config.algos.ppo_config import PPOConfig
from rlx.config.algos.reinforce_config import ReinforceConfig
from rlx.config.compose import Composer
from rlx.errors import ConfigError
from rlx.nn import backbone, policy_gradient
from rlx.nn.networks import Network
from rlx.tree_ops import leaves, map_tree, pick
from rlx.types import EnvSpec, Rollout

KINDS = pytest.mark.parametrize("kind", list(MemoryKind)[1:], ids=lambda kind: kind.value)


def acted(algo: Any, spec: EnvSpec = DISCRETE, **settings: Any) -> Rollout:
    """A rollout of random observations with the algorithm's own actions, memories and records; episodes are open when it begins."""
    rollout = make_rollout(spec, **settings)
    carry = map_tree(torch.randn_like, algo.initial_carry(rollout.reward.shape[1]))
    rollout.is_first[0] = torch.rand(rollout.reward.shape[1]) < 0.5
    rollout.carry, actions, extras = carry, [], []
    for t in range(len(rollout.reward)):
        action, carry, extra = algo.act(rollout.obs[t], carry, rollout.is_first[t], mode="train")
        actions.append(action)
        extras.append(extra)
    rollout.action, rollout.extras = torch.stack(actions), map_tree(lambda *steps: torch.stack(steps), *extras)
    return rollout


def stepwise(net: Network, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
    """Parameters [T, B, D'], values [T, B] and those of the true successors, one step and one environment at a time, for autograd."""
    num_steps, num_envs = rollout.reward.shape
    params, values, nexts = ([[None] * num_envs for _ in range(num_steps)] for _ in range(3))
    for b in range(num_envs):
        carry = pick(rollout.carry, slice(b, b + 1))
        for t in range(num_steps):
            if rollout.is_first[t, b]:
                carry = map_tree(torch.zeros_like, carry)
            params[t][b], values[t][b], carry = net.step(rollout.obs[t, b : b + 1], carry, torch.zeros(1, dtype=torch.bool))
            nexts[t][b] = net.step(rollout.next_obs[t, b : b + 1], carry, torch.zeros(1, dtype=torch.bool))[1]
    together = [torch.stack([torch.cat(row) for row in rows]) for rows in (params, values, nexts)]
    return together[0], together[1], together[2]


@KINDS
@pytest.mark.parametrize("normalize_observation", [False, True], ids=["plain", "normalised"])
def test_the_values_of_a_rollout_are_those_of_its_steps_one_after_the_other(kind, normalize_observation):
    algo = build(PPOConfig(memory=kind, memory_size=5, normalize_observation=normalize_observation))
    for _ in range(2):
        rollout = acted(algo)
        with torch.no_grad(), algo.net.learning_from(rollout.obs.flatten(0, 1)):
            evaluated, again = algo.net.evaluate(rollout), algo.net.evaluate(rollout, afresh=True)
            params, value, next_value = stepwise(algo.net, rollout)
        for found in (evaluated, again):
            torch.testing.assert_close(found.params, params.flatten(0, 1), atol=2e-6, rtol=0)
            torch.testing.assert_close(found.value, value, atol=2e-6, rtol=0)
            expected = torch.where(rollout.terminated, 0.0, next_value)
            torch.testing.assert_close(torch.where(rollout.terminated, 0.0, found.next_value), expected, atol=2e-6, rtol=0)


@KINDS
@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_a_minibatch_is_of_whole_environments_and_its_first_ratio_is_one(kind, spec, monkeypatch):
    algo = build(PPOConfig(memory=kind, memory_size=5, num_epochs=2, num_minibatches=2, learning_rate=1e-12), spec)
    taken: list[Any] = []
    monkeypatch.setattr(ppo, "gradient_steps", lambda *a, **k: taken.append((a, k)) or original(*a, **k))
    original = __import__("rlx.nn.policy_gradient", fromlist=["gradient_steps"]).gradient_steps
    seen: list[tuple[int, ...]] = []
    forward = algo.net.forward
    monkeypatch.setattr(algo.net, "forward", lambda x, carry, first: seen.append(tuple(first.shape)) or forward(x, carry, first))
    metrics = update(algo, acted(algo, spec))
    assert seen == [(12, 2)] * 4
    assert sorted(taken[0][1]["order"].tolist()) == [0, 1, 2, 3]
    assert metrics["update/approx_kl"] == pytest.approx(0.0, abs=1e-9)
    assert metrics["update/clip_fraction"] == 0.0


@KINDS
def test_a2c_with_a_memory_equals_autograd_through_the_steps(kind):
    config = A2CConfig(memory=kind, memory_size=5, max_grad_norm=0.3, entropy_coef=0.01, gae_lambda=0.9, learning_rate=0.01)
    algo = build(config)
    rollout, reference = acted(algo), copy.deepcopy(algo.net)
    params, value, next_value = stepwise(reference, rollout)
    is_last = rollout.is_last
    advantage = ops.gae(
        rollout.reward, value.detach(), next_value.detach(), rollout.terminated, is_last, discount=config.discount, lam=config.gae_lambda
    )
    policy = torch.distributions.Categorical(logits=params)
    loss = -(policy.log_prob(rollout.action) * advantage).mean() - 0.01 * policy.entropy().mean()
    loss = loss + config.value_coef * 0.5 * (value - (value.detach() + advantage)).square().mean()
    adam = torch.optim.Adam(reference.parameters(), lr=0.01, eps=1e-5)
    adam.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.3)
    adam.step()
    update(algo, rollout)
    for (name, ours), theirs in zip(algo.net.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0, msg=name)


def split(rollout: Rollout, at: int) -> list[Rollout]:
    """A rollout as two that follow one another; both share the first one's memories at the beginning."""
    parts = []
    for steps in (slice(0, at), slice(at, len(rollout.reward))):
        part, chosen = copy.deepcopy(rollout), (rollout.final_t >= steps.start) & (rollout.final_t < steps.stop)
        for name in ("action", "reward", "terminated", "truncated", "is_first"):
            setattr(part, name, getattr(rollout, name)[steps])
        part.all_obs, part.extras = rollout.all_obs[steps.start : steps.stop + 1], map_tree(lambda x, s=steps: x[s], rollout.extras)
        part.final_t, part.final_b, part.final_obs = (
            rollout.final_t[chosen] - steps.start,
            rollout.final_b[chosen],
            rollout.final_obs[chosen],
        )
        parts.append(part)
    return parts


@KINDS
def test_reinforce_with_a_memory_learns_from_whole_episodes_however_they_lie_in_rollouts(kind):
    config = ReinforceConfig(memory=kind, memory_size=5, episodes_per_update=4, learning_rate=0.01, normalize_advantage=False)
    whole, parts = build(config), build(config)
    parts.load_state_dict(copy.deepcopy(whole.state_dict()))
    rollout = make_rollout(length=24)
    rollout.carry = whole.initial_carry(4)
    first, second = split(rollout, 12)
    second.carry = pick(parts.net.replay(first).carry, -1)
    parts.config = ReinforceConfig(**{**vars(config), "episodes_per_update": 1000})
    update(parts, first)
    parts.config = config
    update(parts, second)
    update(whole, rollout)
    for (name, ours), theirs in zip(whole.net.named_parameters(), parts.net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0, msg=name)


@KINDS
def test_reinforce_remembers_an_episode_of_which_lost_lives_have_ended_the_first_returns(kind, monkeypatch):
    algo = build(ReinforceConfig(memory=kind, memory_size=5, episodes_per_update=1, learning_rate=1e-12))
    whole = make_rollout(length=12, end_prob=0.0)
    whole.terminated[[2, 5, 8, 11]] = True  # lives; the last one ends the episode
    whole.final_t, whole.final_b, whole.final_obs = torch.full((4,), 11), torch.arange(4), torch.zeros(4, 3)
    whole.carry = algo.initial_carry(4)
    values, lengths, taken = algo.net.replay(whole).value, [], []
    monkeypatch.setattr(reinforce, "gradient_steps", lambda *a, **k: taken.append(a[3]) or policy_gradient.gradient_steps(*a, **k))
    for part in split(whole, 7):
        update(algo, part)
        lengths.append(len(algo.pending["reward"]))
    found = torch.cat([batch.old_value[batch.sequences.used] for batch in taken])
    torch.testing.assert_close(found, values.flatten(), atol=2e-6, rtol=0)
    assert lengths == [7, 0]


def test_reinforce_leaves_out_an_episode_that_was_cut_by_an_inexact_resume():
    algo = build(ReinforceConfig(episodes_per_update=5, memory=MemoryKind.gru, memory_size=5))
    cut, next_one = make_rollout(length=4, end_prob=0.0), make_rollout(length=6, end_prob=0.0)
    cut.terminated[1] = True
    next_one.carry = cut.carry = algo.initial_carry(4)
    update(algo, cut)
    update(algo, next_one)
    assert algo.pending["unused"].any(1).tolist() == [True] * 2 + [False] * 2 + [True] * 6


@pytest.mark.parametrize("name", ["reinforce", "a2c", "ppo"])
def test_a_memory_learns_what_only_it_can_know(name):
    """The first observation says which of two actions is right at every step of an episode of 6; later ones say nothing."""
    more = {"num_minibatches": 1, "num_epochs": 8} if name == "ppo" else {"episodes_per_update": 1} if name == "reinforce" else {}
    config = ALGORITHMS[name].config(memory=MemoryKind.gru, memory_size=16, hidden_sizes=[], learning_rate=0.01, **more)
    algo = build(config, num_envs=16)
    for _ in range(60):
        side = torch.randint(2, (16,))
        rollout = make_rollout(length=6, num_envs=16, end_prob=0.0)
        rollout.all_obs = torch.zeros(7, 16, 3)
        rollout.all_obs[0, :, 0] = 2.0 * side - 1.0
        rollout.terminated[-1], rollout.carry, carry = True, algo.initial_carry(16), algo.initial_carry(16)
        rollout.final_t, rollout.final_b, rollout.final_obs = torch.full((16,), 5), torch.arange(16), torch.zeros(16, 3)
        actions = []
        for t in range(6):
            action, carry, _ = algo.act(rollout.obs[t], carry, rollout.is_first[t], mode="train")
            actions.append(action)
        rollout.action = torch.stack(actions)
        rollout.reward = (rollout.action == side).float()
        update(algo, rollout)
    assert rollout.reward.mean() > 0.9


@pytest.mark.parametrize("kind", list(MemoryKind), ids=lambda kind: kind.value)
def test_a_large_batch_of_images_is_encoded_in_parts_with_the_same_gradients(kind, monkeypatch):
    spec = EnvSpec(id="Mine-v0", observation_space=spaces.Box(0, 255, (7, 7, 3), np.uint8), action_space=spaces.Discrete(2))
    net = Network(spec, hidden_sizes=[4], activation="tanh", encoder="grid", memory=kind.value, memory_size=3)
    images, d_params, d_value = torch.randint(256, (10, 5, 7, 7, 3), dtype=torch.uint8), torch.randn(50, 2), torch.randn(50)
    inputs, carry, is_first = net.inputs_of(images), net.memory.initial(5), torch.rand(10, 5) < 0.2
    found, sizes = [], []
    net.encoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    for most in (1000, 16):
        monkeypatch.setattr(backbone, "_MANY", most)
        net.zero_grad()
        params, value, backward = net.forward_vjp(inputs, carry, is_first)
        backward(d_params, d_value)
        with torch.no_grad():
            again = net.value(inputs, carry, is_first)
        found.append([params, value, again, *(p.grad.clone() for p in net.parameters())])
    assert max(sizes[2:]) == 16
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["reinforce", "a2c", "ppo"])
def test_learning_from_signs_equals_learning_from_rewards_of_one(name):
    more = {"episodes_per_update": 1} if name == "reinforce" else {}
    clipped, plain = (build(ALGORITHMS[name].config(sign_reward=sign, **more)) for sign in (True, False))
    plain.load_state_dict(copy.deepcopy(clipped.state_dict()))
    rollout = make_rollout()
    same = copy.deepcopy(rollout)
    same.reward = rollout.reward.sign()
    state = torch.get_rng_state()
    update(clipped, rollout)
    torch.set_rng_state(state)
    update(plain, same)
    assert all(torch.equal(weights(clipped)[key], weights(plain)[key]) for key in weights(plain))
    assert len(leaves(rollout.reward)) == 1
    assert rollout.reward.abs().max() > 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["algo.memory_size=32"], "algo.memory_size has no effect unless algo.memory=lstm or gru"),
        (["algo.memory=gru", "env.num_envs=6", "algo.num_minibatches=4"], "does not divide env.num_envs=6"),
        (["algo.memory=transformer"], "lstm"),
        (["algo.encoder=resnet"], "impala"),
        (["algo.hidden_sizes=[0]"], "positive widths"),
    ],
)
def test_settings_of_memories_and_encoders_that_cannot_be_used_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Composer().compose(["algo=ppo", "env=cartpole", "recipe=null", *given])
