"""SAC and TD3: gradients against autograd, targets against the equations, when they learn, and how they act."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from rlx.action_range import ActionRange
from rlx.algos.sac import SAC
from rlx.algos.td3 import TD3
from rlx.config.algos.policy_gradient_config import Activation
from rlx.config.algos.sac_config import SACConfig
from rlx.config.algos.td3_config import TD3Config
from rlx.errors import ConfigError
from rlx.experience import Steps
from rlx.nn import squashed
from rlx.nn.critics import Critics
from rlx.nn.leaf_encoders import FlatEncoder
from rlx.types import EnvSpec, Progress, Rollout

CPU = torch.device("cpu")
LOW, HIGH = np.array([-2.0, 0.0], np.float32), np.array([2.0, 0.4], np.float32)
SPEC = EnvSpec(
    id="arm", observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (3,)), action_space=gymnasium.spaces.Box(LOW, HIGH)
)  # fmt: skip
SMALL: dict[str, Any] = {"hidden_sizes": [7, 5], "batch_size": 6, "initial_steps": 4, "replay_size": 100}


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks and features in float64."""
    monkeypatch.setattr(FlatEncoder, "raw", lambda self, obs: obs)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batch(num: int = 6) -> Steps:
    discount = torch.full((num,), 0.9)
    discount[0] = 0.0
    return Steps(
        torch.randn(num, 3), torch.rand(num, 2) * 2 - 1, torch.randn(num), discount, torch.randn(num, 3), torch.arange(num), torch.ones(num)
    )  # fmt: skip


def rollout(num_steps: int, num_envs: int = 1, *, action: Tensor | None = None) -> Rollout:
    no = torch.zeros(num_steps, num_envs, dtype=torch.bool)
    return Rollout(
        all_obs=torch.randn(num_steps + 1, num_envs, 3), action=torch.zeros(num_steps, num_envs, 2) if action is None else action,
        reward=torch.randn(num_steps, num_envs), terminated=no, truncated=no, is_first=no, final_t=torch.zeros(0, dtype=torch.long),
        final_b=torch.zeros(0, dtype=torch.long), final_obs=torch.zeros(0, 3), carry=(),
    )  # fmt: skip


def test_bounds_as_large_as_float32_has_are_none() -> None:
    space = gymnasium.spaces.Box(-3e38, 3e38, (2,))
    with pytest.raises(ConfigError, match="unbounded action space"):
        ActionRange(EnvSpec(id="arm", observation_space=SPEC.observation_space, action_space=space), CPU, verb="tests choose")


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh", "silu"])
def test_gradients_of_critics_are_those_of_autograd(activation: str, layer_norm: bool) -> None:
    torch.manual_seed(1)
    critics = Critics(4, num_members=3, hidden_sizes=[6, 5], activation=activation, layer_norm=layer_norm)
    for p in critics.parameters():
        p.data += 0.1 * torch.randn_like(p)
        p.grad = torch.full_like(p, math.nan)  # is overwritten, not added to
    x, d_value = torch.randn(8, 4), torch.randn(3, 8)
    value, backward = critics.forward_vjp(x)
    with torch.no_grad():
        d_x = backward(d_value, inputs=True)
        again = critics.forward_vjp(x)[1](d_value, weights=False, inputs=True)
    found = [p.grad.clone() for p in critics.parameters()]
    each = x.expand(3, -1, -1).clone().requires_grad_()
    expected = critics(each)
    assert torch.allclose(value, expected, atol=1e-12)
    *grads, d_each = torch.autograd.grad(expected, [*critics.parameters(), each], d_value)
    for name, a, b in zip(dict(critics.named_parameters()), found, grads, strict=True):
        assert torch.allclose(a, b, atol=1e-9), name
    assert torch.allclose(d_x, d_each, atol=1e-9)
    assert torch.allclose(again, d_each, atol=1e-9)


