"""MuZero on images: its network, its replay of bytes, runs on the small game of `catch.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerated import compose, differences, final_state, train
from catch import Catch
from gymnasium import spaces
from nested import settings_of

import rlx
from rlx.algos.muzero import MuZero
from rlx.build import replay_notes
from rlx.config.algos.muzero_config import Layers, MuZeroConfig
from rlx.config.schema import LoopConfig, RunConfig
from rlx.errors import ConfigError
from rlx.models.latent import Bins, FrozenLatent
from rlx.models.latent_images import ImageNet
from rlx.nn.precision import convolutions_in
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


def test_images_are_reduced_in_bfloat16_on_request() -> None:
    space, planes = images(4, 40, 40), []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        with convolutions_in(dtype):
            net = ImageNet(space, 3, 11, num_channels=8, num_blocks=1)
        planes.append(net.reduction(random_images(3, space)))
    assert planes[1].dtype == torch.float32
    assert 1e-6 < (planes[0] - planes[1]).abs().max() < 0.05 * planes[0].abs().max()


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


def test_a_replay_that_does_not_fit_into_memory_is_refused_and_a_large_one_announced() -> None:
    space = StackedBox(images(4, 84, 84))

    def notes(size: int) -> list[str]:
        algo = agent(space, replay_size=size)
        return replay_notes(algo, RunConfig(algo=algo.config, loop=LoopConfig(total_env_steps=2**31 - 1)))

    with pytest.raises(
        ConfigError, match=r"algo.replay_size=2,000,000,000 steps: that takes 14,\d\d\d GB .*; algo.replay_size=[\d_]+ fits"
    ):
        notes(2_000_000_000)
    assert notes(100_000) == ["the replay takes 0.7 GB once it is full; algo.replay_size sets its length"]
    assert notes(5_000) == []


def test_a_decision_is_explained_by_its_search_and_the_report_counts_every_parameter() -> None:
    for space in (images(10, 10), spaces.Box(-1, 1, (3,), np.float32)):
        algo = agent(space)
        obs = torch.from_numpy(np.stack([space.sample(), space.sample()]))
        out, explanation = algo.explain(obs, (), torch.zeros(2, dtype=torch.bool), mode="eval")
        assert explanation.probs is not None
        assert torch.allclose(explanation.probs.sum(dim=1), torch.ones(2))
        assert torch.equal(out.action, algo.act(obs, (), torch.zeros(2, dtype=torch.bool), mode="eval").action)
        report = algo.network_report()
        assert sum(part["num_parameters"] for part in report["parts"]) == report["num_parameters"]


def test_dense_layers_take_images_too() -> None:
    algo = agent(images(10, 10), layers=Layers.dense)
    assert not isinstance(algo.net, ImageNet)
    assert algo.net.represent(random_images(2, images(10, 10))).shape == (2, 16)


SHORT = ("algo.num_channels=4 algo.search.num_simulations=4 algo.batch_size=16 algo.replay_start=60 algo.num_unroll_steps=3 "
         "env.num_envs=3 env.kwargs.frame_stack=3 loop.total_env_steps=90 loop.eval_every=0 log.wandb=disabled")  # fmt: skip


def test_a_run_on_images_is_planned_trained_evaluated_shown_and_loaded(
    here: Path, run_command: Callable[[str], tuple[int, str, str]]
) -> None:
    line = f"train algo=muzero env=catch:Catch {SHORT}"
    code, out, _ = run_command(f"{line} runtime.precision=bf16 --dry-run")
    assert (code, "flattened" in out) == (0, False)
    assert "image 3 x 10 x 10" in " ".join(out.split())
    assert "convolutions to 5 x 5" in " ".join(out.split())
    assert run_command(f"{line} --name a")[0] == 0
    assert "10 episodes" in " ".join(run_command("eval a --episodes 10")[1].replace("deterministic ", "").split())
    assert "muzero on catch:Catch" in run_command("show a")[1]
    assert run_command("watch a --png decision.png")[0] == 0
    policy, env = rlx.load("a"), Catch(frame_stack=3)
    obs, _ = env.reset(seed=0)
    action, _ = policy.act(obs, None)
    assert action in env.action_space


def test_a_run_on_images_that_is_stopped_halfway_ends_as_one_that_is_not(tmp_path: Path) -> None:
    """With episodes that are truncated, and a replay that is full; tests/test_accelerator.py does the same on an accelerator."""
    config = compose("muzero-pixels")
    train(config, tmp_path / "whole", CPU)
    train(config, tmp_path / "halves", CPU, until=config.loop.total_env_steps / 2)
    train(config, tmp_path / "halves", CPU)
    assert differences(final_state(tmp_path / "whole"), final_state(tmp_path / "halves")) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0, 1])
def test_muzero_learns_to_catch_a_ball_that_it_sees(seed: int, here: Path, run_command: Callable[[str], tuple[int, str, str]]) -> None:
    """From -0.7 at random to 0.8 to 1.0 in 12,000 steps, two minutes each."""
    settings = (
        "algo.num_channels=16 algo.batch_size=64 algo.replay_start=500 algo.search.num_simulations=8 algo.learning_rate=3e-3 "
        "algo.anneal_learning_rate=true algo.replay_ratio=16 algo.reanalyse=0.5 algo.steps_per_update=2 env.num_envs=16 "
        "env.kwargs.frame_stack=2 loop.total_env_steps=12000 loop.eval_every=0 log.wandb=disabled"
    )
    assert run_command(f"train algo=muzero env=catch:Catch {settings} --name a seed={seed}")[0] == 0
    found = json.loads(run_command("eval a --episodes 100 --json")[1])
    assert found["return_mean"] > 0.5
