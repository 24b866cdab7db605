"""The encoder from an environment's observations to features, chosen by the observation space."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import numpy as np

from rlx.errors import ConfigError
from rlx.nn.convolutions import LARGE, ImageLayout, NatureEncoder
from rlx.nn.leaf_encoders import Encoder, EncoderSettings, FlatEncoder
from rlx.types import EnvSpec

MakeEncoder = Callable[[EnvSpec, EncoderSettings], Encoder | None]
"""A function from an environment and the settings to an encoder; None if it does not support the observation space."""


def _image(spec: EnvSpec, settings: EncoderSettings) -> Encoder | None:
    space = spec.observation_space
    if settings.kind not in ("auto", "nature") or not isinstance(space, gymnasium.spaces.Box) or space.dtype != np.uint8:
        return None
    if len(space.shape) not in (2, 3, 4):
        return None
    layout = ImageLayout(space)
    return NatureEncoder(space) if min(layout.height, layout.width) >= LARGE else None


def _flat(spec: EnvSpec, settings: EncoderSettings) -> Encoder | None:
    space = spec.observation_space
    return FlatEncoder(space, observation_clip=settings.observation_clip) if isinstance(space, gymnasium.spaces.Box) else None


ENCODERS: list[MakeEncoder] = [_image, _flat]
"""Tried in this order; insert a maker at the front to have it tried first."""


def make_encoder(spec: EnvSpec, settings: EncoderSettings) -> Encoder:
    """The encoder for the environment's observation space.

    Raises:
        ConfigError: if no maker supports the space.
    """
    for make in ENCODERS:
        if (encoder := make(spec, settings)) is not None:
            return encoder
    raise ConfigError(f"env={spec.id} has observation space {spec.observation_space}; this algorithm expects a Box: wrap the environment")
