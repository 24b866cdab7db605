"""Running normalisation of observations and rewards. It is part of the algorithm, and saved, restored and frozen with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlx.distributed import ALONE, World
from rlx.nn.finite import finite_moments
from rlx.ops import reverse_scan
from rlx.types import State

_CONSTANT = 1e-6
"""Numbers are constant if their deviation is below this share of their size plus one: float32 has no more digits."""


class RunningMoments:
    """Mean and variance of a stream of batches (Chan, Golub and LeVeque 1979), in float64.

    Always on the CPU: some accelerators have no float64, and one small transfer a rollout costs nothing. A batch is that of all ranks of
    `world`: each describes its rows, and all absorb the same pooled batch, so that the moments stay equal and no row is counted twice.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.mean = torch.zeros(shape, dtype=torch.float64)
        self.variance = torch.ones(shape, dtype=torch.float64)
        self.count = torch.tensor(0.0, dtype=torch.float64)
        self.world: World = ALONE

    def state_dict(self) -> State:
        return {"mean": self.mean.clone(), "variance": self.variance.clone(), "count": self.count.clone()}

    def load_state_dict(self, state: State) -> None:
        self.mean, self.variance, self.count = state["mean"].clone(), state["variance"].clone(), state["count"].clone()

    def update(self, batch: Tensor) -> None:
        """Update the moments by batch [N, *shape].

        Raises:
            NonFiniteError: before anything is changed, if the batch is not finite.
        """
        num, mean, variance = finite_moments(batch.cpu(), self.world)
        total = self.count + num
        delta = mean - self.mean
        spread = self.variance * self.count + variance * num + delta.square() * self.count * num / total
        self.variance, self.mean, self.count = spread / total, self.mean + delta * num / total, total

    @property
    def std(self) -> Tensor:
        """Standard deviation; 1 where numbers were constant so far, because dividing by a tiny deviation would blow up the first change."""
        constant = self.variance.sqrt() <= _CONSTANT * (1.0 + self.mean.abs())
        return torch.where(constant, 1.0, (self.variance + 1e-8).sqrt())


_LARGEST_EVENT = 3.0
"""Standard deviations that a typical rare value becomes at most."""


class RareValues:
    """How often features have another value than their usual one, which is the median of the first batch.

    A sensor that is 0 until something is near has a standard deviation far below what it measures when something is near: heights in
    front of a walker got scales of 217 to 947, so that every hurdle came as the clip. For such a feature the mean and the deviation
    describe how rare events are, not how large they are. The values that differ from the usual one are therefore taken as a sample of
    their own, of which s is the root mean square distance from the usual value, and the deviation is taken as s / 3 at least.

    Only features that differ in less than half of the rows count. A share p of events of one size has the deviation s sqrt(p (1 - p)),
    so that nothing changes for p above 0.13, and the scale has no step anywhere.
    """

    def __init__(self, num_features: int) -> None:
        self.usual = torch.zeros(num_features, dtype=torch.float64)
        self.count = torch.zeros(num_features, dtype=torch.float64)  # of rows that differ

    def state_dict(self) -> State:
        return {"usual": self.usual.clone(), "count": self.count.clone()}

    def load_state_dict(self, state: State) -> None:
        self.usual, self.count = state["usual"].clone(), state["count"].clone()

    def update(self, batch: Tensor, world: World, *, is_first: bool) -> None:
        """Count in a batch [N, D] of each rank."""
        if is_first:
            self.usual = world.gather_rows(batch).median(0).values.to(torch.float64)
        differ = (batch != self.usual).sum(0)
        self.count = self.count + (differ if world.size == 1 else torch.from_numpy(world.sum_float64(differ.double().numpy())))

    def least_std(self, moments: RunningMoments) -> Tensor:
        """The smallest standard deviation [D] to divide by; 0 where there is no bound."""
        share = self.count / moments.count
        distance = (moments.variance + (moments.mean - self.usual).square()).div(share).sqrt()  # of the rows that differ
        return torch.where((share > 0.0) & (share < 0.5), distance / _LARGEST_EVENT, 0.0)


