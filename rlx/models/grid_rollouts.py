"""Models of grid worlds to imagine with: learned, the true rules, or one that copies its state; and imagined frames as bits.

Racaniere et al. 2017, https://arxiv.org/abs/1707.06203, section 3.2. States are planes [n, C, H, W] of zeros and ones, as float32.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from rlx.models.grid import GridModel, flip
from rlx.types import GridWorld, ModelStep


class _GridModel:
    """Base of the models of grid worlds: a state is an observation."""

    def initial(self, obs: Tensor, num_candidates: int = 1) -> Tensor:
        """States [B * N, C, H, W] from planes [B, C, H, W]; the N candidates of one observation are neighbours."""
        return obs.repeat_interleave(num_candidates, 0).contiguous(memory_format=torch.channels_last)


class LearnedGrid(_GridModel):
    """A learned model: frames are rounded to bits, the reward is the expected one.

    Args:
        model: predicts changes and events.
        event_reward: [E] reward of each event.
        corrupt_prob: probability of each bit of a predicted frame to be flipped, for experiments with a poor model.
    """

    def __init__(self, model: GridModel, event_reward: Tensor, *, corrupt_prob: float = 0.0) -> None:
        self._model, self._event_reward, self._corrupt_prob = model, event_reward, corrupt_prob

    def step(self, planes: Tensor, action: Tensor) -> ModelStep:
        change, outcome = self._model(planes, action)
        planes = corrupt(flip(planes, change > 0.0), self._corrupt_prob)
        return ModelStep(planes, outcome[:, :-1].sigmoid() @ self._event_reward, (outcome[:, -1] <= 0.0).float())


class CopyGrid(_GridModel):
    """A model whose frames never change: the control arm, in which imagination carries no information."""

    def step(self, planes: Tensor, action: Tensor) -> ModelStep:
        nothing = planes.new_zeros(len(planes))
        return ModelStep(planes, nothing, nothing + 1.0)


class PerfectGrid(_GridModel):
    """The true rules. Their random events are drawn from a generator that torch's seeds."""

    def __init__(self, grid: GridWorld, *, corrupt_prob: float = 0.0) -> None:
        self._grid, self._corrupt_prob = grid, corrupt_prob

    def step(self, planes: Tensor, action: Tensor) -> ModelStep:
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        reached, events, terminated = self._grid.step(planes.cpu().numpy().astype(np.uint8), action.cpu().numpy(), rng)
        following = torch.from_numpy(reached).to(planes).contiguous(memory_format=torch.channels_last)
        reward = torch.from_numpy(events.astype(np.float32) @ self._grid.event_reward).to(planes)
        discount = torch.from_numpy(~terminated).to(planes)
        return ModelStep(corrupt(following, self._corrupt_prob), reward, discount)


def corrupt(planes: Tensor, share: float) -> Tensor:
    """Planes with this share of their bits flipped, each independently of the others."""
    return flip(planes, torch.rand_like(planes) < share) if share > 0.0 else planes


# Frames as bits: imagined frames in a rollout take an eighth of the memory of bytes, a thirty-second of that of floats.


def num_bytes(planes_shape: tuple[int, int, int]) -> int:
    """Bytes of one frame of bits."""
    c, h, w = planes_shape
    return -(-c * h * w // 8)


@functools.cache
def _weights(device: torch.device) -> Tensor:
    return torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=device)


@functools.cache
def _bits_of(device: torch.device) -> Tensor:
    """[256, 8] the bits of every byte, the highest first, as float32."""
    byte = torch.arange(256, device=device)
    return torch.stack([(byte >> shift) & 1 for shift in range(7, -1, -1)], dim=1).to(torch.float32)


def pack(planes: Tensor) -> Tensor:
    """Planes [n, C, H, W] of zeros and ones as bytes [n, num_bytes], channels last within a cell."""
    flat = (planes.permute(0, 2, 3, 1).flatten(1) != 0).to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % 8))
    return (flat.unflatten(1, (-1, 8)) * _weights(planes.device)).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, planes_shape: tuple[int, int, int]) -> Tensor:
    """The planes [n, C, H, W] of `pack`, as float32 with channels last in memory."""
    c, h, w = planes_shape
    flat = torch.nn.functional.embedding(packed.int(), _bits_of(packed.device)).flatten(1)
    return flat[:, : c * h * w].reshape(-1, h, w, c).permute(0, 3, 1, 2)


@functools.cache
def _multipliers(count: int, device: torch.device) -> Tensor:
    """Odd 64-bit numbers [count], always the same."""
    numbers = np.random.default_rng(0).integers(-(2**62), 2**62, size=count)
    return torch.from_numpy(2 * numbers + 1).to(device)


def distinct(packed: Tensor, reward: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct ones of n frames with their rewards.

    They are compared by a hash of 64 bits: one pair in 2^64 different ones collides.

    Args:
        packed: [n, bytes] of `pack`.
        reward: [n] float32.

    Returns:
        Rows [U] of the distinct ones, and for each of the n its index [n] among these.
    """
    weights = _multipliers(packed.shape[1] + 1, packed.device)
    marks = (packed * weights[:-1]).sum(-1) + reward.contiguous().view(torch.int32).long() * weights[-1]
    found, place = torch.unique(marks, return_inverse=True)
    rows = torch.empty(len(found), dtype=torch.int64, device=packed.device)
    rows[place] = torch.arange(len(packed), device=packed.device)
    return rows, place
