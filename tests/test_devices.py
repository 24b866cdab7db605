"""The device of a run, its requests to other machines, and moving it from one device to another."""

from __future__ import annotations

import copy

import pytest
import torch

from rlx.build import resolve_device, setup_torch
from rlx.config.algo_registry import ALGORITHMS
from rlx.config.compose import Composer
from rlx.config.schema import RunConfig
from rlx.errors import ConfigError
from rlx.rng import GlobalRNG
from rlx.sweep.executors.choose import asks_for_gpu


def compose(words: str) -> RunConfig:
    config: RunConfig = Composer().compose(["recipe=null", *words.split()]).config
    return config


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("algo=ppo env=cartpole algo.hidden_sizes=[512,512]", "cuda"),
        ("algo=ppo env=cartpole", "cpu"),
        ("algo=a2c env=cartpole algo.hidden_sizes=[256,256]", "cpu"),
        ("algo=reinforce env=cartpole algo.hidden_sizes=[64,1024]", "cuda"),
        ("algo=alphazero env=connect_four algo.num_channels=48", "cuda"),
        ("algo=alphazero env=connect_four algo.num_channels=128 algo.num_blocks=10", "cuda"),
        ("algo=alphazero env=tic_tac_toe algo.num_channels=16", "cpu"),
        ("algo=alphago env=connect_four algo.num_channels=64", "cuda"),
        ("algo=muzero env=connect_four algo.num_channels=64", "cuda"),
        ("algo=muzero env=sokoban algo.num_channels=64", "cuda"),
        ("algo=muzero env=tic_tac_toe", "cpu"),
        ("algo=muzero env=cartpole", "cpu"),
        ("algo=i2a env=sokoban algo.num_channels=64", "cuda"),
        ("algo=i2a env=sokoban algo.num_channels=16 algo.num_model_channels=16", "cpu"),
        ("algo=pets env=cartpole_continuous algo.hidden_sizes=[512,512]", "cpu"),
    ],
)
def test_auto_is_the_device_that_was_measured_to_be_faster(words: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(words)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device(config).type == kind
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device(config).type == "cpu"


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_auto_has_an_answer_for_every_algorithm(algo: str) -> None:
    env = "connect_four" if algo in ("alphazero", "alphago") else {"pets": "pendulum", "i2a": "sokoban"}.get(algo, "cartpole")
    assert compose(f"algo={algo} env={env}").gains_from_gpu in (True, False)


@pytest.mark.parametrize(("device", "asks"), [("auto", False), ("cpu", False), ("cuda", True)])
def test_submitting_host_needs_no_gpu_of_its_own(device: str, asks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert asks_for_gpu(compose(f"algo=ppo env=cartpole algo.hidden_sizes=[512,512] runtime.device={device}")) == asks


def test_numbered_gpu_cannot_be_asked_for_elsewhere() -> None:
    with pytest.raises(ConfigError, match=r"say runtime\.device=cuda"):
        asks_for_gpu(compose("algo=ppo env=cartpole runtime.device=cuda:1"))


@pytest.mark.parametrize(("precision", "allowed"), [("highest", False), ("high", True), ("medium", True)])
def test_highest_precision_holds_for_convolutions_too(precision: str, allowed: bool) -> None:
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        setup_torch(compose(f"algo=ppo env=cartpole runtime.precision={precision}"), torch.device("cpu"))
        assert torch.backends.cudnn.allow_tf32 == allowed
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


class Card:
    """torch.cuda of a machine with several GPUs, whose generators are CPU generators."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int, current: int) -> None:
        self.generators = [torch.Generator().manual_seed(i) for i in range(count)]
        self.current = current
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: self.generators[self.current].get_state())
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: self.generators[self.current].set_state(state))

    def draw(self) -> float:
        return torch.rand((), generator=self.generators[self.current]).item()


@pytest.mark.parametrize(("before", "after"), [((1, 0), (8, 5)), ((4, 3), (1, 0)), ((2, 1), (2, 1))])
def test_a_run_keeps_its_gpu_s_generator_on_a_machine_with_other_gpus(
    before: tuple[int, int], after: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card(monkeypatch, *before)
    card.draw()
    state = copy.deepcopy(GlobalRNG().state_dict())
    expected = card.draw()
    card = Card(monkeypatch, *after)
    GlobalRNG().load_state_dict(state)
    assert card.draw() == expected


def test_gpu_s_generator_survives_a_stay_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, 1, 0)
    card.draw()
    state = copy.deepcopy(GlobalRNG().state_dict())
    expected = card.draw()
    Card(monkeypatch, 0, 0)
    on_cpu = GlobalRNG()
    on_cpu.load_state_dict(state)
    state = copy.deepcopy(on_cpu.state_dict())
    card = Card(monkeypatch, 2, 1)
    GlobalRNG().load_state_dict(state)
    assert card.draw() == expected