class ObservationNormalizer(nn.Module):
    """(obs - mean) / std, clipped. The identity before the first `update`, and only `update` moves the statistics.

    Args:
        num_features: D.
        clip: bound on what is returned.
        bounds_rare: give features that are nearly always the same a larger deviation, see `RareValues`.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, num_features: int, *, clip: float, bounds_rare: bool = True) -> None:
        super().__init__()
        self.clip = clip
        self.moments = RunningMoments((num_features,))
        self.rare = RareValues(num_features) if bounds_rare else None
        self.register_buffer("shift", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))

    def get_extra_state(self) -> State:
        return self.moments.state_dict() | ({} if self.rare is None else {"rare": self.rare.state_dict()})

    def set_extra_state(self, state: State) -> None:
        self.moments.load_state_dict(state)
        if "rare" not in state:  # of a run from before they were counted, which goes on as it was
            self.rare = None
        elif self.rare is not None:
            self.rare.load_state_dict(state["rare"])

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] to [B, D] in [-clip, clip]."""
        return torch.addcmul(self.shift, features, self.scale).clamp_(-self.clip, self.clip)

    @property
    def is_new(self) -> bool:
        """Whether there was no update yet."""
        return self.moments.count.item() < 1.0

    def update(self, features: Tensor) -> None:
        """Update the statistics by features [N, D]."""
        is_first, host = self.is_new, features.cpu()
        self.moments.update(host)
        std = self.moments.std
        if self.rare is not None:
            self.rare.update(host, self.moments.world, is_first=is_first)
            std = torch.maximum(std, self.rare.least_std(self.moments))
        self.scale.copy_(1.0 / std)
        self.shift.copy_(-self.moments.mean / std)

    @contextmanager
    def learning_from(self, features: Tensor) -> Iterator[None]:
        """A context for learning from a rollout with features [N, D]; the first rollout updates the statistics before it, later ones after.

        After, so that acting and learning use the same scale for a rollout. The first rollout was acted without a scale, by an untrained
        policy that hardly depends on its input. Learning from it without a scale would be undone when the scale changes afterwards.
        """
        if first := self.is_new:
            self.update(features)
        yield
        if not first:
            self.update(features)


class RewardScaler(nn.Module):
    """reward / std of the running discounted return, clipped (OpenAI baselines' VecNormalize; never shifted).

    The scale of a rollout includes that rollout's own rewards, as in baselines, so the first update is already scaled. What is saved has
    the running returns of all ranks' environments, in their order.
    """

    running_return: Tensor

    def __init__(self, num_envs: int, *, discount: float, clip: float) -> None:
        super().__init__()
        self.discount, self.clip = discount, clip
        self.moments = RunningMoments(())
        self.register_buffer("running_return", torch.zeros(num_envs))

    def get_extra_state(self) -> State:
        return self.moments.state_dict()

    def _save_to_state_dict(self, destination: State, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        name = f"{prefix}running_return"
        destination[name] = self.moments.world.gather_rows(destination[name])

    def _load_from_state_dict(self, state_dict: State, prefix: str, *args: Any) -> None:
        name = f"{prefix}running_return"
        if name in state_dict:
            state_dict[name] = self.moments.world.own_rows(state_dict[name])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def set_extra_state(self, state: State) -> None:
        self.moments.load_state_dict(state)

    def forward(self, reward: Tensor, is_last: Tensor) -> Tensor:
        """Reward [T, B], scaled after the statistics are updated by it; is_last [T, B] bool restarts the running return."""
        # y[t] = r[t] + discount * (1 - is_last[t - 1]) * y[t - 1], led in by the carry: a scan in reversed time.
        lead = torch.full_like(reward[:1], self.discount)
        decay = torch.cat((torch.zeros_like(lead), lead, self.discount * (~is_last[:-1]).to(reward.dtype)))
        x = torch.cat((self.running_return.unsqueeze(0), reward))
        returns = reverse_scan(x.flip(0), decay.flip(0)).flip(0)[1:]
        self.running_return.copy_(returns[-1] * (~is_last[-1]).to(reward.dtype))
        self.moments.update(returns.flatten())
        return (reward / self.moments.std.item()).clamp_(-self.clip, self.clip)
