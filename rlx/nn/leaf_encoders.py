"""Encoders of one leaf of an observation, and what every encoder is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

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
    """The network of images; auto chooses by their size. mlp flattens them."""
    observation_clip: float | None = None
    """Normalise vectors and clip them to this many standard deviations; None does not normalise."""


@dataclass(frozen=True, kw_only=True)
class LeafReport:
    """The encoder of one leaf of the observations."""

    path: str
    """Such as ['camera'][0]; empty where the observation is one array."""
    space: str
    """In a few words, such as 84x84x4 uint8."""
    encoder: str
    num_features: int
    num_parameters: int
    reason: str
    """Why this encoder was chosen."""


class Encoder(nn.Module):
    """A function of observations in two parts: `preprocess` has no weights and is computed once per rollout, `forward` is trained.

    A subclass sets `num_features` and overrides what it needs. Algorithms call encoders only through `Network`.
    """

    num_features: int
    """D, the width of the features."""
    has_weights: bool = True
    """Whether `forward` has weights. Without them, `preprocess` returns the features [N, D] and `forward` returns its inputs."""
    leaf_reports: tuple[LeafReport, ...] = ()
    """What `report` returns; set by `make_encoder`."""

    def __init__(self) -> None:
        super().__init__()
        self.normalizer: ObservationNormalizer | None = None  # running statistics of the observations

    @property
    def leaf_widths(self) -> tuple[int, ...]:
        """Widths of the parts of the features, of which each comes from one leaf of the observations."""
        return (self.num_features,)

    def preprocess(self, obs: Tree) -> Tree:
        """Observations [N, *] to the inputs [N, *] of `forward`."""
        return obs

    def forward(self, inputs: Tree) -> Tensor:
        """Inputs [N, *] to features [N, D]."""
        if self.has_weights:
            raise NotImplementedError
        features: Tensor = inputs
        return features

    def by_leaf(self, inputs: Tree) -> dict[str, Tree]:
        """What the inputs [N, *] hold of each leaf of the observations, by its path such as ['camera'][0]; for people who watch."""
        return {"": inputs}

    @property
    def is_new(self) -> bool:
        """Whether there are running statistics that have not been updated yet."""
        return self.normalizer is not None and self.normalizer.is_new

    def absorb(self, obs: Tree) -> None:
        """Update running statistics, if there are any, by observations [N, *]."""

    def learning_from(self, obs: Tree) -> AbstractContextManager[None]:
        """A context for learning from a rollout's observations [N, *]; it updates running statistics at the right time."""
        return nullcontext()

    def report(self) -> list[LeafReport]:
        """The encoder of each leaf of the observations."""
        return list(self.leaf_reports)


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
        if observation_clip:  # planes may be normalised too, if that is asked for; ones are rare in them by their nature
            self.normalizer = ObservationNormalizer(self.num_features, clip=observation_clip, bounds_rare=space.dtype.kind == "f")

    def raw(self, obs: Tensor) -> Tensor:
        """Observations [N, *] as float32 vectors [N, D] before normalisation."""
        vectors = obs.flatten(1).to(torch.float32)
        return vectors if self.scale is None else vectors * self.scale

    def raw_array(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        """`raw` of an array."""
        vectors = obs.reshape(len(obs), -1).astype(np.float32, copy=False)
        return vectors if self.scale_numpy is None else vectors * self.scale_numpy

    def preprocess_array(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        """`preprocess` of an array."""
        raw, normalizer = self.raw_array(obs), self.normalizer
        if normalizer is None:
            return raw
        return (raw * normalizer.scale.numpy() + normalizer.shift.numpy()).clip(-normalizer.clip, normalizer.clip)

    def preprocess(self, obs: Tree) -> Tensor:
        raw = self.raw(obs)
        return self.normalizer(raw) if self.normalizer else raw

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


def numbers_of(space: gymnasium.spaces.Discrete | gymnasium.spaces.MultiDiscrete) -> tuple[list[int], list[int]]:
    """The number of values of each whole number of a space, and its least values."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return [int(space.n)], [int(space.start)]
    return [int(n) for n in space.nvec.ravel()], [int(start) for start in np.asarray(space.start).ravel()]


class OneHotEncoder(Encoder):
    """Whole numbers, each as a vector of zeros with a one at its value. There are no weights."""

    has_weights = False
    values: Tensor
    number_of: Tensor

    def __init__(self, space: gymnasium.spaces.Discrete | gymnasium.spaces.MultiDiscrete) -> None:
        super().__init__()
        counts, starts = numbers_of(space)
        self.num_features = sum(counts)
        values = [start + i for n, start in zip(counts, starts, strict=True) for i in range(n)]
        self.register_buffer("values", torch.tensor(values), persistent=False)
        self.register_buffer("number_of", torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), persistent=False)

    def preprocess(self, obs: Tree) -> Tensor:
        """[N] or [N, *] to [N, D]."""
        return (obs.reshape(obs.shape[0], -1).index_select(1, self.number_of) == self.values).to(torch.float32)


class EmbeddingEncoder(Encoder):
    """Whole numbers of many values: the sum of a learned vector for the value of each.

    Width 1.6 n^0.56 for n values in all, at most 64: 17 for 65, 52 for 500 (the rule of thumb of fastai's tabular models).
    """

    starts: Tensor
    offsets: Tensor

    def __init__(self, space: gymnasium.spaces.Discrete | gymnasium.spaces.MultiDiscrete) -> None:
        super().__init__()
        counts, starts = numbers_of(space)
        self.num_features = min(64, round(1.6 * sum(counts) ** 0.56))
        self.table = nn.Embedding(sum(counts), self.num_features)
        nn.init.normal_(self.table.weight, std=len(counts) ** -0.5)  # so that the sum has variance 1
        self.register_buffer("offsets", torch.tensor(np.cumsum([0, *counts[:-1]]) - starts), persistent=False)

    def preprocess(self, obs: Tree) -> Tensor:
        """[N] or [N, k...] to rows of the table [N, K]."""
        return obs.reshape(obs.shape[0], -1) + self.offsets

    def forward(self, inputs: Tree) -> Tensor:
        vectors: Tensor = self.table(inputs)
        return vectors.sum(1)


def describe(space: gymnasium.Space[Any]) -> str:
    """A leaf's space in a few words, such as Box(3) or Discrete(4)."""
    if isinstance(space, gymnasium.spaces.Box):
        return f"Box({'x'.join(map(str, space.shape))})"
    if isinstance(space, gymnasium.spaces.Discrete):
        return f"Discrete({space.n})"
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        counts = numbers_of(space)[0]
        return f"MultiDiscrete({', '.join(map(str, counts[:8]))}{', ...' if len(counts) > 8 else ''})"
    if isinstance(space, gymnasium.spaces.MultiBinary):
        return f"MultiBinary({'x'.join(map(str, space.shape))})"
    return type(space).__name__
