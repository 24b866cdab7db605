"""rlx variance: gradients of episodes against autograd, and estimates against an MDP whose trajectories are enumerated."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_advantages import ALL, EVERYWHERE_WRONG, LOGITS, estimator, moments, outcomes, true_values
from test_algos import CONTINUOUS, CPU, DISCRETE

from rlx.build import build_algorithm, env_factory, env_spec
from rlx.config.compose import Composer
from rlx.evaluation.fitted_values import FittedValues
from rlx.evaluation.gradient_ladder import _of_first
from rlx.evaluation.gradient_moments import NUM_BLOCKS, Estimate, GradientSums, Resampled
from rlx.evaluation.whole_episodes import Episodes, collect_episodes
from rlx.nn.networks import Network
from rlx.nn.optim import FlatAdam
from rlx.nn.score_gradients import ScoreGradients
from rlx.types import EnvSpec

MANY = EnvSpec(id="Many-v0", observation_space=DISCRETE.observation_space, action_space=spaces.MultiDiscrete([2, 3]))
POLICIES = {"discrete": (DISCRETE, (9,)), "many": (MANY, (9, 2)), "continuous": (CONTINUOUS, (9, 2))}
"""The environment, and the shape of nine actions."""


@pytest.mark.parametrize(("spec", "shape"), POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("more", [{}, {"shared": True}, {"layer_norm": True}, {"activation": "silu"}], ids=str)
def test_gradients_under_all_weights_are_those_of_autograd(spec: EnvSpec, shape: tuple[int, ...], more: dict[str, Any]) -> None:
    net = Network(spec, **{"hidden_sizes": [5, 4], "activation": "tanh", **more})
    FlatAdam(net, max_grad_norm=1.0)
    inputs, weights, action = torch.randn(9, 3), torch.randn(4, 9), torch.randint(2, shape)
    action = action.float() if spec is CONTINUOUS else action
    function = ScoreGradients(net)
    found = function(inputs, action, weights)
    parameters = [*net.policy.linears, *net.policy.norms]
    names = [p for layer in parameters for p in (layer.weight, layer.bias)] + list(net.head.parameters())
    for k in range(4):
        log_prob = net.head.log_prob(net(inputs)[0], action)
        exact = torch.autograd.grad((weights[k] * log_prob).sum(), names)
        torch.testing.assert_close(found[k], torch.cat([g.flatten() for g in exact]), atol=1e-5, rtol=1e-5)
    assert function.num_parameters == found.shape[1] == sum(g.stop - g.start for g in function.groups.values())
    assert not any(p.grad.any() for p in net.parameters() if p.grad is not None)


def tabular_gradients(names: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of every trajectory under every estimator [trajectories, K, S * A], and the probabilities."""
    _, q = true_values(0.9)
    rows = []
    for x in ALL:
        found = outcomes(x, EVERYWHERE_WRONG, q)
        gradients = []
        for name in names:
            gradient = torch.zeros_like(LOGITS)
            for s, a, weight in zip(x.states, x.actions, estimator(**name)(found)[:, 0], strict=False):
                gradient[s] -= LOGITS.softmax(-1)[s] * weight
                gradient[s, a] += weight
            gradients.append(gradient.flatten())
        rows.append(torch.stack(gradients).numpy())
    return np.stack(rows), np.array([x.prob.item() for x in ALL])


LADDER = [{"kind": "return"}, {"kind": "to_go"}, {"kind": "baseline"}, {"kind": "gae", "lam": 0.0}]


def test_estimates_from_samples_are_the_enumerated_variance_signal_and_bias() -> None:
    gradients, probs = tabular_gradients(LADDER)
    rng, size = np.random.default_rng(4), 4000
    sets = []
    for _ in range(2):
        sums = GradientSums(size, gradients.shape[1:], {"all": slice(None), "first": slice(2)})
        for i in rng.choice(len(probs), size=size, p=probs / probs.sum()):
            sums.add(gradients[i])
        sets.append(sums)
    found = Resampled(*sets)
    _, q = true_values(0.9)
    base = moments(estimator("baseline"), EVERYWHERE_WRONG, q)[0]
    for k, name in enumerate(LADDER):
        mean, variance = moments(estimator(**name), EVERYWHERE_WRONG, q)
        measured, signal = Estimate.of(found.variance(k, "all")), Estimate.of(found.signal(k, group="all"))
        assert measured.value == pytest.approx(variance.item(), rel=0.1)
        assert measured.low < variance < measured.high
        assert signal.low < mean.square().sum() < signal.high
        bias = Estimate.of(found.signal(k, minus=2, group="all"))
        assert bias.low <= (mean - base).square().sum() + 1e-12
        assert bias.high >= (mean - base).square().sum() - 1e-12
        assert found.variance(k, "first")[0] < measured.value
    assert Estimate.of(found.signal(3, minus=2, group="all")).low > 0.0  # the values are wrong


