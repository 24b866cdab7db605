"""PETS as an algorithm: its replay, the times of its fits, what it refuses, and the accuracy of its model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from nested import settings_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlx.algos.pets import PETS
from rlx.collect import Collector
from rlx.columns import Column
from rlx.config.algos.pets_config import PETSConfig, PlannerKind, Propagation, RewardSource, TerminationSource, TrustRule
from rlx.config.compose import Composer
from rlx.envs.control.reward_functions import RULES
from rlx.envs.native import NATIVE
from rlx.errors import ConfigError, NonFiniteError
from rlx.planning.shooting import Memory
from rlx.replay import TransitionReplay
from rlx.rng import isolated_rng
from rlx.types import EnvSpec, Progress

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "hidden_sizes": [16, 16], "num_candidates": 20, "num_iterations": 2, "horizon": 6, "max_epochs": 3, "initial_steps": 40,
    "fit_every": 40, "ensemble_size": 3,
}  # fmt: skip


def pole_spec(env_id: str = "rlx/CartPoleContinuous-v0", **changes) -> EnvSpec:
    env, rules = NATIVE[env_id](1), RULES[env_id]
    return EnvSpec(**{
        "id": env_id, "observation_space": env.single_observation_space, "action_space": env.single_action_space,
        "reward_fn": rules.reward, "termination_fn": rules.termination, "never_terminates": rules.never_terminates, **changes,
    })  # fmt: skip


def make(num_envs: int = 2, env_id: str = "rlx/CartPoleContinuous-v0", **settings) -> tuple[PETS, Collector]:
    algo = PETS(settings_of(PETSConfig, **{**SMALL, **settings}), pole_spec(env_id), num_envs, CPU)
    collector = Collector(NATIVE[env_id](num_envs), algo, seed=0)
    collector.reset()
    return algo, collector


def run(algo: PETS, collector: Collector, steps: int, progress: Progress | None = None) -> list[dict[str, Any]]:
    progress = progress or Progress(total_env_steps=100_000)
    metrics = []
    for _ in range(steps):
        rollout, _ = collector.collect(algo.rollout_length)
        progress.advance(rollout)
        metrics.append(dict(algo.update(rollout, progress)))
    return metrics


def merged(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """The last of every metric."""
    return {name: float(value) for line in metrics for name, value in line.items()}


NEW = torch.ones(2, dtype=torch.bool)
OLD = ~NEW


def test_actions_are_random_until_the_first_fit_and_planned_after():
    algo, collector = make()
    metrics = run(algo, collector, 21)
    assert all("loss/model" not in line and "model/disagreement" not in line for line in metrics[:19])
    assert "loss/model" in metrics[19]  # 40 env steps of two envs
    assert "model/disagreement" not in metrics[19]
    assert "model/disagreement" in metrics[20]


def test_fits_come_every_so_many_env_steps():
    algo, collector = make(fit_every=30)
    progress = Progress(total_env_steps=1000)
    fits = [progress_ for progress_, line in enumerate(run(algo, collector, 80, progress), start=1) if "loss/model" in line]
    assert [2 * t for t in fits] == [40, 60, 90, 120, 150]


def test_the_metrics_say_what_was_promised_and_what_came():
    algo, collector = make(num_envs=4, env_id="rlx/CartPoleSwingUp-v0")
    found = merged(run(algo, collector, 60))
    assert found["plan/exploitation_gap"] == pytest.approx(found["plan/predicted_return"] - found["plan/realised_return"], abs=1e-5)
    assert {"model/k_step_error", "model/holdout_mse", "model/holdout_nll", "loss/model", "time/plan_ms", "time/fit_s"} <= found.keys()
    assert found["model/known_reward_error"] < 1e-5  # the known reward is the environment's
    assert found["plan/horizon"] == 6


def test_realised_returns_are_the_rewards_of_the_steps_that_were_promised():
    algo, collector = make(num_envs=1)
    realised = [line["plan/realised_return"] for line in run(algo, collector, 120) if "plan/realised_return" in line]
    assert max(float(r) for r in realised) == 6.0  # a reward of 1 for each of six steps


def memory(mean: Tensor, elites: float = 0.0, *, known: bool = False) -> Memory:
    return Memory(mean, torch.full((2, 1, 6, 1), elites), torch.full((2,), known))


def test_what_is_left_of_the_plan_is_remembered():
    algo, collector = make(env_id="rlx/CartPoleSwingUp-v0", elite_fraction=0.2)
    run(algo, collector, 20)
    obs, before = torch.randn(2, 5) * 0.1, memory(torch.rand(2, 6, 1), 0.5, known=True)
    with isolated_rng(0, 0):
        plan = algo.plan(obs, before)
    with isolated_rng(0, 0):
        out = algo.act(obs, before._asdict(), OLD, mode="eval")
    assert torch.equal(out.action, plan.mean[:, 0])
    assert all(torch.equal(out.carry[name], x) for name, x in plan.rest()._asdict().items())
    assert plan.elites.shape == (2, 1, 6, 1)
    with isolated_rng(0, 0):
        forgetful = algo.plan(obs, before._replace(known=torch.zeros(2, dtype=torch.bool)))
    assert not torch.equal(plan.mean, forgetful.mean)


def test_a_plan_is_not_remembered_across_episodes():
    algo, collector = make(elite_fraction=0.2)
    run(algo, collector, 20)
    obs = torch.randn(2, 4) * 0.1

    def act(carry, is_first):
        with isolated_rng(0, 0):
            return algo.act(obs, carry, is_first, mode="eval")

    fresh = act(algo.initial_carry(2), NEW)
    for leftover in (0.9, float("nan")):
        again = act(memory(torch.full((2, 6, 1), leftover), leftover, known=True)._asdict(), NEW)
        assert torch.equal(again.action, fresh.action)
        assert all(torch.equal(again.carry[name], fresh.carry[name]) for name in fresh.carry)
    kept = act(memory(torch.full((2, 6, 1), 0.9), 0.9, known=True)._asdict(), torch.tensor([False, True]))
    assert not torch.equal(kept.carry["mean"][0], fresh.carry["mean"][0])
    assert torch.equal(kept.carry["mean"][1], fresh.carry["mean"][1])
    assert torch.equal(kept.carry["elites"][1], fresh.carry["elites"][1])


class Launches(TorchDispatchMode):
    """Counts the operations that a device would be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)  # would wait for the device
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("settings", "most"),
    [({}, 900), ({"kind": PlannerKind.cem, "propagation": Propagation.ts_1}, 1100), ({"trust": TrustRule.truncate}, 1000),
     ({"kind": PlannerKind.mppi, "reward": RewardSource.learned}, 900)],
)  # fmt: skip
def test_a_plan_asks_little_of_a_device_and_never_waits_for_it(settings, most):
    usual = {"horizon": 15, "num_iterations": 3, "max_epochs": 1, "num_candidates": 30}
    algo, collector = make(**usual, **settings)
    run(algo, collector, 20)
    carry = Memory(**algo.initial_carry(2))
    with torch.no_grad(), Launches() as launches:
        algo.plan(torch.zeros(2, 4), carry)
    assert 100 < launches.count < most


