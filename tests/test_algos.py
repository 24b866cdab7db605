"""The algorithms on small synthetic rollouts, against plain implementations with torch.distributions, torch.optim and loops."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from launch import POLICY_GRADIENT
from torch import Tensor, nn

from rlx import ops
from rlx.config.algo_registry import ALGORITHMS
from rlx.config.algos.a2c_config import A2CConfig
from rlx.config.algos.policy_gradient_config import Activation, Advantage
from rlx.config.algos.ppo_config import Objective, PPOConfig
from rlx.config.algos.reinforce_config import ReinforceConfig
from rlx.errors import NonFiniteError
from rlx.rng import GlobalRNG
from rlx.serialize import plain
from rlx.types import EnvSpec, Progress, Rollout

CPU = torch.device("cpu")
OBSERVATION = spaces.Box(-10.0, 10.0, (3,))
DISCRETE = EnvSpec(id="Discrete-v0", observation_space=OBSERVATION, action_space=spaces.Discrete(2))
CONTINUOUS = EnvSpec(id="Continuous-v0", observation_space=OBSERVATION, action_space=spaces.Box(-1.0, 1.0, (2,)))
SPECS = pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])


def build(config: Any, spec: EnvSpec = DISCRETE, num_envs: int = 4, *, compiles: bool = True) -> Any:
    """An algorithm; without `compiles`, all of its steps go through Python, where a test can watch them."""
    algo = ALGORITHMS[config.name].load()(config, spec, num_envs, CPU)
    algo.net.compiles = getattr(algo.net, "compiles", False) and compiles
    return algo


def make_rollout(
    spec: EnvSpec = DISCRETE, length: int = 12, num_envs: int = 4, *, end_prob: float = 0.2, reward: Tensor | None = None
) -> Rollout:
    """Random steps, with episodes that end both ways."""
    terminated, truncated = torch.rand(2, length, num_envs) < end_prob / 2
    is_last = terminated | truncated
    final_t, final_b = is_last.nonzero(as_tuple=True)
    discrete = isinstance(spec.action_space, spaces.Discrete)
    return Rollout(
        all_obs=torch.randn(length + 1, num_envs, 3),
        action=torch.randint(2, (length, num_envs)) if discrete else torch.randn(length, num_envs, 2),
        reward=torch.randn(length, num_envs) if reward is None else reward,
        terminated=terminated,
        truncated=truncated,
        is_first=torch.cat((torch.ones(1, num_envs, dtype=torch.bool), is_last[:-1])),
        final_t=final_t,
        final_b=final_b,
        final_obs=torch.randn(len(final_t), 3),
        carry=(),
    )


def follow(before: Rollout | None, rollout: Rollout) -> Rollout:
    """A rollout whose first step begins episodes only where those of the rollout before had ended."""
    if before is not None:
        rollout.is_first[0] = before.is_last[-1]
    return rollout


def update(algo: Any, rollout: Rollout, progress: Progress | None = None) -> dict[str, float]:
    progress = progress or Progress(total_env_steps=1_000_000)
    progress.advance(rollout)
    return {name: float(value) for name, value in algo.update(rollout, progress).items()}


class Reference:
    """The same networks and optimiser out of torch's own modules."""

    def __init__(self, algo: Any, *, max_grad_norm: float) -> None:
        self.policy, self.critic = (self._sequential(net) for net in (algo.net.policy, algo.net.critic))
        self.log_std = copy.deepcopy(getattr(algo.net.head, "log_std", None))
        self.max_grad_norm = max_grad_norm
        self.adam = torch.optim.Adam(list(self.parameters()), eps=1e-5)

    @staticmethod
    def _sequential(mlp: Any) -> nn.Sequential:
        modules: list[nn.Module] = []
        for layer in mlp.layers:
            modules += [copy.deepcopy(layer), nn.Tanh()]
        return nn.Sequential(*modules[:-1])

    def parameters(self) -> Iterator[Tensor]:
        yield from self.policy.parameters()
        yield from self.critic.parameters()
        if self.log_std is not None:
            yield self.log_std

    def distribution(self, obs: Tensor) -> torch.distributions.Distribution:
        if self.log_std is None:
            return torch.distributions.Categorical(logits=self.policy(obs))
        return torch.distributions.Independent(torch.distributions.Normal(self.policy(obs), self.log_std.exp()), 1)

    @torch.no_grad()
    def frozen_distribution(self, obs: Tensor) -> torch.distributions.Distribution:
        return copy.deepcopy(self).distribution(obs)

    def value(self, obs: Tensor) -> Tensor:
        return self.critic(obs).squeeze(-1)

    @torch.no_grad()
    def advantage(self, rollout: Rollout, reward: Tensor, discount: float, lam: float) -> Tensor:
        """GAE step by step and env by env."""
        value, next_value = self.value(rollout.obs), self.value(rollout.next_obs)
        out = torch.zeros_like(value)
        for b in range(value.shape[1]):
            following = 0.0
            for t in reversed(range(len(value))):
                beyond = 0.0 if rollout.terminated[t, b] else next_value[t, b]
                if rollout.terminated[t, b] or rollout.truncated[t, b]:
                    following = 0.0
                following = reward[t, b] + discount * beyond - value[t, b] + discount * lam * following
                out[t, b] = following
        return out

    def step(self, loss: Tensor, learning_rate: float) -> None:
        self.adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), self.max_grad_norm)
        self.adam.param_groups[0]["lr"] = learning_rate
        self.adam.step()

    def assert_equal(self, algo: Any, atol: float) -> None:
        theirs = [*algo.net.policy.parameters(), *algo.net.critic.parameters(), *algo.net.head.parameters()]
        for p, q in zip(self.parameters(), theirs, strict=True):
            torch.testing.assert_close(q, p, atol=atol, rtol=0)


