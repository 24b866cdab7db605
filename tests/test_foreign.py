"""Runs on a user's own environment through the command line: messages about it, and changes of it between runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlx.envs.observations import Observations
from rlx.envs.vector import _Announcement
from rlx.nn.networks import Network
from rlx.nn.optim import FlatAdam
from rlx.spaces import changed_part, describe_space
from rlx.types import EnvSpec

Command = Callable[[str], tuple[int, str, str]]
SETTINGS = ("algo=ppo env=mine:Mine-v0 env.num_envs=1 algo.rollout_length=16 algo.num_minibatches=1 algo.num_epochs=1 "
            "algo.hidden_sizes=[4] log.wandb=disabled log.console=plain loop.total_env_steps=40")  # fmt: skip
MINE = """
import gymnasium
import numpy as np
from gymnasium import spaces

alive = []

class Mine(gymnasium.Env):
    observation_space, action_space = spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2)

    def __init__(self):
        if alive and ONCE:
            raise OSError("port 5005 is in use")
        alive.append(self)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(self.observation_space.shape, self.observation_space.dtype), {}

    def step(self, action):
        self.t += 1
        return np.full(self.observation_space.shape, OBS, self.observation_space.dtype), REWARD, False, self.t == LENGTH, {}

    def close(self):
        alive.remove(self)

ONCE, OBS, REWARD, LENGTH = True, 0.0, 1.0, 37
gymnasium.register("Mine-v0", entry_point=Mine)
"""


@pytest.fixture
def mine(here: Path, run_command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command on the environment, some lines of which are changed."""
    (here / "mine.py").write_text(MINE)
    __import__("sys").path.insert(0, str(here))

    def run(line: str, **changes: object) -> tuple[int, str, str]:
        import mine as module

        for name, value in changes.items():
            monkeypatch.setattr(module.Mine if hasattr(module.Mine, name) else module, name, value)
        return run_command(line)

    return run


def test_a_simulator_that_exists_only_once_is_trained_without_evaluations_and_with_them_told_why_not(mine: Command, here: Path) -> None:
    code, _, err = mine(f"train {SETTINGS} loop.eval_every=0 --name once")
    assert (code, err) == (0, "")
    code, out, err = mine(f"train {SETTINGS} --name evaluated")
    assert code == 5
    assert "loop.eval_every=0 none" in out + err
    assert "port 5005 is in use" in out + err


def test_a_reward_that_changed_before_a_resume_is_refused_by_step_and_value(mine: Command) -> None:
    assert mine(f"train {SETTINGS} loop.eval_every=0 --name w")[0] == 0
    code, _, err = mine("resume w --trust loop.total_env_steps=80", REWARD=100.0)
    assert code == 4
    assert "environment 0 gave the reward 100 in step 1 of its episode, where it had given 1" in err
    code, _, err = mine("resume w --trust loop.total_env_steps=80", REWARD=1.0, LENGTH=5)
    assert code == 4
    assert "environment 0 ended its episode with step 5, where it had gone on" in err
    assert mine("resume w --trust loop.total_env_steps=80", LENGTH=37)[0] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"observation_space": spaces.Box(-1.0, 1.0, (4,))}, ("observation space was Box((3,), float32, -1 to 1)", "is Box((4,), ")),
        ({"observation_space": spaces.Box(-9.0, 9.0, (3,))}, ("-1 to 1) when", "-9 to 9) now")),
        ({"action_space": spaces.Discrete(3)}, ("action space was Discrete(2)", "Discrete(3) now")),
    ],
)  # fmt: skip
def test_a_space_that_changed_is_said_in_words_by_resume_and_eval(change, words, mine: Command, here: Path) -> None:
    assert mine(f"train {SETTINGS} loop.eval_every=0 --name w")[0] == 0
    (manifest,) = (json.loads(p.read_text()) for p in here.glob("runs/w/checkpoints/*/manifest.json"))
    assert manifest["spaces"] == {"observation": "Box((3,), float32, -1 to 1)", "action": "Discrete(2)"}
    assert json.loads((here / "runs/w/meta.json").read_text())["segments"][-1]["spaces"] == manifest["spaces"]
    for line in (
        "resume w --trust loop.total_env_steps=80",
        "resume w --trust --inexact loop.total_env_steps=80",
        "eval w --trust --episodes 1",
    ):
        code, _, err = mine(line, **change)
        assert code == 4, err
        assert all(word in err for word in words), err


def test_what_is_odd_about_an_environment_is_said_when_it_is_trained(mine: Command) -> None:
    code, out, err = mine(f"train {SETTINGS} loop.eval_every=0 --name far", OBS=2.0)
    assert code == 0, err
    assert (out + err).count("its observation has 2 at index 0, outside the space's bounds -1 to 1") == 1


