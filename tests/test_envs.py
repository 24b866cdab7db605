"""Environments: the native CartPole against gymnasium's, snapshots against the run that was not interrupted, and errors."""

from __future__ import annotations

import importlib.util
import io
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlx.envs.control.cartpole import CartPoleVectorEnv
from rlx.envs.families import FAMILIES, extra_for, family_of, needs
from rlx.envs.native import NATIVE, REBUILT, REPLAYABLE
from rlx.envs.registry import EnvFactory, VectorEnvFactory, check_env_id
from rlx.envs.vector import GymVectorEnv, ReplayVectorEnv, replay_defect
from rlx.errors import CheckpointError, ConfigError, EnvError
from rlx.serialize import plain

needs_mujoco = pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="the extra rlx[mujoco] is not installed")
needs_box2d = pytest.mark.skipif(importlib.util.find_spec("Box2D") is None, reason="the extra rlx[box2d] is not installed")


class Walk(gymnasium.Env[Any, Any]):
    """A random walk whose position is its observation; subclasses break one rule each."""

    observation_space: gymnasium.Space[Any] = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space: gymnasium.Space[Any] = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.normal()
        return np.array([self.position]), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.position += action + self.np_random.normal()
        return np.array([self.position]), float(action), False, False, {}


class IgnoresItsSeed(Walk):
    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return super().reset(seed=None, options=options)


class RemembersItsPast(Walk):
    """Truncates by a clock that reset does not turn back."""

    total = 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, _, info = super().step(action)
        self.total += 1
        return obs, reward, terminated, self.total % 60 == 0, info


class RewardsByChance(Walk):
    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, info = super().step(action)
        return obs, float(np.random.random()), terminated, truncated, info


class Breaks(Walk):
    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if action == 1:
            raise ZeroDivisionError("the wheel came off")
        return super().step(action)


class BreaksInReset(Walk):
    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        raise KeyError("no map")


class Sequences(Walk):
    observation_space = spaces.Sequence(spaces.Discrete(3))


class DictOfTwo(Walk):
    observation_space = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-1.0, 1.0, (2,))})

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return {"a": 1, "b": np.array([0.5, -0.5], dtype=np.float32)}, {}


TEST_ENVS = {
    f"RlxTest{e.__name__}-v0": e
    for e in (Walk, IgnoresItsSeed, RemembersItsPast, RewardsByChance, Breaks, BreaksInReset, Sequences, DictOfTwo)
}


@pytest.fixture(autouse=True, scope="module")
def _registered() -> Iterator[None]:
    for env_id, entry_point in TEST_ENVS.items():
        gymnasium.register(env_id, entry_point=entry_point)
    gymnasium.register("RlxTestAbsent-v0", entry_point="a_package_nobody_has:Env")
    yield
    for env_id in [*TEST_ENVS, "RlxTestAbsent-v0"]:
        del gymnasium.registry[env_id]


def through_a_file(state: Any) -> Any:
    """Saved and loaded as a checkpoint is."""
    file = io.BytesIO()
    torch.save(plain(state), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# Native CartPole


def scalar_cartpole(state: np.ndarray) -> gymnasium.Env[Any, Any]:
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=0)
    env.unwrapped.state = state.copy()
    return env


@pytest.mark.parametrize("num_envs", [1, 13])
def test_cartpole_equals_gymnasiums_scalar_env_bit_for_bit(num_envs):
    native, rng = CartPoleVectorEnv(num_envs), np.random.default_rng(0)
    obs, _ = native.reset(seed=np.arange(num_envs))
    scalars = [scalar_cartpole(native._state[:, i]) for i in range(num_envs)]
    num_ended = 0
    for _ in range(500):
        actions = rng.integers(2, size=num_envs)
        obs, reward, terminated, truncated, _ = native.step(actions)
        ended = np.zeros(num_envs, dtype=bool)
        for i, env in enumerate(scalars):
            their_obs, their_reward, their_terminated, their_truncated, _ = env.step(int(actions[i]))
            assert np.array_equal(obs[i], their_obs)
            assert obs.dtype == their_obs.dtype == np.float32
            assert np.array_equal(native._state[:, i], env.unwrapped.state)
            assert (reward[i], terminated[i], truncated[i]) == (their_reward, their_terminated, their_truncated)
            ended[i] = their_terminated or their_truncated
        if ended.any():
            native.reset(seed=rng.integers(2**31 - 1, size=num_envs), options={"reset_mask": ended})
            for i in np.flatnonzero(ended):
                scalars[i] = scalar_cartpole(native._state[:, i])
        num_ended += ended.sum()
    assert num_ended > 10 * num_envs