def moved(algo: Any, before: dict[str, Tensor]) -> bool:
    return any(not torch.equal(v, before[k]) for k, v in algo.net.named_parameters())


def weights(algo: Any) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in algo.net.named_parameters()}


# Every algorithm


@pytest.mark.parametrize("name", POLICY_GRADIENT)
def test_act_does_not_change_the_algorithm(name, same):
    algo = build(ALGORITHMS[name].config(normalize_observation=True))
    before = copy.deepcopy(algo.state_dict())
    for mode in ("train", "eval"):
        algo.act(torch.randn(4, 3), algo.initial_carry(4), torch.zeros(4, dtype=torch.bool), mode=mode)
    assert same(algo.state_dict(), before)


@SPECS
@pytest.mark.parametrize("name", POLICY_GRADIENT)
def test_eval_mode_is_deterministic_and_train_mode_is_not(name, spec, same):
    algo, obs, is_first = build(ALGORITHMS[name].config(), spec), torch.randn(64, 3), torch.zeros(64, dtype=torch.bool)
    rng = GlobalRNG().state_dict()
    first, again = (algo.act(obs, (), is_first, mode="eval").action for _ in range(2))
    assert torch.equal(first, again)
    assert same(GlobalRNG().state_dict(), rng)
    first, again = (algo.act(obs, (), is_first, mode="train").action for _ in range(2))
    assert not torch.equal(first, again)


@SPECS
@pytest.mark.parametrize("name", POLICY_GRADIENT)
def test_state_continues_identically_through_a_file(name, spec, same):
    config = ALGORITHMS[name].config(normalize_observation=True, **({"normalize_reward": True} if name == "ppo" else {}))
    algo, rollouts = build(config, spec), [make_rollout(spec) for _ in range(6)]
    for rollout in rollouts[:3]:
        update(algo, rollout)
    file = io.BytesIO()
    torch.save(plain({"algo": algo.state_dict(), "rng": GlobalRNG().state_dict()}), file)
    metrics = [update(algo, rollout) for rollout in rollouts[3:]]
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = build(config, spec)
    resumed.load_state_dict(state["algo"])
    GlobalRNG().load_state_dict(state["rng"])
    assert same([update(resumed, rollout) for rollout in rollouts[3:]], metrics)
    assert same(resumed.state_dict(), algo.state_dict())


