"""Networks, normalisers and the optimiser against autograd, numpy and torch.optim."""

from __future__ import annotations

import copy
import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.errors import NonFiniteError
from rlx.nn.graphs import Replayed
from rlx.nn.mlp import MLP
from rlx.nn.networks import Network
from rlx.nn.normalize import ObservationNormalizer, RewardScaler, RunningMoments
from rlx.nn.optim import FlatAdam
from rlx.types import EnvSpec

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "elu": nn.ELU}


def sequential(mlp: MLP) -> nn.Sequential:
    """The same network out of torch's own modules."""
    modules: list[nn.Module] = []
    for layer in mlp.layers:
        modules += [copy.deepcopy(layer), ACTIVATIONS[mlp.activation]()]
    return nn.Sequential(*modules[:-1])


def make_spec(observation: gymnasium.Space, action: gymnasium.Space) -> EnvSpec:
    return EnvSpec(id="Test-v0", observation_space=observation, action_space=action)


BOX3 = spaces.Box(-1.0, 1.0, (3,))


# MLP


def with_zero_grads(module: nn.Module) -> nn.Module:
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    return module


@pytest.mark.parametrize("sizes", [[3, 2], [3, 5, 2], [3, 8, 7, 2]])
@pytest.mark.parametrize("activation", ["tanh", "relu", "silu", "gelu", "elu"])
def test_mlp_gradients_equal_autograds(activation, sizes):
    mlp = MLP(sizes, activation, output_gain=1.0).double()
    for p in mlp.parameters():
        nn.init.normal_(p, std=0.7)  # biases too
    reference = sequential(mlp)
    x, weight = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    with_zero_grads(mlp)
    actual, pullback = mlp.forward_vjp(x)
    expected = reference(x)
    torch.testing.assert_close(actual, expected.detach(), atol=1e-14, rtol=0)
    pullback(2 * actual * weight)
    (expected.square() * weight).sum().backward()
    for p, q in zip(mlp.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
def test_mlp_gradients_through_layer_norm_equal_autograds(activation):
    mlp = with_zero_grads(MLP([3, 8, 7, 2], activation, output_gain=1.0, layer_norm=True).double())
    for p in mlp.parameters():
        nn.init.normal_(p, std=0.7)
    x, weight = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    actual, pullback = mlp.forward_vjp(x)
    pullback(2 * actual * weight)
    ours = [p.grad for p in mlp.parameters()]
    with_zero_grads(mlp)
    expected = mlp(x)
    torch.testing.assert_close(actual, expected.detach(), atol=1e-14, rtol=0)
    (expected.square() * weight).sum().backward()
    for p, grad in zip(mlp.parameters(), ours, strict=True):
        torch.testing.assert_close(grad, p.grad, atol=1e-12, rtol=0)
        assert grad.any()


def test_mlp_pullback_adds_to_the_gradients_that_are_there():
    mlp = with_zero_grads(MLP([3, 5, 2], "tanh", output_gain=1.0))
    output, pullback = mlp.forward_vjp(torch.randn(6, 3))
    pullback(torch.ones_like(output))
    once = [p.grad.clone() for p in mlp.parameters()]
    pullback(torch.ones_like(output))
    for p, g in zip(mlp.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * g)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_mlp_forward_is_differentiable_in_its_input(activation):
    mlp = MLP([3, 4, 2], activation, output_gain=1.0).double()
    assert torch.autograd.gradcheck(mlp, torch.randn(5, 3, dtype=torch.float64, requires_grad=True))


def test_mlp_pullback_takes_an_expanded_gradient():
    mlp = with_zero_grads(MLP([3, 4, 1], "tanh", output_gain=1.0).double())
    reference = sequential(mlp)
    x = torch.randn(6, 3, dtype=torch.float64)
    mlp.forward_vjp(x)[1](torch.ones(1, 1, dtype=torch.float64).expand(6, 1))  # stride 0
    reference(x).sum().backward()
    for p, q in zip(mlp.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_mlp_in_its_three_forms_is_close_to_torchs_own(activation):
    # forward with and without autograd (in place, NumPy's tanh), and forward_vjp
    mlp = MLP([3, 64, 64, 2], activation, output_gain=1.0)
    for p in mlp.parameters():
        nn.init.normal_(p, std=0.1)
    x = 3 * torch.randn(256, 3)
    before, expected = x.clone(), sequential(mlp)(x).detach()
    with torch.no_grad():
        without = mlp(x)
    for form in (mlp(x).detach(), without, mlp.forward_vjp(x)[0]):
        torch.testing.assert_close(form, expected, atol=2e-6, rtol=0)
        assert form.dtype == torch.float32
    assert torch.equal(x, before)
    assert not without.requires_grad


def test_mlp_takes_inputs_that_are_not_contiguous_and_leaves_them_alone():
    mlp = with_zero_grads(MLP([3, 8, 2], "tanh", output_gain=1.0))
    wide = torch.randn(16, 6)
    x, before = wide[:, ::2], wide.clone()
    assert not x.is_contiguous()
    reference = sequential(mlp)
    actual, pullback = mlp.forward_vjp(x)
    expected = reference(x.contiguous())
    torch.testing.assert_close(actual, expected.detach(), atol=1e-6, rtol=0)
    pullback(torch.ones_like(actual))
    expected.sum().backward()
    torch.testing.assert_close(mlp.layers[0].weight.grad, reference[0].weight.grad, atol=1e-5, rtol=0)
    torch.testing.assert_close(mlp(x), expected, atol=1e-6, rtol=0)
    assert torch.equal(wide, before)


def test_mlp_is_initialised_orthogonally_with_gain_sqrt_2_and_the_output_gain():
    mlp = MLP([16, 8, 8, 4], "tanh", output_gain=0.01)
    for layer, gain in zip(mlp.layers, [math.sqrt(2), math.sqrt(2), 0.01], strict=True):
        rows = layer.weight.shape[0]
        torch.testing.assert_close(layer.weight @ layer.weight.t(), gain**2 * torch.eye(rows), atol=1e-5 * gain**2, rtol=0)
        assert not layer.bias.any()


# Network


def test_first_policy_is_nearly_uniform_and_values_are_not_small():
    net = Network(make_spec(BOX3, spaces.Discrete(4)), hidden_sizes=[64, 64], activation="tanh")
    x = torch.randn(256, 3)
    assert (net.policy_params(x).softmax(-1) - 0.25).abs().max() < 0.02
    assert net.value(x).std() > 0.1


@pytest.mark.parametrize("shared", [False, True])
def test_actor_critic_gradients_equal_autograds(shared):
    net = with_zero_grads(Network(make_spec(BOX3, spaces.Discrete(4)), hidden_sizes=[8, 8], activation="tanh", shared=shared)).double()
    x, d_params, d_value = torch.randn(5, 3).double(), torch.randn(5, 4).double(), torch.randn(5).double()
    params, value, pullback = net.forward_vjp(x)
    assert (params.shape, value.shape) == ((5, 4), (5,))
    torch.testing.assert_close(net.policy_params(x), params, atol=1e-12, rtol=0)
    torch.testing.assert_close(net.value(x), value, atol=1e-12, rtol=0)
    loss = (net.policy_params(x) * d_params).sum() + (net.value(x) * d_value).sum()
    expected = torch.autograd.grad(loss, list(net.parameters()))
    with_zero_grads(net)
    pullback(d_params, d_value)
    for p, g in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, atol=1e-12, rtol=0)


ACTING = {
    "discrete": (BOX3, spaces.Discrete(4), {}),
    "continuous": (BOX3, spaces.Box(-1.0, 1.0, (2,)), {"log_std_init": -0.5}),
    "shared": (BOX3, spaces.Discrete(4), {"shared": True, "activation": "relu"}),
    "normalized": (BOX3, spaces.Box(-1.0, 1.0, (2,)), {"observation_clip": 1.5}),
    "image": (spaces.Box(0, 255, (2, 3), dtype=np.uint8), spaces.Discrete(4), {}),
    "bits": (spaces.Box(0, 1, (4, 2, 3), dtype=np.uint8), spaces.Discrete(4), {}),
    "one_hot": (spaces.Box(0, 1, (3,), dtype=np.int64), spaces.Discrete(4), {}),
    "large": (BOX3, spaces.Discrete(4), {"hidden_sizes": [256, 256, 32]}),
}


@pytest.mark.parametrize(("observation", "action", "settings"), ACTING.values(), ids=ACTING)
def test_acting_follows_the_policy_through_training_and_loading(observation, action, settings):
    def build() -> Network:
        net = Network(make_spec(observation, action), **{"hidden_sizes": [16], "activation": "tanh"} | settings)
        for p in net.parameters():
            nn.init.normal_(p, std=0.3)
        return net

    obs = torch.from_numpy(np.stack([observation.sample() for _ in range(32)]))
    before = obs.clone()

    def check(net: Network) -> None:
        expected = net.head.mode(net.policy_params(net.preprocess(obs))).detach()
        torch.testing.assert_close(net.act(obs, (), torch.ones(len(obs), dtype=torch.bool), "eval")[0], expected, atol=1e-5, rtol=0)
        assert torch.equal(obs, before)

    net = build()
    check(net)
    optimizer = FlatAdam(net, max_grad_norm=1.0)  # the parameters move to another place
    check(net)
    optimizer.zero_grad()
    (net.policy_params(net.preprocess(obs)).square().sum() + net.value(net.preprocess(obs)).sum()).backward()
    optimizer.step(torch.tensor(1.0), 0.1)  # and change there
    if net.encoder.normalizer:
        net.encoder.normalizer.update(net.encoder.raw(obs))
    check(net)
    net.load_state_dict(copy.deepcopy(build().state_dict()))
    check(net)
    copied = copy.deepcopy(net)
    nn.init.normal_(copied.policy.layers[0].weight)
    check(copied)
    check(net)


@pytest.mark.parametrize("hidden_sizes", [[16], [512, 512, 32]], ids=["compiled", "torch"])
def test_acting_samples_from_the_policy(hidden_sizes):
    def build(action: gymnasium.Space, **settings: float) -> Network:
        net = Network(make_spec(BOX3, action), hidden_sizes=hidden_sizes, activation="tanh", **settings)
        nn.init.normal_(net.policy.layers[-1].bias)
        FlatAdam(net, max_grad_norm=1.0)  # kernels take parameters in one vector
        assert (net.compiled is not None) == (hidden_sizes == [16])
        return net

    obs = torch.randn(1, 3).expand(50_000, 3).contiguous()
    net = build(spaces.Discrete(4))
    actions = net.act(obs, (), torch.ones(len(obs), dtype=torch.bool), "train")[0]
    assert actions.dtype == torch.int64
    probs = net.policy_params(obs[:1])[0].softmax(-1).detach()
    torch.testing.assert_close(torch.bincount(actions, minlength=4) / 50_000, probs, atol=0.009, rtol=0)  # 4 standard errors

    net = build(spaces.Box(-1.0, 1.0, (2,)), log_std_init=-0.5)
    actions = net.act(obs, (), torch.ones(len(obs), dtype=torch.bool), "train")[0]
    assert (actions.dtype, actions.shape) == (torch.float32, (50_000, 2))
    torch.testing.assert_close(actions.mean(0), net.policy_params(obs[:1])[0].detach(), atol=0.012, rtol=0)
    torch.testing.assert_close(actions.std(0), torch.full((2,), math.exp(-0.5)), atol=0.009, rtol=0)


def test_shared_network_initialises_its_value_row_with_gain_one():
    net = Network(make_spec(BOX3, spaces.Discrete(4)), hidden_sizes=[32], activation="tanh", shared=True)
    norms = net.policy.layers[-1].weight.norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([0.01, 0.01, 0.01, 0.01, 1.0]), atol=1e-5, rtol=0)


