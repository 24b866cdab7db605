"""Atari games: frames equal to other libraries' bit for bit, the protocols, and life loss."""

from __future__ import annotations

import numpy as np
import pytest

from rlx.config.compose import Composer
from rlx.envs.atari.atari_settings import AtariProtocol, AtariSettings
from rlx.errors import ConfigError, RlxError

ale_py = pytest.importorskip("ale_py")

import gymnasium  # noqa: E402

from rlx.envs.atari.atari_env import AtariEnv  # noqa: E402
from rlx.envs.registry import EnvFactory, check_env_id  # noqa: E402

check_env_id("ALE/Pong-v5")


def make(game: str, protocol: str = "v5", **settings) -> AtariEnv:
    return AtariEnv(f"ALE/{game}-v5", AtariProtocol[protocol], AtariSettings(**settings))


@pytest.mark.parametrize("game", ["Pong", "Breakout", "Seaquest"])
def test_frames_rewards_and_lives_are_those_of_the_vector_env_of_ale_py(game):
    env = make(game, sticky=0.0)
    name = gymnasium.spec(f"ALE/{game}-v5").kwargs["game"]
    theirs = ale_py.vector_env.AtariVectorEnv(name, num_envs=1, noop_max=0, use_fire_reset=False, reward_clipping=False)
    rng, ends = np.random.default_rng(0), 0
    obs, their_obs = env.reset(seed=0)[0], theirs.reset(seed=3)[0]
    for _ in range(250):
        np.testing.assert_array_equal(obs, their_obs[0])
        action = int(rng.integers(env.action_space.n))
        obs, *ours, info = env.step(action)
        their_obs, *flags, their_info = theirs.step(np.array([action]))
        assert [*ours, info["lives"]] == [*(flag[0] for flag in flags), their_info["lives"][0]]
        if ours[1]:  # whose last frames are older in theirs
            ends += 1
            obs = env.reset()[0]
            their_obs = theirs.reset(seed=np.array([5]), options={"reset_mask": np.array([True])})[0]
    theirs.close()
    assert ends > 0 or game != "Breakout"


@pytest.mark.parametrize("game", ["Pong", "Breakout", "Seaquest"])
def test_frames_and_rewards_are_those_of_the_wrappers_of_gymnasium(game):
    pytest.importorskip("cv2")
    env = make(game, sticky=0.0)
    theirs = EnvFactory(f"ALE/{game}-v5", {"repeat_action_probability": 0.0}, native=False)()
    rng = np.random.default_rng(0)
    obs, their_obs = env.reset(seed=0)[0], theirs.reset(seed=0)[0]
    for _ in range(120):
        np.testing.assert_array_equal(obs, their_obs)
        action = int(rng.integers(env.action_space.n))
        obs, *ours, _ = env.step(action)
        their_obs, *their_flags, _ = theirs.step(action)
        assert ours == their_flags
        if ours[1]:
            obs, their_obs = env.reset()[0], theirs.reset(seed=0)[0]
    theirs.close()


def test_an_observation_is_the_last_four_frames_after_zeros():
    env = make("Pong")
    first, _ = env.reset(seed=0)
    assert not first[:3].any()
    assert first[3].any()
    second = env.step(0)[0]
    np.testing.assert_array_equal(second[2], first[3])
    assert first is not second


def test_the_same_seed_gives_the_same_episode_whatever_came_before():
    def play(env: AtariEnv, seed: int) -> list:
        trace, rng = [env.reset(seed=seed)[0]], np.random.default_rng(1)
        for _ in range(60):
            obs, reward, *_ = env.step(int(rng.integers(env.action_space.n)))
            trace += [obs, np.array(reward)]
        return trace

    new, used = make("Breakout", "v4", sticky=0.25), make("Breakout", "v4", sticky=0.25)
    play(used, 4)
    expected, found = play(new, 7), play(used, 7)
    assert all(map(np.array_equal, expected, found))
    assert not all(map(np.array_equal, expected, play(used, 8)))


class Recorder:
    """An emulator that records the actions of every frame."""

    def __init__(self, ale) -> None:
        self._ale, self.actions = ale, []

    def __getattr__(self, name):
        return getattr(self._ale, name)

    def act(self, action):
        self.actions.append(action.name)
        return self._ale.act(action)