def test_cartpole_truncates_at_500_steps_like_gymnasiums():
    native = CartPoleVectorEnv(2)
    obs, _ = native.reset(seed=np.array([1, 2]))
    scalar = scalar_cartpole(native._state[:, 0])
    for step in range(1, 501):
        x, x_dot, theta, theta_dot = native._state
        actions = (theta + 0.3 * theta_dot + 0.03 * x + 0.05 * x_dot > 0).astype(np.int64)
        obs, _, terminated, truncated, _ = native.step(actions)
        their_obs, _, their_terminated, their_truncated, _ = scalar.step(int(actions[0]))
        assert np.array_equal(obs[0], their_obs)
        assert not terminated.any()
        assert not their_terminated
        assert truncated.tolist() == [step == 500] * 2 == [their_truncated] * 2


def test_cartpole_has_gymnasiums_spaces():
    scalar, native = gymnasium.make("CartPole-v1"), CartPoleVectorEnv(3)
    assert native.single_observation_space == scalar.observation_space
    assert native.single_action_space == scalar.action_space


def test_cartpole_initial_states_follow_from_the_seed_and_fill_their_range():
    seeds = np.random.default_rng(0).integers(2**31 - 1, size=4000)
    env = CartPoleVectorEnv(4000)
    first = env.reset(seed=seeds)[0]
    assert np.array_equal(first, CartPoleVectorEnv(4000).reset(seed=seeds)[0])
    assert np.array_equal(first[7], CartPoleVectorEnv(1).reset(seed=seeds[7:8])[0][0])  # the place in the batch plays no part
    assert len(np.unique(first, axis=0)) == 4000
    assert first.min() >= -0.05
    assert first.max() <= 0.05
    np.testing.assert_allclose(first.mean(0), 0, atol=0.002)  # 4 standard errors
    np.testing.assert_allclose(first.std(0), 0.1 / 12**0.5, rtol=0.03)
    assert abs(np.corrcoef(first.T) - np.eye(4)).max() < 0.07


def test_cartpole_seeds_that_are_neighbours_give_unrelated_states():
    first = CartPoleVectorEnv(2000).reset(seed=np.arange(2000))[0]
    assert len(np.unique(first)) > 7900
    assert abs(np.corrcoef(first[:-1, 0], first[1:, 0])[0, 1]) < 0.1


def test_cartpole_partial_reset_leaves_the_others_alone():
    env = CartPoleVectorEnv(3)
    env.reset(seed=np.array([1, 2, 3]))
    for _ in range(5):
        before = env.step(np.array([1, 0, 1]))[0].copy()
    after, _ = env.reset(seed=np.array([7, 8, 9]), options={"reset_mask": np.array([False, True, False])})
    assert np.array_equal(after[[0, 2]], before[[0, 2]])
    assert np.array_equal(after[1], CartPoleVectorEnv(1).reset(seed=np.array([8]))[0][0])
    assert env._elapsed.tolist() == [5, 0, 5]


def test_a_mask_and_actions_of_the_caller_stay_as_they_are():
    env, mask, actions = CartPoleVectorEnv(2), np.array([False, True]), np.array([0, 1])
    env.reset(seed=np.array([1, 2]))
    env.step(actions)
    env.reset(seed=np.array([3, 4]), options={"reset_mask": mask})
    env.step(1 - actions)
    env.reset(seed=np.array([3, 4]))
    assert mask.tolist() == [False, True]
    assert actions.tolist() == [0, 1]