def test_acting_leaves_the_algorithm_alone_and_explores_only_before_there_is_a_model(same):
    algo, collector = make()
    for has_model in (False, True):
        obs, carry = torch.randn(2, 4) * 0.1, algo.initial_carry(2)
        state = copy.deepcopy(algo.state_dict())
        in_training, in_evaluations = ([algo.act(obs, carry, NEW, mode=mode).action for _ in range(2)] for mode in ("train", "eval"))
        assert same(algo.state_dict(), state)
        assert not torch.equal(*in_training)
        # Plans that imagine the same luck at every step are all wrong the same way: poles fell in evaluations that stood in training.
        assert torch.equal(*in_evaluations) != has_model
        run(algo, collector, 20)


@pytest.mark.parametrize("planner", PlannerKind)
@pytest.mark.parametrize("propagation", Propagation)
def test_every_planner_works_with_every_propagation(planner, propagation):
    algo, collector = make(kind=planner, propagation=propagation, num_particles=2)
    found = merged(run(algo, collector, 25))
    assert np.isfinite(list(found.values())).all()


@pytest.mark.parametrize(
    "settings", [{"trust": TrustRule.disagreement, "trust_cost": 5.0}, {"trust": TrustRule.truncate, "trust_limit": 1e-6}]
)
def test_trust_changes_what_is_planned(settings):
    plans = []
    for chosen in ({}, settings):
        torch.manual_seed(0)
        algo, collector = make(env_id="rlx/CartPoleSwingUp-v0", **chosen)
        run(algo, collector, 20)
        with isolated_rng(0, 0):
            plans.append(algo.plan(torch.randn(2, 5), Memory(**algo.initial_carry(2))))
    assert not torch.equal(plans[0].mean, plans[1].mean)
    assert plans[0].horizon.tolist() == [6, 6]
    assert plans[1].horizon.tolist() == ([1, 1] if settings["trust"] is TrustRule.truncate else [6, 6])


