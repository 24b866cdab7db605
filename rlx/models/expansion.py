"""Targets of critics that look some steps ahead in a model: model-based value expansion and its weighting by uncertainty.

Feinberg et al. 2018 (MVE), https://arxiv.org/abs/1803.00101, and Buckman et al. 2018 (STEVE), https://arxiv.org/abs/1807.01675, with the
entropy bonus of SAC at every imagined step. From a real step (s, a, r, s') member k imagines ŝ_0 = s' and ŝ_{i+1} from ŝ_i under
â_i ~ π(ŝ_i):

    T_h = r + d Σ_{i<h} γ^i D_i (r̂_{i+1} - α log π(â_i|ŝ_i)) + d γ^h D_h (Q'_k(ŝ_h, â_h) - α log π(â_h|ŝ_h))        h = 0 .. H

with d the discount of the real step, 0 after a termination, and D_h the probability that the episode goes on until ŝ_h. T_0 is the target
without a model. MVE takes the mean of T_H over members. STEVE weighs the means of T_0 .. T_H by the inverse of the members' variance.

Deviations from STEVE: critic k follows member k only, instead of all combinations, so that the members' differences are those of the model
and of the critic together, at a fraction of the cost; and all members meet the same noise of the policy, so that it is no part of the
variance. With TD-k, critic k learns from the states that member k imagined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlx.models.members import MemberModel

PolicyFn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Actions in [-1, 1] [*, A] and their log-probabilities [*] for obs [*, D] and standard normal noise [*, A]."""
CriticFn = Callable[[Tensor, Tensor], Tensor]
"""Values [K, n] of the target critics for obs [K, n, D] and actions [K, n, A]."""

_LEAST_VARIANCE = 1e-8


class Expansion(NamedTuple):
    """Estimates of every horizon, by member."""

    estimate: Tensor  # [H + 1, K, B] T_h
    obs: Tensor  # [H + 1, K, B, D] of the imagined steps
    action: Tensor  # [H + 1, K, B, A] in [-1, 1]
    reward: Tensor  # [H, K, B]
    alive: Tensor  # [H, K, B] probability that the episode goes on after each imagined step
    value: Tensor  # [H + 1, K, B] Q' - α log π
    bonus: Tensor  # [H + 1, K, B] -α log π


class ExtraSteps(NamedTuple):
    """Imagined steps that critics learn from too."""

    obs: Tensor  # [K, H * B, D]
    action: Tensor  # [K, H * B, A]
    target: Tensor  # [K, H * B]
    weight: Tensor  # [K, H * B] probability of getting there


@torch.no_grad()
def expand(
    model: MemberModel | None, policy: PolicyFn, critics: CriticFn, reward: Tensor, discount: Tensor, next_obs: Tensor, *,
    alpha: Tensor | float, gamma: float, horizon: int, num_critics: int, num_actions: int,
) -> Expansion:  # fmt: skip
    """Estimates T_0 .. T_H of the values of B real steps.

    Args:
        model: None if nothing is imagined, with a horizon of 0.
        policy: the current one.
        critics: K target critics.
        reward: [B] of the real steps.
        discount: [B], 0 where they terminated.
        next_obs: [B, D].
        alpha: weight of the entropy.
        gamma: discount of an imagined step.
        horizon: imagined steps, H.
        num_critics: K, at most the members of the model, of which the first K are asked.
        num_actions: A.
    """
    batch = len(next_obs)
    noise = torch.randn(horizon + 1, batch, num_actions, device=next_obs.device)
    obs = next_obs.expand(num_critics, -1, -1)
    states, actions, bonuses, rewards, alives = [], [], [], [], []
    for h in range(horizon + 1):
        if h == 0:
            action, log_prob = policy(next_obs, noise[0])
            action, log_prob = action.expand(num_critics, -1, -1), log_prob.expand(num_critics, -1)
        else:
            action, log_prob = policy(obs, noise[h].expand(num_critics, -1, -1))
        states.append(obs)
        actions.append(action)
        bonuses.append(-alpha * log_prob)
        if h < horizon:
            assert model is not None
            step = model.step(obs, action, noise=False)
            rewards.append(step.reward)
            alives.append(step.alive)
            obs = step.next_obs
    bonus = torch.stack(bonuses)
    q = critics(torch.cat(states, dim=1), torch.cat(actions, dim=1)).view(num_critics, horizon + 1, batch).transpose(0, 1)
    value = q + bonus
    nothing = bonus.new_zeros(0, num_critics, batch)
    reward_ahead, alive = (torch.stack(parts) if parts else nothing for parts in (rewards, alives))
    estimates, earned, reach = [value[0]], torch.zeros_like(value[0]), torch.ones_like(value[0])
    for h in range(1, horizon + 1):
        earned = earned + gamma ** (h - 1) * reach * (reward_ahead[h - 1] + bonus[h - 1])
        reach = reach * alive[h - 1]
        estimates.append(earned + gamma**h * reach * value[h])
    estimate = torch.addcmul(reward, discount, torch.stack(estimates))
    return Expansion(estimate, torch.stack(states), torch.stack(actions), reward_ahead, alive, value, bonus)


def steve_weights(estimate: Tensor) -> Tensor:
    """Weights [H + 1, B] of horizons by the inverse variance of estimates [H + 1, K, B] over members; they sum to 1."""
    precision = 1.0 / (estimate.var(1, correction=0) + _LEAST_VARIANCE)
    return precision / precision.sum(0)


def one_horizon(estimate: Tensor, horizon: int) -> Tensor:
    """Weights [H + 1, B] that are 1 for one horizon, for estimates [H + 1, K, B]."""
    weights = torch.zeros_like(estimate[:, 0])
    weights[horizon] = 1.0
    return weights


def weighted(estimate: Tensor, weights: Tensor) -> Tensor:
    """Targets [B]: the members' means of estimates [H + 1, K, B], weighted by horizon [H + 1, B]."""
    return (weights * estimate.mean(1)).sum(0)


def extra_steps(expansion: Expansion, discount: Tensor, *, gamma: float) -> ExtraSteps:
    """The imagined steps t = 0 .. H - 1 with targets up to the last horizon: the TD-k trick of MVE, section 3.2.

    Without it critics would be asked about imagined states while they learn from real ones only.

    Args:
        expansion: with H >= 1.
        discount: [B] of the real steps.
        gamma: discount of an imagined step.
    """
    targets, value, horizon = [], expansion.value[-1], len(expansion.reward)
    for t in reversed(range(horizon)):
        targets.append(expansion.reward[t] + gamma * expansion.alive[t] * value)
        value = expansion.bonus[t] + targets[-1]
    first = (discount > 0.0).to(value.dtype).expand_as(value)[None]
    weight = torch.cat([first, first * expansion.alive[:-1].cumprod(0)])

    def by_member(x: Tensor) -> Tensor:
        return x[:horizon].transpose(0, 1).flatten(1, 2)

    target = torch.stack(targets[::-1])
    return ExtraSteps(by_member(expansion.obs), by_member(expansion.action), by_member(target), by_member(weight))
