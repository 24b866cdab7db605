"""CUDA graphs: many small operations in one launch, because launching each one takes longer than computing it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Replayed:
    """A function from tensors to a tuple of tensors, recorded once for each shape on a CUDA device and then replayed.

    On other devices the function is called. So is a function that cannot be recorded because it reads from the device. Results are the
    same, random numbers included. Tensors that the function uses beside its arguments must keep their memory.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self._function = function
        self._recorded: dict[Any, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], tuple[Tensor, ...]] | None] = {}

    def __call__(self, *args: Tensor) -> tuple[Tensor, ...]:
        if args[0].device.type != "cuda":
            return self._function(*args)
        shapes = tuple(x.shape for x in args)
        if shapes not in self._recorded:
            self._recorded[shapes] = self._record(args)
        recorded = self._recorded[shapes]
        if recorded is None:
            return self._function(*args)
        graph, inputs, outputs = recorded
        for mine, x in zip(inputs, args, strict=True):
            mine.copy_(x)
        graph.replay()
        return tuple(x.clone() for x in outputs)

    def _record(self, args: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], tuple[Tensor, ...]] | None:
        device, inputs = args[0].device, tuple(x.clone() for x in args)
        drawn = torch.cuda.get_rng_state(device)
        aside, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
        aside.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(aside):
                self._function(*inputs)  # memory that a first call allocates must not be allocated while recording
                with warnings.catch_warnings():  # that this mode is a prototype
                    warnings.simplefilter("ignore")
                    torch.cuda.set_sync_debug_mode("error")
                    try:
                        self._function(*inputs)  # a failed recording would leave the random generator in the wrong state
                    except RuntimeError:
                        return None
                    finally:
                        torch.cuda.set_sync_debug_mode("default")
            torch.cuda.current_stream(device).wait_stream(aside)
            with torch.cuda.graph(graph):
                outputs = self._function(*inputs)
        finally:
            torch.cuda.set_rng_state(drawn, device)
        return graph, inputs, outputs
