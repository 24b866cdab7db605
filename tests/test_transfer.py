"""Several tensors in one transfer arrive as they were sent."""

from __future__ import annotations

import numpy as np
import torch
from accelerated import REAL, device_here
from zygote import in_child

from rlx.transfer import fetch, send

MIXED = (
    torch.arange(7, dtype=torch.uint8), torch.tensor([True, False, True]), torch.tensor(2.5), torch.zeros(0, 3, dtype=torch.int64),
    torch.randn(3, 4).t(), torch.arange(5), torch.randn(2, 3, dtype=torch.float64), torch.ones(1, dtype=torch.int64).expand(4),
    torch.from_numpy(np.full(1, 9)), torch.as_strided(torch.ones(1), (1,), (0,)), torch.randn(2, 3, 4, 5)[:, 1:2],
)  # fmt: skip


def test_tensors_of_any_kind_go_there_and_back_in_one_transfer_each() -> None:
    def act() -> list[int]:
        with device_here() as device:
            sent = send(device, *MIXED)
            assert all(x.device.type == device.type for x in sent)
            back = fetch(*sent)
            for x, y, z in zip(MIXED, back, sent, strict=True):
                assert (x.dtype, x.shape) == (z.dtype, z.shape)
                assert x.numpy().dtype == y.dtype
                np.testing.assert_array_equal(x.numpy(), y)
            if REAL:
                return [1, 1]
            from accelerator import METER

            return [METER.counts["writes"], METER.counts["reads"]]

    assert in_child(act) == [1, 1]


def test_cpu_copies_nothing() -> None:
    assert all(x is y for x, y in zip(send(torch.device("cpu"), *MIXED), MIXED, strict=True))
    assert all(np.shares_memory(x, y.numpy()) for x, y in zip(fetch(*MIXED), MIXED, strict=True) if y.numel())
