"""Training stops at a loss or gradient that is not finite: on a CPU before the step, on an accelerator before anything is saved."""

from __future__ import annotations

import pytest
import torch
from accelerated import device_here
from torch import nn
from zygote import in_child

from rlx.errors import NonFiniteError
from rlx.nn.optim import FlatAdam
from rlx.nn.resnet import descend


def test_cpu_is_stopped_before_the_step() -> None:
    net = nn.Linear(2, 1)
    optimizer = FlatAdam(net, max_grad_norm=1.0)
    before = net.weight.detach().clone()
    with pytest.raises(NonFiniteError, match="the loss is nan"):
        optimizer.step(torch.tensor(float("nan")), 0.1)
    assert torch.equal(net.weight, before)


@pytest.mark.parametrize("bad", ["check", "state_dict"])
def test_accelerator_is_stopped_by_the_end_of_the_update_and_before_saving(bad: str) -> None:
    def act() -> str:
        with device_here() as device:
            optimizer = FlatAdam(nn.Linear(2, 1).to(device), max_grad_norm=1.0)
            for loss in (0.5, float("inf"), 0.25):
                optimizer.step(torch.tensor(loss, device=device), 0.1)
            with pytest.raises(NonFiniteError) as caught:
                getattr(optimizer, bad)()
        return str(caught.value)

    assert in_child(act).startswith("the loss is inf ")


def test_accelerator_is_stopped_without_being_asked_after_many_steps() -> None:
    def act() -> int:
        with device_here() as device:
            optimizer = FlatAdam(nn.Linear(2, 1).to(device), max_grad_norm=1.0)
            for step in range(1000):
                try:
                    optimizer.step(torch.tensor(float("nan"), device=device), 0.1)
                except NonFiniteError:
                    return step
        return 1000

    assert in_child(act) < 100


def test_descent_that_nobody_watches_is_looked_at_at_once() -> None:
    def act() -> bool:
        with device_here() as device:
            net = nn.Linear(2, 1).to(device)
            with pytest.raises(NonFiniteError):
                descend(torch.optim.Adam(net.parameters()), net.weight.sum() * float("nan"), 0.1)
        return True

    assert in_child(act)


def test_clipping_is_the_same_on_both_devices() -> None:
    def act() -> list[float]:
        with device_here() as device:
            return stepped(device)

    def stepped(device: torch.device) -> list[float]:
        torch.manual_seed(0)
        net = nn.Linear(30, 7)
        gradient = torch.randn(7, 30)
        net.to(device)
        optimizer = FlatAdam(net, max_grad_norm=0.3)
        assert net.weight.grad is not None
        for scale in (1e-3, 1.0, 7.0):
            net.weight.grad.copy_((scale * gradient).to(device))
            optimizer.step(torch.zeros((), device=device), 0.1)
        return net.weight.detach().cpu().flatten().tolist()

    assert in_child(act) == stepped(torch.device("cpu"))
