"""The collector in a scripted environment whose observations encode env, episode and step."""

from __future__ import annotations

import io
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.algos.ppo import PPO
from rlx.collect import SEED_LIMIT, Collector, Episode, EpisodeSeeds, env_actions
from rlx.config.algos.ppo_config import PPOConfig
from rlx.envs.registry import VectorEnvFactory
from rlx.envs.vector import GymVectorEnv, ReplayVectorEnv
from rlx.errors import CheckpointError
from rlx.rng import GlobalRNG
from rlx.serialize import plain
from rlx.types import EnvSpec, PolicyOutput, Rollout

NO, YES = False, True


class ScriptedEnv:
    """Two envs: episodes of env 0 terminate after 2 steps, of env 1 are truncated after 3.

    Observation 100 * env + 10 * episode + step, in a buffer that is overwritten; reward is the step, counted from 1.
    """

    num_envs = 2
    single_observation_space = spaces.Box(-np.inf, np.inf, (1,))

    def __init__(self, tape: list[Any] | None = None, action_space: gymnasium.Space[Any] | None = None) -> None:
        self.tape = [] if tape is None else tape
        self.single_action_space = action_space or spaces.Discrete(2)
        self.episode, self.steps = np.array([-1, -1]), np.array([0, 0])
        self.obs = np.zeros((2, 1), dtype=np.float32)
        self.actions: list[np.ndarray] = []
        self.seeds: list[int] = []

    def _observe(self) -> np.ndarray:
        self.obs[:, 0] = [0, 100] + 10 * self.episode + self.steps
        return self.obs

    def reset(self, *, seed: Any, options: dict[str, Any] | None = None) -> Any:
        mask = (options or {}).get("reset_mask", np.array([True, True]))
        self.tape.append(("reset", mask.tolist()))
        self.seeds += np.asarray(seed)[mask].tolist()
        self.episode[mask] += 1
        self.steps[mask] = 0
        return self._observe(), {}

    def step(self, actions: np.ndarray) -> Any:
        self.tape.append(("step", actions.tolist()))
        self.actions.append(actions.copy())
        self.steps += 1
        ended = self.steps >= [2, 3]
        return self._observe(), self.steps.astype(np.float32), ended & [True, False], ended & [False, True], {}


class CountingPolicy:
    """Its memory counts the steps of an episode, and is its action."""

    device = torch.device("cpu")
    rollout_length = 4

    def __init__(self, tape: list[Any] | None = None, action: Tensor | None = None) -> None:
        self.tape, self.action = [] if tape is None else tape, action

    def initial_carry(self, batch_size: int) -> Tensor:
        return torch.zeros(batch_size, dtype=torch.long)

    def act(self, obs: Tensor, carry: Tensor, is_first: Tensor, *, mode: str) -> PolicyOutput:
        self.tape.append(("act", obs[:, 0].tolist(), is_first.tolist(), mode))
        carry = torch.where(is_first, 0, carry)
        return PolicyOutput(carry if self.action is None else self.action, carry + 1, {"seen": obs[:, 0] * 2})


def collect(num_steps: int) -> tuple[Rollout, list[Episode]]:
    collector = Collector(ScriptedEnv(), CountingPolicy(), seed=0)
    collector.reset()
    return collector.collect(num_steps)


@pytest.fixture
def tape() -> list[Any]:
    return []


def test_collector_call_order_is_act_step_record_reset(tape):
    collector = Collector(ScriptedEnv(tape), CountingPolicy(tape), seed=0)
    collector.reset()
    collector.collect(3)
    assert tape == [
        ("reset", [YES, YES]),
        ("act", [0, 100], [YES, YES], "train"),
        ("step", [0, 0]),
        ("act", [1, 101], [NO, NO], "train"),
        ("step", [1, 1]),
        ("reset", [YES, NO]),
        ("act", [10, 102], [YES, NO], "train"),
        ("step", [0, 2]),
        ("reset", [NO, YES]),
    ]
    tape.clear()
    collector.collect(1)  # goes on, without another reset
    assert tape == [("act", [11, 110], [NO, YES], "train"), ("step", [1, 0]), ("reset", [YES, NO])]


def test_observations_are_those_the_policy_saw_and_one_more():
    rollout, _ = collect(4)
    assert rollout.all_obs[..., 0].T.tolist() == [[0, 1, 10, 11, 20], [100, 101, 102, 110, 111]]
    assert rollout.obs[..., 0].T.tolist() == [[0, 1, 10, 11], [100, 101, 102, 110]]


def test_next_obs_is_never_a_reset_observation():
    rollout, _ = collect(4)
    assert rollout.next_obs[..., 0].T.tolist() == [[1, 2, 11, 12], [101, 102, 103, 111]]