def test_cartpole_state_continues_identically():
    env, again = CartPoleVectorEnv(3), CartPoleVectorEnv(3)
    env.reset(seed=np.array([1, 2, 3]))
    actions = np.random.default_rng(0).integers(2, size=(40, 3))
    for a in actions[:7]:
        env.step(a)
    env.reset(seed=np.array([4, 4, 4]), options={"reset_mask": np.array([True, False, False])})
    again.load_state_dict(through_a_file(env.state_dict()))
    for a in actions[7:]:
        for ours, theirs in zip(env.step(a)[:4], again.step(a)[:4], strict=True):
            assert np.array_equal(ours, theirs)
    assert again._elapsed.tolist() == [33, 40, 40]


# Gymnasium environments, stepped one by one


def random_action(space: gymnasium.Space[Any], rng: np.random.Generator, num_envs: int) -> np.ndarray:
    if isinstance(space, spaces.Discrete):
        return rng.integers(space.n, size=num_envs)
    return rng.uniform(space.low, space.high, size=(num_envs, *space.shape)).astype(np.float32)


def step_and_reset(env: Any, rng: np.random.Generator) -> list[np.ndarray]:
    """One random step, and new episodes where one ended; copies of all that was seen."""
    obs, reward, terminated, truncated, _ = env.step(random_action(env.single_action_space, rng, env.num_envs))
    seen = [np.array(x) for x in (obs, reward, terminated, truncated)]
    ended = seen[2] | seen[3]
    if ended.any():
        obs, _ = env.reset(seed=rng.integers(2**31 - 1, size=env.num_envs), options={"reset_mask": ended})
        seen.append(np.array(obs))
    return seen


@pytest.mark.parametrize(
    "env_id",
    [
        "CartPole-v1",
        "Pendulum-v1",
        "MountainCarContinuous-v0",
        "Acrobot-v1",
        "rlx/Sokoban-v0",
        "rlx/MiniPacman-v0",
        "RlxTestWalk-v0",
        pytest.param("LunarLander-v3", marks=needs_box2d),
        pytest.param("BipedalWalker-v3", marks=needs_box2d),
        pytest.param("HalfCheetah-v5", marks=needs_mujoco),
        pytest.param("Hopper-v5", marks=needs_mujoco),
        pytest.param("Ant-v5", marks=needs_mujoco),
    ],
)
def test_a_snapshot_amid_episodes_continues_bitwise_in_a_fresh_env(env_id):
    factory = VectorEnvFactory(env_id, native=False)
    env, defect = factory.training(2)
    assert defect is None
    rng = np.random.default_rng(0)
    env.reset(seed=np.array([1, 2]))
    for t in range(60):
        step_and_reset(env, rng)
        if t == 30:  # one env is amid its second episode at least
            env.reset(seed=np.array([3, 4]), options={"reset_mask": np.array([False, True])})
    state, rng_state = through_a_file(env.state_dict()), rng.bit_generator.state
    expected = [step_and_reset(env, rng) for _ in range(200)]
    env.close()

    fresh, _ = factory.training(2)
    fresh.load_state_dict(state)
    rng.bit_generator.state = rng_state
    for t in range(200):
        actual = step_and_reset(fresh, rng)
        assert len(actual) == len(expected[t])
        for ours, theirs in zip(actual, expected[t], strict=True):
            assert np.array_equal(ours, theirs), f"step {t}"
    fresh.close()


