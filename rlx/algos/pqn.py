"""PQN: Q-learning on rollouts of many environments, without a replay and without a target network.

Gallici et al. 2024, https://arxiv.org/abs/2407.04811, algorithm 1: layer normalisation replaces the target network, and targets of
Q(lambda) from the rollout's own values replace the replay. Deviations: Adam instead of RAdam; a truncated episode bootstraps from the
observation it ended in, where CleanRL's PQN takes it for terminated; the gradients of a memory begin at the rollout's first step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlx import ops
from rlx.config.algos.pqn_config import PQNConfig
from rlx.nn.backbone import ArrayPolicy, rows_of
from rlx.nn.memory_ablation import AblatesMemory
from rlx.nn.normalize import RewardScaler
from rlx.nn.optim import FlatAdam
from rlx.nn.q_learning import gradient_steps
from rlx.nn.q_networks import QNetwork
from rlx.types import EnvSpec, Explanation, Metrics, Mode, PolicyOutput, Progress, Rollout, State, Tree


class PQN(AblatesMemory):
    """Parallelised Q-network for discrete actions.

    `epsilon` is the probability of a random action in the next rollout: the schedule's value at the env steps before it.
    """

    weight_parts = ("net", "reward_scaler/_extra_state")
    net: QNetwork

    def __init__(self, config: PQNConfig, spec: EnvSpec, num_envs: int, device: torch.device) -> None:
        self.config, self.device = config, device
        self.rollout_length = config.rollout_length
        self.net = QNetwork(spec, **config.network()).to(device)
        self.optimizer = FlatAdam(self.net, max_grad_norm=config.max_grad_norm)
        self.reward_scaler = RewardScaler(num_envs, discount=config.discount, clip=config.reward_clip).to(device)
        self.epsilon = config.epsilon_at(0.0)

    def state_dict(self) -> State:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "reward_scaler": self.reward_scaler.state_dict(),
            "epsilon": self.epsilon,
        }

    def load_state_dict(self, state: State) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.reward_scaler.load_state_dict(state["reward_scaler"])
        self.epsilon = state["epsilon"]

    def act(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        return self.net.act(obs, carry, is_first, mode, epsilon=self.epsilon)

    def array_policy(self) -> ArrayPolicy | None:
        return self.net.array_policy(epsilon=self.epsilon)

    def explain(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> tuple[PolicyOutput, Explanation]:
        scale = self.reward_scaler.moments.std.item() if self.config.normalize_reward else 1.0
        explanation = self.net.explain(obs, carry, is_first, mode, epsilon=self.epsilon, value_scale=scale)
        return self.act(obs, carry, is_first, mode=mode), explanation

    @torch.no_grad()
    def update(self, rollout: Rollout, progress: Progress) -> Metrics:
        with self.net.learning_from(rows_of(rollout.obs)):
            metrics = self._learn(rollout, progress)
        self.epsilon = self.config.epsilon_at(min(1.0, progress.env_steps / progress.total_env_steps))
        return metrics

    def _learn(self, rollout: Rollout, progress: Progress) -> Metrics:
        config = self.config
        learning_rate = config.learning_rate_at(progress.fraction_before(rollout))
        reward = rollout.reward.sign() if config.sign_reward else rollout.reward
        reward = self.reward_scaler(reward, rollout.is_last) if config.normalize_reward else reward
        inputs, value, next_value, _, sequences = self.net.evaluate(rollout)
        target = ops.q_lambda_returns(
            reward, next_value, rollout.terminated, rollout.is_last, discount=config.discount, lam=config.q_lambda
        )
        action, num_visited = rollout.action, rollout.reward.shape[1]
        if sequences is None:
            action, target, num_visited = action.flatten(), target.flatten(), rollout.num_env_steps
        epochs = [
            gradient_steps(self.net, self.optimizer, inputs, action, target, sequences, learning_rate=learning_rate,
                           order=torch.randperm(num_visited, device=self.device), num_minibatches=config.num_minibatches)
            for _ in range(config.num_epochs)
        ]  # fmt: skip
        self.optimizer.check()
        loss, grad_norm = (torch.cat(column) for column in zip(*epochs, strict=True))
        return {
            "loss/value": loss.mean(),
            "update/q_value": value.mean(),
            "update/explained_variance": ops.explained_variance(value, target.view_as(value)),
            "update/epsilon": self.epsilon,
            "update/grad_norm": grad_norm.mean(),
            "update/learning_rate": learning_rate,
            "update/num_gradient_steps": float(len(loss)),
        }
