"""The network interface of algorithms: autograd and the fast path train alike, and users' own encoders work."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import pytest
import torch
from gymnasium import spaces
from launch import POLICY_GRADIENT
from test_algos import CONTINUOUS, DISCRETE, build, make_rollout, update
from torch import Tensor, nn

from rlx import compiled_code
from rlx.config.algo_registry import ALGORITHMS
from rlx.envs.control import cartpole
from rlx.errors import NonFiniteError, StorageError
from rlx.nn import encoders
from rlx.nn.leaf_encoders import Encoder, EncoderSettings
from rlx.nn.losses import Batch, PolicyGradientLoss, Steps
from rlx.nn.mlp import activate
from rlx.nn.networks import Network
from rlx.nn.optim import FlatAdam
from rlx.nn.policy_gradient import gradient_steps
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
    assert fast.net.compiled is not None
    slow.net.compiles = slow.net.by_hand = False
    for _ in range(3):
        rollout = make_rollout(spec, end_prob=0.4)
        state = torch.get_rng_state()
        ours = update(fast, copy.deepcopy(rollout))
        torch.set_rng_state(state)
        assert update(slow, rollout) == pytest.approx(ours, abs=1e-5)
    for p, q in zip(fast.net.parameters(), slow.net.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=0)


class ConvEncoder(Encoder):
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
    def make(spec: EnvSpec, settings: EncoderSettings) -> Encoder | None:
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


def kernel_case(gaussian: bool, **network: Any) -> tuple[Network, FlatAdam, EnvSpec]:
    spec = CONTINUOUS if gaussian else DISCRETE
    net = Network(spec, **{"hidden_sizes": [8, 8], "activation": "tanh"} | network)
    for p in net.parameters():
        nn.init.normal_(p, std=p.shape[-1] ** -0.5)
    return net, FlatAdam(net, max_grad_norm=1e9), spec


NETWORKS: list[dict[str, Any]] = [
    {"gaussian": gaussian, "hidden_sizes": sizes, "activation": activation, "shared": shared}
    for gaussian in (False, True)
    for sizes, activation, shared in [([], "tanh", False), ([7], "relu", True), ([8, 5], "tanh", True), ([9, 130, 3], "relu", False)]
]
NETWORKS += [{"gaussian": True, "hidden_sizes": [6], "critic_hidden_sizes": sizes} for sizes in ([], [40, 20, 5])]
NETWORKS += [{"gaussian": a == "silu", "hidden_sizes": [9, 130, 3], "activation": a} for a in ("silu", "gelu", "elu")]
LOSSES: list[dict[str, Any]] = [
    {"objective": "log_prob"},
    {"objective": "surrogate", "kl_coef": 0.7, "normalize_advantage": True},
    {"objective": "clip", "value_clip": 0.1, "normalize_advantage": True},
    {"objective": "spo", "clip": 0.3},
]


@pytest.mark.parametrize("num_rows", [1, 5, 300])
@pytest.mark.parametrize("settings", NETWORKS, ids=lambda s: "-".join(map(str, s.values())))
def test_the_kernels_gradients_and_losses_equal_autograds(settings, num_rows):
    for loss_settings in LOSSES:
        net, optimizer, spec = kernel_case(**settings)
        loss = PolicyGradientLoss(**{"value_coef": 0.6, "entropy_coef": 0.05, "normalize_advantage": False} | loss_settings)
        inputs, action = torch.randn(num_rows, 3), torch.randint(2, (num_rows,)) if spec is DISCRETE else torch.randn(num_rows, 2)
        params = net.policy_params(inputs).detach()
        old_params = net.head.freeze(params + 0.1 * torch.randn_like(params))
        old_log_prob = net.head.log_prob(params, action).detach() + 0.2 * torch.randn(num_rows)
        if loss.objective == "log_prob":
            old_log_prob.zero_()
        batch = Batch(inputs, action, *torch.randn(3, num_rows), old_log_prob, old_params)
        before, found = [p.detach().clone() for p in net.parameters()], []
        for compiles in (True, False):
            net.compiles, net.by_hand, net._home = compiles, False, 0
            assert (net.compiled is not None) == compiles
            for p, old in zip(net.parameters(), before, strict=True):
                p.data.copy_(old)
            steps = gradient_steps(net, optimizer, loss, batch, learning_rate=1e-3)
            found.append((torch.from_numpy(optimizer.arrays()[0].copy()), *steps))
        names = ("gradient", *Steps._fields)
        for name, ours, theirs in zip(names, *found, strict=True):
            size = max(1.0, theirs.abs().max().item())
            torch.testing.assert_close(ours, theirs, atol=1e-4 * size, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("activation", ["tanh", "relu", "silu", "gelu", "elu"])
def test_the_kernels_activations_are_exact_to_a_few_digits_of_float32(activation):
    net, _, _ = kernel_case(True, hidden_sizes=[1], activation=activation)
    for p in net.parameters():
        p.data.fill_(1.0 if p.ndim == 2 else 0.0)
    x = torch.cat((torch.linspace(-20, 20, 4001), torch.logspace(-8, 0, 100), -torch.logspace(-8, 0, 100))).unsqueeze(1)
    inputs = torch.cat((x, torch.zeros(len(x), 2)), dim=1)
    assert net.compiled is not None
    expected = activate(x.double(), activation)
    error = (net.value(inputs).double() - expected[:, 0]).abs() / (1.0 + x[:, 0].abs())
    assert error.max() < 1e-6
    assert net.value(torch.tensor([[math.nan, 0.0, 0.0]])).isnan().all()


@pytest.mark.parametrize("gaussian", [False, True])
def test_the_kernels_repeat_their_steps_bit_for_bit(gaussian):
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        net, optimizer, _ = kernel_case(gaussian, hidden_sizes=[9, 7])
        action = torch.randn(300, 2) if gaussian else torch.randint(2, (300,))
        loss = PolicyGradientLoss(objective="clip", value_coef=0.5, entropy_coef=0.01, normalize_advantage=True)
        batch = Batch(torch.randn(300, 3), action, *torch.randn(4, 300), None)
        steps = gradient_steps(net, optimizer, loss, batch, learning_rate=1e-2, order=torch.randperm(300), num_minibatches=3)
        found.append([*net.state_dict().values(), *optimizer.state_dict().values(), *steps])
    assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(*found, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("column", ["inputs", "advantage", "target"])
def test_the_kernels_refuse_what_is_not_finite_before_any_parameter_changes(column, bad):
    net, optimizer, _ = kernel_case(False, activation="relu")
    batch = Batch(torch.randn(40, 3), torch.randint(2, (40,)), *torch.randn(4, 40), None)
    getattr(batch, column)[25] = bad  # in the second minibatch
    loss = PolicyGradientLoss(objective="clip", value_coef=0.5, entropy_coef=0.01, normalize_advantage=False)
    with pytest.raises(NonFiniteError, match=r"smaller algo\.learning_rate"):
        gradient_steps(net, optimizer, loss, batch, learning_rate=1e-2, num_minibatches=2)
    assert optimizer.num_steps == 1
    assert all(p.isfinite().all() for p in net.parameters())


def test_machine_code_is_kept_and_refused_if_it_is_damaged_or_others_could_have_written_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = compiled_code._cache_directory() / "kernels-x.o"
    assert compiled_code._read(file) is None
    compiled_code._write(file, b"code")
    assert compiled_code._read(file) == b"code"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert compiled_code._read(file) is None
    compiled_code._write(file, b"code")
    file.chmod(0o666)
    assert compiled_code._read(file) is None


def test_machine_code_of_a_source_that_is_edited_meanwhile_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled_code, "_digest", functools.cache(compiled_code._digest.__wrapped__))
    monkeypatch.setattr(compiled_code, "_compile", lambda module: b"code")
    module = compiled_code.KernelModule("rlx.nn.kernels", (("act", "p"),))
    monkeypatch.setattr(compiled_code, "_source", lambda name: b"before")
    compiled_code._file(module)
    monkeypatch.setattr(compiled_code, "_source", lambda name: b"after")
    assert compiled_code.compile_into_cache(module) == b"code"
    assert not (tmp_path / "rlx").exists()


def test_a_kernel_whose_arguments_are_not_those_of_its_caller_is_refused():
    with pytest.raises(StorageError, match="arguments of kernel act are p in its source and pi where it is called"):
        compiled_code._compile(compiled_code.KernelModule("rlx.nn.kernels", (("act", "pi"),)))


def test_another_process_compiles_into_the_cache_and_loading_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled_code, "_BEGUN", {})
    monkeypatch.setattr(compiled_code, "_compile", lambda module: pytest.fail("compiled again"))
    compiled_code.begin_compiling(cartpole._KERNELS)
    compiled_code.load.__wrapped__(cartpole._KERNELS)
    assert [file.name[:28] for file in (tmp_path / "rlx").iterdir()] == ["cartpole_kernels-step-reset-"]
