"""Proximal policy optimisation.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347: the clipped surrogate (eq. 7) and the adaptive KL penalty (eq. 8).
Implementation details after Huang et al. 2022, https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/.
Beyond both: a truncated episode bootstraps from the value of the observation it ended in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlx import ops
from rlx.config.algos.base_config import Objective, PPOConfig
from rlx.nn.actor_critic import ActorCritic
from rlx.nn.greedy import GreedyPolicy
from rlx.nn.normalize import RewardScaler
from rlx.nn.optim import FlatAdam
from rlx.types import EnvSpec, Metrics, Mode, PolicyOutput, Progress, Rollout, State, Tree


class PPO:
    """Proximal policy optimisation for discrete and continuous actions."""

    def __init__(self, config: PPOConfig, spec: EnvSpec, num_envs: int, device: torch.device) -> None:
        self.config, self.device = config, device
        self.rollout_length = config.rollout_length
        self.net = ActorCritic(spec, **config.network(), shared=config.shared_network).to(device)
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
        return ()

    def act(self, obs: Tensor, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        # Values and log-probabilities of the behaviour policy are computed in `update`, in one batch instead of T: nothing
        # that they depend on changes before.
        return PolicyOutput(self.net.act(obs, mode), carry, {})

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
        all_features = self.net.features(torch.cat((rollout.all_obs.flatten(0, 1), rollout.final_obs)))
        features = all_features[: rollout.num_env_steps]
        action = rollout.action.flatten(0, 1)
        params = self.net.policy_params(features)
        old_log_prob, old_params = self.net.head.log_prob(params, action), self.net.head.freeze(params)
        old_value, advantage = self._estimate(rollout, reward, all_features)
        value_before, target_before = old_value, old_value + advantage

        steps: list[tuple[Tensor, ...]] = []  # (policy loss, value loss, entropy, gradient norm) of every gradient step
        for epoch in range(config.num_epochs):
            if epoch > 0 and config.recompute_advantage:
                old_value, advantage = self._estimate(rollout, reward, all_features)
            batch = (features, action, old_log_prob, old_params, old_value, advantage, old_value + advantage)
            order = torch.randperm(len(features), device=self.device)
            log_ratios = []
            for minibatch in zip(*(x[order].chunk(config.num_minibatches) for x in batch), strict=True):
                log_ratio, losses = self._gradient_step(*minibatch, learning_rate=learning_rate)
                log_ratios.append(log_ratio)
                steps.append(losses)
            log_ratio = torch.cat(log_ratios)
            approximate_kl = ops.approximate_kl(log_ratio)
            if config.target_kl is not None and approximate_kl > config.target_kl:
                break
        self.optimizer.check()
        if config.objective is Objective.adaptive_kl:
            self._adapt_kl_coef(features, old_params)

        policy_loss, value_loss, entropy, grad_norm = (torch.stack(s).mean() for s in zip(*steps, strict=True))
        return {
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "update/entropy": entropy,
            "update/approx_kl": approximate_kl,
            "update/grad_norm": grad_norm,
            "update/explained_variance": ops.explained_variance(value_before, target_before),
            "update/learning_rate": learning_rate,
            "update/num_epochs": float(epoch + 1),
            "update/num_gradient_steps": float(len(steps)),
            **(
                {"update/clip_fraction": ((log_ratio.exp() - 1.0).abs() > config.clip).float().mean()}
                if config.objective is Objective.clip
                else {"update/kl_coef": self.kl_coef}
            ),
        }

    def _estimate(self, rollout: Rollout, reward: Tensor, all_features: Tensor) -> tuple[Tensor, Tensor]:
        """Values and advantages [T * B] under the current value function; all_features is [(T + 1) * B + E, D]."""
        values = self.net.value(all_features)
        num_final = len(rollout.final_t)
        of_all, of_final = values[: len(values) - num_final].view(-1, reward.shape[1]), values[len(values) - num_final :]
        next_value = rollout.to_next(of_all, of_final)
        advantage = ops.gae(
            reward, of_all[:-1], next_value, rollout.terminated, rollout.is_last, discount=self.config.discount, lam=self.config.gae_lambda
        )
        return of_all[:-1].flatten(), advantage.flatten()

    def _gradient_step(
        self,
        features: Tensor,
        action: Tensor,
        old_log_prob: Tensor,
        old_params: Tensor,
        old_value: Tensor,
        advantage: Tensor,
        target: Tensor,
        *,
        learning_rate: float,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step on a minibatch [M, ...]; returns log-ratios [M] and (policy loss, value loss, entropy, gradient norm).

        A gradient is carried back by hand where autograd would do it (see `rlx.nn.mlp`): d_x is d loss / d x.
        """
        config, head = self.config, self.net.head
        if config.normalize_advantage:
            advantage = ops.normalize(advantage)
        self.optimizer.zero_grad()
        params, value, backward_network = self.net.forward_vjp(features)
        log_prob, entropies, backward_head = head.evaluate(params, action)
        log_ratio, entropy = log_prob - old_log_prob, entropies.mean()
        if config.objective is Objective.clip:
            policy_loss, d_log_prob = ops.ppo_clip_loss(log_ratio, advantage, clip=config.clip)
        else:
            policy_loss, d_log_prob = ops.surrogate_loss(log_ratio, advantage)
        d_params = backward_head(d_log_prob, -config.entropy_coef / len(features))
        if config.objective is Objective.adaptive_kl:
            kl, backward_kl = head.kl(old_params, params)
            policy_loss = policy_loss + self.kl_coef * kl.mean()
            d_params = d_params + backward_kl(self.kl_coef / len(features))
        if config.value_clip is None:
            value_loss, d_value = ops.value_loss(value, target)
        else:
            value_loss, d_value = ops.clipped_value_loss(value, old_value, target, clip=config.value_clip)
        backward_network(d_params, d_value.mul_(config.value_coef))
        loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
        grad_norm = self.optimizer.step(loss, learning_rate)
        return log_ratio, (policy_loss, value_loss, entropy, grad_norm)

    def _adapt_kl_coef(self, features: Tensor, old_params: Tensor) -> None:
        """Halve or double the penalty's weight when the divergence is off its target by half (section 4 of the paper)."""
        kl = self.net.head.kl(old_params, self.net.policy_params(features))[0].mean().item()
        if kl < self.config.kl_target / 1.5:
            self.kl_coef /= 2.0
        elif kl > self.config.kl_target * 1.5:
            self.kl_coef *= 2.0
