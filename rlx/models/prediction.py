"""Where a learned model says that given actions lead: its mean, samples of what may come, and how much its members disagree."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Protocol

from torch import Tensor

from rlx.models.ensemble_rollouts import EnsembleModel
from rlx.types import Algorithm


class Prediction(NamedTuple):
    """Observations 1 to H steps ahead."""

    mean: Tensor  # [H, B, D] the mean of the members' means, followed without noise
    samples: Tensor  # [H, K * P, B, D] every particle with its member and noise of its own
    disagreement: Tensor  # [H, B] as planners are told it


class PredictsObservations(Algorithm, Protocol):
    """An algorithm that has learned where actions lead."""

    @property
    def num_members(self) -> int: ...

    @property
    def obs_scale(self) -> Tensor:
        """[D] deviations of the observations that the model was fitted to; 0 of a constant feature, and of all before the first fit."""
        ...

    def predict_observations(self, obs: Tensor, action: Tensor, *, particles: int) -> Prediction:
        """What the model says of actions [H, B, A] from obs [B, D], with so many samples of each member."""
        ...


def predict_observations(model: EnsembleModel, obs: Tensor, action: Tensor, *, particles: int) -> Prediction:
    """Follow actions [H, B, A], in units of the action space, from obs [B, D].

    Args:
        model: as a planner asks it, with its disagreement measured.
        obs: where the actions begin.
        action: what is done.
        particles: samples of each member, P, whatever the planner's own number and propagation.
    """
    sampled = replace(model, propagation="ts_inf", particles=particles, measure_disagreement=False, own_noise=True)
    samples = sampled.trace(obs, action[:, :, None]).states[1:, ..., 0, :].flatten(1, 2)
    disagreement = model.trace(obs, action[:, :, None]).disagreement
    assert disagreement is not None
    return Prediction(follow_mean(model, obs, action), samples, disagreement[..., 0])


def follow_mean(model: EnsembleModel, obs: Tensor, action: Tensor) -> Tensor:
    """Observations [H, B, D] that the mean of the members' means leads to under actions [H, B, A] from obs [B, D]."""
    mean = replace(model, propagation="mean", particles=1, measure_disagreement=False)
    return mean.trace(obs, action[:, :, None]).states[1:, 0, 0, :, 0]
