"""The learned model of a grid world, the worlds of imagination, and imagined rollouts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rlx.envs.registry import VectorEnvFactory
from rlx.models.grid import GridModel, Transitions, cell_errors, changed_cells, f1, flip, frame_accuracy, judge, model_loss
from rlx.models.grid_rollouts import CopyGrid, LearnedGrid, PerfectGrid, corrupt, num_bytes, pack, unpack
from rlx.models.unroll import Imagined, every_action_then, unroll
from rlx.nn.optim import FlatAdam
from rlx.types import GridWorld, Model, ModelStep

SHAPE = (4, 7, 7)


def sokoban(num_envs: int, seed: int = 0):
    env = VectorEnvFactory(id="rlx/Sokoban-v0")(num_envs)
    obs, _ = env.reset(seed=np.arange(seed, seed + num_envs))
    return env, obs.copy()


def walk(num_envs: int, num_steps: int) -> tuple[GridWorld, list[tuple[NDArray, ...]]]:
    """Random play: (planes, action, reward, next planes, terminated) of every step; episodes that are solved are begun again."""
    env, obs = sokoban(num_envs)
    steps = []
    for t in range(num_steps):
        action = np.random.randint(4, size=num_envs)
        reached, reward, terminated, _, _ = env.step(action)
        steps.append((obs, action, reward.copy(), reached.copy(), terminated.copy()))
        obs = reached.copy()
        if terminated.any():
            obs = env.reset(seed=np.arange(num_envs) + 1000 * (t + 1), options={"reset_mask": terminated})[0].copy()
    return env.grid, steps


def bits(array: NDArray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).float()


def transitions(num_envs: int, num_steps: int) -> tuple[GridWorld, Transitions]:
    grid, steps = walk(num_envs, num_steps)
    planes, action, _, following, terminated = (np.concatenate(x) for x in zip(*steps, strict=True))
    outcome = np.concatenate([grid.events_of(planes, action, following, terminated), terminated[:, None]], axis=1)
    return grid, Transitions(bits(planes), torch.from_numpy(action), bits(following), torch.from_numpy(outcome))


def uniform(planes: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(planes), 4)


# What is remembered


@pytest.mark.parametrize("shape", [(4, 7, 7), (3, 5, 4), (1, 1, 1), (8, 1, 2)])
def test_frames_come_back_from_their_bits(shape: tuple[int, int, int]) -> None:
    planes = torch.randint(2, (11, *shape)).float()
    packed = pack(planes)
    assert packed.shape == (11, num_bytes(shape))
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, shape), planes)


# Models


def imagine(
    model: Model, policy: Callable[[torch.Tensor], torch.Tensor], planes: torch.Tensor, *, num_actions: int, depth: int
) -> Imagined:
    return unroll(model, model.initial(planes, num_actions), every_action_then(policy, num_actions), depth)


def test_the_perfect_world_is_the_environment_on_random_play() -> None:
    grid, steps = walk(32, 60)
    world = PerfectGrid(grid)
    for planes, action, reward, following, terminated in steps:
        step = world.step(bits(planes), torch.from_numpy(action))
        assert torch.equal(step.state, bits(following))
        assert np.allclose(step.reward.numpy(), reward)
        assert np.array_equal(step.discount.numpy() == 0.0, terminated)
    assert any(terminated.any() for *_, terminated in steps)


def test_nothing_happens_in_a_copy_whatever_is_done() -> None:
    _env, obs = sokoban(5)
    rolled = imagine(CopyGrid(), uniform, bits(obs), num_actions=4, depth=3)
    planes = rolled.states.unflatten(1, (5, 4))
    assert torch.equal(planes, bits(obs)[None, :, None].expand_as(planes))
    assert not rolled.reward.any()
    assert rolled.alive.all()


@pytest.mark.parametrize("share", [0.05, 0.2, 1.0])
def test_corruption_flips_the_share_that_it_is_told(share: float) -> None:
    planes = torch.randint(2, (400, *SHAPE)).float()
    corrupted = corrupt(planes, share)
    assert set(corrupted.unique().tolist()) <= {0.0, 1.0}
    flipped = (corrupted != planes).float()
    assert flipped.mean().item() == pytest.approx(share, abs=0.005)
    assert flipped.mean((0, 2, 3)).tolist() == pytest.approx([share] * 4, abs=0.02)


def test_no_corruption_draws_no_luck() -> None:
    planes = torch.zeros(2, *SHAPE)
    before = torch.get_rng_state()
    assert corrupt(planes, 0.0) is planes
    assert torch.equal(before, torch.get_rng_state())


def test_worlds_are_made_poor_at_every_step() -> None:
    env, obs = sokoban(200)
    for world in (PerfectGrid(env.grid, corrupt_prob=0.1), LearnedGrid(GridModel(SHAPE, 4, 4, num_channels=4, num_layers=1),
                                                                         torch.zeros(4), corrupt_prob=0.1)):  # fmt: skip
        rolled = imagine(world, uniform, bits(obs), num_actions=4, depth=3)
        for k in range(1, 3):  # walls never change by the rules, nor in a new model
            flipped = rolled.states[k, :, 0] != rolled.states[k - 1, :, 0]
            assert flipped[rolled.alive[k] > 0.0].float().mean().item() == pytest.approx(0.1, abs=0.02)


# Imagining


class Counting(CopyGrid):
    """A world of one cell that counts in binary by action + 1, and ends where it would pass 7."""

    shape = (3, 1, 1)

    def step(self, planes: torch.Tensor, action: torch.Tensor) -> ModelStep:
        value = (planes.flatten(1) @ torch.tensor([1.0, 2.0, 4.0])).long() + action + 1
        ended = value > 7
        following = torch.stack([(value >> i) & 1 for i in range(3)], dim=1).float()[:, :, None, None]
        return ModelStep(following, action + 1.0, (~ended).float())


def test_rollouts_begin_with_every_action_and_go_on_with_the_rollout_policy() -> None:
    start = torch.zeros(2, 3, 1, 1)
    start[1, 0] = 1.0  # 0 and 1

    def always_one(planes: torch.Tensor) -> torch.Tensor:
        return torch.tensor([-1e9, 0.0]).expand(len(planes), 2)  # counts by two

    rolled = imagine(Counting(), always_one, start, num_actions=2, depth=3)
    value = rolled.states.flatten(2) @ torch.tensor([1.0, 2.0, 4.0])
    assert value.tolist() == [[1, 2, 2, 3], [3, 4, 4, 5], [5, 6, 6, 7]]
    assert rolled.reward.tolist() == [[1, 2, 1, 2], [2, 2, 2, 2], [2, 2, 2, 2]]
    assert rolled.alive.all()


def test_beyond_an_end_the_last_frame_stands_still_and_is_worth_nothing() -> None:
    start = torch.tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1)  # 6
    rolled = imagine(Counting(), lambda p: torch.zeros(len(p), 2), start, num_actions=2, depth=4)
    assert rolled.alive[:, 1].tolist() == [0.0] * 4
    assert rolled.reward[:, 1].tolist() == [2.0, 0.0, 0.0, 0.0]
    assert torch.equal(rolled.states[:, 1], rolled.states[:1, 1].expand(4, -1, -1, -1))


# The model


def test_the_model_says_at_first_that_hardly_anything_happens() -> None:
    model = GridModel(SHAPE, 4, 4, num_channels=8, num_layers=2)
    _, obs = sokoban(20)
    change, outcome = model(bits(obs), torch.randint(4, (20,)))
    assert change.shape == (20, *SHAPE)
    assert outcome.shape == (20, 5)
    assert (change < 0.0).float().mean() > 0.99


def test_the_tiled_action_is_the_same_as_planes_of_it() -> None:
    model = GridModel(SHAPE, 4, 4, num_channels=8, num_layers=2)
    _, obs = sokoban(6)
    action = torch.tensor([0, 1, 2, 3, 3, 0])
    onehot = torch.nn.functional.one_hot(action, 4).float()[:, :, None, None].expand(-1, -1, 7, 7)
    both = torch.nn.functional.conv2d(torch.cat([bits(obs), onehot], dim=1), torch.cat([model.planes.weight, model.action.weight], dim=1),
                                      model.planes.bias, padding=1)  # fmt: skip
    x = torch.relu(both)
    for layer in model.layers:
        x = layer(x)
    assert torch.allclose(model.change(x), model(bits(obs), action)[0], atol=1e-5)


def test_the_model_overfits_one_batch() -> None:
    torch.manual_seed(1)
    grid, data = transitions(16, 12)
    model = GridModel(grid.planes_shape, 4, len(grid.events), num_channels=24, num_layers=2)
    optimizer = FlatAdam(model, epsilon=1e-8, max_grad_norm=10.0)
    for _ in range(300):
        optimizer.zero_grad()
        loss = model_loss(model, data)
        loss.backward()
        optimizer.step(loss.detach(), 3e-3)
    with torch.no_grad():
        scores = judge(model, data, grid.events)
        assert scores["model/changed_cell_accuracy"] == 1.0
        assert scores["model/frame_accuracy_1"] == 1.0
        assert scores["model/event_f1"] == 1.0
        # As a world it does what the true one does, and so for five steps.
        learned = LearnedGrid(model, torch.from_numpy(grid.event_reward)).step(data.planes, data.action)
        true = PerfectGrid(grid).step(data.planes, data.action)
        assert torch.equal(learned.state, true.state)
        assert torch.allclose(learned.reward, true.reward, atol=0.5)
        assert torch.equal(learned.discount, true.discount)
        steps = [x.view(12, 16, *x.shape[1:]) for x in (data.planes, data.action, data.next_planes)]
        whole = ~data.outcome[:, -1].view(12, 16)[:4].any(0)
        found = frame_accuracy(model, steps[0][0][whole], steps[1][:5][:, whole], steps[2][4][whole])
        assert found["model/frame_accuracy_5"] == 1.0


# Metrics, by hand


def test_cells_that_change_are_counted_by_hand() -> None:
    before = torch.zeros(1, 2, 2, 2)
    after = before.clone()
    after[0, 0, 0, 0] = after[0, 1, 0, 1] = after[0, 0, 1, 1] = 1.0  # three of the four cells change
    predicted = before.clone()
    predicted[0, 0, 0, 0] = 1.0  # right
    predicted[0, 0, 0, 1] = predicted[0, 1, 0, 1] = 1.0  # one plane of the cell is right, the other is not
    predicted[0, 0, 1, 0] = 1.0  # made up
    assert changed_cells(predicted, before, after) == (3, 1)
    assert cell_errors(predicted, before, after).tolist() == [3 / 4]  # (0, 1), (1, 0) and (1, 1), of all four
    assert cell_errors(before, before, before).tolist() == [0.0]
    assert changed_cells(after, before, after) == (3, 3)


def test_flipping_changes_what_the_mask_names() -> None:
    planes = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 1, 2, 2)
    assert flip(planes, torch.tensor([False, True, False, True]).view(1, 1, 2, 2)).flatten().tolist() == [0.0, 1.0, 1.0, 0.0]


def test_f1_by_hand() -> None:
    said, true = torch.tensor([1, 1, 1, 0, 0]).bool(), torch.tensor([1, 1, 0, 1, 0]).bool()
    assert f1(said, true) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert f1(said & False, true & False) is None
    assert f1(said & False, true) == 0.0
