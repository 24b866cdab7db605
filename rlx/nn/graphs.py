"""Many small operations as one launch, where there is a CUDA device: their launches would take longer than they do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Replayed:
    """A function of tensors to a tuple of tensors; on a CUDA device it is recorded once for each shape and then replayed.

    Elsewhere, and where it cannot be recorded because it reads from the device, it is called as it is. Numbers are the same either way,
    also those drawn at random. What the function looks at beside its arguments must stay where it is.
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
                self._function(*inputs)  # what is made in a first call must not be made while recording
                with warnings.catch_warnings():  # that this mode is a prototype
                    warnings.simplefilter("ignore")
                    torch.cuda.set_sync_debug_mode("error")
                    try:
                        self._function(*inputs)  # a recording that fails would spoil the generator
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
