"""Actions of any space become one vector for algorithms and come back as members of the environment's space."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlx.collect import env_actions
from rlx.envs.actions import seen_actions
from rlx.envs.registry import VectorEnvFactory
from rlx.errors import ConfigError
from rlx.spaces import ProductSpace, original_space, space_leaves
from rlx.tree_ops import leaves, named_leaves, pick

WIDE = 1e300


def random_space(rng: np.random.Generator, depth: int = 0) -> gymnasium.Space[Any]:
    """A random space of actions that algorithms take."""
    shape = tuple(rng.integers(1, 3, size=rng.integers(3)).tolist())
    kind = rng.integers(10 if depth < 2 else 8)
    if kind == 0:
        return spaces.Discrete(int(rng.integers(1, 5)), start=int(rng.integers(-2, 3)))
    if kind == 1:
        return spaces.MultiDiscrete(rng.integers(1, 5, size=shape or (3,)))
    if kind == 2:
        return spaces.MultiDiscrete([3, 2], start=[1, -4], dtype=np.int8)
    if kind == 3:
        return spaces.MultiBinary(shape or 3)
    if kind == 4:
        return spaces.Box(-3, 5, shape, dtype=rng.choice([np.float16, np.float32, np.float64]))
    if kind == 5:
        return spaces.Box(np.array([-np.inf, 0.0, -0.1]), np.array([np.inf, np.inf, 0.3]), dtype=np.float64)
    if kind == 6:
        return spaces.Box(-WIDE, WIDE, (2,), np.float64)
    if kind == 7:
        return spaces.Box(-1.0, 1.0, shape)
    parts = [random_space(rng, depth + 1) for _ in range(rng.integers(1, 4))]
    return spaces.Tuple(parts) if kind == 8 else spaces.Dict({f"part {i}": part for i, part in enumerate(parts)})


@pytest.mark.parametrize("rescale", [True, False])
def test_any_action_that_an_algorithm_may_choose_is_in_the_environments_space(rescale: bool) -> None:
    rng = np.random.default_rng(0)
    for seed in range(150):
        space = random_space(rng)
        seen, to_env = seen_actions(space, "x", rescale=rescale)
        assert seen.shape in ((), (int(np.prod(seen.shape)),)), "one number or one vector"
        for again in (copy.deepcopy(seen), pickle.loads(pickle.dumps(seen))):
            assert again == seen
            assert original_space(again) == space
        seen.seed(seed)
        chosen = np.stack([seen.sample() for _ in range(3)])
        assert all(map(seen.contains, chosen))
        if isinstance(seen, spaces.Box):  # policies are not bounded
            is_float = np.concatenate([np.full(part.shape or 1, isinstance(part, spaces.Box)) for part in seen.parts]) \
                if isinstance(seen, ProductSpace) else True  # fmt: skip
            chosen = (chosen + is_float * rng.normal(size=chosen.shape) * 3.0).astype(seen.dtype)
        clipped = env_actions(seen)(torch.from_numpy(chosen - int(getattr(seen, "start", 0) if isinstance(seen, spaces.Discrete) else 0)))
        for i, action in enumerate(clipped):
            given = action if to_env is None else to_env(action)
            assert space.contains(given), (space, given)
            assert [x.dtype for x in leaves(given)] == [leaf.dtype for _, leaf in space_leaves(space)]
            if to_env is not None:
                assert [x.tolist() for x in leaves(pick(to_env(clipped), i))] == [x.tolist() for x in leaves(given)], "as in a batch"


def test_numbers_keep_their_place_and_their_meaning() -> None:
    space = spaces.Dict(
        bits=spaces.MultiBinary((1, 2)),
        more=spaces.Tuple([spaces.Box(0.0, 4.0, (2, 1)), spaces.MultiDiscrete([[2], [3]], start=[[5], [-1]])]),
        one=spaces.Discrete(4, start=-2),
    )
    seen, to_env = seen_actions(space, "x", rescale=True)
    assert isinstance(seen, ProductSpace)
    assert seen.low.tolist() == [0, 0, -1, -1, 0, 0, 0]
    assert seen.high.tolist() == [1, 1, 1, 1, 1, 2, 3]
    assert to_env is not None
    action = to_env(np.array([0, 1, -1.0, 0.5, 1, 2, 3], dtype=np.float32))
    assert {path: x.tolist() for path, x in named_leaves(action)} == {
        "['bits']": [[0, 1]], "['more'][0]": [[0.0], [3.0]], "['more'][1]": [[6], [1]], "['one']": 1,
    }  # fmt: skip
    assert space.contains(action)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Text(3)), r"of which \['b'\] \(Text\) cannot be chosen here; make it a Discrete"),
        (spaces.Tuple([spaces.Box(0, 9, (2,), np.int64)]), r"of which \[0\] \(Box of int64\) cannot be chosen here"),
        (spaces.Dict(a=spaces.Dict(b=spaces.Discrete(2**25))), r"\['a'\]\['b'\] has 33,554,432 choices; beside other parts .* 16,777,216"),
        (spaces.Dict(), "has no parts: an agent needs something to choose"),
        (spaces.Tuple([spaces.Box(0, 1, (0,))]), r"\[0\] \(Box\) cannot be chosen"),
        (spaces.Box(0, 1, (2, 0)), "is empty: an agent needs something to choose"),
    ],
)
def test_a_part_that_no_algorithm_can_choose_is_named(space: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"env=x has action space .*{message}"):
        seen_actions(space, "x", rescale=True)


@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_nested_actions_reach_the_environment_from_the_collector_and_in_a_replay(workers: int, flatten: bool) -> None:
    factory = VectorEnvFactory("masked:Echo", flatten=flatten, workers=workers, rescale_actions=True, worker_timeout_s=30)
    env, defect = factory.training(2)
    assert defect is None
    env.reset(seed=np.array([1, 2]))
    chosen = np.array([[3, 1, 0, -1.0, 0.5], [0, 0, 1, 1.0, 0.0]], dtype=np.float32)
    for _ in range(3):
        obs, *_ = env.step(chosen)
    assert obs.tolist() == [[5, 1, 0, -2, 4], [2, 0, 1, 6, 2]]
    again, _ = factory.training(2, inexact=True)
    state = env.state_dict()
    env.load_state_dict(state)
    assert env.state_dict()["obs"].tolist() == obs.tolist()
    env.close(), again.close()
