"""Networks of action values: gradients, masks, memories, and actions that explore."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.errors import ConfigError
from rlx.nn.q_networks import QNetwork
from rlx.spaces import ACTION_MASK
from rlx.types import EnvSpec

BOX = spaces.Box(-10.0, 10.0, (3,))
PLAIN = EnvSpec(id="Plain-v0", observation_space=BOX, action_space=spaces.Discrete(4))
MASKED = EnvSpec(
    id="Masked-v0", observation_space=spaces.Dict({"x": BOX, ACTION_MASK: spaces.MultiBinary(4)}), action_space=spaces.Discrete(4)
)
MASK = torch.tensor([[True, False, True, False]])


def make(spec: EnvSpec = PLAIN, **settings: Any) -> QNetwork:
    return QNetwork(spec, **{"hidden_sizes": [8, 8], "layer_norm": True} | settings)


def masked(x: Tensor) -> dict[str, Tensor]:
    return {"x": x, ACTION_MASK: MASK.expand(len(x), 4)}


def gradients(net: QNetwork) -> list[Tensor]:
    found = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    return found


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("spec", [PLAIN, MASKED], ids=["plain", "masked"])
def test_gradients_by_hand_equal_autograds(spec, layer_norm):
    net = make(spec, layer_norm=layer_norm).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    inputs = {"inputs": x, "mask": MASK.expand(6, 4)} if spec is MASKED else x
    weight = torch.randn(6, 4, dtype=torch.float64) * (MASK if spec is MASKED else 1)
    gradients(net)
    assert net.by_hand
    q, backward = net.forward_vjp(inputs)
    backward(weight)
    ours = gradients(net)
    net.by_hand = False
    again, backward = net.forward_vjp(inputs)
    backward(weight)
    torch.testing.assert_close(q, again, atol=1e-14, rtol=0)
    for a, b in zip(ours, gradients(net), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
        assert a.any()


def test_masked_actions_are_never_taken_and_never_the_best():
    net = make(MASKED)
    with torch.no_grad():
        net.trunk.linears[-1].bias[:] = torch.tensor([0.0, 50.0, 0.0, 50.0])  # the forbidden ones would be the best
    obs = masked(torch.randn(400, 3))
    is_first = torch.ones(400, dtype=torch.bool)
    for mode, epsilon in (("eval", 0.0), ("train", 0.0), ("train", 1.0)):
        action, _, _ = net.act(obs, (), is_first, mode, epsilon=epsilon)  # type: ignore[arg-type]
        assert set(action.tolist()) <= {0, 2}
    assert len(action.unique()) == 2  # of exploring
    q = net(net.preprocess(obs)).detach()
    assert torch.isfinite(q).all()
    assert torch.equal(net.value(net.preprocess(obs)), q[:, ::2].amax(-1))
    assert (q[:, 1::2] < -1e20).all()


@pytest.mark.parametrize("spec", [PLAIN, MASKED], ids=["plain", "masked"])
def test_training_explores_with_probability_epsilon_and_evaluation_does_not(spec):
    net, x = make(spec), torch.randn(1, 3).expand(8000, 3)
    obs = masked(x) if spec is MASKED else x
    is_first = torch.ones(8000, dtype=torch.bool)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    greedy = net.act(obs, (), is_first, "eval", epsilon=0.9).action
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    assert len(greedy.unique()) == 1
    shares = torch.bincount(net.act(obs, (), is_first, "train", epsilon=0.6).action, minlength=4) / 8000
    choices = 2 if spec is MASKED else 4
    expected = net.explain(obs, (), is_first, "train", epsilon=0.6)
    assert expected.probs is not None
    torch.testing.assert_close(shares, expected.probs[0], atol=0.03, rtol=0)
    assert expected.probs[0, greedy[0]].item() == pytest.approx(0.4 + 0.6 / choices)


@pytest.mark.parametrize("memory", ["lstm", "gru"])
def test_steps_with_a_memory_equal_its_unrolling_with_resets(memory):
    net = make(memory=memory, memory_size=5)
    obs, is_first = torch.randn(7, 2, 3), torch.rand(7, 2) < 0.4
    carry = begin = {name: torch.randn_like(leaf) for name, leaf in net.memory.initial(2).items()}
    steps = []
    with torch.no_grad():
        for t in range(7):
            q, value, carry = net.step(obs[t], carry, is_first[t])
            torch.testing.assert_close(value, q.amax(-1))
            steps.append(q)
        torch.testing.assert_close(torch.cat(steps), net(obs, begin, is_first), atol=1e-6, rtol=0)


@pytest.mark.parametrize("space", [spaces.Box(-1.0, 1.0, (2,)), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)])
def test_actions_that_are_no_single_choice_are_refused_with_what_to_use(space):
    with pytest.raises(ConfigError, match=r"Plain-v0 has actions .*expected Discrete.*algo=sac.*algo=ppo"):
        make(EnvSpec(id="Plain-v0", observation_space=BOX, action_space=space))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_acting_on_arrays_is_acting_on_tensors(activation):
    net, obs, is_first = make(activation=activation, layer_norm=False), torch.randn(500, 3), torch.ones(500, dtype=torch.bool)
    for epsilon in (0.0, 0.5):
        policy = net.array_policy(epsilon=epsilon)
        assert policy is not None
        torch.manual_seed(3)
        found = policy(obs.numpy())
        torch.manual_seed(3)
        assert (found == net.act(obs, (), is_first, "train", epsilon=epsilon).action.numpy()).all()
    assert make(MASKED).array_policy(epsilon=0.1) is None
    assert make(memory="gru").array_policy(epsilon=0.1) is None


def test_acting_on_arrays_normalises_layers_and_observations():
    net, obs, is_first = make(observation_clip=1.5), 3 * torch.randn(500, 3), torch.ones(500, dtype=torch.bool)
    net.encoder.absorb(obs[:50] + 1.0)
    before, policy = obs.clone(), net.array_policy(epsilon=0.0)
    assert policy is not None
    greedy = net.act(obs, (), is_first, "eval", epsilon=0.0).action.numpy()
    assert (policy(obs.numpy()) == greedy).mean() > 0.99  # but for rounding
    assert torch.equal(obs, before)
