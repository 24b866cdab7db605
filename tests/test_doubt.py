"""Measures of disagreement against slow references, and corrupted models: how often, where, and which disagreement can see."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from rlx.models.corruption import Corruption, CorruptionKind
from rlx.models.doubt import Doubt, gjs, one_vs_rest, rank_correlation
from rlx.models.members import Predicted

CPU = torch.device("cpu")


def gaussians(members: int = 4, num: int = 6, features: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(members, num, features, dtype=torch.float64), torch.rand(members, num, features, dtype=torch.float64) + 0.1


# Measures


def test_the_geometric_divergence_is_half_the_divergence_of_the_pairs_mean_from_each():
    mean, variance = gaussians()
    slow = torch.zeros(6, dtype=torch.float64)
    for e in range(4):
        for f in range(e + 1, 4):
            precision = 0.5 / variance[e] + 0.5 / variance[f]
            middle = (0.5 * mean[e] / variance[e] + 0.5 * mean[f] / variance[f]) / precision
            between = Normal(middle, precision**-0.5)
            for k in (e, f):
                slow += 0.5 * kl_divergence(between, Normal(mean[k], variance[k].sqrt())).sum(-1)
    torch.testing.assert_close(gjs(mean, variance), slow / 6)


def test_one_against_the_rest_is_the_divergence_from_the_others_joint_moments():
    mean, variance = gaussians()
    member = torch.tensor([0, 1, 2, 3, 0, 2])
    for n, e in enumerate(member.tolist()):
        rest = [k for k in range(4) if k != e]
        centre = mean[rest, n].mean(0)
        spread = (variance[rest, n] + mean[rest, n].square()).mean(0) - centre.square()
        slow = kl_divergence(Normal(mean[e, n], variance[e, n].sqrt()), Normal(centre, spread.sqrt())).sum()
        torch.testing.assert_close(one_vs_rest(mean, variance, member)[n], slow)
    each = torch.stack([one_vs_rest(mean, variance, torch.full((6,), e)) for e in range(4)])
    torch.testing.assert_close(one_vs_rest(mean, variance, None), each.mean(0))


def test_the_standard_deviation_is_in_units_of_the_observations_and_leaves_constants_out():
    mean = torch.tensor([[[1.0, 0.0, 5.0]], [[3.0, 8.0, 9.0]]])
    doubt = Doubt("std", torch.tensor([1.0, 2.0, 0.0]))(mean, torch.ones_like(mean))
    assert doubt.tolist() == pytest.approx([math.sqrt((1.0 + 4.0) / 2.0)])


@pytest.mark.parametrize("measure", ["std", "gjs", "one_vs_rest"])
def test_members_that_agree_do_not_doubt_and_a_feature_without_variance_is_no_infinity(measure):
    mean, variance = torch.full((4, 5, 3), 1e4), torch.tensor([0.1, 0.2, 0.0]).expand(4, 5, 3)
    doubt = Doubt(measure, torch.ones(3))
    assert doubt(mean, variance).abs().max() < 1e-5
    apart = doubt(mean + torch.arange(4.0)[:, None, None], variance)
    assert apart.isfinite().all()
    assert (apart > 0.5).all()
    assert doubt(mean[:1], variance[:1]).tolist() == [0.0] * 5


def test_the_rank_correlation_is_scipys_and_undefined_for_constants():
    x = torch.randn(30).round(decimals=1)  # with ties
    y = x + torch.randn(30)
    assert rank_correlation(x, y) == pytest.approx(spearmanr(x.numpy(), y.numpy()).statistic)
    assert math.isnan(rank_correlation(x, torch.ones(30)))


# Corruption


class Remembers:
    """Dynamics whose prediction says which member it is of and which row."""

    num_members = 4

    def predict(self, obs: Tensor, action: Tensor) -> Predicted:
        members, num, features = obs.shape
        mark = 1000.0 * torch.arange(members)[:, None] + torch.arange(num)
        return Predicted(mark[..., None].expand(-1, -1, features), mark[..., None].expand(-1, -1, features) + 0.5, mark, mark)


def corrupted(kind: CorruptionKind, prob: float, obs: Tensor, *, seed: int = 3) -> tuple[Corruption, Predicted]:
    torch.manual_seed(seed)
    corruption = Corruption(kind, prob, num_features=obs.shape[-1], device=CPU)
    corruption.settle(obs[0])
    return corruption, corruption.wrap(Remembers()).predict(obs, torch.zeros(*obs.shape[:2], 1))


def wrong_in(predicted: Predicted) -> tuple[Tensor, Tensor]:
    """Which rows are wrong [K, n], and the row [K, n] that each prediction is of."""
    row = predicted.change[..., 0] - 1000.0 * torch.arange(4)[:, None]
    return row != torch.arange(row.shape[1]), row


def test_every_part_of_a_prediction_is_of_the_same_other_row_and_of_the_same_member():
    _, predicted = corrupted("independent", 0.5, torch.randn(1, 200, 2).expand(4, -1, -1))
    wrong, row = wrong_in(predicted)
    assert ((row >= 0) & (row < 200)).all()
    mark = predicted.change[..., 0]
    for part in (predicted.change[..., 1], predicted.variance[..., 0] - 0.5, predicted.reward, predicted.alive):
        assert torch.equal(part, mark)
    assert 0.42 < wrong.float().mean() < 0.58


def test_independent_members_are_wrong_about_rows_of_their_own():
    wrong, _ = wrong_in(corrupted("independent", 0.3, torch.randn(1, 1000, 2).expand(4, -1, -1))[1])
    assert (wrong.float().mean(1) - 0.3).abs().max() < 0.05
    assert (wrong[0] & wrong[1]).float().mean() == pytest.approx(0.09, abs=0.03)


def test_shared_corruption_is_the_same_in_all_members():
    wrong, row = wrong_in(corrupted("shared", 0.3, torch.randn(1, 1000, 2).expand(4, -1, -1))[1])
    assert float(wrong.float().mean()) == pytest.approx(0.3, abs=0.05)
    assert (row == row[0]).all()


def test_a_region_is_a_half_space_with_its_share_of_observations_and_all_of_it_is_wrong():
    obs = torch.randn(1, 1000, 3) * torch.tensor([1.0, 100.0, 0.01]) + 5.0
    corruption, predicted = corrupted("regional", 0.2, obs.expand(4, -1, -1))
    wrong, _ = wrong_in(predicted)
    assert wrong.sum(1).tolist() == [200] * 4
    assert (wrong == wrong[0]).all()
    scores = ((obs[0] - 5.0) / torch.tensor([1.0, 100.0, 0.01])) @ corruption.state_dict()["direction"]
    assert scores[wrong[0]].mean() > scores[~wrong[0]].max() - 0.3  # every feature counts, whatever its unit


@pytest.mark.parametrize("kind", ["none", "independent", "regional", "shared"])
def test_corruption_of_no_prediction_changes_nothing_and_draws_nothing(kind):
    obs = torch.randn(4, 50, 2)
    corruption, predicted = corrupted(kind, 0.0, obs)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    assert not wrong_in(predicted)[0].any()
    assert torch.equal(corruption.state_dict()["generator"], corrupted(kind, 0.0, obs)[0].state_dict()["generator"])


@pytest.mark.parametrize("kind", ["independent", "regional", "shared"])
def test_corruption_continues_from_its_state_and_leaves_the_global_generator_alone(kind):
    obs = torch.randn(4, 50, 2)
    corruption, _ = corrupted(kind, 0.4, obs)
    before = torch.get_rng_state()
    torch.manual_seed(77)
    other = Corruption(kind, 0.4, num_features=2, device=CPU)
    other.load_state_dict(corruption.state_dict())
    for _ in range(2):
        (wrong, row), (wrong2, row2) = corruption.draw(obs), other.draw(obs)
        assert torch.equal(wrong, wrong2)
        assert torch.equal(row, row2)
    torch.set_rng_state(before)


def test_a_batch_of_one_row_has_no_other():
    assert not wrong_in(corrupted("independent", 1.0, torch.randn(4, 1, 2))[1])[0].any()
