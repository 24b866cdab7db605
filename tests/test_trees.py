"""Observations that are trees: from an environment with a Dict space, through training, evaluation and checkpoints, to a gradient."""

from __future__ import annotations

import copy
import importlib
import pickle
import sys
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import create_empty_array
from torch import Tensor, nn

from rlx.build import env_factory
from rlx.checkpointer import Checkpointer
from rlx.collect import Collector
from rlx.config.compose import Composer
from rlx.envs.contract import BrokenContract
from rlx.envs.observations import Observations, ObservationTree, observations
from rlx.envs.registry import VectorEnvFactory
from rlx.errors import ConfigError, EnvError
from rlx.evaluation.evaluator import Evaluator
from rlx.rng import GlobalRNG
from rlx.spaces import describe_space, original_space
from rlx.tree_ops import leaves, map_tree, named_leaves, pick, put, with_leaves
from rlx.types import PolicyOutput, Progress, Rollout

ROOM = """
import gymnasium
import numpy as np
from gymnasium import spaces


class Room(gymnasium.Env):
    '''Walk to the goal; a picture, a number, and two vectors say where one is.'''

    observation_space = spaces.Dict({
        "camera": spaces.Box(0, 255, (3, 3), np.uint8), "goal": spaces.Discrete(3),
        "body": spaces.Tuple([spaces.Box(-9.0, 9.0, (2,), np.float32), spaces.Box(-9.0, 9.0, (), np.float64)]),
    })
    action_space = spaces.Discrete(2)
    broken_at = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.at, self.goal = 0, 0, int(self.np_random.integers(3))
        return self.look(), {}

    def look(self):
        camera = np.zeros((3, 3), np.uint8)
        camera[self.at % 3, self.t % 3] = 200
        x = np.nan if self.t == self.broken_at else 0.1 * self.t
        return {"camera": camera, "goal": self.goal, "body": (np.array([self.at, x], np.float32), np.float64(self.np_random.normal()))}

    def step(self, action):
        self.t += 1
        self.at += 2 * int(action) - 1
        return self.look(), float(self.at == self.goal), self.at == self.goal, self.t == 7, {}


"""


@pytest.fixture
def room(tmp_path, monkeypatch):
    (tmp_path / "room.py").write_text(ROOM)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("room")
    sys.modules.pop("room", None)