@pytest.mark.parametrize("better", [0, 1])
@pytest.mark.parametrize("name", POLICY_GRADIENT)
def test_policy_goes_to_the_better_arm_of_a_bandit(name, better):
    settings = {"episodes_per_update": 1} if name == "reinforce" else {}
    algo = build(ALGORITHMS[name].config(learning_rate=0.01, **settings), num_envs=16)
    obs, everywhere = torch.ones(5, 16, 3), torch.ones(4, 16, dtype=torch.bool)
    final_t, final_b = everywhere.nonzero(as_tuple=True)
    for _ in range(40):
        action = torch.stack([algo.act(o, (), everywhere[0], mode="train").action for o in obs[:-1]])
        rollout = Rollout(
            all_obs=obs,
            action=action,
            reward=(action == better).float(),
            terminated=everywhere,
            truncated=~everywhere,
            is_first=everywhere,
            final_t=final_t,
            final_b=final_b,
            final_obs=torch.ones(64, 3),
            carry=(),
        )
        update(algo, rollout)
    sampled = algo.act(torch.ones(1000, 3), (), torch.zeros(1000, dtype=torch.bool), mode="train").action
    assert (sampled == better).float().mean() > 0.9


NON_FINITE = {
    "reinforce": ReinforceConfig(episodes_per_update=1),
    "reinforce_plain": ReinforceConfig(episodes_per_update=1, advantage=Advantage.to_go, normalize_advantage=False),
    "a2c": A2CConfig(),
    "ppo": PPOConfig(),
    "ppo_without_value": PPOConfig(value_coef=0.0),
    "ppo_kl": PPOConfig(objective=Objective.adaptive_kl, value_clip=None),
}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("config", NON_FINITE.values(), ids=NON_FINITE)
def test_a_reward_that_is_not_finite_stops_training_before_any_parameter_changes(config, bad):
    algo, rollout = build(config), make_rollout(end_prob=0.0)
    rollout.terminated[-1] = True  # every step counts, for every algorithm
    rollout.final_t, rollout.final_b = rollout.terminated.nonzero(as_tuple=True)
    rollout.final_obs = torch.zeros(4, 3)
    rollout.reward[3, 1] = bad
    before = weights(algo)
    with pytest.raises(NonFiniteError):
        update(algo, rollout)
    assert not moved(algo, before)


@pytest.mark.parametrize("name", POLICY_GRADIENT)
def test_learning_rate_anneals_from_its_start_to_nothing(name):
    settings = {"episodes_per_update": 1} if name == "reinforce" else {}
    algo = build(ALGORITHMS[name].config(learning_rate=0.01, anneal_learning_rate=True, **settings))
    progress = Progress(total_env_steps=4 * 48)
    rates = [update(algo, make_rollout(end_prob=0.5), progress)["update/learning_rate"] for _ in range(4)]
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


@pytest.mark.parametrize("name", POLICY_GRADIENT)
def test_the_normaliser_absorbs_the_first_rollout_before_learning_and_later_ones_after(name, monkeypatch):
    settings = {"episodes_per_update": 1} if name == "reinforce" else {}
    algo = build(ALGORITHMS[name].config(normalize_observation=True, **settings), compiles=False)
    calls: list[str] = []
    for owner, call in [(algo.optimizer, "step"), (algo.net.encoder.normalizer, "update")]:
        original = getattr(owner, call)
        monkeypatch.setattr(owner, call, lambda *a, original=original, call=call: (calls.append(call), original(*a))[1])
    orders, counts = [], []
    for _ in range(3):
        calls.clear()
        update(algo, make_rollout(end_prob=0.5))
        orders.append(list(dict.fromkeys(calls)))
        counts.append(algo.net.encoder.normalizer.moments.count.item())
        assert calls.count("update") == 1
    assert orders == [["update", "step"], ["step", "update"], ["step", "update"]]
    assert counts == [48, 96, 144]  # every step once


@pytest.mark.parametrize("name", POLICY_GRADIENT)
def test_what_the_first_update_has_learnt_is_what_acts_next(name, monkeypatch):
    settings = {"episodes_per_update": 1} if name == "reinforce" else {}
    algo = build(ALGORITHMS[name].config(normalize_observation=True, **settings), CONTINUOUS, compiles=False)
    rollout = make_rollout(CONTINUOUS, end_prob=0.5)
    rollout.all_obs = 5.0 * rollout.all_obs + torch.tensor([0.0, 100.0, -3.0])  # raw observations would be far from their standard scores
    obs, original, learnt = rollout.obs.flatten(0, 1), algo.optimizer.step, []

    def step(*args):
        grad_norm = original(*args)
        learnt.append(
            torch.cat([algo.net.policy_params(algo.net.preprocess(obs)), algo.net.value(algo.net.preprocess(obs))[:, None]], dim=1)
        )
        return grad_norm

    monkeypatch.setattr(algo.optimizer, "step", step)
    update(algo, rollout)
    with torch.no_grad():
        features = algo.net.preprocess(obs)
        now = torch.cat([algo.net.policy_params(features), algo.net.value(features)[:, None]], dim=1)
    assert torch.equal(now, learnt[-1])
    assert features.abs().max() < 6.0


