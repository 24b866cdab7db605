"""What a network is made of: which encoder each part of the observation got and why, the memory, and the trunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rlx.nn.backbone import Backbone
from rlx.nn.convolutions import ImageEncoder
from rlx.nn.mlp import MLP


def network_report(net: Backbone) -> dict[str, Any]:
    """A report that can be written as JSON.

    Its `parts` have a `part`, what it `sees`, the `network`, its `num_outputs` and `num_parameters`, and the `reason`;
    `num_parameters` counts all; `bfloat16` is whether there are convolutions, and all of them are computed in that format.
    """
    parts = [
        _part(f"observation{leaf.path}", leaf.space, leaf.encoder, leaf.num_features, leaf.num_parameters, leaf.reason)
        for leaf in net.encoder.report()
    ]
    if net.has_memory:
        name = type(net.memory).__name__.removesuffix("Memory").lower()
        parts.append(_part("memory", net.encoder.num_features, name, net.memory.num_features, _count(net.memory), f"algo.memory={name}"))
    for name, trunk in net.trunks().items():
        widths = [layer.out_features for layer in trunk.linears]
        parts.append(_part(name, trunk.linears[0].in_features, _layers(trunk), widths[-1], _count(trunk), ""))
    images = [module for module in net.encoder.modules() if isinstance(module, ImageEncoder)]
    in_bfloat16 = bool(images) and all(module.dtype == torch.bfloat16 for module in images)
    return {"parts": parts, "num_parameters": _count(net), "bfloat16": in_bfloat16}


def observation_line(report: dict[str, Any]) -> str | None:
    """One line on the encoders; None where the observation is one vector, as most are."""
    leaves = [part for part in report["parts"] if part["part"].startswith("observation")]
    if len(leaves) == 1 and leaves[0]["part"] == "observation" and leaves[0]["network"] in ("vector", "normalised"):
        return None
    return "obs: " + ", ".join(map(_leaf_text, leaves))


def _leaf_text(leaf: dict[str, Any]) -> str:
    path = leaf["part"].removeprefix("observation").replace("][", ".").strip("[]").replace("'", "")
    count = f" ({parameters(leaf['num_parameters'])})" if leaf["num_parameters"] else ""
    return f"{path} {leaf['sees']} -> {leaf['network']}{count}".strip()


def parameters(count: int) -> str:
    """1.68 M parameters."""
    for limit, unit in ((10**6, " M"), (10**3, " k")):
        if count >= limit:
            return f"{count / limit:.3g}{unit} parameters"
    return f"{count} parameters"


def _part(part: str, sees: Any, network: str, num_outputs: int, num_parameters: int, reason: str) -> dict[str, Any]:
    return {"part": part, "sees": str(sees), "network": network, "num_outputs": num_outputs,
            "num_parameters": num_parameters, "reason": reason}  # fmt: skip


def _layers(trunk: MLP) -> str:
    hidden = "-".join(str(layer.out_features) for layer in trunk.linears[:-1])
    return f"{hidden} {trunk.activation}{', layer norm' * bool(trunk.norms)}" if hidden else "linear"


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
