"""The networks of MuZero: a representation of observations, latent dynamics with rewards, and a prediction of policy and value.

Schrittwieser et al. 2020, https://arxiv.org/abs/1911.08265, eq. 1 and appendices E to G. Boards go through residual convolutions, vectors
through residual layers. Latents are scaled to [0, 1], as there, so that those of the dynamics and of the representation have one range.
Values and rewards are distributions over bins of a squashed scale. Deviations: vectors are passed through symlog first (Hafner et al. 2023,
eq. 9), so that observations of any size need no normaliser; an action enters as a learned bias of the first layer.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rlx.nn.resnet import HEAD_PLANES, Block, conv_bn, fold_block, fold_bn
from rlx.ops import squash, two_hot, unsquash
from rlx.transfer import fetch
from rlx.types import ModelStep

Array = NDArray[np.float32]


class Bins:
    """Encodes numbers within [-limit, limit] as distributions over bins, which are evenly spaced on the squashed scale."""

    def __init__(self, limit: float, num_bins: int, device: torch.device | None = None) -> None:
        self.num_bins = num_bins
        self._squashed_limit = float(squash(torch.tensor(limit, dtype=torch.float64)))
        self._centres = torch.linspace(-self._squashed_limit, self._squashed_limit, num_bins).to(device or "cpu")

    def encode(self, x: Tensor) -> Tensor:
        """Numbers [*] to distributions [*, num_bins]."""
        return two_hot(squash(x), limit=self._squashed_limit, num_bins=self.num_bins)

    def decode(self, logits: Tensor) -> Tensor:
        """Means [*] of the distributions with logits [*, num_bins], on the scale of the numbers."""
        mean = logits.softmax(-1) @ self._centres.to(logits.device)
        return unsquash(mean)


def scale_latent(x: Tensor) -> Tensor:
    """Scale each of x [n, *] to [0, 1] (appendix G)."""
    flat = x.flatten(1)
    low, high = flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)  # `aminmax` has no derivative in torch 2.11
    return ((flat - low) / (high - low).clamp(min=1e-5)).view_as(x)


class _DenseBlock(nn.Module):
    """x + linear(relu(norm(linear(x))))."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(num_channels, num_channels), nn.LayerNorm(num_channels)
        self.outer = nn.Linear(num_channels, num_channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(F.relu(self.norm(self.inner(x))))


class VectorNet(nn.Module):
    """For observations that are vectors; latents are vectors of the same size as the layers.

    Args:
        num_features: D.
        num_actions: A.
        num_bins: of value and of reward.
        num_channels: of every layer.
        num_blocks: residual blocks of the representation and of the dynamics.
    """

    def __init__(self, num_features: int, num_actions: int, num_bins: int, *, num_channels: int, num_blocks: int) -> None:
        super().__init__()
        self.num_actions, self.num_bins = num_actions, num_bins
        self.enter, self.enter_norm = nn.Linear(num_features, num_channels), nn.LayerNorm(num_channels)
        self.representation = nn.Sequential(*[_DenseBlock(num_channels) for _ in range(num_blocks)])
        self.action = nn.Embedding(num_actions, num_channels)
        self.move, self.move_norm = nn.Linear(num_channels, num_channels), nn.LayerNorm(num_channels)
        self.dynamics = nn.Sequential(*[_DenseBlock(num_channels) for _ in range(num_blocks)])
        self.reward = nn.Sequential(nn.Linear(num_channels, num_channels), nn.ReLU(), _zero_linear(num_channels, num_bins))
        self.prediction = nn.Sequential(nn.Linear(num_channels, num_channels), nn.LayerNorm(num_channels), nn.ReLU())
        self.heads = _zero_linear(num_channels, num_actions + num_bins)

    def represent(self, obs: Tensor) -> Tensor:
        """Observations [n, *] to latents [n, num_channels]."""
        obs = obs.flatten(1).float()
        x = F.relu(self.enter_norm(self.enter(obs.sign() * obs.abs().log1p())))
        return scale_latent(self.representation(x))

    def step(self, latent: Tensor, action: Tensor) -> Tensor:
        """Latents [n, *] and actions [n] to the latents after them."""
        x = latent + F.relu(self.move_norm(self.move(latent) + self.action(action)))
        return scale_latent(self.dynamics(x))

    def reward_after(self, latent: Tensor) -> Tensor:
        """Logits [n, num_bins] of the rewards of the steps that led to latents [n, *]."""
        return self.reward(latent)

    def predict(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [n, *] to logits of the policy [n, A] and of the value [n, num_bins]."""
        logits, value = self.heads(self.prediction(latent)).split([self.num_actions, self.num_bins], dim=1)
        return logits, value

    def fold(self) -> None:
        """Merge layers that only training needs apart; there are none here."""


class BoardNet(nn.Module):
    """For observations that are planes [C, H, W]; latents are planes too. Arguments and methods are `VectorNet`'s."""

    def __init__(self, planes_shape: tuple[int, int, int], num_actions: int, num_bins: int, *, num_channels: int, num_blocks: int) -> None:
        super().__init__()
        c, h, w = planes_shape
        self.num_actions, self.num_bins = num_actions, num_bins
        self.latent_shape = (num_channels, h, w)
        self.enter, self.enter_bn = conv_bn(c, num_channels, 3)
        self.representation = nn.Sequential(*[Block(num_channels) for _ in range(num_blocks)])
        self.action = nn.Embedding(num_actions, num_channels * h * w)
        self.move, self.move_bn = conv_bn(num_channels, num_channels, 3)
        self.dynamics = nn.Sequential(*[Block(num_channels) for _ in range(num_blocks)])
        self.reward_conv, self.reward_bn = conv_bn(num_channels, HEAD_PLANES, 1)
        self.reward = nn.Sequential(nn.Linear(HEAD_PLANES * h * w, num_channels), nn.ReLU(), _zero_linear(num_channels, num_bins))
        self.head_conv, self.head_bn = conv_bn(num_channels, 2 * HEAD_PLANES, 1)
        self.policy = _zero_linear(HEAD_PLANES * h * w, num_actions)
        self.value = nn.Sequential(nn.Linear(HEAD_PLANES * h * w, num_channels), nn.ReLU(), _zero_linear(num_channels, num_bins))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def represent(self, obs: Tensor) -> Tensor:
        x = F.relu(self.enter_bn(self.enter(obs.float().contiguous(memory_format=torch.channels_last))))
        return scale_latent(self.representation(x))

    def step(self, latent: Tensor, action: Tensor) -> Tensor:
        moved = self.move_bn(self.move(latent)) + self.action(action).view(-1, *self.latent_shape)
        return scale_latent(self.dynamics(latent + F.relu(moved)))

    def reward_after(self, latent: Tensor) -> Tensor:
        return self.reward(F.relu(self.reward_bn(self.reward_conv(latent))).flatten(1))

    def predict(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        policy, value = F.relu(self.head_bn(self.head_conv(latent))).split(HEAD_PLANES, dim=1)
        return self.policy(policy.flatten(1)), self.value(value.flatten(1))

    def fold(self) -> None:
        for conv, bn in (("enter", "enter_bn"), ("move", "move_bn"), ("reward_conv", "reward_bn"), ("head_conv", "head_bn")):
            fold_bn(self, conv, bn)
        for block in [*self.representation, *self.dynamics]:
            fold_block(block)


LatentNet = VectorNet | BoardNet


def make_net(shape: tuple[int, ...], num_actions: int, num_bins: int, *, num_channels: int, num_blocks: int, convolve: bool) -> LatentNet:
    """The network for observations of a shape; `convolve` needs a shape (C, H, W)."""
    if convolve:
        return BoardNet((shape[0], shape[1], shape[2]), num_actions, num_bins, num_channels=num_channels, num_blocks=num_blocks)
    return VectorNet(math.prod(shape), num_actions, num_bins, num_channels=num_channels, num_blocks=num_blocks)


class FrozenLatent:
    """A copy of a network without gradients: a `rlx.types.Model` whose states are latents, and the network of a tree search.

    `root` and `expand` are for the search: they return predictions with the latents, in one transfer from the device.
    """

    def __init__(self, net: LatentNet, bins: Bins) -> None:
        self.net, self.bins = copy.deepcopy(net).eval().requires_grad_(False), bins
        self.net.fold()

    @torch.inference_mode()
    def initial(self, obs: Tensor, num_candidates: int = 1) -> Tensor:
        """Latents [B * N, *] of observations [B, *]."""
        return self.net.represent(obs).repeat_interleave(num_candidates, 0)

    @torch.inference_mode()
    def step(self, state: Tensor, action: Tensor) -> ModelStep:
        """Latents [n, *] after actions [n], and the rewards [n]; a latent model predicts no terminations."""
        latent = self.net.step(state, action.to(state.device))
        return ModelStep(latent, self.bins.decode(self.net.reward_after(latent)))

    @torch.inference_mode()
    def value(self, state: Tensor) -> Tensor:
        """Values [n] of latents [n, *]."""
        return self.bins.decode(self.net.predict(state)[1])

    @torch.inference_mode()
    def root(self, obs: Tensor) -> tuple[Tensor, Array, Array]:
        """Latents [n, *], logits [n, A] and values [n] of observations [n, *]."""
        latent = self.net.represent(obs)
        logits, value = self.net.predict(latent)
        return (latent, *fetch(logits, self.bins.decode(value)))

    @torch.inference_mode()
    def expand(self, latent: Tensor, action: Tensor) -> tuple[Tensor, Array, Array, Array]:
        """Latents [n, *] after actions [n], rewards [n], and logits [n, A] and values [n] there."""
        latent = self.net.step(latent, action.to(latent.device))
        logits, value = self.net.predict(latent)
        reward_and_value, policy = fetch(self.bins.decode(torch.stack([self.net.reward_after(latent), value])), logits)
        return latent, reward_and_value[0], policy, reward_and_value[1]


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with all parameters 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