def test_reinforce_absorbs_every_step_once_however_long_episodes_stay_open():
    config = ReinforceConfig(episodes_per_update=6, normalize_observation=True)
    algo, steps = build(config), 0
    for i in range(12):
        if i == 7:
            resumed = build(config)
            resumed.load_state_dict(copy.deepcopy(algo.state_dict()))
            algo = resumed
        rollout = make_rollout(length=5, end_prob=0.1)
        metrics, steps = update(algo, rollout), steps + 20
        absorbed = algo.net.encoder.normalizer.moments.count.item()
        assert absorbed == (steps if metrics["update/num_gradient_steps"] else steps - 4 * algo.unabsorbed)
        assert absorbed >= 20
    assert absorbed > 100


# PPO

PPO_VARIANTS = {
    "clip": {},
    "unbounded_value": {"value_clip": None},
    "plain_advantage": {"normalize_advantage": False},
    "adaptive_kl": {"objective": Objective.adaptive_kl, "kl_coef": 0.7},
    "spo": {"objective": Objective.spo},
    "recompute_advantage": {"recompute_advantage": True},
    "scaled_reward": {"normalize_reward": True, "reward_clip": 0.5},
    "entropy": {"entropy_coef": 0.3},
}


@SPECS
@pytest.mark.parametrize("variant", PPO_VARIANTS)
def test_ppo_update_equals_a_plain_implementation(variant, spec):
    config = PPOConfig(
        num_epochs=4, num_minibatches=1, learning_rate=0.02, discount=0.9, gae_lambda=0.8, max_grad_norm=0.3, **PPO_VARIANTS[variant]
    )
    algo, rollout = build(config, spec), make_rollout(spec)
    reference = Reference(algo, max_grad_norm=0.3)
    metrics = update(algo, rollout)

    reward = rollout.reward
    if config.normalize_reward:
        running, seen = torch.zeros(4), []
        for t in range(12):
            running = running * 0.9 + reward[t]
            seen.append(running)
            running = torch.where(rollout.is_last[t], 0.0, running)
        reward = (reward / torch.stack(seen).std(correction=0)).clamp(-0.5, 0.5)
    old = reference.frozen_distribution(rollout.obs)
    old_log_prob = old.log_prob(rollout.action).detach()
    losses: list[tuple[float, float, float]] = []
    for epoch in range(4):
        if epoch == 0 or config.recompute_advantage:
            old_value = reference.value(rollout.obs).detach()
            raw_advantage = reference.advantage(rollout, reward, 0.9, 0.8)
            target = old_value + raw_advantage
        advantage = raw_advantage
        if config.normalize_advantage:
            advantage = (advantage - advantage.mean()) / advantage.std(correction=0)
        new, value = reference.distribution(rollout.obs), reference.value(rollout.obs)
        ratio = torch.exp(new.log_prob(rollout.action) - old_log_prob)
        if config.objective is Objective.clip:
            policy_loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
        elif config.objective is Objective.spo:
            policy_loss = -(ratio * advantage - advantage.abs() / (2 * 0.2) * (ratio - 1) ** 2).mean()
        else:
            policy_loss = -(ratio * advantage).mean() + 0.7 * torch.distributions.kl_divergence(old, new).mean()
        errors = (value - target) ** 2
        if config.value_clip is not None:
            errors = torch.maximum(errors, (old_value + (value - old_value).clamp(-0.2, 0.2) - target) ** 2)
        value_loss, entropy = 0.5 * errors.mean(), new.entropy().mean()
        losses.append((policy_loss.item(), value_loss.item(), entropy.item()))
        reference.step(policy_loss + 0.5 * value_loss - config.entropy_coef * entropy, 0.02)

    reference.assert_equal(algo, atol=1e-4)
    expected = np.mean(losses, axis=0)
    assert [metrics["loss/policy"], metrics["loss/value"], metrics["update/entropy"]] == pytest.approx(expected, abs=1e-4)
    if variant != "adaptive_kl":
        assert metrics["update/clip_fraction"] == pytest.approx(((ratio - 1).abs() > 0.2).float().mean().item(), abs=1e-6)
        assert metrics["update/clip_fraction"] > 0 or variant == "spo"  # the clip was at work, or the penalty held ratios back
        assert metrics["update/approx_kl"] == pytest.approx((ratio - 1 - ratio.log()).mean().item(), abs=1e-4)


