"""DQN: its targets and gradients, against autograd and by hand; when it learns; what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from nested import settings_of
from torch import Tensor

from rlx import ops
from rlx.algos.dqn import DQN
from rlx.config.algos.dqn_config import Distributional, DQNConfig
from rlx.experience import Steps
from rlx.nn.atoms import Atoms, cross_entropy_loss
from rlx.nn.q_networks import QNetwork
from rlx.spaces import ACTION_MASK
from rlx.types import EnvSpec, Progress, Rollout

CPU = torch.device("cpu")
BOX = spaces.Box(-10.0, 10.0, (2,))
PLAIN = EnvSpec(id="Plain-v0", observation_space=BOX, action_space=spaces.Discrete(3))
MASKED = EnvSpec(
    id="Masked-v0", observation_space=spaces.Dict({"x": BOX, ACTION_MASK: spaces.MultiBinary(3)}), action_space=spaces.Discrete(3)
)
MASK = torch.tensor([[True, False, True]])


def make(spec: EnvSpec = PLAIN, num_envs: int = 1, **settings: Any) -> DQN:
    usual = {"hidden_sizes": [], "initial_steps": 16, "replay_size": 64, "batch_size": 8, "n_step": 1}
    return DQN(settings_of(DQNConfig, **usual | settings), spec, num_envs, CPU)


def steps(obs: Tensor, action: list[int], reward: list[float], discount: list[float], next_obs: Tensor) -> Steps:
    n = len(action)
    return Steps(obs, torch.tensor(action), torch.tensor(reward), torch.tensor(discount), next_obs, torch.arange(n), torch.ones(n))


def values_are(net: QNetwork, values: list[float]) -> None:
    """Make a network without hidden layers return the same values everywhere."""
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net.trunk.linears[-1].bias[:] = torch.tensor(values)  # type: ignore[union-attr]


# Gradients


@pytest.mark.parametrize("spec", [PLAIN, MASKED], ids=["plain", "masked"])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("num_atoms", [1, 5])
def test_gradients_by_hand_equal_autograds(spec: EnvSpec, dueling: bool, num_atoms: int) -> None:
    atoms = Atoms(-3.0, 2.0, num_atoms) if num_atoms > 1 else None
    net = QNetwork(spec, hidden_sizes=[7, 6], dueling=dueling, atoms=atoms).double()
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    x = torch.randn(9, 2, dtype=torch.float64)
    inputs = {"inputs": x, "mask": MASK.expand(9, 3)} if spec is MASKED else x
    found = []
    for net.by_hand in (True, False):
        q, backward = net.forward_vjp(inputs) if atoms is None else net.logits_vjp(inputs)
        with torch.no_grad():
            backward(torch.linspace(-1.0, 2.0, q.numel(), dtype=torch.float64).view_as(q))
        found.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
        for p in net.parameters():
            p.grad.zero_()  # type: ignore[union-attr]
    for by_hand, by_autograd in zip(*found, strict=True):
        assert by_hand.any()
        torch.testing.assert_close(by_hand, by_autograd, atol=1e-12, rtol=0)


def test_losses_bring_their_derivatives() -> None:
    weight = torch.rand(6, dtype=torch.float64)
    error = torch.tensor([-3.0, -1.0, -0.2, 0.4, 1.0, 7.0], dtype=torch.float64, requires_grad=True)
    loss, slope = ops.huber_loss(error.detach(), weight)
    expected = (weight * torch.nn.functional.smooth_l1_loss(error, torch.zeros(6, dtype=torch.float64), reduction="none")).mean()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(slope, torch.autograd.grad(expected, error)[0])

    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    target = torch.rand(6, 4, dtype=torch.float64).softmax(-1)
    loss, d_logits, each = cross_entropy_loss(logits.detach(), target, weight)
    expected = (weight * torch.nn.functional.cross_entropy(logits, target, reduction="none")).mean()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(each, torch.nn.functional.kl_div(logits.detach().log_softmax(-1), target, reduction="none").sum(-1))
    torch.testing.assert_close(d_logits, torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize("distributional", Distributional)
@pytest.mark.parametrize("double", [False, True])
def test_a_step_descends_the_gradient_of_its_loss(distributional: Distributional, double: bool) -> None:
    algo = make(hidden_sizes=[8], dueling=True, distributional=distributional, double=double, v_min=-3.0, v_max=3.0, num_atoms=7)
    for p in algo.target.module.parameters():
        p.data.normal_()
    batch = steps(torch.randn(4, 2), [0, 1, 2, 1], [1.0, 0.0, -1.0, 9.0], [0.9, 0.9, 0.0, 0.8], torch.randn(4, 2))
    with torch.no_grad():
        learn = algo._learn_values if distributional is Distributional.none else algo._learn_distributions
        algo.optimizer.zero_grad()
        _, loss, _ = learn(batch, batch.obs, batch.next_obs)
    ours = [p.grad.clone() for p in algo.net.parameters() if p.grad is not None]
    algo.optimizer.zero_grad()
    expected = reference_loss(algo, batch)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for grad, p in zip(ours, algo.net.parameters(), strict=True):
        torch.testing.assert_close(grad, p.grad, atol=1e-6, rtol=1e-5)


def reference_loss(algo: DQN, batch: Steps) -> Tensor:
    """The loss of a batch, one row at a time, for autograd."""
    losses = []
    for i in range(len(batch.action)):
        obs, next_obs, action = batch.obs[i : i + 1], batch.next_obs[i : i + 1], int(batch.action[i])
        with torch.no_grad():
            next_q = algo.target.module(next_obs)[0]
            best = int((algo.net(next_obs)[0] if algo.config.double else next_q).argmax())
        if algo.net.atoms is None:
            target = batch.reward[i] + batch.discount[i] * next_q[best]
            losses.append(torch.nn.functional.smooth_l1_loss(algo.net(obs)[0, action], target))
        else:
            with torch.no_grad():
                probs = algo.target.module.logits(next_obs)[0, best].softmax(-1)
            wanted = projected(probs, float(batch.reward[i]), float(batch.discount[i]), algo.net.atoms)
            losses.append(torch.nn.functional.cross_entropy(algo.net.logits(obs)[0, action], wanted))
    return torch.stack(losses).mean()


# Distributions


def projected(probs: Tensor, reward: float, discount: float, atoms: Atoms) -> Tensor:
    """Algorithm 1 of the paper, one atom at a time."""
    step = (atoms.high - atoms.low) / (atoms.num_atoms - 1)
    out = torch.zeros_like(probs)
    for j in range(atoms.num_atoms):
        at = min(max(reward + discount * float(atoms.values[j]), atoms.low), atoms.high)
        b = (at - atoms.low) / step
        low, high = int(np.floor(b)), int(np.ceil(b))
        if low == high:
            out[low] += probs[j]
        else:
            out[low] += probs[j] * (high - b)
            out[high] += probs[j] * (b - low)
    return out


def test_projections_are_the_papers_and_keep_the_mean_of_returns_within_bounds() -> None:
    atoms = Atoms(-2.0, 3.0, 11).double()
    probs = torch.randn(40, 11, dtype=torch.float64).softmax(-1)
    reward, discount = torch.randn(40, dtype=torch.float64) * 2.0, torch.rand(40, dtype=torch.float64)
    discount[:5] = 0.0
    found = atoms.project(probs, reward, discount)
    for i in range(40):
        torch.testing.assert_close(found[i], projected(probs[i], float(reward[i]), float(discount[i]), atoms))
    torch.testing.assert_close(found.sum(-1), torch.ones(40, dtype=torch.float64))
    kept = (reward - 2.0 * discount >= -2.0) & (reward + 3.0 * discount <= 3.0)
    assert kept.sum() > 5
    torch.testing.assert_close((found @ atoms.values)[kept], (reward + discount * (probs @ atoms.values))[kept])


# Targets


def errors_of(algo: DQN, batch: Steps) -> list[float]:
    with torch.no_grad():
        inputs, next_inputs = algo.net.preprocess(batch.obs), algo.net.preprocess(batch.next_obs)
        return algo._learn_values(batch, inputs, next_inputs)[2].tolist()


@pytest.mark.parametrize(("double", "next_value"), [(True, 20.0), (False, 30.0)])
def test_double_q_learning_evaluates_the_networks_choice_by_the_target_network(double: bool, next_value: float) -> None:
    algo, x = make(double=double), torch.zeros(2, 2)
    values_are(algo.net, [1.0, 3.0, 2.0])
    values_are(algo.target.module, [10.0, 20.0, 30.0])
    batch = steps(x, [0, 2], [0.5, 0.5], [0.9, 0.0], x)  # the second has terminated, and the value after it is 0
    assert errors_of(algo, batch) == pytest.approx([1.0 - (0.5 + 0.9 * next_value), 2.0 - 0.5])


@pytest.mark.parametrize(("double", "next_value"), [(True, 30.0), (False, 30.0)])
def test_targets_neither_choose_nor_evaluate_an_action_that_is_forbidden(double: bool, next_value: float) -> None:
    algo = make(MASKED, double=double)
    values_are(algo.net, [1.0, 90.0, 2.0])
    values_are(algo.target.module, [10.0, 90.0, 30.0])
    obs = {"x": torch.zeros(1, 2), ACTION_MASK: torch.ones(1, 3, dtype=torch.bool)}
    assert errors_of(algo, steps(obs, [0], [0.5], [0.9], obs | {ACTION_MASK: MASK})) == pytest.approx([1.0 - (0.5 + 0.9 * next_value)])


def rollout(num_envs: int, *, obs: float, final: float, truncated: bool = True) -> Rollout:
    """One step of environments whose episodes end with it."""
    every = torch.ones(1, num_envs, dtype=torch.bool)
    t, b = every.nonzero(as_tuple=True)
    return Rollout(
        all_obs=torch.full((2, num_envs, 2), obs), action=torch.zeros(1, num_envs, dtype=torch.long), reward=torch.ones(1, num_envs),
        terminated=every & (not truncated), truncated=every & truncated, is_first=every, final_t=t, final_b=b,
        final_obs=torch.full((num_envs, 2), final), carry=(),
    )  # fmt: skip


@pytest.mark.parametrize("truncated", [True, False])
def test_windows_of_episodes_that_are_cut_after_one_step_bootstrap_from_where_they_ended(truncated: bool) -> None:
    algo = make(n_step=3, discount=0.9, num_envs=2)
    for _ in range(6):
        algo.experience.add(rollout(2, obs=1.0, final=5.0, truncated=truncated))
    with torch.no_grad():
        algo.target.module.trunk.linears[-1].weight.fill_(1.0)  # type: ignore[union-attr]
        algo.target.module.trunk.linears[-1].bias.zero_()  # type: ignore[union-attr]
    values_are(algo.net, [0.0, 0.0, 0.0])
    (batch,) = algo.experience.draw_batches(1, 20)
    assert batch.next_obs[batch.discount > 0].eq(5.0).all()
    assert errors_of(algo, batch) == pytest.approx([-(1.0 + 0.9 * 10.0 if truncated else 1.0)] * 20)


def test_the_target_network_is_copied_or_follows_by_a_share() -> None:
    def run(**settings: Any) -> tuple[list[float], list[float]]:
        algo, found, progress = make(learning_rate=0.1, **settings), [], Progress(total_env_steps=1000)
        before = float(algo.net.trunk.linears[-1].bias.detach()[0])  # type: ignore[union-attr]
        for _ in range(16 + 3):
            one = rollout(1, obs=1.0, final=1.0)
            progress.advance(one)
            algo.update(one, progress)
            both = (net.trunk.linears[-1].bias.detach() for net in (algo.net, algo.target.module))  # type: ignore[union-attr]
            found.append(tuple(float(bias[0] - before) for bias in both))
        return zip(*found[16:], strict=True)  # type: ignore[return-value]

    net, copied = run(target_every=2)
    assert copied[0] == 0.0
    assert copied[1] == copied[2] == net[1] != 0.0
    net, followed = run(target_every=1, tau=0.25)
    expected = [0.25 * net[0]]
    for value in net[1:]:
        expected.append(expected[-1] + 0.25 * (value - expected[-1]))
    assert followed == pytest.approx(expected, rel=1e-5)


# When it learns


@pytest.mark.parametrize("utd", [0.5, 2.0])
def test_one_and_eight_environments_take_the_same_number_of_gradient_steps(utd: float) -> None:
    taken = []
    for num_envs in (1, 8):
        algo, progress = make(num_envs=num_envs, utd=utd), Progress(total_env_steps=1000)
        for _ in range(80 // num_envs):
            one = rollout(num_envs, obs=1.0, final=1.0)
            progress.advance(one)
            algo.update(one, progress)
        taken.append(algo.optimizer.num_steps)
    assert taken == [(80 - 16) * utd] * 2


def test_actions_are_random_until_learning_begins_and_follow_the_schedule_after_it() -> None:
    algo, progress, found = make(epsilon_start=0.5, epsilon_end=0.1, epsilon_fraction=0.5), Progress(total_env_steps=80), []
    for _ in range(80):
        found.append(algo.epsilon)
        one = rollout(1, obs=1.0, final=1.0)
        progress.advance(one)
        algo.update(one, progress)
    assert found[:16] == [1.0] * 16
    assert found[16:41:8] == pytest.approx([0.34, 0.26, 0.18, 0.1])
    assert found[-1] == pytest.approx(0.1)


def test_a_large_update_gathers_its_batches_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    algo = make()
    for i in range(8):
        algo.experience.add(rollout(1, obs=float(i), final=0.0))
    torch.manual_seed(0)
    whole = [batch.rows for batch in algo.experience.draw_batches(5, 4)]
    monkeypatch.setattr("rlx.experience._GATHERED_BYTES", 2 * 4 * algo.experience._window_bytes)
    drawn, draw = [], algo.experience.draw
    algo.experience.draw = lambda num: drawn.append(num) or draw(num)  # type: ignore[method-assign]
    torch.manual_seed(0)
    parts = [batch.rows for batch in algo.experience.draw_batches(5, 4)]
    assert drawn == [8, 8, 4]
    assert [len(rows) for rows in parts] == [len(rows) for rows in whole] == [4] * 5


@pytest.mark.parametrize("distributional", Distributional)
def test_steps_whose_values_are_wrong_are_drawn_more_often(distributional: Distributional) -> None:
    algo, progress = make(per=True, learning_rate=1e-9, distributional=distributional), Progress(total_env_steps=1000)
    for i in range(64):
        one = rollout(1, obs=float(i == 40), final=0.0, truncated=False)
        one.reward[:] = 5.0 * (i == 40)
        progress.advance(one)
        algo.update(one, progress)
    zero = [0.0] * 25 + [20.0] + [0.0] * 25 if algo.net.atoms else [0.0]  # a return of 0 is expected everywhere
    values_are(algo.net, zero * 3)
    with torch.no_grad():
        algo._learn(200, 1e-9, 1.0)
    (batch,) = algo.experience.draw_batches(1, 2000)
    assert (batch.rows == 40).float().mean() > 3 / 64
    assert batch.weight[batch.rows == 40].max() < batch.weight[batch.rows != 40].mean()
