"""The encoder from an environment's observations to features, chosen leaf by leaf from the observation space."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.errors import ConfigError
from rlx.nn.convolutions import IMAGE_ENCODERS, ImageLayout, is_spatial, num_codes
from rlx.nn.leaf_encoders import (
    EmbeddingEncoder,
    Encoder,
    EncoderKind,
    EncoderSettings,
    FlatEncoder,
    LeafReport,
    OneHotEncoder,
    describe,
    numbers_of,
)
from rlx.nn.normalize import ObservationNormalizer
from rlx.spaces import ACTION_MASK, ScaledBox, is_masked
from rlx.types import EnvSpec, Tree

_ONE_HOT, _ONE_HOTS = 64, 256
"""Values up to which a Discrete space, and all numbers of a MultiDiscrete space together, are one-hot encoded."""
_FLATTENED = 4096
"""The same for both where everything is to be flattened."""

MakeEncoder = Callable[[EnvSpec, EncoderSettings], Encoder | None]
"""A function from an environment and the settings to an encoder; None if it does not support the observation space."""


class Leaf(NamedTuple):
    """One array of the observations, and the encoder for it."""

    keys: tuple[Any, ...]
    """From the whole observation to the array."""
    encoder: Encoder
    is_vector: bool
    """Whether it may be normalised: no image, no one-hot, no bits, not scaled by the environment."""
    report: LeafReport


class TreeEncoder(Encoder):
    """Encoders of the leaves of a Dict or Tuple observation, and the concatenation of their features.

    Features without weights come first: the vectors, which are normalised together, then one-hot and flattened leaves, in the order of
    the space. All of them are computed once per rollout, as one array. Embeddings and convolutions follow.

    Args:
        leaves: at least one.
        observation_clip: normalise vectors and clip them to this many standard deviations; None does not normalise.
    """

    def __init__(self, leaves: Sequence[Leaf], *, observation_clip: float | None) -> None:
        super().__init__()
        self.num_features = sum(leaf.encoder.num_features for leaf in leaves)
        self.has_weights = any(leaf.encoder.has_weights for leaf in leaves)
        plain = [leaf for leaf in leaves if not leaf.encoder.has_weights]
        self._vectors = [leaf for leaf in plain if leaf.is_vector]
        self._others = [leaf for leaf in plain if not leaf.is_vector]
        self._weighted = [leaf for leaf in leaves if leaf.encoder.has_weights]
        self.encoders = nn.ModuleList(
            [leaf.encoder for leaf in (*self._vectors, *self._others, *self._weighted)]
        )  # moved and saved with it
        width = sum(leaf.encoder.num_features for leaf in self._vectors)
        self.normalizer = ObservationNormalizer(width, clip=observation_clip) if observation_clip and width else None

    @property
    def leaf_widths(self) -> tuple[int, ...]:
        return tuple(leaf.encoder.num_features for leaf in (*self._vectors, *self._others, *self._weighted))

    def preprocess(self, obs: Tree) -> Tree:
        """The features [N, D] if there are no weights; else a tuple of the features without weights, if any, and each encoder's inputs."""
        features = []
        if self._vectors:
            raw = self._raw(obs)
            features.append(self.normalizer(raw) if self.normalizer else raw)
        features += self._preprocessed(self._others, obs)
        inputs = [_concatenated(features)] if features else []
        return (*inputs, *self._preprocessed(self._weighted, obs)) if self.has_weights else inputs[0]

    def forward(self, inputs: Tree) -> Tensor:
        if not self.has_weights:
            features: Tensor = inputs
            return features
        at = len(inputs) - len(self._weighted)  # 1 if there are features without weights, else 0
        encoded = [leaf.encoder(x) for leaf, x in zip(self._weighted, inputs[at:], strict=True)]
        return _concatenated([*inputs[:at], *encoded])

    def by_leaf(self, inputs: Tree) -> dict[str, Tree]:
        plain = [*self._vectors, *self._others]
        parts = list(inputs) if self.has_weights else [inputs]
        features = parts.pop(0).split([leaf.encoder.num_features for leaf in plain], dim=1) if plain else ()
        leaves = [*plain, *self._weighted]
        return {leaf.report.path: part for leaf, part in zip(leaves, [*features, *parts], strict=True)}

    def _raw(self, obs: Tree) -> Tensor:
        """The vectors [N, D] before normalisation."""
        return _concatenated(self._preprocessed(self._vectors, obs))

    @staticmethod
    def _preprocessed(leaves: Sequence[Leaf], obs: Tree) -> list[Tree]:
        return [leaf.encoder.preprocess(functools.reduce(operator.getitem, leaf.keys, obs)) for leaf in leaves]

    def absorb(self, obs: Tree) -> None:
        if self.normalizer:
            self.normalizer.update(self._raw(obs))

    def learning_from(self, obs: Tree) -> AbstractContextManager[None]:
        return self.normalizer.learning_from(self._raw(obs)) if self.normalizer else nullcontext()


