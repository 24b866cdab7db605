"""Courses of obstacles: what they are made of, that bodies meet them, and that an episode can be continued in the middle of one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest

from rlx.envs.mujoco.course_settings import COURSES, CourseSettings, course_settings
from rlx.errors import ConfigError

mujoco = pytest.importorskip("mujoco")

from rlx.envs.mujoco.batch import MujocoVectorEnv  # noqa: E402
from rlx.envs.mujoco.course_env import AHEAD, GRID_ACROSS, GRID_AHEAD, CourseVectorEnv  # noqa: E402
from rlx.envs.mujoco.courses import KINDS, TRACK, Course  # noqa: E402
from rlx.envs.mujoco.robots import make_robot  # noqa: E402
from rlx.envs.registry import VectorEnvFactory  # noqa: E402

ALL = pytest.mark.parametrize("env_id", COURSES)
WALKERS = pytest.mark.parametrize("env_id", [env_id for env_id in COURSES if "Slalom" not in env_id])


def env_of(env_id: str, num_envs: int = 1, **settings: Any) -> CourseVectorEnv:
    return CourseVectorEnv(env_id, num_envs, **{"body": "ant" if "Slalom" in env_id else "walker"} | settings)


def actions_of(env: Any, steps: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (steps, env.num_envs, *env.single_action_space.shape)).astype(np.float32)


def put_at(env: CourseVectorEnv, i: int, *qpos: float) -> None:
    """Put the torso of environment i somewhere: x and z of a walker; x, y and z of an ant."""
    env._data[i].qpos[: len(qpos)] = qpos
    env._seen["qpos"][i, : len(qpos)] = qpos


@ALL
@pytest.mark.parametrize("curriculum", ["course", "none"])
def test_a_seed_is_a_course_and_pieces_laid_one_by_one_are_those_laid_at_once(env_id, curriculum):
    course = Course(COURSES[env_id], CourseSettings(body="ant", curriculum=curriculum))
    whole = course.pieces(7, 0, 40, course.kind.start)
    parts: list[Any] = []
    for first, count in ((0, 1), (1, 12), (13, 27)):
        parts += course.pieces(7, first, count, parts[-1].front if parts else course.kind.start)
    assert parts == whole
    assert course.pieces(8, 0, 40, course.kind.start) != whole
    assert (np.diff([piece.near for piece in whole]) > 0).all()


def difficulties(course: Course, count: int) -> Any:
    """[count] of the first pieces."""
    drawn, lay = [], course.kind.lay

    def record(sizes: Any, draw: Any, front: float) -> Any:
        drawn.append(draw.difficulty)
        return lay(sizes, draw, front)

    course.kind = replace(course.kind, lay=record)
    course.pieces(0, 0, count, 0.0)
    return np.array(drawn)


@ALL
def test_a_course_becomes_harder_along_the_way_up_to_the_hardest(env_id):
    course = Course(COURSES[env_id], CourseSettings(body="ant", easiest=0.2, hardest=0.7, ramp=30.0))
    difficulty = difficulties(course, 200)
    assert difficulty[0] == 0.2
    assert (np.diff(difficulty) >= 0.0).all()
    reached = np.flatnonzero(np.isclose(difficulty, 0.7))[0] * course.kind.pitch
    assert 30.0 <= reached < 30.0 + course.kind.group * course.kind.pitch


@WALKERS
def test_without_a_curriculum_obstacles_are_as_hard_everywhere(env_id):
    settings = {"curriculum": "none", "easiest": 0.3, "hardest": 0.6}
    course = Course(COURSES[env_id], CourseSettings(**settings))
    difficulty = difficulties(course, 1200)
    first, last = difficulty[:600], difficulty[600:]
    for half in (first, last):
        assert 0.3 <= half.min() < 0.34
        assert 0.56 < half.max() <= 0.6


@ALL
def test_a_body_that_is_dropped_on_a_box_touches_it_and_boxes_touch_nothing_else(env_id):
    env = env_of(env_id, easiest=1.0)
    env.reset(seed=[5])
    data, model, half = env._data[0], env.model, env.course.half
    places, floor_pos = env._centre[0].reshape(-1, 3).copy(), model.geom_pos[model.geom_bodyid == 0].copy()
    first = model.nbody - len(half)
    for number, centre in enumerate(places):
        top = centre[2] + half[number, 2]
        if top < env.course.floor:
            continue  # it is left out
        mujoco.mj_resetData(model, data)
        data.mocap_pos[:] = places
        if env.settings.body == "walker":
            data.qpos[:2] = centre[0], 1.25 + top
        else:  # with a foot above the wall
            data.qpos[:3] = centre[0] - 0.6, np.clip(centre[1], -TRACK, TRACK), 0.75 + top
        touched: set[int] = set()
        for _ in range(100):
            mujoco.mj_step(model, data, 5)
            bodies = [set(model.geom_bodyid[contact.geom].tolist()) for contact in data.contact]
            assert all(any(0 < body < first for body in pair) for pair in bodies)
            touched |= set().union(*bodies)
            if first + number in touched:
                break
        assert first + number in touched, f"box {number} at {centre}"
    assert np.array_equal(model.geom_pos[model.geom_bodyid == 0], floor_pos)
    assert model.nmocap <= 16
    assert len(floor_pos) == 1


@pytest.mark.parametrize(("body", "reference"), [("walker", "Walker2d-v5"), ("ant", "Ant-v5"), ("humanoid", "Humanoid-v5")])
@pytest.mark.parametrize("env_id", ["rlx/Hurdles-v0", "rlx/Rumble-v0"])
def test_on_flat_ground_a_body_observes_and_earns_what_it_does_in_gymnasiums_environment(env_id, body, reference):
    env = env_of(env_id, 2, body=body, easiest=0.0, hardest=0.0, sight=False)
    robot, limit = make_robot(reference, {"healthy_z_range": (0.2, 1.5)} if body == "ant" else {})
    flat = MujocoVectorEnv(robot, 2, env_id=reference, max_episode_steps=limit)
    seeds = np.array([3, 4])
    assert np.array_equal(env.reset(seed=seeds)[0], flat.reset(seed=seeds)[0])
    for action in 0.4 * actions_of(env, 40):
        ours, theirs = env.step(action), flat.step(action)
        for mine, its in zip(ours[:4], theirs[:4], strict=True):
            assert np.array_equal(mine, its)


@WALKERS
@pytest.mark.parametrize("sight", [True, False])
def test_an_episode_is_continued_in_the_middle_of_a_course(env_id, sight):
    env, other = env_of(env_id, 3, sight=sight), env_of(env_id, 3, sight=sight)
    env.reset(seed=np.array([1, 2, 3]))
    other.reset(seed=np.array([7, 8, 9]))
    put_at(env, 1, 40.0, 3.0)  # so that pieces are moved
    actions = actions_of(env, 30)
    for action in actions[:5]:
        env.step(action)
        other.step(action)
    assert env._next[1] > env.course.kind.num_pieces
    other.load_state_dict(env.state_dict())
    for action in actions[5:]:
        ours, theirs = env.step(action), other.step(action)
        for mine, its in zip(leaves_of(ours[0]) + list(ours[1:4]), leaves_of(theirs[0]) + list(theirs[1:4]), strict=True):
            assert np.array_equal(mine, its)
    assert np.array_equal(env._data[1].mocap_pos, other._data[1].mocap_pos)


def leaves_of(obs: Any) -> list[Any]:
    return list(obs.values()) if isinstance(obs, dict) else [obs]


@ALL
def test_pieces_that_are_moved_to_the_front_are_those_of_a_longer_course(env_id):
    env = env_of(env_id)
    env.reset(seed=[11])
    still = np.zeros((1, *env.single_action_space.shape), np.float32)
    for x in np.arange(0.0, 40.0, 0.5):
        put_at(env, 0, x)
        env.step(still)
    count = int(env._next[0])
    whole = env.course.pieces(11, 0, count, env.course.kind.start)
    order = np.arange(count - env.course.kind.num_pieces, count)
    assert np.array_equal(
        env._centre[0, order % env.course.kind.num_pieces], np.array([piece.centre for piece in whole])[order].reshape(len(order), -1, 3)
    )
    assert env._near.min() < 40.0 - 1.0  # what lies behind is still there, and 3 m ahead there is a course
    assert env._far.max() > 40.0 + 3.0
    measures = env.episode_measures()
    expected = env.course.kind.obstacles(np.array(sum(piece.passed <= measures["distance"][0] for piece in whole)))
    assert measures["obstacles_passed"][0] == expected > 0


def test_heights_are_seen_where_they_are_relative_to_the_level_and_in_proportion_to_their_range():
    env = env_of("rlx/Hurdles-v0", easiest=1.0)
    env.reset(seed=[0])
    x, top = env._centre[0, 0, 0, 0], env._centre[0, 0, 0, 2] + 0.5
    put_at(env, 0, x - 0.95, 1.25)
    seen = env.heights()[0]
    assert np.array_equal(seen > 0.0, np.abs(AHEAD - 0.95) <= 0.1)
    assert seen.max() == pytest.approx(top / 0.4)
    assert 0.28 <= top <= 0.35
    assert env.level()[0] == 0.0  # a hurdle stands on the level


def test_every_hurdle_within_sight_is_seen_at_some_point():
    for points in (AHEAD, GRID_AHEAD):
        assert np.diff(points).max() <= 0.2 + 1e-9
    assert len(AHEAD) == 28
    assert AHEAD[-1] == pytest.approx(3.0)
    assert GRID_AHEAD[-1] == pytest.approx(3.0)


def test_a_gap_is_seen_as_deep_and_the_level_goes_on_across_it():
    env = env_of("rlx/Gaps-v0", easiest=1.0)
    env.reset(seed=[0])
    put_at(env, 0, env._far[0, 0] - 0.5, 1.25)
    seen = env.heights()[0]
    inside = (AHEAD > 0.5) & (env._near[0, 1] > env._far[0, 0] - 0.5 + AHEAD)
    assert inside.sum() >= 4
    assert np.array_equal(seen == -1.0, inside)
    assert (seen[~inside] == 0.0).all()
    put_at(env, 0, env._far[0, 0] + 0.1, 1.25)
    assert env.level()[0] == 0.0


@pytest.mark.parametrize("env_id", ["rlx/Platforms-v0", "rlx/Stairs-v0"])
def test_on_a_platform_or_a_step_heights_are_measured_from_it(env_id):
    env = env_of(env_id, easiest=1.0)
    env.reset(seed=[0])
    middle, level = env._centre[0, 0, 0, 0], env._level[0, 0]
    assert level > 0.1
    put_at(env, 0, middle, 1.25 + level)
    observed = env._observe()
    assert observed["proprioception"][0, 0] == pytest.approx(1.25)
    assert observed["terrain"][0, 5] == 0.0  # under the torso
    assert env.robot.healthy(env._seen, env._ground())[0]
    put_at(env, 0, env._near[0, 0] - 0.01, 1.25)
    assert env.level()[0] == 0.0


def test_who_leaves_the_track_has_lost_and_sees_its_edge():
    env = env_of("rlx/Slalom-v0")
    env.reset(seed=[0])
    put_at(env, 0, 0.0, TRACK - 0.2, 0.75)
    edge = env.heights()[0].reshape(len(GRID_AHEAD), len(GRID_ACROSS))
    assert (edge[:, -1] == 1.0).all()
    assert (edge[:10, 2] == 0.0).all()
    still = np.zeros((1, 8), np.float32)
    assert not env.step(still)[2][0]
    put_at(env, 0, 0.0, TRACK + 0.01, 0.75)
    assert env.step(still)[2][0]


def test_walls_of_a_slalom_leave_a_way_round_them():
    env = env_of("rlx/Slalom-v0", easiest=1.0)
    env.reset(seed=[0])
    middle, half = env._centre[0, :, 0, 1], env.course.half[:, 1]
    closed = np.minimum(middle + half, TRACK) - np.maximum(middle - half, -TRACK)
    assert (closed < 2.0 * TRACK - 2.0).all()
    assert (closed > TRACK).all()  # and the middle is closed
    assert len(np.unique(np.sign(middle))) == 2


@pytest.mark.parametrize("body", ["walker", "ant", "humanoid"])
def test_the_reward_of_heess_pays_for_speed_and_a_body_that_stands(body):
    env = env_of("rlx/Hurdles-v0", 2, body=body, reward="heess")
    env.reset(seed=np.array([0, 0]))
    velocity, healthy = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([True, True])
    still = np.zeros((2, *env.single_action_space.shape), np.float32)
    slow, fast = env._reward(still, velocity, healthy)[::-1]
    assert fast - slow == pytest.approx({"walker": 10.0, "ant": 1.0, "humanoid": 0.995}[body])
    assert (env._reward(still, velocity, healthy) > env._reward(still + 0.3, velocity, healthy)).all()


@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        ("rlx/Hurdles-v0", {"body": "hopper"}, "env.kwargs.body must be walker, ant or humanoid, got 'hopper'"),
        ("rlx/Hurdles-v0", {"easiest": 0.5, "hardest": 0.2}, "env.kwargs.hardest must be a number from 0.5 to 1, got 0.2"),
        ("rlx/Hurdles-v0", {"curriculum": "none", "ramp": 3.0}, "env.kwargs.ramp must be left out where curriculum=none"),
        ("rlx/Hurdles-v0", {"curiculum": "none"}, "did you mean env.kwargs.curriculum"),
        ("rlx/Hurdles-v0", {"reward": "dense"}, "gymnasium or heess"),
        ("rlx/Slalom-v0", {}, "choose env.body=ant or humanoid"),
    ],
)
def test_settings_that_make_no_course_are_refused(env_id, kwargs, message):
    with pytest.raises(ConfigError) as caught:
        course_settings(env_id, kwargs)
    assert message in str(caught.value)


def test_every_kind_has_an_id():
    assert set(COURSES.values()) == set(KINDS)


SHORT = (
    "algo=ppo recipe=null env.num_envs=2 algo.rollout_length=40 algo.num_minibatches=2 algo.num_epochs=1 algo.hidden_sizes=[8] "
    "algo.normalize_observation=true loop.eval_episodes=2 loop.eval_every=240 loop.log_every=80 log.wandb=disabled log.console=quiet"
)


def test_a_run_on_a_course_resumes_exactly_and_reports_how_far_it_came(here, run_command):
    line = f"train {SHORT} env=mixed env.easiest=0.5 seed=3"
    assert run_command(f"{line} loop.total_env_steps=480 --name whole")[0] == 0
    assert run_command(f"{line} loop.total_env_steps=240 --name half")[0] == 0
    assert run_command("resume half loop.total_env_steps=480")[0] == 0
    whole, half = (
        [json.loads(text) for text in (here / "runs" / name / "metrics.jsonl").read_text().splitlines()] for name in ("whole", "half")
    )
    assert [_without_times(each) for each in whole] == [_without_times(each) for each in half]
    last = next(each for each in reversed(whole) if "eval/distance" in each)
    assert last["eval/obstacles_passed"] >= 0.0


def _without_times(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if not name.startswith("time/")}


def test_an_algorithm_without_dictionaries_gets_one_vector():
    factory = VectorEnvFactory("rlx/Hurdles-v0", rescale_actions=True)
    env, defect = factory.training(2)
    assert defect is None
    obs, _ = env.reset(seed=np.array([0, 1]))
    assert obs.shape == (2, 17 + 28)
    assert VectorEnvFactory("rlx/Hurdles-v0", {"sight": False}).is_native
    assert VectorEnvFactory("rlx/Hurdles-v0", flatten=False).is_native
    env.close()


def test_one_body_for_gymnasium_goes_through_the_same_episode():
    one = gymnasium.make("rlx/Stairs-v0", easiest=0.5, max_episode_steps=12, disable_env_checker=True)
    batch = env_of("rlx/Stairs-v0", easiest=0.5, max_episode_steps=12)
    first = one.reset(seed=4)[0]
    assert all(map(np.array_equal, first.values(), pick_first(batch.reset(seed=[4])[0]).values()))
    for step, action in enumerate(0.2 * actions_of(batch, 12)):
        obs, reward, terminated, truncated, info = one.step(action[0])
        theirs = batch.step(action)
        assert all(map(np.array_equal, obs.values(), pick_first(theirs[0]).values()))
        assert (reward, terminated, truncated) == (theirs[1][0], theirs[2][0], step == 11)
        assert info["distance"] == batch.episode_measures()["distance"][0]
    one.close()


def pick_first(obs: dict[str, Any]) -> dict[str, Any]:
    return {name: part[0] for name, part in obs.items()}
