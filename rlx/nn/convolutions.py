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

_CODES = 32
"""Whole numbers below this are codes of what is in a cell, not brightness."""


class ImageLayout:
    """How a space's images [*] become [H, W, C].

    The channel axis is the smaller one of the first and the last, the last one if they are equal. A stack of images, [K, H, W, C]
    or [K, C, H, W], is one image with K C channels; an image [H, W] has one channel.
    """

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        self.shape = space.shape
        self.is_stack = len(self.shape) == 4
        single = self.shape[-3:] if len(self.shape) > 2 else (*self.shape, 1)
        self.channels_first = single[0] < single[-1]
        height, width = single[1:] if self.channels_first else single[:2]
        self.height, self.width = int(height), int(width)
        self.num_channels = math.prod(self.shape) // (self.height * self.width)

    def __call__(self, images: Tensor) -> Tensor:
        """Images [N, *] to [N, H, W, C], contiguous."""
        n = images.shape[0]
        if self.channels_first:  # [N, (K,) C, H, W]; stacking planes is twice as fast as a transposed copy
            return torch.stack(images.reshape(n, self.num_channels, self.height, self.width).unbind(1), dim=-1)
        if self.is_stack:  # [N, K, H, W, C]
            return images.permute(0, 2, 3, 1, 4).reshape(n, self.height, self.width, self.num_channels)
        return images.reshape(n, self.height, self.width, self.num_channels)

    @property
    def smallest_side(self) -> int:
        return min(self.height, self.width)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.num_channels}"


def is_spatial(space: gymnasium.spaces.Box) -> bool:
    """Whether observations have the shape of images: three dimensions, or bytes in two or four (an image without channels, a stack)."""
    return len(space.shape) == 3 or (space.dtype == np.uint8 and len(space.shape) in (2, 4))


def num_codes(space: gymnasium.spaces.Box) -> list[int] | None:
    """The number of codes of each channel of a board; None if the space is no such board: of whole numbers from 0 to 31, some above 1."""
    if space.dtype.kind not in "iu" or space.low.min() < 0 or not 1 < space.high.max() < _CODES:
        return None
    highest = ImageLayout(space)(torch.from_numpy(space.high).unsqueeze(0)).flatten(0, 2).amax(0)
    return [int(code) + 1 for code in highest]


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


class ImageEncoder(Encoder):
    """Convolutions, a dense layer and a rectifier. A subclass sets `num_features`, `smallest` and `convolve`.

    Bytes are scaled to [0, 1], and so are other numbers with finite bounds. On a board of codes (see `num_codes`) every channel is one-hot.

    Args:
        space: of images, see `is_spatial`.
    """

    smallest: int
    """Least pixels a side."""
    linear: Linear
    plane_code: Tensor | None
    plane_channel: Tensor

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        super().__init__()
        self.layout = ImageLayout(space)
        self.dtype = precision.of_convolutions()
        self.codes = num_codes(space)
        low, high = float(space.low.min()), float(space.high.max())
        self.shift, self.scale = 0.0, 1.0
        if space.dtype == np.uint8 and self.codes is None:
            self.scale = 1.0 / max(1.0, high)
        elif self.codes is None and 0.0 < high - low < math.inf:
            self.shift, self.scale = low, 1.0 / (high - low)
        # Of a plane for each code of each channel; None where there are no codes.
        counts = torch.tensor(self.codes or [0])
        code = torch.cat([torch.arange(n) for n in counts.tolist()]).to(torch.uint8)
        self.register_buffer("plane_code", code if self.codes else None, persistent=False)
        self.register_buffer("plane_channel", torch.arange(len(counts)).repeat_interleave(counts), persistent=False)

    @property
    def num_planes(self) -> int:
        """Channels that the convolutions see."""
        return sum(self.codes) if self.codes else self.layout.num_channels

    def preprocess(self, obs: Tree) -> Tensor:
        """Images [N, *] to [N, H, W, C], bytes where they were bytes or codes."""
        return self.layout(obs.to(torch.uint8) if self.codes else obs)

    def forward(self, inputs: Tree) -> Tensor:
        if self.plane_code is not None:
            inputs = inputs.index_select(-1, self.plane_channel) == self.plane_code
        x = (inputs - self.shift if self.shift else inputs).to(self.dtype)
        x = self.convolve(x.permute(0, 3, 1, 2))  # [N, C, H, W], with channels last in memory
        x = x.permute(0, 2, 3, 1).flatten(1)  # a view
        return F.relu(self.linear(x), inplace=True).float()

    def convolve(self, x: Tensor) -> Tensor:
        """Planes [N, C, H, W], not yet scaled, to planes [N, C', H', W']."""
        raise NotImplementedError


