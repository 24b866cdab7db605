"""Value expansion against targets computed by hand and against longer TD, STEVE's weights, terminations, and TD-k."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlx.envs.control.reward_functions import RULES
from rlx.envs.control.simulators import simulator_of
from rlx.models.expansion import Expansion, expand, extra_steps, one_horizon, steve_weights, weighted
from rlx.models.members import Dynamics, MemberModel, Predicted, SimulatorDynamics

GAMMA, ALPHA = 0.9, 0.3


class Drift:
    """Member k adds k + 1 to the observation, earns the observation before, and survives where the next one is below a limit."""

    def __init__(self, members: int, limit: float = 1e9) -> None:
        self.num_members, self._limit = members, limit

    def predict(self, obs: Tensor, action: Tensor) -> Predicted:
        change = torch.arange(1.0, len(obs) + 1)[:, None, None].expand_as(obs)
        return Predicted(change, torch.ones_like(obs), obs[..., 0].clone(), ((obs + change)[..., 0] < self._limit).float())


def model_of(dynamics: Dynamics) -> MemberModel:
    return MemberModel(dynamics=dynamics, to_env=lambda action: action, reward_fn=None, termination_fn=None)


def policy(obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions that depend on state and noise, with a log-probability that depends on the state."""
    return (0.1 * obs[..., :1] + 0.3 * noise).tanh(), 0.5 * obs[..., 0]


def critics(obs: Tensor, action: Tensor) -> Tensor:
    return (torch.arange(len(obs))[:, None] + 2.0) * obs[..., 0] + action[..., 0]


def expanded(model: MemberModel | None, next_obs: Tensor, discount: Tensor, *, horizon: int, members: int = 4) -> Expansion:
    reward = torch.arange(len(next_obs)) + 0.5
    return expand(
        model, policy, critics, reward, discount, next_obs, alpha=ALPHA, gamma=GAMMA, horizon=horizon, num_critics=members, num_actions=1
    )


def test_estimates_of_every_horizon_are_those_computed_one_by_one():
    torch.manual_seed(0)
    next_obs, discount = torch.randn(3, 1), torch.tensor([GAMMA, GAMMA**3, 0.0])
    found = expanded(model_of(Drift(4, limit=4.0)), next_obs, discount, horizon=3)
    torch.manual_seed(0)
    torch.randn(3, 1)
    noise = torch.randn(4, 3, 1)
    for b in range(3):
        for k in range(4):
            state, total, alive = next_obs[b], b + 0.5, 1.0
            for h in range(4):
                action, log_prob = policy(state, noise[h, b])
                value = (k + 2.0) * state[0] + action[0] - ALPHA * log_prob
                expected = total + discount[b] * GAMMA**h * alive * value
                assert float(found.estimate[h, k, b]) == pytest.approx(float(expected), abs=1e-4)
                total = total + discount[b] * GAMMA**h * alive * (state[0] - ALPHA * log_prob)
                state = state + (k + 1.0)
                alive = alive * float(state[0] < 4.0)


def test_the_first_horizon_is_the_target_without_a_model():
    next_obs, discount = torch.randn(5, 1), torch.full((5,), GAMMA)
    torch.manual_seed(1)
    alone = expanded(None, next_obs, discount, horizon=0).estimate
    torch.manual_seed(1)
    assert torch.equal(expanded(model_of(Drift(4)), next_obs, discount, horizon=2).estimate[:1], alone)


def test_members_start_from_the_same_state_and_leave_it_as_it_was():
    next_obs = torch.randn(5, 1)
    before = next_obs.clone()
    found = expanded(model_of(Drift(4)), next_obs, torch.full((5,), GAMMA), horizon=2)
    assert torch.equal(next_obs, before)
    assert torch.equal(found.obs[0], before.expand(4, -1, -1))
    torch.testing.assert_close(found.obs[1], before + torch.arange(1.0, 5.0)[:, None, None])


def test_after_a_real_termination_every_horizon_is_the_reward():
    found = expanded(model_of(Drift(4)), torch.randn(5, 1), torch.zeros(5), horizon=3)
    assert torch.equal(found.estimate, (torch.arange(5) + 0.5).expand(4, 4, 5))
    target = weighted(found.estimate, steve_weights(found.estimate))
    torch.testing.assert_close(target, torch.arange(5) + 0.5)