@pytest.mark.usefixtures("double")
def test_the_density_of_a_squashed_gaussian_is_exact_and_integrates_to_1() -> None:
    params = torch.tensor([[0.7, -0.4]])
    u = torch.linspace(-12.0, 12.0, 200_001)
    noise = ((u - 0.7) / math.exp(-0.4))[:, None]
    found = squashed.sample(params.expand(len(u), -1), noise)
    density_of_u = torch.distributions.Normal(0.7, math.exp(-0.4)).log_prob(u)
    near = u.abs() < 6.0  # beyond, 1 - tanh^2 has lost its digits even in float64
    expected = density_of_u - torch.log1p(-(u.tanh().square()))
    assert torch.allclose(found.log_prob[near], expected[near], atol=1e-6)
    assert torch.trapezoid(found.log_prob.exp(), found.action[:, 0]).item() == pytest.approx(1.0, abs=1e-6)
    far = squashed.sample(torch.tensor([[50.0, 0.0]]), torch.zeros(1, 1))
    assert far.log_prob.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - 2 * (math.log(2) - 50.0), rel=1e-12)


@pytest.mark.usefixtures("double")
def test_the_gradient_of_a_squashed_policy_is_that_of_autograd_also_beyond_the_bounds_of_its_deviation() -> None:
    torch.manual_seed(2)
    params = (torch.randn(9, 4) * 2).requires_grad_()
    with torch.no_grad():
        params[0, 2], params[1, 3] = 5.0, -30.0
    noise, d_action, weight = torch.randn(9, 2), torch.randn(9, 2), torch.randn(9, 1)
    found = squashed.sample(params, noise)
    loss = (found.action * d_action).sum() + (found.log_prob * weight[:, 0]).sum()
    (expected,) = torch.autograd.grad(loss, params)
    assert torch.allclose(found.pullback(d_action, weight), expected, atol=1e-9)


def captured(algo: Any, steps: Steps, number: int = 1) -> dict[str, Tensor]:
    """The gradients that one gradient step gives to the optimisers, without changing the networks."""
    grads = {}
    for name in ("values", "actor"):
        optimizer = getattr(algo, f"{name}_optimizer")

        def step(loss: Tensor, learning_rate: float, name: str = name) -> Tensor:
            for key, p in getattr(algo, name).named_parameters():
                grads[f"{name}.{key}"] = p.grad.clone()
            return loss

        optimizer.step = step
    for target in (algo.target, getattr(algo, "target_actor", algo.target)):
        target.move = lambda share: None
    with torch.no_grad():
        algo._step(steps, number, 1e-3, measure=True)
    return grads


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("changes", [{}, {"num_critics": 4, "layer_norm": True}, {"activation": Activation.silu}])
def test_a_gradient_step_of_sac_is_that_of_autograd_on_its_losses(changes: dict[str, Any]) -> None:
    torch.manual_seed(3)
    algo = SAC(SACConfig(**SMALL, entropy_coef=0.3, **changes), SPEC, 1, CPU)
    for p in [*algo.actor.parameters(), *algo.target.module.parameters()]:
        p.data += 0.2 * torch.randn_like(p)
    steps = batch()
    torch.manual_seed(4)
    grads = captured(algo, steps)
    torch.manual_seed(4)
    alpha = algo.actor.log_alpha.exp()
    assert alpha.item() != pytest.approx(0.3), "the test has changed it"
    next_ = squashed.sample(algo.policy(steps.next_obs))
    soft = algo.target.module(steps.next_obs, next_.action).amin(0) - alpha * next_.log_prob
    y = (steps.reward + steps.discount * soft).detach()
    value_loss = 0.5 * (algo.values(steps.obs, steps.action) - y).square().mean(1).sum()
    expected = dict(zip([f"values.{n}" for n, _ in algo.values.named_parameters()],
                        torch.autograd.grad(value_loss, list(algo.values.parameters())), strict=True))  # fmt: skip
    now = squashed.sample(algo.policy(steps.obs))
    least = algo.values(steps.obs, now.action).amin(0)
    log_alpha = algo.actor.log_alpha
    policy_loss = (alpha.detach() * now.log_prob - least).mean() - log_alpha[0] * (now.log_prob.detach().mean() - 2.0)
    names = [f"actor.{n}" for n, _ in algo.actor.named_parameters()]
    expected |= zip(names, torch.autograd.grad(policy_loss, list(algo.actor.parameters())), strict=True)
    assert list(grads) == list(expected)
    for name, grad in grads.items():
        assert torch.allclose(grad, expected[name], atol=1e-9), name


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("twin", [True, False])
def test_a_gradient_step_of_td3_is_that_of_autograd_on_its_losses(twin: bool) -> None:
    torch.manual_seed(3)
    algo = TD3(TD3Config(**SMALL, twin=twin), SPEC, 1, CPU)
    for p in [*algo.actor.parameters(), *algo.target.module.parameters(), *algo.target_actor.module.parameters()]:
        p.data += 0.5 * torch.randn_like(p)
    steps = batch()
    torch.manual_seed(4)
    grads = captured(algo, steps)
    torch.manual_seed(4)
    noise = (0.2 * torch.randn(6, 2)).clamp(-0.5, 0.5)
    next_action = (algo.target_actor.module.net(steps.next_obs).tanh() + noise).clamp(-1.0, 1.0)
    y = (steps.reward + steps.discount * algo.target.module(steps.next_obs, next_action).amin(0)).detach()
    value_loss = 0.5 * (algo.values(steps.obs, steps.action) - y).square().mean(1).sum()
    policy_loss = -algo.values(steps.obs, algo.policy(steps.obs).tanh())[0].mean()
    for name, module, loss in (("values", algo.values, value_loss), ("actor", algo.actor, policy_loss)):
        for (key, _), grad in zip(module.named_parameters(), torch.autograd.grad(loss, list(module.parameters())), strict=True):
            assert torch.allclose(grads[f"{name}.{key}"], grad, atol=1e-9), key


