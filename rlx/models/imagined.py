"""Imagined data: short rollouts of a model from states of the replay, and rules for where they stop.

Janner et al. 2019 (MBPO), https://arxiv.org/abs/1906.08253: each step of a rollout follows a member drawn anew, with noise, under the
current policy, and ends where the episode terminates. Rules:

- fixed: always `max_steps` steps;
- schedule: from 1 step to `max_steps` as the budget is spent;
- rank: at step h (from 0) of H keep the (H - h) / (2 (H + 1)) of the rows with the least doubt, a half if H is 1, and take `_PENALTY` times
  the doubt off their reward; the rollouts themselves go on (M2AC, Pan et al. 2020, https://arxiv.org/abs/2010.04893);
- threshold: a rollout ends for good where its doubt is above κ, the mean over all rounds so far of ξ times the ζ-quantile of the doubt at
  the first step (MACURA, Frauenknecht et al. 2024, https://arxiv.org/abs/2405.19014). Deviation: where few rows are left, the share of
  imagined rows in a batch shrinks, instead of the number of gradient steps, so that arms with the same `utd` can be compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlx.models.doubt import Doubt
from rlx.models.expansion import PolicyFn
from rlx.models.members import MemberModel
from rlx.types import State

StopKind = Literal["fixed", "schedule", "rank", "threshold"]

_PENALTY = 1e-3
"""Reward that a unit of doubt costs under rank: the value of M2AC's authors."""


class ImaginedSteps(NamedTuple):
    """Steps that a model imagined."""

    obs: Tensor  # [M, D]
    action: Tensor  # [M, A] in [-1, 1]
    reward: Tensor  # [M]
    alive: Tensor  # [M] probability that the episode goes on
    next_obs: Tensor  # [M, D]


