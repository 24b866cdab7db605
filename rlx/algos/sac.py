"""Soft actor-critic: maximum-entropy reinforcement learning from a replay.

Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905, with the losses of section 5 and an adapted weight of the entropy (section 6):

    y      = r + gamma (1 - terminated) [min_k Q'_k(s', a') - alpha log pi(a'|s')],  a' ~ pi(s')
    L_Q    = 1/2 sum_k mean (Q_k(s, a) - y)^2
    L_pi   = mean [alpha log pi(a|s) - min_k Q_k(s, a)],  a ~ pi(s)
    L_alpha = -log(alpha) mean (log pi + target entropy)

As in most implementations the last one has log alpha in place of the paper's alpha. Actions and entropies are in units in which actions
lie in [-1, 1]. Truncated episodes bootstrap from the observation that they ended in. Log alpha and the logarithm of the policy's standard
deviation are bounded. With several critics K the least of all is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from rlx.config.algos.sac_config import SACConfig
from rlx.experience import Steps
from rlx.imagination import Imagination, Targets
from rlx.nn import squashed
from rlx.off_policy import OffPolicyActorCritic
from rlx.types import EnvSpec, Explanation, Mode, PolicyOutput, Progress, Rollout, State, Tree

_LOG_ALPHA_MIN, _LOG_ALPHA_MAX = -10.0, 2.0


class SAC(OffPolicyActorCritic):
    """Soft actor-critic for bounded continuous actions."""

    def __init__(self, config: SACConfig, spec: EnvSpec, num_envs: int, device: torch.device) -> None:
        self.config = config
        log_alpha = math.log(config.entropy_coef)
        super().__init__(
            config, spec, num_envs, device, params_per_action=2, log_alpha=log_alpha if config.adapt_entropy_coef else None,
            num_critics=config.model.ensemble_size if config.expands else config.num_critics,
        )  # fmt: skip
        self.imagination = Imagination(config, spec, num_envs, self.range, device) if config.imagines else None
        self._fixed_alpha = torch.tensor([config.entropy_coef], device=device)
        self._target_entropy = -float(self.range.size) if config.target_entropy is None else config.target_entropy

    def state_dict(self) -> State:
        state = super().state_dict()
        return state if self.imagination is None else {**state, "imagination": self.imagination.state_dict()}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        if self.imagination is not None:
            self.imagination.load_state_dict(state["imagination"])

    @property
    def alpha(self) -> Tensor:
        """[1] weight of the entropy."""
        return self._fixed_alpha if self.actor.log_alpha is None else self.actor.log_alpha.detach().exp()

    def _mode(self, params: Tensor) -> Tensor:
        return squashed.mode(params)

    def _explore(self, params: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = params.chunk(2, dim=-1)
        return torch.addcmul(mean, log_std.clamp(squashed.LOG_STD_MIN, squashed.LOG_STD_MAX).exp(), noise).tanh()

    @torch.no_grad()
    def explain(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> tuple[PolicyOutput, Explanation]:
        features = self.values.features(obs)
        params = self.policy(features)
        found = squashed.sample(params, torch.zeros(len(params), self.range.size, device=self.device))
        spread = (1.0 - found.action.square()) * found.std * self.range.half  # of the squashed Gaussian, to first order
        value = self.values(features, found.action).amin(0)
        return self.act(obs, carry, is_first, mode=mode), Explanation(None, value, mean=self.range.to_env(found.action), std=spread)

    def _step(self, batch: Steps, number: int, learning_rate: float, *, measure: bool) -> dict[str, Tensor | float]:
        alpha, metrics = self.alpha, dict[str, Tensor | float]()
        features = self._features(batch.obs)
        if self.imagination is not None and self.config.expands:
            targets = self.imagination.expand(batch, self._policy_of, self._target_values, alpha=alpha, measure=measure)
            metrics = targets.metrics
            learnt = self._with_imagined(features, batch, targets)
        else:
            learnt = features, batch.action, self._targets(batch, alpha), batch.weight
        value, loss = self._learn_values(*learnt, learning_rate)
        if measure:
            metrics |= {"loss/value": loss, "update/q_value": value.mean()}
        if self._is_due(number, self.config.delay):
            metrics |= self._learn_policy(features.detach(), alpha, learning_rate, measure=measure)
        self.target.move(self.config.tau)
        return metrics

    def _targets(self, batch: Steps, alpha: Tensor) -> Tensor:
        """[B]: eq. 3 with the soft value of eq. 4."""
        features, target_features = self._next_features(batch.next_obs)
        if features is target_features and (compiled := self.compiled):
            return compiled.targets(features, batch.reward, batch.discount, noise=self._noise(len(features)), alpha=alpha)
        found = squashed.sample(self.policy(features))
        soft_value = self.target.module(target_features, found.action).amin(0) - alpha * found.log_prob
        return torch.addcmul(batch.reward, batch.discount, soft_value)

    # With a model

    def _prepare(self, rollout: Rollout, progress: Progress) -> dict[str, Tensor | float]:
        return {} if self.imagination is None else self.imagination.update(rollout, progress, self._policy_of)

    def _batches(self, num: int) -> Iterator[Steps]:
        if self.imagination is None:
            return super()._batches(num)
        batch_size = self.config.batch_size
        return self.imagination.blend(self.experience.draw(num * batch_size), batch_size).batches(batch_size)

    def _policy_of(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [*, A] in [-1, 1] and their log-probabilities [*] at obs [*, D], which are vectors."""
        found = squashed.sample(self.policy(self.values.features(obs.reshape(-1, obs.shape[-1]))), noise.reshape(-1, noise.shape[-1]))
        return found.action.view_as(noise), found.log_prob.view(noise.shape[:-1])

    def _target_values(self, obs: Tensor, action: Tensor) -> Tensor:
        """The targets' values [K, n] at obs [K, n, D], each at its own."""
        features = self.target.module.features(obs.flatten(0, 1)).unflatten(0, obs.shape[:2])
        return self.target.module(features, action)

    def _with_imagined(self, features: Tensor, batch: Steps, targets: Targets) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features, actions, targets and weights of a batch, followed by each value network's own imagined steps where there are any."""
        extra = targets.extra
        if extra is None:
            return features, batch.action, targets.target, batch.weight
        members = len(extra.target)
        real = (x.expand(members, *x.shape) for x in (features, batch.action, targets.target, batch.weight))
        imagined = self.values.features(extra.obs.flatten(0, 1)).unflatten(0, extra.obs.shape[:2])
        columns = zip(real, (imagined, extra.action, extra.target, extra.weight), strict=True)
        joined = [torch.cat(parts, dim=1) for parts in columns]
        return joined[0], joined[1], joined[2], joined[3]

    # The policy

    def _learn_policy(self, features: Tensor, alpha: Tensor, learning_rate: float, *, measure: bool) -> dict[str, Tensor | float]:
        """One step on the losses of policy and alpha, with the values as they are now."""
        if compiled := self.compiled:
            measured = compiled.policy_step(
                features, learning_rate, noise=self._noise(len(features)), alpha=alpha, target_entropy=self._target_entropy,
                log_alpha_bounds=(_LOG_ALPHA_MIN, _LOG_ALPHA_MAX),
            )  # fmt: skip
            return self._policy_metrics(alpha, *measured) if measure else {}
        num_rows = len(features)
        params, backward_net = self._policy_vjp(features)
        found = squashed.sample(params)
        value, backward_value = self.critics.forward_vjp(torch.cat((features, found.action), dim=-1))
        least, which = value.min(0)
        d_value = torch.zeros_like(value).scatter_(0, which.unsqueeze(0), -1.0 / num_rows)
        d_inputs = backward_value(d_value, weights=False, inputs=True)
        assert d_inputs is not None
        d_action = d_inputs.sum(0)[:, features.shape[1] :]
        self.actor_optimizer.zero_grad()
        backward_net(found.pullback(d_action, alpha / num_rows))
        log_prob = found.log_prob.mean()
        loss = alpha * log_prob - least.mean()
        log_alpha = self.actor.log_alpha
        if log_alpha is not None:
            log_alpha.grad.copy_(-(log_prob + self._target_entropy))  # type: ignore[union-attr]
        grad_norm = self.actor_optimizer.step(loss[0], learning_rate)
        if log_alpha is not None:
            log_alpha.data.clamp_(_LOG_ALPHA_MIN, _LOG_ALPHA_MAX)
        return self._policy_metrics(alpha, loss[0], grad_norm, log_prob, found.log_std.mean()) if measure else {}

    def _policy_metrics(
        self, alpha: Tensor, loss: Tensor | float, grad_norm: Tensor | float, log_prob: Tensor | float, log_std: Tensor | float
    ) -> dict[str, Tensor | float]:  # fmt: skip
        return {
            "loss/policy": loss,
            "update/entropy": -log_prob,
            "update/entropy_coef": alpha[0],
            "update/log_std": log_std,
            "update/grad_norm": grad_norm,
        }
