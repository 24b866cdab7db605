"""The ensemble against networks computed one by one, and what it learns of processes whose noise is known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from rlx.errors import NonFiniteError
from rlx.models.ensemble import Ensemble, bound_log_variance, gaussian_nll, moments
from rlx.models.ensemble_rollouts import EnsembleModel, FrozenEnsemble
from rlx.models.fit import EnsembleConfig, EnsembleLearner, FitConfig, Fitted, fit
from rlx.nn.optim import FlatAdam
from rlx.types import ModelStep, Rollout

FIT = FitConfig(learning_rate=3e-3, batch_size=64, max_epochs=60, patience=10, weight_decay=1e-4)


def make(inputs: int = 4, outputs: int = 3, members: int = 5, **settings) -> Ensemble:
    ensemble = Ensemble(inputs, outputs, num_members=members, hidden_sizes=[16, 16], **{"learn_bounds": False, **settings})
    for bias in ensemble.biases:
        bias.data.normal_(std=0.3)
    return ensemble


def scaled() -> Ensemble:
    ensemble = make()
    ensemble.standardise(torch.randn(100, 4) * torch.tensor([1.0, 10.0, 0.1, 2.0]) + 3.0, torch.randn(100, 3) * 0.2 - 1.0)
    return ensemble


def one_member(ensemble: Ensemble, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [M, O] of member k for inputs [M, I], in the targets' units."""
    h = (x - ensemble.input_mean) * ensemble.input_scale
    for i, (weight, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
        h = h @ weight[k] + bias[k]
        h = h * torch.sigmoid(h) if i < len(ensemble.weights) - 1 else h
    mean, raw = h[:, : ensemble.num_outputs], h[:, ensemble.num_outputs :]
    raw = ensemble.high - torch.log1p((ensemble.high - raw).exp())
    log_variance = ensemble.low + torch.log1p((raw - ensemble.low).exp())
    return ensemble.output_mean + ensemble.output_scale * mean, ensemble.output_scale * (0.5 * log_variance).exp()


def train(ensemble: Ensemble, inputs: Tensor, targets: Tensor, *, holdout: Tensor | None = None, config: FitConfig = FIT) -> Fitted:
    counts = torch.poisson(torch.ones(len(inputs), ensemble.num_members)).long()
    if holdout is None:
        holdout = torch.rand(len(inputs)) < 0.1
    return fit(ensemble, FlatAdam(ensemble, epsilon=1e-8, max_grad_norm=100.0), inputs, targets, counts, holdout, config)


def predict(ensemble: Ensemble, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations [K, M, O]."""
    frozen = FrozenEnsemble(ensemble)
    mean, raw = frozen.predict((inputs - frozen.centre).expand(ensemble.num_members, -1, -1))
    return mean, frozen.spread(raw) * frozen.noise_scale


def test_a_batched_layer_equals_the_members_one_by_one():
    ensemble, x = scaled(), torch.randn(7, 4) * 5
    mean, std = predict(ensemble, x)
    for k in range(5):
        expected_mean, expected_std = one_member(ensemble, k, x)
        torch.testing.assert_close(mean[k], expected_mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(std[k], expected_std, atol=1e-6, rtol=1e-4)


def test_the_frozen_ensemble_predicts_what_is_trained():
    ensemble, x = scaled(), torch.randn(7, 4)
    mean, log_variance = ensemble(ensemble.scale_inputs(x).expand(5, -1, -1))
    frozen_mean, std = predict(ensemble, x)
    torch.testing.assert_close(frozen_mean, ensemble.output_mean + ensemble.output_scale * mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(std, ensemble.output_scale * (0.5 * log_variance).exp(), atol=1e-6, rtol=1e-4)


def test_the_log_variance_stays_within_its_bounds_and_is_itself_between():
    low, high = torch.tensor(-10.0), torch.tensor(0.5)
    bounded = bound_log_variance(torch.tensor([-1e4, -5.0, 1e4]), low, high)
    assert bounded.tolist() == pytest.approx([-10.0, -5.0, 0.5], abs=0.02)
    assert bounded.min() >= -10.0
    assert bounded.max() <= 0.501  # softplus(10.5) is 10.50003


def test_the_loss_by_hand():
    # (1 - 3)^2 / e^0 + 0 = 4, and (1 - 3)^2 / 4 + log 4 = 2.386
    nll = gaussian_nll(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 4.0]).clamp(min=1.0).log(), torch.tensor([3.0, 3.0]))
    assert nll.tolist() == pytest.approx([4.0, 2.3863], abs=1e-4)


def test_bounds_are_learned_only_on_request():
    for learn in (False, True):
        ensemble = make(learn_bounds=learn)
        train(ensemble, torch.randn(200, 4), torch.randn(200, 3))
        assert torch.equal(ensemble.high, torch.full((3,), 0.5)) != learn
        assert torch.equal(ensemble.low, torch.full((3,), -10.0)) != learn


def test_moments_in_double_precision_find_a_small_deviation_beside_a_large_mean():
    x = 1000.0 + torch.tensor([-0.25, 0.25]).repeat(5000)[:, None]
    mean, std = moments(x)
    assert mean.item() == 1000.0
    assert std.item() == pytest.approx(0.25, rel=1e-12)


def test_constant_features_are_not_divided_by_zero():
    inputs, targets = torch.randn(300, 4), torch.randn(300, 3) * 0.1
    inputs[:, 1], targets[:, 2] = 0.1, 0.0  # 0.1 is not a binary fraction: its computed variance need not be 0
    ensemble = make()
    fitted = train(ensemble, inputs, targets)
    assert torch.isfinite(torch.tensor([fitted.loss, fitted.holdout_nll, fitted.holdout_mse])).all()
    mean, std = predict(ensemble, inputs)
    assert torch.isfinite(mean).all()
    assert torch.equal(mean[..., 2], torch.zeros_like(mean[..., 2]))  # a constant is predicted exactly
    assert torch.equal(std[..., 2], torch.zeros_like(std[..., 2]))
    assert std[..., 0].min() > 0.0
    assert predict(ensemble, inputs + 1.0)[0].isfinite().all()  # it need not stay constant


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_data_that_are_not_finite_change_nothing(bad, same):
    ensemble, inputs = make(), torch.randn(50, 4)
    before = copy.deepcopy(ensemble.state_dict())
    inputs[3, 1] = bad
    with pytest.raises(NonFiniteError):
        train(ensemble, inputs, torch.randn(50, 3))
    assert same(ensemble.state_dict(), before)


def test_members_learn_the_noise_of_a_process_and_disagree_where_they_know_nothing():
    # y = sin(3 x) + noise of 0.05 left of 0 and 0.3 right of it, x within [-1, 1]
    x = torch.rand(2000, 1) * 2 - 1
    noise = torch.where(x < 0.0, 0.05, 0.3)
    y = torch.sin(3 * x) + noise * torch.randn_like(x)
    ensemble = make(1, 1)
    train(ensemble, x, y)
    grid = torch.linspace(0.3, 0.9, 50)[:, None]
    (left, left_std), (right, right_std), (beyond, _) = (predict(ensemble, x) for x in (-grid, grid, grid + 2.0))
    assert (left.mean(0) - torch.sin(-3 * grid)).abs().max() < 0.1
    assert left_std.mean().item() == pytest.approx(0.05, rel=0.3)
    assert right_std.mean().item() == pytest.approx(0.3, rel=0.2)
    assert beyond.std(0).mean() > 3 * max(left.std(0).mean(), right.std(0).mean())


def test_intervals_of_a_member_hold_the_share_they_promise():
    x = torch.randn(3000, 2)
    y = x[:, :1] * 0.5 + 0.2 * torch.randn(3000, 1)
    ensemble = make(2, 1)
    train(ensemble, x[:2000], y[:2000])
    mean, std = predict(ensemble, x[2000:])
    inside = ((y[2000:] - mean).abs() < std).float().mean().item()
    assert inside == pytest.approx(0.683, abs=0.05)


def test_held_out_rows_are_not_trained_on():
    x = torch.randn(400, 2)
    y = x[:, :1] * 0.5
    holdout = torch.arange(400) < 100
    y[holdout] = 5.0 + torch.randn(100, 1)  # a member that was trained on these would not predict the others
    ensemble = make(2, 1)
    before = [p.detach().clone() for p in ensemble.parameters()]
    fitted = train(ensemble, x, y, holdout=holdout, config=FitConfig(**{**FIT.__dict__, "patience": 3}))
    assert fitted.epochs < 10  # and what is learned of the others makes these worse, which ends the fit
    assert sum(torch.equal(a, b) for a, b in zip(before, ensemble.parameters(), strict=True)) >= 2


def test_each_member_keeps_its_best_weights():
    x, y = torch.randn(30, 4), torch.randn(30, 3)  # nothing to learn but the data by heart
    ensemble, holdout = make(), torch.arange(30) < 10
    fitted = train(ensemble, x, y, holdout=holdout, config=FitConfig(**{**FIT.__dict__, "max_epochs": 200, "patience": 200}))
    held = (ensemble.scale_inputs(x[:10]).expand(5, -1, -1), ensemble.scale_targets(y[:10]).expand(5, -1, -1))
    nll, mse = ensemble.losses(*held)
    assert fitted.epochs == 200
    assert fitted.holdout_nll == pytest.approx(nll.mean().item(), abs=1e-5)
    assert fitted.holdout_mse == pytest.approx(mse.mean().item(), abs=1e-5)
    assert fitted.loss < nll.mean().item() - 1.0


def test_without_held_out_data_all_epochs_are_taken():
    ensemble = make()
    fitted = train(ensemble, torch.randn(40, 4), torch.randn(40, 3), holdout=torch.zeros(40, dtype=torch.bool))
    assert fitted.epochs == 60
    assert fitted.holdout_nll != fitted.holdout_nll


def test_a_member_without_data_gets_all_of_them():
    ensemble = make()
    counts = torch.ones(10, 5, dtype=torch.long)
    counts[:, 2] = 0
    optimizer = FlatAdam(ensemble, epsilon=1e-8, max_grad_norm=100.0)
    fitted = fit(ensemble, optimizer, torch.randn(10, 4), torch.randn(10, 3), counts, torch.zeros(10, dtype=torch.bool), FIT)
    assert fitted.num_steps == 600  # ten a pass, however few the data
    assert torch.isfinite(predict(ensemble, torch.randn(3, 4))[0]).all()


def steps(length: int, num_envs: int = 2) -> Rollout:
    """A walk whose observation grows by half its action, and whose reward is twice the new observation."""
    action = torch.rand(length, num_envs, 1) * 2 - 1
    obs = torch.cat([torch.zeros(1, num_envs, 1), 0.5 * action.cumsum(0)])
    never = torch.zeros(length, num_envs, dtype=torch.bool)
    nothing = torch.zeros(0, dtype=torch.long)
    return Rollout(
        all_obs=obs, action=action, reward=2.0 * obs[1:, :, 0], terminated=never, truncated=never, is_first=never,
        final_t=nothing, final_b=nothing, final_obs=torch.zeros(0, 1), carry=(),
    )  # fmt: skip


def learner(**settings) -> EnsembleLearner:
    config = EnsembleConfig(**{
        "num_members": 3, "hidden_sizes": [16], "learn_bounds": False, "predict_reward": True, "replay_size": 1000, "bootstrap": True,
        "holdout_fraction": 0.1, **settings,
    })  # fmt: skip
    return EnsembleLearner(config, num_features=1, num_actions=1, num_envs=2, device=torch.device("cpu"))


def test_an_ensemble_is_fitted_to_rollouts_without_an_algorithm():
    fits, seen = learner(), steps(150)
    fits.add(seen)
    fitted = fits.fit(FitConfig(**{**FIT.__dict__, "batch_size": 32}))
    assert fitted.holdout_mse < 0.05  # always predicting the mean has 1
    torch.testing.assert_close(fits.obs_scale, seen.obs.flatten(0, 1).std(0, correction=0))
    mean, _ = predict(fits.ensemble, torch.tensor([[0.5, 0.4]]))  # observation 0.5, action 0.4
    assert mean.mean(0)[0].tolist() == pytest.approx([0.2, 1.4], abs=0.15)  # change of the observation, and reward


def test_steps_since_the_last_fit_are_those_that_it_did_not_have():
    fits, before, after = learner(), steps(20), steps(7)
    fits.add(before)
    fits.fit(FitConfig(**{**FIT.__dict__, "max_epochs": 1}))
    fits.add(after)
    (action,) = fits.since_last_fit("action")
    torch.testing.assert_close(action, after.action)


def test_without_bootstraps_every_member_has_every_row_once():
    fits = learner(bootstrap=False)
    fits.add(steps(5))
    assert (fits.replay["counts"] == 1).all()


# Imagination


def model(ensemble: Ensemble, propagation: str, *, num_particles: int = 1, **settings) -> EnsembleModel:
    return EnsembleModel(
        frozen=FrozenEnsemble(ensemble), obs_scale=torch.tensor([1.0, 2.0, 4.0]), propagation=propagation, num_particles=num_particles,
        reward_fn=lambda obs, action, next_obs: next_obs[..., 0] + action[..., 0], termination_fn=None, measure_disagreement=True,
        **settings,
    )  # fmt: skip


def take(model: EnsembleModel, obs: Tensor, actions: Tensor) -> ModelStep:
    """H steps under actions [H, B, N, A] from obs [B, D]."""
    return model.steps(model.initial(obs, actions.shape[2]), actions)


def quiet() -> Ensemble:
    """Members without noise."""
    ensemble = scaled()
    ensemble.high.data.fill_(-30.0)
    ensemble.low.data.fill_(-31.0)
    return ensemble


@pytest.mark.parametrize("particles", [1, 2])
def test_a_particle_of_ts_infinity_stays_with_its_member(particles):
    ensemble, obs, action = quiet(), torch.randn(2, 3), torch.randn(2, 4, 1)
    states = take(model(ensemble, "ts_inf", num_particles=particles), obs, action.expand(3, -1, -1, -1)).state[:, :, :particles]
    assert states.shape == (3, 5, particles, 2, 4, 3)
    for k in range(5):
        expected = obs[:, None].expand(2, 4, 3).reshape(8, 3)
        for _ in range(3):
            expected = expected + one_member(ensemble, k, torch.cat([expected, action.reshape(8, 1)], dim=1))[0]
        torch.testing.assert_close(states[-1, k, -1].reshape(8, 3), expected, atol=1e-4, rtol=1e-4)


def test_particles_of_ts_1_meet_every_member_and_keep_their_places():
    ensemble, obs = quiet(), torch.randn(1, 3)
    action = torch.zeros(1, 1, 1)
    each = torch.stack([one_member(ensemble, k, torch.cat([obs, action[0]], dim=1))[0][0] for k in range(5)])  # [K, D]
    met = []
    for _ in range(20):
        change = take(model(ensemble, "ts_1"), obs, action[None]).state[0, :, 0, 0, 0] - obs
        member = torch.cdist(change, each).argmin(1)
        torch.testing.assert_close(change, each[member], atol=1e-4, rtol=1e-4)
        assert sorted(member.tolist()) == list(range(5))  # each member predicts one of the five
        met.append(member)
    assert all(len(set(of_place)) == 5 for of_place in torch.stack(met).T.tolist())


def test_particles_of_ts_1_are_dealt_anew_at_every_step():
    ensemble, obs, actions = quiet(), torch.randn(1, 3), torch.randn(2, 1, 1, 1)
    places = torch.cat([obs.expand(1, 5, 3), take(model(ensemble, "ts_1"), obs, actions).state[:, :, 0, 0, 0]])
    for before, after, action in zip(places[:-1], places[1:], actions[:, 0], strict=True):
        of_members = torch.stack([one_member(ensemble, k, torch.cat([before, action.expand(5, 1)], dim=1))[0] for k in range(5)])
        apart = (before + of_members - after).abs().amax(-1)  # [member, place]
        assert sorted(apart.argmin(0).tolist()) == list(range(5))
        assert apart.amin(0).max() < 1e-4


def test_mean_propagation_goes_on_from_the_members_mean_without_noise():
    ensemble, obs, action = scaled(), torch.randn(1, 3), torch.randn(1, 2, 1)
    found = take(model(ensemble, "mean"), obs, action[None])
    x = torch.cat([obs.expand(2, 3), action[0]], dim=1)
    each = torch.stack([one_member(ensemble, k, x)[0] for k in range(5)])
    torch.testing.assert_close(found.state[0, 0, 0, 0], obs + each.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.reward[0, 0, 0], (obs + each.mean(0))[:, 0] + action[0, :, 0], atol=1e-5, rtol=1e-5)
    expected = (each.std(0, correction=0) / torch.tensor([1.0, 2.0, 4.0])).square().mean(1).sqrt()
    torch.testing.assert_close(found.disagreement[0, 0], expected, atol=1e-5, rtol=1e-4)


def test_candidates_share_their_noise_and_particles_do_not():
    ensemble = scaled()
    after = take(model(ensemble, "ts_inf", num_particles=3), torch.zeros(1, 3), torch.zeros(1, 1, 2, 1)).state[0, :, :3]
    mean, std = (p[:, 0] for p in predict(ensemble, torch.zeros(1, 4)))
    z = (after[:, :, 0] - mean[:, None, None]) / std[:, None, None]  # [K, P, N, D]
    torch.testing.assert_close(z, z[:, :, :1].expand_as(z), atol=1e-3, rtol=1e-3)
    particles = z[:, :, 0].flatten(0, 1)
    assert torch.pdist(particles[:, :1]).min() > 1e-4
    torch.testing.assert_close(particles.mean(0), torch.zeros(3), atol=1e-3, rtol=0.0)  # so that no plan can act against it


@pytest.mark.parametrize(("members", "particles"), [(2, 1), (5, 1), (1, 3)])
def test_the_noise_of_each_particle_is_standard_normal(members, particles):
    frozen = FrozenEnsemble(Ensemble(4, 3, num_members=members, hidden_sizes=[4], learn_bounds=False))
    imagination = EnsembleModel(
        frozen=frozen, obs_scale=torch.ones(3), propagation="ts_inf", num_particles=particles, reward_fn=None, termination_fn=None,
        measure_disagreement=False,
    )  # fmt: skip
    noise = imagination._noise((1, members, particles, 20_000, 7, 3))
    z = (noise / frozen.noise_scale)[0, ..., 0, :].flatten(0, 1)  # [K P, B, D]
    torch.testing.assert_close(z.std(1), torch.ones(members * particles, 3), atol=0.03, rtol=0.0)
    torch.testing.assert_close(z.mean(1), torch.zeros(members * particles, 3), atol=0.03, rtol=0.0)


@pytest.mark.parametrize("propagation", ["ts_inf", "ts_1"])
def test_noise_is_no_disagreement(propagation):
    """Members that are all the same agree, however much they know to be luck."""
    ensemble = scaled()
    for p in [*ensemble.weights, *ensemble.biases]:
        p.data = p.data[:1].expand_as(p.data).clone()
    found = take(model(ensemble, propagation, num_particles=2), torch.zeros(1, 3), torch.randn(4, 1, 6, 1))
    assert found.disagreement.max() < 1e-4
    assert found.reward.var(1).min() > 1e-3


def test_a_reward_that_is_learned_is_the_last_output():
    ensemble, obs, action = scaled(), torch.randn(1, 2), torch.randn(1, 1, 2)
    imagination = EnsembleModel(
        frozen=FrozenEnsemble(ensemble), obs_scale=torch.ones(2), propagation="ts_inf", num_particles=1, reward_fn=None,
        termination_fn=None, measure_disagreement=False,
    )  # fmt: skip
    expected = [one_member(ensemble, k, torch.cat([obs, action[0]], dim=1))[0][0, 2].item() for k in range(5)]
    found = take(imagination, obs, action[None])
    assert found.reward[0, :, 0, 0].tolist() == pytest.approx(expected, abs=1e-4)
    assert found.state.shape[-1] == 2


@pytest.mark.parametrize("propagation", ["ts_inf", "mean"])
def test_many_steps_at_once_are_the_same_as_one_after_the_other(propagation: str) -> None:
    one_by_one, obs, actions = model(quiet(), propagation, num_particles=2), torch.randn(2, 3), torch.randn(4, 2, 3, 1)
    state, steps = one_by_one.initial(obs, 3), []
    for action in actions:
        steps.append(one_by_one.step(state, action))
        state = steps[-1].state
    together = one_by_one.steps(one_by_one.initial(obs, 3), actions)
    for name in ("state", "reward", "disagreement"):
        torch.testing.assert_close(torch.stack([getattr(step, name) for step in steps]), getattr(together, name), atol=1e-4, rtol=1e-4)
