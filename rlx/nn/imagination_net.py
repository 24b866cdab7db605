"""Networks of I2A: the model-free path, the encoder of imagined rollouts, and the rollout policy.

Racaniere et al. 2017, https://arxiv.org/abs/1707.06203, section 3 and appendix B.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shape = tuple[int, int, int]
M = TypeVar("M", nn.Linear, nn.Conv2d)
_SMALL = 144
"""Largest grid, in cells, whose convolutions have stride 1; larger grids are halved."""


class ConvTrunk(nn.Module):
    """3x3 convolutions with ReLUs.

    Args:
        shape: (C, H, W) of the planes.
        num_channels: of every convolution.
        strides: of each convolution.
    """

    def __init__(self, shape: Shape, num_channels: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        inputs, h, w = shape
        self.layers = nn.ModuleList()
        for stride in strides:
            self.layers.append(_initialise(nn.Conv2d(inputs, num_channels, 3, padding=1, stride=stride)))
            inputs, h, w = num_channels, -(-h // stride), -(-w // stride)
        self.num_features = num_channels * h * w

    def forward(self, planes: Tensor) -> Tensor:
        """[n, C, H, W] to [n, num_features]."""
        x = planes
        for layer in self.layers:
            x = F.relu(layer(x))
        return x.permute(0, 2, 3, 1).flatten(1)  # as it lies in memory where channels are last


class RolloutPolicy(nn.Module):
    """The rollout policy pi-hat; small because it is evaluated D * A times as often as the agent's policy."""

    def __init__(self, shape: Shape, num_actions: int, num_channels: int) -> None:
        super().__init__()
        self.trunk = ConvTrunk(shape, num_channels, (2, 1))
        self.logits = _initialise(nn.Linear(self.trunk.num_features, num_actions), gain=0.01)

    def forward(self, planes: Tensor) -> Tensor:
        """[n, C, H, W] to logits [n, A]."""
        return self.logits(self.trunk(planes))


class RolloutEncoder(nn.Module):
    """An LSTM over the frames of a rollout, last frame first, each with its reward as one more plane."""

    def __init__(self, shape: Shape, num_channels: int, size: int) -> None:
        super().__init__()
        c, h, w = shape
        self.trunk = ConvTrunk((c + 1, h, w), num_channels, (2, 1))
        self.size = size
        self.inputs = nn.Linear(self.trunk.num_features, 4 * size)
        self.memory = nn.Linear(size, 4 * size, bias=False)
        with torch.no_grad():
            self.inputs.bias[size : 2 * size] = 1.0  # bias of the forget gate, so that the initial LSTM does not forget

    def forward(self, planes: Tensor, reward: Tensor, order: Tensor) -> Tensor:
        """Encodings [n, size] of rollouts whose frames are rows `order` [D, n] of planes [U, C, H, W] with rewards [U].

        Rollouts share most of their frames, so each frame is convolved once, not once per rollout.
        """
        (d, n), (_, _, height, width) = order.shape, planes.shape
        tiled = reward[:, None, None, None].expand(-1, 1, height, width)
        frames = torch.cat([planes, tiled], dim=1).contiguous(memory_format=torch.channels_last)
        gates = self.inputs(self.trunk(frames)).index_select(0, order.flatten()).unflatten(0, (d, n))
        hidden = cell = planes.new_zeros(n, self.size)
        for k in reversed(range(d)):
            gate = gates[k] if k == d - 1 else torch.addmm(gates[k], hidden, self.memory.weight.t())
            write, forget, read = gate[:, : 3 * self.size].sigmoid().chunk(3, dim=1)
            candidate = gate[:, 3 * self.size :].tanh()
            cell = torch.addcmul(write * candidate, forget, cell)
            hidden = read * cell.tanh()
        return hidden


class I2ANet(nn.Module):
    """Policy and value from planes, with or without encodings of imagined rollouts.

    Args:
        shape: (C, H, W) of the planes.
        num_actions: A.
        num_channels: of the model-free path.
        hidden_size: units of the layer in which both paths meet.
        num_encoder_channels: of the encoder and of the rollout policy.
        encoder_size: units of the encoder's memory; 0 for a network that encodes nothing.
        rolls_out: whether there is a rollout policy.
    """

    def __init__(
        self,
        shape: Shape,
        num_actions: int,
        *,
        num_channels: int,
        hidden_size: int,
        num_encoder_channels: int,
        encoder_size: int,
        rolls_out: bool,
    ) -> None:
        super().__init__()
        self.trunk = ConvTrunk(shape, num_channels, (1, 1, 1 if shape[1] * shape[2] <= _SMALL else 2))
        self.encoder = RolloutEncoder(shape, num_encoder_channels, encoder_size) if encoder_size else None
        self.rollout_policy = RolloutPolicy(shape, num_actions, num_encoder_channels) if rolls_out else None
        self.split = self.trunk.num_features
        self.hidden = nn.Linear(self.split + num_actions * encoder_size, hidden_size)
        with torch.no_grad():
            nn.init.orthogonal_(self.hidden.weight[:, : self.split], gain=2**0.5)
            self.hidden.weight[:, self.split :] = 0.0  # zero initial weights: imagination has no influence until it is trained
            self.hidden.bias.zero_()
        self.policy = _initialise(nn.Linear(hidden_size, num_actions), gain=0.01)
        self.value = _initialise(nn.Linear(hidden_size, 1), gain=1.0)
        self.num_actions = num_actions

    def encode(self, planes: Tensor, reward: Tensor, order: Tensor) -> Tensor:
        """Encodings c_ia [B, A * encoder_size] of rollouts `order` [D, B * A] over planes [U, C, H, W] with rewards [U]."""
        assert self.encoder is not None, "this network has no encoder"
        return self.encoder(planes, reward, order).reshape(-1, self.num_actions * self.encoder.size)

    def forward(self, planes: Tensor, c_ia: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits [B, A] and values [B] of planes [B, C, H, W]; `None` stands for c_ia = 0, without imagination."""
        c_mf = self.trunk(planes)
        if c_ia is None:
            x = F.linear(c_mf, self.hidden.weight[:, : self.split], self.hidden.bias)
        else:
            x = self.hidden(torch.cat([c_mf, c_ia], dim=1))
        x = F.relu(x)
        return self.policy(x), self.value(x)[:, 0]


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _initialise(layer: M, *, gain: float = 2**0.5) -> M:
    """Orthogonal weights, no bias (detail 2 of Huang et al. 2022)."""
    nn.init.orthogonal_(layer.weight, gain=gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