def test_the_policy_and_the_targets_of_td3_move_every_second_step_only() -> None:
    torch.manual_seed(0)
    algo = TD3(TD3Config(**SMALL), SPEC, 1, CPU)
    seen = []
    for number in range(4):
        before = [algo.actor_optimizer.parameters.clone(), algo.target.state_dict(), algo.values_optimizer.parameters.clone()]
        with torch.no_grad():
            algo._step(batch(), number, 1e-3, measure=False)
        after = [algo.actor_optimizer.parameters, algo.target.state_dict(), algo.values_optimizer.parameters]
        seen.append([not torch.equal(a, b) for a, b in zip(before, after, strict=True)])
    assert seen == [[False, False, True], [True, True, True]] * 2


def test_a_target_network_is_the_exponential_average_of_the_values() -> None:
    torch.manual_seed(0)
    algo = SAC(SACConfig(**SMALL, tau=0.25), SPEC, 1, CPU)
    average = algo.values_optimizer.parameters.clone()
    for number in range(3):
        with torch.no_grad():
            algo._step(batch(), number, 1e-2, measure=False)
        average = 0.75 * average + 0.25 * algo.values_optimizer.parameters
    assert torch.allclose(algo.target.state_dict(), average, atol=1e-6)
    assert all(not p.requires_grad for p in algo.target.module.parameters())


@pytest.mark.parametrize(("num_envs", "length"), [(1, 1), (8, 1), (2, 5), (1, 16)])
@pytest.mark.parametrize("utd", [0.3, 1.0, 2.5])
def test_the_number_of_gradient_steps_does_not_depend_on_the_number_of_environments(num_envs: int, length: int, utd: float) -> None:
    torch.manual_seed(0)
    algo = SAC(SACConfig(**{**SMALL, "initial_steps": 16}, utd=utd), SPEC, num_envs, CPU)
    progress, taken = Progress(total_env_steps=1000), 0
    while progress.env_steps < 80:
        steps = rollout(length, num_envs)
        progress.advance(steps)
        taken += int(algo.update(steps, progress)["update/num_gradient_steps"])
    assert taken == math.floor(utd * (80 - 16))


def test_a_fresh_batch_is_drawn_for_every_gradient_step() -> None:
    algo = SAC(SACConfig(**SMALL, utd=4.0), SPEC, 1, CPU)
    progress, seen = Progress(total_env_steps=1000), []
    algo._step = lambda steps, *_, **__: seen.append(steps.rows.tolist()) or {}  # type: ignore[method-assign,assignment,func-returns-value]
    for _ in range(12):
        steps = rollout(1)
        progress.advance(steps)
        algo.update(steps, progress)
    assert len(seen) == 32
    assert all(len(rows) == 6 for rows in seen)
    assert len({tuple(rows) for rows in seen}) > 28


