"""Masks of actions: every source and format is the same mask, wrong ones are named, and forbidden actions never happen."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import gymnasium
import masked
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlx.build import build_algorithm, env_factory, env_spec
from rlx.checkpointer import Checkpointer
from rlx.collect import Collector
from rlx.config.compose import Composer
from rlx.config.schema import EnvConfig
from rlx.envs.contract import BrokenContract
from rlx.envs.edge import Edge
from rlx.envs.masks import MaskReader, random_action
from rlx.envs.registry import EnvFactory, VectorEnvFactory
from rlx.errors import ConfigError, EnvError
from rlx.policy import ObservationReader
from rlx.rng import GlobalRNG
from rlx.spaces import ACTION_MASK, describe_space, mask_width
from rlx.tree_ops import pick
from rlx.types import Progress

PAIR = spaces.MultiDiscrete([2, 3])
BITS = spaces.MultiBinary(2)
NESTED = spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(-1.0, 1.0, (2,)), c=spaces.Tuple([BITS, PAIR]))


@pytest.mark.parametrize(
    ("space", "forms", "expected"),
    [
        (spaces.Discrete(3, start=5), [np.array([1, 0, 1], np.int8), [True, False, True], (1, 0, 1), np.array([1.0, 0.0, 1.0])], "101"),
        (PAIR, [(np.array([0, 1], np.int8), np.array([1, 0, 1], np.int8)), np.array([0, 1, 1, 0, 1], bool), [[0, 1], [1, 0, 1]]], "01101"),
        (spaces.MultiDiscrete([[2], [3]], start=[[4], [-1]]), [(([0, 1],), ([1, 0, 1],)), [0, 1, 1, 0, 1]], "01101"),
        (spaces.MultiDiscrete([2, 2]), [np.array([[0, 1], [1, 1]]), ([0, 1], [1, 1])], "0111"),
        (BITS, [[1, 0], np.array([[1, 1], [1, 0]]), [1, 1, 1, 0]], "1110"),
        (spaces.MultiBinary((2, 1)), [[[1], [0]], [[1, 1], [1, 0]], [1, 1, 1, 0], [1, 0]], "1110"),
        (NESTED, [{"a": [1, 0], "c": ([1, 1], ([0, 1], [1, 0, 1]))}, {"a": [1, 0], "b": None, "c": ([[1, 1], [1, 1]], [0, 1, 1, 0, 1])},
                  [1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 1]], "10111101101"),
        (spaces.Tuple([NESTED["b"], spaces.Discrete(2)]), [(None, [0, 1]), ([0, 1],), [0, 1]], "01"),
    ],
)  # fmt: skip
def test_every_format_of_a_mask_is_one_bool_for_each_choice(space: Any, forms: list[Any], expected: str) -> None:
    read = MaskReader(space, "mask")
    for form in forms:
        mask = read(form)
        assert (mask.dtype, "".join(map(str, mask.astype(int)))) == (bool, expected)
        assert len(mask) == read.width


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (spaces.Discrete(3), None, "the mask is None"),
        (spaces.Discrete(3), [1, 0], r"shape \(2,\), expected \(3,\): one entry for each choice of Discrete\(3\)"),
        (spaces.Discrete(3), [[1, 0, 1]], r"shape \(1, 3\)"),
        (spaces.Discrete(3), [1, 0, 2], "has the value 2, expected 0 or 1"),
        (spaces.Discrete(3), [1, 0, 0.5], "has the value 0.5"),
        (spaces.Discrete(3), [0, 0, 0], "the mask allows no action"),
        (spaces.Discrete(3), "yes", "'yes' .*expected an array of 0 and 1"),
        (PAIR, ([1, 0], [0, 0, 0]), r"allows no choice of action\[1\]"),
        (PAIR, ([1, 0], [1, 1]), r"widths 2, 2, expected 2, 3 for MultiDiscrete\(\[2 3\]\)"),
        (PAIR, ([1, 0], None), r"the mask\[1\] is None"),
        (BITS, [1, 2], "has the value 2"),
        (BITS, [[1, 1], [0, 0]], r"no choice of action\[1\]"),
        (NESTED, {"a": [1, 0]}, "lacks 'c', expected a mask for 'a', 'c'"),
        (NESTED, {"a": [1, 0], "c": [1] * 9, "d": 1}, "has 'd', which the action space"),
        (NESTED, {"a": [0, 0], "c": [1] * 9}, r"no choice of action\['a'\]"),
        (NESTED, {"a": [1, 0], "c": ([1, 1], [1, 0, 1, 0, 0], [])}, r"the mask\['c'\] has 3 parts, expected 2"),
        (NESTED, {"a": [1, 0], "c": ([1, 1], ([1, 0], [0, 0, 0]))}, r"no choice of action\['c'\]\[1\]\[1\]"),
    ],
)
def test_a_wrong_mask_is_refused_by_what_is_wrong(space: Any, value: Any, message: str) -> None:
    with pytest.raises(BrokenContract, match=message):
        MaskReader(space, "the mask")(value)


def vector(where: str = "info", actions: str = "multi", *, num_envs: int = 3, workers: int = 0, **kwargs: Any) -> Any:
    factory = VectorEnvFactory("masked:Masked", {"where": where, "actions": actions, **kwargs}, flatten=False, workers=workers,
                               rescale_actions=True, worker_timeout_s=30)  # fmt: skip
    env, defect = factory.training(num_envs)
    assert defect is None
    return env


def played(env: Any, steps: int = 12) -> list[Any]:
    """All observations and rewards of random allowed actions."""
    rng, space = np.random.default_rng(0), env.single_action_space
    space.seed(0)
    obs, _ = env.reset(seed=np.arange(env.num_envs))
    trace = []
    for t in range(steps):
        trace.append(pickle.loads(pickle.dumps(obs)))
        action = np.stack([random_action(space, mask, rng) for mask in obs[ACTION_MASK]])
        obs, reward, terminated, *_ = env.step(action)
        trace.append((reward.copy(), pickle.loads(pickle.dumps(obs))))
        if terminated.any():
            obs, _ = env.reset(seed=np.arange(env.num_envs) + t, options={"reset_mask": terminated})
    return trace


def test_observation_info_and_method_give_the_same_masks(same: Any) -> None:
    traces = []
    for where in ("obs", "info", "method"):
        env = vector(where)
        assert env.single_observation_space[ACTION_MASK].shape == (mask_width(env.single_action_space),)
        traces.append(played(env))
    assert same(traces[0], traces[1])
    assert same(traces[0], traces[2])


@pytest.mark.parametrize("actions", ["discrete", "multi", "bits", "nested"])
def test_random_allowed_actions_are_allowed_in_every_space(actions: str) -> None:
    env = vector(actions=actions, bare=True)
    assert set(env.single_observation_space.spaces) == {"observation", ACTION_MASK}
    played(env, 40)


def test_workers_have_the_same_masks_and_nested_actions(same: Any) -> None:
    traces = []
    for workers in (0, 2):
        env = vector(actions="nested", workers=workers)
        traces.append(played(env))
        env.close()
    assert same(*traces)


def test_a_method_of_a_wrapper_is_a_source_and_one_with_arguments_is_none() -> None:
    env = masked.LearnsLater(masked.Masked("nowhere", bare=True))
    assert ACTION_MASK in Edge(env, "x", rescale_actions=True, flatten=False).observation_space.spaces  # type: ignore[attr-defined]
    env.unwrapped.action_mask = lambda state: None  # as Taxi has it
    assert Edge(env.env, "x", rescale_actions=True, flatten=False).observation_space == spaces.Discrete(9)


def test_info_is_asked_for_a_mask_once_and_not_in_every_environment() -> None:
    made, resets = [], []

    class Counted(masked.Masked):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            made.append(self)

        def reset(self, **kwargs: Any) -> Any:
            resets.append(self)
            return super().reset(**kwargs)

    gymnasium.register("Counted-v0", entry_point=Counted)
    try:
        factory = VectorEnvFactory("Counted-v0", flatten=False)
        factory(3), factory(2), factory.single()
        assert (len(made), len(resets)) == (1 + 3 + 2 + 1, 1)
        VectorEnvFactory("Counted-v0")(3)
        VectorEnvFactory("Counted-v0", {"where": "method"}, flatten=False)(3)
        assert len(resets) == 1
    finally:
        del gymnasium.registry["Counted-v0"]


@pytest.mark.parametrize(
    ("where", "broken", "message"),
    [
        ("info", None, r"environment 0 \(Masked-v0\) broke gymnasium's contract in step 3 of the episode with seed 4: .*"
                       r"info\['action_mask'\] is missing: .*return it from every reset and step"),
        ("method", None, r"in step 3 of .*: its .*\(\) is None"),
        ("info", [0] * 5, r"info\['action_mask'\] allows no choice of action\[0\]"),
        ("info", [1] * 4, r"info\['action_mask'\] has shape \(4,\), expected \(5,\)"),
    ],
)  # fmt: skip
def test_a_mask_that_is_missing_or_wrong_later_names_environment_and_step(where: str, broken: Any, message: str) -> None:
    env = VectorEnvFactory("masked:Masked", {"where": where, "broken": broken}, flatten=False)(2)
    obs, _ = env.reset(seed=[4, 5])
    rng = np.random.default_rng(0)
    for _ in range(2):
        obs, *_ = env.step(np.stack([random_action(PAIR, mask, rng) for mask in obs[ACTION_MASK]]))
    action = np.stack([random_action(PAIR, mask, rng) for mask in obs[ACTION_MASK]])
    with pytest.raises(EnvError, match=message):
        env.step(action)


def test_the_observation_that_ends_an_episode_needs_no_mask() -> None:
    class Over(masked.Masked):
        def info(self) -> dict[str, Any]:
            return {} if self.t == 7 else super().info()

    env = Edge(Over(), "x", rescale_actions=True, flatten=False, mask_in_info=True)
    obs, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(7):
        obs, _, terminated, *_ = env.step(random_action(PAIR, obs[ACTION_MASK], rng))
    assert terminated
    assert obs[ACTION_MASK].all()


def test_algorithms_without_masks_get_what_they_got_and_a_note() -> None:
    for where in ("obs", "info", "method", "nowhere"):
        env = EnvFactory("masked:Masked", {"where": where})()
        obs, _ = env.reset(seed=0)
        assert obs.shape == env.observation_space.shape == (14 + 5 * (where == "obs"),)
        assert [ACTION_MASK in note or "masks of actions" in note for note in env.notes] == [True] * (where != "nowhere")


def test_without_discrete_actions_a_mask_is_an_observation_like_any_other() -> None:
    class Continuous(masked.Masked):
        def __init__(self) -> None:
            super().__init__("obs")
            self.action_space = spaces.Box(-1.0, 1.0, (2,))

    env = Edge(Continuous(), "x", rescale_actions=True, flatten=False, mask_in_info=True)
    assert env.observation_space[ACTION_MASK] == spaces.MultiBinary(5)  # type: ignore[index]


def test_a_space_in_words_says_whether_actions_are_masked() -> None:
    words = [describe_space(vector(where, bare=where != "obs").single_observation_space) for where in ("obs", "info", "nowhere")]
    assert words[1:] == ["Discrete(9) with masks of actions", "Discrete(9)"]
    assert "['action_mask'] MultiBinary(5)" in words[0]


def reader(where: str, actions: str = "multi", **kwargs: Any) -> tuple[Any, ObservationReader]:
    env = EnvFactory("masked:Masked", {"where": where, "actions": actions, **kwargs}, flatten=False)()
    spec = env_spec(EnvConfig(id="masked:Masked"), env)
    return env.env.unwrapped, ObservationReader(spec.observation_space, "x", spec.action_space)


@pytest.mark.parametrize("actions", ["discrete", "multi", "bits", "nested"])
def test_a_caller_gives_masks_of_one_or_many_observations(actions: str, same: Any) -> None:
    env, read = reader("info", actions)
    many = [env.reset(seed=i) for i in range(3)]
    batch, is_batch = read(stacked(*(obs for obs, _ in many)), stacked(*(info[ACTION_MASK] for _, info in many)))
    assert is_batch
    for i, (obs, info) in enumerate(many):
        one, is_batch = read(obs, info[ACTION_MASK])
        assert not is_batch
        assert same(pick(batch, slice(i, i + 1)), one)


def stacked(*members: Any) -> Any:
    """Members of a space in one tree of arrays [B, *]."""
    if isinstance(members[0], dict):
        return {key: stacked(*(member[key] for member in members)) for key in members[0]}
    return tuple(map(stacked, *members)) if isinstance(members[0], tuple) else np.stack(members)


def test_a_caller_is_told_when_a_mask_is_missing_superfluous_or_wrong() -> None:
    env, read = reader("info", bare=True)
    obs, info = env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"trained with masks of actions, .* pass action_mask=info\['action_mask'\]"):
        read(obs)
    with pytest.raises(ConfigError, match=r"policy.act: action_mask allows no choice of action\[0\].*; policy.action_space is Multi"):
        read(obs, [0] * 5)
    with pytest.raises(ConfigError, match=r"action_mask has 1 rows, expected 2"):
        read(np.array([1, 2]), [[1] * 5])
    env, read = reader("obs")
    obs, _ = env.reset(seed=0)
    assert read(obs)[0][ACTION_MASK].tolist() == [obs[ACTION_MASK].astype(bool).tolist()]
    with pytest.raises(ConfigError, match="takes the mask from the observation; leave it out"):
        read(obs, [1] * 5)
    with pytest.raises(ConfigError, match=r"the observation\['action_mask'\] allows no choice"):
        read({**obs, ACTION_MASK: np.zeros(5, np.int8)})
    env, read = reader("nowhere", bare=True)
    with pytest.raises(ConfigError, match="trained without masks of actions; leave it out"):
        read(0, info[ACTION_MASK])


@pytest.mark.parametrize(("actions", "memory"), [("multi", "gru"), ("nested", "none")])
def test_a_run_with_masks_resumes_in_the_middle_of_episodes(actions: str, memory: str, tmp_path: Path, same: Any) -> None:
    words = ["algo=ppo", "env=masked:Masked", f"env.kwargs.actions={actions}", f"algo.memory={memory}", "algo.memory_size=4",
             "algo.hidden_sizes=[4]", "algo.num_minibatches=2", "env.num_envs=2", "log.wandb=disabled"]  # fmt: skip
    config = Composer().compose(words if memory != "none" else [word for word in words if "memory_size" not in word]).config

    def parts() -> dict[str, Any]:
        env, defect = env_factory(config).training(2)
        assert defect is None
        algo = build_algorithm(config, env_spec(config.env, env), torch.device("cpu"))
        return {"progress": Progress(total_env_steps=1000), "algo": algo, "collector": Collector(env, algo, seed=1), "rng": GlobalRNG()}

    def trained(parts: dict[str, Any], updates: int) -> list[Any]:
        found = []
        for _ in range(updates):
            rollout, _ = parts["collector"].collect(10)
            parts["progress"].advance(rollout)
            parts["algo"].update(rollout, parts["progress"])
            found.append(vars(rollout))
        return found

    first = parts()
    first["collector"].reset()
    trained(first, 2)
    checkpointer = Checkpointer(tmp_path / "checkpoints", algo="ppo")
    checkpointer.save(first, first["progress"].env_steps)
    assert not first["collector"].state_dict()["is_first"].all(), "episodes are open"
    expected = trained(first, 2)
    heir = parts()
    torch.manual_seed(99)
    assert checkpointer.restore(heir) is not None
    assert same(trained(heir, 2), expected)
    assert same(heir["algo"].state_dict(), first["algo"].state_dict())
    checkpointer.close()


class Late(masked.Masked):
    """Has a mask from its second step on."""

    def info(self) -> dict[str, Any]:
        return super().info() if self.t > 1 else {}


def test_a_mask_that_comes_later_is_refused_where_it_would_be_used() -> None:
    late = Late("info")
    env = Edge(late, "Late-v0", rescale_actions=False, flatten=False)
    env.reset(seed=0)
    env.step(np.array([mask.argmax() for mask in late.mask]))
    with pytest.raises(BrokenContract, match=r"info\['action_mask'\] was not there when a reset was tried: return it from every reset"):
        env.step(np.array([mask.argmax() for mask in late.mask]))