def test_a_snapshot_of_a_restored_env_continues_too():
    factory, rng = VectorEnvFactory("Pendulum-v1"), np.random.default_rng(0)
    env = factory.training(3)[0]
    env.reset(seed=np.array([1, 2, 3]))
    for t in range(30):
        step_and_reset(env, rng)
        if t % 7 == 6:  # episodes of unequal length
            env.reset(seed=np.full(3, t), options={"reset_mask": np.arange(3) == t // 7 % 3})
    first = factory.training(3)[0]
    first.load_state_dict(through_a_file(env.state_dict()))
    for t in range(10):
        rng_state = rng.bit_generator.state
        step_and_reset(env, rng)
        rng.bit_generator.state = rng_state
        step_and_reset(first, rng)
        if t == 4:
            for e in (env, first):
                e.reset(seed=np.array([5, 5, 5]), options={"reset_mask": np.array([True, False, False])})
    second = factory.training(3)[0]
    second.load_state_dict(through_a_file(first.state_dict()))
    actions = random_action(env.single_action_space, rng, 3)
    for ours, theirs in zip(env.step(actions)[:4], second.step(actions)[:4], strict=True):
        assert np.array_equal(ours, theirs)


def test_a_snapshot_between_reset_and_the_first_step_continues():
    factory = VectorEnvFactory("Acrobot-v1")
    env, fresh = factory.training(2)[0], factory.training(2)[0]
    env.reset(seed=np.array([1, 2]))
    fresh.load_state_dict(through_a_file(env.state_dict()))
    assert np.array_equal(env.step(np.array([0, 2]))[0], fresh.step(np.array([0, 2]))[0])


def test_replay_keeps_only_the_actions_of_open_episodes():
    env = VectorEnvFactory("Pendulum-v1").training(2)[0]
    env.reset(seed=np.array([1, 2]))
    for _ in range(10):
        env.step(np.zeros((2, 1), dtype=np.float32))
    env.reset(seed=np.array([3, 4]), options={"reset_mask": np.array([True, False])})
    env.step(np.zeros((2, 1), dtype=np.float32))
    assert [len(a) for a in env.state_dict()["actions"]] == [1, 11]
    env.reset(seed=np.array([5, 6]), options={"reset_mask": np.array([False, True])})
    assert [len(a) for a in env.state_dict()["actions"]] == [1, 0]
    assert len(env._actions) == 1


def test_a_replay_that_goes_elsewhere_names_the_environment():
    factory = VectorEnvFactory("Pendulum-v1")
    env = factory.training(3)[0]
    env.reset(seed=np.array([1, 2, 3]))
    env.step(np.zeros((3, 1), dtype=np.float32))
    state = env.state_dict()
    state["seeds"][1] += 1
    with pytest.raises(CheckpointError, match=r"environment 1 gave the reward .* in step 1 of its episode, where it had given .*--inexact"):
        factory.training(3)[0].load_state_dict(state)


def test_gym_vector_env_equals_the_environments_it_holds():
    env, singles = GymVectorEnv(EnvFactory("Pendulum-v1"), 2), [gymnasium.make("Pendulum-v1") for _ in range(2)]
    obs, _ = env.reset(seed=np.array([3, 4]))
    assert np.array_equal(obs, np.stack([single.reset(seed=3 + i)[0] for i, single in enumerate(singles)]))
    for actions in np.random.default_rng(0).uniform(-2, 2, size=(20, 2, 1)).astype(np.float32):
        obs, reward, terminated, truncated, _ = env.step(actions)
        for i, single in enumerate(singles):
            theirs = single.step(actions[i])
            assert np.array_equal(obs[i], theirs[0])
            assert reward[i] == np.float32(theirs[1])
            assert (terminated[i], truncated[i]) == theirs[2:4]


def test_gym_vector_env_tells_truncation_from_termination():
    cut = GymVectorEnv(EnvFactory("Pendulum-v1"), 1)
    cut.reset(seed=np.array([0]))
    for _ in range(200):
        _, _, terminated, truncated, _ = cut.step(np.zeros((1, 1), dtype=np.float32))
    assert (terminated[0], truncated[0]) == (False, True)
    fallen = GymVectorEnv(EnvFactory("CartPole-v1"), 1)
    fallen.reset(seed=np.array([0]))
    for _ in range(20):
        _, _, terminated, truncated, _ = fallen.step(np.array([1]))
        if terminated[0]:
            break
    assert (terminated[0], truncated[0]) == (True, False)


def test_gym_vector_env_partial_reset_leaves_the_others_alone():
    env = GymVectorEnv(EnvFactory("Pendulum-v1"), 3)
    env.reset(seed=np.array([1, 2, 3]))
    before = env.step(np.ones((3, 1), dtype=np.float32))[0].copy()
    after = env.reset(seed=np.array([7, 8, 9]), options={"reset_mask": np.array([False, False, True])})[0]
    assert np.array_equal(after[:2], before[:2])
    assert np.array_equal(after[2], gymnasium.make("Pendulum-v1").reset(seed=9)[0])


def test_errors_of_an_environment_carry_its_index_and_name():
    env = GymVectorEnv(EnvFactory("RlxTestBreaks-v0"), 3)
    env.reset(seed=np.array([1, 2, 3]))
    with pytest.raises(EnvError, match=r"environment 2 \(RlxTestBreaks-v0\) raised ZeroDivisionError in step: the wheel came off"):
        env.step(np.array([0, 0, 1]))
    with pytest.raises(EnvError, match=r"environment 1 \(RlxTestBreaks-v0\) raised ZeroDivisionError in replay"):
        env.restore([1, 2, 3], [np.array([0]), np.array([0, 1]), np.array([0])])
    broken = GymVectorEnv(EnvFactory("RlxTestBreaksInReset-v0"), 2)
    with pytest.raises(EnvError, match=r"environment 1 \(RlxTestBreaksInReset-v0\) raised KeyError in reset"):
        broken.reset(seed=np.array([1, 2]), options={"reset_mask": np.array([False, True])})


# Which environments can be replayed


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "RlxTestWalk-v0"])
def test_replay_defect_passes_environments_that_follow_from_seed_and_actions(env_id):
    assert replay_defect(EnvFactory(env_id)) == (None, [])


