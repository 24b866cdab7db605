"""Trees of tensors between host and device in one transfer: waiting for a transfer costs more than the bytes that it carries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlx.tree_ops import Tree, leaves, map_tree, with_leaves

_ALIGN = 8
"""Bytes that every tensor in a transfer begins at a multiple of, so that it can be seen as its own type."""


def send(device: torch.device, *trees: Tree) -> tuple[Any, ...]:
    """Trees of tensors of the CPU on the device, where they are contiguous; on the CPU the trees themselves."""
    if device.type == "cpu":
        return trees
    tensors = tuple(leaves(trees))
    found: tuple[Any, ...] = with_leaves(trees, _unpack(_pack(tensors).to(device), tensors))
    return found


def send_arrays(device: torch.device, *trees: Tree) -> tuple[Any, ...]:
    """Trees of NumPy arrays as tensors on the device; on the CPU they share the arrays' memory."""
    if device.type == "cpu" and not any(isinstance(tree, dict | tuple | list) for tree in trees):
        return tuple(map(torch.from_numpy, trees))  # once an env step: without a walk through trees that are single arrays
    tensors: tuple[Any, ...] = map_tree(torch.from_numpy, trees)
    if device.type == "mps":  # has no double precision
        return map_tree(lambda x: x.to(device, torch.float32 if x.dtype == torch.float64 else x.dtype), tensors)
    return send(device, *tensors)


def fetch(*trees: Tree) -> tuple[Any, ...]:
    """Trees of tensors of one device as arrays."""
    tensors = tuple(leaves(trees))
    if tensors[0].device.type != "cpu":
        tensors = _unpack(_pack(tensors).cpu(), tensors)
    found: tuple[Any, ...] = with_leaves(trees, (x.numpy() for x in tensors))
    return found


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
