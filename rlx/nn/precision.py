"""The number format of convolutions: `runtime.precision=bf16`.

An encoder reads it when it is made and keeps it, so that a policy that was trained in bfloat16 acts in bfloat16 wherever it is loaded.
Weights, gradients, the optimiser, losses and everything behind the encoder stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def bfloat16_instructions(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """What computes bfloat16 on a device: amx_bf16, avx512_bf16, bf16 (Arm) or the kind of accelerator; None where it is emulated."""
    if device.type != "cpu":
        return device.type if device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False) else None
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return None
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.partition(":")[2].split()}
    return next((flag for flag in ("amx_bf16", "avx512_bf16", "bf16") if flag in flags), None)
