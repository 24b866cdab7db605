"""Declared reward and termination functions against their environments; the poles, against CartPole and by hand."""

from __future__ import annotations

import importlib.util
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from rlx.envs.control.cartpole import CartPoleVectorEnv
from rlx.envs.control.poles import BALANCE, MAX_STEPS, SWING_UP, TASKS, PoleVectorEnv
from rlx.envs.control.reward_functions import RULES, rules_of
from rlx.envs.native import NATIVE
from rlx.envs.registry import VectorEnvFactory

MUJOCO = ("Reacher-v5", "Pusher-v5", "InvertedPendulum-v5", "HalfCheetah-v5", "Swimmer-v5", "Hopper-v5", "Walker2d-v5")
needs_mujoco = pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="the extra rlx[mujoco] is not installed")


def played(env_id: str, steps: int = 400) -> dict[str, torch.Tensor]:
    """Random steps of an environment: obs, action, next_obs, reward and terminated, [steps, *]."""
    env, rng = VectorEnvFactory(env_id)(3), np.random.default_rng(0)
    space: Any = env.single_action_space
    obs = np.array(env.reset(seed=rng.integers(1000, size=3))[0])
    seen: dict[str, list[np.ndarray]] = {k: [] for k in ("obs", "action", "next_obs", "reward", "terminated")}
    for _ in range(steps):
        action = rng.uniform(space.low, space.high, size=(3, *space.shape)).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        for name, value in zip(seen, (obs, action, next_obs, reward, terminated), strict=True):
            seen[name].append(np.array(value))
        ended = terminated | truncated
        obs = np.array(next_obs)
        if ended.any():
            obs = np.array(env.reset(seed=rng.integers(1000, size=3), options={"reset_mask": ended})[0])
    return {k: torch.from_numpy(np.concatenate(v)) for k, v in seen.items()}


@pytest.mark.parametrize("env_id", [pytest.param(e, marks=needs_mujoco) if e in MUJOCO else e for e in RULES])
def test_declared_rules_are_those_of_the_environment(env_id):
    rules, seen = RULES[env_id], played(env_id)
    if rules.reward is not None:
        reward = rules.reward(seen["obs"].float(), seen["action"], seen["next_obs"].float())
        torch.testing.assert_close(reward, seen["reward"].float(), atol=2e-4, rtol=1e-4)
    if rules.never_terminates:
        assert rules.termination is None
        assert not seen["terminated"].any()
    else:
        assert rules.termination is not None
        assert torch.equal(rules.termination(seen["next_obs"].float()), seen["terminated"])


def test_the_rules_of_random_play_include_both_outcomes_of_a_termination():
    assert 0.01 < played("rlx/CartPoleContinuous-v0")["terminated"].float().mean() < 0.2


def test_the_top_of_the_hill_ends_the_car_and_pays():
    rules = RULES["MountainCarContinuous-v0"]
    at = torch.tensor([[0.45, 0.0], [0.46, -0.01], [0.44, 0.07]])
    assert rules.termination(at).tolist() == [True, False, False]
    assert rules.reward(at, torch.full((3, 1), 0.5), at).tolist() == pytest.approx([99.975, -0.025, -0.025])


def test_rules_broadcast_over_particles_and_candidates():
    for env_id, rules in RULES.items():
        obs, action = torch.randn(5, 1, 2, 7, 25), torch.randn(2, 7, 3)
        if rules.reward is not None:
            assert rules.reward(obs, action, obs + 1).shape == (5, 1, 2, 7), env_id
        if rules.termination is not None:
            assert rules.termination(obs).shape == (5, 1, 2, 7), env_id


def test_a_state_that_is_not_finite_earns_nothing_finite_or_has_fallen():
    nowhere = torch.full((1, 25), float("nan"))
    for rules in RULES.values():
        if rules.reward is not None and rules.termination is None:
            assert not rules.reward(nowhere, torch.zeros(1, 3), nowhere).isfinite().any()


def test_settings_that_may_change_the_rules_make_them_unknown():
    assert rules_of("Pendulum-v1", {"max_episode_steps": 70, "g": 9.0}).reward is not None
    changed = rules_of("Reacher-v5", {"reward_dist_weight": 2.0})
    assert (changed.reward, changed.never_terminates) == (None, False)
    assert "env.kwargs.reward_dist_weight" in changed.reward_unknown
    assert rules_of("a_module:Pendulum-v1", {}) == RULES["Pendulum-v1"]
    assert rules_of("Nowhere-v0", {}).reward is None


# Poles


