"""A residual tower with a policy and a value head, and a frozen copy of it for inference."""

from __future__ import annotations

import copy
import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rlx.nn.finite import FiniteWatch
from rlx.transfer import fetch

HEAD_PLANES = 8


class Block(nn.Module):
    """x + conv(relu(conv(x))), each convolution with batch normalisation (He et al. 2016)."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(num_channels, num_channels, 3)
        self.conv2, self.bn2 = conv_bn(num_channels, num_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def conv_bn(inputs: int, outputs: int, size: int, *, stride: int = 1) -> tuple[nn.Conv2d, nn.Module]:
    """A convolution that keeps the size of a board, or divides it by `stride`, and the normalisation after it."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(outputs)


class ResNet(nn.Module):
    """The network of AlphaGo Zero (Silver et al. 2017, Methods), with heads of eight planes.

    Args:
        planes_shape: (C, H, W) of a position.
        num_actions: A.
    """

    def __init__(self, planes_shape: tuple[int, int, int], num_actions: int, *, num_blocks: int, num_channels: int) -> None:
        super().__init__()
        c, h, w = planes_shape
        self.conv, self.bn = conv_bn(c, num_channels, 3)
        self.blocks = nn.Sequential(*[Block(num_channels) for _ in range(num_blocks)])
        self.policy_conv, self.policy_bn = conv_bn(num_channels, HEAD_PLANES, 1)
        self.value_conv, self.value_bn = conv_bn(num_channels, HEAD_PLANES, 1)
        self.policy = nn.Linear(HEAD_PLANES * h * w, num_actions)
        self.value_hidden = nn.Linear(HEAD_PLANES * h * w, num_channels)
        self.value = nn.Linear(num_channels, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)  # the initial value is 0 everywhere

    def forward(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [n, A] and values in (-1, 1) [n] of planes [n, C, H, W]."""
        x = self.blocks(F.relu(self.bn(self.conv(planes))))
        logits = self.policy(F.relu(self.policy_bn(self.policy_conv(x))).flatten(1))
        hidden = F.relu(self.value_hidden(F.relu(self.value_bn(self.value_conv(x))).flatten(1)))
        return logits, torch.tanh(self.value(hidden)).squeeze(1)


@functools.cache
def fast_dtype(device_type: str) -> torch.dtype:
    """The precision in which convolutions are fast: bfloat16 where the processor has instructions for it, else float32."""
    if device_type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device_type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


class FrozenResNet:
    """A tower for inference only: normalisation folded into the convolutions, channels last, in the fast precision."""

    def __init__(self, tower: ResNet, device: torch.device) -> None:
        self._device, self._dtype = device, fast_dtype(device.type)
        net = copy.deepcopy(tower).eval()
        for name in ("conv", "policy_conv", "value_conv"):
            fold_bn(net, name, name.replace("conv", "bn"))
        for block in net.blocks:
            fold_block(block)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._net = net.to(device=device, dtype=self._dtype).requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, planes: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits [n, A] and values [n] of planes [n, C, H, W]."""
        x = torch.from_numpy(planes).to(device=self._device, dtype=self._dtype).contiguous(memory_format=torch.channels_last)
        logits, value = self._net(x)
        found = fetch(logits.float(), value.float())
        return found[0], found[1]


def fold_bn(module: nn.Module, conv: str, bn: str) -> None:
    """Merge a normalisation with frozen statistics into the convolution before it."""
    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, bn)))
    setattr(module, bn, nn.Identity())


def fold_block(block: nn.Module) -> None:
    fold_bn(block, "conv1", "bn1")
    fold_bn(block, "conv2", "bn2")


def forward(net: ResNet, planes: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [n, A] and values [n] in float32, for training: computed in the fast precision."""
    dtype = fast_dtype(planes.device.type)
    with torch.autocast(planes.device.type, dtype=dtype, enabled=dtype != torch.float32):
        logits, value = net(planes)
    return logits.float(), value.float()


def adam(net: nn.Module, learning_rate: float, c: float) -> torch.optim.Optimizer:
    """Adam on a loss + c ||theta||^2: 2 c theta is part of the gradient that it scales.

    Decoupled decay would shrink weights by 2 c learning_rate per step, which has no effect in a run of a few thousand steps.
    """
    parameters = list(net.parameters())
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.Adam(parameters, lr=learning_rate, weight_decay=2.0 * c, fused=fused)


def squared_norm(net: nn.Module) -> Tensor:
    """||theta||^2, a scalar on the device."""
    with torch.no_grad():
        return torch.nn.utils.get_total_norm(list(net.parameters())).square()


def descend(
    optimizer: torch.optim.Optimizer, loss: Tensor, learning_rate: float, *, max_grad_norm: float = float("inf"),
    finite: FiniteWatch | None = None,
) -> None:  # fmt: skip
    """One step down the gradient of `loss`, which is scaled down to norm `max_grad_norm`.

    Args:
        finite: checks the loss and the gradient later, when the caller calls its `check`; None checks at once.

    Raises:
        NonFiniteError: on a CPU before anything is changed, if the loss or the gradient is not finite.
    """
    optimizer.zero_grad()
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    watch = finite or FiniteWatch()
    watch.look(loss, norm)
    if finite is None:
        watch.check()
    if max_grad_norm < float("inf"):
        torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
