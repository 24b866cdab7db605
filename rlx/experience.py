"""What an agent with a replay learns from: single steps, or windows of n of them, each with its true successor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rlx.columns import Column, columns_of
from rlx.replay import SequenceReplay
from rlx.transfer import send
from rlx.tree_ops import Tree, leaves, map_tree, pick
from rlx.types import EnvSpec, Rollout, State

_GATHERED_BYTES = 1 << 26
"""Most bytes of windows that are gathered in one go."""


class Steps(NamedTuple):
    """n windows of steps, as targets need them: reward + discount * (value of next_obs)."""

    obs: Tree  # [n, *]
    action: Tensor  # [n, *]
    reward: Tensor  # [n] discounted sum over the window
    discount: Tensor  # [n] of the value of next_obs: gamma^m after m steps, 0 after a termination
    next_obs: Tree  # [n, *] the true successor of the window's last step
    rows: Tensor  # [n] of the replay, on the CPU
    weight: Tensor  # [n] of the losses; 1 where draws are uniform

    def batches(self, batch_size: int) -> Iterator[Steps]:
        """Consecutive parts of `batch_size` windows."""
        if len(self.rows) <= batch_size:
            yield self
            return
        for at in range(0, len(self.rows), batch_size):
            yield Steps._make(pick(column, slice(at, at + batch_size)) for column in self)


class Experience:
    """The newest steps of B environments, drawn uniformly or by priority.

    A window ends after n steps or with its episode. Where the episode was truncated, its successor is the observation that it ended in,
    never the first one of the next episode. Rows are kept and drawn on the CPU, and batches sent to the device in one transfer.

    Args:
        spec: gives the observation space.
        capacity: steps of all environments.
        num_envs: B.
        action: what a row of actions is.
        n_step: n.
        discount: gamma.
        exponent: of the priorities, see `SequenceReplay`; 0 draws uniformly.
        correction: of the weights, see `SequenceReplay`.
        device: of what is drawn.
    """

    def __init__(
        self,
        spec: EnvSpec,
        capacity: int,
        num_envs: int,
        *,
        action: Column,
        n_step: int,
        discount: float,
        device: torch.device,
        exponent: float = 0.0,
        correction: float = 0.0,
    ) -> None:
        self.n_step, self.discount, self.device, self._is_uniform = n_step, discount, device, exponent == 0.0
        columns = {
            "obs": columns_of(spec.observation_space), "action": action, "reward": Column(torch.float32),
            "terminated": Column(torch.bool), "is_last": Column(torch.bool),
        }  # fmt: skip
        self._window_bytes = sum(2 * math.prod(column.shape) * column.dtype.itemsize for column in leaves(columns))  # gathered, at most
        self.replay = SequenceReplay(capacity, num_envs, columns, ahead=n_step, exponent=exponent, correction=correction)
        self.num_bytes = self.replay.num_bytes
        """Bytes that the replay takes once it is full."""

    @property
    def size(self) -> int:
        """Steps in the replay."""
        return self.replay.size

    @property
    def num_ready(self) -> int:
        """Steps that can be drawn: those whose window is complete."""
        return self.replay.num_ready

    def add(self, rollout: Rollout, action: Tensor | None = None) -> None:
        """Add the steps of a rollout, with its actions or others [T, B, *] in their place."""
        action = rollout.action if action is None else action
        on_host = self.device.type == "cpu"
        obs, action, reward, terminated, truncated, final = (
            map_tree(lambda x: x if on_host else x.cpu(), x)
            for x in (rollout.obs, action, rollout.reward, rollout.terminated, rollout.truncated, rollout.final_obs)
        )
        beyond = {}
        if len(rollout.final_t):
            ends = enumerate(zip(rollout.final_t.tolist(), rollout.final_b.tolist(), strict=True))
            beyond = {(t, b): pick(final, e) for e, (t, b) in ends if not terminated[t, b]}
        is_last = terminated | truncated
        self.replay.add(beyond, obs=obs, action=action, reward=reward, terminated=terminated, is_last=is_last)

    def draw(self, num: int) -> Steps:
        """`num` windows, on the device."""
        if self._is_uniform:
            index = self.replay.draw_uniformly(num)
            weight = torch.ones(num)
        else:
            index, weight = self.replay.draw(num)
        rows = self.replay.rows
        reward, last, discount = self._windows(index)
        columns = (
            rows.take("obs", index), rows["action"][index], reward, discount * ~rows["terminated"][last],
            self.replay.next_obs("obs", last), weight,
        )  # fmt: skip
        *sent, weight = send(self.device, *columns)
        obs, action, reward, discount, next_obs = sent
        return Steps(obs, action, reward, discount, next_obs, index, weight)

    def draw_batches(self, num_batches: int, batch_size: int, *, correction: float | None = None) -> Iterator[Steps]:
        """Batches of windows on the device, each drawn anew; as many are gathered in one go as memory allows.

        Args:
            num_batches: how many.
            batch_size: windows of each.
            correction: of the weights, from now on.
        """
        if correction is not None:
            self.replay.correction = correction
        at_once = max(1, _GATHERED_BYTES // (self._window_bytes * batch_size))
        while num_batches > 0:
            yield from self.draw(min(num_batches, at_once) * batch_size).batches(batch_size)
            num_batches -= at_once

    def _windows(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Discounted rewards [n], the rows of the last steps [n], and the discounts gamma^m after them [n], of windows from rows [n]."""
        rows, n = self.replay.rows, self.n_step
        if n == 1:
            return rows["reward"][index], index, torch.full((len(index),), self.discount)
        window = self.replay.following(index, n)
        going = (~rows["is_last"][window]).cumprod(1)
        before = torch.cat((torch.ones_like(going[:, :1]), going[:, :-1]), dim=1).to(torch.float32)
        length = before.sum(1).long()
        weights = self.discount ** torch.arange(n, dtype=torch.float32)
        reward = (rows["reward"][window] * before * weights).sum(1)
        return reward, window.gather(1, length[:, None] - 1)[:, 0], self.discount ** length.to(torch.float32)

    def prioritise(self, index: Tensor, error: Tensor) -> None:
        """Set the priorities of rows [n] by the sizes of their errors [n]."""
        self.replay.prioritise(index, error.cpu())

    def state_dict(self) -> State:
        return self.replay.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.replay.load_state_dict(state)