def test_final_observations_are_where_episodes_ended():
    rollout, _ = collect(4)
    assert rollout.final_t.tolist() == [1, 2, 3]
    assert rollout.final_b.tolist() == [0, 1, 0]
    assert rollout.final_obs[:, 0].tolist() == [2, 103, 12]


def test_flags_and_rewards_are_kept_apart_and_in_place():
    rollout, _ = collect(4)
    assert rollout.terminated.T.tolist() == [[NO, YES, NO, YES], [NO, NO, NO, NO]]
    assert rollout.truncated.T.tolist() == [[NO, NO, NO, NO], [NO, NO, YES, NO]]
    assert rollout.is_last.T.tolist() == [[NO, YES, NO, YES], [NO, NO, YES, NO]]
    assert rollout.is_first.T.tolist() == [[YES, NO, YES, NO], [YES, NO, NO, YES]]
    assert rollout.reward.T.tolist() == [[1, 2, 1, 2], [1, 2, 3, 1]]
    assert rollout.num_env_steps == 8


def test_rollouts_without_an_end_have_empty_final_tensors():
    rollout, episodes = collect(1)
    assert (rollout.final_t.shape, rollout.final_b.shape, rollout.final_obs.shape) == ((0,), (0,), (0, 1))
    assert rollout.final_t.dtype == rollout.final_b.dtype == torch.long
    assert rollout.next_obs[..., 0].tolist() == [[1, 101]]
    assert episodes == []


def test_episode_returns_and_lengths_are_right_across_rollouts():
    collector = Collector(ScriptedEnv(), CountingPolicy(), seed=0)
    collector.reset()
    assert collector.collect(4)[1] == [Episode(3.0, 2), Episode(6.0, 3), Episode(3.0, 2)]
    assert collector.collect(1)[1] == []
    assert collector.collect(1)[1] == [Episode(3.0, 2), Episode(6.0, 3)]  # env 1 was open over three rollouts


def test_memory_and_extras_travel_into_the_rollout():
    collector = Collector(ScriptedEnv(), CountingPolicy(), seed=0)
    collector.reset()
    first, second = collector.collect(3)[0], collector.collect(2)[0]
    assert first.carry.tolist() == [0, 0]
    assert second.carry.tolist() == [1, 3]  # before the policy zeroes what begins
    assert first.action.T.tolist() == [[0, 1, 0], [0, 1, 2]]
    assert second.action.T.tolist() == [[1, 0], [0, 1]]
    assert first.extras["seen"].T.tolist() == [[0, 2, 20], [200, 202, 204]]


def test_a_rollout_is_not_changed_by_the_next():
    collector = Collector(ScriptedEnv(), CountingPolicy(), seed=0)
    collector.reset()
    rollout = collector.collect(3)[0]
    before = rollout.all_obs.clone(), rollout.final_obs.clone(), rollout.is_first.clone()
    collector.collect(3)
    assert all(map(torch.equal, before, (rollout.all_obs, rollout.final_obs, rollout.is_first)))


def test_continuous_actions_are_clipped_for_the_env_and_stored_unclipped():
    space = spaces.Box(np.array([-1.0, -1.0], dtype=np.float32), np.array([1.0, 0.5], dtype=np.float32))
    env, action = ScriptedEnv(action_space=space), torch.tensor([[3.0, 3.0], [-3.0, 0.25]])
    collector = Collector(env, CountingPolicy(action=action), seed=0)
    collector.reset()
    rollout, _ = collector.collect(2)
    assert all(a.tolist() == [[1.0, 0.5], [-1.0, 0.25]] for a in env.actions)
    assert env.actions[0].dtype == np.float32
    assert rollout.action.tolist() == [action.tolist()] * 2


def test_discrete_actions_are_counted_from_the_start_of_the_space():
    to_env = env_actions(spaces.Discrete(3, start=5))
    assert to_env(torch.tensor([0, 2])).tolist() == [5, 7]
    assert env_actions(spaces.Discrete(3))(torch.tensor([0, 2])).tolist() == [0, 2]


def test_every_episode_has_a_seed_of_its_own_that_follows_from_the_collectors():
    def seeds(seed: int) -> list[int]:
        env = ScriptedEnv()
        collector = Collector(env, CountingPolicy(), seed=seed)
        collector.reset()
        collector.collect(50)
        return env.seeds

    assert seeds(0) == seeds(0)
    assert len(set(seeds(0))) == len(seeds(0)) == 2 + 25 + 16
    assert set(seeds(0)).isdisjoint(seeds(1))
    assert all(0 <= s < SEED_LIMIT for s in seeds(0))


