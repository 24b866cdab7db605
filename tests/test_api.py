"""rlx from Python: loaded policies act as in evaluations, training equals the command's, and the caller's process is not changed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from resumable import words

import rlx
from rlx.build import build_algorithm, env_factory, env_spec
from rlx.checkpoint import find_checkpoints
from rlx.collect import env_actions
from rlx.config.compose import Composer
from rlx.evaluation.loading import load_policy
from rlx.policy import ObservationReader
from rlx.store.record import read_metrics
from rlx.store.runs import RunDir, new_meta


def test_training_under_torchrun_is_refused_with_the_command_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for train in (lambda: rlx.train(["algo=ppo", "env=cartpole"]), rlx.resume):
        with pytest.raises(rlx.errors.ConfigError, match="start the command `rlx train` by torchrun, or `rlx train --ranks N`"):
            train()


class Odd(gymnasium.Env[Any, Any]):
    """A dictionary with bytes, numbers and a choice; continuous actions within uneven bounds."""

    observation_space = gymnasium.spaces.Dict(
        {
            "image": gymnasium.spaces.Box(0, 255, (2, 2), np.uint8),
            "place": gymnasium.spaces.Discrete(3),
            "speed": gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32),
        }
    )
    action_space = gymnasium.spaces.Box(np.array([0.0, -4.0], np.float32), np.array([2.0, 8.0], np.float32))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.steps += 1
        return self.observation_space.sample(), float(action[0]), False, self.steps == 9, {}


@pytest.fixture
def odd(here: Path) -> Path:
    """A module of the user's own with `Odd`."""
    (here / "odd_env.py").write_text("from test_api import Odd\n")
    return here


def settings(algo: str, env: str, *more: str) -> list[str]:
    """A run of 120 env steps, unless `more` says otherwise."""
    own = ["loop.total_env_steps=120", "loop.eval_episodes=1", *more]
    given = {word.partition("=")[0] for word in own}
    later = [word for i, word in enumerate(own) if word.partition("=")[0] not in {w.partition("=")[0] for w in own[i + 1 :]}]
    return [*(word for word in words(algo, env) if word.partition("=")[0] not in given), *later]


def trained(algo: str, env: str, name: str, *more: str) -> rlx.Run:
    return rlx.train(settings(algo, env, *more), name=name)


@pytest.mark.parametrize(("algo", "env"), [("ppo", "native"), ("a2c", "continuous"), ("reinforce", "grid")])
def test_a_loaded_policy_acts_as_an_evaluation_does(algo: str, env: str, here: Path) -> None:
    run = trained(algo, env, "run")
    policy = rlx.load("run")
    config = run.config
    vector = env_factory(config)(3)
    reference = load_policy(config, find_checkpoints(run.path / "checkpoints")[0][0], vector)
    single: Any = env_factory(config).single()  # type: ignore[union-attr]
    single.reset(seed=7)
    obs, _ = vector.reset(seed=np.array([1, 2, 3]))
    wanted = reference.act(torch.from_numpy(np.array(obs)), reference.initial_carry(3), torch.ones(3, dtype=torch.bool), mode="eval").action
    action, carry = policy.act(obs)
    one, _ = policy.act(obs[1])
    seen = env_actions(vector.single_action_space)(wanted)
    if env == "continuous":  # the environment is given what it takes, in [-2, 2]
        assert policy.action_space == gymnasium.make("Pendulum-v1").action_space
        seen = 2.0 * seen
    np.testing.assert_allclose(action, seen, rtol=1e-6)
    np.testing.assert_array_equal(one, action[1])
    assert policy.action_space.contains(one)
    assert carry == ()


def test_observations_and_actions_are_those_of_the_users_environment(odd: Path) -> None:
    trained("ppo", "native", "odd", "env=odd_env:Odd")
    policy = rlx.load("odd")
    env = Odd()
    many = [env.reset(seed=i)[0] for i in range(3)]
    stacked = {key: np.stack([obs[key] for obs in many]) for key in many[0]}
    actions, _ = policy.act(stacked)
    assert policy.observation_space == Odd.observation_space
    assert actions.shape == (3, 2)
    assert all(policy.action_space.contains(a) for a in actions)
    for obs, action in zip(many, actions, strict=True):
        np.testing.assert_allclose(policy.act(obs)[0], action, rtol=1e-6)
    explored = np.stack([policy.act(stacked, mode="train")[0] for _ in range(20)])
    assert explored.min(axis=(0, 1)).tolist() == [0.0, -4.0]  # clipped at the bounds


def test_a_game_and_a_planner_can_be_loaded(here: Path) -> None:
    trained("alphazero", "game", "game", "env.opponent=random", "loop.total_env_steps=12")
    history = np.full((2, rlx.load("game").observation_space.shape[0]), -1)  # type: ignore[index]
    moves, _ = rlx.load("game").act(history)
    assert moves.shape == (2,)
    trained("pets", "continuous", "planner", "loop.total_env_steps=21", "algo.initial_steps=9", "algo.fit_every=20")
    policy, again = rlx.load("planner", seed=3), rlx.load("planner", seed=3)
    obs, carry, same = np.zeros((2, 3), np.float32), None, None
    for _ in range(3):
        action, carry = policy.act(obs, carry)
        other, same = again.act(obs, same)
        np.testing.assert_array_equal(action, other)
    with pytest.raises(rlx.errors.ConfigError, match=r"got 1 observations with a carry of .*\[2, "):
        policy.act(obs[0], carry)


