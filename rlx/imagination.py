"""A model beside an agent with value networks: when it is fitted, what it imagines, and how far it was right to be trusted.

`update` is called with every rollout, before the agent learns from it. `expand` gives targets that look ahead (`rlx.models.expansion`),
`blend` replaces a part of the batches by imagined steps (`rlx.models.imagined`). Before a fit is used, the model before it is compared with
the steps that came since: the rank correlation of its doubt with its true error says whether its doubt is worth anything.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import gymnasium
import torch
from torch import Tensor

from rlx.action_range import ActionRange
from rlx.config.algos.pets_config import RewardSource
from rlx.config.algos.trusted_config import (
    DoubtMeasure,
    Expansion,
    Imagined,
    LearnedTermination,
    ModelKind,
    Predicts,
    TrustedConfig,
    Weights,
)
from rlx.errors import ConfigError
from rlx.experience import Steps
from rlx.models.corruption import Corruption
from rlx.models.doubt import Doubt, rank_correlation
from rlx.models.ensemble import moments
from rlx.models.ensemble_rollouts import FrozenEnsemble
from rlx.models.expansion import CriticFn, ExtraSteps, PolicyFn, expand, extra_steps, one_horizon, steve_weights, weighted
from rlx.models.fit import EnsembleConfig, EnsembleLearner, FitConfig
from rlx.models.imagined import ImaginedData, Stop, imagine
from rlx.models.known_rules import known_reward, known_termination
from rlx.models.members import Dynamics, LearnedDynamics, MemberModel, NoDynamics, SimulatorDynamics
from rlx.ops import window_starts
from rlx.types import EnvSpec, Progress, RewardFn, Rollout, State, TerminationFn

_HOLDOUT = 0.1
_LOOK_AHEAD = 5
"""Steps of trust/spearman_5."""
_MAX_STARTS = 256
"""Most windows that trust/spearman_5 is computed from."""
_FEWEST = 30
"""Steps without which a rank correlation says nothing."""


class Targets(NamedTuple):
    """What an expansion gives for a batch."""

    target: Tensor  # [B]
    extra: ExtraSteps | None  # imagined steps that the critics learn from too
    metrics: dict[str, Tensor | float]


class Imagination:
    """The model of an agent, with what it needs to be fitted and corrupted, and the steps that it imagined.

    Args:
        settings: of the agent.
        spec: of the environment.
        num_envs: B.
        actions: of the environment.
        device: of the model.

    Raises:
        ConfigError: for observations that are no vector of floats, and where the environment has no such model, reward or termination.
    """

    def __init__(self, settings: TrustedConfig, spec: EnvSpec, num_envs: int, actions: ActionRange, device: torch.device) -> None:
        space, model = spec.observation_space, settings.model
        if not (isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1 and space.dtype.kind == "f"):
            raise ConfigError(
                f"a model predicts observations that are one vector of floats, and env={spec.id} has {space}; use algo.expansion=none and "
                "algo.imagined=none"
            )
        self.settings, self._spec = settings, spec
        self._begin, self._gamma = settings.initial_steps, settings.discount
        self._actions, self.device = actions, device
        self._num_features, self._num_actions = space.shape[0], actions.size
        self._reward_fn, self._termination_fn = _rules(settings, spec)
        is_learned = model.kind is ModelKind.learned
        config = EnsembleConfig(
            num_members=model.ensemble_size, hidden_sizes=model.hidden_sizes, learn_bounds=False,
            predict_reward=is_learned and model.reward is RewardSource.learned, replay_size=model.replay_size, bootstrap=True,
            holdout_fraction=_HOLDOUT, predict_next=model.target is Predicts.next,
            learn_termination=is_learned and model.termination is LearnedTermination.learned,
        )  # fmt: skip
        self.learner = EnsembleLearner(
            config, num_features=self._num_features, num_actions=self._num_actions, num_envs=num_envs, device=device
        )
        self._corruption = Corruption(model.corruption.value, model.corrupt_prob, num_features=self._num_features, device=device)
        self._change_scale = torch.zeros(self._num_features, device=device)
        """[D] standard deviations of the changes of observations at the last fit, the units of doubts and errors."""
        self._stop = Stop(
            settings.stop.value, settings.rollout_steps, scale=settings.stop_scale, quantile=settings.stop_quantile,
            most=settings.stop_limit if model.measure is DoubtMeasure.std else math.inf,
        )  # fmt: skip
        self._data = ImaginedData.empty(self._num_features, self._num_actions, device)
        self._model, self._doubt = self._made()

    @property
    def num_critics(self) -> int:
        """Value networks that an expansion needs, one for each member."""
        return self.settings.model.ensemble_size

    # Saving

    def state_dict(self) -> State:
        return {
            "learner": self.learner.state_dict(),
            "corruption": self._corruption.state_dict(),
            "change_scale": self._change_scale.clone(),
            "stop": self._stop.state_dict(),
            "data": self._data.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        self.learner.load_state_dict(state["learner"])
        self._corruption.load_state_dict(state["corruption"])
        self._change_scale = state["change_scale"].to(self.device, copy=True)
        self._stop.load_state_dict(state["stop"])
        self._data.load_state_dict(state["data"])
        self._model, self._doubt = self._made()

    # The model

    def _dynamics(self) -> Dynamics:
        settings, members = self.settings.model, self.learner.config.num_members
        if settings.kind is ModelKind.perfect:
            assert self._spec.simulator is not None
            return SimulatorDynamics(self._spec.simulator, members)
        if settings.kind is ModelKind.useless:
            return NoDynamics(members)
        frozen = FrozenEnsemble(self.learner.ensemble)
        return LearnedDynamics(frozen, self._num_features, predicts_next=settings.target is Predicts.next)

    def _made(self) -> tuple[MemberModel, Doubt]:
        model = MemberModel(
            dynamics=self._corruption.wrap(self._dynamics()), to_env=self._actions.to_env, reward_fn=self._reward_fn,
            termination_fn=self._termination_fn, termination=self.learner.termination,
        )  # fmt: skip
        return model, Doubt(self.settings.model.measure.value, self._change_scale)

    # Learning

    @torch.no_grad()
    def update(self, rollout: Rollout, progress: Progress, policy: PolicyFn) -> dict[str, Tensor | float]:
        """Add a rollout; if a fit is due, judge the model, fit it and imagine anew."""
        if self.settings.weights is Weights.model_free and self.settings.imagined is Imagined.none:
            return {}
        self.learner.add(rollout)
        now, before, every = progress.env_steps, progress.env_steps - rollout.num_env_steps, self.settings.model.fit_every
        if now < self._begin or (self.learner.num_fits and before // every == now // every):
            return {}
        metrics: dict[str, Tensor | float] = self._judge() if self.learner.num_fits else {}
        metrics |= self._fit()
        if self.settings.imagined is Imagined.mbpo:
            metrics |= self._imagine(policy, fraction=progress.fraction_before(rollout))
        return metrics

    def _fit(self) -> dict[str, Tensor | float]:
        began, settings, learner = time.perf_counter(), self.settings.model, self.learner
        metrics: dict[str, Tensor | float] = {}
        if settings.kind is ModelKind.learned:
            fitted = learner.fit(FitConfig(
                learning_rate=settings.learning_rate, batch_size=settings.batch_size, max_epochs=settings.max_epochs,
                patience=settings.patience, weight_decay=settings.weight_decay,
            ))  # fmt: skip
            metrics = {"loss/model": fitted.loss, "model/holdout_nll": fitted.holdout_nll, "model/holdout_mse": fitted.holdout_mse}
        else:
            learner.count_as_fitted()
        self._change_scale = moments(learner.replay["change"].to(self.device))[1].to(torch.float32)
        self._corruption.settle(learner.replay["obs"].to(self.device))
        self._model, self._doubt = self._made()
        return {**metrics, "time/fit_s": time.perf_counter() - began}

    def _imagine(self, policy: PolicyFn, *, fraction: float) -> dict[str, Tensor | float]:
        settings, replay = self.settings, self.learner.replay
        num_rollouts = max(1, round(settings.rollouts_per_step * settings.model.fit_every))
        starts = replay["obs"][torch.randint(replay.size, (num_rollouts,), device=replay.device)].to(self.device)
        steps, num_calls = imagine(
            self._model, policy, starts, self._stop, self._doubt, num_steps=self._stop.num_steps(fraction), num_actions=self._num_actions
        )
        self._data.steps, self._data.num_rollouts, self._data.num_calls = steps, num_rollouts, num_calls
        metrics: dict[str, Tensor | float] = {
            "trust/rollout_length": self._data.rollout_length,
            "trust/use": self._data.rollout_length / settings.rollout_steps,
            "trust/model_calls": self._calls_per_step(),
        }
        return {**metrics, "trust/threshold": self._stop.limit} if math.isfinite(self._stop.limit) else metrics

    def _calls_per_step(self) -> float:
        """Predictions of a member per env step."""
        settings = self.settings
        imagined = self._data.num_calls / settings.model.fit_every
        looks_ahead = settings.expands and settings.weights is not Weights.model_free
        return imagined + looks_ahead * settings.utd * settings.batch_size * settings.horizon * self.num_critics

    # Judging

    def _judge(self) -> dict[str, Tensor | float]:
        """Rank correlations of doubt and true error on the steps since the last fit, 1 step and 5 steps ahead."""
        obs, action, change, is_last = self.learner.since_last_fit("obs", "action", "change", "is_last")
        found: dict[str, Tensor | float] = {}
        doubt, error = self._compare(obs.flatten(0, 1), action.flatten(0, 1)[None], (obs + change).flatten(0, 1))
        found["trust/spearman"] = rank_correlation(doubt, error) if len(doubt) >= _FEWEST else math.nan
        found |= {"trust/doubt": doubt.mean(), "trust/error": error.mean()}
        t, b = window_starts(is_last, _LOOK_AHEAD, most=_MAX_STARTS)
        if len(t) >= _FEWEST:
            last = t + _LOOK_AHEAD - 1
            ahead = torch.stack([action[t + k, b] for k in range(_LOOK_AHEAD)])
            found["trust/spearman_5"] = rank_correlation(*self._compare(obs[t, b], ahead, obs[last, b] + change[last, b]))
        return {key: value for key, value in found.items() if isinstance(value, Tensor) or math.isfinite(value)}

    def _compare(self, obs: Tensor, actions: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Doubt [n] about what `actions` [H, n, A], in units of the action space, lead to from obs [n, D], and the true error [n].

        The error is that of the members' mean, as root mean square over the features in standard deviations of their changes.
        """
        dynamics = self._model.dynamics
        members = dynamics.num_members
        state = obs.expand(members, -1, -1)
        for action in actions:
            predicted = dynamics.predict(state, action.expand(members, -1, -1))
            state = state + predicted.change
        varies = self._change_scale > 0.0
        wrong = ((state.mean(0) - after) / self._change_scale)[:, varies]
        return self._doubt(state, predicted.variance), wrong.square().mean(-1).sqrt()

    # Use

    def expand(self, batch: Steps, policy: PolicyFn, critics: CriticFn, *, alpha: Tensor | float, measure: bool) -> Targets:
        """Targets [B] of a batch's real steps, and metrics of them if these are measured."""
        settings = self.settings
        model_free = settings.weights is Weights.model_free
        horizon = 0 if model_free else settings.horizon
        next_obs = batch.next_obs.to(batch.reward.dtype)  # MuJoCo observes in float64
        found = expand(
            self._model, policy, critics, batch.reward, batch.discount, next_obs, alpha=alpha, gamma=self._gamma,
            horizon=horizon, num_critics=self.num_critics, num_actions=self._num_actions,
        )  # fmt: skip
        is_steve = settings.expansion is Expansion.steve and not model_free
        weights = steve_weights(found.estimate) if is_steve else one_horizon(found.estimate, horizon)
        extra = extra_steps(found, batch.discount, gamma=self._gamma) if settings.td_k else None
        metrics: dict[str, Tensor | float] = {}
        if measure:
            means = weights.mean(1)
            metrics = {f"trust/w_{h}": means[h] for h in range(horizon + 1)}
            metrics |= {"trust/use": 1.0 - means[0] if horizon else 0.0}
            metrics["trust/model_calls"] = self._calls_per_step()
        return Targets(weighted(found.estimate, weights), extra, metrics)

    def blend(self, steps: Steps, batch_size: int) -> Steps:
        """Real steps [n * batch_size], in which all but a share of each batch is replaced by imagined steps.

        With the rule `threshold` the share of imagined steps falls in proportion to how many rollouts there are left of, down to none.
        """
        settings, data = self.settings, self._data
        if settings.imagined is Imagined.none or not len(data.steps.reward):
            return steps
        share = 1.0 - settings.real_fraction
        if self._stop.kind == "threshold":
            share *= min(1.0, data.rollout_length)
        num_imagined, num_batches = round(share * batch_size), len(steps.reward) // batch_size
        drawn = data.draw(num_batches * num_imagined)
        discount = self._gamma * drawn.alive

        def mixed(real: Tensor, imagined: Tensor) -> Tensor:
            out = real.clone().unflatten(0, (num_batches, batch_size))
            out[:, batch_size - num_imagined :] = imagined.unflatten(0, (num_batches, num_imagined)).to(real.dtype)
            return out.flatten(0, 1)

        return steps._replace(
            obs=mixed(steps.obs, drawn.obs), action=mixed(steps.action, drawn.action), reward=mixed(steps.reward, drawn.reward),
            discount=mixed(steps.discount, discount), next_obs=mixed(steps.next_obs, drawn.next_obs),
        )  # fmt: skip


def _rules(settings: TrustedConfig, spec: EnvSpec) -> tuple[RewardFn | None, TerminationFn | None]:
    """Known reward and termination; None where they are learned, where the simulator gives them, or if nothing terminates."""
    model = settings.model
    if model.kind is ModelKind.perfect:
        if spec.simulator is None:
            raise ConfigError(
                f"algo.model.kind=perfect: env={spec.id} cannot be stepped from an observation; {', '.join(spec.simulated)} can, without "
                "wrappers; use algo.model.kind=learned"
            )
        return None, None
    reward_fn = None if model.reward is RewardSource.learned else known_reward(spec, "algo.model.reward")
    if model.termination is not LearnedTermination.known:
        return reward_fn, None
    otherwise = "; use algo.model.termination=learned, or never if plans may ignore it"
    return reward_fn, known_termination(spec, "algo.model.termination", otherwise)