def test_byte_images_become_numbers_between_0_and_1():
    space = spaces.Box(0, 255, (2, 2), dtype=np.uint8)
    net = Network(make_spec(space, spaces.Discrete(2)), hidden_sizes=[], activation="tanh")
    obs = torch.tensor([[[0, 51], [102, 255]]], dtype=torch.uint8)
    torch.testing.assert_close(net.preprocess(obs), torch.tensor([[0.0, 0.2, 0.4, 1.0]]))


def test_bytes_that_are_bits_stay_what_they_are():
    space = spaces.Box(0, 1, (1, 2, 2), dtype=np.uint8)
    net = Network(make_spec(space, spaces.Discrete(2)), hidden_sizes=[], activation="tanh")
    obs = torch.tensor([[[[0, 1], [1, 0]]]], dtype=torch.uint8)
    torch.testing.assert_close(net.preprocess(obs), torch.tensor([[0.0, 1.0, 1.0, 0.0]]))


# FlatAdam


def small_net() -> nn.Module:
    return MLP([3, 8, 2], "tanh", output_gain=1.0)


def square_loss(net: nn.Module, x: Tensor) -> Tensor:
    return (net(x) - 1.0).square().mean()


def train_step(optimizer: FlatAdam, loss: Tensor, learning_rate: float) -> Tensor:
    optimizer.zero_grad()
    loss.backward()
    return optimizer.step(loss, learning_rate)


