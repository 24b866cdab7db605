"""Snapshots of Atari games and of other environments: a run that is killed in the middle of an episode goes on bit for bit."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from launch import lines
from resumable import assert_equal, final_state, in_child, kill_at, new_run

from rlx.config.compose import Composer
from rlx.envs.atari.atari_settings import AtariProtocol
from rlx.envs.registry import EnvFactory, VectorEnvFactory
from rlx.envs.snapshots import SnapshotVectorEnv
from rlx.envs.vector import ReplayVectorEnv
from rlx.errors import CheckpointError
from rlx.run import train
from rlx.serialize import plain
from rlx.store.runs import RunDir

SHORT = [
    "env.num_envs=2", "loop.log_every=60", "loop.checkpoint_every=70", "loop.eval_every=0",
    "algo.rollout_length=20", "algo.num_minibatches=2", "algo.num_epochs=1", "algo.encoder=mlp", "algo.hidden_sizes=[2]",
    "log.wandb=disabled", "log.console=quiet",
]  # fmt: skip


def from_disk(state):
    """A state as a checkpoint gives it back."""
    buffer = io.BytesIO()
    torch.save(plain(state), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.fixture
def atari():
    return pytest.importorskip("ale_py")


@pytest.mark.usefixtures("atari")
@pytest.mark.parametrize("words", [["env=ALE/Breakout-v5"], ["env=BreakoutNoFrameskip-v4", "env.workers=2"]])
def test_a_run_killed_within_a_game_resumes_bit_for_bit(words, tmp_path):
    config = Composer().compose(["algo=ppo", *words, *SHORT, "loop.total_env_steps=400"]).config
    straight, killed = new_run(tmp_path, "straight", config), new_run(tmp_path, "killed", config)
    train(straight, config, overrides=[])
    pid = in_child(lambda: train(killed, config, overrides=[]))
    kill_at(pid, killed, config.loop.total_env_steps * random.uniform(0.2, 0.7))
    train(killed, config, overrides=[])
    assert lines(killed) == lines(straight)
    assert_equal(final_state(killed), final_state(straight))


@pytest.mark.usefixtures("atari")
def test_a_game_that_goes_on_from_a_snapshot_equals_the_game_itself():
    (env, defect), rng = VectorEnvFactory("ALE/Breakout-v5").training(2), np.random.default_rng(0)
    assert (type(env), defect) == (SnapshotVectorEnv, None)
    new, _ = VectorEnvFactory("ALE/Breakout-v5").training(2)
    env.reset(seed=np.array([1, 2]))
    for _ in range(12):
        for action in rng.integers(4, size=(4, 2)):
            env.step(action)
        new.load_state_dict(from_disk(env.state_dict()))
        for action in rng.integers(4, size=(2, 2)):
            for x, y in zip(new.step(action)[:4], env.step(action)[:4], strict=True):
                np.testing.assert_array_equal(x, y)
        assert_equal(from_disk(new.state_dict()), from_disk(env.state_dict()))


@pytest.mark.usefixtures("atari")
def test_the_last_observation_of_a_game_is_the_same_after_a_snapshot():
    make = EnvFactory("ALE/Breakout-v5")
    env, new, rng, over = make().unwrapped, make().unwrapped, np.random.default_rng(0), False
    env.reset(seed=1)
    new.reset(seed=2)
    new.step(1)
    while not over:
        action, state = int(rng.integers(4)), env.state_dict()
        expected, _, over, *_ = env.step(action)
    new.load_state_dict(state)
    np.testing.assert_array_equal(new.step(action)[0], expected)


@pytest.mark.usefixtures("atari")
def test_an_episode_leaves_no_pixels_to_the_next():
    """In this game the first screen after restoring the emulator would show some."""
    env = EnvFactory("ALE/Koolaid-v5", protocol=AtariProtocol.v4)()
    first = env.reset(seed=27)[0]  # after one frame
    for t in range(20):
        env.step(t % env.action_space.n)
    np.testing.assert_array_equal(env.reset(seed=27)[0], first)


@pytest.mark.parametrize("game", ["Tetris", "TicTacToe3D"])
def test_games_that_ale_py_does_not_restore_exactly_are_replayed(game, atari):
    exact = tuple(map(int, atari.__version__.split(".")[:3])) > (0, 12, 1)
    env, defect = VectorEnvFactory(f"ALE/{game}-v5").training(1)
    assert (type(env), defect) == (SnapshotVectorEnv if exact else ReplayVectorEnv, None)


@pytest.fixture(scope="module")
def pong():
    """Two games, and their state as a file has it."""
    pytest.importorskip("ale_py")
    env, _ = VectorEnvFactory("ALE/Pong-v5").training(2)
    env.reset(seed=np.array([1, 2]))
    return env, env.state_dict()


def spoil(key, value):
    def spoiler(state):
        state["snapshots"][1]["state"][key] = value(state["snapshots"][1]["state"][key]) if callable(value) else value

    return spoiler


@pytest.mark.parametrize(
    ("spoiler", "message"),
    [
        (spoil("ale", lambda x: x[:100]), "environment 1 .* does not accept its saved state .*100 bytes of uint8 are not the memory"),
        (spoil("ale", lambda x: torch.cat((x[:40], x[41:], x[:1]))), "environment 1 .* does not accept its saved state"),
        (spoil("ale", b"pickle"), "environment 1 .* does not accept its saved state"),
        (spoil("stack", lambda x: x[:2]), "frames of shape"),
        (spoil("last_action", 77), "environment 1 .* does not accept its saved state"),
        (spoil("rng", {"bit_generator": "os.system"}), "environment 1 .* does not accept its saved state"),
        (spoil("version", "0.1"), "it was saved with ale-py 0.1"),
        (lambda state: state.pop("snapshots"), "does not hold the states of its environments"),
        (lambda state: state["snapshots"].pop(), "does not hold the states of its environments"),
        (lambda state: state["snapshots"][1].pop("state"), "environment 1 .* does not accept its saved state"),
    ],
)
def test_a_damaged_snapshot_is_refused(spoiler, message, pong):
    env, saved = pong
    state = from_disk(saved)
    spoiler(state)
    with pytest.raises(CheckpointError, match=message):
        env.load_state_dict(state)


def test_the_memory_of_an_emulator_is_read_only_from_a_run_that_is_trusted(pong, monkeypatch):
    env, saved = pong
    monkeypatch.setattr(env, "is_trusted", False)
    with pytest.raises(CheckpointError, match="--trust"):
        env.load_state_dict(from_disk(saved))


@pytest.mark.usefixtures("atari")
def test_a_run_of_somebody_else_goes_on_only_if_it_is_trusted(tmp_path, monkeypatch):
    config = Composer().compose(["algo=ppo", "env=ALE/Breakout-v5", *SHORT, "loop.total_env_steps=40"]).config
    run = new_run(tmp_path, "theirs", config)
    train(run, config, overrides=[])
    config.loop.total_env_steps = 80
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    theirs = RunDir(run.path)
    assert not theirs.is_own()
    with pytest.raises(CheckpointError, match="you did not start this run"):
        train(theirs, config, overrides=[])
    theirs.config(trust=True)
    train(theirs, config, overrides=[])


class Walk(gymnasium.Env):
    """A random walk with a clock that its state may forget."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, forgets: bool = False) -> None:
        self.forgets, self.born = forgets, 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.clock = 0.0, 0
        return np.array([self.place, self.clock], dtype=np.float64), {}

    def step(self, action):
        self.place += self.np_random.normal() + action
        self.clock += 1
        return np.array([self.place, self.clock], dtype=np.float64), self.place, False, False, {}

    def state_dict(self):
        kept = {"place": self.place, "rng": self.np_random.bit_generator.state}
        return kept if self.forgets else {**kept, "clock": np.array(self.clock)}

    def load_state_dict(self, state):
        self.place, self.np_random.bit_generator.state = state["place"], state["rng"]
        self.clock = int(state.get("clock", 0))


