"""Several tensors between host and device in one transfer: each one that a GPU waits for costs more than what it carries."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGN = 8
"""Bytes that every tensor in a transfer begins at a multiple of, so that it can be seen as its own type."""


def send(device: torch.device, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of the CPU on the device, where they are contiguous; on the CPU the tensors themselves."""
    if device.type == "cpu":
        return tensors
    return _unpack(_pack(tensors).to(device), tensors)


def fetch(*tensors: Tensor) -> tuple[NDArray[Any], ...]:
    """Tensors of one device as arrays."""
    if tensors[0].device.type == "cpu":
        return tuple(x.numpy() for x in tensors)
    return tuple(x.numpy() for x in _unpack(_pack(tensors).cpu(), tensors))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _pack(tensors: tuple[Tensor, ...]) -> Tensor:
    parts = [_bytes(x) for x in tensors]
    return torch.cat([torch.nn.functional.pad(part, (0, -len(part) % _ALIGN)) for part in parts])


def _bytes(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().view(-1)
    if flat.stride(0) != 1:  # of at most one element, where any stride counts as contiguous
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)


def _unpack(packed: Tensor, like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    out, at = [], 0
    for x in like:
        out.append(packed[at : at + _size(x)].view(x.dtype).view(x.shape))
        at += _size(x) + -_size(x) % _ALIGN
    return tuple(out)
