"""Replay buffers: how many gradient steps are due, and what they hold after a restore."""

from __future__ import annotations

import itertools
import math

import pytest

from rlx.replay import gradient_steps_due


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