def test_a_learned_reward_comes_to_resemble_the_true_one():
    algo, collector = make(num_envs=8, env_id="rlx/CartPoleSwingUp-v0", reward=RewardSource.learned, max_epochs=30, initial_steps=1200)
    found = merged(run(algo, collector, 150))
    assert algo.learner.ensemble.num_outputs == 6
    assert found["model/holdout_mse"] < 0.5
    assert "model/known_reward_error" not in found


def test_the_model_foresees_and_disagrees_less_with_more_data():
    algo, collector = make(num_envs=8, env_id="rlx/CartPoleSwingUp-v0", initial_steps=200, fit_every=800, max_epochs=30, num_candidates=4)
    metrics = run(algo, collector, 310)
    errors = [float(line["model/k_step_error"]) for line in metrics if "model/k_step_error" in line]
    doubts = [float(line["model/disagreement"]) for line in metrics if "model/disagreement" in line]
    assert errors[-1] < 0.5 * errors[0]
    assert np.mean(doubts[-20:]) < np.mean(doubts[:20])


def test_observations_that_are_not_finite_stop_the_fit_and_change_no_weights(same):
    algo, collector = make()
    run(algo, collector, 19)
    rollout, _ = collector.collect(1)
    rollout.all_obs[0, 0, 2] = float("nan")
    before, progress = copy.deepcopy(algo.learner.ensemble.state_dict()), Progress(total_env_steps=1000, env_steps=40)
    with pytest.raises(NonFiniteError, match="not finite"):
        algo.update(rollout, progress)
    assert same(algo.learner.ensemble.state_dict(), before)


def test_the_change_of_the_last_step_of_an_episode_is_to_where_it_ended():
    algo, collector = make(num_envs=3)
    expected = []
    for _ in range(30):
        rollout, _ = collector.collect(1)
        expected.append((rollout.next_obs - rollout.obs)[0])
        algo.update(rollout, Progress(total_env_steps=1000, env_steps=0))
    assert algo.learner.replay["is_last"].any()
    torch.testing.assert_close(algo.learner.replay["change"], torch.cat(expected), atol=1e-6, rtol=0.0)


# Refusals


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({}, {"action_space": spaces.Discrete(2)}, r"algo=pets plans continuous actions.*Discrete\(2\).*algo=ppo"),
        ({}, {"action_space": spaces.Box(-np.inf, np.inf, (1,))}, "unbounded action space"),
        ({}, {"reward_fn": None}, r"reward of env=.* is not known .*\(no reward function is declared\); use algo.reward=learned"),
        ({}, {"reward_fn": None, "reward_unknown": "of the speed"}, r"\(of the speed\)"),
        ({}, {"termination_fn": None}, r"not known when the episodes .* terminate.*use algo.termination=never"),
    ],
)
def test_what_pets_cannot_plan_with_is_refused(settings, changes, message):
    with pytest.raises(ConfigError, match=message):
        PETS(settings_of(PETSConfig, **SMALL, **settings), pole_spec(**changes), 1, CPU)


