"""An ensemble as a model to plan with: particles follow its members, which propagates their uncertainty through time.

Chua et al. 2018, section 5. Particles are laid out by member, [K, P, B, N, D], so that trajectory sampling with a member for each particle
(TS-infinity) moves no data, and a network's layer is one product over K. States are kept as distances from the inputs' centre. Rewards and
terminations are computed once, for all steps together, because a GPU spends its time on launches here, not on arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rlx.models.ensemble import Ensemble
from rlx.types import ModelStep, RewardFn, TerminationFn

Propagation = Literal["ts_inf", "ts_1", "mean"]


class FrozenEnsemble:
    """Predictions of an ensemble without gradients, with the scales of inputs and targets in the first and the last layer."""

    def __init__(self, ensemble: Ensemble) -> None:
        low, high = ensemble.low.detach(), ensemble.high.detach()
        self.num_members = ensemble.num_members
        self.centre = ensemble.input_mean.clone()
        """[I] is subtracted from inputs. In a bias it would cancel all digits of a feature far from 0."""
        self._weights = [w.detach().clone() for w in ensemble.weights]
        self._biases = [b.detach().clone() for b in ensemble.biases]
        self._weights[0] *= ensemble.input_scale[:, None]
        # The last layer gives the mean in the targets' units, and raw - high of `bound_log_variance`; `spread` computes the rest.
        self._weights[-1] *= torch.cat([ensemble.output_scale, torch.ones_like(low)])
        self._biases[-1] = self._biases[-1] * torch.cat([ensemble.output_scale, torch.ones_like(low)])
        self._biases[-1] += torch.cat([ensemble.output_mean, -high])
        self._one, self._range = torch.ones_like(low), (high - low).clamp(max=80.0).exp()
        self.noise_scale = ensemble.output_scale * (0.5 * low).exp()
        """[O] standard deviations are this times `spread`."""

    @torch.no_grad()
    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs less their centre [K, M, I] to means [K, M, O] in the targets' units, and raw log-variances [K, M, O] for `spread`."""
        for weight, bias in zip(self._weights[:-1], self._biases[:-1], strict=True):
            x = F.silu(torch.baddbmm(bias, x, weight), inplace=True)
        mean, raw = torch.baddbmm(self._biases[-1], x, self._weights[-1]).chunk(2, dim=-1)
        return mean, raw

    @torch.no_grad()
    def spread(self, raw: Tensor) -> Tensor:
        """Standard deviations as multiples of `noise_scale`, of the first outputs [*, up to O].

        exp(softplus(high - low - softplus(high - raw)) / 2) = sqrt(1 + exp(high - low) sigmoid(raw - high)).
        """
        n = raw.shape[-1]
        return torch.addcmul(self._one[:n], self._range[:n], raw.sigmoid()).sqrt_()


class _Deal(NamedTuple):
    """The assignment of particles to members in a step."""

    places: Tensor  # [K, P]
    members: Tensor  # [K, P]
    number: Tensor  # [P]


