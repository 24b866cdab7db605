"""TD3, twin delayed deterministic policy gradient, and DDPG as a case of it.

Fujimoto et al. 2018, https://arxiv.org/abs/1802.09477, algorithm 1:

    y    = r + gamma (1 - terminated) min_k Q'_k(s', clip(pi'(s') + clip(noise)))
    L_Q  = 1/2 sum_k mean (Q_k(s, a) - y)^2
    L_pi = -mean Q_1(s, pi(s)), every `delay` gradient steps, after which the target networks move

DDPG (Lillicrap et al. 2016, https://arxiv.org/abs/1509.02971) is algo.twin=false algo.delay=1 algo.smoothing=0, with Gaussian noise in
place of a correlated one. Truncated episodes bootstrap from the observation that they ended in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlx.config.algos.td3_config import TD3Config
from rlx.experience import Steps
from rlx.nn.targets import Target
from rlx.off_policy import Actor, OffPolicyActorCritic
from rlx.types import EnvSpec, Explanation, Mode, PolicyOutput, State, Tree


class TD3(OffPolicyActorCritic):
    """Twin delayed deterministic policy gradient for bounded continuous actions."""

    def __init__(self, config: TD3Config, spec: EnvSpec, num_envs: int, device: torch.device) -> None:
        self.config = config
        super().__init__(config, spec, num_envs, device, num_critics=2 if config.twin else 1, params_per_action=1)
        self.target_actor = Target(self.actor, self.actor_optimizer)

    @property
    def _target_policy(self) -> Target[Actor] | None:
        return self.target_actor

    def state_dict(self) -> State:
        return {**super().state_dict(), "target_actor": self.target_actor.state_dict()}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.target_actor.load_state_dict(state["target_actor"])
        if self.values_optimizer.num_steps == 0:
            self.target_actor.move(1.0)

    def _mode(self, params: Tensor) -> Tensor:
        return params.tanh()

    def _explore(self, params: Tensor, noise: Tensor) -> Tensor:
        return (params.tanh() + self.config.exploration_std * noise).clamp_(-1.0, 1.0)

    @torch.no_grad()
    def explain(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> tuple[PolicyOutput, Explanation]:
        features = self.values.features(obs)
        action = self._mode(self.policy(features))
        std = (self.config.exploration_std * self.range.half).expand_as(action)
        value = self.values(features, action).amin(0)
        return self.act(obs, carry, is_first, mode=mode), Explanation(None, value, mean=self.range.to_env(action), std=std)

    def _step(self, batch: Steps, number: int, learning_rate: float, *, measure: bool) -> dict[str, Tensor | float]:
        features = self._features(batch.obs)
        value, loss = self._learn_values(features, batch.action, self._targets(batch), batch.weight, learning_rate)
        metrics: dict[str, Tensor | float] = {"loss/value": loss, "update/q_value": value.mean()} if measure else {}
        if self._is_due(number, self.config.delay):
            policy_loss, grad_norm = self._learn_policy(features.detach(), learning_rate)
            if measure:
                metrics |= {"loss/policy": policy_loss, "update/grad_norm": grad_norm}
            self.target.move(self.config.tau)
            self.target_actor.move(self.config.tau)
        return metrics

    def _targets(self, batch: Steps) -> Tensor:
        """[B]."""
        config = self.config
        features, target_features = self._next_features(batch.next_obs)
        if features is target_features and (compiled := self.compiled):
            return compiled.targets(
                features, batch.reward, batch.discount, noise=self._noise(len(features)) if config.smoothing else None,
                smoothing=config.smoothing, smoothing_clip=config.smoothing_clip,
            )  # fmt: skip
        action = self.target_actor.module.net(features).tanh()
        if config.smoothing:
            noise = (config.smoothing * torch.randn_like(action)).clamp_(-config.smoothing_clip, config.smoothing_clip)
            action = (action + noise).clamp_(-1.0, 1.0)
        return torch.addcmul(batch.reward, batch.discount, self.target.module(target_features, action).amin(0))

    def _learn_policy(self, features: Tensor, learning_rate: float) -> tuple[Tensor | float, Tensor | float]:
        """One step up the first value; returns the loss and the gradient's norm."""
        if compiled := self.compiled:
            return compiled.policy_step(features, learning_rate)[:2]
        params, backward_net = self._policy_vjp(features)
        action = params.tanh()
        value, backward_value = self.critics.forward_vjp(torch.cat((features, action), dim=-1))
        d_value = torch.zeros_like(value)
        d_value[0] = -1.0 / len(features)
        d_inputs = backward_value(d_value, weights=False, inputs=True)
        assert d_inputs is not None
        self.actor_optimizer.zero_grad()
        backward_net(d_inputs[0, :, features.shape[1] :] * (1.0 - action.square()))
        loss = -value[0].mean()
        return loss, self.actor_optimizer.step(loss, learning_rate)
