"""ops.py against numbers worked out by hand and against naive loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlx import ops


def column(*values: float) -> Tensor:
    """A rollout of one env: [T, 1]."""
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def flags(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool).unsqueeze(1)


def naive_scan(x: Tensor, decay: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    carry = torch.zeros_like(x[0])
    for t in reversed(range(len(x))):
        carry = x[t] + decay[t] * carry
        y[t] = carry
    return y


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 64])
def test_reverse_scan_equals_the_naive_loop(length, batch):
    x = torch.randn(length, batch, dtype=torch.float64)
    decay = torch.rand(length, batch, dtype=torch.float64) * (torch.rand(length, batch) > 0.2)
    torch.testing.assert_close(ops.reverse_scan(x, decay), naive_scan(x, decay), atol=1e-12, rtol=0)


def test_reverse_scan_of_ones_counts_the_remaining_steps():
    ones = torch.ones(5)
    assert ops.reverse_scan(ones, ones).tolist() == [5, 4, 3, 2, 1]


def test_reverse_scan_ignores_what_lies_behind_a_zero_decay():
    y = ops.reverse_scan(column(1, 2, 4, 8), column(1, 0, 1, 1))
    assert y.flatten().tolist() == [3, 2, 12, 8]


def test_reverse_scan_leaves_its_arguments_alone():
    x, decay = torch.randn(7, 2), torch.rand(7, 2)
    before = x.clone(), decay.clone()
    ops.reverse_scan(x, decay)
    assert torch.equal(x, before[0])
    assert torch.equal(decay, before[1])


def test_gae_golden_numbers():
    # delta = (1 + 0.5*4 - 2, 2 + 0.5*6 - 4, 3 + 0.5*8 - 6) = (1, 1, 1); decay = 0.5 * 0.5 = 0.25
    # A2 = 1, A1 = 1 + 0.25 = 1.25, A0 = 1 + 0.25 * 1.25 = 1.3125
    none = flags(0, 0, 0)
    advantage = ops.gae(column(1, 2, 3), column(2, 4, 6), column(4, 6, 8), none, none, discount=0.5, lam=0.5)
    assert advantage.flatten().tolist() == [1.3125, 1.25, 1.0]


def test_gae_bootstraps_through_truncation_but_not_termination():
    reward, value, next_value = column(1, 2, 3), column(0, 0, 0), column(10, 20, 40)
    last, none = flags(0, 1, 0), flags(0, 0, 0)
    cut = ops.gae(reward, value, next_value, none, last, discount=0.5, lam=1.0)
    # delta = (1 + 5, 2 + 10, 3 + 20); nothing of step 2 reaches step 1: A1 = 12, A0 = 6 + 0.5 * 12
    assert cut.flatten().tolist() == [12, 12, 23]
    ended = ops.gae(reward, value, next_value, last, last, discount=0.5, lam=1.0)
    # delta_1 = 2: A0 = 6 + 0.5 * 2
    assert ended.flatten().tolist() == [7, 2, 23]


def test_gae_takes_a_step_with_both_flags_as_terminated():
    both, none = flags(1, 0), flags(0, 0)
    arguments = column(1, 2), column(0, 0), column(100, 4)
    advantage = ops.gae(*arguments, both, both, discount=0.5, lam=1.0)
    assert advantage.flatten().tolist() == [1, 4]
    assert not torch.equal(advantage, ops.gae(*arguments, none, both, discount=0.5, lam=1.0))


def test_gae_with_lambda_zero_is_the_one_step_error():
    none = flags(0, 0)
    assert ops.gae(column(1, 2), column(3, 5), column(5, 8), none, none, discount=0.5, lam=0.0).flatten().tolist() == [0.5, 1.0]


def test_gae_with_lambda_one_is_the_return_minus_the_value():
    reward, value = torch.randn(9, 3, dtype=torch.float64), torch.randn(10, 3, dtype=torch.float64)
    none = torch.zeros(9, 3, dtype=torch.bool)
    advantage = ops.gae(reward, value[:-1], value[1:], none, none, discount=0.9, lam=1.0)
    for t in range(9):
        return_ = sum(0.9 ** (k - t) * reward[k] for k in range(t, 9)) + 0.9 ** (9 - t) * value[9]
        torch.testing.assert_close(advantage[t], return_ - value[t], atol=1e-12, rtol=0)


def test_gae_equals_the_naive_loop_over_random_episode_ends():
    reward, value, next_value = torch.randn(3, 64, 5, dtype=torch.float64)
    terminated, truncated = torch.rand(2, 64, 5) < 0.15
    is_last = terminated | truncated
    expected, carry = torch.zeros_like(reward), torch.zeros(5, dtype=torch.float64)
    for t in reversed(range(64)):
        delta = reward[t] + 0.9 * torch.where(terminated[t], 0.0, next_value[t]) - value[t]
        carry = delta + torch.where(is_last[t], 0.0, 0.9 * 0.8 * carry)
        expected[t] = carry
    actual = ops.gae(reward, value, next_value, terminated, is_last, discount=0.9, lam=0.8)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


def test_gae_names_the_shapes_that_do_not_match():
    x, none = torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"reward \(3, 2\), value \(3, 1\), next_value \(3, 2\)"):
        ops.gae(x, x[:, :1], x, none, none, discount=0.9, lam=0.9)


def test_reverse_scan_does_not_broadcast():
    with pytest.raises(ValueError, match=r"x \(3, 2\), decay \(3,\)"):
        ops.reverse_scan(torch.zeros(3, 2), torch.zeros(3))


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [
        ((0, 0, 0, 0), (0, 0, 0, 0), (6.3125, 11.25, 17.0, 24.0)),
        ((0, 1, 0, 0), (0, 0, 0, 0), (4.0, 2.0, 17.0, 24.0)),
        ((0, 0, 0, 0), (0, 1, 0, 0), (6.5, 12.0, 17.0, 24.0)),
    ],
    ids=["open", "terminated", "truncated"],
)
def test_q_lambda_returns_golden_numbers(terminated, truncated, expected):
    # 24 = 4 + 40 / 2 at the rollout's end, 17 = 3 + (32 + 24) / 4; 11.25 = 2 + (20 + 17) / 4, or 2 + 20 / 2 where the episode is cut, or 2
    is_last = flags(*terminated) | flags(*truncated)
    reward, next_value = column(1, 2, 3, 4), column(10, 20, 32, 40)
    found = ops.q_lambda_returns(reward, next_value, flags(*terminated), is_last, discount=0.5, lam=0.5)
    assert found[:, 0].tolist() == list(expected)


def test_returns_to_go_restart_at_every_episode():
    # second episode: 8; first: 4 + 0.5 * final 2 = 5, 2 + 0.5 * 5 = 4.5, 1 + 0.5 * 4.5 = 3.25
    returns = ops.returns_to_go(column(1, 2, 4, 8), column(0, 0, 2, 0), flags(0, 0, 1, 1), discount=0.5)
    assert returns.flatten().tolist() == [3.25, 4.5, 5, 8]


def test_returns_to_go_read_the_final_value_only_where_an_episode_ends():
    returns = ops.returns_to_go(column(1, 2, 4), column(99, 99, 2), flags(0, 0, 1), discount=0.5)
    assert returns.flatten().tolist() == [3.25, 4.5, 5]


def test_returns_to_go_name_the_shapes_that_do_not_match():
    with pytest.raises(ValueError, match=r"reward \(3, 1\), final_value \(2, 1\), is_last \(3, 1\)"):
        ops.returns_to_go(column(1, 2, 3), column(0, 0), flags(0, 0, 1), discount=0.5)


def test_normalize_uses_the_biased_deviation():
    # mean 3, deviation sqrt((4 + 0 + 4) / 3)
    expected = [-2 / math.sqrt(8 / 3), 0.0, 2 / math.sqrt(8 / 3)]
    assert ops.normalize(torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64)).tolist() == pytest.approx(expected, abs=1e-7)


def test_normalize_turns_a_constant_into_zero():
    assert ops.normalize(torch.full((4,), 7.0)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("prediction", "expected"), [([1, 2, 3], 1.0), ([2, 2, 2], 0.0), ([2, 3, 4], 1.0), ([3, 2, 1], -3.0)])
def test_explained_variance_golden_numbers(prediction, expected):
    # the last: errors (-2, 0, 2) have four times the variance of the target; a constant offset costs nothing
    value = ops.explained_variance(torch.tensor(prediction, dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert value.item() == pytest.approx(expected, abs=1e-12)


def test_explained_variance_of_a_constant_target_is_nan():
    assert ops.explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 5.0])).isnan()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),  # d(-r A) / d log r = -r A: more of a good action
        (1.0, -2.0, 2.0, 2.0),
        (1.1, 2.0, -2.2, -2.2),  # inside the interval
        (1.5, 2.0, -2.4, 0.0),  # gain capped at 1.2 * 2: nothing more to win
        (0.5, -2.0, 1.6, 0.0),  # min(-1.0, 0.8 * -2)
        (0.5, 2.0, -1.0, -1.0),  # min keeps the worse of 0.5 * 2 and 0.8 * 2, and pulls back
        (1.5, -2.0, 3.0, 3.0),  # a loss is not capped
    ],
)
def test_ppo_clip_loss_golden_numbers(ratio, advantage, loss, slope):
    actual, derivative = ops.ppo_clip_loss(torch.tensor([math.log(ratio)]), torch.tensor([advantage]), clip=0.2)
    assert actual.item() == pytest.approx(loss, abs=1e-6)
    assert derivative.tolist() == pytest.approx([slope], abs=1e-6)


@pytest.mark.parametrize("advantage", [1.5, -0.5])
def test_spo_objective_is_greatest_at_the_end_of_the_interval_and_leads_back_into_it(advantage):
    ratio = torch.tensor([1.0, 1.2, 1.4] if advantage > 0 else [1.0, 0.8, 0.6])
    slopes = [ops.spo_loss(r.log().view(1), torch.tensor([advantage]), clip=0.2)[1].item() for r in ratio]
    assert slopes[0] == pytest.approx(-advantage)
    assert slopes[1] == pytest.approx(0.0, abs=1e-6)
    assert slopes[2] == pytest.approx(ratio[2].item() * advantage, abs=1e-5)


def test_ppo_clip_loss_is_a_mean_over_the_batch():
    loss, derivative = ops.ppo_clip_loss(torch.tensor([1.5, 0.5]).log(), torch.tensor([2.0, 2.0]), clip=0.2)
    assert loss.item() == pytest.approx((-2.4 - 1.0) / 2, abs=1e-6)
    assert derivative.tolist() == pytest.approx([0.0, -0.5], abs=1e-6)


def test_losses_leave_their_arguments_alone():
    log_ratio, advantage = 0.4 * torch.randn(2, 50)
    before = log_ratio.clone(), advantage.clone()
    ops.ppo_clip_loss(log_ratio, advantage, clip=0.2)
    ops.surrogate_loss(log_ratio, advantage)
    ops.clipped_value_loss(log_ratio, advantage, log_ratio, clip=0.2)
    ops.value_loss(log_ratio, advantage)
    assert torch.equal(log_ratio, before[0])
    assert torch.equal(advantage, before[1])


def naive_clip(x: Tensor, advantage: Tensor, _: Tensor) -> Tensor:
    return -torch.minimum(x.exp() * advantage, x.exp().clamp(0.8, 1.2) * advantage).mean()


def naive_spo(x: Tensor, advantage: Tensor, _: Tensor) -> Tensor:
    return -(x.exp() * advantage - advantage.abs() / (2 * 0.2) * (x.exp() - 1) ** 2).mean()


def naive_clipped_value(x: Tensor, old: Tensor, target: Tensor) -> Tensor:
    return 0.5 * torch.maximum((x - target) ** 2, (old + (x - old).clamp(-0.2, 0.2) - target) ** 2).mean()


LOSSES = {
    "clip": (lambda x, a, _: ops.ppo_clip_loss(x, a, clip=0.2), naive_clip),
    "spo": (lambda x, a, _: ops.spo_loss(x, a, clip=0.2), naive_spo),
    "surrogate": (lambda x, a, _: ops.surrogate_loss(x, a), lambda x, a, _: -(x.exp() * a).mean()),
    "value": (lambda x, _, r: ops.value_loss(x, r), lambda x, _, r: 0.5 * ((x - r) ** 2).mean()),
    "clipped_value": (lambda x, v, r: ops.clipped_value_loss(x, v, r, clip=0.2), naive_clipped_value),
}


@pytest.mark.parametrize("scale", [1e-2, 0.3, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_derivatives_are_those_of_the_formula(name, dtype, scale):
    ours, naive = LOSSES[name]
    x, old, target = torch.randn(3, 5000, dtype=dtype)
    x = (scale * x).clamp(-3, 3).requires_grad_()
    second = old if name in ("clip", "spo", "surrogate") else x.detach() + scale * old  # an advantage, or an earlier value
    expected, (loss, derivative) = naive(x, second, target), ours(x.detach(), second, target)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(5000 * derivative, 5000 * x.grad, rtol=1e-4, atol=1e-5)


def test_value_loss_golden_numbers():
    loss, derivative = ops.value_loss(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0]))
    assert loss.item() == 0.5 * (4 + 1) / 2
    assert derivative.tolist() == [1.0, -0.5]


def test_clipped_value_loss_golden_numbers():
    # v = 3 around v_old = 1 clipped to 1.5: target 2 gives max(1, 0.25) = 1; target 4 gives max(1, 6.25) = 6.25
    value, old, target = torch.tensor([3.0, 3.0]), torch.tensor([1.0, 1.0]), torch.tensor([2.0, 4.0])
    loss, derivative = ops.clipped_value_loss(value, old, target, clip=0.5)
    assert loss.item() == pytest.approx(0.5 * (1 + 6.25) / 2)
    assert derivative.tolist() == [0.5, 0.0]  # beyond the clip, on the way to its target: nothing to gain


def test_clipped_value_loss_has_its_gradient_wherever_the_value_is_within_the_bound():
    # old + (value - old) is not value in floating point; that must not look like a clipped value
    value, old, target = torch.randn(3, 10_000) * torch.tensor([[0.1], [0.1], [1.0]])
    inside = (value - old).abs() < 0.2
    derivative = ops.clipped_value_loss(value, old, target, clip=0.2)[1]
    torch.testing.assert_close(10_000 * derivative[inside], (value - target)[inside], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("x", "y"), [(math.nan, 1.0), (0.0, math.nan)])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_what_is_not_a_number_are_not_numbers(name, x, y):
    assert LOSSES[name][0](torch.tensor([x, 0.0]), torch.tensor([y, 1.0]), torch.tensor([y, 1.0]))[0].isnan()


def test_approximate_kl_golden_number_and_zero_at_equality():
    assert ops.approximate_kl(torch.tensor([math.log(2.0), 0.0])).item() == pytest.approx((1 - math.log(2)) / 2, abs=1e-6)
    assert ops.approximate_kl(torch.zeros(3)).item() == 0.0


def test_approximate_kl_is_never_negative_and_estimates_the_divergence():
    old = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    new = torch.distributions.Normal(torch.tensor(0.3, dtype=torch.float64), 1.0)
    x = old.sample((200_000,))
    log_ratio = new.log_prob(x) - old.log_prob(x)
    assert all(ops.approximate_kl(r) >= 0 for r in log_ratio[:1000])
    assert ops.approximate_kl(log_ratio).item() == pytest.approx(0.3**2 / 2, rel=0.02)


def test_windows_start_where_no_step_but_the_last_ends_an_episode():
    is_last = torch.zeros(5, 2, dtype=torch.bool)
    is_last[1, 0] = is_last[4, 1] = True
    t, b = ops.window_starts(is_last, 3, most=10)
    assert list(zip(t.tolist(), b.tolist(), strict=True)) == [(0, 1), (1, 1), (2, 0), (2, 1)]


def test_windows_are_thinned_evenly_to_as_many_as_are_asked_for():
    t, _ = ops.window_starts(torch.zeros(9, 1, dtype=torch.bool), 2, most=3)
    assert t.tolist() == [0, 3, 6]


def test_there_are_no_windows_longer_than_the_data():
    t, b = ops.window_starts(torch.zeros(2, 3, dtype=torch.bool), 3, most=10)
    assert len(t) == len(b) == 0
