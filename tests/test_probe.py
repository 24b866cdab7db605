"""Probes: each changes what it should and only that, the nominal row is `rlx eval`, and everything repeats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from launch import run_main

import rlx
from rlx.cli.complete import complete_probes
from rlx.config.compose import Composer
from rlx.envs.control.cartpole import CartPoleVectorEnv
from rlx.envs.control.changed_cartpole import ChangedCartPole
from rlx.envs.registry import VectorEnvFactory
from rlx.errors import ConfigError
from rlx.evaluation import disturbances, physics
from rlx.evaluation.evaluate import evaluate_run
from rlx.evaluation.probe_kinds import PROBES, chosen, panel
from rlx.evaluation.probes import CHANGES, Inapplicable, Subject, changed, flattened
from rlx.evaluation.robustness import ProbeResult, probe_run
from rlx.store.runs import RunDir
from rlx.tree_ops import map_tree

Command = Callable[[str], tuple[int, str, str]]
SEEDS = np.array([3, 4])


def subject(env: str, *overrides: str, num_envs: int = 2, scale: float = 1.0) -> Subject:
    config = Composer().compose([f"env={env}", *overrides]).config
    made = Subject(config=config, num_envs=num_envs, scale=())
    env_ = made.make()
    one = map_tree(lambda leaf: np.full(leaf.shape[1:], scale), env_.reset(seed=np.arange(num_envs))[0])
    env_.close()
    return Subject(config=config, num_envs=num_envs, scale=one)


def trace(env: Any, *, steps: int = 6, action: Any = None) -> np.ndarray:
    """The observations of the first steps of two episodes."""
    space = env.single_action_space
    chosen_action = np.stack([np.full(space.shape, 0.4, space.dtype) if action is None else np.asarray(action)] * env.num_envs)
    seen = [env.reset(seed=SEEDS)[0].copy()]
    for _ in range(steps):
        seen.append(env.step(chosen_action)[0].copy())
    return np.stack(seen)


def of(word: str, who: Subject, **arguments: Any) -> np.ndarray:
    """What is observed under a change."""
    (row,) = chosen([word])
    with changed(row, who) as env:
        return trace(env, **arguments)


# The physics of MuJoCo

FIELDS = {
    "friction=0.6": {"geom_friction"},
    "motor=0.8": {"actuator_gear"},
    "mass=1.25": {"body_mass", "body_inertia", "body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0", "actuator_acc0"},
    "gravity=0.8": set[str](),
    "incline=3": set[str](),
}


@pytest.fixture(scope="module")
def hopper() -> Subject:
    pytest.importorskip("mujoco")
    return subject("hopper")


@pytest.mark.parametrize("word", FIELDS)
def test_a_change_of_physics_changes_these_numbers_of_a_model_and_no_others(word, hopper):
    (row,) = chosen([word])
    plain = hopper.make()
    before = {k: v.copy() for k, v in physics.arrays(physics.models_of(plain)[0]).items()}
    with changed(row, hopper) as env:
        (model, *_) = physics.models_of(env)
        after = physics.arrays(model)
        differing = {name for name, value in before.items() if not np.array_equal(value, after[name])}
        assert differing - {"cam_poscom0", "light_poscom0"} == FIELDS[word]  # where pictures are taken from, to rounding
        gravity = model.opt.gravity.copy()
    if word == "gravity=0.8":
        np.testing.assert_allclose(gravity, [0, 0, -0.8 * 9.81])
    elif word == "incline=3":
        np.testing.assert_allclose(gravity, [-9.81 * np.sin(np.pi / 60), 0, -9.81 * np.cos(np.pi / 60)])
    else:
        np.testing.assert_array_equal(gravity, [0, 0, -9.81])


@pytest.mark.parametrize("word", [*FIELDS, "push=1", "obs_noise=0.1", "action_noise=0.1", "delay=1", "sticky=0.9"])
def test_a_change_shows_in_the_steps_repeats_and_leaves_no_trace(word, hopper):
    nominal = trace(hopper.make(), steps=60)
    found = of(word, hopper, steps=60)
    if word not in ("delay=1", "sticky=0.9"):  # the action is the same in every step
        assert not np.array_equal(found, nominal)
    np.testing.assert_array_equal(of(word, hopper, steps=60), found)
    np.testing.assert_array_equal(trace(hopper.make(), steps=60), nominal)


def test_factors_of_one_change_nothing(hopper):
    nominal = trace(hopper.make(), steps=30)
    for name in ("friction", "mass", "gravity", "motor"):
        np.testing.assert_array_equal(of(f"{name}=1", hopper, steps=30), nominal)
    np.testing.assert_array_equal(of("incline=0", hopper, steps=30), nominal)


def test_a_shared_model_is_restored_to_the_last_bit(hopper):
    env = hopper.make()
    (model, *_) = physics.models_of(env)
    before = {k: v.copy() for part in (model, model.opt) for k, v in physics.arrays(part).items()}
    with physics.restored([model]):
        physics.scale_mass(model, 2.0)
        physics.incline(model, 6.0)
        physics.scale_friction(model, 0.1)
    after = {k: v for part in (model, model.opt) for k, v in physics.arrays(part).items()}
    assert [k for k in before if not np.array_equal(before[k], after[k])] == []


def test_rlx_and_gymnasium_step_alike_under_every_change_of_physics(hopper):
    theirs = subject("hopper", "env.native=false")
    for word in (*FIELDS, "push=0.5"):
        np.testing.assert_array_equal(of(word, hopper, steps=55), of(word, theirs, steps=55))


def test_boards_are_touched_where_the_flat_floor_is_not():
    mujoco = pytest.importorskip("mujoco")
    who = subject("walker2d", "env.native=false")
    (row,) = chosen(["rumble=0.3"])
    with changed(row, who) as env:
        one = env.envs[0].unwrapped
        one.reset(seed=0)
        one.data.qpos[0] = 30.0
        mujoco.mj_forward(one.model, one.data)
        touched = {one.model.geom(int(g)).name for contact in one.data.contact for g in contact.geom}
        assert one.data.ncon > 0
        assert "" in touched  # a board, which has no name
        assert one.model.nbody == 8
        again = physics.with_boards(one.fullpath, 0.3)
    np.testing.assert_array_equal(again.geom_size, one.model.geom_size)
    heights = 2.0 * again.geom_size[again.geom_type == mujoco.mjtGeom.mjGEOM_BOX, 2]
    assert 0.12 <= heights.min() < heights.max() <= 0.3


def test_servos_are_weakened_by_gain_and_bias_and_not_by_their_unit():
    mujoco = pytest.importorskip("mujoco")
    xml = """<mujoco><worldbody><body><joint name="j" type="hinge"/><geom size="0.1"/></body></worldbody>
             <actuator><motor joint="j" gear="2"/><position joint="j" kp="5" gear="3"/></actuator></mujoco>"""
    model = mujoco.MjModel.from_xml_string(xml)
    physics.scale_motors(model, 0.5)
    assert model.actuator_gear[:, 0].tolist() == [1.0, 3.0]
    assert (model.actuator_gainprm[:, 0].tolist(), model.actuator_biasprm[1, 1]) == ([1.0, 2.5], -2.5)


def test_pushes_change_the_velocity_along_x_every_fifty_steps(hopper):
    speeds = []
    (row,) = chosen(["push=1"])
    with changed(row, hopper) as env:
        read = [data for _, data in physics.simulations_of(env)]
        env.reset(seed=SEEDS)
        for t in range(1, 101):
            before = [data().qvel[0] for data in read]
            env._pushed()
            env._is_first[:] = False
            jumps = [float(data().qvel[0] - b) for data, b in zip(read, before, strict=True)]
            speeds.append(jumps)
            assert np.allclose(np.abs(jumps), 1.0 if t % 50 == 0 else 0.0)


def test_a_walker_of_the_flat_is_played_on_courses_that_it_does_not_see():
    pytest.importorskip("mujoco")
    walker = subject("walker2d")
    nominal = trace(walker.make(), steps=40)
    found = {kind: of(f"terrain={kind}", walker, steps=40) for kind in ("hurdles", "gaps")}
    assert all(seen.shape == nominal.shape for seen in found.values())
    np.testing.assert_array_equal(found["hurdles"][0], nominal[0])
    for env, word, why in (
        ("walker2d", "terrain=slalom", "moves in a plane"),
        ("hopper", "terrain=hurdles", "neither a course nor Walker2d-v5"),
        ("hurdles", "terrain=hurdles", "is that course"),
        ("hurdles", "rumble", "no floor of its own"),
    ):
        with pytest.raises(Inapplicable, match=why), changed(chosen([word])[0], subject(env)):
            pass


def boxes(env: Any) -> np.ndarray:
    """Where the boxes of the first course are [n, 3]."""
    env.reset(seed=SEEDS)
    return physics.simulations_of(env)[0][1]().mocap_pos.copy()


def test_a_course_is_flattened_and_its_model_is_restored_for_the_next_row():
    pytest.importorskip("mujoco")
    who = subject("hurdles")
    assert flattened(who.config).env.kwargs == {**who.config.env.kwargs, "easiest": 0.0, "hardest": 0.0}
    assert flattened(subject("walker2d").config) == subject("walker2d").config
    flat = Subject(config=flattened(who.config), num_envs=2, scale=who.scale)
    before = boxes(who.make())
    with changed(chosen(["friction=0.1"])[0], who) as env:
        friction = physics.models_of(env)[0].geom_friction.copy()
    (model, *_) = physics.models_of(who.make())  # compiled once for each process
    np.testing.assert_allclose(model.geom_friction, 10.0 * friction)
    assert boxes(flat.make())[:, 2].max() < before[:, 2].max()
    with changed(chosen(["terrain=hurdles"])[0], flat) as env:
        np.testing.assert_array_equal(boxes(env), before)


# Actions and observations


class Tape:
    """Two environments that count, and write down what they are given."""

    num_envs = 2
    single_observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self, action_space: spaces.Space[Any], length: int = 4) -> None:
        self.single_action_space, self.taken, self._t, self._length = action_space, list[Any](), np.zeros(2), length

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._t[(options or {}).get("reset_mask", slice(None))] = 0
        return self._t[:, None].astype(np.float32), {}

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        self.taken.append(np.array(actions).tolist())
        self._t += 1
        return self._t[:, None].astype(np.float32), np.ones(2), self._t > 99, self._t >= self._length, {}

    def close(self) -> None: ...


def test_a_delayed_action_is_taken_later_and_the_first_one_at_once():
    tape = Tape(spaces.Discrete(9))
    env = disturbances.Delayed(tape, 2)
    env.reset(seed=SEEDS)
    for t in range(4):
        env.step(np.array([t, 5]))
    env.reset(seed=SEEDS, options={"reset_mask": np.array([True, False])})
    env.step(np.array([7, 6]))
    env.step(np.array([8, 6]))
    assert tape.taken == [[0, 5], [0, 5], [0, 5], [1, 5], [7, 5], [7, 5]]


def test_a_sticky_action_is_the_one_that_was_taken_last_and_never_that_of_another_episode():
    tape = Tape(spaces.Discrete(9))
    env = disturbances.Sticky(tape, 1.0)
    env.reset(seed=SEEDS)
    for t in range(3):
        env.step(np.array([t, 4 + t]))
    env.reset(seed=SEEDS, options={"reset_mask": np.array([True, False])})
    env.step(np.array([8, 8]))
    assert tape.taken == [[0, 4], [0, 4], [0, 4], [8, 4]]


def test_noise_of_an_episode_is_the_same_in_any_batch_and_stays_within_the_bounds():
    space = spaces.Box(-2.0, 2.0, (3,), np.float32)

    def noise(seeds: list[int], row: int) -> np.ndarray:
        tape = Tape(space)
        env = disturbances.NoisyActions(tape, 0.7)
        env.reset(seed=np.array(seeds))
        for _ in range(40):
            env.step(np.ones((2, 3), np.float32))
        return np.array(tape.taken)[:, row]

    first = noise([7, 8], 0)
    np.testing.assert_array_equal(first, noise([9, 7], 1))
    assert not np.array_equal(first, noise([9, 7], 0))
    assert first.max() == 2.0
    assert np.abs(first[first < 2.0] - 1.0).max() > 1.0


def test_a_scaled_action_moves_towards_the_middle_of_its_range():
    tape = Tape(spaces.Box(np.array([0.0, -1.0], np.float32), np.array([4.0, 1.0], np.float32)))
    env = disturbances.ScaledActions(tape, 0.5)
    env.reset(seed=SEEDS)
    env.step(np.array([[4.0, 1.0], [2.0, -1.0]], np.float32))
    assert tape.taken == [[[3.0, 0.5], [2.0, -0.5]]]


@pytest.mark.parametrize("space", [spaces.Discrete(3, start=4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(4)])
def test_random_actions_are_actions(space):
    tape = Tape(space)
    env = disturbances.RandomActions(tape, 1.0)
    env.reset(seed=SEEDS)
    space.seed(0)
    given = np.stack([space.sample()] * 2)
    for _ in range(30):
        env.step(given)
    assert all(space.contains(np.asarray(a, space.dtype) if np.ndim(a) else np.int64(a)) for taken in tape.taken for a in taken)
    assert len({str(taken) for taken in tape.taken}) > 5


def test_observation_noise_is_drawn_for_new_observations_alone():
    env = disturbances.NoisyObservations(Tape(spaces.Discrete(2)), 0.5, np.ones(1))
    env.reset(seed=SEEDS)
    before = env.step(np.zeros(2, np.int64))[0]
    after, _ = env.reset(seed=SEEDS + 5, options={"reset_mask": np.array([True, False])})
    assert before[1] == after[1]
    assert before[0] != after[0]
    assert (np.abs(before - 1.0) > 0).all()


def test_the_scale_of_noise_is_the_deviation_of_real_numbers_and_of_pictures_and_of_nothing_else():
    class Parts(Tape):
        single_observation_space = spaces.Dict(
            mask=spaces.MultiBinary(1), picture=spaces.Box(0, 255, (1,), np.uint8), x=Tape.single_observation_space
        )

        def reset(self, **arguments: Any) -> Any:
            return self._parts(super().reset(**arguments)[0]), {}

        def step(self, actions: np.ndarray) -> Any:
            obs, *rest = super().step(actions)
            return (self._parts(obs), *rest)

        def _parts(self, obs: np.ndarray) -> Any:
            return {"mask": (obs > 0).astype(np.int8), "picture": obs.astype(np.uint8), "x": 1e6 + obs}

    observer = disturbances.Observer(Parts(spaces.Discrete(2)))
    observer.reset(seed=SEEDS)
    for _ in range(3):
        observer.step(np.zeros(2, np.int64))
    scale = observer.scale()
    assert (scale["mask"].item(), scale["picture"].item()) == (0.0, np.std(range(4)))
    np.testing.assert_allclose(scale["x"], np.std(range(4)), rtol=1e-6)
    noisy = disturbances.NoisyObservations(Parts(spaces.Discrete(2)), 1.0, scale)
    obs, _ = noisy.reset(seed=SEEDS)
    assert (obs["mask"].dtype, obs["mask"].tolist(), obs["picture"].dtype) == (np.int8, [[0], [0]], np.uint8)
    assert (np.abs(obs["x"] - 1e6) > 0).all()


# Environments without MuJoCo


def test_cartpole_with_its_own_constants_is_cartpole_to_the_last_bit():
    ours, changed_ = CartPoleVectorEnv(8), ChangedCartPole(8)
    rng = np.random.default_rng(0)
    seeds = np.arange(8)
    np.testing.assert_array_equal(ours.reset(seed=seeds)[0], changed_.reset(seed=seeds)[0])
    for _ in range(60):
        actions = rng.integers(2, size=8)
        for a, b in zip(ours.step(actions)[:4], changed_.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("probe", ["gravity", "mass", "length", "motor"])
def test_the_changed_cartpole_is_gymnasium_s_with_these_constants(probe):
    import gymnasium

    ours = ChangedCartPole(1, **{probe: 1.5})
    theirs = VectorEnvFactory("CartPole-v1", native=False)(1)
    physics.scale_constant(theirs, probe, 1.5)
    one: Any = theirs.envs[0].unwrapped
    ours.reset(seed=np.array([5]))
    theirs.reset(seed=[5])
    one.state = ours._state[:, 0].copy()
    assert isinstance(one, gymnasium.Env)
    for action in (0, 1, 1, 0, 1):
        expected = theirs.step(np.array([action]))[0].copy()
        np.testing.assert_array_equal(ours.step(np.array([action]))[0], expected)


CLASSIC = [("Pendulum-v1", "mass"), ("Pendulum-v1", "length"), ("Pendulum-v1", "gravity"), ("Acrobot-v1", "mass"),
           ("MountainCar-v0", "motor"), ("MountainCarContinuous-v0", "motor")]  # fmt: skip


@pytest.mark.parametrize(("env", "name"), CLASSIC)
def test_constants_of_gymnasium_s_classic_environments_change_in_their_instances_alone(env, name):
    who, word = subject(env), f"{name}=2"
    action = 0 if "Pendulum" not in env and "Continuous" not in env else None
    nominal = trace(who.make(), action=action)
    assert not np.array_equal(of(word, who, action=action), nominal)
    np.testing.assert_array_equal(trace(who.make(), action=action), nominal)


def test_every_probe_has_a_change():
    assert CHANGES.keys() == PROBES.keys()


@pytest.mark.parametrize(
    ("env", "word", "why"),
    [
        ("cartpole", "friction", "no MuJoCo model"),
        ("cartpole", "push", "no MuJoCo model"),
        ("cartpole", "action_noise", "bounded real numbers"),
        ("Pendulum-v1", "random_action", "no discrete actions"),
        ("Pendulum-v1", "motor", "no MuJoCo model"),
        ("FrozenLake-v1", "obs_noise", "no real numbers"),
    ],
)
def test_what_cannot_be_changed_is_left_out_with_the_reason(env, word, why):
    with pytest.raises(Inapplicable, match=why), changed(chosen([word])[0], subject(env)):
        pass


# The command

SMALL = (
    "algo.rollout_length=32 algo.num_minibatches=2 env.num_envs=2 loop.total_env_steps=64 loop.eval_every=0 log.wandb=disabled recipe=null"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLX_RUNS_DIR", str(root))
        for name, env in (("pole", "cartpole"), ("grid", "sokoban"), ("hop", "hopper")):
            assert run_main(f"train algo=ppo env={env} {SMALL} --name {name}", patch) == 0
    return root


@pytest.fixture
def in_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLX_RUNS_DIR", str(runs))
    return runs


def probed(runs: Path, name: str, *words: str, episodes: int = 2, **arguments: Any) -> ProbeResult:
    return probe_run(RunDir.open(runs, name), words, episodes=episodes, **arguments)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("name", ["pole", "hop"])
def test_the_nominal_row_is_the_evaluation_of_the_run(name, stochastic, in_runs):
    found = probed(in_runs, name, "delay", episodes=6, stochastic=stochastic, seed=3)
    expected = evaluate_run(RunDir.open(in_runs, name), episodes=6, stochastic=stochastic, seed=3)
    assert found.nominal.episodes == expected.episodes
    assert (found.nominal.return_mean, found.nominal.return_ci) == (expected.return_mean, expected.return_ci)


def test_the_panel_of_a_robot_has_at_least_twelve_rows(in_runs):
    found = probed(in_runs, "hop", episodes=1)
    assert len(found.rows) >= 12
    assert {label for label, _ in found.left_out} == {"length", "random_action", "terrain hurdles", "terrain rumble"}
    assert {row.probe for row in found.rows} | {"length", "random_action", "action_scale", "terrain"} == set(PROBES)


def test_two_calls_measure_the_same(in_runs):
    assert probed(in_runs, "pole", episodes=6) == probed(in_runs, "pole", episodes=6)


def test_a_row_does_not_depend_on_the_rows_before_it(in_runs):
    alone = probed(in_runs, "hop", "friction=0.3", "obs_noise=0.3")
    among = {row.label: row for row in probed(in_runs, "hop", "mass=2", "push=3", "friction=0.3", "obs_noise=0.3").rows}
    assert [among[row.label] for row in alone.rows] == list(alone.rows)


def test_differences_are_those_of_the_same_episodes(in_runs):
    (row,) = probed(in_runs, "pole", "random_action=1").rows
    differences = np.array([a.return_ - b.return_ for a, b in zip(row.episodes, row.nominal, strict=True)])
    assert row.difference == differences.mean()
    assert row.relative == row.return_mean / np.mean([e.return_ for e in row.nominal])


def test_the_command_prints_keeps_and_draws_what_was_measured(in_runs, run_command: Command, tmp_path):
    line = f"probe pole --episodes 2 --probe sticky=0.5 --probe motor --out {tmp_path / 'p.svg'}"
    code, out, err = run_command(line)
    assert (code, err) == (0, "")
    rows = [line.split("  ")[0] for line in out.splitlines()]
    assert rows[2:7] == ["nominal", "sticky 0.5", "motor × 0.8", "motor × 1.2", "mean of the rows"]
    assert run_command(line)[1] == out
    assert "motor × 1.2" in (tmp_path / "p.svg").read_text()
    code, out, _ = run_command(f"{line} --json")
    found = json.loads(out)
    assert [row["probe"] for row in found["rows"]] == ["nominal", "sticky", "motor", "motor"]
    assert found.pop("figure") == str(tmp_path / "p.svg")
    kept = json.loads((in_runs / "pole" / "probes.jsonl").read_text().splitlines()[-1])
    assert kept.pop("at")
    assert kept == found


def test_several_runs_are_shown_side_by_side(in_runs, run_command: Command):
    code, out, _ = run_command("probe pole hop --episodes 2 --probe delay --probe sticky")
    header = out.splitlines()[2].split()
    assert (code, header) == (0, ["probe", "pole", "95", "%", "of", "nominal", "hop", "95", "%", "of", "nominal"])
    assert out.splitlines()[-1] == str(in_runs / "pole" / "plots" / "probes.png")
    assert (in_runs / "pole" / "plots" / "probes.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("hop --env exclude_current_positions_from_observation=false", "--env exclude_current_positions_from_observation=false: hop acts"),
        ("pole --probe terrain=mars", "--probe terrain=mars: expected one of hurdles"),
        ("pole --probe fricton=0.5", "--probe fricton=0.5: no such probe; did you mean --probe friction?"),
        ("pole --probe friction=0.5", "env=CartPole-v1 has no MuJoCo model"),
        ("pole --probe friction --probe sticky", "of those named, sticky can be"),
        ("pole --probe sticky=x", "expected numbers after the =, e.g. --probe sticky=0.25"),
        ("pole --probe sticky=", "expected numbers after the ="),
        ("pole --probe sticky=1.5", "expected a number from 0 to 1"),
        ("pole --probe delay=1.5", "expected a whole number from 1 to 1000"),
        ("hop --probe mass=nan", "expected numbers"),
        ("pole sticky=0.5", "did you mean `--probe sticky=0.5`?"),
        ("nothing", "nothing"),
        ("pole --flat", "none of the runs is on a course"),
        ("hop --probe terrain=hurdle", "did you mean"),
        ("hop --probe terrain=hurdles", "is neither a course nor"),
        ("pole --out here.txt", ".png"),
        ("pole --env x=1", "x"),
    ],
)
def test_mistakes_are_answered_with_what_to_type(arguments, message, in_runs, run_command: Command):
    code, _, err = run_command(f"probe {arguments}")
    assert (code, message in err) == (2, True), err


def test_a_run_without_a_checkpoint_is_refused(in_runs, run_command: Command):
    RunDir.create(in_runs, "empty", Composer().compose(["env=cartpole"]).config, {"algo": "ppo", "env": "cartpole"})
    code, _, err = run_command("probe empty")
    assert (code, "has no checkpoint" in err) == (4, True)


def test_games_have_nothing_to_probe(in_runs, run_command: Command):
    config = Composer().compose(["algo=alphazero", "env=tic_tac_toe"]).config
    RunDir.create(in_runs, "game", config, {"algo": "alphazero", "env": "tic_tac_toe"})
    code, _, err = run_command("probe game")
    assert (code, "games have nothing to probe" in err) == (2, True)


def test_a_grid_world_is_probed_by_its_actions_alone(in_runs):
    found = probed(in_runs, "grid")
    assert {row.probe for row in found.rows} == {"delay", "sticky", "random_action"}
    assert dict(found.left_out)["obs_noise"] == "env=rlx/Sokoban-v0 observes no real numbers and no images"


def test_words_choose_and_add_rows():
    assert [row.label for row in chosen(["incline=3,-9", "push"])] == ["incline +3°", "incline -9°", "push 0.5 m/s", "push 1 m/s"]
    assert chosen([]) == panel()
    assert chosen(["panel", "sticky=0.25,0.5"]) == [*panel(), *chosen(["sticky=0.5"])]
    with pytest.raises(ConfigError, match="expected one of friction, mass"):
        chosen(["zzzz"])


def test_probes_from_python_are_those_of_the_command(in_runs, run_command: Command):
    run = rlx.Run.open("pole")
    result = rlx.probe(run, ["delay"], episodes=5)
    assert result == run.probe(["delay"], episodes=5)
    printed = json.loads(run_command("probe pole --probe delay --episodes 5 --json")[1])
    assert {k: v for k, v in printed.items() if k != "figure"} == result.as_dict()
    with pytest.raises(ConfigError, match="expected a list of changes"):
        rlx.probe(run, "delay")


@pytest.mark.parametrize("ask", ["fr", "friction", "friction=", "nothing"])
def test_probes_are_completed(ask):
    words = [word for word, _ in complete_probes(ask)]
    assert words == {"fr": ["friction"], "friction": ["friction"], "friction=": ["friction=0.3,0.6,1.5"], "nothing": []}[ask]