class NatureEncoder(ImageEncoder):
    """The network of Mnih et al. 2015 (Nature 518, Methods): three convolutions and 512 units with rectifiers."""

    num_features = 512
    smallest = 36
    """36 -> 8 -> 3 -> 1."""

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        super().__init__(space)
        self.conv1 = Conv2d(self.num_planes, 32, 8, 4, scale=self.scale)
        self.conv2 = Conv2d(32, 64, 4, 2)
        self.conv3 = Conv2d(64, 64, 3)
        height, width = (((pixels - 8) // 4 - 3) // 2 - 1 for pixels in (self.layout.height, self.layout.width))
        self.linear = Linear(64 * height * width, self.num_features)

    def convolve(self, x: Tensor) -> Tensor:
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = F.relu(convolution(x), inplace=True)
        return x


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv2d(filters, filters, 3, padding=1), Conv2d(filters, filters, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(F.relu(self.conv1(F.relu(x)), inplace=True))
        return x + y


class ImpalaEncoder(ImageEncoder):
    """The residual network of IMPALA (Espeholt et al. 2018, https://arxiv.org/abs/1802.01561, figure 3) without its memory.

    Three times a convolution, a pooling that halves the image and two residual blocks, with 16, 32 and 32 filters; then 256 units.
    """

    num_features = 256
    smallest = 16

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        super().__init__(space)
        self.stages = nn.ModuleList()
        channels, height, width = self.num_planes, self.layout.height, self.layout.width
        for i, filters in enumerate((16, 32, 32)):
            scale = 1.0 if i else self.scale
            self.stages.append(
                nn.Sequential(
                    Conv2d(channels, filters, 3, padding=1, scale=scale), nn.MaxPool2d(3, 2, 1), Residual(filters), Residual(filters)
                )
            )
            channels, height, width = filters, (height + 1) // 2, (width + 1) // 2
        self.linear = Linear(channels * height * width, self.num_features)

    def convolve(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return F.relu(x, inplace=True)


class GridEncoder(ImageEncoder):
    """Three 2x2 convolutions with 16, 32 and 64 filters, as minigrid's documentation uses, and 128 units, with rectifiers.

    The second and the third one halve a board of more than 16 cells a side.
    """

    num_features = 128
    smallest = 4

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        super().__init__(space)
        self.convolutions = nn.ModuleList()
        channels, height, width = self.num_planes, self.layout.height, self.layout.width
        later = 2 if min(height, width) > 16 else 1
        for i, filters in enumerate((16, 32, 64)):
            stride = later if i else 1
            self.convolutions.append(Conv2d(channels, filters, 2, stride, scale=1.0 if i else self.scale))
            channels, height, width = filters, (height - 2) // stride + 1, (width - 2) // stride + 1
        self.linear = Linear(channels * height * width, self.num_features)

    def convolve(self, x: Tensor) -> Tensor:
        for convolution in self.convolutions:
            x = F.relu(convolution(x), inplace=True)
        return x


IMAGE_ENCODERS: dict[str, type[ImageEncoder]] = {"nature": NatureEncoder, "impala": ImpalaEncoder, "grid": GridEncoder}
