"""The number format of convolutions: `runtime.precision=bf16`.

An encoder reads it when it is made and keeps it, so that a policy that was trained in bfloat16 acts in bfloat16 wherever it is loaded.
Weights, gradients, the optimiser, losses and everything behind the encoder stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_convolutions = torch.float32


def of_convolutions() -> torch.dtype:
    """float32 or bfloat16."""
    return _convolutions


@contextmanager
def convolutions_in(dtype: torch.dtype) -> Iterator[None]:
    """A context in which encoders are made for this format."""
    global _convolutions
    before, _convolutions = _convolutions, dtype
    try:
        yield
    finally:
        _convolutions = before