def test_the_continuous_cartpole_at_full_force_is_cartpole_to_the_last_bit():
    ours, theirs, rng = PoleVectorEnv(BALANCE, 5), CartPoleVectorEnv(5), np.random.default_rng(0)
    seeds = np.arange(5)
    assert np.array_equal(ours.reset(seed=seeds)[0], theirs.reset(seed=seeds)[0])
    for t in range(150):
        right = rng.integers(2, size=5)
        a, b = ours.step(2.0 * right[:, None].astype(np.float32) - 1.0), theirs.step(right)
        for x, y in zip(a[:4], b[:4], strict=True):
            assert np.array_equal(x, y)
        if a[2].any():
            for env in (ours, theirs):
                env.reset(seed=seeds + t, options={"reset_mask": a[2]})


def test_half_the_action_is_half_the_force():
    # Upright and at rest under 5 N: temp = 5 / 1.1, theta_acc = -temp / (0.5 (4/3 - 0.1 / 1.1)), x_acc = temp - 0.05 theta_acc / 1.1
    env = PoleVectorEnv(BALANCE, 1)
    env._state = np.zeros((4, 1))
    obs, reward, *_ = env.step(np.array([[0.5]], dtype=np.float32))
    assert obs[0].tolist() == pytest.approx([0.0, 0.02 * 4.878049, 0.0, 0.02 * -7.317073], abs=1e-6)
    assert reward.tolist() == [1.0]


def test_actions_beyond_the_bounds_are_clipped():
    envs = [PoleVectorEnv(SWING_UP, 1) for _ in range(2)]
    for env, action in zip(envs, (1.0, 7.0), strict=True):
        env.reset(seed=np.array([1]))
        env.step(np.array([[action]], dtype=np.float32))
    assert np.array_equal(envs[0]._state, envs[1]._state)


def test_the_swing_up_earns_nothing_hanging_and_one_when_it_stands():
    env = PoleVectorEnv(SWING_UP, 2)
    env._state = np.array([[0.0, 0.0], [0.0, 0.0], [np.pi, 0.0], [0.0, 0.0]])
    obs, reward, terminated, _, _ = env.step(np.zeros((2, 1), dtype=np.float32))
    assert reward.tolist() == pytest.approx([np.exp(-4.0), 1.0], abs=1e-6)  # two lengths away, and there
    assert obs[0].tolist() == pytest.approx([0, 0, -1, 0, 0], abs=1e-6)
    assert not terminated.any()


def test_a_pole_that_is_left_alone_neither_gains_nor_loses_height():
    env = PoleVectorEnv(SWING_UP, 1)
    env._state = np.array([[0.0], [0.0], [np.pi - 1.0], [0.0]])
    heights = [env.step(np.zeros((1, 1), dtype=np.float32))[0][0, 2] for _ in range(400)]
    assert max(heights[200:]) == pytest.approx(-np.cos(1.0), abs=0.03)


@pytest.mark.parametrize("env_id", TASKS)
def test_an_episode_of_a_pole_is_cut_after_200_steps(env_id):
    env = NATIVE[env_id](1)
    env.reset(seed=np.array([0]))
    env._state[:] = 0.0
    cut = [bool(env.step(np.zeros((1, 1), dtype=np.float32))[3][0]) for _ in range(MAX_STEPS)]
    assert cut == [False] * (MAX_STEPS - 1) + [True]


@pytest.mark.parametrize("env_id", TASKS)
def test_gymnasium_makes_the_same_pole(env_id):
    single, batch = gymnasium.make(env_id, disable_env_checker=True), NATIVE[env_id](1)
    assert np.array_equal(single.reset(seed=3)[0], batch.reset(seed=np.array([3]))[0][0])
    for action in np.random.default_rng(0).uniform(-0.2, 0.2, size=(MAX_STEPS, 1)).astype(np.float32):
        theirs, ours = single.step(action), batch.step(action[None])
        assert np.array_equal(theirs[0], ours[0][0])
        assert (theirs[1], theirs[2], theirs[3]) == (float(ours[1][0]), bool(ours[2][0]), bool(ours[3][0]))
        if theirs[2]:
            break
    assert single.observation_space == batch.single_observation_space


@pytest.mark.parametrize("env_id", TASKS)
def test_the_state_of_a_pole_continues_identically(env_id):
    env, again = NATIVE[env_id](3), NATIVE[env_id](3)
    env.reset(seed=np.array([1, 2, 3]))
    actions = np.random.default_rng(0).uniform(-1, 1, size=(40, 3, 1)).astype(np.float32)
    for a in actions[:7]:
        env.step(a)
    env.reset(seed=np.array([4, 4, 4]), options={"reset_mask": np.array([True, False, False])})
    again.load_state_dict(env.state_dict())
    for a in actions[7:]:
        for ours, theirs in zip(env.step(a)[:4], again.step(a)[:4], strict=True):
            assert np.array_equal(ours, theirs)
