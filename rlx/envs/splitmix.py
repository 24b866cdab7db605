"""Random numbers inside numba kernels: splitmix64 (Steele, Lea and Flood 2014), whose rng state is one number."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_STEP = np.uint64(0x9E3779B97F4A7C15)


@numba.njit(cache=True, nogil=True)
def mix(number: Any) -> Any:
    """The hash of a uint64, uint64."""
    z = number + _STEP
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def below(rng_state: Array, i: int, limit: int) -> Any:
    """A random integer in [0, limit), limit < 2**31; advances rng_state[i], which is int64 so that torch can save it."""
    rng_state[i] += np.int64(-7046029254386353131)  # the step as a signed number
    return np.int64(((mix(np.uint64(rng_state[i])) >> np.uint64(33)) * np.uint64(limit)) >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def happens(rng_state: Array, i: int, probability: float) -> Any:
    """True with this probability; advances rng_state[i]."""
    rng_state[i] += np.int64(-7046029254386353131)
    return np.float64(mix(np.uint64(rng_state[i])) >> np.uint64(11)) * 2.0**-53 < probability


@numba.njit(cache=True, nogil=True)
def streams(seeds: Array) -> Array:
    """The initial rng state of each seed, int64 [n]; neighbouring seeds give unrelated streams."""
    rng_state = np.empty(len(seeds), dtype=np.int64)
    for i in range(len(seeds)):
        rng_state[i] = np.int64(mix(np.uint64(seeds[i])))
    return rng_state