def _concatenated(features: list[Tensor]) -> Tensor:
    return features[0] if len(features) == 1 else torch.cat(features, dim=1)


def from_space(spec: EnvSpec, settings: EncoderSettings) -> Encoder:
    """The encoder for any tree of Box, Discrete, MultiDiscrete and MultiBinary spaces. Masks of actions are not encoded.

    Raises:
        ConfigError: for other spaces, and for settings that have no effect.
    """
    space = spec.observation_space
    parts = _parts(space)
    if is_masked(space, spec.action_space):
        parts = [(keys, part) for keys, part in parts if keys != (ACTION_MASK,)]
    if not parts:
        raise ConfigError(f"env={spec.id} observes nothing but {ACTION_MASK}, got {space}: an agent needs something to see")
    if settings.kind in IMAGE_ENCODERS:
        _check_kind(settings.kind, parts, spec.id)
    leaves = [_leaf(keys, part, settings, spec.id) for keys, part in parts]
    if settings.observation_clip and not any(leaf.is_vector for leaf in leaves):
        named = ", ".join(f"{leaf.report.path or 'the observation'} ({leaf.report.space}, {leaf.report.encoder})" for leaf in leaves)
        raise ConfigError(f"algo.normalize_observation=true has no effect: env={spec.id} observes no vectors but {named}; leave it out")
    encoder = leaves[0].encoder if not parts[0][0] else TreeEncoder(leaves, observation_clip=settings.observation_clip)
    encoder.leaf_reports = tuple(leaf.report for leaf in leaves)
    return encoder


ENCODERS: list[MakeEncoder] = [from_space]
"""Tried in this order; insert a maker at the front to have it tried first."""


def make_encoder(spec: EnvSpec, settings: EncoderSettings) -> Encoder:
    """The encoder for the environment's observation space.

    Raises:
        ConfigError: if no maker supports the space.
    """
    for make in ENCODERS:
        if (encoder := make(spec, settings)) is not None:
            if not encoder.leaf_reports:
                encoder.leaf_reports = (_report("", describe(spec.observation_space), encoder, type(encoder).__name__, "of a plug-in"),)
            return encoder
    raise ConfigError(f"env={spec.id} has observation space {spec.observation_space}, for which there is no encoder: wrap the environment")


