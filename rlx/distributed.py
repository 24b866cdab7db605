"""One run on many processes: what a rank sends to the others, and what all of them agree on.

All ranks have the same global random state and draw the same global numbers; each uses its share. The environments of rank r are a
contiguous slice of all environments. So the same settings are the same experiment on any number of ranks, up to the order of float sums.

Every method of a `World` of one rank returns its argument, so that nothing else has to ask how many there are. With several ranks all of
them must call a method, in the same order: a rank that is missing is waited for until the timeout.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlx.errors import ConfigError, LostRankError, RankError
from rlx.launcher import MEETING
from rlx.shared_sums import CAPACITY, SharedSums, create, is_possible, process_token

T = TypeVar("T")

TIMEOUT_S = 600.0
"""How long a rank waits for the others. Evaluations and checkpoints of rank 0 count, in which the others wait for it."""

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets."""


@dataclass(frozen=True)
class World:
    """The processes of a run. They are in torch's default process group, so that a copy of a World is as good as the World."""

    rank: int = 0
    """Number of this process, in [0, size)."""
    size: int = 1
    local_rank: int = 0
    """Number of this process among those of its machine: the GPU it uses."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which owns the run's directory."""
        return self.rank == 0

    def share(self, num: int) -> slice:
        """This rank's part of `num` environments.

        Raises:
            ConfigError: if they cannot be divided equally.
        """
        if num % self.size:
            fits = max(n for n in range(1, self.size) if num % n == 0)
            fewer = f"{fits} ranks" if fits > 1 else "one process"
            raise ConfigError(f"env.num_envs={num} cannot be divided among {self.size} ranks: use a multiple of {self.size}, or {fewer}")
        each = num // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def draw(self, like: Tensor, fill: Callable[[Tensor], Tensor]) -> Tensor:
        """Random numbers for this rank's rows `like` [B, *]; each rank draws those of all rows, so that generators stay equal.

        Args:
            like: gives shape, type and device.
            fill: fills a tensor with random numbers, in place.
        """
        if self.size == 1:
            return fill(torch.empty_like(like))
        num = len(like)
        return fill(like.new_empty((num * self.size, *like.shape[1:])))[self.rank * num : (self.rank + 1) * num]

    def sum_(self, x: Tensor) -> Tensor:
        """The sum over ranks, in place; its bits are the same on all ranks."""
        if self.size > 1:
            with _reporting():
                if _shared is not None and x.device.type == "cpu" and x.is_floating_point() and x.nbytes <= CAPACITY and x.is_contiguous():
                    _shared.add(x.detach().flatten().numpy())
                else:
                    torch.distributed.all_reduce(x)
        return x

    def sum_float64(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum over ranks of a few numbers [*], added in the order of ranks: it repeats on every machine."""
        return x if self.size == 1 else self.all_float64(x).sum(0)

    def all_float64(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """A few numbers [*] of every rank, [W, *]."""
        if self.size == 1:
            return x[None]
        found = torch.zeros((self.size, *x.shape), dtype=torch.float64)
        found[self.rank] = torch.from_numpy(np.asarray(x, dtype=np.float64))
        return self.sum_(found).numpy()  # a sum with zeros is exact

    def gather_rows(self, x: Tensor, dim: int = 0) -> Tensor:
        """Per-environment data of all ranks, in the order of the environments along `dim`; each rank's has the same shape."""
        if self.size == 1:
            return x
        mine = x.detach().movedim(dim, 0).contiguous()
        if not mine.numel():
            return mine.new_empty((len(mine) * self.size, *mine.shape[1:])).movedim(0, dim)
        every = mine.new_empty((self.size, *mine.shape))
        sent, received = (y.flatten().view(torch.uint8) for y in (mine, every))  # as bytes: backends lack some types
        with _reporting():
            torch.distributed.all_gather(list(received.chunk(self.size)), sent)
        return every.flatten(0, 1).movedim(0, dim).contiguous()

    def own_rows(self, x: Tensor, dim: int = 0) -> Tensor:
        """This rank's part of what `gather_rows` returned."""
        mine = self.share(x.shape[dim])
        return x if self.size == 1 else x.narrow(dim, mine.start, mine.stop - mine.start).clone()

    def gather(self, value: T) -> list[T] | None:
        """Values of all ranks, by rank, on rank 0; None on the others. For small objects, which are pickled."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.is_first else None
        with _reporting():
            torch.distributed.gather_object(value, found)
        return found

    def broadcast(self, value: T) -> T:
        """Rank 0's value."""
        if self.size == 1:
            return value
        found = [value]
        with _reporting():
            torch.distributed.broadcast_object_list(found)
        return found[0]

    def broadcast_(self, x: Tensor) -> Tensor:
        """Rank 0's numbers, in place."""
        if self.size > 1:
            with _reporting():
                torch.distributed.broadcast(x, 0)
        return x

    def agree(self, flags: int) -> int:
        """The union of bits that ranks set, in [0, 2^63): every rank learns what any of them wants."""
        if self.size == 1:
            return flags
        word = torch.tensor([flags])
        found = torch.empty(self.size, dtype=word.dtype)
        with _reporting():
            torch.distributed.all_gather(list(found.split(1)), word)
        return int(np.bitwise_or.reduce(found.numpy()))

    def check_equal(self, digest: str, what: str = "the parameters") -> None:
        """Compare a digest of something that must be equal on all ranks.

        Raises:
            RankError: on every rank, if it is not.
        """
        if self.size == 1:
            return
        found = self.broadcast(self.gather(digest))
        assert found is not None
        if others := [rank for rank, other in enumerate(found) if other != found[0]]:
            raise RankError(f"{what} of rank {', '.join(map(str, others))} differ from those of rank 0: the ranks run on different "
                            "processors, or versions of rlx or torch; resume the last checkpoint on machines of one kind")  # fmt: skip

    def leave_note(self, key: str, text: str) -> None:
        """Say something that other ranks can still read when this process has ended; nothing where nobody can be reached."""
        if _notes is not None:
            with suppress(RuntimeError):
                _notes.set(key, text)

    def note(self, key: str, *, wait_s: float = 0.0) -> str | None:
        """What a rank has said; None if nothing within a time."""
        deadline = time.monotonic() + wait_s
        while _notes is not None:
            try:
                if _notes.check([key]):
                    return str(_notes.get(key).decode())
            except RuntimeError:  # kept by a process that has ended
                return None
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.05)
        return None

    def close(self) -> None:
        """Leave the group; this process is alone afterwards, but for its notes."""
        global _current, _shared
        if _shared is not None:
            _shared.close()
            _shared = None
        if self.size > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        _current = ALONE