def test_every_frame_repeats_the_action_before_with_the_protocols_probability():
    env = make("Pong")
    env.reset(seed=0)
    env.ale = Recorder(env.ale)
    for t in range(600):
        env.step(2 + t % 2)
    wanted = [name for t in range(600) for name in [env.get_action_meanings()[2 + t % 2]] * 4]
    changes = [i for i in range(4, 2400) if wanted[i] != wanted[i - 1]]
    stuck = np.array([env.ale.actions[i] != wanted[i] for i in changes])
    assert pytest.approx(stuck.mean(), abs=4 * (0.25 * 0.75 / len(stuck)) ** 0.5) == 0.25
    later = np.array([env.ale.actions[i + 1] != wanted[i + 1] for i in changes])  # two frames in a row
    assert pytest.approx(later.mean(), abs=4 * (0.06 / len(later)) ** 0.5) == 0.25**2


def test_v4_begins_with_up_to_30_frames_without_an_action_then_fire_and_nothing_sticks():
    env = make("Breakout", "v4")
    env.ale = Recorder(env.ale)
    counts = set()
    for seed in range(100):
        env.ale.actions.clear()
        env.reset(seed=seed)
        assert env.ale.actions[-4:] == ["FIRE"] * 4
        assert set(env.ale.actions[:-4]) == {"NOOP"}
        counts.add(len(env.ale.actions) - 4)
    assert (min(counts), max(counts)) == (1, 30)
    env.ale.actions.clear()
    env.step(2)
    env.step(3)
    assert env.ale.actions == [env.get_action_meanings()[2]] * 4 + [env.get_action_meanings()[3]] * 4


def test_v5_begins_an_episode_without_acting():
    env = make("Breakout")
    env.ale = Recorder(env.ale)
    env.reset(seed=0)
    assert env.ale.actions == []


def test_a_lost_life_is_reported_under_v4_and_the_game_goes_on():
    env = make("Breakout", "v4")
    env.reset(seed=0)
    lives, lost, over = [5], 0, False
    while not over:
        _, _, over, _, info = env.step(1)
        assert info["life_lost"] == (0 < info["lives"] < lives[-1])
        lost += info["life_lost"]
        lives.append(info["lives"])
    assert lost == 4
    assert sorted(lives, reverse=True) == lives
    assert "life_lost" not in make("Breakout").step(0)[-1]


def test_an_episode_is_cut_at_its_most_frames():
    env = make("Pong", max_frames=40)
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(10)] == [False] * 9 + [True]


def test_every_atari_id_gets_the_familys_recipe_and_its_protocol():
    composer = Composer()
    for words, protocol in (
        (["env=breakout"], "v5"),
        (["env=ALE/Seaquest-v5", "env.protocol=v4"], "v4"),
        (["env=BreakoutNoFrameskip-v4"], "v4"),
        (["env=BreakoutNoFrameskip-v4", "env.protocol=v5"], "v5"),
    ):
        composed = composer.compose(["algo=ppo", *words])
        assert composed.choices["recipe"] == "ppo_atari"
        assert composed.config.env.protocol is AtariProtocol[protocol]
        assert composed.config.algo.clip == 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["env=cartpole", "env.protocol=v4"], "env.protocol has no effect unless env is an Atari game"),
        (["env=pong", "env.native=false", "env.protocol=v4"], "env.protocol has no effect unless env.native=true"),
        (["env=pong", "env.kwargs.frame_stak=1"], "did you mean env.kwargs.frame_stack"),
        (["env=pong", "env.kwargs.frame_stack=0"], "env.kwargs.frame_stack must be a whole number from 1 to 64, got 0"),
        (["env=PongNoFrameskip-v5"], "did you mean PongNoFrameskip-v4 or"),
        (["env=pong", "env.kwargs.sticky=2"], "env.kwargs.sticky must be at least 0 and below 1"),
    ],
)
def test_a_setting_that_a_game_does_not_have_is_refused(words, message):
    with pytest.raises(RlxError, match=message):
        Composer().compose(["algo=ppo", *words])


def test_a_mode_that_a_game_does_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"env.kwargs.mode must be one of 0, 1, which the game has, got 7"):
        EnvFactory("ALE/Pong-v5", {"mode": 7})()
    assert EnvFactory("ALE/Pong-v5", {"mode": 1, "frame_stack": 1})().observation_space.shape == (1, 84, 84)
