"""Convolutional encoders of images.

Images are kept as bytes until a minibatch is computed: as floats, a rollout would be four times as large, and copying it would cost
more time than converting it. They are stored with channels last, so that a row is one block of memory and a minibatch needs no
transposition before its convolutions, which are fastest in that layout.
"""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlx.nn import precision
from rlx.nn.leaf_encoders import Encoder
from rlx.types import Tree

LARGE = 36
"""Pixels a side from which the strides of `NatureEncoder` leave something: 36 -> 8 -> 3 -> 1."""


class ImageLayout:
    """How a space's images [*] become [H, W, C].

    The channel axis is the smaller one of the first and the last, the last one if they are equal. A stack of images, [K, H, W, C]
    or [K, C, H, W], is one image with K C channels; an image [H, W] has one channel.
    """

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        shape = space.shape
        if len(shape) not in (2, 3, 4):
            raise ValueError(f"no image: {shape}")
        self.is_stack = len(shape) == 4
        single = shape[-3:] if len(shape) > 2 else (*shape, 1)
        self.channels_first = single[0] < single[-1]
        height, width = single[1:] if self.channels_first else single[:2]
        self.height, self.width = int(height), int(width)
        self.num_channels = math.prod(shape) // (self.height * self.width)

    def __call__(self, images: Tensor) -> Tensor:
        """Images [N, *] to [N, H, W, C], contiguous."""
        n = len(images)
        if self.channels_first:  # [N, (K,) C, H, W]; stacking planes is twice as fast as a transposed copy
            return torch.stack(images.reshape(n, self.num_channels, self.height, self.width).unbind(1), dim=-1)
        if self.is_stack:  # [N, K, H, W, C]
            return images.permute(0, 2, 3, 1, 4).reshape(n, self.height, self.width, self.num_channels)
        return images.reshape(n, self.height, self.width, self.num_channels)


class Conv2d(nn.Conv2d):
    """A convolution in the format of its input, whose weights stay in float32.

    Args:
        scale: factor on the input, applied to the weights: bytes stay exact in bfloat16, and a minibatch is not multiplied.
    """

    bias: Tensor

    def __init__(self, channels: int, filters: int, size: int, stride: int = 1, padding: int = 0, *, scale: float = 1.0) -> None:
        super().__init__(channels, filters, size, stride, padding)
        self.scale = scale
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.scale == 1.0 else self.weight * self.scale
        return F.conv2d(x, weight.to(x.dtype), self.bias.to(x.dtype), self.stride, self.padding)


class Linear(nn.Linear):
    """The same for a dense layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


def initialize(layer: nn.Conv2d | nn.Linear) -> None:
    """Orthogonal weights with gain sqrt(2), zero biases, as in every published PPO on images."""
    nn.init.orthogonal_(layer.weight, gain=2**0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


class NatureEncoder(Encoder):
    """The network of Mnih et al. 2015 (Nature 518, Methods): three convolutions and 512 units with rectifiers.

    Args:
        space: of images of at least `LARGE` pixels a side.
    """

    num_features = 512

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        super().__init__()
        self.layout = ImageLayout(space)
        self.dtype = precision.of_convolutions()
        scale = 1.0 / max(1.0, float(space.high.max())) if space.dtype == np.uint8 else 1.0
        self.conv1 = Conv2d(self.layout.num_channels, 32, 8, 4, scale=scale)
        self.conv2 = Conv2d(32, 64, 4, 2)
        self.conv3 = Conv2d(64, 64, 3)
        height, width = (((pixels - 8) // 4 - 3) // 2 - 1 for pixels in (self.layout.height, self.layout.width))
        self.linear = Linear(64 * height * width, self.num_features)

    def preprocess(self, obs: Tree) -> Tensor:
        """Images [N, *] to [N, H, W, C], bytes where they were bytes."""
        return self.layout(obs)

    def forward(self, inputs: Tree) -> Tensor:
        x = inputs.to(self.dtype).permute(0, 3, 1, 2)  # [N, C, H, W], with channels last in memory
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = F.relu(convolution(x), inplace=True)
        x = x.permute(0, 2, 3, 1).flatten(1)  # a view
        return F.relu(self.linear(x), inplace=True).float()