def test_the_seeds_of_a_part_of_the_environments_are_those_that_they_have_among_all():
    def episodes(num_envs: int, first: int, ends: list[list[int]]) -> dict[int, list[int]]:
        seeds, found = EpisodeSeeds(7, num_envs, first=first), {first + i: [] for i in range(num_envs)}
        for ended in ends:
            for i, seed in zip(ended, seeds.next(np.array(ended)).tolist(), strict=True):
                found[first + i].append(seed)
        return found

    all_of_them = episodes(4, 0, [[0, 1, 2, 3], [3, 1], [0], [1, 2, 3]])
    parts = episodes(2, 0, [[0, 1], [0], [1], [1]]) | episodes(2, 2, [[1], [1], [1, 0], [0]])
    assert parts == all_of_them
    assert len({seed for seeds in all_of_them.values() for seed in seeds}) == 10


def test_a_collector_that_an_older_rlx_saved_is_refused_unless_new_episodes_are_wanted():
    collector, algo = build("Pendulum-v1")
    collector.reset()
    state = snapshot(collector, algo)["collector"]
    del state["episodes"]
    with pytest.raises(CheckpointError, match=r"drew the seeds of episodes in another way: .*--inexact"):
        build("Pendulum-v1")[0].load_state_dict(state)
    inexact, _ = build("Pendulum-v1", inexact=True)
    inexact.load_state_dict(state)
    assert inexact.state_dict()["episodes"].tolist() == [1, 1, 1]


# Acting on arrays


class ArrayPolicy(CountingPolicy):
    """Acts on arrays as on tensors."""

    def initial_carry(self, batch_size: int) -> Any:
        return ()

    def act(self, obs: Tensor, carry: Any, is_first: Tensor, *, mode: str) -> PolicyOutput:
        self.tape.append("act")
        return PolicyOutput(obs[:, 0].long() % 2, carry, {})

    def array_policy(self) -> Any:
        self.tape.append("array_policy")
        return lambda obs: obs[:, 0].astype(np.int64) % 2


class OwnAct(ArrayPolicy):
    def act(self, obs: Tensor, carry: Any, is_first: Tensor, *, mode: str) -> PolicyOutput:
        return super().act(obs, carry, is_first, mode=mode)


@pytest.mark.parametrize("policy", [ArrayPolicy, OwnAct])
def test_acting_on_arrays_gives_the_same_rollout_and_is_not_for_an_act_of_a_subclass(policy, tape, same):
    found = []
    for p in (policy(tape), OwnAct()):
        collector = Collector(ScriptedEnv(), p, seed=0)
        collector.reset()
        found.append([collector.collect(n) for n in (1, 4, 3)])
    for (rollout, episodes), (expected, their_episodes) in zip(*found, strict=True):
        assert same(vars(rollout), vars(expected))
        assert episodes == their_episodes
    assert set(tape) == {"array_policy" if policy is ArrayPolicy else "act"}


# Snapshots


def build(env_id: str, *, inexact: bool = False) -> tuple[Collector, PPO]:
    env, defect = VectorEnvFactory(env_id).training(3, inexact=inexact)
    spec = EnvSpec(id=env_id, observation_space=env.single_observation_space, action_space=env.single_action_space)
    algo = PPO(PPOConfig(hidden_sizes=[8]), spec, 3, torch.device("cpu"))
    return Collector(env, algo, seed=0, inexact=defect), algo


