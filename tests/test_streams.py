"""Networks whose first layers see one part of a Dict observation each."""

from __future__ import annotations

import copy

import pytest
import torch
from gymnasium import spaces
from test_algos import DISCRETE, build
from torch import Tensor

from rlx.config.algos.ppo_config import PPOConfig
from rlx.errors import ConfigError
from rlx.nn.losses import Batch, PolicyGradientLoss
from rlx.nn.mlp import MLP, Streams
from rlx.nn.networks import Network
from rlx.nn.optim import FlatAdam
from rlx.nn.policy_gradient import gradient_steps
from rlx.types import EnvSpec

BODY, TERRAIN = spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (5,))
SPEC = EnvSpec(id="Hurdles-v0", observation_space=spaces.Dict(body=BODY, terrain=TERRAIN), action_space=spaces.Box(-1.0, 1.0, (2,)))


def joined(mlp: MLP, x: Tensor) -> Tensor:
    """The same function as layers of their own for x[:, :3] and x[:, 3:], and layers for both."""
    blocks = [(slice(0, 4), slice(0, 3)), (slice(4, 8), slice(3, 8))], [(slice(0, 6), slice(0, 4)), (slice(6, 12), slice(4, 8))]
    parts = [x[:, :3], x[:, 3:]]
    for layer, of_layer in zip(mlp.linears[:2], blocks, strict=True):
        parts = [torch.tanh(part @ layer.weight[block].T + layer.bias[block[0]]) for part, block in zip(parts, of_layer, strict=True)]
    y = torch.cat(parts, dim=1)
    y = torch.tanh(mlp.linears[2](y))
    return mlp.linears[3](y)


def test_streams_are_layers_of_their_own_that_are_joined_later():
    mlp = MLP([8, 7, 2], "tanh", output_gain=1.0, streams=Streams((3, 5), (4, 6))).double()
    assert [(layer.in_features, layer.out_features) for layer in mlp.linears] == [(8, 8), (8, 12), (12, 7), (7, 2)]
    for p in mlp.parameters():
        p.grad = torch.zeros_like(p)
    x = torch.randn(9, 8, dtype=torch.float64)
    out, pullback = mlp.forward_vjp(x)
    reference = copy.deepcopy(mlp)
    torch.testing.assert_close(out, joined(reference, x).detach(), atol=1e-13, rtol=0)
    torch.testing.assert_close(out, mlp(x).detach(), atol=1e-13, rtol=0)
    pullback(2.0 * out)
    joined(reference, x).square().sum().backward()
    by_autograd = copy.deepcopy(mlp)
    by_autograd.zero_grad()
    by_autograd(x).square().sum().backward()
    for p, q, r in zip(mlp.parameters(), reference.parameters(), by_autograd.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-12, rtol=0)
        torch.testing.assert_close(r.grad, q.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shared", [False, True])
def test_kernels_and_autograd_train_streams_alike_and_leave_the_weights_between_them_at_0(shared):
    found = []
    first = Network(SPEC, hidden_sizes=[6], activation="tanh", stream_sizes=[4, 5], shared=shared, critic_hidden_sizes=[9])
    batch = Batch(torch.randn(300, 8), torch.randn(300, 2), *torch.randn(4, 300), None)
    loss = PolicyGradientLoss(objective="spo", value_coef=0.5, entropy_coef=0.01, normalize_advantage=True)
    order = torch.randperm(300)
    for way in ("kernels", "by hand", "autograd"):
        net = copy.deepcopy(first)
        net.compiles, net.by_hand = way == "kernels", way == "by hand"
        optimizer = FlatAdam(net, max_grad_norm=0.5)
        assert (net.compiled is not None) == (way == "kernels")
        for _ in range(2):
            steps = gradient_steps(net, optimizer, loss, batch, learning_rate=1e-3, order=order, num_minibatches=3)
        found.append([*net.parameters(), *steps])
        for trunk in net.trunks().values():
            assert not trunk.linears[0].weight[:4, 3:].any()
            assert not trunk.linears[0].weight[4:, :3].any()
            assert not trunk.linears[1].weight[5:, :4].any()
            assert trunk.linears[1].weight[:5, :4].all()
            assert not torch.equal(trunk.linears[0].weight[:4, :3], first.policy.linears[0].weight[:4, :3])
    for ours, by_hand, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
        torch.testing.assert_close(by_hand, theirs, atol=2e-5, rtol=0)


def test_blocks_of_streams_are_initialised_each_for_itself():
    mlp = MLP([8, 7, 2], "tanh", output_gain=1.0, streams=Streams((3, 5), (64,)))
    for rows, columns in ((slice(0, 64), slice(0, 3)), (slice(64, 128), slice(3, 8))):
        block = mlp.linears[0].weight[rows, columns]
        torch.testing.assert_close(block.T @ block, 2.0 * torch.eye(block.shape[1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "spec",
    [
        DISCRETE,
        EnvSpec(id="Camera-v0", observation_space=spaces.Dict(body=BODY, camera=spaces.Box(0, 255, (64, 64, 3), "uint8")),
                action_space=spaces.Discrete(2)),
    ],
    ids=["vector", "image"],
)  # fmt: skip
def test_streams_are_refused_where_there_are_no_vectors_to_separate(spec: EnvSpec):
    with pytest.raises(ConfigError, match=r"algo\.stream_sizes=\[8\] is for the vectors of a Dict observation"):
        build(PPOConfig(stream_sizes=[8]), spec)


def test_the_report_of_a_network_says_how_many_streams_it_has():
    report = build(PPOConfig(stream_sizes=[8], hidden_sizes=[8]), SPEC).network_report()
    assert [part["network"] for part in report["parts"]][-2:] == ["2x8-8 tanh", "2x8-8 tanh"]
