"""Target networks: copies of a module that follow it, each as one vector."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from rlx.nn.optim import FlatAdam

M = TypeVar("M", bound=nn.Module)


class Target(Generic[M]):
    """A copy of a module whose parameters follow the module's.

    Args:
        module: on its device.
        optimizer: of the module, made before, which holds its parameters as one vector.
    """

    def __init__(self, module: M, optimizer: FlatAdam) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False)
        self._source = optimizer.parameters
        self._vector = self._source.clone()
        offset = 0
        for p in self.module.parameters():
            p.grad = None
            p.data = self._vector[offset : offset + p.numel()].view_as(p)
            offset += p.numel()

    @property
    def vector(self) -> Tensor:
        """All parameters, which the copy's are views of."""
        return self._vector

    @torch.no_grad()
    def move(self, share: float) -> None:
        """Move by this share of the distance: tau of an exponential average, or 1 for a copy."""
        if share == 1.0:
            self._vector.copy_(self._source)
        else:
            self._vector.lerp_(self._source, share)

    def state_dict(self) -> Tensor:
        """The parameters as one vector."""
        return self._vector.clone()

    def load_state_dict(self, vector: Tensor) -> None:
        if vector.shape != self._vector.shape:
            raise ValueError(f"a target network of {len(self._vector):,} numbers was saved as {tuple(vector.shape)}")
        self._vector.copy_(vector)
