"""Random trees of observations x every kind of action x memory x mask: one network, one loss, one rollout for all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from reference_heads import references
from torch import Tensor

from rlx.algos import a2c, ppo, reinforce
from rlx.collect import Collector
from rlx.config.algos.a2c_config import A2CConfig
from rlx.config.algos.policy_gradient_config import MemoryKind
from rlx.config.algos.ppo_config import PPOConfig
from rlx.config.algos.reinforce_config import ReinforceConfig
from rlx.nn.backbone import rows_of
from rlx.nn.networks import Network
from rlx.spaces import ACTION_MASK, ProductSpace, SeenDict, choices_of, mask_width
from rlx.tree_ops import Tree, map_tree, pick
from rlx.types import EnvSpec, Progress, Rollout

NUM_ENVS, NUM_STEPS = 4, 8
_PARTS = [spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3), spaces.MultiDiscrete([2, 4]), spaces.MultiBinary(2)]
_ORIGINAL = spaces.Dict({"a": spaces.Tuple(_PARTS[:2]), "b": _PARTS[2], "c": _PARTS[3]})
ACTIONS: dict[str, gymnasium.Space] = {
    "discrete": spaces.Discrete(4, start=2),
    "even": spaces.MultiDiscrete([3, 3]),
    "ragged": spaces.MultiDiscrete([2, 5, 1]),
    "binary": spaces.MultiBinary(3),
    "box": spaces.Box(-1.0, 1.0, (2,)),
    "product": ProductSpace(_PARTS, _ORIGINAL),
}
KINDS = [spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, "board", "many values"]


class Case(NamedTuple):
    action: str
    memory: MemoryKind
    is_masked: bool
    seed: int


COMBINATIONS = [x for x in itertools.product(ACTIONS, MemoryKind, (False, True)) if not (x[0] == "box" and x[2])]
CASES = [Case(*x, seed) for seed, x in enumerate(COMBINATIONS)]
NAMES = [f"{case.action}-{case.memory.value}-{'masked' if case.is_masked else 'free'}" for case in CASES]
every_case = pytest.mark.parametrize("case", CASES, ids=NAMES)
every_fifth_case = pytest.mark.parametrize("case", CASES[::5], ids=NAMES[::5])


def random_leaf(rng: np.random.Generator, kind: Any) -> gymnasium.Space:
    if kind is spaces.Box:
        return spaces.Box(-np.inf, np.inf, [(3,), (1,), (2, 2)][rng.integers(3)], [np.float32, np.float64][rng.integers(2)])
    if kind is spaces.Discrete:
        return spaces.Discrete(int(rng.integers(1, 6)), start=int(rng.integers(-2, 3)))
    if kind is spaces.MultiDiscrete:
        return spaces.MultiDiscrete(rng.integers(1, 5, size=rng.integers(1, 4)))
    if kind is spaces.MultiBinary:
        return spaces.MultiBinary(int(rng.integers(1, 4)))
    return spaces.Box(0, 255, (5, 5, 2), np.uint8) if kind == "board" else spaces.Discrete(70)


def random_space(rng: np.random.Generator, depth: int = 2) -> gymnasium.Space:
    """A Dict or Tuple with a vector and leaves of any kind, nested at most `depth` times."""
    parts = [random_leaf(rng, spaces.Box)]
    for _ in range(rng.integers(1, 4)):
        nested = depth > 1 and rng.random() < 0.4
        parts.append(random_space(rng, depth - 1) if nested else random_leaf(rng, KINDS[rng.integers(len(KINDS))]))
    return spaces.Tuple(parts) if rng.random() < 0.4 else spaces.Dict({f"part {i}": part for i, part in enumerate(parts)})


class RandomEnv:
    """Random observations, masks, rewards and ends of episodes; it fails on an action that is not allowed."""

    num_envs = NUM_ENVS

    def __init__(self, observation: gymnasium.Space, action: gymnasium.Space, *, is_masked: bool, seed: int) -> None:
        self.rng, self.is_masked = np.random.default_rng(seed), is_masked
        self.inner, self.single_action_space = observation, action
        self.inner.seed(seed)
        self.single_observation_space = observation
        if is_masked:
            width = mask_width(action)
            parts = dict(observation.spaces) if isinstance(observation, spaces.Dict) else {"observation": observation}
            mask_space = spaces.Box(np.zeros(width, bool), np.ones(width, bool), dtype=bool)
            self.single_observation_space = SeenDict({**parts, ACTION_MASK: mask_space}, observation)
        self.mask = np.ones((NUM_ENVS, mask_width(action)), bool)

    def _observe(self) -> Tree:
        obs = map_tree(lambda *leaves: np.stack(leaves), *(self.inner.sample() for _ in range(NUM_ENVS)))
        if not self.is_masked:
            return obs
        choices = choices_of(self.single_action_space)
        self.mask = self.rng.random(self.mask.shape) < 0.4
        for first, n in zip(np.cumsum([0, *choices[:-1]]), choices, strict=True):
            self.mask[np.arange(NUM_ENVS), first + self.rng.integers(n, size=NUM_ENVS)] = True
        return {**(obs if isinstance(obs, dict) else {"observation": obs}), ACTION_MASK: self.mask.copy()}

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        return self._observe(), {}

    def step(self, actions: np.ndarray) -> Any:
        assert all(action in self.single_action_space for action in actions)
        assert allowed(self.single_action_space, actions, self.mask).all()
        ended, reward = self.rng.random((2, NUM_ENVS)) < 0.12, self.rng.normal(size=NUM_ENVS)
        return self._observe(), reward, ended[0], ended[1] & ~ended[0], {}


def allowed(space: gymnasium.Space, actions: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Whether masks [B, M] allow every choice of the environment's actions [B, *]; [B, k]."""
    if isinstance(space, ProductSpace):
        numbers, at = [], 0
        for part in space.parts:
            size = len(choices_of(part)) or part.shape[0]
            numbers += [actions[:, at : at + size]] if choices_of(part) else []
            at += size
        chosen = np.concatenate(numbers, axis=1).astype(int)
    elif isinstance(space, spaces.Box):
        return np.ones((len(actions), 0), bool)
    else:
        chosen = actions.reshape(len(actions), -1).astype(int) - getattr(space, "start", 0)
    firsts = np.cumsum([0, *choices_of(space)[:-1]])
    return np.take_along_axis(mask, firsts + chosen, axis=1)