@dataclass(kw_only=True)
class EnsembleModel:
    """A `rlx.types.Model` of observations [D]; the ensemble's outputs are their changes and, if the reward is learned, the reward.

    All candidates are compared with common random numbers. A plan must not exploit them: with the same noise in all particles too, the plan
    would counteract this noise, although the environment's will be different. Therefore each particle has its own noise, as in the paper,
    and at every step the noise of all particles sums to 0, while each particle's is still standard normal. A single particle follows the
    mean. Disagreement is the spread of the members' states without noise.

    Args:
        frozen: the members.
        obs_scale: [D] deviations of the observations; 0 of a constant feature.
        propagation: ts_inf keeps a particle with its member, ts_1 assigns particles to members anew at every step, mean follows the mean
            of the members' means without noise.
        num_particles: of each member, P.
        reward_fn: the known reward; None if the last output is the reward.
        termination_fn: None if episodes never terminate.
        measure_disagreement: also return the disagreement at every step: the standard deviation of the members' states without noise, in
            units of obs_scale, as root mean square over the features that vary.
        own_noise: independent noise for every particle of every candidate, so that particles are samples of the prediction.
    """

    frozen: FrozenEnsemble
    obs_scale: Tensor
    propagation: Propagation
    num_particles: int
    reward_fn: RewardFn | None
    termination_fn: TerminationFn | None
    measure_disagreement: bool
    own_noise: bool = False

    def __post_init__(self) -> None:
        varies = self.obs_scale > 0.0
        share = varies / varies.sum().clamp(min=1)
        self._disagreement_weight = torch.where(varies, share / self.obs_scale.square(), 0.0).to(torch.float32)

    @property
    def _is_mean(self) -> bool:
        return self.propagation == "mean"

    @property
    def _has_noise(self) -> bool:
        return not self._is_mean and (self.own_noise or self.frozen.num_members * self.num_particles > 1)

    def initial(self, obs: Tensor, num_candidates: int = 1) -> Tensor:
        """States [K, P, B, N, D] from obs [B, D]; K = 1 where particles follow the mean of the members.

        Where there is noise and disagreement is measured, each member has one more particle, without noise, for the disagreement.
        """
        members = 1 if self._is_mean else self.frozen.num_members
        measuring = self.measure_disagreement and members > 1 and self._has_noise
        particles = 1 if self._is_mean else self.num_particles + measuring
        return obs.to(torch.float32)[:, None].expand(members, particles, -1, num_candidates, -1)

    def step(self, state: Tensor, action: Tensor) -> ModelStep:
        """One step from states [K, P, B, N, D] under actions [B, N, A], with noise of its own; rewards are [K * P, B, N]."""
        states, reward, discount, disagreement = self.steps(state, action[None])
        return ModelStep(states[0], reward[0], None if discount is None else discount[0], None if disagreement is None else disagreement[0])

    @torch.no_grad()
    def steps(self, state: Tensor, actions: Tensor) -> ModelStep:
        """H steps at once from states [K, P, B, N, D] under actions [H, B, N, A].

        Noise is drawn for all steps together, and rewards and terminations are computed once.
        """
        frozen, features = self.frozen, state.shape[-1]
        horizon, (members, slots, batch, candidates) = len(actions), state.shape[:-1]
        particles = 1 if self._is_mean else self.num_particles
        centre = frozen.centre
        noise = self._noise((horizon, members, particles, batch, candidates, features)) if self._has_noise else None
        inputs = actions.new_empty(horizon + 1, members, slots, batch, candidates, len(centre))
        inputs[0, ..., :features] = state - centre[:features]
        inputs[:-1, ..., features:] = (actions - centre[features:])[:, None, None]
        deals = self._deal(horizon, slots) if self.propagation == "ts_1" else [None] * horizon
        rewards, predictions = [], []
        for t in range(horizon):
            mean, raw = self._predict(inputs[t], deals[t])
            if self._is_mean:
                predictions.append(mean[..., :features])
                mean = mean.mean(0, keepdim=True)
            following = inputs[t + 1, ..., :features]
            torch.add(inputs[t, ..., :features], mean[..., :features], out=following)
            if noise is not None:
                following[:, :particles].addcmul_(frozen.spread(raw[:, :particles, ..., :features]), noise[t])
            if self.reward_fn is None:
                rewards.append(mean[:, :particles, ..., features])
        disagreement = None
        if self.measure_disagreement:
            members_states = torch.stack(predictions)[:, :, 0] if self._is_mean else inputs[1:, :, -1, ..., :features]
            disagreement = (members_states.var(1, correction=0) @ self._disagreement_weight).sqrt_()
        states = inputs[..., :features] + centre[:features]
        before, after = states[:-1, :, :particles], states[1:, :, :particles]
        reward = torch.stack(rewards) if rewards else self.reward_fn(before, actions[:, None, None], after)  # type: ignore[misc]
        discount = None
        if self.termination_fn is not None:
            discount = (~self.termination_fn(after)).to(torch.float32).flatten(1, 2)
        return ModelStep(states[1:], reward.flatten(1, 2), discount, disagreement)

    def _noise(self, shape: tuple[int, int, int, int, int, int]) -> Tensor:
        """Noise for [H, K, P, B, N or 1, D], in the units of `spread`."""
        horizon, members, particles, batch, _, features = shape
        scale, count, device = self.frozen.noise_scale[:features], members * particles, self.obs_scale.device
        if self.own_noise:
            return torch.randn(shape, device=device).mul_(scale)
        noise = torch.randn(horizon, count, batch, 1, features, device=device)
        noise = (noise - noise.mean(1, keepdim=True)).mul_(scale * (count / (count - 1)) ** 0.5)
        return noise.unflatten(1, (members, particles))

    def _deal(self, horizon: int, slots: int) -> list[_Deal | None]:
        """For ts_1, assignments of each step: among the K places with the same P, the place of each member and vice versa."""
        device = self.obs_scale.device
        order = torch.rand(horizon, self.frozen.num_members, slots, device=device).argsort(1)
        number = torch.arange(slots, device=device)
        return [_Deal(places, members, number) for places, members in zip(order, order.argsort(1), strict=True)]

    def _predict(self, x: Tensor, deal: _Deal | None) -> tuple[Tensor, Tensor]:
        """Predictions [K, P, B, N, O] for inputs less their centre [K, P, B, N, I]."""
        if deal is not None:
            mean, raw = self._predict(x[deal.places, deal.number], None)
            return mean[deal.members, deal.number], raw[deal.members, deal.number]
        members = self.frozen.num_members
        mean, raw = self.frozen.predict(x.expand(members, *x.shape[1:]).reshape(members, -1, x.shape[-1]))
        return mean.view(members, *x.shape[1:-1], -1), raw.view(members, *x.shape[1:-1], -1)
