"""MiniGrid and BabyAI: grids as categories, missions as words, and everything that a wrapper changed left as it is."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from rlx.envs.missions import with_codes
from rlx.envs.registry import EnvFactory, VectorEnvFactory, register_family
from rlx.envs.vector import ReplayVectorEnv
from rlx.envs.wrapping import Wrapping
from rlx.errors import EnvError

pytest.importorskip("minigrid")
DOORKEY = "MiniGrid-DoorKey-5x5-v0"
HIGH = [10, 5, 3]


def made(env_id: str, *wrappers: str, **kwargs: Any) -> Any:
    """What the edge gets to see."""
    return EnvFactory(env_id, kwargs, wrappers=[Wrapping(f"minigrid.wrappers:{w}", {}) for w in wrappers])._make({})


def test_a_grid_is_bounded_by_its_codes_and_a_constant_mission_is_left_out():
    env = made(DOORKEY)
    space = env.observation_space
    assert sorted(space.spaces) == ["direction", "image"]
    assert space["image"].high.reshape(-1, 3).tolist() == [HIGH] * 49
    assert (space["image"].dtype, space["direction"]) == (np.uint8, spaces.Discrete(4))
    for seed in range(5):
        assert env.reset(seed=seed)[0] in space
        assert env.step(2)[0] in space


@pytest.mark.parametrize(
    ("env_id", "seed"),
    [
        ("MiniGrid-GoToDoor-5x5-v0", 0),
        ("MiniGrid-PutNear-6x6-N2-v0", 1),
        ("BabyAI-PutNextS5N2-v0", 2),
        ("BabyAI-OpenDoorsOrderN4-v0", 0),
        ("BabyAI-BossLevel-v0", 3),
    ],
)
def test_the_words_of_a_mission_can_be_read_from_its_codes(env_id, seed):
    env = made(env_id)
    codes = env.reset(seed=seed)[0]["mission"]
    assert codes in env.observation_space["mission"]
    said = env.unwrapped.mission.replace(",", "").split()
    assert np.count_nonzero(codes) == len(said)
    assert (codes[: len(said)] > 0).all(), "the words come first"
    place: dict[str, int] = {}
    assert all(place.setdefault(word, int(code)) == code for word, code in zip(said, codes, strict=False)), "equal words, equal codes"
    assert len(set(place.values())) == len(place), "other words, other codes"


def test_a_mission_is_the_same_for_the_same_seed_in_a_new_environment():
    first, second = made("MiniGrid-GoToDoor-5x5-v0"), made("MiniGrid-GoToDoor-5x5-v0")
    missions = [first.reset(seed=s)[0]["mission"].tolist() for s in range(6)]
    assert missions == [second.reset(seed=s)[0]["mission"].tolist() for s in range(6)]
    assert len({tuple(m) for m in missions}) > 2


def test_a_word_beyond_the_vocabulary_is_refused_by_name():
    env = VectorEnvFactory("MiniGrid-GoToDoor-5x5-v0", flatten=False)(1)
    inner = env.envs[0].unwrapped
    inner.gen_obs = lambda: {"image": np.zeros((7, 7, 3), np.uint8), "direction": 0, "mission": "dance to the red door"}
    with pytest.raises(EnvError, match=r"'dance to the red door' has the word 'dance'"):
        env.reset(seed=np.array([0]))


def test_views_of_other_sizes_are_grids_too():
    assert made(DOORKEY, "FullyObsWrapper").observation_space["image"].high[0, 0].tolist() == HIGH
    assert made(DOORKEY, agent_view_size=5).observation_space["image"].high[0, 0].tolist() == HIGH
    register_family(DOORKEY)
    smaller = with_codes(wrapper("ViewSizeWrapper", agent_view_size=3))
    assert smaller.observation_space["image"].shape == (3, 3, 3)
    assert smaller.observation_space["image"].high[0, 0].tolist() == HIGH
    whole = made(DOORKEY, "FullyObsWrapper")
    assert all(whole.reset(seed=s)[0] in whole.observation_space for s in range(5)), "the agent's direction is a code too"


def wrapper(name: str, **kwargs: Any) -> Any:
    import minigrid.wrappers

    return getattr(minigrid.wrappers, name)(gymnasium.make(DOORKEY, disable_env_checker=True), **kwargs)


def test_an_image_alone_is_a_grid():
    env = made(DOORKEY, "ImgObsWrapper")
    assert env.observation_space.high[0, 0].tolist() == HIGH
    assert env.reset(seed=0)[0] in env.observation_space


@pytest.mark.parametrize("name", ["RGBImgPartialObsWrapper", "RGBImgObsWrapper"])
def test_pictures_keep_their_bounds(name):
    env = made(DOORKEY, name)
    assert env.observation_space["image"].high.min() == 255
    assert env.reset(seed=0)[0]["image"].max() > 100


def test_another_environment_is_left_alone():
    env = gymnasium.make("CartPole-v1")
    assert with_codes(env) is env


def test_snapshots_of_a_grid_with_missions_are_exact():
    envs = [VectorEnvFactory("BabyAI-GoToLocal-v0", flatten=False).training(2) for _ in range(2)]
    assert [(type(env), defect) for env, defect in envs] == [(ReplayVectorEnv, None)] * 2
    (env, _), (again, _) = envs
    env.reset(seed=np.array([1, 2]))
    rng = np.random.default_rng(0)

    def steps(env: Any, num: int, rng: np.random.Generator) -> list[Any]:
        seen = []
        for _ in range(num):
            obs, reward, terminated, truncated, _ = env.step(rng.integers(7, size=2))
            if (ended := terminated | truncated).any():
                obs, _ = env.reset(seed=rng.integers(1000, size=2), options={"reset_mask": ended})
            seen.append([np.array(x).tolist() for x in (obs["image"], obs["direction"], obs["mission"], reward, terminated)])
        return seen

    steps(env, 25, rng)
    again.load_state_dict(env.state_dict())
    assert steps(env, 25, np.random.default_rng(1)) == steps(again, 25, np.random.default_rng(1))


def test_other_algorithms_see_one_vector_of_categories():
    env = VectorEnvFactory("MiniGrid-GoToDoor-5x5-v0", flatten=True)(1)
    assert env.reset(seed=np.array([0]))[0].shape == (1, *env.single_observation_space.shape)
