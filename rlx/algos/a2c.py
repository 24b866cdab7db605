"""Advantage actor-critic, synchronous.

Mnih et al. 2016, https://arxiv.org/abs/1602.01783, algorithm S3 with all workers stepping together. Deviation: Adam instead of
RMSProp; the advantage is GAE, whose default lambda = 1 is the paper's n-step return.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlx import ops
from rlx.config.algos.a2c_config import A2CConfig
from rlx.nn.greedy import GreedyPolicy
from rlx.nn.losses import Batch, PolicyGradientLoss
from rlx.nn.networks import ArrayPolicy, Network
from rlx.nn.optim import FlatAdam
from rlx.nn.policy_gradient import gradient_steps
from rlx.types import EnvSpec, Explanation, Metrics, Mode, PolicyOutput, Progress, Rollout, State, Tree


class A2C:
    """Advantage actor-critic for discrete and continuous actions."""

    weight_parts = ("net",)

    def __init__(self, config: A2CConfig, spec: EnvSpec, num_envs: int, device: torch.device) -> None:
        self.config, self.device = config, device
        self.rollout_length = config.rollout_length
        self.net = Network(spec, **config.network()).to(device)
        self.optimizer = FlatAdam(self.net, max_grad_norm=config.max_grad_norm)

    def state_dict(self) -> State:
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])

    def initial_carry(self, batch_size: int) -> Tree:
        return self.net.memory.initial(batch_size)

    def act(self, obs: Tensor, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        return PolicyOutput(*self.net.act(obs, carry, is_first, mode), {})

    def array_policy(self) -> ArrayPolicy | None:
        return self.net.array_policy()

    def explain(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> tuple[PolicyOutput, Explanation]:
        return self.act(obs, carry, is_first, mode=mode), self.net.explain(obs, carry, is_first, value_scale=1.0)

    def policy_module(self) -> GreedyPolicy:
        """The policy of evaluations, for exports."""
        return GreedyPolicy(self.net)

    @torch.no_grad()
    def update(self, rollout: Rollout, progress: Progress) -> Metrics:
        with self.net.learning_from(rollout.obs.flatten(0, 1)):
            return self._learn(rollout, progress)

    def _learn(self, rollout: Rollout, progress: Progress) -> Metrics:
        config = self.config
        learning_rate = config.learning_rate_at(progress.fraction_before(rollout))
        inputs, action = self.net.preprocess(rollout.obs.flatten(0, 1)), rollout.action.flatten(0, 1)
        value = self.net.value(inputs)
        advantage = self._advantage(rollout, value.view_as(rollout.reward))
        target = value + advantage
        loss = PolicyGradientLoss(
            objective="log_prob",
            value_coef=config.value_coef,
            entropy_coef=config.entropy_coef,
            normalize_advantage=config.normalize_advantage,
        )
        batch = Batch(inputs, action, advantage, target, value, torch.zeros_like(value), None)
        steps = gradient_steps(self.net, self.optimizer, loss, batch, learning_rate=learning_rate)
        self.optimizer.check()
        return {
            "loss/policy": steps.policy_loss[0],
            "loss/value": steps.value_loss[0],
            "update/entropy": steps.entropy[0],
            "update/grad_norm": steps.grad_norm[0],
            "update/explained_variance": ops.explained_variance(value, target),
            "update/learning_rate": learning_rate,
            "update/num_gradient_steps": 1.0,
        }

    def _advantage(self, rollout: Rollout, value: Tensor) -> Tensor:
        """Advantages [T * B] from values [T, B]; values of the last and of the final observations are computed here."""
        beyond = self.net.value(self.net.preprocess(torch.cat((rollout.all_obs[-1], rollout.final_obs))))
        last, final = beyond[: value.shape[1]], beyond[value.shape[1] :]
        next_value = rollout.to_next(torch.cat((value, last.unsqueeze(0))), final)
        return ops.gae(
            rollout.reward,
            value,
            next_value,
            rollout.terminated,
            rollout.is_last,
            discount=self.config.discount,
            lam=self.config.gae_lambda,
        ).flatten()
