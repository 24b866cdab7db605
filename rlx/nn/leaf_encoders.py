"""Encoders of one leaf of an observation, and what every encoder is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlx.nn.normalize import ObservationNormalizer
from rlx.types import Tree

EncoderKind = Literal["auto", "nature", "impala", "grid", "mlp"]


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    kind: EncoderKind = "auto"
    """The network for images; auto chooses by their size. mlp flattens them."""
    observation_clip: float | None = None
    """Normalise vectors and clip them to this many standard deviations; None does not normalise."""


@dataclass(frozen=True, kw_only=True)
class LeafReport:
    """Which encoder one leaf of the observations got."""

    path: str
    """Such as ['camera'][0]; empty where the observation is one array."""
    space: str
    encoder: str
    num_features: int
    num_parameters: int
    reason: str


class Encoder(nn.Module):
    """A function of observations in two parts: `preprocess` has no weights and is computed once per rollout, `forward` is trained.

    A subclass sets `num_features` and overrides what it needs. Algorithms call encoders only through `Network`.
    """

    num_features: int
    """D, the width of the features."""
    has_weights: bool = True
    """Whether `forward` has weights. Without them, `preprocess` returns the features [N, D] and `forward` returns its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.normalizer: ObservationNormalizer | None = None  # running statistics of the observations

    def preprocess(self, obs: Tree) -> Tree:
        """Observations [N, *] to the inputs [N, *] of `forward`."""
        return obs

    def forward(self, inputs: Tree) -> Tensor:
        """Inputs [N, *] to features [N, D]."""
        raise NotImplementedError

    @property
    def is_new(self) -> bool:
        """Whether there are running statistics that have not been updated yet."""
        return self.normalizer is not None and self.normalizer.is_new

    def absorb(self, obs: Tree) -> None:
        """Update running statistics, if there are any, by observations [N, *]."""

    def learning_from(self, obs: Tree) -> AbstractContextManager[None]:
        """A context for learning from a rollout's observations [N, *]; it updates running statistics at the right time."""
        return nullcontext()


class FlatEncoder(Encoder):
    """Observations of a Box as vectors: flattened, bytes scaled to [0, 1], optionally normalised. There are no weights.

    Args:
        space: of single observations.
        observation_clip: normalise observations and clip them to this many standard deviations; None does not normalise.
    """

    has_weights = False

    def __init__(self, space: gymnasium.spaces.Box, *, observation_clip: float | None = None) -> None:
        super().__init__()
        self.num_features = int(np.prod(space.shape, dtype=np.int64))
        self.scale_numpy = byte_scale(space)
        self.scale: Tensor | None
        self.register_buffer("scale", None if self.scale_numpy is None else torch.from_numpy(self.scale_numpy), persistent=False)
        self.normalizer = ObservationNormalizer(self.num_features, clip=observation_clip) if observation_clip else None

    def raw(self, obs: Tensor) -> Tensor:
        """Observations [N, *] as float32 vectors [N, D] before normalisation."""
        vectors = obs.flatten(1).to(torch.float32)
        return vectors if self.scale is None else vectors * self.scale

    def preprocess(self, obs: Tree) -> Tensor:
        raw = self.raw(obs)
        return self.normalizer(raw) if self.normalizer else raw

    def forward(self, inputs: Tree) -> Tensor:
        features: Tensor = inputs
        return features

    def absorb(self, obs: Tree) -> None:
        if self.normalizer:
            self.normalizer.update(self.raw(obs))

    def learning_from(self, obs: Tree) -> AbstractContextManager[None]:
        return self.normalizer.learning_from(self.raw(obs)) if self.normalizer else nullcontext()


def byte_scale(space: gymnasium.spaces.Box) -> NDArray[np.float32] | None:
    """The factor that scales bytes to [0, 1]: a number for a space of bytes, a vector [D] if only some entries are bytes, else None.

    An entry is a byte if its bounds are exactly 0 and 255, as where a dictionary with an image was flattened.
    """
    if space.dtype == np.uint8:
        return np.array(1.0 / max(1.0, float(space.high.max())), dtype=np.float32)
    is_byte = ((space.low == 0) & (space.high == 255)).ravel()
    return np.where(is_byte, np.float32(1.0 / 255.0), np.float32(1.0)) if is_byte.any() else None
