"""What MuZero's network is made of, in the form of `rlx.nn.network_report`."""

from __future__ import annotations

from typing import Any

import torch

from rlx.models.latent import LatentNet, VectorNet
from rlx.models.latent_images import ImageNet
from rlx.models.latent_inputs import LatentInputs

_PARTS = {
    "observation": ("reduction", "enter", "enter_bn", "enter_norm", "representation"),
    "dynamics and reward": ("action", "move", "move_bn", "move_norm", "dynamics", "reward", "reward_conv", "reward_bn"),
    "policy and value": ("prediction", "heads", "head_conv", "head_bn", "policy", "value"),
}
"""The modules of each of the paper's three functions."""


def latent_report(net: LatentNet, inputs: LatentInputs) -> dict[str, Any]:
    """The report: a part for each of representation, dynamics and prediction."""
    shape = " x ".join(map(str, inputs.shape))
    if isinstance(net, VectorNet):
        layers, width, latent = "dense", net.enter.out_features, f"vector {net.enter.out_features}"
        observation = (f"vector {shape}", "vector", width, "")
    else:
        layers, width, latent = "convolutions", net.latent_shape[0], f"planes {' x '.join(map(str, net.latent_shape))}"
        observation = (f"planes {shape}", layers, width, "")
        if isinstance(net, ImageNet):
            to = " x ".join(map(str, net.latent_shape[1:]))
            observation = (f"image {shape}", f"convolutions to {to}", width, "bytes in two dimensions or more")
    described = {
        "observation": observation,
        "dynamics and reward": (latent, layers, width, ""),
        "policy and value": (latent, layers, net.num_actions + net.num_bins, ""),
    }
    parts = [
        {"part": part, "sees": sees, "network": network, "num_outputs": num_outputs, "num_parameters": _count(net, _PARTS[part]),
         "reason": reason}
        for part, (sees, network, num_outputs, reason) in described.items()
    ]  # fmt: skip
    in_bfloat16 = isinstance(net, ImageNet) and net.reduction.dtype == torch.bfloat16
    return {"parts": parts, "num_parameters": sum(p.numel() for p in net.parameters()), "bfloat16": in_bfloat16}


def _count(net: LatentNet, names: tuple[str, ...]) -> int:
    """Parameters of the modules with these names that the network has."""
    return sum(p.numel() for name, module in net.named_children() if name in names for p in module.parameters())
