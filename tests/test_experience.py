"""The steps that agents with a replay learn from, against those that an environment took."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from rlx.columns import Column
from rlx.experience import Experience
from rlx.types import EnvSpec, Rollout

SPEC = EnvSpec(id="counter", observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (1,)), action_space=gymnasium.spaces.Discrete(2))
GAMMA = 0.9


def rollout(obs: list[list[float]], reward: list[list[float]], ends: dict[tuple[int, int], tuple[str, float]]) -> Rollout:
    """Steps with observations [T + 1, B]; `ends` has how an episode ended in (t, b), and the observation that it ended in."""
    all_obs, rewards = torch.tensor(obs)[..., None], torch.tensor(reward)
    terminated, truncated = torch.zeros(rewards.shape, dtype=torch.bool), torch.zeros(rewards.shape, dtype=torch.bool)
    for (t, b), (how, _) in ends.items():
        (terminated if how == "terminated" else truncated)[t, b] = True
    places = torch.tensor(sorted(ends), dtype=torch.long).reshape(-1, 2)
    final = torch.tensor([[ends[place][1]] for place in sorted(ends)]).reshape(-1, 1)
    return Rollout(
        all_obs=all_obs, action=torch.zeros(rewards.shape, dtype=torch.long), reward=rewards, terminated=terminated, truncated=truncated,
        is_first=torch.zeros_like(terminated), final_t=places[:, 0], final_b=places[:, 1], final_obs=final, carry=(),
    )  # fmt: skip


def drawn(experience: Experience, num: int = 400) -> dict[float, tuple[float, float, float]]:
    """By observation: reward, discount and next observation of all windows that can be drawn."""
    steps = experience.draw(num)
    columns = (steps.obs[:, 0], steps.reward, steps.discount, steps.next_obs[:, 0])
    return {obs: rest for obs, *rest in torch.stack(columns, dim=1).tolist()}  # type: ignore[misc]


def make(n_step: int, *, capacity: int = 100, num_envs: int = 1) -> Experience:
    return Experience(SPEC, capacity, num_envs, action=Column(torch.long), n_step=n_step, discount=GAMMA, device=torch.device("cpu"))


def test_an_episode_cut_after_every_step_bootstraps_from_the_observation_that_it_ended_in() -> None:
    for n_step in (1, 3):
        experience = make(n_step)
        cuts = {(t, 0): ("truncated", 100.0 + t) for t in range(3)}
        experience.add(rollout([[0.0], [1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]], cuts))
        expected = {t: pytest.approx([1.0 + t, GAMMA, 100.0 + t]) for t in (0.0, 1.0, 2.0)}
        assert drawn(experience) == expected, n_step


def test_a_window_ends_with_its_episode_and_has_no_value_after_a_termination() -> None:
    experience = make(3)
    obs = [[0.0], [1.0], [2.0], [10.0], [11.0], [12.0], [13.0], [14.0]]
    ends = {(2, 0): ("terminated", 3.0)}
    experience.add(rollout(obs, [[1.0]] * 7, ends))
    three, two = 1 + GAMMA + GAMMA**2, 1 + GAMMA
    assert drawn(experience) == {
        0.0: pytest.approx([three, 0.0, 2.0]), 1.0: pytest.approx([two, 0.0, 2.0]), 2.0: pytest.approx([1.0, 0.0, 2.0]),
        10.0: pytest.approx([three, GAMMA**3, 13.0]),
    }, "steps from 11 on have no complete window yet"  # fmt: skip


def test_a_window_across_updates_and_overwritten_rows_is_that_of_its_own_environment() -> None:
    experience = make(2, capacity=8, num_envs=2)
    for t in range(9):
        cut = {(0, 1): ("truncated", 500.0 + t)} if t % 4 == 3 else {}
        experience.add(rollout([[t, 100.0 + t], [t + 1.0, 101.0 + t]], [[1.0, 10.0]], cut))
    found = drawn(experience)
    assert found[6.0] == pytest.approx([1 + GAMMA, GAMMA**2, 8.0])
    assert found[106.0] == pytest.approx([10 + 10 * GAMMA, GAMMA**2, 507.0])
    assert found[107.0] == pytest.approx([10.0, GAMMA, 507.0])
    assert sorted(found) == [5.0, 6.0, 105.0, 106.0, 107.0]


def test_a_restored_experience_draws_the_same_windows() -> None:
    experience, other = make(2, capacity=6, num_envs=2), make(2, capacity=6, num_envs=2)
    for t in range(5):
        experience.add(rollout([[t, 100.0 + t], [t + 1.0, 101.0 + t]], [[1.0, 10.0]], {(0, 0): ("truncated", -1.0)} if t == 3 else {}))
    other.load_state_dict(experience.state_dict())
    torch.manual_seed(3)
    first = experience.draw(7)
    torch.manual_seed(3)
    for a, b in zip(first, other.draw(7), strict=True):
        assert torch.equal(a, b)


def test_batches_are_consecutive_parts_of_a_draw() -> None:
    experience = make(1)
    experience.add(rollout([[float(t)] for t in range(9)], [[1.0]] * 8, {}))
    steps = experience.draw(6)
    parts = list(steps.batches(3))
    assert [len(part.reward) for part in parts] == [3, 3]
    assert torch.equal(torch.cat([part.obs for part in parts]), steps.obs)