class Toy:
    """Policy gradient on the sum of a linear function of each leaf; counts the steps of an episode in a carry that is a tree."""

    device, rollout_length = torch.device("cpu"), 5

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.ModuleDict({name: nn.Linear(size, 2) for name, size in (("camera", 9), ("goal", 3), ("place", 2), ("noise", 1))})
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def logits(self, obs: Any) -> Tensor:
        parts = {
            "camera": obs["camera"] / 255.0,
            "goal": nn.functional.one_hot(obs["goal"], 3),
            "place": obs["body"][0],
            "noise": obs["body"][1],
        }
        return sum(self.net[name](x.float().flatten(x.ndim - 2) if name == "camera" else x.float()) for name, x in parts.items())

    def initial_carry(self, batch_size: int) -> Any:
        return {"steps": torch.zeros(batch_size, dtype=torch.long)}

    def act(self, obs: Any, carry: Any, is_first: Tensor, *, mode: str) -> PolicyOutput:
        logits = self.logits(obs)
        action = logits.argmax(1) if mode == "eval" else torch.distributions.Categorical(logits=logits).sample()
        return PolicyOutput(action, {"steps": torch.where(is_first, 1, carry["steps"] + 1)}, {"steps": carry["steps"]})

    def update(self, rollout: Rollout, progress: Progress) -> dict[str, Tensor]:
        log_prob = self.logits(rollout.obs).log_softmax(-1).gather(-1, rollout.action[..., None])[..., 0]
        potential = rollout.next_obs["body"][0][..., 0] - rollout.obs["body"][0][..., 0]
        loss = -(log_prob * (rollout.reward + 0.1 * potential)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss/policy": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])


def parts(workers: int) -> tuple[Toy, Collector, dict[str, Any]]:
    factory = VectorEnvFactory("room:Room", workers=workers, flatten=False, worker_timeout_s=30)
    env, defect = factory.training(3)
    assert defect is None
    algo, progress = Toy(), Progress(total_env_steps=1000)
    collector = Collector(env, algo, seed=1)
    return algo, collector, {"progress": progress, "algo": algo, "collector": collector, "rng": GlobalRNG()}


def train(algo: Toy, collector: Collector, progress: Progress, *, updates: int) -> list[Rollout]:
    found = []
    for _ in range(updates):
        rollout, _ = collector.collect(algo.rollout_length)
        progress.advance(rollout)
        algo.update(rollout, progress)
        found.append(rollout)
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_an_algorithm_that_takes_trees_trains_and_resumes_in_the_middle_of_episodes(workers, room, tmp_path, same):
    torch.manual_seed(5)
    algo, collector, state = parts(workers)
    try:
        collector.reset()
        train(algo, collector, state["progress"], updates=4)
        assert not collector.state_dict()["is_first"].all(), "episodes are open"
        checkpointer = Checkpointer(tmp_path / "checkpoints", algo="toy")
        checkpointer.save(state, state["progress"].env_steps)
        evaluate = Evaluator(VectorEnvFactory("room:Room", flatten=False), num_episodes=5, seed=0)
        result = evaluate(algo, 60)
        expected = train(algo, collector, state["progress"], updates=3)
        torch.manual_seed(99)
        heir, theirs, resumed = parts(workers)
        try:
            assert checkpointer.restore(resumed) is not None
            assert evaluate(heir, 60) == result
            found = train(heir, theirs, resumed["progress"], updates=3)
        finally:
            theirs.env.close()
        assert same([vars(r) for r in found], [vars(r) for r in expected])
        assert same(heir.state_dict(), algo.state_dict())
        assert {path: (x.dtype, x.shape) for path, x in named_leaves(found[0].all_obs)} == {
            "['body'][0]": (torch.float32, (6, 3, 2)), "['body'][1]": (torch.float64, (6, 3, 1)),
            "['camera']": (torch.uint8, (6, 3, 3, 3)), "['goal']": (torch.int64, (6, 3)),
        }  # fmt: skip
        evaluate.close()
        checkpointer.close()
    finally:
        collector.env.close()


def test_workers_collect_the_same_trees_as_one_process(room, same):
    rollouts = []
    for workers in (0, 2):
        torch.manual_seed(5)
        algo, collector, state = parts(workers)
        collector.reset()
        rollouts.append([vars(r) for r in train(algo, collector, state["progress"], updates=4)])
        collector.env.close()
    assert same(*rollouts)


def test_an_algorithm_takes_trees_only_if_it_says_so(room, monkeypatch):
    config = Composer().compose(["algo=ppo", "env=room:Room", "log.wandb=disabled"]).config
    monkeypatch.setattr(type(config.algo), "takes_trees", False)
    flat = env_factory(config)(1).single_observation_space
    assert (flat.shape, flat.dtype) == ((2 + 1 + 9 + 3,), np.float32)
    monkeypatch.setattr(type(config.algo), "takes_trees", True)
    tree = env_factory(config)(1).single_observation_space
    assert {key: str(part) for key, part in tree.spaces.items()} == {
        "body": "Tuple(Box(-9.0, 9.0, (2,), float32), Box(-9.0, 9.0, (1,), float64))", "camera": "Box(0, 255, (3, 3), uint8)",
        "goal": "Discrete(3)",
    }  # fmt: skip
    assert describe_space(tree) == describe_space(flat), "a checkpoint fits, however its observations are presented"
    assert original_space(tree) == room.Room.observation_space


def test_a_part_that_is_not_finite_is_named(room, monkeypatch):
    monkeypatch.setattr(room.Room, "broken_at", 2)
    env = VectorEnvFactory("room:Room", flatten=False)(2)
    env.reset(seed=np.array([0, 1]))
    env.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(EnvError, match=r"environment 0 .* gave an observation with nan in \['body'\]\[0\] at index 1 in step 2"):
        env.step(np.zeros(2, dtype=np.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"goal": 7}, r"its observation\['goal'\] is 7 .*not in Discrete\(3\)"),
        ({"camera": np.zeros((3, 2), np.uint8)}, r"its observation\['camera'\] has shape \(3, 2\), the space says \(3, 3\)"),
        ({"body": (np.zeros(2, np.float32),)}, r"its observation\['body'\] is 1 parts, the space says a tuple of 2"),
        ({"more": 1}, r"its observation has 'more' too"),
    ],
)
@pytest.mark.parametrize("kind", [Observations, ObservationTree])
def test_a_part_that_is_not_in_its_space_is_refused_flat_or_not(kind, change, message, room):
    env = room.Room()
    obs, _ = env.reset(seed=0)
    read = kind(env.observation_space, "room:Room")
    read(obs)
    with pytest.raises(Exception, match=message):
        read({**obs, **change})


def test_trees_keep_their_structure():
    tree = {"a": np.arange(3), "b": (np.ones((3, 2)), [np.zeros(3)]), "c": ()}
    assert [path for path, _ in named_leaves(tree)] == ["['a']", "['b'][0]", "['b'][1][0]"]
    doubled = map_tree(lambda x, y: x + y, tree, tree)
    assert [x.sum() for x in leaves(doubled)] == [6, 12, 0]
    assert doubled["c"] == ()
    put(doubled, 1, pick(tree, 1))
    assert doubled["a"].tolist() == [0, 1, 4]
    assert with_leaves(tree, [1, 2, 3]) == {"a": 1, "b": (2, [3]), "c": ()}


