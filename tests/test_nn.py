"""Networks, heads, normalisers and the optimiser against autograd, torch.distributions, numpy and torch.optim."""

from __future__ import annotations

import copy
import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.errors import ConfigError, NonFiniteError
from rlx.nn.actor_critic import ActorCritic
from rlx.nn.flat import FlatAdam
from rlx.nn.heads import CategoricalHead, GaussianHead, make_head
from rlx.nn.mlp import MLP, forward_together
from rlx.nn.normalize import ObservationNormalizer, RewardScaler, RunningMoments
from rlx.types import EnvSpec

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


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


@pytest.mark.parametrize("sizes", [[3, 2], [3, 5, 2], [3, 8, 7, 2]])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_mlp_gradients_equal_autograds(activation, sizes):
    mlp = MLP(sizes, activation, output_gain=1.0).double()
    for p in mlp.parameters():
        nn.init.normal_(p, std=0.7)  # biases too
    reference = sequential(mlp)
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weight = torch.randn(6, 2, dtype=torch.float64)
    actual, expected = mlp(x), reference(y)
    torch.testing.assert_close(actual, expected, atol=1e-14, rtol=0)
    (actual.square() * weight).sum().backward()
    (expected.square() * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-12, rtol=0)
    for p, q in zip(mlp.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_mlp_passes_gradcheck(activation):
    mlp = MLP([3, 4, 2], activation, output_gain=1.0).double()
    assert torch.autograd.gradcheck(mlp, torch.randn(5, 3, dtype=torch.float64, requires_grad=True))


def test_networks_run_together_have_the_gradients_of_networks_run_apart():
    policy, critic = (MLP([3, 5, 4, n], "tanh", output_gain=1.0).double() for n in (2, 1))
    references = sequential(policy), sequential(critic)
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    params, value = forward_together(x, policy, critic)
    (params.square().sum() + 3 * value.square().sum()).backward()
    (references[0](y).square().sum() + 3 * references[1](y).square().sum()).backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-12, rtol=0)
    for network, reference in zip((policy, critic), references, strict=True):
        for p, q in zip(network.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, atol=1e-12, rtol=0)


def test_networks_run_together_take_a_loss_of_only_one_of_them():
    policy, critic = (MLP([3, 5, n], "tanh", output_gain=1.0).double() for n in (2, 1))
    reference = sequential(policy)
    x = torch.randn(6, 3, dtype=torch.float64)
    forward_together(x, policy, critic)[0].square().sum().backward()
    reference(x).square().sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in critic.parameters())
    for p, q in zip(policy.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-12, rtol=0)


def test_mlp_backward_takes_an_expanded_gradient():
    mlp = MLP([3, 4, 1], "tanh", output_gain=1.0).double()
    reference = sequential(mlp)
    x = torch.randn(6, 3, dtype=torch.float64)
    mlp(x).sum().backward()  # the gradient of sum is one number with stride 0
    reference(x).sum().backward()
    for p, q in zip(mlp.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-12, rtol=0)


def test_mlp_with_numpys_tanh_is_close_to_torchs():
    mlp = MLP([3, 64, 64, 2], "tanh", output_gain=1.0)
    x = 3 * torch.randn(256, 3)
    torch.testing.assert_close(mlp(x), sequential(mlp)(x), atol=2e-6, rtol=0)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_mlp_gives_the_same_with_and_without_gradients(activation):
    mlp, x = MLP([3, 8, 2], activation, output_gain=1.0), torch.randn(16, 3)
    with torch.no_grad():
        without = mlp(x)
    with torch.inference_mode():
        inference = mlp(x)
    assert torch.equal(mlp(x), without)
    assert torch.equal(inference, without)
    assert not without.requires_grad


def test_mlp_takes_inputs_that_are_not_contiguous_and_leaves_them_alone():
    mlp = MLP([3, 8, 2], "tanh", output_gain=1.0)
    wide = torch.randn(16, 6)
    x, before = wide[:, ::2], wide.clone()
    assert not x.is_contiguous()
    reference = sequential(mlp)
    actual, expected = mlp(x), reference(x.contiguous())
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    actual.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(mlp.layers[0].weight.grad, reference[0].weight.grad, atol=1e-5, rtol=0)
    assert torch.equal(wide, before)