@pytest.fixture
def walk():
    gymnasium.register("Walk-v0", Walk, max_episode_steps=40)
    yield
    gymnasium.registry.pop("Walk-v0")


@pytest.mark.usefixtures("walk")
def test_an_environment_with_state_dict_is_saved_with_its_time_limit():
    env, defect = VectorEnvFactory("Walk-v0").training(2)
    assert (type(env), defect, env.notes) == (SnapshotVectorEnv, None, [])
    env.reset(seed=np.array([1, 2]))
    for _ in range(25):
        env.step(np.array([0, 1]))
    state = from_disk(env.state_dict())
    new, _ = VectorEnvFactory("Walk-v0").training(2)
    new.load_state_dict(state)
    for t in range(15):
        (obs, *_, cut, _), (their_obs, *_, their_cut, _) = env.step(np.array([0, 1])), new.step(np.array([0, 1]))
        np.testing.assert_array_equal(obs, their_obs)
        assert cut.tolist() == their_cut.tolist() == [t == 14] * 2


@pytest.mark.usefixtures("walk")
def test_an_environment_whose_state_forgets_something_is_replayed_with_a_warning():
    env, defect = VectorEnvFactory("Walk-v0", {"forgets": True}).training(2)
    assert (type(env), defect) == (ReplayVectorEnv, None)
    assert "did not continue the episode; its episodes are replayed instead" in env.notes[0]