@SPECS
@pytest.mark.parametrize("first", [True, False])
def test_ppo_first_minibatch_has_a_ratio_of_one(spec, first):
    algo = build(PPOConfig(num_epochs=1, num_minibatches=1, normalize_observation=True, normalize_advantage=False), spec)
    rollout, net = make_rollout(spec), copy.deepcopy(algo.net)
    net.encoder.normalizer.update(rollout.obs.flatten(0, 1) if first else torch.randn(100, 3) * 2 + 1)
    if not first:
        algo.net.load_state_dict(net.state_dict())
    with torch.no_grad():
        value, next_value = (net.value(net.preprocess(o.flatten(0, 1))).view(12, 4) for o in (rollout.obs, rollout.next_obs))
    advantage = ops.gae(rollout.reward, value, next_value, rollout.terminated, rollout.is_last, discount=0.99, lam=0.95)
    metrics = update(algo, rollout)
    assert abs(metrics["update/approx_kl"]) < 1e-9
    assert metrics["update/clip_fraction"] == 0
    assert metrics["loss/policy"] == pytest.approx(-advantage.mean().item(), abs=1e-5)


def test_ppo_takes_every_step_once_an_epoch(monkeypatch):
    algo, rollout = build(PPOConfig(num_epochs=3, num_minibatches=4), CONTINUOUS, compiles=False), make_rollout(CONTINUOUS)
    seen: list[Tensor] = []
    original = algo.net.head.evaluate
    monkeypatch.setattr(algo.net.head, "evaluate", lambda p, action: (seen.append(action), original(p, action))[1])
    metrics = update(algo, rollout)
    assert metrics["update/num_gradient_steps"] == 12
    assert [len(batch) for batch in seen] == [12] * 12
    everything = rollout.action.flatten(0, 1)[:, 0].sort().values
    for epoch in range(3):
        assert torch.equal(torch.cat(seen[4 * epoch : 4 * epoch + 4])[:, 0].sort().values, everything)
    assert not torch.equal(seen[0], seen[4])  # in another order


def test_ppo_minibatches_keep_the_columns_of_a_step_together():
    algo, rollout = build(PPOConfig(num_epochs=1, num_minibatches=4, learning_rate=1e-12), CONTINUOUS), make_rollout(CONTINUOUS)
    metrics = update(algo, rollout)  # the policy stands still: any ratio other than one is a mix-up of rows
    assert abs(metrics["update/approx_kl"]) < 1e-6


@pytest.mark.parametrize("shared", [False, True])
def test_ppo_fits_one_batch(shared):
    config = PPOConfig(learning_rate=0.003, num_epochs=10, activation=Activation.relu, shared_network=shared, value_clip=None)
    algo, rollout = build(config, num_envs=8), make_rollout(length=32, num_envs=8)
    best = (rollout.obs[..., 0] > 0).long()
    rollout.reward = torch.where(rollout.action == best, 1.0, -1.0)
    rollout.terminated = torch.ones_like(rollout.terminated)
    rollout.final_t, rollout.final_b = rollout.terminated.nonzero(as_tuple=True)
    rollout.final_obs = torch.zeros(256, 3)
    for _ in range(25):
        metrics = update(algo, rollout)
    chosen = algo.act(rollout.obs.flatten(0, 1), (), torch.zeros(256, dtype=torch.bool), mode="eval").action
    assert (chosen == best.flatten()).float().mean() > 0.95
    assert metrics["update/entropy"] < 0.4


