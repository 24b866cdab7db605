"""MuZero's network for images: they are reduced to small planes, which go through the network for boards.

Schrittwieser et al. 2020, appendix F: strided convolutions, residual blocks and average pooling, 96 x 96 pixels to 6 x 6. Deviation, for
a laptop: one block for each halving, none above 24 pixels a side, and as many halvings as bring an image to 8 pixels a side or fewer.
"""

from __future__ import annotations

import gymnasium
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlx.models.latent import BoardNet
from rlx.nn import precision
from rlx.nn.convolutions import ImageLayout
from rlx.nn.resnet import Block, conv_bn, fold_block, fold_bn

_SMALL = 8
"""Most pixels a side of a latent's planes."""
_FINE = 24
"""Pixels a side above which there are no residual blocks: most of the time would be spent in them."""


class _Halving(nn.Module):
    """Planes [n, C, H, W] to planes of half the size, by a convolution, or by pooling where the number of channels stays."""

    def __init__(self, inputs: int, outputs: int, *, pool: bool, block: bool) -> None:
        super().__init__()
        self.pools = pool
        if not pool:
            self.conv, self.bn = conv_bn(inputs, outputs, 3, stride=2)
        self.blocks = nn.Sequential(*[Block(outputs)] * block)

    def forward(self, x: Tensor) -> Tensor:
        halved = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False) if self.pools else F.relu(self.bn(self.conv(x)))
        out: Tensor = self.blocks(halved)
        return out

    def fold(self) -> None:
        if not self.pools:
            fold_bn(self, "conv", "bn")
        for block in self.blocks:
            fold_block(block)


class Reduction(nn.Module):
    """Images [n, *] to planes [n, C, h, w] with at most 8 a side.

    Args:
        space: of single images.
        num_channels: of the planes, half as many after the first halving.
    """

    def __init__(self, space: gymnasium.spaces.Box, num_channels: int) -> None:
        super().__init__()
        self.layout = ImageLayout(space)
        self.scale = 1.0 / float(space.high.max())
        self.dtype = precision.of_convolutions()
        channels, height, width = self.layout.num_channels, self.layout.height, self.layout.width
        halvings = list[_Halving]()
        while max(height, width) > _SMALL:
            height, width = -(-height // 2), -(-width // 2)
            outputs = num_channels if halvings else max(1, num_channels // 2)
            halvings.append(_Halving(channels, outputs, pool=len(halvings) >= 2, block=max(height, width) <= _FINE))
            channels = outputs
        self.halvings = nn.Sequential(*halvings)
        self.planes_shape = channels, height, width

    def forward(self, images: Tensor) -> Tensor:
        x = self.layout(images).permute(0, 3, 1, 2).float() * self.scale  # [n, C, H, W], of which the channels lie last in memory
        with torch.autocast(x.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            reduced: Tensor = self.halvings(x)
        return reduced.float()

    def fold(self) -> None:
        """Merge normalisations into convolutions, for inference."""
        for halving in self.halvings:
            assert isinstance(halving, _Halving)
            halving.fold()


class ImageNet(BoardNet):
    """For observations that are images of bytes; latents are planes. Arguments but for the space and methods are `VectorNet`'s."""

    def __init__(self, space: gymnasium.spaces.Box, num_actions: int, num_bins: int, *, num_channels: int, num_blocks: int) -> None:
        reduction = Reduction(space, num_channels)
        super().__init__(reduction.planes_shape, num_actions, num_bins, num_channels=num_channels, num_blocks=num_blocks)
        self.reduction = reduction
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def represent(self, obs: Tensor) -> Tensor:
        return super().represent(self.reduction(obs))

    def fold(self) -> None:
        super().fold()
        self.reduction.fold()
