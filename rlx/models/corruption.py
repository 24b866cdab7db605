"""Models that are wrong on purpose, to find out whether an agent notices.

With probability p a prediction of a fitted model is replaced by the one for another row of the batch: change, variance, reward and
termination. The model's data and its fits stay as they are. Disagreement can find the first two kinds and not the third:

- independent: each member is wrong on its own, about rows and with replacements of its own;
- regional: the same, but always, in a half-space that holds a share p of the replay's observations, and nowhere else;
- shared: all members are wrong about the same rows, with the same replacements.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlx.models.members import Dynamics, Predicted
from rlx.types import State

CorruptionKind = Literal["none", "independent", "regional", "shared"]

_SEED = 0x0BAD_0DE1
"""Added to the run's seed: a generator with that seed itself would repeat the draws of torch's."""


class Corruption:
    """Draws of what is wrong, from a generator of its own, so that a run without corruption and one with p = 0 are the same.

    Args:
        kind: of corruption.
        prob: p, of a row to be wrong; the region's share of observations.
        num_features: D.
        device: of the models.
    """

    def __init__(self, kind: CorruptionKind, prob: float, *, num_features: int, device: torch.device) -> None:
        self.kind, self.prob, self._device = kind, prob, device
        self._generator = torch.Generator().manual_seed((torch.initial_seed() + _SEED) % 2**63)
        self._direction = torch.randn(num_features, generator=self._generator).to(device)
        self._normal, self._limit = self._direction.clone(), torch.full((), torch.inf, device=device)

    def state_dict(self) -> State:
        return {
            "generator": self._generator.get_state(), "direction": self._direction.clone(), "normal": self._normal.clone(),
            "limit": self._limit.clone(),
        }  # fmt: skip

    def load_state_dict(self, state: State) -> None:
        self._generator.set_state(state["generator"].cpu())
        self._direction, self._normal, self._limit = (state[name].to(self._device) for name in ("direction", "normal", "limit"))

    def settle(self, obs: Tensor) -> None:
        """Move the border of the region so that it holds a share p of observations [N, D]."""
        if self.kind != "regional" or self.prob == 0.0:
            return
        scale = obs.std(0, correction=0)
        self._normal = torch.where(scale > 0.0, self._direction / scale, 0.0)
        order = (obs @ self._normal).sort(descending=True).values
        inside = round(self.prob * len(order))
        self._limit = order[inside] if inside < len(order) else order.new_full((), -torch.inf)

    def wrap(self, dynamics: Dynamics) -> Dynamics:
        """Dynamics whose predictions are corrupted."""
        return dynamics if self.kind == "none" or self.prob == 0.0 else _CorruptedDynamics(dynamics, self)

    def draw(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Which predictions for obs [K, n, D] are wrong [K, n], and the row of the batch [K, n] that replaces each if it is."""
        members, num = obs.shape[:2]
        rows = 1 if self.kind == "shared" else members
        wrong = torch.rand(rows, num, generator=self._generator) < self.prob
        offset = torch.randint(1, max(num, 2), (rows, num), generator=self._generator)
        other = ((torch.arange(num) + offset) % num).to(self._device).expand(members, -1)
        inside = obs @ self._normal > self._limit if self.kind == "regional" else wrong.to(self._device).expand(members, -1)
        return inside, other


class _CorruptedDynamics:
    def __init__(self, dynamics: Dynamics, corruption: Corruption) -> None:
        self.num_members = dynamics.num_members
        self._dynamics, self._corruption = dynamics, corruption

    def predict(self, obs: Tensor, action: Tensor) -> Predicted:
        predicted = self._dynamics.predict(obs, action)
        wrong, other = self._corruption.draw(obs)
        vectors = other[..., None].expand_as(obs)

        def replaced(x: Tensor) -> Tensor:
            return torch.where(wrong[..., None], x.gather(1, vectors), x) if x.dim() == 3 else torch.where(wrong, x.gather(1, other), x)

        reward, alive = (None if x is None else replaced(x) for x in (predicted.reward, predicted.alive))
        return Predicted(replaced(predicted.change), replaced(predicted.variance), reward, alive)