def test_mlp_is_initialised_orthogonally_with_gain_sqrt_2_and_the_output_gain():
    mlp = MLP([16, 8, 8, 4], "tanh", output_gain=0.01)
    for layer, gain in zip(mlp.layers, [math.sqrt(2), math.sqrt(2), 0.01], strict=True):
        rows = layer.weight.shape[0]
        torch.testing.assert_close(layer.weight @ layer.weight.t(), gain**2 * torch.eye(rows), atol=1e-5 * gain**2, rtol=0)
        assert not layer.bias.any()


# ActorCritic


def test_first_policy_is_nearly_uniform_and_values_are_not_small():
    net = ActorCritic(make_spec(BOX3, spaces.Discrete(4)), hidden_sizes=[64, 64], activation="tanh")
    params, value = net(torch.randn(256, 3))
    assert (params.softmax(-1) - 0.25).abs().max() < 0.02
    assert value.std() > 0.1


@pytest.mark.parametrize("shared", [False, True])
def test_actor_critic_policy_and_value_agree_with_forward(shared):
    net = ActorCritic(make_spec(BOX3, spaces.Discrete(4)), hidden_sizes=[8], activation="tanh", shared=shared)
    x = torch.randn(5, 3)
    params, value = net(x)
    assert (params.shape, value.shape) == ((5, 4), (5,))
    torch.testing.assert_close(net.policy_params(x), params, atol=0, rtol=0)
    torch.testing.assert_close(net.value(x), value, atol=0, rtol=0)


def test_shared_network_initialises_its_value_row_with_gain_one():
    net = ActorCritic(make_spec(BOX3, spaces.Discrete(4)), hidden_sizes=[32], activation="tanh", shared=True)
    norms = net.policy.layers[-1].weight.norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([0.01, 0.01, 0.01, 0.01, 1.0]), atol=1e-5, rtol=0)


def test_byte_images_become_numbers_between_0_and_1():
    space = spaces.Box(0, 255, (2, 2), dtype=np.uint8)
    net = ActorCritic(make_spec(space, spaces.Discrete(2)), hidden_sizes=[], activation="tanh")
    obs = torch.tensor([[[0, 51], [102, 255]]], dtype=torch.uint8)
    torch.testing.assert_close(net.features(obs), torch.tensor([[0.0, 0.2, 0.4, 1.0]]))


def test_actor_critic_refuses_an_observation_that_is_not_a_box():
    with pytest.raises(ConfigError, match=r"env=Test-v0 has observation space Discrete\(3\).*expects a Box"):
        ActorCritic(make_spec(spaces.Discrete(3), spaces.Discrete(2)), hidden_sizes=[4], activation="tanh")


# FlatAdam


def small_net() -> nn.Module:
    return MLP([3, 8, 2], "tanh", output_gain=1.0)


def square_loss(net: nn.Module, x: Tensor) -> Tensor:
    return (net(x) - 1.0).square().mean()


@pytest.mark.parametrize("max_grad_norm", [0.05, 100.0])
def test_flat_adam_equals_adam_with_clipping_over_separate_tensors(max_grad_norm):
    # 0.05 clips every step, 100 none; the learning rate changes at every step
    net = small_net()
    reference = sequential(net)
    flat = FlatAdam(net, epsilon=1e-5, max_grad_norm=max_grad_norm)
    adam = torch.optim.Adam(reference.parameters(), lr=0.0, eps=1e-5)
    for step in range(1, 11):
        x = torch.randn(16, 3)
        norm = flat.step(square_loss(net, x), 1e-2 / step)
        adam.zero_grad()
        square_loss(reference, x).backward()
        expected_norm = nn.utils.clip_grad_norm_(reference.parameters(), max_grad_norm)
        adam.param_groups[0]["lr"] = 1e-2 / step
        adam.step()
        assert (expected_norm > max_grad_norm) == (max_grad_norm < 1)
        torch.testing.assert_close(norm, expected_norm, atol=1e-5, rtol=0)
        for p, q in zip(net.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p, q, atol=1e-5, rtol=0)