KINDS = spaces.Dict(
    view=spaces.Box(0, 255, (2, 3), np.uint8),
    count=spaces.Box(0, 60000, (2,), np.uint16),
    state=spaces.Discrete(5, start=-2, dtype=np.int32),
    more=spaces.Tuple([
        spaces.MultiDiscrete([[2], [3]], start=[[1], [4]]), spaces.MultiBinary((2, 2)), spaces.Dict(x=spaces.Box(-1.0, 1.0, ()))
    ]),
)  # fmt: skip


def test_parts_keep_their_kind_in_a_tree_and_have_dtypes_of_torch():
    read = ObservationTree(KINDS, "x")
    KINDS.seed(3)
    value = KINDS.sample()
    seen = dict(named_leaves(read(value)))
    assert {path: (x.dtype.name, x.shape) for path, x in seen.items()} == {
        "['count']": ("float32", (2,)), "['more'][0]": ("int64", (2, 1)), "['more'][1]": ("int8", (2, 2)),
        "['more'][2]['x']": ("float32", (1,)), "['state']": ("int64", ()), "['view']": ("uint8", (2, 3)),
    }  # fmt: skip
    assert all(np.array_equal(np.ravel(seen[path]), np.ravel(leaf)) for path, leaf in named_leaves(value))
    batch = create_empty_array(read.space, 2, fn=np.zeros)
    assert {path: (x.dtype.name, x.shape) for path, x in named_leaves(batch)} == {
        path: (x.dtype.name, (2, *x.shape)) for path, x in seen.items()
    }
    for again in (copy.deepcopy(read.space), pickle.loads(pickle.dumps(read.space))):
        assert again == read.space
        assert original_space(again) == KINDS
        assert describe_space(again) == describe_space(KINDS)


@pytest.mark.parametrize("space", [spaces.Discrete(4, start=1), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary((2, 1))])
def test_an_observation_of_choices_alone_stays_what_it_is_for_an_algorithm_that_takes_trees(space):
    read = observations(space, "x", flatten=False)
    value = space.sample()
    assert read.space == space
    assert np.array_equal(read(value), value)
    with pytest.raises(BrokenContract, match=r"its observation is .* which is not in"):
        read(np.full(space.shape, 9))


class Odd(spaces.Space):
    """A space of a user's own, as MiniGrid's mission."""

    @property
    def is_np_flattenable(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            spaces.Dict(a=spaces.Text(3), b=spaces.Box(0, 1, (2,))),
            r"of which \['a'\] \(Text\) is no Box, .*Filter.*\(env, \['b'\]\)",
        ),
        (spaces.Dict(a=spaces.Tuple([Odd()])), r"of which \['a'\]\[0\] \(Odd\) is no Box, Discrete, MultiDiscrete or MultiBinary"),
        (spaces.Tuple([spaces.Sequence(spaces.Discrete(2))]), r"of which \[0\] \(Sequence\)"),
        (spaces.OneOf([spaces.Discrete(2)]), r"which is no Box, .*TransformObservation"),
        (spaces.Graph(spaces.Box(0, 1, (2,)), None), "which is no Box"),
        (spaces.Dict({1: spaces.Discrete(2)}), r"which has the key 1 \(int\); expected strings"),
        (spaces.Dict(a=spaces.Dict({2: spaces.Discrete(2)})), r"of which \['a'\] has the key 2 \(int\)"),
        (spaces.Dict(), "which has no parts: an agent needs something to see"),
        (spaces.Dict(a=spaces.Tuple([])), r"of which \['a'\] has no parts"),
        (spaces.Dict(a=spaces.Box(0, 1, (2, 0))), r"of which \['a'\] is empty"),
    ],
)
def test_a_part_that_cannot_be_observed_is_refused_by_its_path(space, message):
    with pytest.raises(ConfigError, match=rf"^env=x has observation space .*{message}"):
        observations(space, "x", flatten=False)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Dict(a=Odd()), r"of which \['a'\] \(Odd\) cannot be flattened"),
        (spaces.Discrete(10**12), "which would be a one-hot vector of 1,000,000,000,000 numbers: at most 16,777,216"),
        (spaces.Dict(a=spaces.MultiDiscrete([2**24, 2])), r"of which \['a'\] would be a one-hot vector of 16,777,218 numbers"),
        (spaces.Dict(), "which has no parts"),
    ],
)
def test_what_cannot_be_one_vector_is_refused_by_its_path(space, message):
    with pytest.raises(ConfigError, match=rf"^env=x has observation space .*{message}"):
        observations(space, "x", flatten=True)
