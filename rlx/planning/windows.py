"""Predicted returns of plans, compared with the returns that followed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlx.types import State


class Kept(NamedTuple):
    """Predicted and realised returns of plans whose horizon has passed, [n] each."""

    predicted: Tensor
    realised: Tensor


class ReturnWindows:
    """Compares the predicted return of every plan with the sum of rewards over the steps that it predicted.

    A window is as long as the plan's horizon. One that an episode's termination ends early is complete, because nothing follows; one that
    is cut with its episode is dropped. All tensors are on the CPU, because they are read at every step.

    Args:
        horizon: most steps of a window, H.
        num_envs: B.
    """

    def __init__(self, horizon: int, num_envs: int) -> None:
        self._predicted, self._realised = torch.zeros(2, horizon, num_envs).unbind()
        self._left = torch.zeros(horizon, num_envs, dtype=torch.long)  # steps to go; 0: no window
        self._next = 0  # slot of the next window: it is free, because no window lasts longer than H steps

    def state_dict(self) -> State:
        return {"predicted": self._predicted.clone(), "realised": self._realised.clone(), "left": self._left.clone(), "next": self._next}

    def load_state_dict(self, state: State) -> None:
        self._predicted, self._realised, self._left = (state[k].clone() for k in ("predicted", "realised", "left"))
        self._next = state["next"]

    def add(self, predicted: Tensor, horizon: Tensor, reward: Tensor, terminated: Tensor, truncated: Tensor) -> Kept:
        """Count one step of every env; returns the windows that it completes.

        Args:
            predicted: [B] return of the plan that was made at the step.
            horizon: [B] steps that `predicted` covers; 0 opens no window.
            reward: [B] of the step.
            terminated: [B]. truncated: [B].
        """
        self._predicted[self._next], self._realised[self._next], self._left[self._next] = predicted, 0.0, horizon
        self._next = (self._next + 1) % len(self._left)
        open_ = self._left > 0
        self._realised += torch.where(open_, reward, 0.0)
        self._left -= open_.long()
        done = open_ & ((self._left == 0) | terminated)
        self._left[:, terminated | truncated] = 0
        return Kept(self._predicted[done], self._realised[done])
