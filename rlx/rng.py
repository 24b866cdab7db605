"""Every global source of randomness, saved, restored, and kept apart."""

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
    """The state of the global generators of python, numpy and torch, as something that can be checkpointed.

    Of several GPUs that of the current one counts, which is the one that a run is on, whatever its number. A run that goes on on the CPU
    carries the GPU's state along, for when it comes back.
    """

    def __init__(self) -> None:
        self._elsewhere: dict[str, list[torch.Tensor]] = {"cuda": [], "mps": []}

    def state_dict(self) -> State:
        numpy_state: Any = np.random.get_state(legacy=False)
        return {
            "python": random.getstate(),
            "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
            "torch": torch.get_rng_state(),
            # Asking would initialise CUDA, which a run on the CPU does not need.
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
    """Run a block under generators of its own and put the outer ones back, so that evaluating cannot change training."""
    outer = GlobalRNG()
    saved = outer.state_dict()
    seed_everything(int(np.random.SeedSequence([seed, env_steps]).generate_state(1, np.uint64)[0] >> np.uint64(1)))
    try:
        yield
    finally:
        outer.load_state_dict(saved)


_SWAPPING = threading.RLock()
"""Held while the global generators are not in their owner's state."""


class PrivateRNG:
    """The global generators of python, numpy and torch in a state of one's own, for code that draws from them and must not disturb others.

    Args:
        seed: what the state begins from.
        device: whose torch generator is kept beside the CPU's.
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
        """Draw from this state in the block; what was drawn from outside goes on undisturbed after it."""
        with _SWAPPING:
            outer = self._state()
            self._set(self._own)
            try:
                yield
            finally:
                self._own = self._state()
                self._set(outer)
