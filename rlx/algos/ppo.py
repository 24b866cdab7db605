"""Proximal policy optimisation.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347: the clipped surrogate (eq. 7) and the adaptive KL penalty (eq. 8).
Implementation details after Huang et al. 2022, https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/.
Beyond both: a truncated episode bootstraps from the value of the observation it ended in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlx import ops
from rlx.config.algos.ppo_config import Objective, PPOConfig
from rlx.nn.greedy import GreedyPolicy
from rlx.nn.losses import Batch, PolicyGradientLoss
from rlx.nn.networks import ArrayPolicy, Network
from rlx.nn.normalize import RewardScaler
from rlx.nn.optim import FlatAdam
from rlx.nn.policy_gradient import gradient_steps
from rlx.types import EnvSpec, Explanation, Metrics, Mode, PolicyOutput, Progress, Rollout, State, Tree


class PPO:
    """Proximal policy optimisation for discrete and continuous actions."""

    weight_parts = ("net", "reward_scaler/_extra_state")

    def __init__(self, config: PPOConfig, spec: EnvSpec, num_envs: int, device: torch.device) -> None:
        self.config, self.device = config, device
        self.rollout_length = config.rollout_length
        self.net = Network(spec, **config.network(), shared=config.shared_network).to(device)
        self.optimizer = FlatAdam(self.net, max_grad_norm=config.max_grad_norm)
        self.reward_scaler = RewardScaler(num_envs, discount=config.discount, clip=config.reward_clip).to(device)
        self.kl_coef = config.kl_coef

    def state_dict(self) -> State:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "reward_scaler": self.reward_scaler.state_dict(),
            "kl_coef": self.kl_coef,
        }

    def load_state_dict(self, state: State) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.reward_scaler.load_state_dict(state["reward_scaler"])
        self.kl_coef = state["kl_coef"]

    def initial_carry(self, batch_size: int) -> Tree:
        return self.net.memory.initial(batch_size)

    def act(self, obs: Tensor, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        # `update` computes values and log-probabilities of the behaviour policy, in one batch instead of T: the network does not
        # change before.
        return PolicyOutput(*self.net.act(obs, carry, is_first, mode), {})

    def array_policy(self) -> ArrayPolicy | None:
        return self.net.array_policy()

    def explain(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> tuple[PolicyOutput, Explanation]:
        scale = self.reward_scaler.moments.std.item() if self.config.normalize_reward else 1.0
        return self.act(obs, carry, is_first, mode=mode), self.net.explain(obs, carry, is_first, value_scale=scale)

    def policy_module(self) -> GreedyPolicy:
        """The policy of evaluations, for exports."""
        return GreedyPolicy(self.net)

    @torch.no_grad()
    def update(self, rollout: Rollout, progress: Progress) -> Metrics:
        with self.net.learning_from(rollout.obs.flatten(0, 1)):  # ratios compare policies under one normaliser
            return self._learn(rollout, progress)

    def _learn(self, rollout: Rollout, progress: Progress) -> Metrics:
        config = self.config
        learning_rate = config.learning_rate_at(progress.fraction_before(rollout))
        reward = self.reward_scaler(rollout.reward, rollout.is_last) if config.normalize_reward else rollout.reward
        all_inputs = self.net.preprocess(torch.cat((rollout.all_obs.flatten(0, 1), rollout.final_obs)))
        inputs = all_inputs[: rollout.num_env_steps]
        action = rollout.action.flatten(0, 1)
        params = self.net.policy_params(inputs)
        old_log_prob, old_params = self.net.head.log_prob(params, action), self.net.head.freeze(params)
        old_value, advantage = self._estimate(rollout, reward, all_inputs)
        value_before, target_before = old_value, old_value + advantage

        loss, epochs = self._loss(), []
        for epoch in range(config.num_epochs):
            if epoch > 0 and config.recompute_advantage:
                old_value, advantage = self._estimate(rollout, reward, all_inputs)
            batch = Batch(inputs, action, advantage, old_value + advantage, old_value, old_log_prob, old_params)
            order = torch.randperm(len(action), device=self.device)
            steps = gradient_steps(
                self.net, self.optimizer, loss, batch, learning_rate=learning_rate, order=order, num_minibatches=config.num_minibatches
            )
            epochs.append(steps)
            approximate_kl = ops.approximate_kl(steps.log_ratio)
            if config.target_kl is not None and approximate_kl > config.target_kl:
                break
        self.optimizer.check()
        if config.objective is Objective.adaptive_kl:
            self._adapt_kl_coef(inputs, old_params)

        policy_loss, value_loss, entropy, grad_norm = (torch.cat(column).mean() for column in list(zip(*epochs, strict=True))[1:])
        return {
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "update/entropy": entropy,
            "update/approx_kl": approximate_kl,
            "update/grad_norm": grad_norm,
            "update/explained_variance": ops.explained_variance(value_before, target_before),
            "update/learning_rate": learning_rate,
            "update/num_epochs": float(epoch + 1),
            "update/num_gradient_steps": float((epoch + 1) * config.num_minibatches),
            **(
                {"update/clip_fraction": ((steps.log_ratio.exp() - 1.0).abs() > config.clip).float().mean()}
                if config.objective is Objective.clip
                else {"update/kl_coef": self.kl_coef}
            ),
        }

    def _estimate(self, rollout: Rollout, reward: Tensor, all_inputs: Tree) -> tuple[Tensor, Tensor]:
        """Values and advantages [T * B] under the current value function; all_inputs is [(T + 1) * B + E, *]."""
        values = self.net.value(all_inputs)
        num_final = len(rollout.final_t)
        of_all, of_final = values[: len(values) - num_final].view(-1, reward.shape[1]), values[len(values) - num_final :]
        next_value = rollout.to_next(of_all, of_final)
        advantage = ops.gae(
            reward, of_all[:-1], next_value, rollout.terminated, rollout.is_last, discount=self.config.discount, lam=self.config.gae_lambda
        )
        return of_all[:-1].flatten(), advantage.flatten()

    def _loss(self) -> PolicyGradientLoss:
        config = self.config
        return PolicyGradientLoss(
            objective="clip" if config.objective is Objective.clip else "surrogate",
            clip=config.clip,
            kl_coef=self.kl_coef if config.objective is Objective.adaptive_kl else 0.0,
            value_clip=config.value_clip,
            value_coef=config.value_coef,
            entropy_coef=config.entropy_coef,
            normalize_advantage=config.normalize_advantage,
        )

    def _adapt_kl_coef(self, inputs: Tree, old_params: Tensor) -> None:
        """Halve or double the penalty's weight when the divergence is off its target by a factor of 1.5 (section 4 of the paper)."""
        kl = self.net.head.kl(old_params, self.net.policy_params(inputs))[0].mean().item()
        if kl < self.config.kl_target / 1.5:
            self.kl_coef /= 2.0
        elif kl > self.config.kl_target * 1.5:
            self.kl_coef *= 2.0