@pytest.mark.parametrize("dry", [True, False])
def test_rescaling_that_cannot_be_is_refused(dry: bool, mine: Command) -> None:
    code, _, err = mine(f"train {SETTINGS} env.rescale_actions=false{' --dry-run' * dry}")
    assert code == 2
    assert "env.rescale_actions=false has no effect: env=mine:Mine-v0 has discrete actions" in err


def test_a_replay_says_how_long_it_takes_once_and_only_if_it_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [0.0], []
    monkeypatch.setattr("rlx.envs.vector.time.monotonic", lambda: now[0])
    for seconds in (0.001, 0.01):
        announce = _Announcement(3008, said.append)
        for _ in range(400):
            now[0] += seconds
            announce(1)
    assert said == ["replaying 3,008 steps of the open episodes (about 30 s); rlx resume --inexact skips it"]


IMAGE = spaces.Box(0, 255, (4, 4, 3), np.uint8)
BOTH = spaces.Dict(image=IMAGE, speed=spaces.Box(-9.0, 9.0, (1,)))


@pytest.mark.parametrize(
    ("space", "greatest"),
    [(IMAGE, 1.0), (spaces.flatten_space(BOTH), 9.0), (Observations(BOTH, "x").space, 9.0), (spaces.Box(0, 9, (2,)), 9.0),
     (spaces.Box(0, 255, (4, 4), np.float32), 1.0), (spaces.Box(0, 1, (2, 3), np.uint8), 1.0)],
)  # fmt: skip
@pytest.mark.parametrize("compiled", [True, False])
def test_bytes_are_brought_to_one_wherever_they_are(space: spaces.Box, greatest: float, compiled: bool) -> None:
    net = Network(
        EnvSpec(id="x", observation_space=space, action_space=spaces.Discrete(2)), hidden_sizes=[8], activation="tanh", encoder="mlp"
    )
    obs = torch.from_numpy(space.high[None].copy())
    features = net.encoder.raw(obs)
    assert features.max() == pytest.approx(greatest)
    assert sorted({round(float(x), 5) for x in features[0]}) in ([1.0], [9.0], [1.0, 9.0])
    net.compiles = compiled
    FlatAdam(net, max_grad_norm=1.0)  # kernels take parameters in one vector
    assert (net.compiled is not None) == compiled
    shown = net.policy_params(features)
    assert net.act(obs, (), torch.ones(len(obs), dtype=torch.bool), "eval")[0] == shown.argmax(-1)


def test_spaces_in_words_do_not_depend_on_how_they_are_presented() -> None:
    nested = spaces.Dict(a=spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3, start=1))), b=spaces.Box(0.0, 1.5, (2, 2)))
    assert describe_space(Observations(nested, "x").space) == describe_space(nested)
    assert describe_space(nested) == "Dict(['a'][0] Discrete(2), ['a'][1] Discrete(3, start=1), ['b'] Box((2, 2), float32, 0 to 1.5))"
    assert isinstance(nested, gymnasium.Space)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"a": spaces.Discrete(3)}, ("['a']", "Discrete(2)", "Discrete(3)")),
        ({"a": spaces.Discrete(2, start=1)}, ("['a']", "Discrete(2)", "Discrete(2, start=1)")),
        ({"b": spaces.Tuple([spaces.MultiDiscrete([2, 4])])}, ("['b'][0]", "MultiDiscrete([2 3])", "MultiDiscrete([2 4])")),
        ({"c": spaces.Box(0, 2, (2,))}, ("['c']", "Box((2,), float32, 0 to 1)", "Box((2,), float32, 0 to 2)")),
        ({"d": spaces.MultiBinary(3)}, ("['d']", "absent", "MultiBinary(3)")),
    ],
)
def test_the_part_of_a_space_that_changed_is_found_in_its_words(change, expected) -> None:
    parts = {"a": spaces.Discrete(2), "b": spaces.Tuple([spaces.MultiDiscrete([2, 3])]), "c": spaces.Box(0, 1, (2,))}
    assert changed_part(describe_space(spaces.Dict(parts)), describe_space(spaces.Dict({**parts, **change}))) == expected
    words = describe_space(spaces.Dict(parts))
    assert changed_part(words, f"{words} with masks of actions") == ("", words, f"{words} with masks of actions")


def test_no_number_of_choices_is_left_out_of_a_spaces_words() -> None:
    nvec = np.full(2000, 2)
    nvec[1000] = 3
    assert describe_space(spaces.MultiDiscrete(nvec)) != describe_space(spaces.MultiDiscrete(nvec[::-1]))
