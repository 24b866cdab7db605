"""rlx's batches of MuJoCo robots against gymnasium's environments, to the last bit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

pytest.importorskip("mujoco")

import mujoco

import rlx
from rlx.collect import env_array_actions
from rlx.envs.mujoco.batch import MujocoVectorEnv
from rlx.envs.mujoco.robots import ROBOTS, make_robot
from rlx.envs.registry import EnvFactory, VectorEnvFactory
from rlx.envs.vector import GymVectorEnv
from rlx.errors import CheckpointError, ConfigError, EnvError, NonFiniteError
from rlx.store.record import read_metrics

Steps = list[tuple[Any, ...]]


def native(env_id: str, num_envs: int, *, rescale: bool = True, threads: int = 1, **kwargs: Any) -> MujocoVectorEnv:
    robot, limit = make_robot(env_id, kwargs)
    return MujocoVectorEnv(robot, num_envs, env_id=env_id, max_episode_steps=limit, rescale_actions=rescale, threads=threads)


def assert_same_steps(ours: MujocoVectorEnv, theirs: GymVectorEnv, num_steps: int) -> int:
    """The number of episodes that ended while both took the same steps."""
    rng, to_env = np.random.default_rng(0), env_array_actions(ours.single_action_space)
    shape, ended = (ours.num_envs, *ours.single_action_space.shape), 0  # type: ignore[misc]
    seeds = rng.integers(2**31 - 1, size=ours.num_envs)
    np.testing.assert_array_equal(ours.reset(seed=seeds)[0], theirs.reset(seed=seeds)[0], strict=True)
    for _ in range(num_steps):
        actions = to_env(rng.normal(size=shape).astype(np.float32))
        found, expected = ours.step(actions)[:4], theirs.step(actions)[:4]
        for mine, yours in zip(found, expected, strict=True):
            np.testing.assert_array_equal(mine, yours, strict=True)
        if (ends := expected[2] | expected[3]).any():
            ended, seeds, options = ended + ends.sum(), rng.integers(2**31 - 1, size=ours.num_envs), {"reset_mask": ends}
            np.testing.assert_array_equal(ours.reset(seed=seeds, options=options)[0], theirs.reset(seed=seeds, options=options)[0])
    return ended


@pytest.mark.parametrize("env_id", ROBOTS)
def test_every_number_is_that_of_gymnasium(env_id: str) -> None:
    ours, theirs = native(env_id, 3, max_episode_steps=70), GymVectorEnv(EnvFactory(env_id, {"max_episode_steps": 70}, True), 3)
    assert ours.single_action_space == theirs.single_action_space
    assert ours.single_observation_space == theirs.single_observation_space
    assert assert_same_steps(ours, theirs, 75) >= 3


OTHER_SETTINGS: dict[str, dict[str, Any]] = {
    "Ant-v5": {"contact_force_range": [-0.5, 0.5], "healthy_z_range": [0.3, 0.9], "include_cfrc_ext_in_observation": False},
    "HalfCheetah-v5": {"ctrl_cost_weight": 0, "exclude_current_positions_from_observation": False, "frame_skip": 2},
    "Hopper-v5": {"healthy_state_range": [-3.0, 3.0], "healthy_reward": 2, "forward_reward_weight": 0.5},
    "Humanoid-v5": {"include_cinert_in_observation": False, "contact_cost_weight": 1e-3, "contact_cost_range": [0.0, 0.5]},
    "InvertedDoublePendulum-v5": {"healthy_reward": 3.5, "reset_noise_scale": 0.01},
    "Swimmer-v5": {"exclude_current_positions_from_observation": False, "ctrl_cost_weight": 0.1},
    "Walker2d-v5": {"terminate_when_unhealthy": False, "healthy_angle_range": [-0.3, 0.3], "max_episode_steps": 20},
}


@pytest.mark.parametrize("env_id", OTHER_SETTINGS)
def test_settings_mean_what_they_do_in_gymnasium(env_id: str) -> None:
    """Actions are the environment's own here, where they are rescaled above."""
    kwargs = OTHER_SETTINGS[env_id]
    ours, theirs = native(env_id, 2, rescale=False, **kwargs), GymVectorEnv(EnvFactory(env_id, kwargs), 2)
    assert ours.single_action_space == theirs.single_action_space
    assert ours.single_observation_space == theirs.single_observation_space
    assert_same_steps(ours, theirs, 25)


