"""MuZero on images: its network, its replay of bytes, runs on the small game of `catch.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerated import check_training
from gymnasium import spaces
from nested import settings_of
from zygote import in_child

from rlx.algos.muzero import MuZero
from rlx.config.algos.muzero_config import Layers, MuZeroConfig
from rlx.models.latent import Bins, FrozenLatent
from rlx.models.latent_images import ImageNet
from rlx.spaces import StackedBox
from rlx.types import EnvSpec, Rollout

CPU = torch.device("cpu")


def images(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def random_images(num: int, space: spaces.Box) -> torch.Tensor:
    return torch.randint(256, (num, *space.shape), dtype=torch.uint8)


@pytest.mark.parametrize(("shape", "latent"), [
    ((4, 84, 84), (6, 6)), ((96, 96, 3), (6, 6)), ((4, 64, 64, 3), (8, 8)), ((210, 160, 3), (7, 5)), ((10, 10), (5, 5)),
    ((7, 7, 3), (7, 7)),
])  # fmt: skip
def test_images_of_any_layout_become_small_planes(shape: tuple[int, ...], latent: tuple[int, int]) -> None:
    net = ImageNet(images(*shape), 3, 11, num_channels=4, num_blocks=1)
    planes = net.represent(random_images(2, images(*shape)))
    assert planes.shape == (2, 4, *latent)
    assert net.step(planes, torch.tensor([0, 2])).shape == planes.shape


def test_a_frozen_copy_computes_what_the_network_does() -> None:
    space = images(4, 40, 40)
    net, bins = ImageNet(space, 3, 11, num_channels=8, num_blocks=1), Bins(5.0, 11)
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    for _ in range(3):  # so that running statistics are not those of the beginning
        net.predict(net.represent(random_images(16, space)))
    net.eval()
    obs = random_images(5, space)
    _, logits, value = FrozenLatent(net, bins).root(obs)
    with torch.no_grad():
        own_logits, own_value = net.predict(net.represent(obs))
    np.testing.assert_allclose(logits, own_logits, atol=1e-5)
    np.testing.assert_allclose(value, bins.decode(own_value), atol=1e-4)


def agent(space: spaces.Box, num_envs: int = 4, **settings: Any) -> MuZero:
    small: dict[str, Any] = {"num_channels": 16, "num_simulations": 4, "batch_size": 8, "replay_start": 16, "replay_size": 500,
                             "num_unroll_steps": 3, "weight_decay": 0.0}  # fmt: skip
    spec = EnvSpec(id="screens", observation_space=space, action_space=spaces.Discrete(3))
    return MuZero(settings_of(MuZeroConfig, **small | settings), spec, num_envs, CPU)


def remember(algo: MuZero, space: spaces.Box, num_steps: int) -> torch.Tensor:
    """Add steps of random images, with an end of all episodes in every sixth; returns the images [T, B, *]."""
    seen = []
    for t in range(num_steps):
        obs, ended = random_images(4, space), t % 6 == 5
        policy = torch.rand(1, 4, 3).softmax(-1)
        algo._add_to_replay(Rollout(
            all_obs=torch.stack([obs, obs]), action=torch.randint(3, (1, 4)), reward=torch.randn(1, 4).round(),
            terminated=torch.full((1, 4), ended), truncated=torch.zeros(1, 4).bool(), is_first=torch.zeros(1, 4).bool(),
            final_t=torch.zeros(4 * ended, dtype=torch.long), final_b=torch.arange(4 * ended), final_obs=obs[: 4 * ended], carry=(),
            extras={"obs": obs[None], "legal": torch.ones(1, 4, 3, dtype=torch.bool), "player": torch.zeros(1, 4), "policy": policy,
                    "root_value": torch.zeros(1, 4)},
        ))  # fmt: skip
        seen.append(obs)
    return torch.stack(seen)


def test_images_stay_bytes_until_they_are_drawn() -> None:
    space = StackedBox(images(4, 12, 12))
    algo = agent(space)
    seen = remember(algo, space, 12)
    unroll = algo.targets(torch.arange(24))
    assert unroll.obs.dtype == torch.uint8
    assert torch.equal(unroll.obs, seen[:6].flatten(0, 1))


def test_one_batch_of_images_can_be_learnt_by_heart() -> None:
    space = images(10, 10)
    algo = agent(space, learning_rate=3e-3)
    assert isinstance(algo.net, ImageNet)
    remember(algo, space, 12)
    unroll = algo.targets(torch.arange(24))
    floor = -(unroll.policy * unroll.policy.log()).nan_to_num() * unroll.has_policy[..., None]
    scale = torch.tensor([1.0, 1 / 3, 1 / 3, 1 / 3])
    for _ in range(150):
        losses, value = algo.losses(unroll)
        algo.optimizer.zero_grad()
        (losses["policy"] + losses["value"] + losses["reward"]).mean().backward()
        algo.optimizer.step()
    assert losses["policy"].mean() < (scale * floor.sum(-1)).sum(1).mean() + 0.1
    assert (value - unroll.value[:, 0]).abs().mean() < 0.2


def test_dense_layers_take_images_too() -> None:
    algo = agent(images(10, 10), layers=Layers.dense)
    assert not isinstance(algo.net, ImageNet)
    assert algo.net.represent(random_images(2, images(10, 10))).shape == (2, 16)


def test_a_run_on_images_resumes_exactly_and_moves_between_devices(tmp_path: Path) -> None:
    in_child(lambda: check_training("muzero-pixels", tmp_path), preload=("accelerated",))