def test_ppo_stops_its_passes_when_the_divergence_exceeds_target_kl():
    rollout, config = make_rollout(), {"num_epochs": 10, "num_minibatches": 1, "learning_rate": 0.02}
    assert update(build(PPOConfig(**config)), rollout)["update/num_epochs"] == 10
    # the first pass still compares the policy with itself
    stopped = update(build(PPOConfig(**config, target_kl=1e-6)), rollout)
    assert (stopped["update/num_epochs"], stopped["update/num_gradient_steps"]) == (2, 2)
    assert update(build(PPOConfig(**config, target_kl=100.0)), rollout)["update/num_epochs"] == 10


def test_ppo_advantages_are_recomputed_only_on_request():
    rollout, first = make_rollout(), build(PPOConfig())
    results = []
    for recompute in (False, True):
        algo = build(PPOConfig(recompute_advantage=recompute, num_epochs=3, num_minibatches=1, learning_rate=0.02))
        algo.net.load_state_dict(first.net.state_dict())
        calls: list[int] = []
        original = algo._advantage
        algo._advantage = lambda *a, original=original, calls=calls: (calls.append(1), original(*a))[1]
        update(algo, rollout)
        results.append(weights(algo))
        assert len(calls) == (3 if recompute else 1)
    assert not torch.equal(results[0]["critic.layers.0.weight"], results[1]["critic.layers.0.weight"])


@SPECS
def test_ppo_adaptive_kl_doubles_halves_or_keeps_its_weight(spec):
    rollout, first = make_rollout(spec), build(PPOConfig(), spec)

    def run(kl_target: float) -> tuple[float, float]:
        config = PPOConfig(objective=Objective.adaptive_kl, kl_coef=0.8, kl_target=kl_target, num_minibatches=1, learning_rate=0.01)
        algo = build(config, spec)
        algo.net.load_state_dict(first.net.state_dict())
        before = Reference(algo, max_grad_norm=1.0).distribution(rollout.obs)
        metrics = update(algo, rollout)
        after = Reference(algo, max_grad_norm=1.0).distribution(rollout.obs)
        assert metrics["update/kl_coef"] == algo.kl_coef
        return algo.kl_coef, torch.distributions.kl_divergence(before, after).mean().item()

    coef, kl = run(kl_target=1e3)
    assert coef == 0.4
    assert kl > 1e-5
    assert run(kl_target=kl)[0] == 0.8
    assert run(kl_target=kl * 1.45)[0] == 0.8
    assert run(kl_target=kl * 1.55)[0] == 0.4
    assert run(kl_target=kl / 1.45)[0] == 0.8
    assert run(kl_target=kl / 1.55)[0] == 1.6


def test_ppo_remembers_its_adapted_weight():
    config = PPOConfig(objective=Objective.adaptive_kl, kl_coef=0.8, kl_target=1e3)
    algo, again = build(config), build(config)
    update(algo, make_rollout())
    again.load_state_dict(algo.state_dict())
    assert again.kl_coef == 0.4


# A2C


@SPECS
@pytest.mark.parametrize("normalize_advantage", [False, True])
@pytest.mark.parametrize("gae_lambda", [1.0, 0.5])
def test_a2c_update_equals_a_plain_implementation(spec, gae_lambda, normalize_advantage):
    config = A2CConfig(
        discount=0.9,
        gae_lambda=gae_lambda,
        normalize_advantage=normalize_advantage,
        learning_rate=0.02,
        entropy_coef=0.1,
        max_grad_norm=0.3,
    )
    algo = build(config, spec)
    reference = Reference(algo, max_grad_norm=0.3)
    for _ in range(3):
        rollout = make_rollout(spec)
        metrics = update(algo, rollout)
        distribution, value = reference.distribution(rollout.obs), reference.value(rollout.obs)
        raw_advantage = reference.advantage(rollout, rollout.reward, 0.9, gae_lambda)
        value_loss = 0.5 * ((value - (value.detach() + raw_advantage)) ** 2).mean()
        advantage = raw_advantage
        if normalize_advantage:
            advantage = (advantage - advantage.mean()) / advantage.std(correction=0)
        policy_loss = -(distribution.log_prob(rollout.action) * advantage).mean()
        assert metrics["loss/policy"] == pytest.approx(policy_loss.item(), abs=1e-4)
        assert metrics["loss/value"] == pytest.approx(value_loss.item(), abs=1e-4)
        reference.step(policy_loss + 0.5 * value_loss - 0.1 * distribution.entropy().mean(), 0.02)
        reference.assert_equal(algo, atol=1e-4)


