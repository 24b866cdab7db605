"""The compiled gradient steps of SAC and TD3, beside those in tensor operations."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from rlx.algos.sac import SAC
from rlx.algos.td3 import TD3
from rlx.config.algos.policy_gradient_config import Activation
from rlx.config.algos.sac_config import SACConfig
from rlx.config.algos.td3_config import TD3Config
from rlx.config.compose import Composer
from rlx.errors import NonFiniteError
from rlx.experience import Steps
from rlx.nn.kernel_modules import OFF_POLICY
from rlx.nn.mlp import MLP
from rlx.off_policy import OffPolicyActorCritic
from rlx.start import _kernels_of
from rlx.types import EnvSpec

CPU = torch.device("cpu")


def make(kind: str, *, num_obs: int = 3, num_actions: int = 1, compiles: bool | None = True, **settings: Any) -> Any:
    """An agent whose policy is not close to 0."""
    space = gymnasium.spaces.Box(-1.0, 1.0, (num_actions,))
    spec = EnvSpec(id="arm", observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (num_obs,)), action_space=space)
    torch.manual_seed(7)
    config: Any = {"sac": SACConfig, "td3": TD3Config}[kind](**{"hidden_sizes": [7, 5], "replay_size": 1000, **settings})
    algo = {"sac": SAC, "td3": TD3}[kind](config, spec, 1, CPU)
    with torch.no_grad():
        for p in algo.actor.parameters():
            p += 0.3 * torch.randn_like(p)
        for p in algo.target.module.parameters():
            p += 0.1 * torch.randn_like(p)
    if compiles is False:
        algo._compile = lambda: None
    if compiles is not None:
        assert (algo.compiled is not None) == compiles
    return algo


def batch(num: int, *, num_obs: int = 3, num_actions: int = 1, seed: int = 0) -> Steps:
    torch.manual_seed(seed)
    discount = torch.full((num,), 0.9)
    discount[0] = 0.0
    return Steps(
        torch.randn(num, num_obs), torch.rand(num, num_actions) * 2 - 1, torch.randn(num), discount, torch.randn(num, num_obs),
        torch.arange(num), torch.rand(num),
    )  # fmt: skip


def vectors(algo: OffPolicyActorCritic) -> list[Tensor]:
    """All that a gradient step changes."""
    moments = [torch.from_numpy(x) for o in (algo.values_optimizer, algo.actor_optimizer) for x in o.arrays()[1:]]
    return [algo.values_optimizer.parameters, algo.actor_optimizer.parameters, algo.target.vector, *moments]


CASES = [
    ("sac", 1, 2, 128, {"hidden_sizes": [64, 64]}),
    ("sac", 1, 2, 101, {"activation": Activation.tanh}),
    ("sac", 3, 5, 131, {}),
    ("sac", 3, 1, 6, {"hidden_sizes": [], "max_grad_norm": 0.1}),
    ("sac", 2, 2, 300, {"adapt_entropy_coef": False, "entropy_coef": 0.3, "activation": Activation.tanh, "hidden_sizes": [9]}),
    ("td3", 1, 2, 128, {"hidden_sizes": [64, 64]}),
    ("td3", 3, 1, 131, {"smoothing": 0.0, "activation": Activation.tanh}),
    ("td3", 3, 2, 7, {"hidden_sizes": [], "smoothing": 1.0}),
]


@pytest.mark.parametrize(("kind", "num_actions", "num_critics", "num", "settings"), CASES)
def test_a_compiled_gradient_step_is_that_of_tensor_operations_on_the_same_noise(
    kind: str, num_actions: int, num_critics: int, num: int, settings: dict[str, Any]
) -> None:
    settings = {**settings, "delay": 1} | ({"num_critics": num_critics} if kind == "sac" else {"twin": num_critics == 2})
    compiled, plain = (make(kind, num_actions=num_actions, compiles=compiles, **settings) for compiles in (True, False))
    for number in range(3):
        steps = batch(num, num_actions=num_actions, seed=number)
        metrics = []
        for algo in (compiled, plain):
            torch.manual_seed(number)
            with torch.no_grad():
                metrics.append(algo._step(steps, number, 1e-2, measure=True))
        assert list(metrics[0]) == list(metrics[1])
        for key in metrics[0]:
            assert float(metrics[0][key]) == pytest.approx(float(metrics[1][key]), rel=1e-4, abs=1e-5), key
        for a, b in zip(vectors(compiled), vectors(plain), strict=True):
            assert torch.allclose(a, b, rtol=1e-3, atol=2e-5)
    assert compiled.values_optimizer.num_steps == compiled.actor_optimizer.num_steps == 3


def test_each_value_network_may_have_its_own_rows_targets_and_weights() -> None:
    compiled, plain = (make("sac", num_critics=3, compiles=compiles) for compiles in (True, False))
    torch.manual_seed(1)
    rows = torch.randn(3, 130, 3), torch.rand(3, 130, 1), torch.randn(3, 130), torch.rand(3, 130)
    with torch.no_grad():
        (a, _), (b, _) = (algo._learn_values(*rows, 1e-2) for algo in (compiled, plain))
    assert torch.allclose(a, b, atol=1e-5)
    assert torch.allclose(compiled.values_optimizer.parameters, plain.values_optimizer.parameters, atol=1e-5)


def test_outputs_beyond_the_bounds_of_the_deviation_give_the_gradient_of_tensor_operations() -> None:
    compiled, plain = (make("sac", num_actions=2, compiles=compiles) for compiles in (True, False))
    for algo in (compiled, plain):
        with torch.no_grad():
            algo.policy.linears[-1].bias[:] = torch.tensor([3.0, 0.0, 5.0, -30.0])
    for number in range(2):
        for algo in (compiled, plain):
            torch.manual_seed(number)
            with torch.no_grad():
                algo._step(batch(33, num_actions=2), number, 1e-3, measure=False)
    for a, b in zip(vectors(compiled), vectors(plain), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=2e-5)


def test_compiled_gradient_steps_repeat_bit_for_bit() -> None:
    ends = []
    for _ in range(2):
        algo = make("sac", hidden_sizes=[64, 64])
        torch.manual_seed(1)
        with torch.no_grad():
            for number in range(5):
                algo._step(batch(130, seed=number), number, 1e-2, measure=False)
        ends.append([x.clone() for x in vectors(algo)])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("kind", ["sac", "td3"])
@pytest.mark.parametrize("where", ["reward", "obs", "next_obs"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_refused_before_it_changes_the_values(kind: str, where: str, value: float) -> None:
    algo, steps = make(kind), batch(9)
    getattr(steps, where)[3] = value
    before = [algo.values_optimizer.parameters.clone(), *(torch.from_numpy(x.copy()) for x in algo.values_optimizer.arrays()[1:])]
    with pytest.raises(NonFiniteError), torch.no_grad():
        algo._step(steps, 1, 1e-2, measure=False)
    after = [algo.values_optimizer.parameters, *(torch.from_numpy(x) for x in algo.values_optimizer.arrays()[1:])]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert algo.values_optimizer.num_steps == 0


def test_a_policy_whose_gradient_is_not_finite_is_refused_before_it_changes() -> None:
    for kind, extra in (("sac", {"noise": torch.randn(9, 1), "alpha": torch.ones(1)}), ("td3", {})):
        algo = make(kind)
        before = algo.actor_optimizer.parameters.clone()
        with pytest.raises(NonFiniteError):
            algo.compiled.policy_step(torch.full((9, 3), math.nan), 1e-2, **extra)
        assert torch.equal(algo.actor_optimizer.parameters, before)
        assert algo.actor_optimizer.num_steps == 0


@pytest.mark.parametrize("settings", [{"layer_norm": True}, {"activation": Activation.silu}, {"hidden_sizes": [256, 256]}])
def test_tensor_operations_are_used_for_networks_that_the_kernels_do_not_know(settings: dict[str, Any]) -> None:
    algo = make("sac", compiles=None, **settings)
    assert algo.compiled is None
    with torch.no_grad():
        algo._step(batch(6), 0, 1e-3, measure=False)


def test_tensor_operations_are_used_where_a_subclass_has_replaced_a_part() -> None:
    algo = make("sac")
    seen: list[int] = []

    class Counting(MLP):
        def forward_vjp(self, x: Tensor) -> Any:
            seen.append(len(x))
            return super().forward_vjp(x)

    algo.policy.__class__ = Counting
    algo._compiled_parts = ()
    with torch.no_grad():
        algo._step(batch(6), 0, 1e-3, measure=False)
    assert seen == [6]


def test_kernels_are_compiled_ahead_for_networks_that_use_them() -> None:
    compose = Composer().compose
    for words, expected in (
        (["algo=sac", "algo.hidden_sizes=[64,64]"], OFF_POLICY),
        (["algo=td3", "algo.hidden_sizes=[64,64]"], OFF_POLICY),
        (["algo=sac", "algo.hidden_sizes=[256,256]"], None),
        (["algo=sac", "algo.hidden_sizes=[64,64]", "algo.layer_norm=true"], None),
    ):
        assert _kernels_of(compose([*words, "env=pendulum", "recipe=null"]).config) == expected
