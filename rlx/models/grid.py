"""A learned model of a grid world, which predicts the bits of a frame that an action changes, and the events of the step.

After Racaniere et al. 2017, https://arxiv.org/abs/1707.06203, appendix C: small convolutions for local features, pool-and-inject layers for
features of the whole board, and the action tiled onto planes. Deviations: changes of bits are predicted instead of the next frame, since
most bits stay; rewards are predicted as events, several of which may happen in a step, so that the same model fits any rewards of these
events; termination is one more event.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlx.types import Metrics

_RARE = -3.0
"""Initial logit of a change or an event: a new model predicts that few happen."""


class GridModel(nn.Module):
    """A network that predicts the changed bits and the outcome of a step.

    Args:
        planes_shape: (C, H, W).
        num_actions: A.
        num_events: E; an outcome has one more bit, for termination.
        num_channels: of each convolution.
        num_layers: 3x3 convolutions before the heads, at least 1; the receptive field reaches as many cells far.
    """

    def __init__(
        self, planes_shape: tuple[int, int, int], num_actions: int, num_events: int, *, num_channels: int, num_layers: int
    ) -> None:
        super().__init__()
        c, self.height, self.width = planes_shape
        self.planes = nn.Conv2d(c, num_channels, 3, padding=1)
        self.action = nn.Conv2d(num_actions, num_channels, 3, padding=1, bias=False)
        self.layers = nn.ModuleList(_PoolAndInject(num_channels) for _ in range(num_layers - 1))
        self.change = nn.Conv2d(num_channels, c, 1)
        self.local = nn.Conv2d(num_channels + 2 * c, num_channels, 1)
        self.outcome = nn.Linear(2 * num_channels, num_events + 1)
        self.register_buffer("_every_action", torch.eye(num_actions)[:, :, None, None], persistent=False)
        for bias in (self.change.bias, self.outcome.bias):
            nn.init.constant_(bias, _RARE)  # type: ignore[arg-type]

    def forward(self, planes: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of changes of bits [n, C, H, W], and of events and termination [n, E + 1], for planes [n, C, H, W] and action [n]."""
        x = F.relu(self.planes(planes) + self._of_action(action))
        for layer in self.layers:
            x = layer(x)
        change = self.change(x)
        # An event depends on a change in one cell (a box arrives on a goal: the maximum), or on a count over cells (the mean).
        happens = F.relu(self.local(torch.cat([x, change.sigmoid(), planes], dim=1)))
        return change, self.outcome(torch.cat([highest(happens), happens.mean((2, 3))], dim=1))

    def _of_action(self, action: Tensor) -> Tensor:
        """The convolution of the tiled action, [n, channels, H, W]. It is linear, so that it is computed once for each of the A actions."""
        tiled: Tensor = self._every_action.expand(-1, -1, self.height, self.width)  # type: ignore[operator]
        maps = self.action(tiled.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        return F.embedding(action, maps.flatten(1)).unflatten(1, maps.shape[1:]).permute(0, 3, 1, 2)  # channels last in memory


class _PoolAndInject(nn.Module):
    """x + relu(conv(x) + W max(x)), the maximum over all cells."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_channels, num_channels, 3, padding=1)
        self.inject = nn.Linear(num_channels, num_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.conv(x) + self.inject(highest(x))[:, :, None, None])


def highest(x: Tensor) -> Tensor:
    """The maximum [n, C] over all cells of x [n, C, H, W]; pooling is ten times faster here than a reduction."""
    return F.max_pool2d(x, x.shape[-2:]).flatten(1)


def flip(planes: Tensor, where: Tensor) -> Tensor:
    """Bits [n, C, H, W], flipped where a mask is True."""
    return (planes - where.to(planes.dtype)).abs()


class Transitions(NamedTuple):
    """n steps of a grid world."""

    planes: Tensor  # [n, C, H, W] bits as float32
    action: Tensor  # [n]
    next_planes: Tensor  # [n, C, H, W]
    outcome: Tensor  # [n, E + 1] bool: the events, and whether the episode terminated


def model_loss(model: GridModel, data: Transitions) -> Tensor:
    """Negative log-likelihood of the changes and outcomes, in nats per step."""
    change, outcome = model(data.planes, data.action)
    nll = F.binary_cross_entropy_with_logits(change, (data.planes != data.next_planes).to(change.dtype), reduction="sum")
    nll = nll + F.binary_cross_entropy_with_logits(outcome, data.outcome.to(outcome.dtype), reduction="sum")
    return nll / len(data.action)


def cell_errors(predicted: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The share [n] of wrong cells among those that changed or were predicted to change; 0 where there are none.

    Args:
        predicted, before, after: [n, C, H, W] bits; a cell is right if all of its planes are.
    """
    wrong = (predicted != after).any(1).sum((1, 2))
    concerned = ((predicted != before) | (after != before)).any(1).sum((1, 2))
    return wrong / concerned.clamp(min=1)


def changed_cells(predicted: Tensor, before: Tensor, after: Tensor) -> tuple[int, int]:
    """Number of cells that changed from `before` to `after`, [n, C, H, W] each, and of those that were predicted in all their planes."""
    changed = (before != after).any(1)
    right = (predicted == after).all(1) & changed
    return int(changed.sum()), int(right.sum())


def f1(predicted: Tensor, true: Tensor) -> float | None:
    """Harmonic mean of precision and recall of bits, of any equal shapes: 2 TP / (2 TP + FP + FN); None if no bit is set in either."""
    hits, errors = int((predicted & true).sum()), int((predicted ^ true).sum())
    return 2.0 * hits / (2.0 * hits + errors) if hits + errors else None


def judge(model: GridModel, data: Transitions, event_names: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy of one-step predictions: of cells that change, of whole frames, of events."""
    change, outcome = model(data.planes, data.action)
    predicted, events = flip(data.planes, change > 0.0), outcome > 0.0
    changed, right = changed_cells(predicted, data.planes, data.next_planes)
    metrics: dict[str, Any] = {"model/frame_accuracy_1": (predicted == data.next_planes).flatten(1).all(1).float().mean()}
    if changed:
        metrics["model/changed_cell_accuracy"] = right / changed
    varies = ~data.outcome.all(0)  # an event of every step is trivial to predict
    scores = {"model/event_f1": f1(events[:, varies], data.outcome[:, varies])}
    for i, name in enumerate((*event_names, "terminated")):
        scores[f"model/event_f1_{name}"] = f1(events[:, i], data.outcome[:, i])
    return metrics | {name: score for name, score in scores.items() if score is not None}


def frame_accuracy(model: GridModel, planes: Tensor, action: Tensor, reached: Tensor) -> Metrics:
    """Share of exact frames after k steps of the model from planes [n, C, H, W] under action [k, n], against the observed `reached`."""
    now = planes
    for each in action:
        now = flip(now, model(now, each)[0] > 0.0)
    return {f"model/frame_accuracy_{len(action)}": (now == reached).flatten(1).all(1).float().mean()}
