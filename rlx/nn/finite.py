"""Refuse data, losses and gradients that are not finite."""

from __future__ import annotations

import torch
from torch import Tensor

from rlx.distributed import ALONE, World
from rlx.errors import NonFiniteError
from rlx.nn.pooled import moments

_MOST_WAITING = 64
"""Most gradient steps that an accelerator takes before they are checked."""


def finite_moments(x: Tensor, world: World = ALONE) -> tuple[float, Tensor, Tensor]:
    """The number of rows, mean and variance [*] of observations or rewards x [N, *] of all ranks, in float64.

    Raises:
        NonFiniteError: on every rank, if x is not finite on one of them.
    """
    count, mean, variance = moments(x, world)
    if not (mean.isfinite().all() and variance.isfinite().all()):
        raise NonFiniteError("the environment gave an observation or reward that is not finite: clip or repair it in the environment")
    return count, mean, variance


class FiniteWatch:
    """Checks the loss and the gradient's norm of every gradient step.

    On a CPU it checks at once, before the optimiser changes anything. On an accelerator that would wait for the device in every step: there
    `check` looks at all steps together, before an update ends and before anything is saved, so that the last checkpoint is good.
    """

    def __init__(self) -> None:
        self._waiting: list[Tensor] = []  # (loss, norm) each

    def look(self, loss: Tensor, norm: Tensor) -> None:
        """Note a gradient step that is about to be taken.

        Raises:
            NonFiniteError: on a CPU, if its loss or norm is not finite.
        """
        if norm.device.type == "cpu":
            refuse_non_finite(loss.item(), norm.item())
            return
        self._waiting.append(torch.stack((loss.detach(), norm)))
        if len(self._waiting) >= _MOST_WAITING:
            self.check()

    def check(self) -> None:
        """Raise a NonFiniteError if a step since the last check had a loss or a norm that is not finite."""
        if not self._waiting:
            return
        waiting, self._waiting = torch.stack(self._waiting).tolist(), []
        for loss, norm in waiting:
            refuse_non_finite(loss, norm)


def refuse_non_finite(loss: float, norm: float) -> None:
    """Raise a NonFiniteError unless the loss of a gradient step and the norm of its gradient are finite."""
    if not (norm < float("inf") and abs(loss) < float("inf")):
        raise NonFiniteError(
            f"the loss is {loss} and its gradient has norm {norm}: training stopped before the optimiser step; "
            "try a smaller algo.learning_rate, or look at the environment's observations and rewards"
        )