@pytest.mark.parametrize("env_id", ROBOTS)
def test_defaults_are_those_of_gymnasium(env_id: str) -> None:
    theirs = inspect.signature(type(gymnasium.make(env_id).unwrapped)).parameters
    for field in fields(ROBOTS[env_id]):
        default = theirs[field.name].default
        assert field.default == default, field.name


def played(env: MujocoVectorEnv, num_steps: int, seed: int) -> Steps:
    """What random actions gave; episodes begin again where they end."""
    rng, steps = np.random.default_rng(seed), []
    for _ in range(num_steps):
        actions = rng.uniform(-1.0, 1.0, (env.num_envs, *env.single_action_space.shape)).astype(np.float32)  # type: ignore[misc]
        result = env.step(actions)[:4]
        steps.append(tuple(np.array(part) for part in result))
        if (ends := result[2] | result[3]).any():
            env.reset(seed=rng.integers(1000, size=env.num_envs), options={"reset_mask": ends})
    return steps


def saved_and_used(env_id: str) -> tuple[dict[str, Any], Steps, MujocoVectorEnv]:
    """A state in the middle of episodes, what followed, and another batch that has played."""
    env, used = native(env_id, 2, max_episode_steps=60), native(env_id, 2, max_episode_steps=60)
    env.reset(seed=[1, 2])
    played(env, 33, seed=0)
    state = env.state_dict()
    expected = played(env, 40, seed=5)
    used.reset(seed=[7, 8])
    played(used, 11, seed=6)
    return state, expected, used


def test_what_is_saved_continues_in_a_used_batch(same: Callable[[Any, Any], bool]) -> None:
    for env_id in ROBOTS:
        state, expected, used = saved_and_used(env_id)
        used.load_state_dict(state)
        assert same(played(used, 40, seed=5), expected), env_id


@pytest.mark.parametrize("env_id", ["Ant-v5", "Humanoid-v5"])
def test_the_first_reward_needs_the_position_before_the_step(env_id: str, same: Callable[[Any, Any], bool]) -> None:
    state, expected, used = saved_and_used(env_id)
    used.load_state_dict(state)
    for data in used._data:
        mujoco.mj_forward(used.model, data)  # what would be read if the position was not saved
    fresh = [used.robot.views(used.model, data) for data in used._data]
    used._position = used.robot.position(used.model, {name: np.stack([view[name] for view in fresh]) for name in fresh[0]})
    first = played(used, 1, seed=5)[0]
    assert same(first[0], expected[0][0])
    assert not same(first[1], expected[0][1])


def test_walker2d_does_not_continue_without_the_warm_start(same: Callable[[Any, Any], bool]) -> None:
    state, expected, used = saved_and_used("Walker2d-v5")
    used.load_state_dict(state)
    for data in used._data:
        data.qacc_warmstart[:] = 0.0
    assert not same(played(used, 40, seed=5), expected)


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Humanoid-v5"])
def test_threads_change_nothing(env_id: str, same: Callable[[Any, Any], bool]) -> None:
    one, three = native(env_id, 4), native(env_id, 4, threads=3)
    assert same(one.reset(seed=[0, 1, 2, 3]), three.reset(seed=[0, 1, 2, 3]))
    assert same(played(one, 30, seed=0), played(three, 30, seed=0))
    three.close()