class Stop:
    """A rule for where rollouts stop.

    Args:
        kind: which.
        max_steps: of a rollout, H.
        scale: ξ of threshold.
        quantile: ζ of threshold.
        most: largest κ of threshold: one that only compares a model with itself never refuses all of it.
    """

    def __init__(self, kind: StopKind, max_steps: int, *, scale: float = 1.0, quantile: float = 0.95, most: float = math.inf) -> None:
        self.kind, self.max_steps = kind, max_steps
        self._scale, self._quantile, self._most = scale, quantile, most
        self._total, self._rounds = 0.0, 0

    @property
    def needs_doubt(self) -> bool:
        return self.kind in ("rank", "threshold")

    @property
    def limit(self) -> float:
        """The threshold κ; infinite before the first round."""
        return min(self._most, self._total / self._rounds) if self._rounds else math.inf

    def num_steps(self, fraction: float) -> int:
        """Most steps of a rollout when `fraction` of the budget is spent."""
        return 1 + int(fraction * (self.max_steps - 1) + 0.5) if self.kind == "schedule" else self.max_steps

    def begin(self, doubt: Tensor) -> None:
        """Count a round of rollouts by the doubt [n] at their first step."""
        if self.kind == "threshold":
            self._total += self._scale * float(doubt.cpu().quantile(self._quantile))
            self._rounds += 1

    def judge(self, h: int, doubt: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows [n] to keep of step h, and which rollouts [n] go on, by their doubt [n]."""
        everywhere = torch.ones_like(doubt, dtype=torch.bool)
        if self.kind == "threshold":
            certain = doubt <= self.limit
            return certain, certain
        if self.kind == "rank":
            share = (self.max_steps - h) / (2 * (self.max_steps + 1)) if self.max_steps > 1 else 0.5
            kept = torch.zeros_like(everywhere)
            kept[doubt.argsort(stable=True)[: round(share * len(doubt))]] = True
            return kept, everywhere
        return everywhere, everywhere

    def state_dict(self) -> State:
        return {"total": self._total, "rounds": self._rounds}

    def load_state_dict(self, state: State) -> None:
        self._total, self._rounds = state["total"], state["rounds"]


@torch.no_grad()
def imagine(
    model: MemberModel, policy: PolicyFn, obs: Tensor, stop: Stop, doubt: Doubt, *, num_steps: int, num_actions: int
) -> tuple[ImaginedSteps, int]:
    """Rollouts from obs [N, D]: the steps that are kept, and how many predictions of members were made.

    Where a rule needs doubt, all members predict every row, and the row follows one of them. Otherwise each row asks one member.
    """
    kept: list[ImaginedSteps] = []
    num_calls = 0
    for h in range(num_steps):
        if not len(obs):
            break
        action = policy(obs, torch.randn(len(obs), num_actions, device=obs.device))[0]
        if stop.needs_doubt:
            next_obs, reward, alive, doubted = _ask_all(model, obs, action, doubt)
            num_calls += model.num_members * len(obs)
            if h == 0:
                stop.begin(doubted)
            keep, going = stop.judge(h, doubted)
            if stop.kind == "rank":
                reward = reward - _PENALTY * doubted
            steps = ImaginedSteps(obs, action, reward, alive, next_obs)
            kept.append(ImaginedSteps(*(x[keep] for x in steps)))
            obs = next_obs[going & (alive > 0.5)]
        else:
            steps = _ask_one(model, obs, action)
            num_calls += len(obs)
            kept.append(steps)
            obs = steps.next_obs[steps.alive > 0.5]
    if not kept:
        nothing = obs.new_zeros(0)
        return ImaginedSteps(obs, obs.new_zeros(0, num_actions), nothing, nothing, obs), 0
    return ImaginedSteps(*(torch.cat(parts) for parts in zip(*kept, strict=True))), num_calls


def _ask_one(model: MemberModel, obs: Tensor, action: Tensor) -> ImaginedSteps:
    """Steps of obs [n, D] under action [n, A], each by one member, which equally many rows ask."""
    members, num = model.num_members, len(obs)
    each = -(-num // members)
    order = torch.randperm(num, device=obs.device)
    rows = order.repeat(-(-each * members // num))[: each * members].view(members, each)
    step = model.step(obs[rows], action[rows], noise=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(num, device=obs.device)  # the first of a row's places, if it has two
    found = (x.flatten(0, 1)[place] for x in (step.reward, step.alive, step.next_obs))
    return ImaginedSteps(obs, action, *found)


def _ask_all(model: MemberModel, obs: Tensor, action: Tensor, doubt: Doubt) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Next obs [n, D], reward [n] and alive [n] of a drawn member, and the doubt [n] of all."""
    members, num = model.num_members, len(obs)
    step = model.step(obs.expand(members, -1, -1), action.expand(members, -1, -1), noise=True)
    member = torch.randint(members, (num,), device=obs.device)
    doubted = doubt(obs + step.predicted.change, step.predicted.variance, member)
    rows = torch.arange(num, device=obs.device)
    return step.next_obs[member, rows], step.reward[member, rows], step.alive[member, rows], doubted


@dataclass
class ImaginedData:
    """The imagined steps of the last fit, from which batches are drawn.

    Args:
        steps: M of them.
        num_rollouts: that they are of.
        num_calls: predictions of a member that they took.
    """

    steps: ImaginedSteps
    num_rollouts: int = 0
    num_calls: int = 0

    @classmethod
    def empty(cls, num_features: int, num_actions: int, device: torch.device) -> ImaginedData:
        """No steps, of D features and A actions."""
        obs, scalar = torch.zeros(0, num_features, device=device), torch.zeros(0, device=device)
        return cls(ImaginedSteps(obs, torch.zeros(0, num_actions, device=device), scalar, scalar, obs))

    @property
    def rollout_length(self) -> float:
        """Steps of a rollout that were kept, on average."""
        return len(self.steps.reward) / max(1, self.num_rollouts)

    def draw(self, num: int) -> ImaginedSteps:
        """Steps [num], each drawn with the same probability."""
        index = torch.randint(max(1, len(self.steps.reward)), (num,), device=self.steps.reward.device)
        return ImaginedSteps(*(x[index] for x in self.steps))

    def state_dict(self) -> State:
        return {
            **{name: x.clone() for name, x in self.steps._asdict().items()},
            "num_rollouts": self.num_rollouts,
            "num_calls": self.num_calls,
        }

    def load_state_dict(self, state: State) -> None:
        device = self.steps.obs.device
        self.steps = ImaginedSteps(*(state[name].to(device, copy=True) for name in ImaginedSteps._fields))
        self.num_rollouts, self.num_calls = state["num_rollouts"], state["num_calls"]