@pytest.mark.parametrize("env_id", ["RlxTestIgnoresItsSeed-v0", "RlxTestRewardsByChance-v0", "RlxTestRemembersItsPast-v0"])
def test_replay_defect_finds_environments_that_do_not(env_id):
    assert replay_defect(EnvFactory(env_id))[0] == "the same seed and actions did not give the same episode twice"


def test_replay_defect_reports_an_environment_that_raises():
    with pytest.raises(EnvError, match="raised ZeroDivisionError in step"):
        replay_defect(EnvFactory("RlxTestBreaks-v0"))


@needs_box2d
def test_replay_defect_finds_a_world_that_outlives_the_episode(monkeypatch):
    # BipedalWalker-v3 as it is: an episode depends on the two before it
    monkeypatch.setattr("rlx.envs.registry.REBUILT", set())
    assert replay_defect(EnvFactory("BipedalWalker-v3"))[0] is not None


@needs_box2d
def test_an_environment_that_is_rebuilt_has_no_replay_defect():
    assert "BipedalWalker-v3" in REBUILT
    assert replay_defect(EnvFactory("BipedalWalker-v3"), steps=200)[0] is None


def test_training_gives_a_state_only_to_environments_that_can_be_restored():
    env, defect = VectorEnvFactory("RlxTestWalk-v0").training(2)
    assert isinstance(env, ReplayVectorEnv)
    assert defect is None
    env, defect = VectorEnvFactory("RlxTestIgnoresItsSeed-v0").training(2)
    assert isinstance(env, GymVectorEnv)
    assert "did not give the same episode" in defect
    env, defect = VectorEnvFactory("Pendulum-v1").training(2, inexact=True)
    assert isinstance(env, GymVectorEnv)
    assert "--inexact" in defect


