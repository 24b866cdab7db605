"""PETS, probabilistic ensembles with trajectory sampling: a learned model with a measure of its uncertainty, and a planner as the policy.

Chua et al. 2018, https://arxiv.org/abs/1805.12114, algorithm 1. The first actions are random. Then an ensemble is fitted to all steps so
far. At every step a planner begins from the previous plan, shifted by one step, and its first action is taken. Deviations of the model are
listed in `rlx.models.ensemble` and `rlx.models.ensemble_rollouts`, of the planners in `rlx.planning.shooting`. Deviation here: the ensemble
is fitted every `fit_every` env steps instead of after every episode.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlx.action_range import ActionRange
from rlx.config.algos.pets_config import PETSConfig, RewardSource, TerminationSource, TrustRule
from rlx.models.ensemble_rollouts import EnsembleModel, FrozenEnsemble
from rlx.models.fit import EnsembleConfig, EnsembleLearner, FitConfig
from rlx.models.known_rules import known_reward, known_termination
from rlx.models.prediction import follow_mean, predict_observations
from rlx.nn.graphs import Replayed
from rlx.ops import window_starts
from rlx.planning.shooting import Memory, Plan, PlannerConfig, UncertaintyPenalty, no_memory, plan
from rlx.planning.windows import ReturnWindows
from rlx.types import EnvSpec, Metrics, Mode, PolicyOutput, Prediction, Progress, Rollout, State, Tree

_LOOK_AHEAD = 5
"""Steps of model/k_step_error, k."""
_MAX_STARTS = 256
"""Most windows that model/k_step_error is computed from."""


class PETS:
    """An agent that plans with a learned ensemble, for continuous actions."""

    def __init__(self, config: PETSConfig, spec: EnvSpec, num_envs: int, device: torch.device) -> None:
        self.config, self.device = config, device
        self.rollout_length = 1
        self._range = ActionRange(spec, device, verb="algo=pets plans")
        self._reward_fn, self._termination_fn = _known_rules(config, spec)
        settings = EnsembleConfig(
            num_members=config.ensemble_size, hidden_sizes=config.hidden_sizes, learn_bounds=config.learn_variance_bounds,
            predict_reward=self._reward_fn is None, replay_size=config.replay_size, bootstrap=config.bootstrap,
            holdout_fraction=config.holdout_fraction,
        )  # fmt: skip
        num_features = math.prod(spec.observation_space.shape or (1,))
        self.learner = EnsembleLearner(settings, num_features=num_features, num_actions=self._range.size, num_envs=num_envs, device=device)
        self.replay_bytes = self.learner.replay.num_bytes
        self.windows = ReturnWindows(config.planner.horizon, num_envs)
        p = config.planner
        self._planner = PlannerConfig(
            kind=p.kind.value, num_candidates=p.num_candidates, num_iterations=p.num_iterations, num_elites=p.num_elites,
            momentum=p.momentum, init_std=p.init_std, noise_beta=p.noise_beta, population_decay=p.population_decay,
            keep_elites=p.keep_elites, temperature=p.temperature,
        )  # fmt: skip
        self._penalty = UncertaintyPenalty(
            cost=config.trust_cost if config.trust is TrustRule.disagreement else 0.0,
            limit=config.trust_limit if config.trust is TrustRule.truncate else math.inf,
        )
        self._measured = self._model()

    # Saving

    def state_dict(self) -> State:
        return {**self.learner.state_dict(), "windows": self.windows.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.learner.load_state_dict(state)
        self.windows.load_state_dict(state["windows"])
        self._measured = self._model()

    # Acting

    def initial_carry(self, batch_size: int) -> dict[str, Tensor]:
        return no_memory(batch_size, self.config.planner.horizon, self._range.size, self._planner, self.device)._asdict()

    @torch.no_grad()
    def act(self, obs: Tensor, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        """Plan from obs [B, *]; the carry is the warm start from the previous step's plan, a `Memory` as a dictionary.

        Evaluation draws new noise at every step, as training does: the same noise in every plan would bias all plans the same way. Only the
        actions before the first fit explore.
        """
        began = time.perf_counter()
        memory = Memory(**carry)
        memory = Memory(torch.where(is_first[:, None, None], 0.0, memory.mean), memory.elites, memory.known & ~is_first)
        found = self.plan(obs.flatten(1).to(torch.float32), memory) if self.learner.num_fits else self._nothing_planned(memory, mode)
        if self.device.type == "cuda":  # measure the kernels, not their launches; the environment waits for the action anyway
            torch.cuda.synchronize(self.device)
        spent_s = time.perf_counter() - began
        extras = {
            "predicted_return": found.predicted_return,
            "disagreement": found.disagreement,
            "horizon": found.horizon,
            "plan_s": torch.full((len(obs),), spent_s / len(obs), device=self.device),
        }
        rest = found.rest() if self.learner.num_fits else memory
        return PolicyOutput(self._range.to_env(found.mean[:, 0]), rest._asdict(), extras)

    def plan(self, obs: Tensor, memory: Memory) -> Plan:
        """Plans [B] from obs [B, D]."""
        return Plan(*self._replayed(obs, *memory))

    def _model(self) -> EnsembleModel:
        """A frozen copy of the ensemble that measures disagreement; also makes the planner that uses the copy."""
        measured = EnsembleModel(
            frozen=FrozenEnsemble(self.learner.ensemble), obs_scale=self.learner.obs_scale, propagation=self.config.propagation.value,
            num_particles=self.config.num_particles, reward_fn=self._reward_fn, termination_fn=self._termination_fn,
            measure_disagreement=True,
        )  # fmt: skip
        planned = replace(measured, measure_disagreement=self._penalty.needs_disagreement)

        def planning(obs: Tensor, *memory: Tensor) -> Plan:
            to_action = self._range.to_env
            return plan(planned, obs, Memory(*memory), self._planner, to_action=to_action, penalty=self._penalty, measured=measured)

        self._replayed = Replayed(planning)
        return measured

    # Predictions for `rlx model`

    def predict_observations(self, obs: Tensor, action: Tensor, *, min_samples: int) -> Prediction:
        return predict_observations(self._measured, obs, action, num_particles=-(-min_samples // self.learner.ensemble.num_members))

    def observation_scale(self) -> Tensor | None:
        scale = self.learner.obs_scale
        return scale if (scale > 0.0).any() else None

    def prediction_horizon(self) -> int:
        return self.config.planner.horizon

    def _nothing_planned(self, memory: Memory, mode: Mode) -> Plan:
        """Before the first fit: random actions in training, the centre of the action space in evaluation."""
        mean = torch.zeros_like(memory.mean)
        if mode == "train":
            mean.uniform_(-1.0, 1.0)
        nothing = torch.zeros(len(mean), device=self.device)
        return Plan(mean, memory.elites, nothing, nothing, nothing.long())

    # Learning

    @torch.no_grad()
    def update(self, rollout: Rollout, progress: Progress) -> Metrics:
        metrics = self._compare_with_plans(rollout)
        self.learner.add(rollout)
        now, before = progress.env_steps, progress.env_steps - rollout.num_env_steps
        every = self.config.fit_every
        due = now >= self.config.initial_steps if self.learner.num_fits == 0 else before // every != now // every
        if due:
            metrics |= self._judge_model() if self.learner.num_fits else {}
            metrics |= self._fit(self.config.learning_rate_at(progress.fraction_before(rollout)))
        return metrics

    def _compare_with_plans(self, rollout: Rollout) -> dict[str, Tensor | float]:
        """Metrics of plans: predicted and realised returns of those whose horizon has passed, disagreement and time of the new ones."""
        extras = rollout.extras
        columns = torch.stack([
            extras["predicted_return"], extras["disagreement"], extras["horizon"], extras["plan_s"], rollout.reward, rollout.terminated,
            rollout.truncated,
        ]).to("cpu", torch.float32)  # fmt: skip  # in one transfer
        predicted, disagreement, horizon, plan_s, reward, terminated, truncated = columns
        kept = [
            self.windows.add(predicted[t], horizon[t].long(), reward[t], terminated[t] > 0.0, truncated[t] > 0.0)
            for t in range(len(reward))
        ]  # fmt: skip
        metrics: dict[str, Tensor | float] = {}
        planned = horizon > 0
        if planned.any():
            metrics["model/disagreement"] = disagreement[planned].mean()
            metrics["plan/horizon"] = horizon[planned].mean()
            metrics["time/plan_ms"] = 1e3 * plan_s[planned].mean().item()
        predicted, realised = (torch.cat([getattr(k, name) for k in kept]) for name in ("predicted", "realised"))
        if len(predicted):
            metrics["plan/predicted_return"] = predicted.mean()
            metrics["plan/realised_return"] = realised.mean()
            metrics["plan/exploitation_gap"] = (predicted - realised).mean()
        return metrics

    def _judge_model(self) -> dict[str, Tensor | float]:
        """Errors of the model on the steps since the last fit, on which it was not trained."""
        obs, action, change, reward, is_last = self.learner.since_last_fit("obs", "action", "change", "reward", "is_last")
        metrics: dict[str, Tensor | float] = {}
        if self._reward_fn is not None:
            metrics["model/known_reward_error"] = (self._reward_fn(obs, action, obs + change) - reward).abs().mean()
        t, b = window_starts(is_last, _LOOK_AHEAD, most=_MAX_STARTS)
        if not len(t):
            return metrics
        steps_ahead = torch.stack([action[t + k, b] for k in range(_LOOK_AHEAD)])
        last = t + _LOOK_AHEAD - 1
        wrong = follow_mean(self._measured, obs[t, b], steps_ahead)[-1] - (obs[last, b] + change[last, b])
        scale = self.learner.obs_scale
        varies = scale > 0.0
        metrics["model/k_step_error"] = (wrong[:, varies] / scale[varies]).square().mean().sqrt()
        return metrics

    def _fit(self, learning_rate: float) -> dict[str, Tensor | float]:
        began, config = time.perf_counter(), self.config
        fitted = self.learner.fit(FitConfig(
            learning_rate=learning_rate, batch_size=config.batch_size, max_epochs=config.max_epochs, patience=config.patience,
            weight_decay=config.weight_decay,
        ))  # fmt: skip
        self._measured = self._model()
        return {
            "loss/model": fitted.loss,
            "model/holdout_nll": fitted.holdout_nll,
            "model/holdout_mse": fitted.holdout_mse,
            "update/num_epochs": float(fitted.epochs),
            "update/num_gradient_steps": float(fitted.num_steps),
            "update/learning_rate": learning_rate,
            "replay/size": float(self.learner.replay.size),
            "time/fit_s": time.perf_counter() - began,
        }


def _known_rules(config: PETSConfig, spec: EnvSpec) -> tuple[Any, Any]:
    """The reward function, or None if it is learned, and the termination function, or None if nothing terminates.

    Raises:
        ConfigError: if the config says that reward or termination is known, and the environment does not give it.
    """
    reward_fn = None if config.reward is RewardSource.learned else known_reward(spec, "algo.reward")
    if config.termination is TerminationSource.never:
        return reward_fn, None
    otherwise = ", and pets does not learn it; if they never do, or if plans may ignore it, use algo.termination=never"
    return reward_fn, known_termination(spec, "algo.termination", otherwise)
