"""The network that algorithms learn through: autograd and the fast path give the same training, and encoders of others take part."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from gymnasium import spaces
from launch import POLICY_GRADIENT
from test_algos import CONTINUOUS, DISCRETE, build, make_rollout, update
from torch import Tensor, nn

from rlx.algos import ALGORITHMS
from rlx.nn import encoders
from rlx.types import EnvSpec, Rollout

SMALL = {"reinforce": {"episodes_per_update": 1}, "ppo": {"num_epochs": 2}, "a2c": {}}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in POLICY_GRADIENT} | {
    "ppo-shared": ("ppo", {"shared_network": True}),
    "normalized": ("ppo", {"normalize_observation": True}),
}


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize(("name", "settings"), VARIANTS.values(), ids=VARIANTS)
def test_training_through_autograd_equals_training_through_the_fast_path(name, settings, spec):
    config = ALGORITHMS[name].config(hidden_sizes=[8, 8], **SMALL[name], **settings)
    fast, slow = build(config, spec), build(config, spec)
    slow.load_state_dict(copy.deepcopy(fast.state_dict()))
    assert fast.net.by_hand
    slow.net.by_hand = False
    for _ in range(3):
        rollout = make_rollout(spec, end_prob=0.4)
        state = torch.get_rng_state()
        ours = update(fast, copy.deepcopy(rollout))
        torch.set_rng_state(state)
        assert update(slow, rollout) == pytest.approx(ours, abs=1e-5)
    for p, q in zip(fast.net.parameters(), slow.net.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=0)


class ConvEncoder(encoders.Encoder):
    """An encoder that rlx does not have: planes [N, 2, 4, 4] to 6 features."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.linear = nn.Linear(12, 6)

    def preprocess(self, obs: Tensor) -> Tensor:
        return obs / 2.0

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.linear(self.conv(inputs).relu().flatten(1))
        return features


PLANES = EnvSpec(id="Planes-v0", observation_space=spaces.Box(-1.0, 1.0, (2, 4, 4)), action_space=spaces.Discrete(2))


def planes_rollout() -> Rollout:
    rollout = make_rollout(PLANES, end_prob=0.4)
    rollout.all_obs, rollout.final_obs = torch.randn(13, 4, 2, 4, 4), torch.randn(len(rollout.final_t), 2, 4, 4)
    return rollout


@pytest.mark.parametrize("name", POLICY_GRADIENT)
def test_an_encoder_of_ones_own_is_trained_through_autograd(name, monkeypatch):
    def make(spec: EnvSpec, observation_clip: float | None) -> encoders.Encoder | None:
        return ConvEncoder() if spec.id == "Planes-v0" else None

    monkeypatch.setattr(encoders, "ENCODERS", [make, *encoders.ENCODERS])
    algo = build(ALGORITHMS[name].config(hidden_sizes=[8], learning_rate=1e-2, **SMALL[name]), PLANES)
    before = copy.deepcopy(algo.net.encoder.state_dict())
    assert update(algo, planes_rollout())["update/num_gradient_steps"] >= 1
    for key, weight in algo.net.encoder.state_dict().items():
        assert not torch.equal(weight, before[key])
    obs = torch.randn(5, 2, 4, 4)
    action, _, _ = algo.act(obs, algo.initial_carry(5), torch.ones(5, dtype=torch.bool), mode="eval")
    assert torch.equal(action, algo.net.policy_params(obs / 2.0).argmax(-1))
    loaded = build(algo.config, PLANES)
    loaded.load_state_dict(copy.deepcopy(algo.state_dict()))
    assert torch.equal(loaded.net.value(obs), algo.net.value(obs))
