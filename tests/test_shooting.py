"""The planners on problems with known solutions, and on candidates with NaN returns."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from rlx.envs.control.reward_functions import RULES
from rlx.models.ensemble_rollouts import EnsembleModel
from rlx.models.unroll import Imagined, unroll
from rlx.planning.shooting import (
    PLANNERS,
    Memory,
    Plan,
    PlannerConfig,
    Score,
    UncertaintyPenalty,
    coloured,
    mean_reward,
    no_memory,
    plan,
    truncated_normal,
)
from rlx.planning.windows import ReturnWindows
from rlx.types import Model, ModelStep

CPU = torch.device("cpu")
KINDS = pytest.mark.parametrize("kind", PLANNERS)
TARGET = torch.tensor([[[0.5], [-0.3], [0.1], [0.8]], [[-0.5], [0.0], [0.9], [-0.7]]])  # [B, H, A]


def config(kind: str = "cem", **settings) -> PlannerConfig:
    return PlannerConfig(**{"kind": kind, "num_candidates": 300, "num_elites": 30, "num_iterations": 8, "noise_beta": 0.0, **settings})


def begin(mean: Tensor, settings: PlannerConfig) -> Memory:
    """The memory of a mean, without elites."""
    return no_memory(*mean.shape, settings, CPU)._replace(mean=mean)


def search(score: Score, mean: Tensor, settings: PlannerConfig) -> Tensor:
    """The final mean of a planner."""
    return PLANNERS[settings.kind](score, begin(mean, settings), settings)[0]


def quadratic(candidates: Tensor) -> Tensor:
    """Greatest at TARGET."""
    return -(candidates - TARGET[:, None]).square().sum((2, 3))


@KINDS
def test_a_planner_finds_the_optimum_of_a_quadratic(kind):
    found = search(quadratic, torch.zeros(2, 4, 1), config(kind))
    assert (found - TARGET).abs().max() < 0.1


@KINDS
def test_a_planner_finds_an_optimum_on_the_bounds(kind):
    found = search(lambda c: c.sum((2, 3)), torch.zeros(1, 4, 2), config(kind))
    assert found.min() > (0.4 if kind == "mppi" else 0.7)  # an average lies inside
    assert found.max() <= 1.0


@KINDS
def test_candidates_stay_within_the_bounds(kind):
    seen = []

    def score(candidates: Tensor) -> Tensor:
        seen.append(candidates)
        return quadratic(candidates)

    search(score, torch.full((2, 4, 1), 0.95), config(kind, init_std=2.0))
    assert torch.cat(seen, dim=1).abs().max() <= 1.0


@KINDS
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_candidates_whose_return_is_not_finite_are_never_elites(kind, bad):
    def score(candidates: Tensor) -> Tensor:
        # whoever has a positive first action would be the best, and is none
        return torch.where(candidates[:, :, 0, 0] > 0.0, bad, candidates[:, :, 0, 0] * 0.01 - 100.0)

    found = search(score, torch.zeros(1, 4, 1), config(kind))
    assert found.isfinite().all()
    assert found[0, 0, 0] < 0.0


@KINDS
def test_with_fewer_finite_returns_than_elites_only_they_count(kind):
    def score(candidates: Tensor) -> Tensor:
        returns = torch.full(candidates.shape[:2], float("nan"))
        returns[:, 5] = 1.0
        score.only = candidates[:, 5]
        return returns

    found = search(score, torch.zeros(1, 4, 1), config(kind, num_iterations=1, momentum=0.0))
    torch.testing.assert_close(found, score.only)


@KINDS
def test_without_any_finite_return_the_plan_stays_as_it_was(kind):
    before = torch.full((2, 4, 1), 0.25)
    found = search(lambda c: torch.full(c.shape[:2], float("nan")), before, config(kind))
    torch.testing.assert_close(found, before)


@KINDS
def test_states_are_planned_for_apart(kind):
    both = search(quadratic, torch.zeros(2, 4, 1), config(kind, num_iterations=20))
    alone = search(lambda c: -(c - TARGET[1:, None]).square().sum((2, 3)), torch.zeros(1, 4, 1), config(kind, num_iterations=20))
    torch.testing.assert_close(both[1:], alone, atol=0.1, rtol=0.0)


def test_icem_shrinks_its_population_and_lets_elites_compete_again():
    sizes, best = [], []

    def score(candidates: Tensor) -> Tensor:
        sizes.append(candidates.shape[1])
        returns = quadratic(candidates)
        best.append(returns.amax(1))
        return returns

    search(score, torch.zeros(2, 4, 1), config("icem", num_candidates=100, num_elites=10, num_iterations=4, population_decay=2.0))
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


# Imagination and penalty


class Counter:
    """obs [1] goes up by its action; the reward is what it becomes; the episode ends above 2."""

    def __init__(self, *, ends: bool = True, after: float = 0.0) -> None:
        self.ends, self.after = ends, after

    def initial(self, obs: Tensor, num_candidates: int = 1) -> Tensor:
        return obs[:, None].expand(-1, num_candidates, -1)

    def step(self, state: Tensor, action: Tensor) -> ModelStep:
        after = state + action  # [B, N, 1]
        ended = state[..., 0] > 2.0
        reward = torch.where(ended, after[..., 0] + self.after, after[..., 0])
        return ModelStep(after, reward, (after[..., 0] <= 2.0).float() if self.ends else None, after[..., 0].abs())


def imagine(model: Model, obs: Tensor, actions: Tensor) -> Imagined:
    """Follow actions [B, N, H, A] from obs [B, D]."""
    return unroll(model, model.initial(obs, actions.shape[1]), actions.movedim(2, 0), actions.shape[2])


def test_nothing_is_earned_after_a_termination():
    ones = torch.ones(1, 1, 5, 1)
    assert imagine(Counter(), torch.zeros(1, 1), ones).reward.flatten().tolist() == [1, 2, 3, 0, 0]
    assert imagine(Counter(ends=False), torch.zeros(1, 1), ones).reward.flatten().tolist() == [1, 2, 3, 4, 5]


def test_what_a_model_makes_of_a_state_that_does_not_exist_is_ignored():
    for bad in (float("nan"), float("inf")):
        imagined = imagine(Counter(after=bad), torch.zeros(1, 1), torch.ones(1, 1, 5, 1))
        assert imagined.reward.flatten().tolist() == [1, 2, 3, 0, 0]


@KINDS
def test_plans_stop_short_of_a_termination_that_costs_the_future(kind):
    # three steps up end the episode with 6; staying at two earns 1 + 2 + 2 + 2 ...
    found = plan(
        Counter(), torch.zeros(1, 1), begin(torch.zeros(1, 8, 1), config(kind)), config(kind, num_iterations=10, noise_beta=1.0),
        to_action=lambda a: a, penalty=UncertaintyPenalty(), measured=Counter(),
    )  # fmt: skip
    assert found.predicted_return.item() > 9.0
    assert found.mean[0, :-1].cumsum(0).max() <= 2.0  # with the last step it may


def test_reward_is_the_mean_over_particles():
    class Two(Counter):
        def step(self, state: Tensor, action: Tensor) -> ModelStep:
            found = super().step(state, action)
            return found._replace(reward=torch.stack([found.reward, 3 * found.reward]), discount=None)

    assert mean_reward(imagine(Two(), torch.zeros(1, 1), torch.ones(1, 1, 2, 1))).flatten().tolist() == [2, 4]


REWARD = torch.tensor([[-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.0]])[:, None]  # [H, B = 1, N = 2]
DOUBT = torch.tensor([[0.1, 0.1], [0.2, 0.9], [0.9, 0.9]])[:, None]


def test_plans_pay_for_disagreement():
    worth, horizon = UncertaintyPenalty(cost=2.0).returns(REWARD, DOUBT)
    assert worth[0].tolist() == pytest.approx([-3 - 2 * 1.2, -6 - 2 * 1.9])
    assert horizon.tolist() == [3]


def test_plans_are_cut_for_all_candidates_at_the_same_step():
    worth, horizon = UncertaintyPenalty(limit=0.5).returns(REWARD, DOUBT)  # the medians are 0.1, 0.2 and 0.9
    assert horizon.tolist() == [2]
    assert worth[0].tolist() == [-2, -4]
    worth, horizon = UncertaintyPenalty(limit=0.01).returns(REWARD, DOUBT)
    assert horizon.tolist() == [1]
    assert worth[0].tolist() == [-1, -2]


def test_the_median_leaves_out_what_is_not_a_number():
    doubt = torch.tensor([[0.3, float("nan"), 0.1, 0.2], [float("nan")] * 4])
    assert UncertaintyPenalty(limit=0.2).returns(torch.ones(2, 1, 4), doubt[:, None])[1].tolist() == [1]
    assert UncertaintyPenalty(limit=0.2).returns(torch.ones(2, 1, 4), doubt[:1, None].expand(2, -1, -1))[1].tolist() == [2]


def test_a_plan_that_is_believed_counts_in_full():
    for penalty in (UncertaintyPenalty(), UncertaintyPenalty(cost=0.0, limit=math.inf)):
        assert not penalty.needs_disagreement
        assert penalty.returns(REWARD, None)[0][0].tolist() == [-3, -6]


def test_what_a_cut_plan_predicts_is_the_return_over_the_steps_that_count():
    found = plan(
        Counter(ends=False), torch.zeros(1, 1), begin(torch.full((1, 5, 1), 0.9), config()), config(num_iterations=1),
        to_action=lambda a: a,
        penalty=UncertaintyPenalty(limit=1.5), measured=Counter(ends=False),
    )  # fmt: skip
    steps = found.mean[0, :, 0].cumsum(0)
    count = int(found.horizon)
    assert 1 <= count < 5
    assert found.predicted_return.item() == pytest.approx(steps[:count].sum().item(), abs=1e-5)


# The upper bound: planning with the true dynamics


class TruePendulum:
    """Pendulum-v1's dynamics."""

    def initial(self, obs: Tensor, num_candidates: int = 1) -> Tensor:
        return obs[:, None].expand(-1, num_candidates, -1)

    def step(self, state: Tensor, action: Tensor) -> ModelStep:
        theta, speed = torch.atan2(state[..., 1], state[..., 0]), state[..., 2]
        new_speed = (speed + (15.0 * theta.sin() + 3.0 * action[..., 0]) * 0.05).clamp(-8.0, 8.0)
        new_theta = theta + new_speed * 0.05
        after = torch.stack([new_theta.cos(), new_theta.sin(), new_speed], dim=-1)
        reward = RULES["Pendulum-v1"].reward
        assert reward is not None
        return ModelStep(after, reward(state, action, after), None, torch.zeros(state.shape[:-1]))


