"""Returns of environments are checked wherever they are stepped, and observations become vectors."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from fractions import Fraction
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlx.build import env_factory, env_spec
from rlx.collect import env_actions
from rlx.config.compose import Composer
from rlx.config.saved import load_config, save_config
from rlx.config.schema import EnvConfig
from rlx.envs.actions import seen_actions
from rlx.envs.contract import BrokenContract
from rlx.envs.edge import Edge
from rlx.envs.registry import VectorEnvFactory
from rlx.envs.vector import GymVectorEnv, replay_defect
from rlx.errors import ConfigError, EnvError, NonFiniteError
from rlx.spaces import original_space

BYTES = spaces.Box(0, 255, (3,), np.uint8)
FLOATS = spaces.Box(-1.0, 1.0, (3,), np.float32)
ONE = np.array([0.1, 0.2, 0.3], dtype=np.float32)


class Foreign(gymnasium.Env[Any, Any]):
    """Returns what it is told to."""

    def __init__(self, obs: Any = ONE, space: Any = FLOATS, action_space: Any = None, later: Any = None, **step: Any) -> None:
        self.observation_space, self.action_space = space, action_space or spaces.Discrete(2)
        self.obs, self.later = obs, obs if later is None else later
        self.result = {"reward": 1.0, "terminated": False, "truncated": False, "info": {}} | step
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.obs, {}

    def step(self, action: Any) -> Any:
        self.actions.append(action)
        return (self.later, *self.result.values())


def one(*args: Any, rescale_actions: bool = False, **kwargs: Any) -> Edge:
    return Edge(Foreign(*args, **kwargs), "X-v0", rescale_actions=rescale_actions)


@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        (BYTES, ONE, "dtype float32, the space says uint8"),
        (BYTES, np.zeros(3), "dtype float64, the space says uint8"),
        (spaces.Box(0, 9, (3,), np.int64), ONE, "dtype float32, the space says int64"),
        (BYTES, np.array([0, 300, 0]), "has the value 300, the space says uint8, which holds 0 to 255"),
        (BYTES, [0, -1, 0], "has the value -1"),
        (FLOATS, 0.5, r"has shape \(\), the space says \(3,\)"),
        (FLOATS, ONE[None], r"has shape \(1, 3\)"),
        (FLOATS, ONE[:2], r"has shape \(2,\)"),
        (FLOATS, [[0.1], [0.2, 0.3]], "is no array"),
        (FLOATS, ["a", "b", "c"], "the space says numbers"),
        (FLOATS, ONE + 1j, "the space says numbers"),
        (FLOATS, None, "is None"),
        (FLOATS, [None, 1.0, 2.0], "the space says numbers"),
        (FLOATS, {"a": 1}, "the space says numbers"),
        (spaces.Discrete(3), -1, r"is -1 \(int\), which is not in Discrete\(3\)"),
        (spaces.Discrete(3), 3, "not in Discrete"),
        (spaces.Discrete(3), 1.0, "not in Discrete"),
        (spaces.Discrete(3, start=1), 0, "not in Discrete"),
        (spaces.MultiDiscrete([2, 3]), np.array([0, 3]), "not in MultiDiscrete"),
        (spaces.MultiDiscrete([2, 3]), np.array([0, -1]), "not in MultiDiscrete"),
        (spaces.MultiDiscrete([2, 3]), np.array([0.0, 1.0]), "not in MultiDiscrete"),
        (spaces.MultiBinary(2), np.array([0, 2]), "not in MultiBinary"),
        (spaces.Dict(a=FLOATS), {}, r"its observation lacks 'a', the space says 'a'"),
        (spaces.Dict(a=FLOATS), {"a": ONE, "b": 1}, "has 'b' too"),
        (spaces.Dict(a=FLOATS), ONE, "is of type ndarray, the space says a dictionary of 'a'"),
        (spaces.Dict(a=BYTES), {"a": ONE}, r"its observation\['a'\] has dtype float32"),
        (spaces.Dict(a=spaces.Dict(b=FLOATS)), {"a": {"b": 0.5}}, r"its observation\['a'\]\['b'\] has shape \(\)"),
        (spaces.Tuple((FLOATS, FLOATS)), (ONE,), "is 1 parts, the space says a tuple of 2"),
        (spaces.Tuple((FLOATS, BYTES)), (ONE, ONE), r"its observation\[1\] has dtype"),
    ],
)
def test_observations_that_are_not_in_their_space_are_refused_at_reset_and_later(space, obs, message):
    with pytest.raises(BrokenContract, match=message):
        one(obs, space).reset()
    env = one(space.sample(), space, later=obs if obs is not None else [None])
    env.reset()
    with pytest.raises(BrokenContract):
        env.step(0)


@pytest.mark.parametrize(
    ("space", "obs", "expected"),
    [
        (FLOATS, ONE.astype(np.float64), ONE.tolist()),
        (FLOATS, ONE.tolist(), ONE.tolist()),
        (FLOATS, np.array([True, False, True]), [1, 0, 1]),
        (FLOATS, np.array([0, 1, 0]), [0, 1, 0]),
        (BYTES, np.array([0, 255, 7]), [0, 255, 7]),
        (BYTES, [1, 2, 3], [1, 2, 3]),
        (spaces.Box(-1.0, 1.0, ()), 0.5, [0.5]),
        (spaces.Box(0, 1000, (2,), np.uint16), np.array([7, 900], dtype=np.uint16), [7, 900]),
        (spaces.Discrete(3, start=1), 3, [0, 0, 1]),
        (spaces.Discrete(3), np.int64(1), [0, 1, 0]),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 2]), [0, 1, 0, 0, 1]),
        (spaces.MultiBinary(3), np.array([1, 0, 1], dtype=np.int8), [1, 0, 1]),
        (spaces.Dict(a=spaces.Discrete(2), b=BYTES), OrderedDict(b=np.array([0, 255, 51]), a=0), [1, 0, 0, 1, 0.2]),
        (spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 5, (1,), np.uint8))), (1, np.array([5])), [0, 1, 1]),
    ],
)
def test_observations_become_arrays_of_the_space_that_is_shown(space, obs, expected):
    env = one(obs, space)
    seen, _ = env.reset()
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    assert env.observation_space.shape == seen.shape == (len(expected),)
    assert env.observation_space.contains(seen.astype(env.observation_space.dtype))
    vector = GymVectorEnv(lambda: one(obs, space), 1)
    assert np.array_equal(vector.reset(seed=[0])[0][0], seen)
    assert vector.step(np.array([0]))[0].dtype == env.observation_space.dtype


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"reward": None}, "the reward is None, expected one number"),
        ({"reward": np.zeros(2)}, r"an array of shape \(2,\)"),
        ({"reward": "1"}, "'1'"),
        ({"reward": 1j}, "expected one number"),
        ({"reward": {}}, "expected one number"),
        ({"reward": [1, [2]]}, "expected one number"),
        ({"terminated": None}, "terminated is None, expected True or False"),
        ({"terminated": "no"}, "terminated is 'no'"),
        ({"truncated": 0.5}, "truncated is 0.5"),
        ({"truncated": 2}, "truncated is 2"),
        ({"truncated": np.array([True, False])}, "truncated is an array"),
        ({"info": None}, "info is None, expected a dictionary"),
        ({"extra": 1}, "step returned 6 values"),
    ],
)
def test_rewards_flags_and_infos_of_another_kind_are_refused(returned, message):
    env = one(**returned)
    env.reset()
    with pytest.raises(BrokenContract, match=message):
        env.step(0)


@pytest.mark.parametrize("reward", [2, True, np.float32(1.5), np.array(1.5), np.array([1.5]), Fraction(3, 2)])
@pytest.mark.parametrize("flag", [0, 1, np.True_, np.array(True), np.int64(1)])
def test_rewards_and_flags_of_kinds_that_can_mean_one_thing_only_are_taken(reward, flag):
    _, got, terminated, truncated, _ = one(reward=reward, terminated=flag, truncated=flag).step(0)
    assert got == (reward.item() if isinstance(reward, np.ndarray) else reward)
    assert terminated == truncated == bool(flag)


def test_the_interface_of_old_gym_is_named():
    env = GymVectorEnv(one, 1)
    env.envs[0].env.step = lambda action: (ONE, 1.0, False, {})
    env.reset(seed=[3])
    with pytest.raises(
        EnvError, match=r"environment 0 \(Foreign\) broke gymnasium's contract in step 1 of the episode with seed 3: step returned 4"
    ):
        env.step(np.array([0]))
    env.envs[0].env.reset = lambda seed: np.zeros(2)
    with pytest.raises(EnvError, match=r"in reset with seed 4: reset returned an array of shape \(2,\).*expects \(observation, info\)"):
        env.reset(seed=[4])
    env.envs[0].env.reset = lambda: (ONE, {})
    with pytest.raises(EnvError, match=r"raised TypeError in reset.*gymnasium calls reset\(seed=…, options=…\)"):
        env.reset(seed=[4])


class NaNAfter(Foreign):
    """Gives what is not finite in step `bad` of an episode."""

    def __init__(self, bad: int, **step: Any) -> None:
        super().__init__(space=spaces.Box(-1, 1, (2, 3)), obs=np.zeros((2, 3), np.float32), **step)
        self.bad = bad

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self.t += 1
        obs, reward, *rest = super().step(action)
        if self.t == self.bad:
            obs, reward = np.where(np.arange(6).reshape(2, 3) == 4, np.nan, obs), self.result["reward"] * np.inf
        return (obs, reward if self.result["reward"] < 0 else 1.0, *rest)


@pytest.mark.parametrize(
    ("reward", "message"),
    [(1.0, r"an observation with nan at index \[1, 1\]"), (-1.0, r"an observation with nan at index \[1, 1\]")],
)
def test_what_is_not_finite_is_located_by_environment_step_index_and_seed(reward, message):
    env = GymVectorEnv(lambda: Edge(NaNAfter(3, reward=reward), "X-v0", rescale_actions=False), 2, first=4)
    env.reset(seed=[10, 11])
    env.step(np.array([0, 0]))
    env.reset(seed=[0, 12], options={"reset_mask": np.array([False, True])})
    env.step(np.array([0, 0]))
    with pytest.raises(EnvError, match=rf"^environment 4 \(NaNAfter\) gave {message} in step 3 of the episode with seed 10"):
        env.step(np.array([0, 0]))


@pytest.mark.parametrize("reward", [np.nan, np.inf, -np.inf])
def test_rewards_that_are_not_finite_are_located(reward):
    env = GymVectorEnv(lambda: one(reward=reward), 1)
    env.reset(seed=[7])
    with pytest.raises(EnvError, match=rf"gave a reward that is {reward} in step 1 of the episode with seed 7"):
        env.step(np.array([0]))


def test_an_action_that_is_not_finite_is_the_policys_fault_not_the_environments():
    env = GymVectorEnv(lambda: one(np.full(3, np.nan), action_space=spaces.Box(-1, 1, (1,))), 1)
    with pytest.raises(EnvError, match="nan at index 0 in reset with seed 1"):
        env.reset(seed=[1])
    env.envs[0].env.obs = ONE
    env.reset(seed=[1])
    with pytest.raises(NonFiniteError, match=r"the policy gave environment 0 .* an action with nan.*smaller algo\.learning_rate"):
        env.step(np.array([[np.nan]], dtype=np.float32))


def test_observations_beyond_the_bounds_of_their_space_are_noted_once_and_taken():
    defect, notes = replay_defect(lambda: one(np.array([0.0, 1.5, 2.0], np.float32)))
    assert defect is None
    assert notes == ["its observation has 1.5 at index 1, outside the space's bounds -1 to 1"]
    assert replay_defect(lambda: one(np.array([0.0, 1.0 + 1e-12, 1.0])))[1] == []  # float64, rounded


def test_the_probe_holds_one_instance_at_a_time_and_gives_the_types_of_training():
    alive, most, given = 0, 0, []

    class Once(Foreign):
        def __init__(self) -> None:
            nonlocal alive, most
            super().__init__(truncated=False)
            alive += 1
            most = max(most, alive)

        def step(self, action: Any) -> Any:
            given.append(type(action))
            return super().step(action)

        def close(self) -> None:
            nonlocal alive
            alive -= 1

    def make() -> Edge:
        return Edge(Once(), "X-v0", rescale_actions=False)

    assert replay_defect(make) == (None, [])
    assert (alive, most) == (0, 1)
    training = GymVectorEnv(make, 1)
    training.reset(seed=[0])
    training.step(np.array([1]))
    training.restore([0], [np.array([0, 1])])
    assert set(given) == {np.int64}


@pytest.mark.parametrize(
    "space", [spaces.Discrete(3), spaces.Discrete(3, start=-1), spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,), np.float64)]
)
def test_environments_are_given_actions_of_the_type_that_their_space_samples(space):
    env = GymVectorEnv(lambda: one(action_space=space), 2)
    env.reset(seed=[0, 0])
    sample = space.sample()
    env.step(np.stack([sample, sample]))
    given = env.envs[0].env.actions[0]
    assert type(given) is type(sample)
    assert (given.dtype, given.shape) == (sample.dtype, sample.shape)
    assert space.contains(given)


class Mission(spaces.Space[str]):
    """As MiniGrid's: of a kind that gymnasium cannot flatten, and says so by an exception."""

    def __init__(self) -> None:
        super().__init__(dtype=str)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Dict(i=BYTES, m=Mission()), r"of which \['m'\] \(Mission\) cannot be flattened.*FilterObservation\(env, \['i'\]\)"),
        (spaces.Dict(a=spaces.Tuple((FLOATS, Mission()))), r"of which \['a'\]\[1\] \(Mission\)"),
        (Mission(), r"which cannot be flattened to a Box.*TransformObservation"),
        (spaces.Graph(FLOATS, None), "which cannot be flattened"),
        (spaces.Sequence(FLOATS), "which cannot be flattened"),
        (spaces.Box(-1, 1, (0,)), "is empty"),
        (None, "has no observation_space"),
    ],
)  # fmt: skip
def test_spaces_that_cannot_become_a_vector_are_refused_by_the_path_of_the_part(space, message):
    with pytest.raises(ConfigError, match=message):
        one(ONE, space)


