"""Advantage actor-critic, synchronous.

Mnih et al. 2016, https://arxiv.org/abs/1602.01783, algorithm S3 with all workers stepping together. Deviation: Adam instead of
RMSProp; the advantage is GAE, whose default lambda = 1 is the paper's n-step return. `algo.advantage` chooses others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlx.config.algos.a2c_config import A2CConfig
from rlx.config.algos.policy_gradient_config import Advantage
from rlx.distributed import ALONE, World
from rlx.nn.action_values import ActionAdvantage
from rlx.nn.advantages import Estimator, Outcomes
from rlx.nn.backbone import ArrayPolicy, rows_of
from rlx.nn.losses import PolicyGradientLoss
from rlx.nn.memory_ablation import AblatesMemory
from rlx.nn.networks import Network
from rlx.nn.optim import FlatAdam
from rlx.nn.policy_gradient import batch_of, gradient_steps
from rlx.nn.pooled import explained_variance
from rlx.types import EnvSpec, Explanation, Metrics, Mode, PolicyOutput, Progress, Rollout, State, Tree


class A2C(AblatesMemory):
    """Advantage actor-critic for discrete and continuous actions."""

    weight_parts = ("net",)
    net: Network

    def __init__(self, config: A2CConfig, spec: EnvSpec, num_envs: int, device: torch.device) -> None:
        self.config, self.device = config, device
        self.rollout_length = config.rollout_length
        self.net = Network(spec, **config.network()).to(device)
        self.optimizer = FlatAdam(self.net, max_grad_norm=config.max_grad_norm)
        self.estimator = Estimator(kind=config.advantage.value, discount=config.discount, lam=config.gae_lambda, num_steps=config.n_step)
        self.q = ActionAdvantage(self.net, spec, num_steps=config.q_steps, **config.trunk()) if config.advantage is Advantage.q else None
        self.world: World = ALONE

    def join(self, world: World) -> None:
        self.world = world
        self.net.join(world)
        self.optimizer.join(world)
        if self.q is not None:
            self.q.optimizer.join(world)

    def state_dict(self) -> State:
        q = {} if self.q is None else {"q": self.q.state_dict()}
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), **q}

    def load_state_dict(self, state: State) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.q is not None:
            self.q.load_state_dict(state["q"])

    def act(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        return self.net.act(obs, carry, is_first, mode)

    def array_policy(self) -> ArrayPolicy | None:
        return self.net.array_policy()

    def explain(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> tuple[PolicyOutput, Explanation]:
        return self.act(obs, carry, is_first, mode=mode), self.net.explain(obs, carry, is_first, value_scale=1.0)

    @torch.no_grad()
    def update(self, rollout: Rollout, progress: Progress) -> Metrics:
        with self.net.learning_from(rows_of(rollout.obs)):
            return self._learn(rollout, progress)

    def _learn(self, rollout: Rollout, progress: Progress) -> Metrics:
        config = self.config
        learning_rate = config.learning_rate_at(progress.fraction_before(rollout))
        reward = rollout.reward.sign() if config.sign_reward else rollout.reward
        evaluated = self.net.evaluate(rollout)
        gain = None if self.q is None else self.q(evaluated.inputs, rows_of(rollout.action)).view_as(reward)
        outcomes = Outcomes(reward, evaluated.value, evaluated.next_value, rollout.terminated, rollout.is_last, gain)
        advantage = self.estimator(outcomes)
        target = self.estimator.target(outcomes, advantage)
        loss = PolicyGradientLoss(
            objective="log_prob",
            value_coef=config.value_coef,
            entropy_coef=config.entropy_coef,
            normalize_advantage=config.normalize_advantage,
        )
        batch = batch_of(evaluated, action=rollout.action, advantage=advantage, target=target)
        steps = gradient_steps(self.net, self.optimizer, loss, batch, learning_rate=learning_rate)
        self.optimizer.check()
        q_loss = {}
        if self.q is not None:
            missed = (target - evaluated.value).flatten()
            q_loss["loss/q_value"] = self.q.learn(batch.inputs, batch.action, missed, learning_rate)
        return {
            "loss/policy": steps.policy_loss[0],
            "loss/value": steps.value_loss[0],
            **q_loss,
            "update/entropy": steps.entropy[0],
            "update/grad_norm": steps.grad_norm[0],
            "update/explained_variance": explained_variance(evaluated.value, target, self.world),
            "update/learning_rate": learning_rate,
            "update/num_gradient_steps": 1.0,
        }