def test_states_of_another_version_or_model_are_refused() -> None:
    env = native("Hopper-v5", 2)
    state = env.state_dict()
    with pytest.raises(CheckpointError, match=r"saved by mujoco 3\.0\.0, and this is mujoco .* pip install mujoco==3\.0\.0"):
        env.load_state_dict(state | {"mujoco": "3.0.0"})
    with pytest.raises(CheckpointError, match="the model has changed"):
        env.load_state_dict(native("Walker2d-v5", 2).state_dict())
    with pytest.raises(CheckpointError, match=r"saved with env\.native=false"):
        env.load_state_dict({"seeds": [], "actions": []})


def test_what_is_not_finite_is_refused_as_of_gymnasium() -> None:
    actions = np.zeros((2, 3), dtype=np.float32)
    actions[1, 2] = np.nan
    messages = []
    for env in (native("Hopper-v5", 2), GymVectorEnv(EnvFactory("Hopper-v5", rescale_actions=True), 2)):
        env.reset(seed=[3, 4])
        env.step(np.zeros_like(actions))
        with pytest.raises(NonFiniteError) as raised:
            env.step(actions)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert "environment 1 (Hopper-v5) an action with nan at index 2 in step 2 of the episode with seed 4" in messages[0]


def test_a_reset_that_fails_names_the_environment_and_the_seed() -> None:
    env = native("Hopper-v5", 2, reset_noise_scale=-1)
    with pytest.raises(EnvError, match=r"environment 0 \(Hopper-v5\) raised ValueError in reset: .* \(reset with seed 5; "):
        env.reset(seed=[5, 6])


def test_what_only_gymnasium_knows_is_left_to_it_and_said() -> None:
    make = VectorEnvFactory("Hopper-v5", {"xml_file": "hopper.xml", "frame_skip": 4})
    env, _ = make.training(1)
    assert isinstance(env.env, GymVectorEnv)  # type: ignore[attr-defined]
    assert "env.kwargs.xml_file as given" in env.notes[0]  # type: ignore[attr-defined]
    assert isinstance(VectorEnvFactory("Hopper-v5", {"frame_skip": 4}).training(1)[0], MujocoVectorEnv)
    assert not VectorEnvFactory("Hopper-v5", workers=2).is_native
    assert not VectorEnvFactory("Hopper-v5", native=False).is_native


@pytest.mark.parametrize(
    ("make", "why"),
    [
        ({"id": "CartPole-v1"}, "for CartPole-v1 there is env.workers"),
        ({"id": "Hopper-v5", "native": False}, "here it is not, because of env.native=false"),
        ({"id": "Hopper-v5", "kwargs": {"xml_file": "x.xml"}}, "here it is not, because of env.kwargs.xml_file"),
    ],
)
def test_threads_without_effect_are_refused(make: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=f"env.threads=2 has no effect.*{why}"):
        VectorEnvFactory(**make, threads=2)


def trained(name: str, env_id: str, *more: str, total: int = 192) -> Any:
    settings = ["algo=ppo", "recipe=null", f"env={env_id}", "env.num_envs=2", "env.kwargs.max_episode_steps=50", "algo.rollout_length=32",
                "algo.num_minibatches=4", "algo.hidden_sizes=[8]", "algo.normalize_observation=true", "loop.log_every=64",
                "loop.eval_every=64", "loop.eval_episodes=1", f"loop.total_env_steps={total}", "log.wandb=disabled"]  # fmt: skip
    return rlx.train([*settings, *more], name=name)


def record(run: Any) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock."""
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in read_metrics(run.path / "metrics.jsonl")]


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Humanoid-v5"])
def test_training_is_the_same_as_in_gymnasium(env_id: str, here: Path) -> None:
    ours, theirs = trained("ours", env_id), trained("theirs", env_id, "env.native=false")
    assert record(ours) == record(theirs) != []


def test_a_run_that_goes_on_from_the_middle_of_episodes_is_the_run_that_never_stopped(here: Path) -> None:
    whole, half = trained("whole", "Ant-v5"), trained("half", "Ant-v5", total=64)
    assert record(half.resume(["loop.total_env_steps=192"])) == record(whole)
