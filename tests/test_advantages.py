"""The policy gradient's estimators on an MDP whose trajectories can be counted: means and variances are exact sums, not samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from test_algos import build, follow, make_rollout, moved, update, weights
from torch import Tensor

from rlx.config.algos.a2c_config import A2CConfig
from rlx.config.algos.policy_gradient_config import Advantage
from rlx.config.algos.reinforce_config import ReinforceConfig
from rlx.nn.advantages import KINDS, UNBIASED, Estimator, Outcomes, next_values

NUM_STATES, NUM_ACTIONS, LENGTH = 3, 2, 3
NEXT = torch.tensor(
    [[[0.6, 0.4, 0.0], [0.1, 0.2, 0.7]], [[0.0, 0.5, 0.5], [0.9, 0.0, 0.1]], [[0.3, 0.3, 0.4], [0.0, 1.0, 0.0]]], dtype=torch.float64
)
REWARD = torch.tensor([[1.0, 2.0], [0.5, 4.0], [3.0, 0.1]], dtype=torch.float64)
ENDS = torch.tensor([[0.0, 0.3], [0.2, 0.0], [0.0, 0.5]], dtype=torch.float64)
"""Probabilities of the next state [S, A, S], rewards [S, A], and probabilities that the episode terminates with a step [S, A]."""
LOGITS = torch.tensor([[0.3, -0.2], [-0.5, 0.4], [0.1, 0.6]], dtype=torch.float64)
AFTER = torch.tensor([2.0, -1.0, 0.7], dtype=torch.float64)
"""Values [S] of the states after the last of LENGTH steps, where episodes are truncated."""
WRONG = torch.tensor([5.0, -2.0, 1.0], dtype=torch.float64)
"""A value function that is far from the true one."""


class Trajectory(NamedTuple):
    prob: Tensor
    states: list[int]  # one more than actions
    actions: list[int]
    terminated: bool


def trajectories() -> Iterator[Trajectory]:
    """All of them, from state 0, with their probabilities."""
    policy = LOGITS.softmax(-1)

    def go_on(prob: Tensor, states: list[int], actions: list[int]) -> Iterator[Trajectory]:
        if len(actions) == LENGTH:
            yield Trajectory(prob, states, actions, False)
            return
        for a, s in itertools.product(range(NUM_ACTIONS), range(NUM_STATES)):
            step = prob * policy[states[-1], a] * NEXT[states[-1], a, s]
            if ENDS[states[-1], a] > 0:
                yield Trajectory(step * ENDS[states[-1], a], [*states, s], [*actions, a], True)
            yield from go_on(step * (1.0 - ENDS[states[-1], a]), [*states, s], [*actions, a])

    yield from (x for x in go_on(torch.ones((), dtype=torch.float64), [0], []) if x.prob > 0)


ALL = list(trajectories())


def true_values(discount: float) -> tuple[Tensor, Tensor]:
    """V [LENGTH + 1, S] and Q [LENGTH, S, A] of the policy by dynamic programming, at every step of the episode."""
    policy, v, q = LOGITS.softmax(-1), [AFTER], []
    for _ in range(LENGTH):
        q.insert(0, REWARD + discount * (1.0 - ENDS) * (NEXT @ v[0]))
        v.insert(0, (policy * q[0]).sum(-1))
    return torch.stack(v), torch.stack(q)


def true_gradient(q: Tensor) -> Tensor:
    """sum_t sum_s P(s_t = s) sum_a grad pi(a|s) q_t(s, a) [S, A], for any q [LENGTH, S, A], true or not."""
    policy, gradient = LOGITS.softmax(-1), torch.zeros_like(LOGITS)
    visits = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    for t in range(LENGTH):
        gradient += visits[:, None] * policy * (q[t] - (policy * q[t]).sum(-1, keepdim=True))
        visits = torch.einsum("s,sa,sax->x", visits, policy * (1.0 - ENDS), NEXT)
    return gradient


def outcomes(x: Trajectory, value: Tensor, q: Tensor) -> Outcomes:
    """An episode [T, 1] under values [LENGTH + 1, S] and action values [LENGTH, S, A]."""
    length = len(x.actions)
    at = torch.arange(length)
    states, actions = torch.tensor(x.states), torch.tensor(x.actions)
    is_last = at == length - 1
    of_all = value[torch.arange(length + 1), states]
    of_all[-1] = AFTER[states[-1]]  # the value of what an episode was cut at belongs to the task
    columns = (REWARD[states[:-1], actions], of_all[:-1], of_all[1:], is_last & x.terminated, is_last)
    return Outcomes(*(c.unsqueeze(1) for c in columns), gain=(q[at, states[:-1], actions] - of_all[:-1]).unsqueeze(1))


def moments(estimator: Estimator, value: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """The exact mean [S, A] and trace of the covariance of the gradient of one episode."""
    mean, square = torch.zeros_like(LOGITS), torch.zeros((), dtype=torch.float64)
    for x in ALL:
        gradient = torch.zeros_like(LOGITS)
        for s, a, weight in zip(x.states, x.actions, estimator(outcomes(x, value, q))[:, 0], strict=False):
            gradient[s] -= LOGITS.softmax(-1)[s] * weight
            gradient[s, a] += weight
        mean += x.prob * gradient
        square += x.prob * gradient.square().sum()
    return mean, square - mean.square().sum()


def estimator(kind: str, discount: float = 0.9, **more: Any) -> Estimator:
    return Estimator(kind=kind, discount=discount, **more)  # type: ignore[arg-type]


EVERYWHERE_WRONG = WRONG.expand(LENGTH + 1, -1)


def test_the_trajectories_are_all_there_are():
    assert sum(x.prob for x in ALL) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("discount", [1.0, 0.9])
@pytest.mark.parametrize("kind", UNBIASED)
def test_return_to_go_and_baseline_have_the_true_gradient_as_their_mean_whatever_the_value_function(kind, discount):
    _, q = true_values(discount)
    mean, _ = moments(estimator(kind, discount), EVERYWHERE_WRONG, q)
    torch.testing.assert_close(mean, true_gradient(q), atol=1e-12, rtol=0)


def test_the_true_gradient_is_the_derivative_of_the_expected_return():
    logits = LOGITS.clone().requires_grad_()
    v = AFTER
    for _ in range(LENGTH):
        v = (logits.softmax(-1) * (REWARD + (1.0 - ENDS) * (NEXT @ v))).sum(-1)
    v[0].backward()
    torch.testing.assert_close(logits.grad, true_gradient(true_values(1.0)[1]), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "more", [{"kind": "q"}, {"kind": "nstep", "num_steps": 2}, {"kind": "gae", "lam": 0.7}, {"kind": "gae", "lam": 0.0}]
)
def test_estimators_that_bootstrap_are_unbiased_under_the_true_values(more):
    v, q = true_values(0.9)
    mean, _ = moments(estimator(**more), v, q)
    torch.testing.assert_close(mean, true_gradient(q), atol=1e-12, rtol=0)


def test_estimators_that_bootstrap_from_wrong_values_have_the_mean_of_the_wrong_action_values():
    _, q = true_values(0.9)
    of_one_step = torch.stack([REWARD + 0.9 * (1.0 - ENDS) * (NEXT @ (WRONG if t < LENGTH - 1 else AFTER)) for t in range(LENGTH)])
    v_next = [(LOGITS.softmax(-1) * x).sum(-1) for x in of_one_step]
    of_two = torch.stack([REWARD + 0.9 * (1.0 - ENDS) * (NEXT @ (v_next[t + 1] if t < LENGTH - 1 else AFTER)) for t in range(LENGTH)])
    expected = {"gae": (of_one_step, {"lam": 0.0}), "nstep": (of_two, {"num_steps": 2}), "q": (2.0 * q, {})}
    for kind, (wrong, more) in expected.items():
        mean, _ = moments(estimator(kind, **more), EVERYWHERE_WRONG, 2.0 * q)
        torch.testing.assert_close(mean, true_gradient(wrong), atol=1e-12, rtol=0)
        assert (mean - true_gradient(q)).norm() > 0.1


def test_with_true_values_the_variance_falls_from_rung_to_rung():
    v, q = true_values(0.9)
    rungs = [
        {"kind": "return"},
        {"kind": "to_go"},
        {"kind": "baseline"},
        *({"kind": "gae", "lam": lam} for lam in (0.95, 0.5, 0.0)),
        {"kind": "q"},
    ]
    variances = [moments(estimator(**rung), v, q)[1].item() for rung in rungs]
    assert variances == sorted(variances, reverse=True)
    assert variances[0] > 5.0 * variances[-1]


@pytest.mark.parametrize(("a", "b"), [
    ({"kind": "nstep", "num_steps": LENGTH}, {"kind": "baseline"}), ({"kind": "gae", "lam": 1.0}, {"kind": "baseline"}),
    ({"kind": "nstep", "num_steps": 1}, {"kind": "gae", "lam": 0.0}),
])  # fmt: skip
def test_the_ends_of_n_and_lambda_are_the_other_estimators(a, b):
    _, q = true_values(0.9)
    for x in ALL[::7]:
        found = outcomes(x, EVERYWHERE_WRONG, q)
        torch.testing.assert_close(estimator(**a)(found), estimator(**b)(found), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_episodes_side_by_side_and_after_one_another_do_not_mix(kind):
    _, q = true_values(0.9)
    apart = [outcomes(x, EVERYWHERE_WRONG, q) for x in ALL[3:150:29]]
    joined = Outcomes(*(torch.cat(parts) for parts in zip(*apart, strict=True)))
    both = Outcomes(*(torch.cat((x, x), dim=1) for x in joined))
    function = estimator(kind, lam=0.8, num_steps=2)
    expected = torch.cat([function(x) for x in apart])
    torch.testing.assert_close(function(both), torch.cat((expected, expected), dim=1), atol=1e-12, rtol=0)


def test_values_of_successors_are_those_of_the_next_step_or_of_where_an_episode_ended():
    value, final = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[0.0], [7.0], [9.0]])
    is_last = torch.tensor([[False], [True], [True]])
    assert next_values(value, final, is_last).flatten().tolist() == [2.0, 7.0, 9.0]


# Training with them


def trained(config: Any, num_updates: int = 4) -> dict[str, Tensor]:
    torch.manual_seed(3)
    algo, rollout = build(config), None
    for _ in range(num_updates):
        rollout = follow(rollout, make_rollout(length=6, end_prob=0.3))
        update(algo, rollout)
    return weights(algo)


def reinforce(advantage: str, **more: Any) -> ReinforceConfig:
    return ReinforceConfig(advantage=Advantage[advantage], episodes_per_update=2, **more)


@pytest.mark.parametrize(("a", "b"), [
    (reinforce("gae", gae_lambda=1.0), reinforce("baseline")),
    (reinforce("nstep", n_step=1000), reinforce("baseline")),
    (reinforce("nstep", n_step=1), reinforce("gae", gae_lambda=0.0)),
    (A2CConfig(rollout_length=6, advantage=Advantage.nstep, n_step=6), A2CConfig(rollout_length=6)),
    (A2CConfig(rollout_length=6, advantage=Advantage.nstep, n_step=1), A2CConfig(rollout_length=6, gae_lambda=0.0)),
])  # fmt: skip
def test_training_with_equal_estimators_is_equal(a, b):
    for x, y in zip(trained(a).values(), trained(b).values(), strict=True):
        torch.testing.assert_close(x, y, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_reinforce_trains_another_policy_with_every_estimator(kind):
    with_it, usual = trained(reinforce(kind)), trained(reinforce("baseline"))
    differs = any(not torch.equal(with_it[k], usual[k]) for k in usual if k.startswith("policy"))
    assert differs == (kind != "baseline")


def test_a2c_with_q_learns_which_action_is_better_where_the_value_is_equal():
    config = A2CConfig(advantage=Advantage.q, learning_rate=0.01, rollout_length=8)
    algo = build(config)
    losses = []
    for _ in range(60):
        rollout = make_rollout(length=8, end_prob=0.0)
        rollout.reward = rollout.action.float()  # 1 for the second action
        rollout.terminated[:] = True
        rollout.final_t, rollout.final_b = rollout.terminated.nonzero(as_tuple=True)
        rollout.final_obs = torch.zeros(32, 3)
        losses.append(update(algo, rollout)["loss/q_value"])
    inputs = algo.net.preprocess(torch.randn(5, 3))
    gain = algo.q(inputs, torch.ones(5, dtype=torch.long)) - algo.q(inputs, torch.zeros(5, dtype=torch.long))
    assert losses[-1] < 0.5 * losses[0]
    assert (gain > 0.3).all()
    assert not moved(algo, weights(algo))