def test_cartpole_is_native_only_without_settings():
    assert isinstance(VectorEnvFactory("CartPole-v1")(2), CartPoleVectorEnv)
    assert isinstance(VectorEnvFactory("CartPole-v1", native=False)(2), GymVectorEnv)
    assert isinstance(VectorEnvFactory("CartPole-v1", {"sutton_barto_reward": True})(2), GymVectorEnv)


def test_every_environment_of_the_catalogue_is_registered():
    for env_id in REPLAYABLE | REBUILT | NATIVE.keys():
        check_env_id(env_id)


# Names, extras and spaces


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPol-v1", r"env=CartPol-v1: no such environment is registered with gymnasium; did you mean CartPole-v1"),
        ("Xyzzy", r"env=Xyzzy: no such environment.*see `rlx envs`"),
        ("a_module_nobody_has:Env-v0", r"module 'a_module_nobody_has' cannot be imported"),
    ],
)
def test_unknown_environments_are_refused_with_a_suggestion(env_id, message):
    with pytest.raises(ConfigError, match=message):
        EnvFactory(env_id)()


def test_a_missing_extra_is_named(monkeypatch):
    for name in [m for m in sys.modules if m.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "Box2D", None)
    with pytest.raises(ConfigError, match=r"env=LunarLander-v3 needs a package that is not installed: pip install 'rlx\[box2d\]'"):
        EnvFactory("LunarLander-v3")()


@pytest.mark.parametrize(
    ("env_id", "module", "command"),
    [
        ("ALE/Pong-v5", "ale_py", "pip install 'rlx[atari]'"),
        ("PongNoFrameskip-v4", "ale_py", "pip install 'rlx[atari]'"),
        ("MiniGrid-DoorKey-5x5-v0", "minigrid", "pip install 'rlx[minigrid]'"),
        ("BabyAI-GoToRedBall-v0", "minigrid", "pip install 'rlx[minigrid]'"),
        ("dm_control/walker-walk-v0", "dm_control", "pip install 'rlx[dmc]'"),
        ("dm_control/walker-walk-v0", "shimmy", "pip install 'rlx[dmc]'"),
        ("PointMaze_UMaze-v3", "gymnasium_robotics", "pip install 'rlx[robotics]'"),
        ("popgym-RepeatFirstEasy-v0", "popgym", "pip install popgym"),
    ],
)
def test_a_missing_package_of_a_family_is_named(env_id, module, command, monkeypatch):
    monkeypatch.delitem(gymnasium.registry, env_id, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    assert needs(env_id) == command
    with pytest.raises(ConfigError, match=re.escape(f"env={env_id} needs a package that is not installed: {command}")):
        EnvFactory(env_id)()


def test_a_family_that_fails_when_it_is_imported_is_named(here, monkeypatch):
    (here / "popgym.py").write_text("raise AttributeError('MjModel has no attribute flex_vertedge')")
    monkeypatch.syspath_prepend(here)
    with pytest.raises(ConfigError, match=r"importing popgym failed with AttributeError: MjModel has no.*rlx doctor"):
        check_env_id("popgym-Anything-v0")


def test_a_misspelt_id_of_a_family_is_answered_with_the_nearest():
    pytest.importorskip("minigrid")
    for wrong in ("MiniGrid-DorKey-5x5-v0", "MINIGRID-DOORKEY-5X5-V0"):
        with pytest.raises(ConfigError, match=r"did you mean MiniGrid-DoorKey-5x5-v0"):
            check_env_id(wrong)


def test_environments_with_several_agents_are_refused(here, monkeypatch):
    with pytest.raises(ConfigError, match=r"env=pettingzoo\.classic:chess_v6: .*several agents.*env=spiel:GAME"):
        check_env_id("pettingzoo.classic:chess_v6")
    base = type("ParallelEnv", (), {"__module__": "pettingzoo.utils.env"})
    monkeypatch.setitem(sys.modules, "many_agents", types.SimpleNamespace(Env=type("Env", (base,), {})))
    with pytest.raises(ConfigError, match=r"env=many_agents:Env: .*several agents"):
        check_env_id("many_agents:Env")


def test_no_id_of_gymnasium_is_taken_for_one_of_a_family():
    gymnasiums = [s.id for s in gymnasium.registry.values() if "gymnasium.envs" in str(s.entry_point)]
    assert len(gymnasiums) > 30
    assert [i for i in gymnasiums if family_of(i)] == []
    assert len({f.pattern for f in FAMILIES}) == len(FAMILIES)


def test_a_missing_package_without_an_extra_is_named():
    with pytest.raises(ConfigError, match=r"env=RlxTestAbsent-v0 needs a package that is not installed:.*a_package_nobody_has"):
        EnvFactory("RlxTestAbsent-v0")()


@pytest.mark.parametrize(
    ("env_id", "extra"),
    [
        ("HalfCheetah-v5", "mujoco"),
        ("LunarLander-v3", "box2d"),
        ("CarRacing-v3", "box2d"),
        ("ALE/Pong-v5", "atari"),
        ("PongNoFrameskip-v4", "atari"),
        ("MiniGrid-DoorKey-5x5-v0", "minigrid"),
        ("BabyAI-GoToRedBall-v0", "minigrid"),
        ("dm_control/walker-walk-v0", "dmc"),
        ("FetchReach-v4", "robotics"),
        ("AdroitHandDoor-v1", "robotics"),
        ("CartPole-v1", None),
    ],
)
def test_extras_of_environments(env_id, extra):
    assert extra_for(env_id) == extra


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("Pendulum-v1", {"nonsense": 1}),
        ("FrozenLake-v1", {"map_name": "9x9"}),
        pytest.param("LunarLander-v3", {"gravity": 5.0}, marks=needs_box2d),
        pytest.param("HalfCheetah-v5", {"xml_file": "absent.xml"}, marks=needs_mujoco),
    ],
)
def test_settings_that_an_environment_refuses_are_named(env_id, kwargs):
    with pytest.raises(ConfigError, match=rf"env={env_id} cannot be made with env\.kwargs=.*{next(iter(kwargs))}"):
        EnvFactory(env_id, kwargs)()