def test_environments_of_a_batch_that_differ_in_their_spaces_are_refused():
    made = iter([FLOATS, spaces.Box(-1.0, 1.0, (4,))])
    with pytest.raises(ConfigError, match=r"environment 1 has observation space .*\(4,\).*the first one has .*\(3,\)"):
        GymVectorEnv(lambda: one(ONE, next(made)), 2)


def test_a_batch_that_cannot_be_made_closes_what_it_made():
    closed: list[int] = []

    class Counted(Foreign):
        def close(self) -> None:
            closed.append(1)
            raise OSError("and closing fails too")

    made = iter([1, 2])

    def make() -> Edge:
        if next(made) == 2:
            raise ConfigError("port 5005 is in use")
        return Edge(Counted(), "X-v0", rescale_actions=False)

    with pytest.raises(ConfigError, match="5005"):
        GymVectorEnv(make, 2)
    assert closed == [1]


# Actions


@pytest.mark.parametrize(
    ("low", "high", "action", "expected"),
    [
        ([0.0], [1000.0], [-1.0], [0.0]),
        ([0.0], [1000.0], [0.4], [700.0]),
        ([-2.0, -1.0], [2.0, 1.0], [1.0, 0.3], [2.0, 0.3]),
        ([0.0, -np.inf], [4.0, np.inf], [0.0, 7.0], [2.0, 7.0]),
        ([0.0, 0.0], [4.0, np.inf], [0.0, 7.0], [2.0, 7.0]),
        ([0.0, -3.4e38], [4.0, 3.4e38], [1.0, -9.0], [4.0, -9.0]),
        ([5.0, 0.0], [5.0, 2.0], [0.5, 1.0], [5.0, 2.0]),
    ],
)
def test_bounded_actions_come_from_minus_one_to_one_and_others_as_they_are(low, high, action, expected):
    space = spaces.Box(np.array(low, np.float32), np.array(high, np.float32))
    env = one(action_space=space, rescale_actions=True)
    env.step(np.array(action, dtype=np.float32))
    (given,) = env.env.actions
    np.testing.assert_allclose(given, expected, rtol=1e-6)
    assert given.dtype == np.float32
    assert space.contains(given)
    bounded = [abs(x) < 1e30 and abs(y) < 1e30 for x, y in zip(low, high, strict=True)]
    assert env.action_space.low[bounded].tolist() == [-1.0] * sum(bounded)
    assert original_space(env.action_space) == space
    for again in (copy.deepcopy(env.action_space), pickle.loads(pickle.dumps(env.action_space))):
        assert again == env.action_space
        assert original_space(again) == space


