"""Resets of a memory inside a sequence, as steps of their own.

torch's kernels for recurrent networks run a whole sequence in one call, but cannot reset the carry within it. An extra step can: with one
more input, which closes all gates, the carry after the step is zero, and no gradient passes. Each environment's steps are moved back
by the number of its resets, so that T steps become T + (most resets of an environment), always in one call. Cutting the sequences where
any environment resets needs a call for each piece; padding every episode to the longest one doubles the rows of usual rollouts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlx.tree_ops import Tree, map_tree


class ResetSteps:
    """Where the steps of [T, B] are among [L, B] steps that include resets.

    Args:
        is_first: [T, B] bool, on the CPU; in its first row, a carry is reset before the sequence, by `begin`.
        device: of the sequences.
    """

    def __init__(self, is_first: Tensor, device: torch.device) -> None:
        num_steps, num_envs = is_first.shape
        resets = is_first.long()
        resets[0] = 0
        moved_by = resets.cumsum(0)
        self.any = bool(moved_by[-1].any())
        self.length = num_steps + int(moved_by[-1].max())
        env, rows = torch.arange(num_envs), num_steps * num_envs
        place = (torch.arange(num_steps).unsqueeze(1) + moved_by) * num_envs + env  # [T, B] rows of [L * B]
        source = torch.full((self.length * num_envs,), rows)  # the padding at the end of an environment's steps
        source[place.flatten()] = torch.arange(rows)
        source[place[resets.bool()] - num_envs] = rows + 1
        layout = torch.cat((is_first[0].long(), place.flatten(), source)).to(device, non_blocking=True)  # in one transfer
        first, self._place, self._source = layout.split((num_envs, rows, len(source)))
        self._first = first.bool().unsqueeze(1)

    def begin(self, carry: Tree) -> Tree:
        """The carry [B, *] before the first step, as data."""
        return map_tree(lambda x: x.detach().masked_fill(self._first, 0.0), carry)

    def insert(self, x: Tensor) -> Tensor:
        """[T, B, D] to [L, B, D + 1]; the last feature is 1 in a reset, whose other features are 0."""
        extra = x.new_zeros(2, x.shape[-1] + 1)
        extra[1, -1] = 1.0
        rows = torch.cat((torch.nn.functional.pad(x.flatten(0, 1), (0, 1)), extra))
        out: Tensor = _TakeRows.apply(rows, self._source, self._place)
        return out.unflatten(0, (self.length, x.shape[1]))

    def remove(self, x: Tensor) -> Tensor:
        """[L, B, D] to the [T, B, D] of them that are no resets."""
        rows, num_envs = len(self._place), x.shape[1]
        out: Tensor = _TakeRows.apply(x.flatten(0, 1), self._place, self._source.clamp(max=rows))
        return out.unflatten(0, (rows // num_envs, num_envs))


class _TakeRows(torch.autograd.Function):
    """x[index]; its gradient is that of y[back], with zeros beyond y. A scatter would add, in an order that a GPU does not fix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        ctx.rows = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        missing = ctx.rows - len(back)
        if missing > 0:  # the rows that stand for padding and resets, which are constant
            out = grad.new_zeros(ctx.rows, grad.shape[1])
            torch.index_select(grad, 0, back, out=out[: len(back)])
            return out, None, None
        return torch.cat((grad, grad.new_zeros(1, grad.shape[1]))).index_select(0, back), None, None