def test_discrete_observations_become_a_box():
    env = GymVectorEnv(EnvFactory("FrozenLake-v1"), 2)
    assert isinstance(env.single_observation_space, spaces.Box)
    assert env.single_observation_space.shape == (16,)
    obs, _ = env.reset(seed=np.array([0, 1]))
    assert obs.tolist() == [[1] + [0] * 15] * 2


def test_dictionaries_of_observations_become_a_box():
    obs, _ = GymVectorEnv(EnvFactory("RlxTestDictOfTwo-v0"), 1).reset(seed=np.array([0]))
    assert obs.tolist() == [[0, 1, 0, 0.5, -0.5]]


def test_observations_that_cannot_be_flattened_are_refused():
    with pytest.raises(ConfigError, match=r"env=RlxTestSequences-v0 has observation space Sequence.*cannot be flattened to a Box"):
        EnvFactory("RlxTestSequences-v0")()


def test_the_example_of_the_guide_trains_and_is_masked(here, run_command):
    example = Path(__file__).parents[1] / "docs" / "examples" / "my_env.py"
    (here / "my_env.py").write_text(example.read_text())
    settings = "algo.rollout_length=32 algo.num_epochs=1 env.num_envs=2 loop.total_env_steps=128 loop.eval_every=0 log.wandb=disabled"
    code, _, err = run_command(f"train algo=ppo env=my_env:Squares {settings} log.console=quiet --name squares")
    assert code == 0, err
    env = VectorEnvFactory("my_env:Squares", flatten=False)(4)
    obs, _ = env.reset(seed=np.arange(4))
    allowed = obs["action_mask"]
    assert allowed.shape == (4, 7)
    assert allowed[:, 0].all()
    assert allowed[:, 5:].all()
    assert not allowed.all(), "some agent begins at an edge"
