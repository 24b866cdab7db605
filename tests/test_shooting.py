"""The planners on problems whose answer is known, and what they make of candidates that are not numbers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from rlx.envs.rules import RULES
from rlx.planning.shooting import PLANNERS, Imagined, PlannerConfig, Trust, coloured, imagine, plan, truncated_normal
from rlx.planning.windows import ReturnWindows
from rlx.types import ModelStep

METHODS = pytest.mark.parametrize("method", PLANNERS)
TARGET = torch.tensor([[[0.5], [-0.3], [0.1], [0.8]], [[-0.5], [0.0], [0.9], [-0.7]]])  # [B, H, A]


def config(method: str = "cem", **settings) -> PlannerConfig:
    return PlannerConfig(**{"method": method, "population": 300, "elites": 30, "iterations": 8, "noise_beta": 0.0, **settings})


def quadratic(candidates: Tensor) -> Tensor:
    """Greatest at TARGET."""
    return -(candidates - TARGET[:, None]).square().sum((2, 3))


@METHODS
def test_a_planner_finds_the_optimum_of_a_quadratic(method):
    found = PLANNERS[method](quadratic, torch.zeros(2, 4, 1), config(method))
    assert (found - TARGET).abs().max() < 0.1


@METHODS
def test_a_planner_finds_an_optimum_on_the_bounds(method):
    found = PLANNERS[method](lambda c: c.sum((2, 3)), torch.zeros(1, 4, 2), config(method))
    assert found.min() > (0.4 if method == "mppi" else 0.7)  # an average lies inside
    assert found.max() <= 1.0


@METHODS
def test_candidates_stay_within_the_bounds(method):
    seen = []

    def score(candidates: Tensor) -> Tensor:
        seen.append(candidates)
        return quadratic(candidates)

    PLANNERS[method](score, torch.full((2, 4, 1), 0.95), config(method, init_std=2.0))
    assert torch.cat(seen, dim=1).abs().max() <= 1.0


@METHODS
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_candidates_whose_return_is_not_finite_are_never_elites(method, bad):
    def score(candidates: Tensor) -> Tensor:
        # whoever has a positive first action would be the best, and is none
        return torch.where(candidates[:, :, 0, 0] > 0.0, bad, candidates[:, :, 0, 0] * 0.01 - 100.0)

    found = PLANNERS[method](score, torch.zeros(1, 4, 1), config(method))
    assert found.isfinite().all()
    assert found[0, 0, 0] < 0.0


@METHODS
def test_with_fewer_finite_returns_than_elites_only_they_count(method):
    def score(candidates: Tensor) -> Tensor:
        returns = torch.full(candidates.shape[:2], float("nan"))
        returns[:, 5] = 1.0
        score.only = candidates[:, 5]
        return returns

    found = PLANNERS[method](score, torch.zeros(1, 4, 1), config(method, iterations=1, momentum=0.0))
    torch.testing.assert_close(found, score.only)


@METHODS
def test_without_any_finite_return_the_plan_stays_as_it_was(method):
    before = torch.full((2, 4, 1), 0.25)
    found = PLANNERS[method](lambda c: torch.full(c.shape[:2], float("nan")), before, config(method))
    torch.testing.assert_close(found, before)


@METHODS
def test_states_are_planned_for_apart(method):
    both = PLANNERS[method](quadratic, torch.zeros(2, 4, 1), config(method, iterations=20))
    alone = PLANNERS[method](lambda c: -(c - TARGET[1:, None]).square().sum((2, 3)), torch.zeros(1, 4, 1), config(method, iterations=20))
    torch.testing.assert_close(both[1:], alone, atol=0.1, rtol=0.0)


def test_icem_shrinks_its_population_and_lets_elites_compete_again():
    sizes, best = [], []

    def score(candidates: Tensor) -> Tensor:
        sizes.append(candidates.shape[1])
        returns = quadratic(candidates)
        best.append(returns.amax(1))
        return returns

    PLANNERS["icem"](score, torch.zeros(2, 4, 1), config("icem", population=100, elites=10, iterations=4, population_decay=2.0))
    assert sizes == [100, 53, 28, 23]  # half, plus three elites of ten; never fewer than twice the elites
    assert all((later >= earlier).all() for earlier, later in itertools.pairwise(best))


def test_truncated_normal_numbers_have_the_moments_of_theirs():
    x = truncated_normal((200_000,), torch.device("cpu"))
    assert x.abs().max() <= 2.0
    assert abs(x.mean().item()) < 0.01
    assert x.std().item() == pytest.approx(0.8796, abs=0.005)  # of a normal cut at two deviations
    assert (x.abs() < 1.0).float().mean().item() == pytest.approx(0.6827 / 0.9545, abs=0.005)


def test_coloured_noise_has_unit_variance_and_a_correlation_that_grows_with_beta():
    correlations = []
    for beta in (0.0, 1.0, 2.0):
        x = coloured((20_000,), 16, 1, beta, torch.device("cpu"))[..., 0]
        torch.testing.assert_close(x.std(0), torch.ones(16), atol=0.03, rtol=0.0)
        correlations.append((x[:, 1:] * x[:, :-1]).mean().item())
    assert abs(correlations[0]) < 0.1
    assert correlations[0] + 0.2 < correlations[1] < correlations[2] - 0.1


# Imagination and trust


class Counter:
    """obs [1] goes up by its action; the reward is what it becomes; the episode ends above 2."""

    def __init__(self, *, ends: bool = True, after: float = 0.0) -> None:
        self.ends, self.after = ends, after

    def begin(self, obs: Tensor, num_candidates: int) -> Tensor:
        return obs[None, :, None, :].expand(1, -1, num_candidates, -1)

    def step(self, state: Tensor, action: Tensor) -> ModelStep:
        after = state + action
        reward = torch.where(state[..., 0] > 2.0, after[..., 0] + self.after, after[..., 0])
        discount = (after[..., 0] <= 2.0).float() if self.ends else None
        return ModelStep(after, reward, discount, after[0, ..., 0].abs())


def test_nothing_is_earned_after_a_termination():
    ones = torch.ones(1, 1, 5, 1)
    assert imagine(Counter(), torch.zeros(1, 1), ones).reward.flatten().tolist() == [1, 2, 3, 0, 0]
    assert imagine(Counter(ends=False), torch.zeros(1, 1), ones).reward.flatten().tolist() == [1, 2, 3, 4, 5]


def test_what_a_model_makes_of_a_state_that_does_not_exist_is_ignored():
    for bad in (float("nan"), float("inf")):
        imagined = imagine(Counter(after=bad), torch.zeros(1, 1), torch.ones(1, 1, 5, 1))
        assert imagined.reward.flatten().tolist() == [1, 2, 3, 0, 0]


@METHODS
def test_plans_stop_short_of_a_termination_that_costs_the_future(method):
    # three steps up end the episode with 6; staying at two earns 1 + 2 + 2 + 2 ...
    found = plan(
        Counter(), torch.zeros(1, 1), torch.zeros(1, 8, 1), config(method, iterations=10, noise_beta=1.0),
        to_action=lambda a: a, trust=Trust(), measured=Counter(),
    )  # fmt: skip
    assert found.predicted_return.item() > 9.0
    assert found.mean[0, :-1].cumsum(0).max() <= 2.0  # with the last step it may


def test_reward_is_the_mean_over_particles():
    class Two(Counter):
        def step(self, state: Tensor, action: Tensor) -> ModelStep:
            step = super().step(state, action)
            return step._replace(reward=torch.stack([step.reward[0], 3 * step.reward[0]]), discount=None)

    assert imagine(Two(), torch.zeros(1, 1), torch.ones(1, 1, 2, 1)).reward.flatten().tolist() == [2, 4]


REWARD = torch.tensor([[-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.0]])[:, None]  # [H, B = 1, N = 2]
DOUBT = torch.tensor([[0.1, 0.1], [0.2, 0.9], [0.9, 0.9]])[:, None]


def test_plans_pay_for_disagreement():
    worth, horizon = Trust(cost=2.0).weigh(Imagined(REWARD, DOUBT))
    assert worth[0].tolist() == pytest.approx([-3 - 2 * 1.2, -6 - 2 * 1.9])
    assert horizon.tolist() == [3]


def test_plans_are_cut_for_all_candidates_at_the_same_step():
    worth, horizon = Trust(limit=0.5).weigh(Imagined(REWARD, DOUBT))  # the medians are 0.1, 0.2 and 0.9
    assert horizon.tolist() == [2]
    assert worth[0].tolist() == [-2, -4]
    worth, horizon = Trust(limit=0.01).weigh(Imagined(REWARD, DOUBT))
    assert horizon.tolist() == [1]
    assert worth[0].tolist() == [-1, -2]


def test_a_plan_that_is_believed_counts_in_full():
    for trust in (Trust(), Trust(cost=0.0, limit=math.inf)):
        assert not trust.needs_disagreement
        assert trust.weigh(Imagined(REWARD, None))[0][0].tolist() == [-3, -6]


def test_what_a_cut_plan_predicts_is_the_return_over_the_steps_that_count():
    found = plan(
        Counter(ends=False), torch.zeros(1, 1), torch.full((1, 5, 1), 0.9), config(iterations=1), to_action=lambda a: a,
        trust=Trust(limit=1.5), measured=Counter(ends=False),
    )  # fmt: skip
    steps = found.mean[0, :, 0].cumsum(0)
    count = int(found.horizon)
    assert 1 <= count < 5
    assert found.predicted_return.item() == pytest.approx(steps[:count].sum().item(), abs=1e-5)


# The upper bound: planning with the true dynamics


class TruePendulum:
    """Pendulum-v1's dynamics."""

    def begin(self, obs: Tensor, num_candidates: int) -> Tensor:
        return obs[None, :, None, :].expand(1, -1, num_candidates, -1)

    def step(self, state: Tensor, action: Tensor) -> ModelStep:
        theta, speed = torch.atan2(state[..., 1], state[..., 0]), state[..., 2]
        new_speed = (speed + (15.0 * theta.sin() + 3.0 * action[..., 0]) * 0.05).clamp(-8.0, 8.0)
        new_theta = theta + new_speed * 0.05
        after = torch.stack([new_theta.cos(), new_theta.sin(), new_speed], dim=-1)
        reward = RULES["Pendulum-v1"].reward
        assert reward is not None
        return ModelStep(after, reward(state, action, after), None, torch.zeros(state.shape[1:3]))


