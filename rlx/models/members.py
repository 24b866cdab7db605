"""Models by member: states that each member of an ensemble moves by itself, with rewards and terminations.

A `Dynamics` predicts changes of observations: a fitted ensemble, a simulator, or none at all. `MemberModel` adds noise, the action's scale,
and the known reward and termination where they are not predicted. K members, n rows, D features, A actions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from rlx.models.ensemble_rollouts import FrozenEnsemble
from rlx.models.termination import TerminationNetworks
from rlx.types import RewardFn, Simulator, TerminationFn


class Predicted(NamedTuple):
    """A step of every member before noise."""

    change: Tensor  # [K, n, D] of the observation, the mean
    variance: Tensor  # [K, n, D] of the change; 0 where there is no noise
    reward: Tensor | None  # [K, n]; None if it is not predicted
    alive: Tensor | None  # [K, n] probability that the episode goes on; None if it is not predicted


class Dynamics(Protocol):
    """Predictions of K members from states of their own."""

    num_members: int

    def predict(self, obs: Tensor, action: Tensor) -> Predicted:
        """A step from obs [K, n, D] under actions [K, n, A] in units of the action space; does not change its arguments."""
        ...


class MemberStep(NamedTuple):
    """A step of every member."""

    next_obs: Tensor  # [K, n, D]
    reward: Tensor  # [K, n]
    alive: Tensor  # [K, n] probability that the episode goes on
    predicted: Predicted


class LearnedDynamics:
    """The predictions of a fitted ensemble.

    Args:
        frozen: the members; their outputs are the change of the observation or the next one, and the reward if it is predicted.
        num_features: D.
        predicts_next: whether the outputs are the next observation.
    """

    def __init__(self, frozen: FrozenEnsemble, num_features: int, *, predicts_next: bool) -> None:
        self.num_members = frozen.num_members
        self._frozen, self._num_features, self._predicts_next = frozen, num_features, predicts_next

    def predict(self, obs: Tensor, action: Tensor) -> Predicted:
        frozen, features = self._frozen, self._num_features
        mean, raw = frozen.predict(torch.cat([obs, action], dim=-1) - frozen.centre)
        change = mean[..., :features] - obs if self._predicts_next else mean[..., :features]
        variance = (frozen.spread(raw[..., :features]) * frozen.noise_scale[:features]).square()
        return Predicted(change, variance, mean[..., features] if mean.shape[-1] > features else None, None)


class SimulatorDynamics:
    """The environment itself, in the place of every member.

    Args:
        simulator: of the environment, under actions as the algorithm sees them.
        num_members: K.
    """

    def __init__(self, simulator: Simulator, num_members: int) -> None:
        self.num_members, self._simulator = num_members, simulator

    def predict(self, obs: Tensor, action: Tensor) -> Predicted:
        flat = obs.reshape(-1, obs.shape[-1]).cpu().double().numpy()
        results = self._simulator(flat, action.reshape(-1, action.shape[-1]).cpu().numpy())
        next_obs, reward, terminated = (torch.from_numpy(np.ascontiguousarray(x)).to(obs.device) for x in results)
        change = (next_obs.view_as(obs) - obs.double()).to(obs.dtype)
        reward, alive = reward.view(obs.shape[:-1]).to(obs.dtype), 1.0 - terminated.view(obs.shape[:-1]).to(obs.dtype)
        return Predicted(change, torch.zeros_like(obs), reward, alive)


class NoDynamics:
    """The prediction that nothing changes, by every member: a model that is of no use.

    Args:
        num_members: K.
    """

    def __init__(self, num_members: int) -> None:
        self.num_members = num_members

    def predict(self, obs: Tensor, action: Tensor) -> Predicted:
        nothing = torch.zeros_like(obs)
        return Predicted(nothing, nothing, None, None)


@dataclass(frozen=True, kw_only=True)
class MemberModel:
    """A model that imagines with each member by itself, under actions in [-1, 1].

    Args:
        dynamics: predicts the changes of observations.
        to_env: from actions in [-1, 1] to those of the environment.
        reward_fn: the known reward; None if the dynamics predict it. A reward that neither gives is 0.
        termination_fn: where episodes terminate; None if nothing terminates, or if it is learned or predicted.
        termination: networks that learned it.
    """

    dynamics: Dynamics
    to_env: Callable[[Tensor], Tensor]
    reward_fn: RewardFn | None
    termination_fn: TerminationFn | None
    termination: TerminationNetworks | None = None

    @property
    def num_members(self) -> int:
        return self.dynamics.num_members

    @torch.no_grad()
    def step(self, obs: Tensor, action: Tensor, *, noise: bool) -> MemberStep:
        """A step from obs [K, n, D] under actions [K, n, A] in [-1, 1].

        Args:
            obs: of each member; not changed.
            action: of each member.
            noise: draw next observations from the predicted distributions; otherwise they are the means.
        """
        action = self.to_env(action)
        predicted = self.dynamics.predict(obs, action)
        next_obs = obs + predicted.change
        if noise:
            next_obs = torch.addcmul(next_obs, predicted.variance.sqrt(), torch.randn_like(next_obs))
        reward, alive = predicted.reward, predicted.alive
        if reward is None:
            reward = torch.zeros_like(next_obs[..., 0]) if self.reward_fn is None else self.reward_fn(obs, action, next_obs)
        if alive is None:
            alive = self._alive(next_obs)
        return MemberStep(next_obs, reward, alive, predicted)

    def _alive(self, next_obs: Tensor) -> Tensor:
        if self.termination is not None:
            return 1.0 - self.termination.probability(next_obs)
        if self.termination_fn is not None:
            return (~self.termination_fn(next_obs)).to(next_obs.dtype)
        return torch.ones_like(next_obs[..., 0])