def environment(case: Case) -> RandomEnv:
    rng = np.random.default_rng(case.seed)
    return RandomEnv(random_space(rng), ACTIONS[case.action], is_masked=case.is_masked, seed=case.seed)


def settings(case: Case, **other: Any) -> dict[str, Any]:
    common = {"rollout_length": NUM_STEPS, "hidden_sizes": [8], "memory": case.memory, "learning_rate": 1e-2}
    return {**common, "memory_size": 5, "normalize_observation": case.seed % 2 == 0, **other}


def make_ppo(case: Case, env: RandomEnv) -> ppo.PPO:
    spec = EnvSpec(id="Random-v0", observation_space=env.single_observation_space, action_space=env.single_action_space)
    config = PPOConfig(**settings(case, num_epochs=2, num_minibatches=2, entropy_coef=0.01, shared_network=case.seed % 3 == 0))
    return ppo.PPO(config, spec, NUM_ENVS, torch.device("cpu"))


def collector_of(env: RandomEnv, algo: Any) -> Collector:
    collector = Collector(env, algo, seed=0)
    collector.reset()
    return collector


def collected(case: Case) -> tuple[Network, Rollout]:
    """A network with distinct outputs, not a nearly uniform policy, and its rollout from the middle of episodes."""
    env = environment(case)
    algo = make_ppo(case, env)
    with torch.no_grad():
        for p in algo.net.parameters():
            p += 0.3 * torch.randn_like(p)
    collector = collector_of(env, algo)
    first, _ = collector.collect(3)
    algo.net.encoder.absorb(rows_of(first.obs))
    return algo.net, collector.collect(NUM_STEPS)[0]


