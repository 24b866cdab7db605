"""Global generators: saved, restored through a file, and kept apart."""

from __future__ import annotations

import copy
import io
import random

import numpy as np
import pytest
import torch

from rlx.rng import GlobalRNG, isolated_rng, seed_everything
from rlx.serialize import plain


def draw() -> list[float]:
    """From every generator, in the ways that keep half a pair of normal numbers for the next call."""
    return [
        *(random.random(), random.gauss(0, 1)),
        *(np.random.random(), np.random.normal()),
        *torch.rand(2).tolist(),
        *torch.randn(20).tolist(),
        torch.randperm(100)[0].item(),
    ]


def test_state_continues_identically_in_memory_and_through_a_file():
    rng = GlobalRNG()
    draw()
    state = rng.state_dict()
    file = io.BytesIO()
    torch.save(plain(state), file)
    expected = [draw() for _ in range(3)]
    rng.load_state_dict(state)
    assert [draw() for _ in range(3)] == expected
    draw()
    file.seek(0)
    rng.load_state_dict(torch.load(file, weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_state_stands_still_while_generators_go_on(same):
    rng = GlobalRNG()
    state = rng.state_dict()
    before = copy.deepcopy(state)
    draw()
    assert same(state, before)


def test_state_keeps_the_spare_normal_numbers():
    random.gauss(0, 1)
    np.random.normal()
    state = GlobalRNG().state_dict()
    expected = random.gauss(0, 1), np.random.normal()
    seed_everything(1)
    GlobalRNG().load_state_dict(state)
    assert (random.gauss(0, 1), np.random.normal()) == expected


@pytest.mark.parametrize("seed", [0, 7, 2**32, 2**63 - 1])
def test_seed_everything_makes_every_generator_reproducible(seed):
    seed_everything(seed)
    first = draw()
    seed_everything(seed)
    assert draw() == first


def test_different_seeds_reach_every_generator():
    seed_everything(0)
    first = draw()
    seed_everything(1)
    assert all(a != b for a, b in zip(first[:8], draw()[:8], strict=True))


def test_isolated_block_draws_from_its_seed_and_env_steps_alone():
    def block(seed: int, env_steps: int) -> list[float]:
        draw()
        with isolated_rng(seed, env_steps):
            return draw()

    first = block(0, 100)
    assert block(0, 100) == first
    assert block(0, 101) != first
    assert block(1, 100) != first


def test_isolated_block_leaves_no_trace_even_when_it_raises():
    seed_everything(3)
    expected = draw()
    seed_everything(3)
    with pytest.raises(KeyError), isolated_rng(0, 0):
        {}[draw()[0]]
    assert draw() == expected