ALL_GAMES = """
import json, pickle, sys
import gymnasium
import numpy as np
from rlx.envs.atari.atari_env import AtariEnv, AtariProtocol, AtariSettings
from rlx.envs.registry import check_env_id
role, sticky, path = sys.argv[1], float(sys.argv[2]), sys.argv[3]
check_env_id("ALE/Pong-v5")
def play(env, actions):
    trace = []
    for action in actions:
        obs, reward, over, _, info = env.step(action)
        trace.append((reward, info["lives"], env.ale.getRAM().tobytes(), env.ale.getScreen().tobytes(), obs.tobytes()))
        if over:
            env.reset()
    return trace
saved = {} if role == "save" else pickle.load(open(path, "rb"))
found = {}
for env_id in sorted(id_ for id_ in gymnasium.registry if id_.startswith("ALE/")):
    env = AtariEnv(env_id, AtariProtocol.v5, AtariSettings(sticky=sticky))
    actions = np.random.default_rng(1).integers(env.action_space.n, size=210).tolist()
    if role == "save":
        env.reset(seed=5)
        play(env, actions[:150])
        saved[env_id] = env.state_dict(), play(env, actions[150:])
        continue
    state, expected = saved[env_id]
    env.reset(seed=99)
    play(env, actions[:7])
    if env.restores_exactly:
        env.load_state_dict(state)
    else:
        env.reset(seed=5)
        play(env, actions[:150])
    found[env_id] = [env.restores_exactly, play(env, actions[150:]) == expected]
if role == "save":
    pickle.dump(saved, open(path, "wb"))
print(json.dumps(found))
"""
"""Play 600 frames of every game, and 240 more; in a new process, play the latter again from a snapshot, or from the start."""


@pytest.mark.slow
@pytest.mark.usefixtures("atari")
@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_all_games_go_on_in_a_new_process_from_a_snapshot_after_600_frames(sticky, tmp_path):
    for role in ("save", "load"):
        command = [sys.executable, "-c", ALL_GAMES, role, str(sticky), str(tmp_path / "games")]
        printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, cwd=Path(__file__).parent.parent).stdout
    found = json.loads(printed.splitlines()[-1])
    replayed = [env_id for env_id, (by_snapshot, _) in found.items() if not by_snapshot]
    print(f"{len(found)} games, of which replayed: {', '.join(replayed)}")
    assert len(found) == 104
    assert [env_id for env_id, (_, is_equal) in found.items() if not is_equal] == []
