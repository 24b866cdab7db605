"""Memories of networks between steps, as a value (`carry`) that is passed in and out."""

from __future__ import annotations

from torch import Tensor, nn

from rlx.types import Tree


class NoMemory(nn.Module):
    """The memory of a feed-forward network: an empty carry, and features that pass unchanged. The interface of every memory."""

    def initial(self, batch_size: int) -> Tree:
        """The carry [B, *] of episodes that begin."""
        return ()

    def step(self, features: Tensor, carry: Tree, is_first: Tensor) -> tuple[Tensor, Tree]:
        """Features [B, D] and the carry of one step to features [B, D'] and the next carry; `is_first` [B] resets the carry."""
        return features, carry

    def unroll(self, features: Tensor, carry: Tree, is_first: Tensor | None) -> Tensor:
        """Features of consecutive steps to the features that `step` returns one step after the other."""
        return features