def test_flat_adam_trains_parameters_of_its_own_module():
    net = small_net()
    flat, before = FlatAdam(net, max_grad_norm=1.0), [p.detach().clone() for p in net.parameters()]
    flat.step(square_loss(net, torch.randn(16, 3)), 1e-2)
    assert all(not torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_flat_adam_state_continues_identically():
    net = small_net()
    flat = FlatAdam(net, max_grad_norm=0.5)
    batches = [torch.randn(16, 3) for _ in range(6)]
    for x in batches[:3]:
        flat.step(square_loss(net, x), 1e-2)
    weights, state = copy.deepcopy(net.state_dict()), copy.deepcopy(flat.state_dict())
    for x in batches[3:]:
        flat.step(square_loss(net, x), 1e-2)
    again = small_net()
    resumed = FlatAdam(again, max_grad_norm=0.5)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    for x in batches[3:]:
        resumed.step(square_loss(again, x), 1e-2)
    for p, q in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_flat_adam_does_not_accumulate_gradients():
    net = small_net()
    flat, x = FlatAdam(net, max_grad_norm=100.0), torch.randn(16, 3)
    first = flat.step(square_loss(net, x), 0.0)
    assert flat.step(square_loss(net, x), 0.0) == first


def bad_gradient(net: nn.Module, x: Tensor) -> Tensor:
    return (net(x) * math.nan).sum()


def infinite_gradient(net: nn.Module, x: Tensor) -> Tensor:
    return (net(x) * math.inf).sum()


def bad_loss_only(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).sum() + math.nan


@pytest.mark.parametrize("loss", [bad_gradient, infinite_gradient, bad_loss_only])
def test_flat_adam_refuses_what_is_not_finite_before_any_parameter_changes(loss, same):
    net, x = small_net(), torch.randn(16, 3)
    flat = FlatAdam(net, max_grad_norm=0.5)
    flat.step(square_loss(net, x), 1e-2)
    before = copy.deepcopy((net.state_dict(), flat.state_dict()))
    with pytest.raises(NonFiniteError, match=r"smaller algo\.learning_rate"):
        flat.step(loss(net, x), 1e-2)
    assert same((net.state_dict(), flat.state_dict()), before)


# Heads


def categorical_case() -> tuple[CategoricalHead, Tensor, Tensor, torch.distributions.Distribution]:
    logits = 2 * torch.randn(7, 4, dtype=torch.float64)
    return CategoricalHead(4), logits, torch.randint(4, (7,)), torch.distributions.Categorical(logits=logits)


def gaussian_case() -> tuple[GaussianHead, Tensor, Tensor, torch.distributions.Distribution]:
    head = GaussianHead(3, 0.0).double()
    nn.init.normal_(head.log_std, std=0.5)
    mean = torch.randn(7, 3, dtype=torch.float64)
    normal = torch.distributions.Normal(mean, head.log_std.detach().exp())
    return head, mean, torch.randn(7, 3, dtype=torch.float64), torch.distributions.Independent(normal, 1)


@pytest.mark.parametrize("case", [categorical_case, gaussian_case])
def test_head_log_prob_and_entropy_equal_torch_distributions(case):
    head, params, action, distribution = case()
    log_prob, entropy = head.log_prob_and_entropy(params, action, entropy_grad=True)
    assert log_prob.shape == entropy.shape == (7,)
    torch.testing.assert_close(log_prob, distribution.log_prob(action), atol=1e-12, rtol=0)
    torch.testing.assert_close(entropy, distribution.entropy(), atol=1e-12, rtol=0)
    torch.testing.assert_close(head.log_prob(params, action), log_prob, atol=0, rtol=0)


@pytest.mark.parametrize("case", [categorical_case, gaussian_case])
def test_head_entropy_has_its_gradient_only_when_asked(case):
    head, params, action, _ = case()
    sources = [params.requires_grad_(), *head.parameters()]
    _, with_grad = head.log_prob_and_entropy(params, action, entropy_grad=True)
    _, without = head.log_prob_and_entropy(params, action, entropy_grad=False)
    assert torch.equal(with_grad, without)
    assert not without.requires_grad
    grads = torch.autograd.grad(with_grad.sum(), sources, allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in grads)


def test_categorical_kl_equals_torch_distributions():
    head = CategoricalHead(4)
    old, new = torch.randn(2, 7, 4, dtype=torch.float64)
    expected = torch.distributions.kl_divergence(torch.distributions.Categorical(logits=old), torch.distributions.Categorical(logits=new))
    torch.testing.assert_close(head.kl(head.freeze(old), new), expected, atol=1e-12, rtol=0)


def test_gaussian_kl_equals_torch_distributions_when_mean_and_deviation_moved():
    head, old_mean, _, old = gaussian_case()
    frozen = head.freeze(old_mean)
    with torch.no_grad():
        head.log_std += torch.tensor([0.3, -0.2, 0.1])
    new_mean = old_mean + torch.randn_like(old_mean)
    new = torch.distributions.Independent(torch.distributions.Normal(new_mean, head.log_std.exp()), 1)
    torch.testing.assert_close(head.kl(frozen, new_mean), torch.distributions.kl_divergence(old, new), atol=1e-12, rtol=0)


@pytest.mark.parametrize("case", [categorical_case, gaussian_case])
def test_head_kl_to_itself_is_zero_and_frozen_parameters_carry_no_gradient(case):
    head, params, _, _ = case()
    frozen = head.freeze(params.requires_grad_())
    assert not frozen.requires_grad
    assert head.kl(frozen, params).abs().max() < 1e-12


def test_categorical_samples_with_the_frequencies_of_its_softmax():
    probs = torch.tensor([0.1, 0.2, 0.3, 0.4])
    samples = CategoricalHead(4).sample(probs.log().expand(100_000, 4))
    frequencies = torch.bincount(samples, minlength=4) / 100_000
    torch.testing.assert_close(frequencies, probs, atol=0.006, rtol=0)  # about 4 standard errors


def test_categorical_never_samples_what_has_no_probability():
    samples = CategoricalHead(3).sample(torch.tensor([0.0, -math.inf, 0.0]).expand(10_000, 3))
    assert set(samples.tolist()) == {0, 2}


def test_gaussian_samples_have_its_mean_and_deviation():
    head = GaussianHead(2, 0.0)
    head.log_std.data.copy_(torch.tensor([0.0, math.log(3.0)]))
    with torch.no_grad():
        samples = head.sample(torch.tensor([1.0, -2.0]).expand(100_000, 2))
    torch.testing.assert_close(samples.mean(0), torch.tensor([1.0, -2.0]), atol=0.04, rtol=0)
    torch.testing.assert_close(samples.std(0), torch.tensor([1.0, 3.0]), atol=0.04, rtol=0)
    assert abs(torch.corrcoef(samples.t())[0, 1]) < 0.02


def test_modes_are_the_most_likely_actions():
    assert CategoricalHead(3).mode(torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])).tolist() == [1, 0]
    assert GaussianHead(2, 0.0).mode(torch.tensor([[0.5, -1.5]])).tolist() == [[0.5, -1.5]]


