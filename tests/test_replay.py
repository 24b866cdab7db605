"""Replay buffers: how many gradient steps are due, and what they hold after a restore."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from resumable import FIT, compose

from rlx.build import budget_notes, build_algorithm, env_factory, env_spec, replay_notes
from rlx.config.algo_registry import ALGORITHMS
from rlx.config.compose import Composer
from rlx.errors import ConfigError
from rlx.priorities import Priorities
from rlx.replay import gradient_steps_due
from rlx.types import KeepsReplay


@pytest.mark.parametrize("utd", [0.25, 1 / 3, 1.0, 4.0])
def test_gradient_steps_per_env_step_are_the_same_for_any_number_of_environments(utd: float) -> None:
    due = {
        num_envs: [gradient_steps_due(a, b, utd=utd, begin=96) for a, b in itertools.pairwise(range(0, 961, num_envs))]
        for num_envs in (1, 8, 32)
    }
    assert {sum(each) for each in due.values()} == {math.floor(utd * (960 - 96))}
    for num_envs, each in due.items():
        assert not any(each[: 96 // num_envs])  # and later updates do not make up for these
        assert set(each[96 // num_envs :]) <= {math.floor(utd * num_envs), math.ceil(utd * num_envs)}


@pytest.mark.parametrize("capacity", [1, 90, 16_384, 16_385, 40_000])
def test_draws_in_blocks_are_those_of_one_cumulative_sum(capacity: int) -> None:
    torch.manual_seed(0)
    weights = Priorities(capacity)
    for _ in range(3):  # whole numbers, whose sums are exact in any order
        index = torch.randint(capacity, (capacity // 2 + 1,))
        weights[index] = torch.randint(1, 9, index.shape).double()
    expected = torch.zeros(capacity, dtype=torch.float64) + weights.values
    torch.manual_seed(1)
    index, prob = weights.draw(500)
    torch.manual_seed(1)
    total = expected.cumsum(0)
    assert torch.equal(index, torch.searchsorted(total, torch.rand(500, dtype=torch.float64) * total[-1], right=True))
    assert torch.equal(prob, expected[index] / total[-1])


def test_draws_by_priority_go_on_where_they_were_saved_and_never_take_a_row_of_weight_0() -> None:
    torch.manual_seed(0)
    one, two = Priorities(20_000), Priorities(20_000)
    for _ in range(20):
        one[torch.randint(18_000, (300,))] = torch.rand(300, dtype=torch.float64) ** 8
        one[torch.randint(18_000, (200,))] = 0.0
    two.load(one.values[:18_000])
    for _ in range(20):
        state = torch.get_rng_state()
        (index, prob), _ = one.draw(1_000), torch.set_rng_state(state)
        assert all(map(torch.equal, (index, prob), two.draw(1_000)))
        assert (one.values[index] > 0).all()


@pytest.mark.parametrize("name", ["sac", "pets"])
def test_a_budget_that_ends_before_learning_begins_is_pointed_out(name: str) -> None:
    settings = [f"algo={name}", "env=pendulum", "algo.initial_steps=500"]
    (note,) = budget_notes(Composer().compose([*settings, "loop.total_env_steps=500"]).config)
    assert note == "nothing is learned: loop.total_env_steps=500 ends within the algo.initial_steps=500 random steps"
    assert budget_notes(Composer().compose([*settings, "loop.total_env_steps=501"]).config) == []


WITH_REPLAY = [
    name for name, known in ALGORITHMS.items() if any(f.name.endswith("replay_size") for f in dataclasses.fields(known.config()))
]


@pytest.mark.parametrize("name", WITH_REPLAY)
def test_every_algorithm_with_a_replay_says_how_much_memory_it_takes_and_is_refused_if_that_is_not_there(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(name, FIT[name][0])
    env = env_factory(config)(1)
    algo = build_algorithm(config, env_spec(config.env, env), torch.device("cpu"))
    env.close()
    assert isinstance(algo, KeepsReplay)
    (setting,) = (f.name for f in dataclasses.fields(config.algo) if f.name.endswith("replay_size"))
    assert getattr(config.algo, setting) * 9 <= algo.replay_bytes < 10**7  # at least an observation, an action and an end
    assert replay_notes(algo, config) == []
    config.loop.total_env_steps = 10**9
    algo.replay_bytes = 10**12
    monkeypatch.setattr("rlx.memory.free_bytes", lambda: 10**12)
    with pytest.raises(
        ConfigError, match=rf"algo.{setting}=\d+ steps: that takes 1,000 GB .* 1,000.0 GB are free.*algo.{setting}=\d+ fits"
    ):
        replay_notes(algo, config)
    algo.replay_bytes = 6 * 10**11
    assert replay_notes(algo, config) == [f"the replay takes 600.0 GB once it is full; algo.{setting} sets its length"]
    setattr(config.algo, setting, 4 * 10**9)
    assert replay_notes(algo, config) == [f"the replay takes 150.0 GB once it is full; algo.{setting} sets its length"], "as the run ends"