@pytest.mark.parametrize("max_grad_norm", [0.05, 100.0])
def test_flat_adam_equals_adam_with_clipping_over_separate_tensors(max_grad_norm):
    # 0.05 clips every step, 100 none; the learning rate changes at every step
    net = small_net()
    reference = sequential(net)
    flat = FlatAdam(net, epsilon=1e-5, max_grad_norm=max_grad_norm)
    adam = torch.optim.Adam(reference.parameters(), lr=0.0, eps=1e-5)
    for step in range(1, 11):
        x = torch.randn(16, 3)
        norm = train_step(flat, square_loss(net, x), 1e-2 / step)
        adam.zero_grad()
        square_loss(reference, x).backward()
        expected_norm = nn.utils.clip_grad_norm_(reference.parameters(), max_grad_norm)
        adam.param_groups[0]["lr"] = 1e-2 / step
        adam.step()
        assert (expected_norm > max_grad_norm) == (max_grad_norm < 1)
        torch.testing.assert_close(norm, expected_norm, atol=1e-5, rtol=0)
        for p, q in zip(net.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p, q, atol=1e-5, rtol=0)


def test_flat_adam_golden_first_step():
    # the first step of Adam is -lr * g / (|g| + eps), whatever the size of g
    net = MLP([1, 1], "tanh", output_gain=1.0)
    flat = FlatAdam(net, epsilon=1e-5, max_grad_norm=100.0)
    before = net.layers[0].weight.item(), net.layers[0].bias.item()
    train_step(flat, 3.0 * net(torch.tensor([[-2.0]])).sum(), 0.1)
    assert net.layers[0].weight.item() == pytest.approx(before[0] + 0.1, abs=1e-5)
    assert net.layers[0].bias.item() == pytest.approx(before[1] - 0.1, abs=1e-5)


