"""Rollouts split into minibatches: rows where there is no memory, else whole sequences."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rlx.distributed import World
from rlx.nn.losses import Sequences
from rlx.tree_ops import map_tree
from rlx.types import Tree

Columns = tuple[Tensor | None, ...]


def minibatches(
    inputs: Tree, columns: Columns, sequences: Sequences | None, *, order: Tensor | None, num_minibatches: int
) -> Iterator[tuple[Tree, Columns, Sequences | None]]:
    """Every row once, in `num_minibatches` parts as equal as can be: inputs, columns of M rows, and with a memory the sequences.

    Args:
        inputs: [N, *], or [T, B, *] with `sequences`.
        columns: each [N, *], or [T, B, *] with `sequences`; None stays None.
        sequences: of a network with memory, which visits whole sequences [T] and everything but their inputs as rows of the used steps.
        order: of the rows [N], or of the sequences [B].
        num_minibatches: at most the number of rows or sequences.
    """
    if order is None and num_minibatches > 1:
        rows = next(x for x in columns if x is not None)
        order = torch.arange(rows.shape[0 if sequences is None else 1], device=rows.device)
    parts = [None] if order is None else order.chunk(num_minibatches)
    begins: list[Tensor | None] = [None] * len(parts)
    if sequences is not None and order is not None:  # read the order once, or an accelerator would be waited for at every step
        begins = [sequences.is_first[:, part] for part in order.cpu().chunk(num_minibatches)]
    for part, is_first in zip(parts, begins, strict=True):
        yield _minibatch(inputs, columns, sequences, part, is_first)


def own_parts(order: Tensor, num_envs: int, num_minibatches: int, world: World, *, by_env: bool) -> list[Tensor]:
    """This rank's rows, or environments, of each minibatch of all ranks, on the CPU; some may be empty.

    Args:
        order: of the rows [T * B] of the B environments of all ranks, or of these environments [B].
        num_envs: of this rank.
        num_minibatches: at most len(order).
        world: the ranks.
        by_env: whether `order` is one of environments.
    """
    order, num_all, first = order.cpu(), num_envs * world.size, num_envs * world.rank
    size = -(-len(order) // num_minibatches)  # as of `Tensor.chunk`
    env = order if by_env else order % num_all
    is_own = (env >= first) & (env < first + num_envs)
    own_env = env[is_own] - first
    rows = own_env if by_env else order[is_own] // num_all * num_envs + own_env
    counts = torch.bincount(is_own.nonzero()[:, 0] // size, minlength=-(-len(order) // size))
    return list(rows.split(counts.tolist()))


def part_of(inputs: Tree, columns: Columns, sequences: Sequences | None, part: Tensor | None) -> tuple[Tree, Columns, Sequences | None]:
    """The rows, or the sequences, with these numbers, which are on the CPU; all of them if it is None."""
    is_first = None if sequences is None or part is None else sequences.is_first[:, part]
    device = next(x for x in columns if x is not None).device
    return _minibatch(inputs, columns, sequences, None if part is None else part.to(device), is_first)


def _minibatch(
    inputs: Tree, columns: Columns, sequences: Sequences | None, part: Tensor | None, is_first: Tensor | None
) -> tuple[Tree, Columns, Sequences | None]:
    """The rows with these numbers, or the sequences, whose `is_first` is given."""
    if sequences is None:
        return (inputs, columns, None) if part is None else (_picked(inputs, part), tuple(_picked(x, part) for x in columns), None)
    if part is not None:
        assert is_first is not None
        inputs, columns = _picked(inputs, part, 1), tuple(_picked(x, part, 1) for x in columns)
        sequences = Sequences(_picked(sequences.carry, part), is_first, _picked(sequences.used, part, 1))
    used = sequences.used
    return inputs, tuple(x if x is None else x.flatten(0, 1) if used is None else x[used] for x in columns), sequences


def _picked(tree: Tree, index: Tensor, dim: int = 0) -> Tree:
    """Rows, or columns, of every leaf; `index_select` copies images 15 times as fast as `leaf[index]`."""
    return map_tree(lambda leaf: leaf if leaf is None else leaf.index_select(dim, index), tree)
