"""An ensemble's predictions of observations under given actions: mean, samples, and the disagreement of its members."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from rlx.models.ensemble_rollouts import EnsembleModel
from rlx.models.unroll import Imagined, unroll
from rlx.types import Prediction


def predict_observations(model: EnsembleModel, obs: Tensor, action: Tensor, *, num_particles: int) -> Prediction:
    """Predictions of observations under actions [H, B, A], in units of the action space, from obs [B, D].

    Args:
        model: as a planner uses it, with its disagreement measured.
        obs: [B, D] before the first action.
        action: [H, B, A].
        num_particles: samples of each member, P; the model's own number and propagation are not used for samples.
    """
    sampled = replace(model, propagation="ts_inf", num_particles=num_particles, measure_disagreement=False, own_noise=True)
    samples = _follow(sampled, obs, action).states[..., 0, :].flatten(1, 2)
    disagreement = _follow(model, obs, action).disagreement
    assert disagreement is not None
    return Prediction(follow_mean(model, obs, action), samples, disagreement[..., 0])


def follow_mean(model: EnsembleModel, obs: Tensor, action: Tensor) -> Tensor:
    """Observations [H, B, D] that follow from the mean of the members' means under actions [H, B, A] from obs [B, D]."""
    mean = replace(model, propagation="mean", num_particles=1, measure_disagreement=False)
    return _follow(mean, obs, action).states[:, 0, 0, :, 0]


def _follow(model: EnsembleModel, obs: Tensor, action: Tensor) -> Imagined:
    return unroll(model, model.initial(obs), action[:, :, None], len(action))
