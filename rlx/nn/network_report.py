"""What a network is made of: which encoder each part of the observation got and why, the memory, and the trunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rlx.nn.backbone import Backbone
from rlx.nn.convolutions import ImageEncoder
from rlx.nn.leaf_encoders import Encoder
from rlx.nn.mlp import MLP


def network_report(net: Backbone) -> dict[str, Any]:
    """A report that can be written as JSON, see `report_of`."""
    parts = []
    if net.has_memory:
        name = type(net.memory).__name__.removesuffix("Memory").lower()
        count = count_parameters(net.memory)
        parts.append(part_report("memory", net.encoder.num_features, name, net.memory.num_features, count, f"algo.memory={name}"))
    parts += [trunk_report(name, trunk) for name, trunk in net.trunks().items()]
    return report_of(net.encoder, parts, num_parameters=count_parameters(net))


def report_of(encoder: Encoder, parts: list[dict[str, Any]], *, num_parameters: int | None = None) -> dict[str, Any]:
    """A report of an encoder and of the `parts` behind it (`part_report`), which can be written as JSON.

    Its `parts` have a `part`, what it `sees`, the `network`, its `num_outputs` and `num_parameters`, and the `reason`;
    `num_parameters` counts all, by default those of the parts; `bfloat16` is whether there are convolutions, and all of them are
    computed in that format.
    """
    every = [
        part_report(f"observation{leaf.path}", leaf.space, leaf.encoder, leaf.num_features, leaf.num_parameters, leaf.reason)
        for leaf in encoder.report()
    ] + parts
    images = [module for module in encoder.modules() if isinstance(module, ImageEncoder)]
    in_bfloat16 = bool(images) and all(module.dtype == torch.bfloat16 for module in images)
    total = sum(part["num_parameters"] for part in every) if num_parameters is None else num_parameters
    return {"parts": every, "num_parameters": total, "bfloat16": in_bfloat16}


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


def part_report(part: str, sees: Any, network: str, num_outputs: int, num_parameters: int, reason: str = "") -> dict[str, Any]:
    """An entry of a report's `parts`."""
    return {"part": part, "sees": str(sees), "network": network, "num_outputs": num_outputs,
            "num_parameters": num_parameters, "reason": reason}  # fmt: skip


def trunk_report(part: str, trunk: MLP) -> dict[str, Any]:
    """The entry of a multi-layer perceptron."""
    widths: list[Any] = [layer.out_features for layer in trunk.linears]
    num_outputs = widths[-1]
    if trunk.streams:
        widths[: len(trunk.streams.sizes)] = [f"{len(trunk.streams.inputs)}x{size}" for size in trunk.streams.sizes]
    layers = layers_in_words(widths, trunk.activation, has_norms=bool(trunk.norms))
    return part_report(part, trunk.linears[0].in_features, layers, num_outputs, count_parameters(trunk))


def layers_in_words(widths: Sequence[Any], activation: str, *, has_norms: bool) -> str:
    """Such as "64-64 tanh, layer norm", of layers with these numbers of outputs, the last one included."""
    hidden = "-".join(map(str, widths[:-1]))
    return f"{hidden} {activation}{', layer norm' * has_norms}" if hidden else "linear"


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
