"""Columns of a replay: stacks of frames that are stored once per frame, trees, and observations after steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation
from torch import Tensor

from rlx.columns import Column, FrameStacks, columns_of
from rlx.envs.edge import Edge
from rlx.replay import SequenceReplay, TransitionReplay
from rlx.spaces import StackedBox
from rlx.tree_ops import map_tree

K, FRAME = 4, (3, 5)


class Stacking:
    """Random episodes of one environment that stacks frames, with zeros or the first frame before an episode."""

    def __init__(self, seed: int, *, zeros: bool) -> None:
        self._rng, self._zeros = np.random.default_rng(seed), zeros
        self.stack = np.zeros((K, *FRAME), dtype=np.uint8)
        self.begin()

    def _frame(self) -> np.ndarray:
        return self._rng.integers(256, size=FRAME, dtype=np.uint8)

    def begin(self) -> None:
        first = self._frame()
        self.stack = np.stack([*[np.zeros_like(first) if self._zeros else first] * (K - 1), first])

    def step(self) -> tuple[np.ndarray, bool, bool]:
        """The stack after a step, and whether the episode terminated or was truncated with it."""
        self.stack = np.concatenate([self.stack[1:], self._frame()[None]])
        end = self._rng.random()
        return self.stack, end < 0.15, 0.15 <= end < 0.3


def steps(num: int, num_envs: int, *, zeros: bool) -> Iterator[tuple[dict[str, Tensor], dict[tuple[int, int], Tensor], Tensor]]:
    """Rows [1, B, *] of each step, the observations after truncations, and the true successors [B, k, *]."""
    envs = [Stacking(seed, zeros=zeros) for seed in range(num_envs)]
    for _ in range(num):
        obs, after, beyond = np.stack([env.stack for env in envs]), [], {}
        terminated, truncated = np.zeros((2, 1, num_envs), dtype=bool)
        for b, env in enumerate(envs):
            stack, terminated[0, b], truncated[0, b] = env.step()
            after.append(torch.from_numpy(stack))
            if truncated[0, b]:
                beyond[0, b] = after[-1]
            if terminated[0, b] or truncated[0, b]:
                env.begin()
        rows = {"obs": torch.from_numpy(obs)[None], "is_last": torch.from_numpy(terminated | truncated)}
        yield rows | {"terminated": torch.from_numpy(terminated)}, beyond, torch.stack(after)


def replay(capacity: int, num_envs: int) -> SequenceReplay:
    columns = {"obs": Column(torch.uint8, (K, *FRAME), num_frames=K), "is_last": Column(torch.bool), "terminated": Column(torch.bool)}
    return SequenceReplay(capacity, num_envs, columns, ahead=1, exponent=0.0, correction=0.0)


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize(("capacity", "num_envs"), [(30, 1), (33, 3), (4, 4), (2000, 2)])
def test_stacks_and_their_successors_are_rebuilt_exactly_while_the_oldest_rows_are_overwritten(
    capacity: int, num_envs: int, zeros: bool
) -> None:
    memory = replay(capacity, num_envs)
    kept, after = torch.zeros(2, memory.rows.capacity, K, *FRAME, dtype=torch.uint8)
    for added, (rows, beyond, successors) in enumerate(steps(150, num_envs, zeros=zeros)):
        memory.add(beyond, **rows)
        at = (added * num_envs + torch.arange(num_envs)) % memory.rows.capacity
        kept[at], after[at] = rows["obs"][0], successors
        everything = torch.arange(memory.size)
        assert torch.equal(memory.rows.take("obs", everything), kept[: memory.size])
        if memory.num_ready:
            index = memory.draw_uniformly(20)
            known = ~memory.rows["terminated"][index]
            assert torch.equal(memory.next_obs("obs", index)[known], after[index][known])


def test_a_saved_replay_of_stacks_continues_as_the_one_that_was_not_saved() -> None:
    one, two = replay(33, 3), replay(33, 3)
    stream = list(steps(80, 3, zeros=True))
    for rows, beyond, _ in stream[:40]:
        one.add(beyond, **rows)
    two.load_state_dict(one.state_dict())
    for rows, beyond, _ in stream[40:]:
        for memory in (one, two):
            memory.add(beyond, **rows)
    everything = torch.arange(one.size)
    assert torch.equal(one.rows.take("obs", everything), two.rows.take("obs", everything))
    assert one.state_dict()["rows"] == two.state_dict()["rows"]
    ready = one.draw_uniformly(200).unique()
    assert torch.equal(one.next_obs("obs", ready), two.next_obs("obs", ready))


def test_a_frame_is_stored_once_and_an_episodes_first_stack_whole() -> None:
    column = FrameStacks(Column(torch.uint8, (K, *FRAME), num_frames=K), capacity=100, num_envs=1, device=torch.device("cpu"))
    env = Stacking(0, zeros=False)
    for added in range(20):
        if added == 12:
            env.begin()
        column.add(torch.from_numpy(env.stack)[None, None])
        env.step()
    frames = column.state_dict()["frames"]
    assert frames.end - frames.first == K + 11 + K + 7


def test_rows_that_refer_to_frames_that_were_not_saved_are_refused() -> None:
    def blank() -> FrameStacks:
        return FrameStacks(Column(torch.uint8, (K, *FRAME), num_frames=K), capacity=30, num_envs=1, device=torch.device("cpu"))

    column = blank()
    column.add(torch.randint(256, (20, 1, K, *FRAME), dtype=torch.uint8))
    state = column.state_dict()
    blank().load_state_dict(state)
    for wrong in ({"end": state["frames"].end - 1}, {"first": 1}):
        with pytest.raises(ValueError, match="rows refer to frames that were not saved"):
            blank().load_state_dict(state | {"frames": dataclasses.replace(state["frames"], **wrong)})


def test_observations_that_are_no_consecutive_stacks_are_kept_all_the_same() -> None:
    column = FrameStacks(Column(torch.uint8, (K, *FRAME), num_frames=K), capacity=6, num_envs=2, device=torch.device("cpu"))
    stacks = torch.randint(256, (9, 2, K, *FRAME), dtype=torch.uint8)
    column.add(stacks)
    assert torch.equal(column[torch.arange(6)], stacks[6:].flatten(0, 1))


def test_a_million_steps_of_atari_take_a_quarter_of_their_stacks() -> None:
    column = Column(torch.uint8, (4, 84, 84), num_frames=4)
    assert 7.0e9 < 1_000_000 * column.num_bytes < 7.1e9
    assert Column(torch.uint8, (4, 84, 84)).num_bytes == 28_224


def test_trees_of_observations_are_kept_by_their_space() -> None:
    space = spaces.Dict(
        {"a": spaces.Box(0, 1, (2,), np.float32), "b": spaces.Tuple([spaces.Discrete(5), spaces.Box(0, 255, (3, 2), np.uint8)])}
    )
    memory = TransitionReplay(8, 2, {"obs": columns_of(space), "reward": Column(torch.float32)})
    rows: Any = {"a": torch.rand(6, 2, 2), "b": (torch.randint(5, (6, 2)), torch.randint(255, (6, 2, 3, 2), dtype=torch.uint8))}
    for t in range(6):
        memory.add(obs=map_tree(lambda leaf, t=t: leaf[t : t + 1], rows), reward=torch.zeros(1, 2))
    found = memory.take("obs", torch.tensor([4, 5, 6, 7, 0, 1, 2, 3]))  # the last four steps
    assert torch.equal(found["a"], rows["a"][2:].flatten(0, 1))
    assert torch.equal(found["b"][0], rows["b"][0][2:].flatten())
    assert found["b"][1].dtype == torch.uint8
    copy = TransitionReplay(8, 2, {"obs": columns_of(space), "reward": Column(torch.float32)})
    copy.load_state_dict(memory.state_dict())
    assert torch.equal(copy.take("obs", torch.arange(8))["b"][1], memory.take("obs", torch.arange(8))["b"][1])


class Screens(gymnasium.Env[Any, Any]):
    observation_space = spaces.Box(0, 255, (6, 5), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, **_: Any) -> Any:
        return np.zeros((6, 5), np.uint8), {}

    def step(self, _: Any) -> Any:
        return np.ones((6, 5), np.uint8), 0.0, False, False, {}


class OwnStack(Screens):
    observation_space = spaces.Box(0, 255, (3, 6, 5), np.uint8)
    frame_stack = 3


def test_the_space_says_whether_an_environment_or_its_wrapper_stacks_frames() -> None:
    def seen(env: gymnasium.Env[Any, Any]) -> Any:
        return Edge(env, "x", rescale_actions=False).observation_space

    assert not isinstance(seen(Screens()), StackedBox)
    assert seen(FrameStackObservation(Screens(), 4)).num_frames == 4
    assert seen(OwnStack()).num_frames == 3
    assert columns_of(seen(OwnStack())) == Column(torch.uint8, (3, 6, 5), num_frames=3)
