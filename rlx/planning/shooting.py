"""Shooting planners, which optimise sequences of actions by their returns in a model: CEM, iCEM and MPPI.

They plan for B states at once, with N candidates of H actions each. Actions are scaled to [-1, 1]. All planners return the final mean of
their distribution, not the best sample: the best of many samples also has the largest errors of the model in its favour. Nothing here waits
for the device: shapes are fixed, and no number is read on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlx.models.unroll import Imagined, unroll
from rlx.types import Model

Score = Callable[[Tensor], Tensor]
"""Candidates [B, N, H, A] within [-1, 1] to their returns [B, N]; returns that are not finite rank last."""


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """Settings of a planner."""

    kind: Literal["cem", "icem", "mppi"] = "cem"
    num_candidates: int = 200  # N
    num_iterations: int = 4
    num_elites: int = 20
    momentum: float = 0.1  # share of the old mean and variance that an iteration keeps
    init_std: float = 0.5
    noise_beta: float = 2.0  # iCEM and MPPI: the noise's power falls with frequency to this power
    population_decay: float = 1.25  # iCEM: the number of candidates is divided by this every iteration
    keep_elites: float = 0.3  # iCEM: share of the elites that compete again in the next iteration and at the next env step
    temperature: float = 0.3  # MPPI: in standard deviations of the candidates' returns

    @property
    def num_kept(self) -> int:
        """Elites that compete again, E."""
        return int(self.keep_elites * self.num_elites) if self.kind == "icem" else 0


class Memory(NamedTuple):
    """Warm start: the previous env step's plan, shifted by one step."""

    mean: Tensor  # [B, H, A] within [-1, 1]
    elites: Tensor  # [B, E, H, A]
    known: Tensor  # [B] bool: whether there are elites


def no_memory(batch_size: int, horizon: int, num_actions: int, config: PlannerConfig, device: torch.device) -> Memory:
    """The warm start before the first plan: a mean of zeros, and no elites."""
    mean = torch.zeros(batch_size, horizon, num_actions, device=device)
    elites = torch.zeros(batch_size, config.num_kept, horizon, num_actions, device=device)
    return Memory(mean, elites, torch.zeros(batch_size, dtype=torch.bool, device=device))


class Plan(NamedTuple):
    """Actions to take, and the model's predictions for them."""

    mean: Tensor  # [B, H, A] within [-1, 1]
    elites: Tensor  # [B, E, H, A] candidates that compete again at the next env step
    predicted_return: Tensor  # [B] over the first `horizon` steps
    disagreement: Tensor  # [B] of the model, mean over those steps
    horizon: Tensor  # [B] long: steps that counted

    def rest(self) -> Memory:
        """The warm start of the next env step: the plan without its first action, with 0, the centre of the space, as the last one."""
        mean = torch.cat([self.mean[:, 1:], torch.zeros_like(self.mean[:, :1])], dim=1)
        elites = torch.cat([self.elites[:, :, 1:], torch.zeros_like(self.elites[:, :, :1])], dim=2)
        return Memory(mean, elites, torch.ones(len(mean), dtype=torch.bool, device=mean.device))


def mean_reward(imagined: Imagined) -> Tensor:
    """Rewards [H, B, N], the mean over particles."""
    reward = imagined.reward
    return reward.flatten(1, -3).mean(1) if reward.dim() > 3 else reward


class UncertaintyPenalty(NamedTuple):
    """How the model's disagreement changes returns: its cost per step, and the limit at which plans end."""

    cost: float = 0.0
    limit: float = math.inf

    @property
    def needs_disagreement(self) -> bool:
        return self.cost > 0.0 or self.limit < math.inf

    def returns(self, reward: Tensor, disagreement: Tensor | None) -> tuple[Tensor, Tensor]:
        """Penalised returns [B, N] of candidates with rewards and disagreements [H, B, N], and how many steps of them count [B].

        With a limit, the plans of a state end where the median disagreement over its candidates exceeds `limit`. All end at the same step:
        among plans of different lengths, the shorter would win wherever rewards are negative. The first step always counts.
        """
        horizon = torch.full(reward.shape[1:2], len(reward), device=reward.device)
        if disagreement is None:
            return reward.sum(0), horizon
        reward = reward - self.cost * disagreement if self.cost > 0.0 else reward
        if self.limit == math.inf:
            return reward.sum(0), horizon
        counts = (_median(disagreement) <= self.limit).to(reward.dtype)  # [H, B]
        counts[0] = 1.0
        counts = counts.cumprod(0)
        return torch.where(counts[..., None] > 0.0, reward, 0.0).sum(0), counts.sum(0).long()