def snapshot(collector: Collector, algo: PPO) -> Any:
    """What a checkpoint would hold, through a file."""
    file = io.BytesIO()
    torch.save(plain({"collector": collector.state_dict(), "algo": algo.state_dict(), "rng": GlobalRNG().state_dict()}), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
def test_collector_continues_bit_exactly_amid_episodes(env_id, same):
    collector, algo = build(env_id)
    collector.reset()
    collector.collect(47)
    state = snapshot(collector, algo)
    assert max(state["collector"]["length"].tolist()) > 0
    expected = [collector.collect(n) for n in (1, 90, 120)]

    again, algo = build(env_id)
    algo.load_state_dict(state["algo"])
    again.load_state_dict(state["collector"])
    GlobalRNG().load_state_dict(state["rng"])
    for n, (rollout, episodes) in zip((1, 90, 120), expected, strict=True):
        actual, their_episodes = again.collect(n)
        assert same(vars(actual), vars(rollout))
        assert their_episodes == episodes
    assert sum(len(episodes) for _, episodes in expected) >= 3
    assert same(again.state_dict(), collector.state_dict())


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_collector_state_stands_still_while_the_collector_and_its_heir_go_on(env_id, same):
    collector, algo = build(env_id)
    collector.reset()
    collector.collect(13)
    state, frozen = collector.state_dict(), snapshot(collector, algo)["collector"]
    collector.collect(13)
    assert same(plain(state), frozen)
    heir, _ = build(env_id)
    heir.load_state_dict(state)
    heir.collect(13)
    assert same(plain(state), frozen)


def test_a_replay_that_goes_elsewhere_is_refused():
    collector, algo = build("Pendulum-v1")
    collector.reset()
    collector.collect(5)
    state = snapshot(collector, algo)["collector"]
    state["env"]["seeds"][2] += 1
    with pytest.raises(CheckpointError, match=r"environment 2 gave the reward"):
        build("Pendulum-v1")[0].load_state_dict(state)


def test_an_inexact_collector_begins_new_episodes():
    collector, algo = build("Pendulum-v1", inexact=True)
    collector.reset()
    collector.collect(5)
    state = snapshot(collector, algo)["collector"]
    assert state["env"] is None
    heir, _ = build("Pendulum-v1", inexact=True)
    heir.load_state_dict(state)
    rollout, _ = heir.collect(2)
    assert rollout.is_first.tolist() == [[YES] * 3, [NO] * 3]
    assert heir.state_dict()["length"].tolist() == [2, 2, 2]
    old, _ = collector.collect(1)
    assert not torch.equal(rollout.obs[0], old.obs[0])


class TreeEnv(ScriptedEnv):
    """The scripted environment under a Dict space; every leaf lies in a buffer that is overwritten."""

    single_observation_space = spaces.Dict({"place": ScriptedEnv.single_observation_space, "step": spaces.Tuple([spaces.Discrete(9)])})

    def _observe(self) -> Any:
        return {"place": super()._observe(), "step": (self.steps,)}


class TreePolicy(CountingPolicy):
    def act(self, obs: Any, carry: Tensor, is_first: Tensor, *, mode: str) -> PolicyOutput:
        action, carry, extras = super().act(obs["place"], carry, is_first, mode=mode)
        return PolicyOutput(action, carry, {"step": obs["step"], **extras})


def test_observations_that_are_trees_are_collected_leaf_by_leaf():
    collector, (flat, _) = Collector(TreeEnv(), TreePolicy(), seed=0), collect(4)
    collector.reset()
    rollout, _ = collector.collect(4)
    for name in ("all_obs", "final_obs", "obs", "next_obs"):
        assert torch.equal(getattr(rollout, name)["place"], getattr(flat, name)), name
    assert rollout.obs["step"][0].T.tolist() == [[0, 1, 0, 1], [0, 1, 2, 0]]
    assert rollout.next_obs["step"][0].T.tolist() == [[1, 2, 1, 2], [1, 2, 3, 1]], "never what a reset showed"
    assert torch.equal(rollout.extras["step"][0], rollout.obs["step"][0])


def test_a_saved_tree_of_observations_stands_still_while_the_collector_goes_on():
    collector = Collector(TreeEnv(), TreePolicy(), seed=0, inexact="scripted")
    collector.reset()
    collector.collect(3)
    state = collector.state_dict()
    collector.collect(1)
    saved = plain(state)["obs"]
    assert saved["place"].tolist() == [[11.0], [110.0]]
    assert saved["step"][0].tolist() == [1, 0]


class LivesEnv(ScriptedEnv):
    """The scripted environment, where env 1 loses a life in step 2 of an episode."""

    def step(self, actions: np.ndarray) -> Any:
        result = super().step(actions)
        return *result[:4], {"life_lost": (self.steps == 2) & [False, True]}


def test_a_lost_life_ends_a_return_in_training_and_nothing_else():
    (expected, episodes), tape, other_tape = collect(7), [], []
    collector = Collector(LivesEnv(tape), CountingPolicy(tape), seed=0)
    collector.reset()
    rollout, found = collector.collect(7)
    lost = torch.tensor([[NO, t % 3 == 1] for t in range(7)])
    assert torch.equal(rollout.terminated, expected.terminated | lost)
    assert lost.any()
    assert not (expected.terminated & lost).any()
    assert found == episodes
    for name in ("all_obs", "action", "reward", "truncated", "is_first", "final_t", "final_b", "final_obs"):
        assert torch.equal(getattr(rollout, name), getattr(expected, name)), name
    plain = Collector(ScriptedEnv(other_tape), CountingPolicy(other_tape), seed=0)
    plain.reset()
    plain.collect(7)
    assert tape == other_tape
    assert torch.equal(collector._carry, plain._carry)


def test_an_episode_that_does_not_end_is_announced_once_because_its_log_grows(monkeypatch):
    monkeypatch.setattr("rlx.envs.vector._LONG_EPISODE", 5)
    env, notes = ReplayVectorEnv(GymVectorEnv(lambda: gymnasium.make("Pendulum-v1"), 1)), []
    env.note = notes.append
    for seed in (1, 2):
        env.reset(seed=[seed])
        for _ in range(8):
            env.step(np.zeros((1, 1), np.float32))
            assert (len(notes) > 0) == (seed == 2 or len(env.state_dict()["actions"][0]) >= 5)
    assert len(notes) == 1
    assert "an episode has not ended for 5 steps" in notes[0]
    env.close()