def test_make_head_follows_the_action_space():
    assert make_head(make_spec(BOX3, spaces.Discrete(5)), log_std_init=0.0).num_outputs == 5
    gaussian = make_head(make_spec(BOX3, spaces.Box(-1.0, 1.0, (2,))), log_std_init=-0.5)
    assert gaussian.num_outputs == 2
    assert gaussian.log_std.tolist() == [-0.5, -0.5]


@pytest.mark.parametrize(
    "space", [spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), spaces.Box(-1.0, 1.0, (2, 2)), spaces.Box(0, 9, (2,), dtype=np.int64)]
)
def test_make_head_refuses_other_action_spaces(space):
    with pytest.raises(ConfigError, match=r"env=Test-v0 has action space .*expects Discrete\(n\) or a one-dimensional Box"):
        make_head(make_spec(BOX3, space), log_std_init=0.0)


def test_make_head_refuses_a_deviation_for_discrete_actions():
    with pytest.raises(ConfigError, match=r"algo\.log_std_init=-1\.0 has no effect"):
        make_head(make_spec(BOX3, spaces.Discrete(2)), log_std_init=-1.0)


# Normalisers


def test_running_moments_equal_numpys_over_all_chunks():
    data = np.random.default_rng(0).normal(3.0, 2.0, size=(1000, 2)) * [1.0, 100.0]
    moments = RunningMoments((2,))
    for chunk in np.split(data, [1, 7, 300, 301, 800]):
        moments.update(torch.from_numpy(chunk))
    # the prior counts as 1e-4 of a sample
    np.testing.assert_allclose(moments.mean, data.mean(0), rtol=1e-6)
    np.testing.assert_allclose(moments.variance, data.var(0), rtol=1e-6)
    assert moments.count.item() == pytest.approx(1000.0001)


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


def test_observation_normalizer_survives_a_constant_feature():
    normalizer = ObservationNormalizer(1, clip=10.0)
    normalizer.update(torch.full((1000, 1), 3.0))
    assert normalizer(torch.full((1, 1), 3.0)).abs().item() < 0.1


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