@pytest.mark.parametrize("kind", ["icem", "mppi"])
def test_planning_with_the_true_dynamics_swings_the_pendulum_up(kind):
    theta = torch.tensor([3.1, 1.5, -2.0])
    obs, model, total = torch.stack([theta.cos(), theta.sin(), torch.zeros(3)], dim=-1), TruePendulum(), torch.zeros(3)
    settings = PlannerConfig(kind=kind, num_candidates=100, num_elites=10, num_iterations=3)
    memory = no_memory(3, 20, 1, settings, CPU)
    for _ in range(120):
        found = plan(model, obs, memory, settings, to_action=lambda a: 2.0 * a, penalty=UncertaintyPenalty(), measured=model)
        obs, reward, *_ = model.step(obs, 2.0 * found.mean[:, 0])
        total, memory = total + reward, found.rest()
    assert obs[:, 0].min() > 0.99  # upright
    assert total.min() > -400.0  # from hanging, 380 is about what swinging up costs
    assert total.max() > -150.0


# Noise that a plan must not exploit

OPTIMUM = 0.09


class KnownMembers:
    """Members that all know x' = x + action + 0.3 normal noise."""

    def __init__(self, num_members: int) -> None:
        self.num_members, self.noise_scale, self.centre = num_members, torch.tensor([OPTIMUM**0.5]), torch.zeros(2)

    def predict(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return inputs[..., 1:], torch.zeros_like(inputs[..., 1:])

    def spread(self, raw: Tensor) -> Tensor:
        return torch.ones_like(raw)


def cost_of_planning(kind: str, *, members: int, particles: int, propagation: str, penalty: UncertaintyPenalty) -> float:
    """Mean x^2 where the cost is x^2, the noise of a step cannot be known, and undoing what it did is the best one can do."""
    measured = EnsembleModel(
        frozen=KnownMembers(members), obs_scale=torch.ones(1), propagation=propagation, num_particles=particles,  # type: ignore[arg-type]
        reward_fn=lambda obs, action, next_obs: -next_obs[..., 0].square(), termination_fn=None, measure_disagreement=True,
    )  # fmt: skip
    model = dataclasses.replace(measured, measure_disagreement=penalty.needs_disagreement)
    settings = PlannerConfig(kind=kind, num_candidates=80, num_elites=8, num_iterations=4, noise_beta=0.0)
    x, memory, cost = torch.zeros(400, 1), no_memory(400, 3, 1, settings, CPU), 0.0
    for step in range(8):
        found = plan(model, x, memory, settings, to_action=lambda a: a, penalty=penalty, measured=measured)
        assert found.disagreement.max() < 1e-5  # they agree, whatever happens to them
        memory, x = found.rest(), x + found.mean[:, 0] + OPTIMUM**0.5 * torch.randn(400, 1)
        cost += x.square().mean().item() / 6 if step >= 2 else 0.0
    return cost


@pytest.mark.parametrize(
    ("members", "particles", "propagation", "penalty"),
    [
        (5, 1, "ts_inf", UncertaintyPenalty()),
        (5, 1, "ts_1", UncertaintyPenalty()),
        (1, 1, "ts_inf", UncertaintyPenalty()),
        (1, 4, "ts_inf", UncertaintyPenalty()),
        (2, 1, "ts_1", UncertaintyPenalty(cost=1.0)),
        (3, 2, "ts_inf", UncertaintyPenalty(limit=0.1)),
    ],
)
@pytest.mark.parametrize("kind", ["cem", "icem"])
def test_plans_do_not_act_against_noise_that_they_imagined(kind, members, particles, propagation, penalty):
    """With noise in common to all particles the cost is 0.14 to 0.17: a plan undoes what will not happen."""
    cost = cost_of_planning(kind, members=members, particles=particles, propagation=propagation, penalty=penalty)
    assert 0.8 * OPTIMUM < cost < 1.2 * OPTIMUM


def test_icem_lets_the_elites_of_the_step_before_compete_where_there_were_any():
    settings, seen = config("icem", num_candidates=20, num_elites=10, keep_elites=0.3), []
    elites = torch.arange(1.0, 7.0).view(2, 3, 1, 1).expand(2, 3, 4, 1) / 10.0
    memory = Memory(torch.zeros(2, 4, 1), elites, torch.tensor([True, False]))

    def score(candidates: Tensor) -> Tensor:
        seen.append(candidates)
        return quadratic(candidates)

    PLANNERS["icem"](score, memory, settings)
    first = seen[0]
    assert first.shape[1] == 20
    assert torch.equal(first[0, -3:, :-1], elites[0, :, :-1])
    assert not torch.equal(first[0, -3:, -1], elites[0, :, -1])  # the last action is drawn
    assert not (first[1, :, 0, 0, None] == elites[1, :, 0, 0]).any()


def test_what_is_left_of_a_plan_is_a_step_shorter_and_ends_in_the_middle():
    mean, elites = torch.rand(2, 4, 1), torch.rand(2, 3, 4, 1)
    rest = Plan(mean, elites, *torch.zeros(3, 2)).rest()
    for now, before in ((rest.mean, mean), (rest.elites, elites)):
        assert torch.equal(now[..., :-1, :], before[..., 1:, :])
        assert (now[..., -1, :] == 0.0).all()
    assert rest.known.all()


@pytest.mark.parametrize("kind", ["cem", "mppi"])
def test_only_icem_has_elites_to_remember(kind):
    assert no_memory(2, 4, 1, config(kind), CPU).elites.shape[1] == 0


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
