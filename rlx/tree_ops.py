"""Trees of arrays: observations, memories and what else has parts. One array is the smallest tree.

A tree is an array, or a dict, tuple or list of trees. Its leaves are NumPy arrays or tensors; nothing here imports torch, so that
environments and worker processes can use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Tree = Any
"""An array or a tensor, or a dict, tuple or list of trees; `()` is a tree without leaves."""


def map_tree(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply a function to every leaf, together with the leaves at the same place of `others`, which have the same structure."""
    if isinstance(tree, dict):
        return {key: map_tree(function, value, *(other[key] for other in others)) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(map_tree(function, *values) for values in zip(tree, *others, strict=True))
    return function(tree, *others)


def leaves(tree: Tree) -> list[Any]:
    """The arrays of a tree, in the order of its keys and places."""
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    if isinstance(tree, tuple | list):
        return [leaf for value in tree for leaf in leaves(value)]
    return [tree]


def named_leaves(tree: Tree, path: str = "") -> list[tuple[str, Any]]:
    """The arrays of a tree, each with its path such as `['camera'][0]`; the path of a single array is empty."""
    if not isinstance(tree, dict | tuple | list):
        return [(path, tree)]
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [leaf for key, value in parts for leaf in named_leaves(value, f"{path}[{key!r}]")]


def with_leaves(tree: Tree, new: Iterable[Any]) -> Tree:
    """A tree of the same structure whose leaves are `new`, in the order of `leaves`."""
    at = iter(new)
    return map_tree(lambda _: next(at), tree)


def pick(tree: Tree, index: Any) -> Tree:
    """`leaf[index]` of every leaf."""
    return map_tree(lambda leaf: leaf[index], tree)


def put(tree: Tree, index: Any, values: Tree) -> None:
    """`leaf[index] = value` for every leaf and the value at its place in `values`."""
    map_tree(lambda leaf, value: leaf.__setitem__(index, value), tree, values)


def batch_size(tree: Tree) -> int:
    """The length of the first axis, which all leaves share."""
    return len(leaves(tree)[0])
