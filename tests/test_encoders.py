"""Encoders of images: what they compute, and that it does not depend on how it is computed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.errors import ConfigError
from rlx.nn.convolutions import GridEncoder, ImageLayout, NatureEncoder
from rlx.nn.encoders import make_encoder
from rlx.nn.leaf_encoders import Encoder, EncoderKind, EncoderSettings
from rlx.nn.precision import convolutions_in
from rlx.spaces import ScaledBox
from rlx.types import EnvSpec, Tree

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
    encoder = make(ATARI)
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


def make(space: spaces.Space, kind: EncoderKind = "auto", observation_clip: float | None = None) -> Encoder:
    spec = EnvSpec(id="Mine-v0", observation_space=space, action_space=spaces.Discrete(2))
    return make_encoder(spec, EncoderSettings(kind=kind, observation_clip=observation_clip))


def batch(space: spaces.Space, num_rows: int) -> Tree:
    """Observations [N, *] as the edge of rlx passes them on."""
    space.seed(0)
    samples = [space.sample() for _ in range(num_rows)]
    return _stacked(space, samples)


def _stacked(space: spaces.Space, samples: list[Any]) -> Tree:
    if isinstance(space, spaces.Dict):
        return {key: _stacked(part, [x[key] for x in samples]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_stacked(part, [x[i] for x in samples]) for i, part in enumerate(space.spaces))
    return torch.from_numpy(np.stack(samples))


CODES = np.broadcast_to(np.array([10, 5, 2], np.uint8), (7, 7, 3))
MINIGRID = spaces.Box(np.zeros_like(CODES), CODES, dtype=np.uint8)
CASES: list[tuple[spaces.Space, str, str, int]] = [
    (spaces.Box(-1, 1, (3, 2)), "auto", "vector", 6),
    (spaces.Discrete(64, start=-3), "auto", "one-hot", 64),
    (spaces.Discrete(500), "auto", "embedding", 52),
    (spaces.MultiDiscrete([3, 5]), "auto", "one-hot", 8),
    (spaces.MultiDiscrete([3, 500]), "auto", "embedding", 52),
    (spaces.MultiBinary([2, 3]), "auto", "bits", 6),
    (spaces.Box(0, 255, (36, 40), np.uint8), "auto", "nature", 512),
    (spaces.Box(0, 255, (16, 20, 3), np.uint8), "impala", "impala", 256),
    (spaces.Box(0, 255, (36, 40, 3), np.uint8), "grid", "grid", 128),
    (spaces.Box(0, 255, (36, 40, 3), np.uint8), "mlp", "flat", 4320),
    (MINIGRID, "auto", "grid", 128),
    (spaces.Box(0, 1, (5, 8, 8), np.uint8), "auto", "flat", 320),
    (spaces.Box(0, 1, (5, 8, 8), np.uint8), "grid", "grid", 128),
    (spaces.Box(-1, 1, (3, 40, 40), np.float32), "auto", "nature", 512),
    (spaces.Box(-1, 1, (3, 30, 40), np.float32), "auto", "flat", 3600),
]


@pytest.mark.parametrize(("space", "kind", "encoder", "num_features"), CASES)
def test_each_space_gets_its_encoder(space, kind, encoder, num_features):
    made = make(space, kind)
    (report,) = made.report()
    assert (report.encoder, report.num_features, made.num_features) == (encoder, num_features, num_features)
    obs = batch(space, 3)
    inputs = made.preprocess(obs)
    features = made(inputs)
    assert features.shape == (3, num_features)
    assert features.dtype == torch.float32
    assert made.has_weights == any(True for _ in made.parameters())
    assert made.has_weights or features is inputs


TREE = spaces.Dict(
    camera=spaces.Box(0, 255, (36, 36, 3), np.uint8),
    inner=spaces.Tuple([spaces.Discrete(3, start=1), spaces.Box(-1, 1, (2,), np.float64)]),
    room=spaces.Discrete(100),
    speed=spaces.Box(-1, 1, (1,)),
    action_mask=spaces.Box(0, 1, (5,), np.bool_),
)


def test_leaves_of_a_tree_are_encoded_each_by_its_own_network_and_the_mask_by_none():
    encoder, obs = make(TREE), batch(TREE, 4)
    assert {r.path: r.encoder for r in encoder.report()} == {
        "['camera']": "nature", "['inner'][0]": "one-hot", "['inner'][1]": "vector", "['room']": "embedding", "['speed']": "vector",
    }  # fmt: skip
    features = encoder(encoder.preprocess(obs))
    assert features.shape == (4, encoder.num_features) == (4, 512 + 3 + 2 + 21 + 1)
    expected = [obs["inner"][1].float(), obs["speed"], nn.functional.one_hot(obs["inner"][0] - 1, 3).float()]
    assert torch.equal(features[:, :6], torch.cat(expected, dim=1))
    features.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())


def test_only_the_vectors_of_a_tree_are_normalised():
    space = spaces.Dict(bits=spaces.MultiBinary(2), door=spaces.Discrete(2), image=MINIGRID, flag=spaces.Box(0, 1, (1,), np.int8),
                        low=spaces.Box(-1, 1, (1,)), speed=spaces.Box(-100, 100, (2,)))  # fmt: skip
    encoder, obs = make(space, "mlp", observation_clip=10.0), batch(space, 50)
    assert not encoder.has_weights
    before = encoder.preprocess(obs)
    assert encoder.is_new
    with encoder.learning_from(obs):
        features = encoder.preprocess(obs)
    assert not encoder.is_new
    assert torch.allclose(features[:, :3].std(0, correction=0), torch.ones(3), atol=1e-3)
    assert torch.equal(features[:, 3:], before[:, 3:])
    normalised = {r.path for r in encoder.report() if r.encoder == "normalised"}
    assert normalised == {"['low']", "['speed']"}


@pytest.mark.parametrize("keys", [(), ("terrain",)])
def test_what_the_environment_has_scaled_is_not_normalised(keys):
    part = ScaledBox(-1, 1, (3,))
    space = spaces.Dict(speed=spaces.Box(-100, 100, (2,)), terrain=part) if keys else part
    encoder, obs = make(space, observation_clip=10.0 if keys else None), batch(space, 50)
    encoder.absorb(obs)
    assert torch.equal(encoder.preprocess(obs)[:, -3:], obs["terrain"] if keys else obs)
    assert encoder.report()[-1].encoder == "scaled"


def test_a_board_of_codes_is_one_hot_before_its_convolutions():
    encoder = make(MINIGRID)
    assert isinstance(encoder, GridEncoder)
    seen: list[Tensor] = []
    encoder.convolutions[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    obs = batch(MINIGRID, 2)
    encoder(encoder.preprocess(obs))
    expected = [nn.functional.one_hot(obs[..., c].long(), n) for c, n in enumerate((11, 6, 3))]
    assert torch.equal(seen[0].permute(0, 2, 3, 1), torch.cat(expected, dim=-1).float())


def test_float_images_are_scaled_by_their_bounds():
    space = spaces.Box(-2, 6, (3, 36, 36), np.float32)
    encoder = make(space)
    seen: list[Tensor] = []
    encoder.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0] * module.scale))
    obs = batch(space, 2)
    encoder(encoder.preprocess(obs))
    assert torch.allclose(seen[0], (obs + 2.0) / 8.0, atol=1e-6)


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        (spaces.Box(-1, 1, (3,)), {"kind": "nature"}, r"env=Mine-v0 observes none; use algo.encoder=auto"),
        (spaces.Dict(map=MINIGRID), {"kind": "impala"}, r"at least 16 pixels a side, .* 7x7x3 at \['map'\]; use algo.encoder=grid or auto"),
        (spaces.Tuple([spaces.Box(0, 9, (2,)), spaces.Text(5)]), {}, r"the part \[1\] of its observation is a Text space"),
        (spaces.Text(5), {}, r"its observation is a Text space, .* expected Box"),
        (spaces.Discrete(4), {"observation_clip": 5.0}, r"normalize_observation=true has no effect: .* \(Discrete\(4\), one-hot\)"),
        (ScaledBox(-1, 1, (3,)), {"observation_clip": 10.0}, r"no vectors but the observation \(Box\(3\), scaled\)"),
        (spaces.Dict(action_mask=spaces.MultiBinary(2)), {}, r"nothing but action_mask"),
    ],
)  # fmt: skip
def test_what_has_no_encoder_and_settings_without_effect_are_refused(space, settings, message):
    with pytest.raises(ConfigError, match=message):
        make(space, **settings)


def test_an_entry_named_action_mask_is_encoded_where_there_is_no_choice_to_mask():
    space = spaces.Dict(action_mask=spaces.Box(-1, 1, (3,)), x=spaces.Discrete(2))
    encoder = make_encoder(EnvSpec(id="Mine-v0", observation_space=space, action_space=spaces.Box(-1, 1, (2,))), EncoderSettings())
    assert [leaf.path for leaf in encoder.report()] == ["['action_mask']", "['x']"]