ALONE = World()
"""A run of one process."""
_current = ALONE
_shared: SharedSums | None = None
"""Memory that all ranks share; None if they are on several machines."""
_notes: Any = None
"""The store in which the ranks met."""


def current() -> World:
    """The processes of this run: one, unless `start` joined others."""
    return _current


def launched() -> tuple[int, int]:
    """Rank and number of ranks as the environment of this process gives them, (0, 1) where it was started alone.

    Raises:
        ConfigError: if the environment's variables are incomplete or no numbers.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return 0, 1
    rank, size, _ = _read_environment()
    return rank, size


def _read_environment() -> tuple[int, int, int]:
    """(rank, size, local rank)."""
    needed = _VARIABLES[:3] if MEETING in os.environ else _VARIABLES
    if missing := [name for name in needed if not os.environ.get(name)]:
        raise ConfigError(f"WORLD_SIZE={os.environ['WORLD_SIZE']!r} is set, but not {', '.join(missing)}: start several ranks by "
                          "`rlx train --ranks N` or torchrun, or unset WORLD_SIZE")  # fmt: skip
    numbers = {name: os.environ[name] for name in needed if name != "MASTER_ADDR"}
    for name, text in numbers.items():
        if not (text.isascii() and text.isdecimal()):
            raise ConfigError(f"the environment variable {name} is {text!r}; expected a whole number, as torchrun sets it")
    rank, size, local_rank = (int(numbers[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if not 0 <= local_rank <= rank < size:
        raise ConfigError(
            f"RANK={rank}, LOCAL_RANK={local_rank} and WORLD_SIZE={size} do not fit: expected LOCAL_RANK <= RANK < WORLD_SIZE"
        )
    return rank, size, local_rank


def start(device: str = "cpu", *, timeout_s: float = TIMEOUT_S) -> World:
    """Join the other ranks that torchrun's environment variables name, and make them `current()`.

    Args:
        device: type of device whose tensors are sent, "cpu" or "cuda"; numbers on a CPU can always be sent.
        timeout_s: how long to wait for other ranks, now and in every call.

    Raises:
        ConfigError: if the environment's variables are incomplete or no numbers.
        RankError: if the others cannot be reached in time.
    """
    if launched()[1] == 1:
        return _current
    rank, size, local_rank = _read_environment()
    if os.environ.get("LOCAL_WORLD_SIZE") == str(size) and any(name == "lo" for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the machine's name may have no address
    address = f"file://{os.environ[MEETING]}/meeting" if MEETING in os.environ else "env://"
    on_one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(size)
    return join(World(rank, size, local_rank), address, device=device, timeout_s=timeout_s, on_one_machine=on_one_machine)


def join(world: World, address: str, *, device: str = "cpu", timeout_s: float = TIMEOUT_S, on_one_machine: bool = False) -> World:
    """Join the other ranks at an address as `torch.distributed.init_process_group` takes it, and make them `current()`.

    Ranks that are all on one machine add up small vectors in memory that they share, where that is possible.
    """
    global _current, _notes, _shared
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    with _reporting():
        timeout = timedelta(seconds=timeout_s)
        store, _, _ = next(torch.distributed.rendezvous(address, world.rank, world.size, timeout=timeout))
        store.set_timeout(timeout)
        group = torch.distributed.PrefixStore("group", store)
        torch.distributed.init_process_group(backend, store=group, rank=world.rank, world_size=world.size, timeout=timeout)
        torch.distributed.all_reduce(torch.zeros(1))  # a barrier would use the GPU
        _notes = torch.distributed.PrefixStore("notes", store)
        _shared = _share_memory(world, timeout_s) if on_one_machine else None
    _current = world
    return world


def _share_memory(world: World, timeout_s: float) -> SharedSums | None:
    """Memory for sums that all ranks have opened; None on all of them if it is not to be had."""
    path = world.broadcast(create(world.size) if world.is_first and is_possible() else None)
    tokens = world.broadcast(world.gather(process_token(os.getpid())))
    shared = None
    if path is not None and tokens is not None:
        with suppress(OSError):
            shared = SharedSums(path, world.rank, world.size, tokens, timeout_s)
    failed = world.agree(int(shared is None))
    if world.is_first and path is not None:
        os.unlink(path)
    return None if failed else shared


@contextmanager
def _reporting() -> Iterator[None]:
    """Turn a failure to reach other ranks into a RankError."""
    try:
        yield
    except RuntimeError as error:  # torch.distributed.DistError is one, and gloo raises it directly
        why = " ".join(str(error).split())[:200]
        lost = LostRankError(f"another rank has ended or cannot be reached ({why}): see what it said; `rlx resume` continues from the last "
                             "checkpoint")  # fmt: skip
        lost.detail = why
        raise lost from error
