"""Encoders of images: what they compute, and that it does not depend on how it is computed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.nn.convolutions import ImageLayout, NatureEncoder
from rlx.nn.encoders import make_encoder
from rlx.nn.leaf_encoders import EncoderSettings
from rlx.nn.precision import convolutions_in
from rlx.types import EnvSpec

ATARI = spaces.Box(0, 255, (4, 84, 84), np.uint8)
SMALL = spaces.Box(0, 255, (2, 36, 40), np.uint8)
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def bytes_of(space: spaces.Box, num_rows: int) -> Tensor:
    return torch.randint(0, 256, (num_rows, *space.shape), dtype=torch.uint8)


def nature(space: spaces.Box, dtype: torch.dtype = torch.float32) -> NatureEncoder:
    torch.manual_seed(0)
    with convolutions_in(dtype):
        return NatureEncoder(space)


def test_an_atari_observation_gets_the_nature_network():
    spec = EnvSpec(id="x", observation_space=ATARI, action_space=spaces.Discrete(2))
    encoder = make_encoder(spec, EncoderSettings())
    assert isinstance(encoder, NatureEncoder)
    assert encoder.has_weights
    assert sum(p.numel() for p in encoder.parameters()) == 1_684_128
    assert encoder.preprocess(bytes_of(ATARI, 3)).dtype == torch.uint8


def test_features_are_those_of_the_published_layers_on_images_scaled_to_one():
    encoder = nature(SMALL)
    images = bytes_of(SMALL, 3)
    weights = [(p.weight, p.bias) for p in (encoder.conv1, encoder.conv2, encoder.conv3)]
    x = images / 255.0
    for (weight, bias), stride in zip(weights, (4, 2, 1), strict=True):
        x = nn.functional.conv2d(x, weight, bias, stride).relu()
    expected = nn.functional.linear(x.permute(0, 2, 3, 1).flatten(1), encoder.linear.weight, encoder.linear.bias).relu()
    assert torch.allclose(encoder(encoder.preprocess(images)), expected, atol=1e-5)


def test_gradients_in_bfloat16_point_where_those_of_float32_do():
    images, grads = bytes_of(SMALL, 8), {}
    for dtype in (torch.float32, torch.bfloat16):
        encoder = nature(SMALL, dtype)
        features = encoder(encoder.preprocess(images))
        assert features.dtype == torch.float32
        features.square().sum().backward()
        grads[dtype] = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
    assert torch.cosine_similarity(*grads.values(), dim=0) > 0.999


@PRECISIONS
def test_a_rows_features_do_not_depend_on_the_batch(dtype):
    encoder = nature(ATARI, dtype)
    inputs = encoder.preprocess(bytes_of(ATARI, 64))
    with torch.no_grad():
        assert torch.equal(encoder(inputs)[:8], encoder(inputs[:8]))


@PRECISIONS
def test_gradients_have_the_same_bits_twice(dtype):
    encoder = nature(SMALL, dtype)
    inputs = encoder.preprocess(bytes_of(SMALL, 32))
    first, second = (torch.autograd.grad(encoder(inputs).square().sum(), list(encoder.parameters())) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize(
    ("shape", "channels_at", "expected"),
    [
        ((40, 50), (..., 7, 9), (40, 50, 1)),
        ((3, 40, 50), (..., 7, 9), (40, 50, 3)),
        ((40, 50, 3), (7, 9), (40, 50, 3)),
        ((4, 40, 50, 3), (slice(None), 7, 9), (40, 50, 12)),
        ((4, 3, 40, 50), (..., 7, 9), (40, 50, 12)),
    ],
)
def test_the_channel_axis_is_found_and_stacks_become_channels(shape, channels_at, expected):
    images = torch.arange(2 * math.prod(shape)).view(2, *shape)
    found = ImageLayout(spaces.Box(0, 255, shape, np.uint8))(images)
    assert found.shape == (2, *expected)
    assert found.is_contiguous()
    assert torch.equal(found[1, 7, 9], images[1][channels_at].flatten())


def test_initial_weights_are_orthogonal_and_biases_zero():
    for layer in [m for m in nature(SMALL).modules() if isinstance(m, nn.Conv2d | nn.Linear)]:
        rows = layer.weight.detach().flatten(1)
        rows = rows if len(rows) <= rows.shape[1] else rows.T
        assert torch.allclose(rows @ rows.T, 2.0 * torch.eye(len(rows)), atol=1e-4)
        assert layer.bias is not None
        assert not layer.bias.any()