def test_flat_adam_state_continues_identically(same):
    net = small_net()
    flat = FlatAdam(net, max_grad_norm=0.5)
    batches = [torch.randn(16, 3) for _ in range(6)]
    for x in batches[:3]:
        train_step(flat, square_loss(net, x), 1e-2)
    weights, state = copy.deepcopy(net.state_dict()), flat.state_dict()
    for x in batches[3:]:
        train_step(flat, square_loss(net, x), 1e-2)
    again = small_net()
    resumed = FlatAdam(again, max_grad_norm=0.5)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    for x in batches[3:]:
        train_step(resumed, square_loss(again, x), 1e-2)
    assert same(again.state_dict(), net.state_dict())
    assert same(resumed.state_dict(), flat.state_dict())


def test_flat_adam_does_not_accumulate_gradients():
    net = small_net()
    flat, x = FlatAdam(net, max_grad_norm=100.0), torch.randn(16, 3)
    first = train_step(flat, square_loss(net, x), 0.0)
    assert train_step(flat, square_loss(net, x), 0.0) == first


BAD_LOSSES = {
    "gradient is nan": lambda y: (y * math.nan).sum(),
    "gradient is infinite": lambda y: (y * math.inf).sum(),
    "only the loss is nan": lambda y: y.sum() + math.nan,
    "only the loss is infinite": lambda y: y.sum() - math.inf,
    "only one gradient is nan": lambda y: y.sum() + (y[0, 0] - y[0, 0].detach()) * math.nan,
}


@pytest.mark.parametrize("loss", BAD_LOSSES.values(), ids=BAD_LOSSES)
def test_flat_adam_refuses_what_is_not_finite_before_any_parameter_changes(loss, same):
    net, x = small_net(), torch.randn(16, 3)
    flat = FlatAdam(net, max_grad_norm=0.5)
    train_step(flat, square_loss(net, x), 1e-2)
    before = copy.deepcopy((net.state_dict(), flat.state_dict()))
    with pytest.raises(NonFiniteError, match=r"smaller algo\.learning_rate"):
        train_step(flat, loss(net(x)), 1e-2)
    assert same((net.state_dict(), flat.state_dict()), before)


# Normalisers