def _median(x: Tensor) -> Tensor:
    """Lower median of x [*, N], ignoring NaN; NaN if all are. torch's has no deterministic kernel on a GPU."""
    index = ((~x.isnan()).sum(-1, keepdim=True) - 1).div(2, rounding_mode="floor").clamp(min=0)
    return x.sort(-1).values.gather(-1, index).squeeze(-1)  # NaN comes last


def plan(
    model: Model, obs: Tensor, memory: Memory, config: PlannerConfig, *, to_action: Callable[[Tensor], Tensor], penalty: UncertaintyPenalty,
    measured: Model,
) -> Plan:  # fmt: skip
    """Plans from obs [B, D].

    Args:
        model: predicts the candidates' returns.
        obs: where plans begin.
        memory: the warm start.
        config: settings of the planner.
        to_action: from [-1, 1] to the units of the action space.
        penalty: how disagreement changes returns.
        measured: the same model, with its disagreement measured; predicts the return of the final mean.
    """

    def imagine(with_model: Model, candidates: Tensor) -> tuple[Tensor, Tensor | None]:
        actions = to_action(candidates).movedim(2, 0)  # [H, B, N, A]
        imagined = unroll(with_model, with_model.initial(obs, candidates.shape[1]), actions, len(actions))
        return mean_reward(imagined), imagined.disagreement

    mean, elites = PLANNERS[config.kind](lambda candidates: penalty.returns(*imagine(model, candidates))[0], memory, config)
    reward, disagreement = imagine(measured, mean[:, None])
    assert disagreement is not None
    _, horizon = penalty.returns(reward, disagreement)
    counts = (torch.arange(len(reward), device=obs.device)[:, None] < horizon).to(torch.float32)  # [H, B]
    reward, disagreement = reward[..., 0], disagreement[..., 0]
    return Plan(mean, elites, (reward * counts).sum(0), (disagreement * counts).sum(0) / horizon, horizon)


def cem(score: Score, memory: Memory, config: PlannerConfig) -> tuple[Tensor, Tensor]:
    """The cross-entropy method with truncated normal samples, as in PETS' code; returns the final mean [B, H, A] and no elites.

    The variance is limited so that two standard deviations never leave [-1, 1]. Deviation: the number of iterations is fixed, where the
    original stops once the variance is small.
    """
    mean = memory.mean
    batch, horizon, features = mean.shape
    noise = truncated_normal((config.num_iterations, batch, config.num_candidates, horizon, features), mean.device)
    variance = torch.full_like(mean, config.init_std**2)
    for iteration in range(config.num_iterations):
        room = (1.0 - mean.abs()) / 2.0
        std = torch.minimum(variance, room.square()).sqrt()
        candidates = torch.addcmul(mean[:, None], std[:, None], noise[iteration])
        new_mean, new_variance, _ = _fit_elites(candidates, score(candidates), config.num_elites, mean, variance)
        mean, variance = new_mean.lerp(mean, config.momentum), new_variance.lerp(variance, config.momentum)
    return mean, memory.elites[:, :0]


