"""Functions on several ranks at once, each in a process that is forked from one which has imported torch already."""

from __future__ import annotations

import base64
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zygote

from rlx.distributed import World, join

WAIT_S = 60.0


def on_ranks(size: int, function: Callable[[World], Any], *, preload: tuple[str, ...] = (), on_one_machine: bool = True) -> list[Any]:
    """What a function of the world returns on each of `size` ranks; an exception is returned as its text.

    Args:
        size: number of ranks.
        function: is pickled with its closure; what it returns is pickled too.
        preload: modules that are imported once, for all calls.
        on_one_machine: whether the ranks may share memory.
    """
    answer = zygote.in_child(
        lambda: _run(size, function, on_one_machine), preload=("torch.distributed", "rlx.distributed", "ranks", *preload)
    )
    return [pickle.loads(base64.b64decode(text)) for text in answer]


def _run(size: int, function: Callable[[World], Any], on_one_machine: bool) -> list[str]:
    with tempfile.TemporaryDirectory() as directory:
        children = [_begin(rank, size, function, Path(directory), on_one_machine) for rank in range(size)]
        for child in children:
            os.waitpid(child, 0)
        files = [Path(directory, f"{rank}.answer") for rank in range(size)]
        return [base64.b64encode(file.read_bytes() if file.exists() else pickle.dumps("died")).decode() for file in files]


def _begin(rank: int, size: int, function: Callable[[World], Any], directory: Path, on_one_machine: bool) -> int:
    """The process of one rank."""
    if child := os.fork():
        return child
    try:
        import torch

        torch.set_num_threads(1)
        world = World(rank, size, rank)
        if size > 1:
            join(world, f"file://{directory / 'meet'}", timeout_s=WAIT_S, on_one_machine=on_one_machine)
        answer = pickle.dumps(function(world))
    except BaseException as error:
        answer = pickle.dumps(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    Path(directory, f"{rank}.answer").write_bytes(answer)
    os._exit(0)
