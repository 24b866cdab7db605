"""What planners imagine with: an ensemble that is only asked, and how uncertainty travels through it.

Chua et al. 2018, section 5. Particles are laid out by member, [K, P, B, N, D], so that trajectory sampling with a member for each particle
(TS-infinity) moves no data at all, and a network's layer is one product over K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
        self._input_mean = ensemble.input_mean.clone()
        self._weights = [w.detach().clone() for w in ensemble.weights]
        self._biases = [b.detach().clone() for b in ensemble.biases]
        self._weights[0] *= ensemble.input_scale[:, None]
        # The last layer gives the mean in the targets' units, and high - raw of `bound_log_variance`, whose rest is in `spread`.
        self._weights[-1] *= torch.cat([ensemble.output_scale, -torch.ones_like(low)])
        self._biases[-1] = self._biases[-1] * torch.cat([ensemble.output_scale, -torch.ones_like(low)])
        self._biases[-1] += torch.cat([ensemble.output_mean, high])
        self._range = high - low
        self.noise_scale = ensemble.output_scale * (0.5 * low).exp()
        """[O] standard deviations are this times `spread`."""

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [K, M, I] to means [K, M, O] in the targets' units, and what `spread` takes [K, M, O]."""
        x = inputs - self._input_mean  # not in the bias, which would cancel all digits of a feature far from 0
        for weight, bias in zip(self._weights[:-1], self._biases[:-1], strict=True):
            x = F.silu(torch.baddbmm(bias, x, weight), inplace=True)
        mean, raw = torch.baddbmm(self._biases[-1], x, self._weights[-1]).chunk(2, dim=-1)
        return mean, raw

    @torch.no_grad()
    def spread(self, raw: Tensor) -> Tensor:
        """Standard deviations [K, M, O] as multiples of `noise_scale`."""
        return F.softplus(self._range - F.softplus(raw)).mul_(0.5).exp_()


@dataclass(kw_only=True)
class EnsembleModel:
    """A `DynamicsModel` of observations [D], whose outputs are their changes and, if the reward is learned, the reward.

    The members of one particle share their noise, and so do all candidates: candidates are compared under equal luck, and what separates
    the members is what they disagree about. Deviation: in the paper every particle of every candidate has noise of its own, as here only
    with `own_noise`.

    Args:
        frozen: the members.
        obs_scale: [D] deviations of the observations; 0 of a constant feature.
        propagation: ts_inf keeps a particle with its member, ts_1 deals the particles anew at every step, mean goes on from the mean of
            the members' means and has no noise.
        particles: of each member, P.
        reward_fn: the known reward, or None if the last output is it.
        termination_fn: None if episodes never terminate.
        measure_disagreement: also say, at every step, how far apart the members' predictions are: their standard deviation in units of
            obs_scale, as root mean square over the features that vary.
        own_noise: for samples of what may come, which luck in common would make fewer than they look.
    """

    frozen: FrozenEnsemble
    obs_scale: Tensor
    propagation: Propagation
    particles: int
    reward_fn: RewardFn | None
    termination_fn: TerminationFn | None
    measure_disagreement: bool
    own_noise: bool = False

    def __post_init__(self) -> None:
        varies = self.obs_scale > 0.0
        share = varies / varies.sum().clamp(min=1)
        self._disagreement_weight = torch.where(varies, share / self.obs_scale.square(), 0.0).to(torch.float32)

    def begin(self, obs: Tensor, num_candidates: int) -> Tensor:
        members, particles = (1, 1) if self.propagation == "mean" else (self.frozen.num_members, self.particles)
        return obs.to(torch.float32)[None, None, :, None, :].expand(members, particles, -1, num_candidates, -1)

    def step(self, state: Tensor, action: Tensor) -> ModelStep:
        """One step from states [K, P, B, N, D] under actions [B, N, A]."""
        members, (_, particles, batch, candidates, features) = self.frozen.num_members, state.shape
        shape = (members, particles, batch, candidates)
        inputs = torch.cat([state.expand(*shape, -1), action.expand(*shape, -1)], dim=-1)
        mean, raw = self._predict(inputs.view(members, -1, inputs.shape[-1]))
        mean = mean.view(*shape, -1)
        change = mean[..., :features]
        disagreement = self._disagreement(state + change) if self.measure_disagreement else None
        if self.propagation == "mean":
            mean = mean.mean(0, keepdim=True)
            next_state = state + mean[..., :features]
        else:
            independent = (members, particles, batch, candidates) if self.own_noise else (1, particles, batch, 1)
            noise = torch.randn(*independent, features, device=state.device)
            noise *= self.frozen.noise_scale[:features]
            next_state = torch.addcmul(state + change, self.frozen.spread(raw).view(*shape, -1)[..., :features], noise)
        reward = mean[..., features] if self.reward_fn is None else self.reward_fn(state, action, next_state)
        discount = None
        if self.termination_fn is not None:
            discount = (~self.termination_fn(next_state)).to(torch.float32).flatten(0, 1)
        return ModelStep(next_state, reward.flatten(0, 1), discount, disagreement)

    def _predict(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions for inputs [K, M, I]; under ts_1 the particles, which keep their places, ask members dealt anew."""
        if self.propagation != "ts_1":
            return self.frozen.predict(inputs)
        places = inputs.view(self.frozen.num_members * self.particles, -1, inputs.shape[-1])
        order = torch.randperm(len(places), device=inputs.device)
        back = order.argsort()
        return tuple(x.reshape(*places.shape[:2], -1)[back] for x in self.frozen.predict(places[order].view_as(inputs)))  # type: ignore[return-value]

    def _disagreement(self, prediction: Tensor) -> Tensor:
        """[B, N] from the members' predictions [K, P, B, N, D]."""
        return (prediction.mean(1).var(0, correction=0) @ self._disagreement_weight).sqrt()