@pytest.mark.parametrize("method", ["icem", "mppi"])
def test_planning_with_the_true_dynamics_swings_the_pendulum_up(method):
    theta = torch.tensor([3.1, 1.5, -2.0])
    obs, model, total = torch.stack([theta.cos(), theta.sin(), torch.zeros(3)], dim=-1), TruePendulum(), torch.zeros(3)
    mean, settings = torch.zeros(3, 20, 1), PlannerConfig(method=method, population=100, elites=10, iterations=3)
    for _ in range(120):
        found = plan(model, obs, mean, settings, to_action=lambda a: 2.0 * a, trust=Trust(), measured=model)
        step = model.step(obs[None, :, None], 2.0 * found.mean[:, :1])
        total, obs = total + step.reward[0, :, 0], step.state[0, :, 0]
        mean = torch.cat([found.mean[:, 1:], torch.zeros(3, 1, 1)], dim=1)
    assert obs[:, 0].min() > 0.99  # upright
    assert total.min() > -400.0  # from hanging, 380 is about what swinging up costs
    assert total.max() > -150.0


# Promised and kept


def add(windows: ReturnWindows, predicted: float, horizon: int, reward: float, *, end: str = "") -> list[tuple[float, float]]:
    kept = windows.add(
        torch.tensor([predicted]), torch.tensor([horizon]), torch.tensor([reward]), torch.tensor([end == "terminated"]),
        torch.tensor([end == "truncated"]),
    )  # fmt: skip
    return list(zip(kept.predicted.tolist(), kept.realised.tolist(), strict=True))


