"""The imagination-based planner: routes that are replayed, gradients through imagined and real steps, the manager, and its strategies."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from rlx.algos.ibp import ACT, IBP, LAST, NONE, ROOT, _recorded, manager_loss
from rlx.build import build_algorithm, env_factory, env_spec
from rlx.collect import Collector
from rlx.config.compose import Composer
from rlx.errors import ConfigError
from rlx.evaluation.watching import watch_run
from rlx.models.flight import PerfectFlight
from rlx.models.interaction import InteractionNetwork
from rlx.store.layout import runs_directory
from rlx.store.runs import RunDir
from rlx.types import Progress, Rollout

SMALL = ["algo=ibp", "env=spaceship", "recipe=null", "env.num_envs=16", "algo.hidden_sizes=[8]", "algo.memory_size=6"]
SMALL_MODEL = ["algo.model_batch_size=16", "algo.model_replay_size=64", "algo.model_hidden_size=8", "algo.model_steps=1"]


def built(*words: str) -> tuple[IBP, Collector]:
    given = {word.partition("=")[0] for word in words}
    model = [] if "algo.model=perfect" in words else SMALL_MODEL
    config = Composer().compose([word for word in [*SMALL, *model] if word.partition("=")[0] not in given] + list(words)).config
    env = env_factory(config).training(config.env.num_envs)[0]
    algo: Any = build_algorithm(config, env_spec(config.env, env), torch.device("cpu"))
    collector = Collector(env, algo, seed=0)
    collector.reset()
    return algo, collector


def taken(algo: IBP, collector: Collector) -> Rollout:
    return collector.collect(algo.rollout_length)[0]


def louder(algo: IBP) -> None:
    """Weights with which routes and actions differ between ships."""
    with torch.no_grad():
        algo.controller.policy.output_weight.mul_(30.0)
        if algo.manager is not None:
            algo.manager.policy.output_weight.mul_(100.0)


VARIANTS = {
    "one step": ["algo.strategy=one_step"],
    "n step": ["algo.strategy=n_step", "algo.imaginations=3", "algo.model=perfect"],
    "tree": ["algo.strategy=tree", "algo.imaginations=3", "env.num_actions=3", "algo.price_schedule=growing", "algo.price=0.1"],
    "corrupted": ["algo.strategy=tree", "algo.imaginations=3", "env.num_actions=2", "algo.corrupt_prob=0.5"],
    "always": ["algo.strategy=n_step", "algo.manager=always", "algo.model=perfect", "env.num_actions=2"],
    "none": ["algo.strategy=none"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_updates_compute_the_routes_and_actions_that_were_recorded(variant):
    algo, collector = built(*VARIANTS[variant])
    louder(algo)
    progress = Progress(total_env_steps=10_000)
    for _ in range(3):
        rollout = taken(algo, collector)
        progress.advance(rollout)
        algo.update(rollout, progress)  # asserts that they are
    assert rollout.terminated[-1].all()


@pytest.mark.parametrize("name", ["log_prob", "action"])
def test_an_update_refuses_a_record_of_another_agent(name):
    algo, collector = built("algo.strategy=tree")
    rollout = taken(algo, collector)
    changed: Any = rollout.extras.get(name, rollout.action)
    changed[0, 3] += 1e-3
    with pytest.raises(AssertionError, match="act and update differ"):
        algo.update(rollout, Progress(total_env_steps=100, env_steps=16))


def simulated(algo: IBP, first: torch.Tensor, routes: torch.Tensor) -> Rollout:
    """A rollout without noise of the agent as it is, under given routes [J, B, K]."""
    obs, memory, seen, actions = first, algo.controller.memory.initial(len(first)), [first], []
    for t in range(len(routes)):
        thought = algo._think(obs, memory, _recorded(routes[t]), None)
        actions.append(algo.bodies.to_action(obs, thought.acceleration))
        after = algo.model(obs, actions[-1])
        memory = algo._remember(obs, thought.acceleration, after, thought.memory)
        obs = after
        seen.append(obs)
    none = torch.zeros(0, dtype=torch.long)
    flags = torch.zeros(len(routes), len(first), dtype=torch.bool)
    return Rollout(all_obs=torch.stack(seen), action=torch.stack(actions), reward=flags.double(), terminated=flags, truncated=flags,
                   is_first=flags, final_t=none, final_b=none, final_obs=first[:0], carry={}, extras={"route": routes})  # fmt: skip


@pytest.mark.parametrize(("strategy", "num_actions"), [("one_step", 1), ("n_step", 1), ("tree", 2)])
def test_the_controllers_gradient_is_that_of_finite_differences_through_a_perfect_model(strategy, num_actions):
    algo, _ = built("algo.model=perfect", f"algo.strategy={strategy}", f"env.num_actions={num_actions}")
    louder(algo)
    algo.controller.double()
    first = torch.from_numpy(algo.bodies.scenes(np.arange(4)).T.copy())
    base = LAST if strategy == "n_step" else ROOT
    routes = torch.tensor([[base, LAST if strategy == "tree" else base], [base, ACT], [ACT, NONE], [base, base]]).expand(num_actions, 4, 2)
    with torch.no_grad():
        rollout = simulated(algo, first, routes)
    reward, _, differs = algo._live_again(rollout)
    assert differs < 1e-12
    (-reward.sum(0).mean()).backward()
    generator = torch.Generator().manual_seed(0)
    for weight in (algo.controller.policy.output_weight, algo.controller.memory.weight_ih, algo.controller.memory.weight_hh):
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        costs = []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                weight.add_(direction, alpha=step)
                costs.append(-algo._live_again(simulated(algo, first, routes))[0].sum(0).mean().item())
            weight.add_(direction, alpha=1e-6)
        assert (weight.grad * direction).sum().item() == pytest.approx((costs[0] - costs[1]) / 2e-6, rel=1e-5), "of a weight"


def test_ships_that_have_acted_remember_and_do_what_they_would_alone():
    algo, _ = built("algo.model=perfect", "algo.imaginations=3")
    louder(algo)
    obs = torch.from_numpy(algo.bodies.scenes(np.arange(3)).T.astype(np.float32).copy())
    memory = algo.controller.memory.initial(3)
    routes = torch.tensor([[ACT, NONE, NONE], [ROOT, ACT, NONE], [ROOT, ROOT, ROOT]])
    with torch.no_grad():
        together = algo._think(obs, memory, _recorded(routes), None)
        for i in range(3):
            alone = algo._think(obs[i : i + 1], algo.controller.memory.initial(1), _recorded(routes[i : i + 1]), None)
            torch.testing.assert_close(together.acceleration[i], alone.acceleration[0])
            torch.testing.assert_close(together.memory["hidden"][i], alone.memory["hidden"][0])
    assert together.memory["hidden"][0].count_nonzero() == 0
    assert (together.memory["hidden"][1] != together.memory["hidden"][2]).any()


@pytest.mark.parametrize(
    ("strategy", "routes", "bases"),
    [
        ("one_step", [ROOT, ROOT, ROOT], [0, 0, 0]),
        ("n_step", [LAST, LAST, LAST], [0, 1, 2]),
        ("tree", [ROOT, LAST, ROOT], [0, 1, 0]),
    ],
)
def test_a_strategy_imagines_where_its_routes_say(strategy, routes, bases):
    algo, _ = built("algo.model=perfect", f"algo.strategy={strategy}", "algo.imaginations=3")
    louder(algo)
    began: list[torch.Tensor] = []
    algo.model = lambda obs, action: began.append(obs) or PerfectFlight(algo.bodies)(obs, action)  # type: ignore[assignment,func-returns-value]
    algo._choices = lambda num, mode, log_probs: (
        lambda k, read, alive: (  # type: ignore[method-assign]
            log_probs.append(torch.zeros(num)) or torch.full((num,), routes[k])  # type: ignore[func-returns-value]
        )
    )
    obs = torch.from_numpy(algo.bodies.scenes(np.arange(2)).T.astype(np.float32).copy())
    _, found = algo.explain(obs, algo.initial_carry(2), torch.ones(2, dtype=torch.bool))
    states = torch.cat((obs[:, None], found.imagined), dim=1)
    assert found.imagined_from.tolist() == [bases, bases]
    for k, base in enumerate(bases):
        assert torch.equal(began[k], states[:, base])


@pytest.mark.parametrize(
    ("strategy", "first", "later"),
    [("one_step", {ACT, ROOT}, {ACT, ROOT}), ("n_step", {ACT, LAST}, {ACT, LAST}), ("tree", {ACT, ROOT}, {ACT, ROOT, LAST})],
)
def test_managers_choose_among_the_routes_of_their_strategy(strategy, first, later):
    algo, collector = built(f"algo.strategy={strategy}", "env.num_envs=64")
    route = taken(algo, collector).extras["route"][0]
    assert set(route[:, 0].tolist()) == first
    assert set(route[:, 1].tolist()) == later | {NONE}
    assert (route[route[:, 0] == ACT, 1] == NONE).all()


def test_the_managers_estimate_is_unbiased():
    """Over all routes of at most two decisions, weighted by their probabilities, against the gradient of the expected cost."""
    logits = torch.tensor([[0.3, -0.2], [0.9, 0.1]], dtype=torch.float64, requires_grad=True)  # of acting and imagining, at two decisions
    costs = {(0, NONE): 0.7, (1, 0): 0.2 + 0.5, (1, 1): 2 * 0.2 + 0.1}  # routes to price and task
    baseline = torch.tensor([0.4, -1.3], dtype=torch.float64)
    log_probs = logits.log_softmax(-1)

    def log_prob_of(route):
        return torch.stack([log_probs[k, r] if r != NONE else torch.zeros((), dtype=torch.float64) for k, r in enumerate(route)])

    expected = sum(log_prob_of(route).sum().exp() * cost for route, cost in costs.items())
    (exact,) = torch.autograd.grad(expected, logits, retain_graph=True)
    estimate = torch.zeros_like(logits)
    for route, cost in costs.items():
        decided = torch.tensor([[r != NONE] for r in route])
        to_go = torch.tensor([[cost], [cost - 0.2]], dtype=torch.float64)  # the price of the first is paid at the second
        loss = manager_loss(log_prob_of(route)[:, None], to_go - baseline[:, None], decided)
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        estimate += log_prob_of(route).sum().exp().detach() * gradient
    torch.testing.assert_close(estimate, exact)


def test_a_high_price_ends_imagination_and_none_keeps_the_entropy_bonus_high():
    calls = {}
    for price in (0.0, 20.0):
        algo, collector = built("algo.model=perfect", f"algo.price={price}", "algo.manager_learning_rate=0.02", "algo.imaginations=2")
        progress = Progress(total_env_steps=16 * 50)
        for _ in range(40):
            rollout = taken(algo, collector)
            progress.advance(rollout)
            metrics = algo.update(rollout, progress)
        calls[price] = float(metrics["imagination/calls"])
    assert calls[20.0] == 0.0
    assert calls[0.0] > 0.3


def test_imagining_costs_a_growing_price_and_none_of_it_is_in_the_return():
    algo, collector = built("algo.strategy=one_step", "algo.price=0.5", "algo.price_schedule=growing", "env.num_actions=2")
    rollout = taken(algo, collector)
    calls = rollout.extras["model_calls"].float()
    metrics = algo.update(rollout, Progress(total_env_steps=100, env_steps=32))
    assert float(metrics["imagination/paid"]) == pytest.approx((0.5 * calls[0] + 1.0 * calls[1]).mean().item())
    assert rollout.reward.min() > -5.0


def test_acting_changes_nothing_and_explains_what_it_does():
    algo, collector = built("algo.strategy=tree", "algo.imaginations=3", "env.num_actions=2", "algo.corrupt_prob=0.5")
    louder(algo)
    rollout = taken(algo, collector)
    carry = algo.initial_carry(16)
    first = torch.ones(16, dtype=torch.bool)
    torch.manual_seed(1)
    acted = algo.act(rollout.all_obs[0], carry, first, mode="train")
    torch.manual_seed(1)
    explained, found = algo.explain(rollout.all_obs[0], carry, first, mode="train")
    assert torch.equal(acted.action, explained.action)
    assert (found.imagined_from >= 0).sum() == acted.extras["model_calls"].sum()
    assert all((value == 0.0).all() for value in carry.values())


def test_an_evaluation_takes_the_most_likely_route():
    algo, collector = built("algo.strategy=one_step", "env.num_envs=64", "algo.imaginations=1")
    assert algo.manager is not None
    with torch.no_grad():
        algo.manager.policy.linears[-1].bias.copy_(torch.tensor([0.0, 0.5, 0.0]))
    obs, first = taken(algo, collector).all_obs[0], torch.ones(64, dtype=torch.bool)
    assert (algo.act(obs, algo.initial_carry(64), first, mode="eval").extras["model_calls"] == 1).all()
    assert 0.4 < algo.act(obs, algo.initial_carry(64), first, mode="train").extras["model_calls"].float().mean() < 0.85


def test_corruption_shows_other_ships_that_do_not_depend_on_the_own_one():
    algo, _ = built("algo.model=perfect", "algo.corrupt_prob=0.5", "algo.imaginations=1", "algo.manager=always")
    obs = torch.from_numpy(algo.bodies.scenes(np.arange(400)).T.astype(np.float32).copy())
    torch.manual_seed(0)
    output, found = algo.explain(obs, algo.initial_carry(400), torch.ones(400, dtype=torch.bool))
    other = output.extras["stranger"][:, 0] != NONE
    assert 0.4 < other.float().mean() < 0.6
    own = algo.model(obs, algo.bodies.to_action(obs, torch.zeros(400, 2)))  # the first actions are nearly nothing
    distance = (found.imagined[:, 0, :2] - own[:, :2]).norm(dim=1)
    assert distance[~other].max() < 0.1
    assert distance[other].median() > 0.5
    assert torch.equal(found.imagined[:, 0, 6:], obs[:, 6:])


def test_an_interaction_network_does_not_depend_on_the_order_of_the_planets_and_learns():
    algo, _ = built()
    torch.manual_seed(0)
    model, perfect = InteractionNetwork(algo.bodies, 16), PerfectFlight(algo.bodies)
    obs = torch.from_numpy(algo.bodies.scenes(np.arange(256)).T.astype(np.float32).copy())
    action = algo.bodies.to_action(obs, torch.randn(256, 2) * 0.5)
    shuffled = torch.cat((obs[:, :6], obs[:, 6:].unflatten(1, (5, 3))[:, [3, 0, 4, 1, 2]].flatten(1)), dim=1)
    torch.testing.assert_close(model(obs, action)[:, :6], model(shuffled, action)[:, :6])
    after = perfect(obs, action)
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(100):
        adam.zero_grad()
        loss = model.loss(obs, action, after)
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_other_environments_and_settings_without_effect_are_refused():
    with pytest.raises(ConfigError, match="env=Pendulum-v1 is no such environment"):
        built("env=pendulum")
    for words in (
        ["algo.strategy=none", "algo.price=1"],
        ["algo.manager=always", "algo.price=1"],
        ["algo.model=perfect", "algo.model_steps=2"],
    ):
        with pytest.raises(ConfigError, match="has no effect"):
            built(*words)
    with pytest.raises(ConfigError, match="cannot choose where to imagine"):
        built("algo.strategy=tree", "algo.manager=always")


def test_watching_draws_what_is_imagined_and_where_the_ship_flew(here, run_command, tmp_path):
    words = f"train {' '.join([*SMALL, *SMALL_MODEL])} algo.strategy=n_step algo.manager=always loop.total_env_steps=32 loop.eval_every=0"
    assert run_command(f"{words} log.wandb=disabled --name w")[0] == 0
    code, out, _ = run_command("watch w")
    assert code == 0
    assert "imagined 1: from here to (" in out
    assert "imagined 2: from imagined 1 to (" in out
    seen = list(watch_run(RunDir.open(runs_directory(), "w")).moments)
    assert len(seen) == 2
    lines = (seen[0].frame == [255, 190, 60]).all(-1).sum()
    assert lines > 20
    assert not (seen[1].frame == [255, 190, 60]).all(-1).any()
    code, out, _ = run_command("eval w --episodes 3")
    assert "model calls 2 an episode" in out


def test_all_settings_of_the_managers_prices_are_on_one_scale():
    """The cost of every decision is what is still to be paid and the task: of two actions, by hand."""
    algo, collector = built("algo.model=perfect", "algo.price=0.25", "env.num_actions=2", "algo.imaginations=1", "algo.entropy_coef=0")
    rollout = taken(algo, collector)
    rollout.reward.copy_(torch.tensor([[-1.0], [-2.0]]).expand(2, 16))
    assert algo.manager is not None
    with torch.no_grad():
        algo.manager.value.output_weight.zero_()
    calls = rollout.extras["model_calls"].float()
    metrics = algo.update(rollout, Progress(total_env_steps=1000, env_steps=32))
    first, second = 3.0 + 0.25 * calls.sum(0), 2.0 + 0.25 * calls[1]
    assert float(metrics["loss/value"]) == pytest.approx((0.5 * (first**2 + second**2)).mean().item())
    assert list(itertools.chain(rollout.extras["route"].shape)) == [2, 16, 1]