def test_a2c_advantage_equals_gae_on_the_same_values():
    algo, rollout = build(A2CConfig(discount=0.9)), make_rollout()
    with torch.no_grad():
        value, next_value = (
            algo.net.value(rollout.obs.flatten(0, 1)).view(12, 4),
            algo.net.value(rollout.next_obs.flatten(0, 1)).view(12, 4),
        )
        log_prob = algo.net.head.log_prob(algo.net.policy_params(rollout.obs.flatten(0, 1)), rollout.action.flatten())
    advantage = ops.gae(rollout.reward, value, next_value, rollout.terminated, rollout.is_last, discount=0.9, lam=1.0)
    metrics = update(algo, rollout)
    assert metrics["loss/policy"] == pytest.approx(-(log_prob * advantage.flatten()).mean().item(), abs=1e-5)
    assert metrics["loss/value"] == pytest.approx(0.5 * advantage.square().mean().item(), abs=1e-5)


# REINFORCE


class NaiveReinforce:
    """Keeps whole episodes in lists, one step after the other."""

    def __init__(self, algo: Any, num_envs: int, config: ReinforceConfig) -> None:
        self.config, self.reference = config, Reference(algo, max_grad_norm=config.max_grad_norm)
        self.open: list[list[tuple[Tensor, Tensor, float]]] = [[] for _ in range(num_envs)]
        self.complete: list[list[tuple[Tensor, Tensor, float]]] = []

    def update(self, rollout: Rollout) -> list[float] | None:
        """The actions (unique numbers) that a gradient step learnt from, or None without a step."""
        with torch.no_grad():
            next_value = self.reference.value(rollout.next_obs)
        for t in range(len(rollout.reward)):
            for b, steps in enumerate(self.open):
                steps.append((rollout.obs[t, b], rollout.action[t, b], rollout.reward[t, b].item()))
                if rollout.is_last[t, b]:
                    bootstraps = self.config.has_critic and not rollout.terminated[t, b]
                    return_, episode = next_value[t, b].item() if bootstraps else 0.0, []
                    for obs, action, reward in reversed(steps):
                        return_ = reward + self.config.discount * return_
                        episode.append((obs, action, return_))
                    self.complete.append(episode)
                    steps.clear()
        if len(self.complete) < self.config.episodes_per_update:
            return None
        learnt = [step for episode in self.complete for step in episode]
        self.complete = []
        obs, action = torch.stack([s[0] for s in learnt]), torch.stack([s[1] for s in learnt])
        return_, value = torch.tensor([s[2] for s in learnt]), self.reference.value(obs)
        with_value = self.config.has_critic
        advantage = return_ - value.detach() if with_value else return_
        if self.config.normalize_advantage:
            advantage = (advantage - advantage.mean()) / advantage.std(correction=0)
        loss = -(self.reference.distribution(obs).log_prob(action) * advantage).mean()
        if with_value:
            loss = loss + 0.5 * 0.5 * ((value - return_) ** 2).mean()
        self.reference.step(loss, self.config.learning_rate)
        return sorted(action[:, 0].tolist())


@pytest.mark.parametrize("normalize_advantage", [False, True])
@pytest.mark.parametrize("advantage", [Advantage.to_go, Advantage.baseline])
def test_reinforce_equals_a_plain_implementation_episode_by_episode(advantage, normalize_advantage, monkeypatch):
    config = ReinforceConfig(
        episodes_per_update=5,
        advantage=advantage,
        normalize_advantage=normalize_advantage,
        learning_rate=0.01,
        discount=0.9,
        max_grad_norm=0.3,
    )
    algo = build(config, CONTINUOUS, compiles=False)
    naive, learnt = NaiveReinforce(algo, 4, config), []
    original = algo.net.head.evaluate
    monkeypatch.setattr(algo.net.head, "evaluate", lambda p, action: (learnt.append(action), original(p, action))[1])
    steps, rollout = [], None
    for i in range(20):
        rollout = follow(rollout, make_rollout(CONTINUOUS, length=5 + i % 3, end_prob=0.15))
        learnt.clear()
        metrics = update(algo, rollout)
        expected = naive.update(rollout)
        steps.append(metrics["update/num_gradient_steps"])
        assert steps[-1] == (expected is not None)
        assert sorted(a[0].item() for batch in learnt for a in batch) == (expected or [])
        naive.reference.assert_equal(algo, atol=1e-4)
    assert 3 < sum(steps) < 20  # both kinds of update happened