@pytest.mark.parametrize(
    "space", [spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(0, 9, (2,), np.int64), spaces.Discrete(2)]
)
def test_actions_that_are_within_minus_one_and_one_or_unbounded_are_untouched(space):
    assert seen_actions(space, "x", rescale=True) == (space, None)


def test_a_known_reward_is_told_the_environments_own_actions_by_those_that_were_chosen():
    env = VectorEnvFactory("Pendulum-v1", rescale_actions=True)(2)
    obs = torch.from_numpy(env.reset(seed=[1, 2])[0].copy())
    chosen = np.array([[0.75], [-1.0]], dtype=np.float32)
    next_obs, reward, *_ = env.step(chosen)
    known = env_spec(EnvConfig(id="Pendulum-v1"), env).reward_fn
    np.testing.assert_allclose(known(obs, torch.from_numpy(chosen), torch.from_numpy(next_obs)), reward, rtol=1e-4)


def test_an_attribute_named_grid_or_game_makes_no_grid_world_and_no_game():
    env = gymnasium.make("CartPole-v1")
    env.unwrapped.grid = env.unwrapped.game = object()
    spec = env_spec(EnvConfig(id="CartPole-v1"), env)
    assert spec.grid is None
    assert spec.game is None


def test_runs_from_before_actions_were_rescaled_go_on_clipping_them(tmp_path):
    text = save_config(Composer().compose(["env=pendulum"]).config)
    assert "  rescale_actions: true\n" in text
    (tmp_path / "old.yaml").write_text(text.replace("  rescale_actions: true\n", ""))
    (tmp_path / "new.yaml").write_text(text)
    assert [load_config(tmp_path / f"{name}.yaml").env.rescale_actions for name in ("old", "new")] == [False, True]


@pytest.mark.parametrize(("rescale", "far"), [(True, 2.0), (False, 1.0)])
def test_the_setting_decides_whether_actions_are_stretched_or_clipped(rescale, far):
    config = Composer().compose(["env=pendulum", f"env.rescale_actions={str(rescale).lower()}"]).config
    env = env_factory(config)(1)
    given = []
    inner = env.envs[0].env
    inner.step = lambda action, step=inner.step: given.append(action) or step(action)
    env.reset(seed=[0])
    env.step(env_actions(env.single_action_space)(torch.tensor([[1.0]])))
    assert given[0].tolist() == [far]