def _parts(space: gymnasium.Space[Any], keys: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], gymnasium.Space[Any]]]:
    """The leaves of a space, each with its keys."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return [(keys, space)]
    inner: Iterable[tuple[Any, gymnasium.Space[Any]]] = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    return [found for key, part in inner for found in _parts(part, (*keys, key))]


def _path(keys: tuple[Any, ...]) -> str:
    return "".join(f"[{key!r}]" for key in keys)


def _leaf(keys: tuple[Any, ...], space: gymnasium.Space[Any], settings: EncoderSettings, env_id: str) -> Leaf:
    text, is_vector, clip = describe(space), False, settings.observation_clip
    encoder: Encoder
    if isinstance(space, spaces.Box):
        name, reason = _choose(space, settings.kind)
        if name in IMAGE_ENCODERS:
            encoder = IMAGE_ENCODERS[name](space)
            text = f"{ImageLayout(space)} {space.dtype}"
        else:
            is_bits = space.dtype.kind in "biu" and space.high.max() <= 1
            # One array that is flattened is normalised whatever it is: that was asked for, and there is nothing else to normalise.
            is_scaled = isinstance(space, ScaledBox)
            is_vector = not is_scaled and (not keys or not (is_bits or name == "flat"))
            encoder = FlatEncoder(space, observation_clip=clip if is_vector and not keys else None)
            name = "normalised" if is_vector and clip else "scaled" if is_scaled else name
            reason = "the environment scales it" if is_scaled else reason
    elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        total = sum(numbers_of(space)[0])
        limit = _FLATTENED if settings.kind == "mlp" else _ONE_HOT if isinstance(space, spaces.Discrete) else _ONE_HOTS
        is_small = total <= limit
        encoder = OneHotEncoder(space) if is_small else EmbeddingEncoder(space)
        name, reason = "one-hot" if is_small else "embedding", f"{'at most' if is_small else 'more than'} {limit} values"
    elif isinstance(space, spaces.MultiBinary):
        encoder, name, reason = FlatEncoder(spaces.Box(0, 1, space.shape, np.int8)), "bits", "zeros and ones"
    else:
        where = f"the part {_path(keys)} of its observation" if keys else "its observation"
        raise ConfigError(
            f"env={env_id}: {where} is a {type(space).__name__} space, for which there is no encoder; "
            "expected Box, Discrete, MultiDiscrete or MultiBinary: wrap the environment, e.g. in gymnasium.wrappers.FilterObservation"
        )
    return Leaf(keys, encoder, is_vector, _report(_path(keys), text, encoder, name, reason))


def _report(path: str, space: str, encoder: Encoder, name: str, reason: str) -> LeafReport:
    count = sum(p.numel() for p in encoder.parameters())
    return LeafReport(path=path, space=space, encoder=name, num_features=encoder.num_features, num_parameters=count, reason=reason)


def _choose(space: spaces.Box, kind: EncoderKind) -> tuple[str, str]:
    """The name of the encoder for a Box, and why."""
    if not is_spatial(space):
        return "vector", "no image"
    layout, codes = ImageLayout(space), num_codes(space)
    if kind in IMAGE_ENCODERS and layout.smallest_side >= IMAGE_ENCODERS[kind].smallest:
        return kind, f"algo.encoder={kind}"
    if kind == "mlp":
        return "flat", "algo.encoder=mlp"
    if layout.smallest_side >= IMAGE_ENCODERS["nature"].smallest:
        return "nature", f"an image of at least {IMAGE_ENCODERS['nature'].smallest} pixels a side"
    if layout.smallest_side < IMAGE_ENCODERS["grid"].smallest:
        return "flat", "too small for convolutions"
    if space.dtype != np.uint8 and not codes:
        return "flat", "small, and not of bytes"
    if layout.channels_first or layout.num_channels == 1:
        return "flat", "small planes; algo.encoder=grid gives convolutions"
    return "grid", "a board of codes" if codes else "a small image"


def _check_kind(kind: str, parts: Sequence[tuple[tuple[Any, ...], gymnasium.Space[Any]]], env_id: str) -> None:
    """Raise a ConfigError if no leaf can have the network that was asked for."""
    images = {_path(keys): ImageLayout(space) for keys, space in parts if isinstance(space, spaces.Box) and is_spatial(space)}
    least = IMAGE_ENCODERS[kind].smallest
    if any(layout.smallest_side >= least for layout in images.values()):
        return
    if not images:
        raise ConfigError(f"algo.encoder={kind} is a network of images, and env={env_id} observes none; use algo.encoder=auto")
    found = ", ".join(f"{layout}{f' at {path}' * bool(path)}" for path, layout in images.items())
    largest = max(layout.smallest_side for layout in images.values())
    possible = [name for name, encoder in IMAGE_ENCODERS.items() if largest >= encoder.smallest]
    raise ConfigError(f"algo.encoder={kind} takes images of at least {least} pixels a side, and env={env_id} observes {found}; "
                      f"use algo.encoder={' or '.join([*possible, 'auto'])}")  # fmt: skip