def test_actions_are_random_within_the_range_until_learning_begins_and_the_same_on_arrays() -> None:
    for algo in (SAC(SACConfig(**SMALL), SPEC, 1, CPU), TD3(TD3Config(**SMALL), SPEC, 1, CPU)):
        policy = algo.array_policy()
        assert policy is not None
        obs = torch.randn(500, 3)
        for env_steps in (0, 10):
            algo.env_steps = env_steps
            torch.manual_seed(5)
            action = algo.act(obs, (), torch.zeros(500, dtype=torch.bool), mode="train").action
            torch.manual_seed(5)
            assert np.allclose(policy(obs.numpy()), action.numpy(), atol=1e-5)
            assert (action.numpy() >= LOW - 1e-6).all()
            assert (action.numpy() <= HIGH + 1e-6).all()
            if env_steps == 0:
                assert action[:, 0].mean().abs() < 0.2
                assert action[:, 1].mean() == pytest.approx(0.2, abs=0.02)
                assert action[:, 0].std() == pytest.approx(4 / 12**0.5, abs=0.1)


def test_actions_are_kept_in_units_of_half_the_range() -> None:
    algo = SAC(SACConfig(**SMALL), SPEC, 1, CPU)
    steps = rollout(1, action=torch.tensor([[[1.0, 0.3]]]))
    progress = Progress(total_env_steps=10)
    progress.advance(steps)
    algo.update(steps, progress)
    assert torch.allclose(algo.experience.replay.rows["action"], torch.tensor([[0.5, 0.5]]))


def test_alpha_stays_within_its_bounds_and_a_fixed_one_does_not_move() -> None:
    torch.manual_seed(0)
    for target, bound in ((1e6, 2.0), (-1e6, -10.0)):
        algo = SAC(SACConfig(**SMALL, target_entropy=target), SPEC, 1, CPU)
        with torch.no_grad():
            for number in range(40):
                algo._step(batch(), number, 0.5, measure=False)
        assert algo.alpha.log().item() == pytest.approx(bound, abs=1e-4)
    fixed = SAC(SACConfig(**SMALL, adapt_entropy_coef=False, entropy_coef=0.2), SPEC, 1, CPU)
    with torch.no_grad():
        fixed._step(batch(), 1, 0.5, measure=False)
    assert fixed.alpha.item() == pytest.approx(0.2)


def test_an_unbounded_or_discrete_action_space_is_refused_with_what_to_use() -> None:
    for space in (gymnasium.spaces.Box(-np.inf, np.inf, (2,)), gymnasium.spaces.Discrete(3)):
        spec = EnvSpec(id="odd", observation_space=SPEC.observation_space, action_space=space)
        with pytest.raises(ConfigError, match=r"algo=sac chooses .*env=odd"):
            SAC(SACConfig(**SMALL), spec, 1, CPU)


def test_an_encoder_of_images_learns_from_the_values_and_not_from_the_policy() -> None:
    torch.manual_seed(0)
    spaces = {"camera": gymnasium.spaces.Box(0, 255, (12, 12, 3), np.uint8), "joints": gymnasium.spaces.Box(-1.0, 1.0, (2,))}
    spec = EnvSpec(id="eye", observation_space=gymnasium.spaces.Dict(spaces), action_space=SPEC.action_space)
    algo = SAC(SACConfig(**SMALL), spec, 1, CPU)
    assert algo.encoder.has_weights

    def seen(num: int) -> dict[str, Tensor]:
        return {"camera": torch.randint(0, 256, (num, 12, 12, 3), dtype=torch.uint8), "joints": torch.rand(num, 2)}

    steps = batch()._replace(obs=seen(6), next_obs=seen(6))
    torch.manual_seed(4)
    grads = captured(algo, steps)
    torch.manual_seed(4)
    algo.config.delay = 2
    reference_grads = captured(algo, steps, number=0)
    assert not [name for name in reference_grads if name.startswith("actor")], "the policy is not due"
    encoder = {name: grad for name, grad in grads.items() if "encoder" in name}
    assert encoder
    assert all(grad.abs().max() > 0 for name, grad in encoder.items() if name.endswith("weight"))
    for name, grad in encoder.items():
        assert torch.equal(grad, reference_grads[name]), "the policy's step changed the encoder's gradient"


def test_networks_of_another_run_are_the_first_targets_too() -> None:
    torch.manual_seed(0)
    old, new = (TD3(TD3Config(**SMALL), SPEC, 1, CPU) for _ in range(2))
    state, theirs = new.state_dict(), old.state_dict()
    new.load_state_dict({**state, **{name: theirs[name] for name in new.weight_parts}})
    assert torch.equal(new.target.state_dict(), old.values_optimizer.parameters)
    assert torch.equal(new.target_actor.state_dict(), old.actor_optimizer.parameters)