def test_reinforce_learns_from_every_step_exactly_once_and_only_when_its_episode_is_complete(monkeypatch):
    algo = build(ReinforceConfig(episodes_per_update=1), CONTINUOUS, compiles=False)
    learnt: list[float] = []
    original = algo.net.head.evaluate
    monkeypatch.setattr(algo.net.head, "evaluate", lambda p, action: (learnt.extend(action[:, 0].tolist()), original(p, action))[1])
    complete: list[float] = []
    open_steps: list[list[float]] = [[] for _ in range(4)]
    rollout = None
    for _ in range(15):
        rollout = follow(rollout, make_rollout(CONTINUOUS, length=6, end_prob=0.2))
        for t in range(6):
            for b in range(4):
                open_steps[b].append(rollout.action[t, b, 0].item())
                if rollout.is_last[t, b]:
                    complete += open_steps[b]
                    open_steps[b] = []
        update(algo, rollout)
        assert sorted(learnt) == sorted(complete)
    assert len(set(learnt)) == len(learnt) > 200


def test_reinforce_forgets_what_it_has_learnt_from():
    algo = build(ReinforceConfig(episodes_per_update=1))
    rollout = make_rollout(length=8, end_prob=0.0)
    rollout.terminated[-1] = True
    rollout.final_t, rollout.final_b = rollout.terminated.nonzero(as_tuple=True)
    rollout.final_obs = torch.zeros(4, 3)
    update(algo, rollout)
    assert all(len(x) == 0 for x in algo.pending.values())
    assert update(algo, make_rollout(length=3, end_prob=0.0))["update/num_gradient_steps"] == 0
    assert all(len(x) == 3 for x in algo.pending.values())


def one_step(*, terminated: bool, truncated: bool) -> Rollout:
    return Rollout(
        all_obs=torch.tensor([[[1.0, 0.0, 0.0]], [[9.0, 9.0, 9.0]]]),
        action=torch.tensor([[1]]),
        reward=torch.tensor([[2.0]]),
        terminated=torch.tensor([[terminated]]),
        truncated=torch.tensor([[truncated]]),
        is_first=torch.tensor([[True]]),
        final_t=torch.tensor([0]),
        final_b=torch.tensor([0]),
        final_obs=torch.tensor([[0.0, 1.0, 2.0]]),
        carry=(),
    )


@pytest.mark.parametrize(("terminated", "truncated", "bootstraps"), [(True, False, False), (False, True, True), (True, True, False)])
def test_reinforce_bootstraps_at_truncation_with_a_value_baseline(terminated, truncated, bootstraps):
    config = ReinforceConfig(episodes_per_update=1, discount=0.5, normalize_advantage=False)
    algo, rollout = build(config, num_envs=1), one_step(terminated=terminated, truncated=truncated)
    with torch.no_grad():
        value, beyond = algo.net.value(torch.cat((rollout.obs[0], rollout.final_obs))).tolist()
    assert abs(beyond) > 0.05
    return_ = 2.0 + 0.5 * beyond * bootstraps
    metrics = update(algo, rollout)
    assert metrics["loss/value"] == pytest.approx(0.5 * (value - return_) ** 2, abs=1e-5)


def test_reinforce_without_a_baseline_does_not_bootstrap_and_trains_no_critic():
    config = ReinforceConfig(episodes_per_update=1, discount=0.5, normalize_advantage=False, advantage=Advantage.to_go)
    algo, rollout = build(config, num_envs=1), one_step(terminated=False, truncated=True)
    with torch.no_grad():
        log_prob = algo.net.head.log_prob(algo.net.policy_params(rollout.obs[0]), rollout.action[0]).item()
    before = weights(algo)
    metrics = update(algo, rollout)
    assert metrics["loss/policy"] == pytest.approx(-log_prob * 2.0, abs=1e-5)
    assert "loss/value" not in metrics
    after = weights(algo)
    assert all(torch.equal(after[k], before[k]) for k in before if k.startswith("critic"))
    assert not torch.equal(after["policy.layers.0.weight"], before["policy.layers.0.weight"])
