"""Tests of memory: the recall task and CartPole without velocities, as batches and as gymnasium makes them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import gymnasium
import numpy as np
import pytest

from rlx.envs.control.cartpole import CartPoleVectorEnv
from rlx.envs.control.positions import POSITIONS, CartPolePositionsVectorEnv
from rlx.envs.control.recall import RecallVectorEnv
from rlx.envs.control.recall_settings import RECALL, RecallSettings
from rlx.envs.native import NATIVE
from rlx.envs.registry import VectorEnvFactory
from rlx.envs.vector import GymVectorEnv
from rlx.errors import ConfigError


def returns(num_envs: int, policy: Any, **settings: Any) -> np.ndarray:
    """Of one episode in each env; `policy` gets the symbols shown [B], and whether it is the first step."""
    env = RecallVectorEnv(num_envs, **settings)
    obs, _ = env.reset(seed=np.arange(num_envs))
    total = np.zeros(num_envs)
    for t in range(env.settings.horizon):
        obs, reward, terminated, truncated, _ = env.step(policy(obs[:, 1:].argmax(1), bool(obs[0, 0])))
        total += reward
        assert (terminated == (t == env.settings.horizon - 1)).all()
        assert not truncated.any()
    return total


class Remembers:
    def __call__(self, shown: np.ndarray, is_first: bool) -> np.ndarray:
        self.first = shown if is_first else self.first
        return self.first


@pytest.mark.parametrize("settings", [{}, {"horizon": 10, "num_symbols": 7}])
def test_remembering_the_first_symbol_earns_one(settings):
    assert returns(64, Remembers(), **settings) == pytest.approx(np.ones(64), abs=1e-6)


@pytest.mark.parametrize("settings", [{}, {"horizon": 10, "num_symbols": 7}])
def test_naming_the_symbol_on_show_earns_what_is_possible_without_memory(settings):
    by_hand = {52: -25 / 52 + 0.5 / 52, 10: (1 - 9 * 5 / 7) / 10}  # 1 step is right; the others earn 1/4 - 3/4, or 1/7 - 6/7
    expected = RecallSettings(**settings).return_without_memory
    assert expected == pytest.approx(by_hand[settings.get("horizon", 52)])
    assert returns(4000, lambda shown, _: shown, **settings).mean() == pytest.approx(expected, abs=0.01)


def test_only_the_first_observation_is_marked_and_every_one_shows_a_symbol():
    env = RecallVectorEnv(3, horizon=5)
    seen = [env.reset(seed=np.arange(3))[0]] + [env.step(np.zeros(3, np.int64))[0] for _ in range(5)]
    assert [obs[:, 0].tolist() for obs in seen] == [[1] * 3] + [[0] * 3] * 5
    assert all((obs[:, 1:].sum(1) == 1).all() and obs[0] in env.single_observation_space for obs in seen)


def test_symbols_are_equally_likely_at_every_step():
    symbols = RecallVectorEnv(1, horizon=6)._symbols_of(np.arange(40_000))
    shares = np.stack([(symbols == k).mean(1) for k in range(4)])
    assert shares == pytest.approx(np.full((4, 7), 0.25), abs=0.01)
    assert (symbols[1:] == symbols[0]).mean() == pytest.approx(0.25, abs=0.01), "later symbols say nothing of the first"


def random_steps(env: Any, rng: np.random.Generator, steps: int) -> list[tuple[Any, ...]]:
    """Copies of what is returned; envs that ended are reset."""
    seen = []
    for _ in range(steps):
        obs, reward, terminated, truncated, _ = env.step(rng.integers(env.single_action_space.n, size=env.num_envs))
        seen.append(tuple(np.array(x) for x in (obs, reward, terminated, truncated)))
        if (ended := seen[-1][2] | seen[-1][3]).any():
            seeds = rng.integers(2**31 - 1, size=env.num_envs)
            seen.append((np.array(env.reset(seed=seeds, options={"reset_mask": ended})[0]),))
    return seen


def equal(a: list[tuple[Any, ...]], b: list[tuple[Any, ...]]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize(("env_id", "kwargs"), [(RECALL, {"horizon": 9}), (RECALL, {}), (POSITIONS, {})])
def test_a_batch_equals_the_environments_that_gymnasium_makes(env_id, kwargs):
    native, single = VectorEnvFactory(env_id, kwargs)(3), VectorEnvFactory(env_id, kwargs, native=False)(3)
    assert isinstance(single, GymVectorEnv)
    assert native.single_observation_space == single.single_observation_space
    seeds = np.array([5, 6, 7])
    assert np.array_equal(native.reset(seed=seeds)[0], single.reset(seed=seeds)[0])
    assert equal(random_steps(native, np.random.default_rng(0), 120), random_steps(single, np.random.default_rng(0), 120))


@pytest.mark.parametrize("env_id", [RECALL, POSITIONS])
def test_the_state_amid_episodes_continues_identically(env_id):
    env, again = NATIVE[env_id](3), NATIVE[env_id](3)
    env.reset(seed=np.array([1, 2, 3]))
    random_steps(env, np.random.default_rng(0), 17)
    again.load_state_dict(env.state_dict())
    assert equal(random_steps(env, np.random.default_rng(1), 80), random_steps(again, np.random.default_rng(1), 80))


def test_positions_are_cartpole_without_its_velocities():
    ours, theirs = CartPolePositionsVectorEnv(4), CartPoleVectorEnv(4)
    assert np.array_equal(ours.reset(seed=np.arange(4))[0], theirs.reset(seed=np.arange(4))[0][:, [0, 2]])
    for (obs, *rest), (full, *expected) in zip(*(random_steps(env, np.random.default_rng(0), 60) for env in (ours, theirs)), strict=True):
        assert np.array_equal(obs, full[:, [0, 2]])
        assert all(np.array_equal(a, b) for a, b in zip(rest, expected, strict=True))


def test_positions_are_cut_at_500_steps_in_both_forms():
    assert gymnasium.spec(POSITIONS).max_episode_steps == 500
    env = CartPolePositionsVectorEnv(1)
    env.reset(seed=np.array([0]))
    env._elapsed[:] = 498
    assert [bool(env.step(np.array([0]))[3][0]) for _ in range(2)] == [False, True]


def test_positions_draw_the_pole():
    env = gymnasium.make(POSITIONS, render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (300, 600, 3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"horizon": 0}, r"env.kwargs.horizon must be a whole number from 1 to 10,000, got 0"),
        ({"num_symbols": 1}, r"env.kwargs.num_symbols must be a whole number from 2 to 1,000, got 1"),
        ({"horizons": 5}, r"env.kwargs.horizons: rlx/Recall-v0 has no such setting; did you mean env.kwargs.horizon\?"),
    ],
)
def test_settings_out_of_range_and_unknown_ones_are_refused(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        VectorEnvFactory(RECALL, kwargs)(1)


def test_the_environment_file_lists_the_settings_with_their_defaults(run_command):
    _, out, _ = run_command("config env=recall --json")
    listed = {key: entry["value"] for key, entry in json.loads(out)["values"].items() if key.startswith("env.kwargs.")}
    assert listed == {f"env.kwargs.{name}": value for name, value in dataclasses.asdict(RecallSettings()).items()}
    assert run_command("train env=recall env.horizon=0 --dry-run")[0] == 2