def test_a_promise_is_compared_with_the_reward_of_the_same_steps():
    windows = ReturnWindows(3, 1)
    assert add(windows, 10.0, 3, 1.0) == []
    assert add(windows, 20.0, 3, 2.0) == []
    assert add(windows, 30.0, 3, 4.0) == [(10.0, 7.0)]
    assert add(windows, 40.0, 3, 8.0) == [(20.0, 14.0)]


def test_promises_of_different_lengths_come_due_apart():
    windows = ReturnWindows(3, 1)
    add(windows, 10.0, 3, 1.0)
    assert add(windows, 20.0, 1, 2.0) == [(20.0, 2.0)]
    assert add(windows, 0.0, 0, 4.0) == [(10.0, 7.0)]  # a random action promises nothing
    assert add(windows, 50.0, 2, 8.0) == []


def test_after_a_termination_nothing_comes_and_a_cut_episode_proves_nothing():
    windows = ReturnWindows(3, 1)
    add(windows, 10.0, 3, 1.0)
    assert sorted(add(windows, 20.0, 3, 2.0, end="terminated")) == [(10.0, 3.0), (20.0, 2.0)]
    add(windows, 30.0, 3, 1.0)
    assert add(windows, 40.0, 1, 2.0, end="truncated") == [(40.0, 2.0)]
    assert add(windows, 50.0, 3, 4.0) == []
    assert add(windows, 60.0, 3, 4.0) == []
    assert add(windows, 70.0, 3, 4.0) == [(50.0, 12.0)]