def test_what_is_learned_or_ignored_need_not_be_known():
    config = settings_of(PETSConfig, **SMALL, reward=RewardSource.learned, termination=TerminationSource.never)
    algo = PETS(config, pole_spec(reward_fn=None, termination_fn=None), 1, CPU)
    assert algo.learner.ensemble.num_outputs == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("algo.planner.num_candidates=1", "algo.planner.num_candidates must be at least 2"),
        ("algo.planner.elite_fraction=0", r"algo.planner.elite_fraction must be within \(0, 1\]"),
        ("algo.hidden_sizes=[]", "algo.hidden_sizes must be positive widths"),
        ("algo.holdout_fraction=1", r"algo.holdout_fraction must be within \[0, 1\)"),
        ("algo.replay_size=10", "algo.replay_size must be at least algo.initial_steps=200"),
        ("algo.planner.temperature=1", "planner.kind=mppi"),
        ("algo.trust_cost=1", "trust=disagreement"),
        ("algo.trust_limit=1", "trust=truncate"),
        ("algo.planner.kind=cem algo.planner.noise_beta=1", "planner.kind=icem"),
        ("algo.propagation=mean algo.num_particles=2", "propagation=ts_inf"),
        ("algo.holdout_fraction=0 algo.patience=2", "holdout_fraction is above 0"),
    ],
)
def test_settings_that_are_wrong_or_unused_are_refused(line, message):
    with pytest.raises(ConfigError, match=message):
        Composer().compose(["algo=pets", "env=pendulum", *line.split()])


@pytest.mark.parametrize(
    "line", ["algo.planner.kind=mppi algo.planner.temperature=1", "algo.trust=truncate algo.trust_limit=1", "algo.planner.kind=cem"]
)
def test_settings_that_are_used_are_not(line):
    assert Composer().compose(["algo=pets", "env=pendulum", *line.split()]).config.algo.name == "pets"


@pytest.mark.parametrize("recipe", [name for name in Composer().options("recipe") if name.startswith("pets_")])
def test_every_recipe_leaves_steps_to_plan_after_those_at_random(recipe):
    composed = Composer().compose(["algo=pets", f"env={recipe.removeprefix('pets_')}"])
    assert composed.choices["recipe"] == recipe
    assert composed.config.algo.initial_steps + composed.config.algo.fit_every < composed.config.loop.total_env_steps


# The replay


def columns() -> TransitionReplay:
    return TransitionReplay(7, 2, {"x": Column(torch.float32), "y": Column(torch.uint8, (3,))})


def filled(steps: int) -> TransitionReplay:
    replay = columns()
    for t in range(steps):
        replay.add(x=torch.tensor([[10.0 * t, 10.0 * t + 1]]), y=torch.full((1, 2, 3), t))
    return replay


def test_the_oldest_steps_are_overwritten_and_the_newest_come_in_order():
    replay = filled(5)
    assert (replay.capacity, replay.size, replay.added) == (6, 6, 10)
    assert sorted(replay["x"].tolist()) == [20, 21, 30, 31, 40, 41]
    assert replay.newest("x", 4).tolist() == [[30, 31], [40, 41]]
    assert replay.newest("x", 100).tolist() == [[20, 21], [30, 31], [40, 41]]
    assert replay.newest("y", 2)[0, 1].tolist() == [4, 4, 4]


def test_a_replay_continues_identically(same: Callable[[Any, Any], bool]):
    replay, again = filled(4), columns()
    again.load_state_dict(copy.deepcopy(replay.state_dict()))
    for r in (replay, again):
        r.add(x=torch.tensor([[1.0, 2.0]]), y=torch.zeros(1, 2, 3))
    assert same(replay.state_dict(), again.state_dict())


def test_several_steps_are_added_at_once():
    replay = columns()
    replay.add(x=torch.arange(4.0).view(2, 2), y=torch.zeros(2, 2, 3))
    assert replay["x"].tolist() == [0, 1, 2, 3]