def icem(score: Score, memory: Memory, config: PlannerConfig) -> tuple[Tensor, Tensor]:
    """Improved CEM; returns the final mean [B, H, A] and elites [B, E, H, A].

    The noise is coloured, every iteration has fewer candidates than the one before, and some elites compete again.

    Pinneri et al. 2020, https://arxiv.org/abs/2008.06389. In the first iteration, elites of the previous env step replace as many new
    candidates; their last action is drawn anew. Deviation: the mean is returned, where the paper takes the best sample.
    """
    mean = memory.mean
    batch, horizon, features = mean.shape
    noise = coloured((config.num_iterations, batch, config.num_candidates), horizon, features, config.noise_beta, mean.device)
    variance = torch.full_like(mean, config.init_std**2)
    kept = memory.elites[:, :0]
    for iteration in range(config.num_iterations):
        size = max(int(config.num_candidates / config.population_decay**iteration), 2 * config.num_elites)
        size = min(size, config.num_candidates)
        candidates = torch.addcmul(mean[:, None], variance.sqrt()[:, None], noise[iteration, :, :size]).clamp_(-1.0, 1.0)
        if iteration == 0 and memory.elites.shape[1] > 0:
            again = memory.elites[:, : config.num_candidates // 2]
            new = candidates[:, -again.shape[1] :]
            again = torch.cat([again[:, :, :-1], new[:, :, -1:]], dim=2)
            candidates[:, -again.shape[1] :] = torch.where(memory.known[:, None, None, None], again, new)
        candidates = torch.cat([candidates, kept], dim=1)
        if iteration == config.num_iterations - 1:
            candidates[:, 0] = mean
        new_mean, new_variance, elites = _fit_elites(candidates, score(candidates), config.num_elites, mean, variance)
        mean, variance = new_mean.lerp(mean, config.momentum), new_variance.lerp(variance, config.momentum)
        kept = elites[:, : config.num_kept]
    return mean, kept


def mppi(score: Score, memory: Memory, config: PlannerConfig) -> tuple[Tensor, Tensor]:
    """Model-predictive path integral control: the mean of all candidates, weighted by exp(return / temperature), [B, H, A]; no elites.

    Williams et al. 2017, https://arxiv.org/abs/1707.02342. Deviations: the temperature is in standard deviations of the candidates'
    returns, so that it does not depend on the reward's scale; the noise is coloured, and halves with every iteration.
    """
    mean = memory.mean
    batch, horizon, features = mean.shape
    noise = coloured((config.num_iterations, batch, config.num_candidates), horizon, features, config.noise_beta, mean.device)
    for iteration in range(config.num_iterations):
        candidates = (mean[:, None] + config.init_std * 0.5**iteration * noise[iteration]).clamp_(-1.0, 1.0)
        returns = score(candidates)
        valid = returns.isfinite()
        returns = torch.where(valid, returns, -math.inf)
        best = returns.amax(1, keepdim=True)
        centred = torch.where(valid, returns - best, 0.0)  # nothing is above 0
        spread = centred.square().sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
        spread = (spread - (centred.sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)).square()).clamp(min=0.0).sqrt()
        weight = torch.where(valid, (centred / (config.temperature * spread + 1e-8)).exp(), 0.0)
        weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-8)
        new_mean = torch.einsum("bn,bnha->bha", weight, candidates)
        mean = torch.where(valid.any(1)[:, None, None], new_mean, mean)
    return mean, memory.elites[:, :0]


PLANNERS = {"cem": cem, "icem": icem, "mppi": mppi}


def _fit_elites(candidates: Tensor, returns: Tensor, num_elites: int, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance [B, H, A] of the elites, unchanged where no return is finite, and the elites [B, E, H, A], best first."""
    returns = torch.where(returns.isfinite(), returns, -math.inf)
    values, index = returns.topk(num_elites, dim=1)
    elites = candidates.gather(1, index[:, :, None, None].expand(-1, -1, *candidates.shape[2:]))
    counts = values.isfinite().to(candidates.dtype)
    weight = (counts / counts.sum(1, keepdim=True).clamp(min=1.0))[:, :, None, None]
    new_mean = (elites * weight).sum(1)
    new_variance = ((elites - new_mean[:, None]).square() * weight).sum(1)
    some = values.isfinite().any(1)[:, None, None]
    return torch.where(some, new_mean, mean), torch.where(some, new_variance, variance), elites


def truncated_normal(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal numbers truncated at two standard deviations, by inversion: rejection would repeat until the last one is accepted."""
    inside = math.erf(2.0**0.5)
    uniform = torch.rand(shape, device=device)
    return uniform.mul_(2.0 * inside).sub_(inside).erfinv_().mul_(2.0**0.5).clamp_(-2.0, 2.0)


def coloured(shape: tuple[int, ...], horizon: int, features: int, beta: float, device: torch.device) -> Tensor:
    """Normal noise [*shape, H, A] of unit variance with a power spectrum along H of 1 / frequency^beta (Timmer and Koenig 1995)."""
    frequency = torch.arange(horizon // 2 + 1, device=device, dtype=torch.float32) / horizon
    amplitude = frequency.clamp(min=1.0 / horizon) ** (-beta / 2.0)
    angle = 2.0 * math.pi * torch.arange(horizon, device=device)[:, None] * frequency
    basis = torch.cat([amplitude * angle.cos(), amplitude * angle.sin()], dim=1)  # [H, 2 F]
    basis = basis / basis.square().sum(1, keepdim=True).sqrt()
    normal = torch.randn(*shape, basis.shape[1], features, device=device)
    return basis @ normal