def test_running_moments_equal_numpys_over_all_chunks():
    data = np.random.default_rng(0).normal(3.0, 2.0, size=(1000, 2)) * [1.0, 100.0]
    moments = RunningMoments((2,))
    for chunk in np.split(data, [1, 7, 300, 301, 800]):
        moments.update(torch.from_numpy(chunk))
    np.testing.assert_allclose(moments.mean, data.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, data.var(0), rtol=1e-12)
    assert moments.count.item() == 1000.0


def test_running_moments_begin_with_what_came_and_not_with_zero():
    moments = RunningMoments(())
    moments.update(1e6 + torch.randn(100, dtype=torch.float64))  # a hundredth of a millionth of a sample at 0 would be deviation 10
    assert moments.std.item() == pytest.approx(1.0, abs=0.2)


def test_running_moments_do_not_depend_on_how_the_stream_is_cut():
    data = torch.randn(100, 3, dtype=torch.float64) + 5
    whole, pieces = RunningMoments((3,)), RunningMoments((3,))
    whole.update(data)
    for piece in data.split([1, 2, 40, 57]):
        pieces.update(piece)
    torch.testing.assert_close(pieces.mean, whole.mean, atol=1e-12, rtol=0)
    torch.testing.assert_close(pieces.variance, whole.variance, atol=1e-12, rtol=0)


def test_observation_normalizer_gives_zero_mean_and_unit_deviation_after_an_update():
    features = torch.randn(10_000, 2) * torch.tensor([3.0, 0.1]) + torch.tensor([5.0, -2.0])
    normalizer = ObservationNormalizer(2, clip=10.0)
    normalizer.update(features)
    out = normalizer(features)
    torch.testing.assert_close(out.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(2), atol=1e-4, rtol=0)


def test_observation_normalizer_changes_only_in_update(same):
    normalizer, features = ObservationNormalizer(2, clip=10.0), torch.randn(50, 2) + 4
    assert torch.equal(normalizer(features), features)  # the identity before the first update
    normalizer.update(features)
    before = copy.deepcopy(normalizer.state_dict())
    normalizer(features + 100)
    assert same(normalizer.state_dict(), before)


@pytest.mark.parametrize("make", [lambda: ObservationNormalizer(2, clip=5.0), lambda: RewardScaler(2, discount=0.9, clip=5.0)])
def test_normalizer_state_continues_identically(make, same):
    batches = torch.randn(4, 30, 2) * 3 + 1
    none = torch.zeros(30, 2, dtype=torch.bool)

    def absorb(module: nn.Module, batch: Tensor) -> Tensor:
        if isinstance(module, RewardScaler):
            return module(batch, none)
        module.update(batch)
        return module(batch)

    module, again = make(), make()
    for batch in batches[:2]:
        absorb(module, batch)
    again.load_state_dict(copy.deepcopy(module.state_dict()))
    for batch in batches[2:]:
        assert torch.equal(absorb(module, batch), absorb(again, batch))
    assert same(module.state_dict(), again.state_dict())


def test_observation_normalizer_clips_both_ways_and_leaves_its_input_alone():
    normalizer, features = ObservationNormalizer(1, clip=2.0), torch.tensor([[-5.0], [1.0], [5.0]])
    assert normalizer(features).tolist() == [[-2.0], [1.0], [2.0]]
    assert features.tolist() == [[-5.0], [1.0], [5.0]]


@pytest.mark.parametrize("constant", [0.0, 3.0, -1e4])
def test_a_feature_that_has_been_constant_is_not_blown_up_where_it_begins_to_vary(constant):
    normalizer = ObservationNormalizer(1, clip=10.0)
    normalizer.update(torch.full((1000, 1), constant))
    out = normalizer(torch.tensor([[constant], [constant + 1.0], [constant - 0.01]]))
    torch.testing.assert_close(out, torch.tensor([[0.0], [1.0], [-0.01]]), atol=2e-3, rtol=0)


def test_heights_that_are_0_until_they_are_met_are_not_scaled_up_to_the_clip():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(20_000, 2, generator=draw)
    met = torch.rand(20_000, generator=draw) < 1 / 4000
    features[:, 1] = torch.where(met, 0.05 + 0.3 * torch.rand(20_000, generator=draw), 0.0)
    normalizer, unbounded = ObservationNormalizer(2, clip=10.0), ObservationNormalizer(2, clip=10.0, bounds_rare=False)
    for batch in features.split(1000):
        normalizer.update(batch)
        unbounded.update(batch)
    assert unbounded.scale[1] > 200
    assert unbounded(features[met])[:, 1].mean() > 9
    heights = normalizer(features[met])[:, 1]
    assert heights.square().mean().sqrt() == pytest.approx(3.0, rel=0.05)
    assert heights.max() < 5
    assert heights.std() > 0.5  # a high hurdle differs from a low one
    assert torch.equal(normalizer.scale[0], unbounded.scale[0])


