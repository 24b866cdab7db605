"""CartPole's step and reset for a batch as compiled loops; the order of operations is that of `cartpole.accelerations`.

Multiply-adds are not contracted and nothing is reordered, so that every result has the bits that NumPy gives.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from rlx.envs.control.cartpole_constants import (
    DT,
    FORCE,
    GRAVITY,
    HALF_LENGTH,
    MASS_POLE,
    MAX_STEPS,
    POLE_MASS_LENGTH,
    THETA_LIMIT,
    TOTAL_MASS,
    X_LIMIT,
)
from rlx.kernel_memory import INTEGERS, OPTIONS, bytes_at, doubles, floats, integers


@numba.njit(**OPTIONS)
def _observe(state, obs, i, n):
    for k in range(4):
        obs[4 * i + k] = np.float32(state[k * n + i])


@numba.njit(**OPTIONS)
def step(block):
    """Take one step; block: n, state [4, n], elapsed, actions, sin and cos of the angles, obs [n, 4], terminated and truncated [n]."""
    n, state, elapsed, actions = block[0], doubles(block[1]), integers(block[2]), integers(block[3])
    sines, cosines, obs = doubles(block[4]), doubles(block[5]), floats(block[6])
    terminated, truncated = bytes_at(block[7]), bytes_at(block[8])
    for i in range(n):
        x_dot, theta_dot, sin, cos = state[n + i], state[3 * n + i], sines[i], cosines[i]
        force = FORCE if actions[i] == 1 else -FORCE
        temp = (force + POLE_MASS_LENGTH * (theta_dot * theta_dot) * sin) / TOTAL_MASS
        theta_acc = (GRAVITY * sin - cos * temp) / (HALF_LENGTH * (4.0 / 3.0 - MASS_POLE * (cos * cos) / TOTAL_MASS))
        x_acc = temp - POLE_MASS_LENGTH * theta_acc * cos / TOTAL_MASS
        state[i] += DT * x_dot
        state[n + i] += DT * x_acc
        state[2 * n + i] += DT * theta_dot
        state[3 * n + i] += DT * theta_acc
        elapsed[i] += 1
        terminated[i] = abs(state[i]) > X_LIMIT or abs(state[2 * n + i]) > THETA_LIMIT
        truncated[i] = elapsed[i] >= MAX_STEPS
        _observe(state, obs, i, n)
    return 0


@numba.njit(**OPTIONS)
def reset(block):
    """Begin episodes under a mask [n] with seeds [n]; block: n, state [4, n], elapsed, seeds, mask and obs [n, 4]."""
    n, state, elapsed, seeds = block[0], doubles(block[1]), integers(block[2]), integers(block[3])
    mask, obs = bytes_at(block[4]), floats(block[5])
    for i in range(n):
        if mask[i] != 0:
            elapsed[i] = 0
            for k in range(4):  # splitmix64, as `cartpole.seeded_uniform`
                z = np.uint64(seeds[i]) + np.uint64(k + 1) * np.uint64(0x9E3779B97F4A7C15)
                z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                z = z ^ (z >> np.uint64(31))
                state[k * n + i] = np.float64(z >> np.uint64(11)) * 2.0**-53 * 0.1 - 0.05
        _observe(state, obs, i, n)
    return 0


SIGNATURES = {step: types.int64(INTEGERS), reset: types.int64(INTEGERS)}
"""What is compiled, and for which arguments."""
