"""Settings of PPO that published agents differ in, each against its formula."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from test_algos import CONTINUOUS, build, make_rollout, update
from torch import Tensor

from rlx import ops
from rlx.config.algos.ppo_config import PPOConfig
from rlx.config.compose import Composer
from rlx.errors import ConfigError
from rlx.types import Rollout

# Step size


def test_ppo_adapts_its_step_size_after_each_pass_to_the_divergence_of_the_pass():
    def rates(**settings: float) -> list[float]:
        config = PPOConfig(num_epochs=3, num_minibatches=1, learning_rate=0.001, adaptive_learning_rate=True, **settings)
        algo, taken = build(config, compiles=False), []
        step = algo.optimizer.step
        algo.optimizer.step = lambda loss, rate: (taken.append(rate), step(loss, rate))[1]
        metrics = update(algo, make_rollout())
        assert metrics["update/learning_rate"] == taken[-1]
        return [*taken, algo.learning_rate]

    assert rates(learning_rate_kl=1e3) == pytest.approx([0.001, 0.0015, 0.00225, 0.003375])
    assert rates(learning_rate_kl=1e3, learning_rate_max=0.002) == pytest.approx([0.001, 0.0015, 0.002, 0.002])
    # the divergence of the first pass is 0: it compares the policy with itself
    assert rates(learning_rate_kl=1e-12) == pytest.approx([0.001, 0.0015, 0.001, 0.001 / 1.5])
    assert rates(learning_rate_kl=1e-12, learning_rate_min=0.0009) == pytest.approx([0.001, 0.0015, 0.001, 0.0009])


def test_the_adaptive_step_size_is_kept_between_half_and_twice_the_divergence():
    config = PPOConfig(adaptive_learning_rate=True, learning_rate_kl=0.01)
    assert [config.adapted(3e-4, kl) for kl in (0.0051, 0.0199)] == [3e-4, 3e-4]
    assert [config.adapted(3e-4, kl) for kl in (0.0049, 0.0201)] == pytest.approx([4.5e-4, 2e-4])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"anneal_learning_rate": True}, "both set the step size"),
        ({"num_epochs": 1, "num_minibatches": 1}, "needs a second gradient step"),
        ({"learning_rate": 0.1}, r"must be from algo\.learning_rate_min=1e-06 to algo\.learning_rate_max=0\.01"),
    ],
)
def test_an_adaptive_step_size_is_refused_where_it_cannot_work(settings, message):
    with pytest.raises(ConfigError, match=message):
        PPOConfig(adaptive_learning_rate=True, **settings)


# Noise in the update


@pytest.mark.parametrize("compiles", [False, True])
def test_rpo_adds_uniform_noise_to_the_mean_anew_in_each_pass(compiles, monkeypatch):
    alpha, rollout = 0.4, make_rollout(CONTINUOUS, length=64)
    config = PPOConfig(rpo_alpha=alpha, num_epochs=2, num_minibatches=1, learning_rate=1e-12)
    algo = build(config, CONTINUOUS, compiles=compiles)
    noise: list[Tensor] = []
    perturbed = algo._perturbed
    monkeypatch.setattr(algo, "_perturbed", lambda action: (noise.append(action - (out := perturbed(action))), out)[1])
    metrics = update(algo, rollout)
    assert len(noise) == 2
    assert not torch.equal(*noise)
    for z in noise:
        assert z.abs().max() <= alpha
        assert z.std() == pytest.approx(alpha / 3**0.5, rel=0.1)
        assert abs(z.mean()) < 0.03
    mean = algo.net.policy_params(rollout.obs.flatten(0, 1))
    normal = torch.distributions.Normal(mean, 1.0), torch.distributions.Normal(mean + noise[1].flatten(0, 1), 1.0)
    old, new = (d.log_prob(rollout.action.flatten(0, 1)).sum(-1) for d in normal)
    assert metrics["update/approx_kl"] == pytest.approx(ops.approximate_kl(new - old).item(), rel=1e-3)


def test_rpo_is_refused_where_there_is_no_mean():
    with pytest.raises(
        ConfigError, match=r"algo\.rpo_alpha=0\.1 perturbs the mean of a Gaussian, and env=Discrete-v0 has actions Discrete\(2\)"
    ):
        build(PPOConfig(rpo_alpha=0.1))


# Adam


@pytest.mark.parametrize("compiles", [False, True])
def test_adams_decay_rates_are_those_that_are_set(compiles):
    config = PPOConfig(adam_beta1=0.6, adam_beta2=0.7, num_epochs=1, num_minibatches=1, max_grad_norm=math.inf)
    algo = build(config, compiles=compiles)
    reference = copy.deepcopy(algo.net)
    adam = torch.optim.Adam(reference.parameters(), lr=config.learning_rate, betas=(0.6, 0.7), eps=1e-5)
    for _ in range(3):
        update(algo, make_rollout())
        gradient, at = torch.from_numpy(algo.optimizer.arrays()[0].copy()), 0
        for p in reference.parameters():
            p.grad = gradient[at : at + p.numel()].view_as(p).clone()
            at += p.numel()
        adam.step()
    for p, q in zip(algo.net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=0)


# Networks


def test_the_critic_has_layers_of_its_own_on_request():
    algo = build(PPOConfig(hidden_sizes=[8], critic_hidden_sizes=[16, 12]))
    assert [layer.out_features for layer in algo.net.policy.linears] == [8, 2]
    assert [layer.out_features for layer in algo.net.critic.linears] == [16, 12, 1]
    assert algo.net.compiled is not None


def test_a_shared_network_refuses_a_critic_of_its_own():
    with pytest.raises(ConfigError, match=r"algo\.critic_hidden_sizes"):
        Composer().compose(["algo=ppo", "env=cartpole", "algo.shared_network=true", "algo.critic_hidden_sizes=[8]"])


# Values


def value_rollout() -> Rollout:
    """Returns far from 0 and far from a deviation of 1."""
    rollout = make_rollout()
    rollout.reward = 300.0 + 40.0 * rollout.reward
    return rollout


@pytest.mark.parametrize("shared", [False, True])
def test_normalised_values_are_fitted_to_targets_of_mean_0_and_deviation_1(shared):
    config = PPOConfig(normalize_value=True, shared_network=shared, num_epochs=1, num_minibatches=1, learning_rate=1e-9, value_clip=None)
    algo, rollout = build(config), value_rollout()
    value, next_value = (algo.net.value(obs.flatten(0, 1)).view(12, 4).detach() for obs in (rollout.obs, rollout.next_obs))
    targets: list[Tensor] = []
    for _ in range(2):  # values mean themselves until there are statistics, then returns
        mean, std = (torch.stack(targets).mean(), torch.stack(targets).std(correction=0)) if targets else (0.0, 1.0)
        advantage = ops.gae(rollout.reward, mean + std * value, mean + std * next_value, rollout.terminated, rollout.is_last,
                            discount=0.99, lam=0.95)  # fmt: skip
        targets.append(mean + std * value + advantage)
        target, every = targets[-1], torch.stack(targets)
        metrics = update(algo, rollout)
        wanted = (target - every.mean()) / every.std(correction=0)
        assert metrics["loss/value"] == pytest.approx(0.5 * (value - wanted).square().mean().item(), rel=1e-4)
        assert metrics["update/explained_variance"] == pytest.approx(
            ops.explained_variance(mean + std * value, target).item(), rel=1e-3, abs=1e-6
        )
        assert algo.value_scale.moments.mean.item() == pytest.approx(every.mean().item(), rel=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_popart_moves_the_statistics_without_moving_a_value(shared):
    config = PPOConfig(normalize_value=True, popart=True, shared_network=shared, num_epochs=1, learning_rate=1e-12, value_clip=0.2)
    algo, rollout = build(config), value_rollout()

    def values() -> Tensor:
        _, explanation = algo.explain(rollout.obs[0], (), rollout.is_first[0], mode="eval")
        return explanation.value

    before, params = values(), algo.net.policy_params(rollout.obs[0]).clone()
    for _ in range(3):
        update(algo, rollout)
    torch.testing.assert_close(values(), before, atol=5e-3, rtol=0)  # float32 of a value of 2000
    torch.testing.assert_close(algo.net.policy_params(rollout.obs[0]), params, atol=1e-6, rtol=0)
    assert algo.value_scale.moments.mean.item() > 300.0


@pytest.mark.parametrize("popart", [False, True])
def test_a_critic_of_normalised_values_learns_returns_of_any_size(popart):
    config = PPOConfig(normalize_value=True, popart=popart, recompute_advantage=True, learning_rate=3e-3, num_epochs=10, discount=0.0)
    algo = build(config, num_envs=8)
    for _ in range(30):
        rollout = make_rollout(length=32, num_envs=8)
        rollout.reward = 5000.0 + 700.0 * rollout.obs[..., 0].tanh()
        metrics = update(algo, rollout)
    assert metrics["update/explained_variance"] > 0.9
    _, explanation = algo.explain(rollout.obs[0], (), rollout.is_first[0], mode="eval")
    torch.testing.assert_close(explanation.value, rollout.reward[0], atol=400.0, rtol=0)