@pytest.mark.parametrize("usual", [0.0, 1.0])
@pytest.mark.parametrize("share", [0.14, 0.3, 0.6, 1.0])
def test_features_that_vary_more_often_keep_their_standard_deviation(share, usual):
    features = torch.where(torch.rand(4000, 1) < share, usual + 5.0, usual)
    normalizer, unbounded = ObservationNormalizer(1, clip=10.0), ObservationNormalizer(1, clip=10.0, bounds_rare=False)
    normalizer.update(features)
    unbounded.update(features)
    assert torch.equal(normalizer.scale, unbounded.scale)


def test_reward_scaler_equals_the_step_by_step_loop_over_two_rollouts():
    discount, length, num_envs = 0.9, 20, 3
    scaler = RewardScaler(num_envs, discount=discount, clip=0.8)
    running, seen = np.zeros(num_envs), []
    for _ in range(2):
        reward = torch.randn(length, num_envs) + 0.5
        is_last = torch.rand(length, num_envs) < 0.2
        is_last[-1, 0] = True  # one env begins the second rollout with a new episode, one does not
        is_last[-1, 1] = False
        scaled = scaler(reward, is_last)
        for t in range(length):  # baselines' VecNormalize.step_wait
            running = running * discount + reward[t].numpy().astype(np.float64)
            seen.append(running.copy())
            running[is_last[t].numpy()] = 0.0
        expected = np.clip(reward.numpy() / np.sqrt(np.var(seen)), -0.8, 0.8)
        np.testing.assert_allclose(scaled.numpy(), expected, atol=1e-4)
        np.testing.assert_allclose(scaler.running_return, running, atol=1e-5)
        assert (np.abs(expected) == 0.8).any()


def test_reward_scaler_resets_the_return_behind_an_episodes_last_reward():
    # returns: 1, 2 + 0.5 * 1 = 2.5 (last), 4; mean 2.5, variance (2.25 + 0 + 2.25) / 3 = 1.5
    scaler = RewardScaler(1, discount=0.5, clip=10.0)
    scaled = scaler(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[False], [True], [False]]))
    np.testing.assert_allclose(scaled.flatten(), np.array([1.0, 2.0, 4.0]) / math.sqrt(1.5), rtol=1e-4)
    assert scaler.running_return.tolist() == [4.0]


def test_reward_scaler_takes_rollouts_of_one_step():
    scaler = RewardScaler(2, discount=0.5, clip=10.0)
    scaler(torch.tensor([[1.0, 1.0]]), torch.tensor([[False, True]]))
    scaler(torch.tensor([[3.0, 3.0]]), torch.tensor([[False, False]]))
    assert scaler.running_return.tolist() == [3.5, 3.0]


def test_reward_scaler_never_shifts():
    scaler = RewardScaler(1, discount=0.9, clip=10.0)
    scaled = scaler(torch.tensor([[5.0], [0.0], [6.0]]), torch.zeros(3, 1, dtype=torch.bool))
    assert scaled[1].item() == 0.0
    assert scaled[0].item() > 0.0


# Replaying what was recorded


def test_where_there_is_no_cuda_device_nothing_is_recorded():
    calls: list[int] = []
    replayed = Replayed(lambda x: (calls.append(1), (x + 1.0,))[1])
    assert [replayed(torch.full((2,), float(i)))[0].tolist() for i in range(3)] == [[1, 1], [2, 2], [3, 3]]
    assert len(calls) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes a CUDA device")
@pytest.mark.parametrize("reads", [False, True])
def test_what_is_replayed_is_what_would_have_been_called_random_numbers_included(reads):
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return x + torch.randn_like(x) * (float(x.sum()) if reads else 2.0), x * 3.0

    replayed, found = Replayed(function), []
    for call in (function, replayed, Replayed(function)):
        torch.cuda.manual_seed(1)
        found.append([call(torch.full((size,), float(i), device="cuda")) for i in range(3) for size in (2, 5)])
    for others in found[1:]:
        for a, b in zip(found[0], others, strict=True):
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])
