"""Planners that shoot sequences of actions through a model and keep to those that return most: CEM, iCEM and MPPI.

For B states at once, N candidates of H actions each. They work in a space where every action lies within [-1, 1]. All return the final mean
of their distribution, not the best sample, which has been chosen for the model's errors as much as for its merit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlx.types import DynamicsModel

Score = Callable[[Tensor], Tensor]
"""Candidates [B, N, H, A] within [-1, 1] to what they are worth [B, N]; what is not finite is the worst."""


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """How to plan."""

    method: Literal["cem", "icem", "mppi"] = "cem"
    population: int = 200  # N
    iterations: int = 4
    elites: int = 20
    momentum: float = 0.1  # share of the old mean and variance that an iteration keeps
    init_std: float = 0.5
    noise_beta: float = 2.0  # iCEM and MPPI: the noise's power falls with frequency to this power
    population_decay: float = 1.25  # iCEM: the population is divided by this every iteration
    keep_elites: float = 0.3  # iCEM: share of the elites that compete again in the next iteration
    temperature: float = 0.3  # MPPI: in standard deviations of the candidates' returns


class Plan(NamedTuple):
    """Actions to take, and what the model says of them."""

    mean: Tensor  # [B, H, A] within [-1, 1]
    predicted_return: Tensor  # [B] over the first `horizon` steps
    disagreement: Tensor  # [B] of the model, mean over those steps
    horizon: Tensor  # [B] long: steps that counted


class Imagined(NamedTuple):
    """What a model says of candidates."""

    reward: Tensor  # [H, B, N], mean over the particles; what follows a termination is 0
    disagreement: Tensor | None  # [H, B, N]


def imagine(model: DynamicsModel, obs: Tensor, actions: Tensor) -> Imagined:
    """Follow actions [B, N, H, A], in units of the action space, from obs [B, D]."""
    state = model.begin(obs, actions.shape[1])
    rewards, disagreements = [], []
    alive: Tensor | None = None  # [P, B, N]
    for action in actions.unbind(2):
        state, reward, discount, disagreement = model.step(state, action)
        if alive is not None:
            reward = torch.where(alive > 0.0, alive * reward, 0.0)  # whatever the model makes of a state that does not exist
            if disagreement is not None:
                disagreement = torch.where(alive.amax(0) > 0.0, disagreement, 0.0)
        rewards.append(reward)
        if disagreement is not None:
            disagreements.append(disagreement)
        if discount is not None:
            alive = discount if alive is None else alive * discount
    return Imagined(torch.stack(rewards).mean(1), torch.stack(disagreements) if disagreements else None)


class Trust(NamedTuple):
    """How far plans are trusted: what disagreement costs a step, and the disagreement at which plans are cut."""

    cost: float = 0.0
    limit: float = math.inf

    @property
    def needs_disagreement(self) -> bool:
        return self.cost > 0.0 or self.limit < math.inf

    def weigh(self, imagined: Imagined) -> tuple[Tensor, Tensor]:
        """What candidates are worth [B, N], and how many steps of them count [B].

        A plan is cut where the members disagree by more than `limit` in the median over its state's candidates: for all of them at the same
        step, because of plans of different lengths the shorter would win wherever rewards are negative. One step always counts.
        """
        reward, disagreement = imagined
        horizon = torch.full(reward.shape[1:2], len(reward), device=reward.device)
        if disagreement is None:
            return reward.sum(0), horizon
        reward = reward - self.cost * disagreement if self.cost > 0.0 else reward
        if self.limit == math.inf:
            return reward.sum(0), horizon
        trusted = (disagreement.nanmedian(-1).values <= self.limit).to(reward.dtype)  # [H, B]
        trusted[0] = 1.0
        trusted = trusted.cumprod(0)
        return torch.where(trusted[..., None] > 0.0, reward, 0.0).sum(0), trusted.sum(0).long()


def plan(
    model: DynamicsModel, obs: Tensor, mean: Tensor, config: PlannerConfig, *, to_action: Callable[[Tensor], Tensor], trust: Trust,
    measured: DynamicsModel,
) -> Plan:  # fmt: skip
    """Plan from obs [B, D], beginning from mean [B, H, A].

    Args:
        model: asked about candidates.
        obs: where plans begin.
        mean: the warm start.
        config: how.
        to_action: from [-1, 1] to the units of the action space.
        trust: what the model's disagreement does to a plan.
        measured: asked about the final mean; the same model, which also says how much its members disagree.
    """

    def score(candidates: Tensor) -> Tensor:
        return trust.weigh(imagine(model, obs, to_action(candidates)))[0]

    mean = PLANNERS[config.method](score, mean, config)
    imagined = imagine(measured, obs, to_action(mean[:, None]))
    assert imagined.disagreement is not None
    _, horizon = trust.weigh(imagined)
    counts = (torch.arange(len(imagined.reward), device=obs.device)[:, None] < horizon).to(torch.float32)  # [H, B]
    reward, disagreement = imagined.reward[..., 0], imagined.disagreement[..., 0]
    return Plan(mean, (reward * counts).sum(0), (disagreement * counts).sum(0) / horizon, horizon)


def cem(score: Score, mean: Tensor, config: PlannerConfig) -> Tensor:
    """The cross-entropy method with truncated normal samples, as in PETS' code; returns the final mean [B, H, A].

    The variance is limited so that two standard deviations never leave [-1, 1]. Deviation: the number of iterations is fixed, where the
    original stops once the variance is small.
    """
    batch, horizon, features = mean.shape
    noise = truncated_normal((config.iterations, batch, config.population, horizon, features), mean.device)
    variance = torch.full_like(mean, config.init_std**2)
    for iteration in range(config.iterations):
        room = (1.0 - mean.abs()) / 2.0
        std = torch.minimum(variance, room.square()).sqrt()
        candidates = torch.addcmul(mean[:, None], std[:, None], noise[iteration])
        new_mean, new_variance, _ = _fit_elites(candidates, score(candidates), config.elites, mean, variance)
        mean, variance = new_mean.lerp(mean, config.momentum), new_variance.lerp(variance, config.momentum)
    return mean


def icem(score: Score, mean: Tensor, config: PlannerConfig) -> Tensor:
    """Improved CEM: coloured noise, a population that shrinks, elites that compete again; returns the final mean [B, H, A].

    Pinneri et al. 2020, https://arxiv.org/abs/2008.06389. Deviations: elites are kept from one iteration to the next but not from one env
    step to the next, so that the mean is a plan's whole memory; and the mean is returned, where the paper takes the best sample.
    """
    batch, horizon, features = mean.shape
    noise = coloured((config.iterations, batch, config.population), horizon, features, config.noise_beta, mean.device)
    variance = torch.full_like(mean, config.init_std**2)
    kept = mean[:, None][:, :0]
    for iteration in range(config.iterations):
        size = max(int(config.population / config.population_decay**iteration), 2 * config.elites)
        size = min(size, config.population)
        candidates = torch.addcmul(mean[:, None], variance.sqrt()[:, None], noise[iteration, :, :size]).clamp_(-1.0, 1.0)
        candidates = torch.cat([candidates, kept], dim=1)
        if iteration == config.iterations - 1:
            candidates[:, 0] = mean
        new_mean, new_variance, elites = _fit_elites(candidates, score(candidates), config.elites, mean, variance)
        mean, variance = new_mean.lerp(mean, config.momentum), new_variance.lerp(variance, config.momentum)
        kept = elites[:, : int(config.keep_elites * config.elites)]
    return mean


def mppi(score: Score, mean: Tensor, config: PlannerConfig) -> Tensor:
    """Model-predictive path integral control: the mean of all candidates, weighted by exp(return / temperature); [B, H, A].

    Williams et al. 2017, https://arxiv.org/abs/1707.02342. Deviations: the temperature is in standard deviations of the candidates'
    returns, so that it does not depend on the reward's scale; the noise is coloured, and halves with every iteration.
    """
    batch, horizon, features = mean.shape
    noise = coloured((config.iterations, batch, config.population), horizon, features, config.noise_beta, mean.device)
    for iteration in range(config.iterations):
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
    return mean


PLANNERS = {"cem": cem, "icem": icem, "mppi": mppi}


def _fit_elites(candidates: Tensor, returns: Tensor, num_elites: int, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance [B, H, A] of the best candidates [B, N, H, A], and these, best first; the old ones where no return is finite."""
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
    """Standard normal numbers within two standard deviations, by inversion: rejecting would wait for the slowest."""
    inside = math.erf(2.0**0.5)
    uniform = torch.rand(shape, device=device)
    return uniform.mul_(2.0 * inside).sub_(inside).erfinv_().mul_(2.0**0.5).clamp_(-2.0, 2.0)


def coloured(shape: tuple[int, ...], horizon: int, features: int, beta: float, device: torch.device) -> Tensor:
    """Normal noise [*shape, H, A] of unit variance, whose power spectrum along H falls as 1 / frequency^beta (Timmer and Koenig 1995)."""
    frequency = torch.arange(horizon // 2 + 1, device=device, dtype=torch.float32) / horizon
    amplitude = frequency.clamp(min=1.0 / horizon) ** (-beta / 2.0)
    angle = 2.0 * math.pi * torch.arange(horizon, device=device)[:, None] * frequency
    basis = torch.cat([amplitude * angle.cos(), amplitude * angle.sin()], dim=1)  # [H, 2 F]
    basis = basis / basis.square().sum(1, keepdim=True).sqrt()
    normal = torch.randn(*shape, basis.shape[1], features, device=device)
    return basis @ normal