def test_the_variance_is_the_unbiased_one_whatever_the_blocks() -> None:
    gradients = np.random.default_rng(0).normal(size=(70, 2, 5))
    sums = GradientSums(70, (2, 5), {"all": slice(None)}, reference=np.ones(5), batch_sizes=[4])
    for g in gradients:
        sums.add(g)
    found = Resampled(sums, sums)
    assert found.variance(1, "all")[0] == pytest.approx(gradients[:, 1].var(axis=0, ddof=1).sum())
    batches = gradients[:68].reshape(17, 4, 2, 5).sum(1)
    cosines = batches[:, 0].sum(-1) / np.linalg.norm(batches[:, 0], axis=-1) / 5**0.5
    assert found.cosine(0, 4).value == pytest.approx(cosines.mean())
    assert len(sums.counts) == NUM_BLOCKS
    assert sums.counts.sum() == 70


def test_cutting_episodes_at_a_horizon_truncates_them_there() -> None:
    _, q = true_values(0.9)
    x = next(x for x in ALL if len(x.actions) == 3 and not x.terminated)
    found = outcomes(x, EVERYWHERE_WRONG, q)
    for name in LADDER:
        function = estimator(**name)
        torch.testing.assert_close(_of_first(function, found, None), function(found))
        assert _of_first(function, found, 1)[1:].eq(0.0).all()
    one_step = found.reward[0] + 0.9 * found.next_value[0]
    torch.testing.assert_close(_of_first(estimator("to_go"), found, 1)[0], one_step)


@pytest.fixture(scope="module")
def poles() -> tuple[Any, Episodes]:
    torch.manual_seed(0)
    config = Composer().compose(["algo=a2c", "env=cartpole", "algo.hidden_sizes=[8]"]).config
    env = env_factory(config)(8)
    algo = build_algorithm(config, env_spec(config.env, env), CPU)
    return algo, collect_episodes(env, algo, 24, seed=1)


def test_episodes_are_whole_and_each_environment_plays_as_many(poles: tuple[Any, Episodes]) -> None:
    _, found = poles
    ends = found.length.cumsum(0) - 1
    assert len(found.length) == 24
    assert len(found.obs) == len(found.action) == found.num_steps
    assert torch.equal(found.reward.sum(0), found.length.float())  # 1 a step
    assert torch.equal(found.is_last.nonzero()[:, 0].sort().values, (found.length - 1).sort().values)
    assert (found.obs[ends - found.length + 1].abs() <= 0.05).all()  # where CartPole begins
    assert found.terminated.sum() == 24
    fallen = (found.final_obs[:, 0].abs() > 2.4) | (found.final_obs[:, 2].abs() > 12 * np.pi / 180)
    assert fallen.all()
    assert torch.equal(found.rows(found.on_grid(found.obs[:, 0])), found.obs[:, 0])


def test_fitted_values_explain_returns_of_other_episodes(poles: tuple[Any, Episodes]) -> None:
    algo, found = poles
    values = FittedValues(algo.net, found, discount=0.99)
    value, final, gain = values.of(found)
    assert value.shape == gain.shape == (found.num_steps,)
    assert final.shape == (24,)
    assert values.explained_variance(found)[0] > 0.3


def test_variance_of_an_untrained_policy_prints_the_ladder_and_draws_it(here: Any, run_command: Any) -> None:
    code, out, _ = run_command("variance algo=reinforce env=cartpole algo.hidden_sizes=[8] --episodes 128 --out a.png --json")
    assert code == 0
    found = json.loads(out)
    assert found["factor"]["value"] > 3.0
    assert found["num_episodes"] == 128
    assert [rung["kind"] for rung in found["rungs"]][:4] == ["return", "to_go", "baseline", "q"]
    variance = {rung["name"]: rung["variance"]["all"] for rung in found["rungs"]}
    assert variance["R(τ)"]["low"] > variance["to go"]["high"] > variance["to go - V"]["value"] > variance["GAE(0)"]["value"]
    assert (here / "a.png").stat().st_size > 10_000


def test_variance_of_a_run_is_that_of_its_checkpoint(here: Any, run_command: Any) -> None:
    settings = "env.num_envs=4 algo.hidden_sizes=[8] loop.total_env_steps=200 loop.eval_every=200 loop.eval_episodes=1 log.wandb=disabled"
    assert run_command(f"train algo=a2c env=cartpole recipe=null {settings} --name pole")[0] == 0
    code, out, _ = run_command("variance pole --episodes 128")
    assert code == 0
    assert "pole at 200 env steps on CartPole-v1" in out
    assert "times the variance of GAE(0.95)" in out
    assert (here / "runs/pole/plots/variance.png").is_file()


@pytest.mark.parametrize(("words", "parts"), [
    ("algo=sac env=pendulum", ["algo=sac follows no policy gradient", "algo=reinforce, a2c and ppo"]),
    ("algo=ppo env=recall", ["memory"]),
    ("algo=a2c env=cartpole --episodes 20", ["--episodes 20", "at least 128"]),
    ("algo=a2c env=cartpole --checkpoint best", ["--checkpoint best", "an untrained policy has none"]),
    ("somewhere algo=a2c", ["name a run, or the settings of an untrained policy, not both"]),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused(words: str, parts: list[str], here: Any, run_command: Any) -> None:
    code, _, error = run_command(f"variance {words}")
    assert code == 2
    assert all(part in error for part in parts), error
