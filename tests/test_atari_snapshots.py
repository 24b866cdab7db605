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

from rlx.checkpoint import _plain
from rlx.config.compose import Composer
from rlx.envs.registry import EnvFactory, VectorEnvFactory
from rlx.envs.snapshots import SnapshotVectorEnv
from rlx.envs.vector import ReplayVectorEnv
from rlx.errors import CheckpointError
from rlx.run import train

SHORT = [
    "env.num_envs=2", "loop.total_env_steps=640", "loop.log_every=100", "loop.checkpoint_every=110", "loop.eval_every=0",
    "algo.rollout_length=20", "algo.num_minibatches=2", "algo.num_epochs=1", "algo.encoder=mlp", "algo.hidden_sizes=[2]",
    "log.wandb=disabled", "log.console=quiet",
]  # fmt: skip


def from_disk(state):
    """A state as a checkpoint gives it back."""
    buffer = io.BytesIO()
    torch.save(_plain(state), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.fixture
def atari():
    return pytest.importorskip("ale_py")


@pytest.mark.usefixtures("atari")
@pytest.mark.parametrize("words", [["env=ALE/Breakout-v5"], ["env=BreakoutNoFrameskip-v4", "env.workers=2"]])
def test_a_run_killed_within_a_game_resumes_bit_for_bit(words, tmp_path):
    config = Composer().compose(["algo=ppo", *words, *SHORT]).config
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
    env.reset(seed=np.array([1, 2]))
    actions = rng.integers(4, size=(60, 2))
    for action in actions[:30]:
        env.step(action)
    state = from_disk(env.state_dict())
    expected = [[x.copy() for x in env.step(action)[:4]] for action in actions[30:]]
    new, _ = VectorEnvFactory("ALE/Breakout-v5").training(2)
    new.load_state_dict(state)
    for action, then in zip(actions[30:], expected, strict=True):
        for x, y in zip(new.step(action)[:4], then, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.usefixtures("atari")
def test_games_that_ale_py_does_not_restore_exactly_are_replayed(atari):
    exact = tuple(map(int, atari.__version__.split(".")[:3])) > (0, 12, 1)
    env, defect = VectorEnvFactory("ALE/Tetris-v5").training(1)
    assert (type(env), defect) == (SnapshotVectorEnv if exact else ReplayVectorEnv, None)


def spoil(key, value):
    def spoiler(state):
        state["snapshots"][1]["state"][key] = value(state["snapshots"][1]["state"][key]) if callable(value) else value

    return spoiler


@pytest.mark.usefixtures("atari")
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
def test_a_damaged_snapshot_is_refused(spoiler, message):
    env, _ = VectorEnvFactory("ALE/Pong-v5").training(2)
    env.reset(seed=np.array([1, 2]))
    state = from_disk(env.state_dict())
    spoiler(state)
    with pytest.raises(CheckpointError, match=message):
        env.load_state_dict(state)


@pytest.mark.usefixtures("atari")
def test_the_memory_of_an_emulator_is_read_only_from_a_run_that_is_trusted():
    env, _ = VectorEnvFactory("ALE/Pong-v5").training(1)
    env.reset(seed=np.array([1]))
    state = from_disk(env.state_dict())
    env.is_trusted = False
    with pytest.raises(CheckpointError, match="--trust"):
        env.load_state_dict(state)


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
import numpy as np
from rlx.envs.atari.atari_env import AtariEnv, AtariProtocol, AtariSettings
from rlx.envs.registry import check_env_id
env_id, sticky, path = sys.argv[1], float(sys.argv[2]), sys.argv[3]
check_env_id(env_id)
env = AtariEnv(env_id, AtariProtocol.v5, AtariSettings(sticky=sticky))
def play(actions):
    trace = []
    for action in actions:
        obs, reward, over, _, info = env.step(action)
        trace.append((reward, info["lives"], env.ale.getRAM().tobytes(), env.ale.getScreen().tobytes(), obs.tobytes()))
        if over:
            env.reset()
    return trace
actions = np.random.default_rng(1).integers(env.action_space.n, size=210).tolist()
if sys.argv[4] == "save":
    env.reset(seed=5)
    play(actions[:150])
    saved = env.state_dict(), play(actions[150:]), 5, actions[:150]
    pickle.dump((saved, env.restores_exactly), open(path, "wb"))
else:
    (state, expected, seed, before), restores = pickle.load(open(path, "rb"))
    env.reset(seed=99)
    play(actions[:7])
    if restores:
        env.load_state_dict(state)
    else:
        env.reset(seed=seed)
        play(before)
    print(json.dumps({"equal": play(actions[150:]) == expected, "by": "snapshot" if restores else "replay"}))
"""
"""Play 600 frames, and 240 more; in a new process, play the latter again from a snapshot, or from the start."""


@pytest.mark.slow
@pytest.mark.usefixtures("atari")
@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_all_games_go_on_in_a_new_process_from_a_snapshot_after_600_frames(sticky, tmp_path):
    EnvFactory("ALE/Pong-v5")().close()
    ids = sorted(id_ for id_ in gymnasium.registry if id_.startswith("ALE/"))
    assert len(ids) == 104
    found = {}
    for env_id in ids:
        for role in ("save", "load"):
            command = [sys.executable, "-c", ALL_GAMES, env_id, str(sticky), str(tmp_path / "game"), role]
            printed = subprocess.run(command, capture_output=True, check=True, text=True, cwd=Path(__file__).parent.parent).stdout
        found[env_id] = json.loads(printed.splitlines()[-1])
    print(sum(result["by"] == "snapshot" for result in found.values()), "games by snapshots; by replay:",
          [env_id for env_id, result in found.items() if result["by"] == "replay"])  # fmt: skip
    assert [env_id for env_id, result in found.items() if not result["equal"]] == []