def test_nothing_is_earned_after_an_imagined_termination():
    found = expanded(model_of(Drift(4, limit=-1e9)), torch.randn(5, 1), torch.full((5,), GAMMA), horizon=3)
    torch.testing.assert_close(found.estimate[2], found.estimate[1])
    torch.testing.assert_close(found.estimate[3], found.estimate[1])


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "rlx/CartPoleContinuous-v0"])
def test_expansion_with_a_perfect_model_is_longer_td(env_id):
    """From a real step, H steps of the environment under the policy's actions earn what the estimate says."""
    torch.manual_seed(2)
    simulator = simulator_of(env_id, {})
    assert simulator is not None
    num_features = 3 if env_id == "Pendulum-v1" else 4
    obs = torch.randn(20, num_features) * 0.2 + (torch.tensor([-1.0, 0.0, 0.0]) if num_features == 3 else 0.0)
    if num_features == 3:
        obs[:, :2] /= obs[:, :2].norm(dim=1, keepdim=True)
    reward, discount, horizon = torch.randn(20), torch.full((20,), GAMMA), 4
    model = model_of(SimulatorDynamics(simulator, 4))
    found = expand(model, policy, critics, reward, discount, obs, alpha=0.0, gamma=GAMMA, horizon=horizon, num_critics=4, num_actions=1)
    state, total, alive = obs.numpy(), reward.double().numpy(), 1.0
    for h in range(horizon):
        action = found.action[h, 0]
        state, earned, terminated = simulator(state, action.numpy())
        total = total + GAMMA ** (h + 1) * alive * earned
        alive = alive * ~terminated
    value = critics(torch.from_numpy(state).expand(4, -1, -1), found.action[horizon].double()).numpy()
    expected = total + GAMMA ** (horizon + 1) * alive * value
    torch.testing.assert_close(found.estimate[horizon], torch.from_numpy(expected).float(), atol=1e-3, rtol=1e-3)
    assert RULES[env_id].never_terminates or not bool(alive.all())


# Weights


def test_weights_are_the_inverse_variances_of_members_whose_variances_are_known():
    variance, batch = torch.tensor([1.0, 4.0, 0.25, 16.0]), 3
    spread = torch.tensor([-1.0, 1.0, -1.0, 1.0])  # of variance 1
    estimate = 7.0 + variance.sqrt()[:, None, None] * spread[None, :, None] + torch.zeros(4, 4, batch)
    expected = (1.0 / variance) / (1.0 / variance).sum()
    torch.testing.assert_close(steve_weights(estimate), expected[:, None].expand(-1, batch))


def test_a_horizon_on_which_all_members_agree_gets_all_the_weight_and_none_of_the_bias_is_seen():
    estimate = torch.randn(3, 4, 5)
    estimate[2] = 99.0
    weights = steve_weights(estimate)
    torch.testing.assert_close(weights.sum(0), torch.ones(5))
    assert (weights[2] > 0.999).all()
    assert weighted(estimate, weights).min() > 98.0


def test_fixed_weights_take_one_horizon():
    estimate = torch.randn(3, 4, 5)
    torch.testing.assert_close(weighted(estimate, one_horizon(estimate, 2)), estimate[2].mean(0))
    torch.testing.assert_close(weighted(estimate, one_horizon(estimate, 0)), estimate[0].mean(0))


# TD-k


def test_imagined_steps_are_targets_up_to_the_last_horizon_and_count_as_likely_as_they_are():
    torch.manual_seed(3)
    next_obs, discount = torch.randn(5, 1), torch.tensor([GAMMA, GAMMA, GAMMA, GAMMA, 0.0])
    found = expanded(model_of(Drift(4, limit=4.0)), next_obs, discount, horizon=3)
    extra = extra_steps(found, discount, gamma=GAMMA)
    assert extra.obs.shape == (4, 15, 1)
    by_step = [x.unflatten(1, (3, 5)).transpose(0, 1) for x in extra]
    obs, action, target, weight = by_step
    assert torch.equal(obs, found.obs[:3])
    assert torch.equal(action, found.action[:3])
    last = found.reward[2] + GAMMA * found.alive[2] * found.value[3]
    torch.testing.assert_close(target[2], last)
    first = found.reward[0] + GAMMA * found.alive[0] * (found.bonus[1] + found.reward[1] + GAMMA * found.alive[1] * (found.bonus[2] + last))
    torch.testing.assert_close(target[0], first)
    # The target of the real step is one more step of the same recursion.
    torch.testing.assert_close(found.estimate[3], torch.arange(5) + 0.5 + discount * (found.bonus[0] + target[0]))
    reached = torch.stack([torch.ones(4, 5), found.alive[0], found.alive[0] * found.alive[1]])
    torch.testing.assert_close(weight, reached * (discount > 0.0))
    assert 0.0 < weight.mean() < 1.0
