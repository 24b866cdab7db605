"""Global random generators: seeding, saving and restoring their state, and isolation."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from rlx.types import State


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class GlobalRNG:
    """The rng state of the global generators of python, numpy and torch, for checkpoints.

    Of several GPUs, only the current one's generator is saved: a run uses one GPU, whose number may change. A run that is resumed on the
    CPU keeps the GPU's rng state in its checkpoints, so that it can be resumed on a GPU again.
    """

    def __init__(self) -> None:
        self._elsewhere: dict[str, list[torch.Tensor]] = {"cuda": [], "mps": []}

    def state_dict(self) -> State:
        numpy_state: Any = np.random.get_state(legacy=False)
        return {
            "python": random.getstate(),
            "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
            "torch": torch.get_rng_state(),
            # torch.cuda.get_rng_state would initialise CUDA, which a run on the CPU does not need.
            "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else list(self._elsewhere["cuda"]),
            "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else list(self._elsewhere["mps"]),
        }

    def load_state_dict(self, state: State) -> None:
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        numpy_state = state["numpy"]
        key = np.array(numpy_state["state"]["key"], dtype=np.uint32)
        np.random.set_state({**numpy_state, "state": {**numpy_state["state"], "key": key}})
        torch.set_rng_state(state["torch"].cpu())
        self._elsewhere = {name: [s.cpu() for s in state[name]] for name in ("cuda", "mps")}
        if state["cuda"] and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(self._elsewhere["cuda"][0])
        if torch.backends.mps.is_available() and state["mps"]:
            torch.mps.set_rng_state(state["mps"][0].cpu())


@contextmanager
def isolated_rng(seed: int, env_steps: int) -> Iterator[None]:
    """Run a block with freshly seeded global generators and restore their state after it, so that evaluation cannot change training."""
    outer = GlobalRNG()
    saved = outer.state_dict()
    seed_everything(int(np.random.SeedSequence([seed, env_steps]).generate_state(1, np.uint64)[0] >> np.uint64(1)))
    try:
        yield
    finally:
        outer.load_state_dict(saved)


_SWAPPING = threading.RLock()
"""Held while the global generators have the state of a `PrivateRNG`."""


class PrivateRNG:
    """A separate rng state for code that draws from the global generators of python, numpy and torch, without changing theirs.

    Args:
        seed: of the initial state.
        device: its torch generator is included, beside the CPU's.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        with isolated_rng(seed, 0):
            self._own = self._state()

    def _state(self) -> tuple[Any, ...]:
        cuda = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda

    def _set(self, state: tuple[Any, ...]) -> None:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])
        if state[3] is not None:
            torch.cuda.set_rng_state(state[3], self._device)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Use this rng state in the block, and restore the outer one after it."""
        with _SWAPPING:
            outer = self._state()
            self._set(self._own)
            try:
                yield
            finally:
                self._own = self._state()
                self._set(outer)