def test_training_from_python_is_training_from_the_command_line(here: Path, run_command: Any) -> None:
    arguments = settings("ppo", "native")
    torch.manual_seed(4)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    run = rlx.train(arguments, name="python")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert run_command(f"train {' '.join(arguments)} --name command")[0] == 0
    lines = [[{k: v for k, v in line.items() if not k.startswith("time/")} for line in read_metrics(here / "runs" / n / "metrics.jsonl")]
             for n in ("python", "command")]  # fmt: skip
    assert lines[0] == lines[1] != []
    assert run.status == "finished"
    assert run.metrics()[-1]["env_steps"] >= 120


def test_a_name_is_taken_once_and_continued_when_asked(here: Path) -> None:
    first = trained("a2c", "native", "x")
    with pytest.raises(rlx.errors.ConfigError, match="exists already"):
        trained("a2c", "native", "x")
    longer = rlx.train(settings("a2c", "native", "loop.total_env_steps=240"), name="x", auto_resume=True)
    assert [line["env_steps"] for line in longer.metrics()][-1] >= 240 > first.load(checkpoint="120").env_steps
    assert longer.resume(["loop.total_env_steps=300"]).metrics()[-1]["env_steps"] >= 300
    with pytest.raises(rlx.errors.ConfigError, match="expected a list of settings"):
        rlx.train("algo=ppo")