def stepped(net: Network, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Distribution parameters [T, B, D'] and values [T, B] of acting step by step, differentiable."""
    carry, found = rollout.carry, []
    for t in range(NUM_STEPS):
        *outputs, carry = net.step(pick(rollout.obs, t), carry, rollout.is_first[t])
        found.append(outputs)
    params, value = zip(*found, strict=True)
    return torch.stack(params), torch.stack(value)


def sequence_of(net: Network, rollout: Rollout) -> tuple[Any, ...]:
    """The rollout as the network learns from it."""
    inputs = net.inputs_of(rollout.obs)
    return (inputs, rollout.carry, rollout.is_first) if net.has_memory else (inputs,)


@every_case
def test_unrolling_equals_acting_step_by_step_and_what_was_recorded(case):
    net, rollout = collected(case)
    with torch.no_grad():
        params, value = stepped(net, rollout)
        unrolled = net.policy_params(*sequence_of(net, rollout)), net.value(*sequence_of(net, rollout))
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(unrolled[0], rows_of(params), **close)
    torch.testing.assert_close(unrolled[1], value.flatten(), **close)
    assert ("params" in rollout.extras) == net.records
    if net.records:
        torch.testing.assert_close(rollout.extras["params"], params, **close)
        torch.testing.assert_close(rollout.extras["value"], value, **close)


@every_case
def test_gradients_equal_autograds_of_torch_distributions_step_by_step(case):
    net, rollout = collected(case)
    action, num_rows = rows_of(rollout.action), NUM_STEPS * NUM_ENVS
    d_log_prob, d_value, d_entropy = torch.randn(num_rows) / num_rows, torch.randn(num_rows) / num_rows, -0.1 / num_rows
    mask = rollout.obs[ACTION_MASK].flatten(0, 1) if case.is_masked else torch.ones(num_rows, net.head.mask_width, dtype=torch.bool)

    params, value = (x.flatten(0, 1) for x in stepped(net, rollout))
    loss = (d_value * value).sum()
    for row, a, weight in zip(references(net.head, params, mask), action, d_log_prob, strict=True):
        loss = loss + weight * row.log_prob(a) + d_entropy * row.entropy()
    parameters = list(net.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    expected = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    for p in parameters:
        p.grad = torch.zeros_like(p)
    with torch.no_grad():
        params, _, backward = net.forward_vjp(*sequence_of(net, rollout))
        backward(net.head.evaluate(params, action).pullback(d_log_prob, d_entropy), d_value)
    for p, theirs in zip(parameters, expected, strict=True):
        assert (p.grad - theirs).abs().max() <= 2e-6 + 1e-4 * theirs.abs().max()  # the tanh of kernels is off by up to 3e-7


@every_case
def test_ppo_learns_from_two_rollouts_and_the_first_ratios_are_one(case, monkeypatch):
    env = environment(case)
    algo, seen = make_ppo(case, env), []
    original: Callable[..., Any] = ppo.gradient_steps
    monkeypatch.setattr(ppo, "gradient_steps", lambda *a, **kw: seen.append(original(*a, **kw)) or seen[-1])
    collector, progress = collector_of(env, algo), Progress(total_env_steps=1000)
    for _ in range(2):  # outputs are recorded from the second on, where observations are normalised
        before = {name: p.clone() for name, p in algo.net.named_parameters()}
        rollout, _ = collector.collect(NUM_STEPS)
        progress.advance(rollout)
        metrics = algo.update(rollout, progress)
        assert all(np.isfinite(float(x)) for x in metrics.values())
        after = dict(algo.net.named_parameters())
        assert all(p.isfinite().all() for p in after.values())
        assert any(not torch.equal(p, before[name]) for name, p in after.items())
        first = seen[0].log_ratio[: NUM_STEPS * NUM_ENVS // 2]
        assert first.abs().max() <= 1e-5
        assert len(seen) == 2
        assert seen[1].log_ratio.abs().max() > 1e-4  # by then the policy is another
        seen.clear()


@every_case
def test_the_policy_of_evaluations_takes_allowed_actions_too(case):
    env = environment(case)
    algo = make_ppo(case, env)
    obs, carry, is_first = env.reset()[0], algo.initial_carry(NUM_ENVS), torch.ones(NUM_ENVS, dtype=torch.bool)
    for _ in range(5):
        out = algo.act(map_tree(torch.from_numpy, obs), carry, is_first, mode="eval")
        carry, is_first = out.carry, torch.zeros(NUM_ENVS, dtype=torch.bool)
        obs, *_ = env.step(Collector(env, algo, seed=0)._to_env(out.action))


@pytest.mark.parametrize("algorithm", ["a2c", "reinforce"])
@every_fifth_case
def test_a2c_and_reinforce_learn_from_a_rollout(case, algorithm):
    env = environment(case)
    spec = EnvSpec(id="Random-v0", observation_space=env.single_observation_space, action_space=env.single_action_space)
    make, config = {"a2c": (a2c.A2C, A2CConfig), "reinforce": (reinforce.Reinforce, ReinforceConfig)}[algorithm]
    other = {"episodes_per_update": 1} if algorithm == "reinforce" else {}
    algo = make(config(**settings(case, **other)), spec, NUM_ENVS, torch.device("cpu"))
    before = [p.clone() for p in algo.net.parameters()]
    collector, progress = collector_of(env, algo), Progress(total_env_steps=1000)
    for _ in range(2):
        rollout, _ = collector.collect(NUM_STEPS)
        progress.advance(rollout)
        metrics = algo.update(rollout, progress)
        assert all(np.isfinite(float(x)) for x in metrics.values())
    after = list(algo.net.parameters())
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))