def test_policies_act_in_threads_and_training_runs_in_one_at_a_time(here: Path) -> None:
    trained("ppo", "native", "x")
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(trained("ppo", "native", "y"))  # signals are left to the main thread
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert isinstance(found[0], rlx.Run), found[0]
    policy, obs = rlx.load("x", seed=1), np.zeros((2, 4), np.float32)
    actions: list[Any] = []
    threads = [threading.Thread(target=lambda: actions.append(policy.act(obs)[0].tolist())) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert actions == [actions[0]] * 4


def test_the_callers_generators_are_neither_read_nor_changed(here: Path) -> None:
    trained("ppo", "native", "x")
    obs = np.zeros((50, 4), np.float32)
    drawn = []
    for seed in (1, 2):
        np.random.seed(seed)
        torch.manual_seed(seed)
        states = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[union-attr]
        drawn.append(rlx.load("x", seed=5).act(obs, mode="train")[0].tolist())
        assert (np.random.get_state()[1] == states[0]).all()  # type: ignore[union-attr,index]
        assert torch.equal(torch.get_rng_state(), states[1])
    assert drawn[0] == drawn[1]
    assert drawn[0] != rlx.load("x", seed=6).act(obs, mode="train")[0].tolist()


def test_mistakes_are_answered_in_the_commands_words(here: Path) -> None:
    trained("ppo", "native", "x")
    policy = rlx.load()
    with pytest.raises(rlx.errors.ConfigError, match=r"no such run .* did you mean x\?"):
        rlx.load("xx")
    with pytest.raises(rlx.errors.CheckpointError, match="no such checkpoint; expected best, latest or one of"):
        rlx.load("x", checkpoint=17)
    with pytest.raises(rlx.errors.ConfigError, match=r"has shape \(2, 3\), the space says \(4,\)"):
        policy.act(np.zeros((2, 3), np.float32))
    if not torch.cuda.is_available():
        with pytest.raises(rlx.errors.ConfigError, match="no CUDA device"):
            rlx.load("x", device="cuda")
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        rlx.lod  # noqa: B018


def test_whatever_form_numbers_have_a_policy_sees_their_values(here: Path) -> None:
    trained("ppo", "native", "x")
    policy, values = rlx.load("x"), [0.5, -1.0, 0.25, 2.0]
    frozen = np.array(values, np.float32)
    frozen.setflags(write=False)
    forms = [values, np.array(values), np.array(values, ">f4"), frozen, torch.tensor(values), np.array([values] * 2, np.float32)[::-1, ::1]]
    assert len({np.ravel(policy.act(form)[0])[0].item() for form in forms}) == 1


@pytest.mark.parametrize(
    ("obs", "arguments", "told"),
    [
        ([[0, 0, 0, 0], [1, 2]], {}, "the observation is no array"),
        ([0, 0, np.nan, 0], {}, "the observation has nan at index"),
        ([0, 0, 0, 0], {"mode": "greedy"}, 'expected "eval" or "train"'),
        ([0, 0, 0, 0], {"carry": [1]}, "1 observations with a carry of .*int"),
        ([0, 0, 0, 0], {"carry": "x"}, "1 observations with a carry of str"),
        ([0, 0, 0, 0], {"is_first": [True, False]}, "expected 1 of True and False"),
        ([0, 0, 0, 0], {"is_first": "x"}, "expected 1 of True and False"),
    ],
)
def test_a_policy_refuses_what_it_cannot_act_on(obs: Any, arguments: dict[str, Any], told: str, here: Path) -> None:
    config = Composer().compose(settings("ppo", "native")).config
    env = env_factory(config)(1)
    spec = env_spec(config.env, env)
    policy = rlx.api.Policy(config, build_algorithm(config, spec, torch.device("cpu")), spec, env_steps=0, seed=0)
    with pytest.raises(rlx.errors.ConfigError, match=told):
        policy.act(obs, **arguments)


def test_parts_of_an_observation_are_of_one_number() -> None:
    read = ObservationReader(Odd.observation_space, "odd", Odd.action_space)
    one = Odd.observation_space.sample()
    three: dict[str, Any] = {key: np.stack([part] * 3) for key, part in one.items()}
    assert read(three)[1]
    assert not read(one)[1]
    for wrong, told in [
        (three | {"speed": three["speed"][:2]}, r"\['image'\] is 3 of them and .*\['speed'\] is 2 of them"),
        (three | {"place": 1}, "is 3 of them and .* is a single one"),
        ({"image": three["image"]}, "lacks 'place', 'speed'"),
    ]:
        with pytest.raises(rlx.errors.ConfigError, match=told):
            read(wrong)


@pytest.mark.parametrize(
    ("moves", "told"), [([99], "action 99 is not legal at ply 0"), ([0, 1, 0, 1, 0], "is over"), ([0] * 5, "not legal")]
)
def test_a_game_is_asked_about_no_position_that_cannot_be(moves: list[int], told: str, here: Path) -> None:
    trained("alphazero", "game", "game", "env.opponent=random", "loop.total_env_steps=12")
    policy = rlx.load("game")
    assert policy.observation_space.shape is not None
    history = np.full(policy.observation_space.shape, -1)
    history[: len(moves)] = moves
    with pytest.raises(rlx.errors.ConfigError, match=told):
        policy.act(history)


@pytest.mark.parametrize(
    "arguments",
    [{"episodes": 0}, {"episodes": 1.5}, {"episodes": True}, {"seed": -1}, {"seed": 2**63}, {"seed": "a"}, {"videos": -1}, {"videos": 101},
     {"env": ["a=1"]}, {"env": {"a b": 1}}, {"env": {"a": float("nan")}}, {"env": {"a": object()}}, {"ablation": "x"}],
)  # fmt: skip
def test_an_evaluation_refuses_arguments_of_another_kind(arguments: dict[str, Any], here: Path) -> None:
    composed = Composer().compose(settings("ppo", "native"))
    run = rlx.Run(RunDir.create(here / "runs", "x", composed.config, new_meta(composed)))
    with pytest.raises(rlx.errors.ConfigError, match=f"^{next(iter(arguments))}"):
        rlx.evaluate(run, **arguments)


@pytest.mark.parametrize("arguments", [{"tags": "abc"}, {"tags": [1]}, {"notes": 5}, {"overrides": None}, {"overrides": {"algo": "ppo"}}])
def test_training_refuses_arguments_of_another_kind(arguments: dict[str, Any], here: Path) -> None:
    with pytest.raises(rlx.errors.ConfigError, match="expected a"):
        rlx.train(**{"overrides": [], **arguments})
    assert not (here / "runs").exists()


def test_runs_are_listed(here: Path) -> None:
    assert len(rlx.runs()) == 0
    trained("ppo", "native", "x")
    rows = rlx.runs()
    row = rows[0] if isinstance(rows, list) else rows.iloc[0]
    assert (row["run"], row["status"], row["algo"]) == ("x", "finished", "ppo")


def test_an_evaluation_is_that_of_the_command(here: Path, run_command: Any) -> None:
    run = trained("ppo", "native", "x")
    torch.manual_seed(4)
    before = torch.get_rng_state()
    result = rlx.evaluate(run, episodes=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert json.loads(run_command("eval x --episodes 5 --json")[1]) == result.as_dict() == run.evaluate(episodes=5).as_dict()
    with pytest.raises(rlx.errors.ConfigError, match="is no game; leave it out"):
        rlx.evaluate(run, opponent="random")
    trained("reinforce", "grid", "boxes")
    assert {e.length for e in rlx.evaluate("boxes", episodes=3, env={"max_episode_steps": 7}).episodes} == {7}


def test_the_documented_snippet_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snippet = textwrap.dedent(str(importlib.import_module("rlx.api").__doc__).partition("list runs.\n\n")[2].partition("\n\nRuns are")[0])
    small = ["loop.total_env_steps=2_000", *(f'"{word}"' for word in ("loop.eval_every=0", "log.wandb=disabled"))]
    snippet = snippet.replace('"loop.total_env_steps=200_000"', f'"{small[0]}", {", ".join(small[1:])}')
    exec(compile(snippet, "snippet", "exec"), {})
    assert float(capsys.readouterr().out) > 0


def test_importing_the_package_imports_no_torch(tmp_path: Path) -> None:
    code = "import sys, rlx; assert 'load' in dir(rlx); assert rlx.errors.RlxError; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.stdout, done.stderr) == ("False\n", "")
