"""Proximal policy optimisation.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347: the clipped surrogate (eq. 7) and the adaptive KL penalty (eq. 8). A third objective
is that of Xie et al. 2025, https://arxiv.org/abs/2401.16025.
Implementation details after Huang et al. 2022, https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/.
Beyond both: a truncated episode bootstraps from the value of the observation it ended in.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlx import ops
from rlx.config.algos.ppo_config import Mirroring, Objective, PPOConfig
from rlx.distributed import ALONE, World
from rlx.errors import ConfigError
from rlx.nn.backbone import ArrayPolicy, Evaluated, rows_of
from rlx.nn.heads import GaussianHead
from rlx.nn.losses import Batch, PolicyGradientLoss, Sequences
from rlx.nn.memory_ablation import AblatesMemory
from rlx.nn.networks import Network
from rlx.nn.normalize import RewardScaler
from rlx.nn.optim import FlatAdam
from rlx.nn.policy_gradient import batch_of, gradient_steps
from rlx.nn.pooled import averages, explained_variance
from rlx.nn.value_scale import ValueScale
from rlx.spaces import describe_space
from rlx.symmetry import Mirror, Signs
from rlx.types import EnvSpec, Explanation, Metrics, Mode, PolicyOutput, Progress, Rollout, State, Tree

_OBJECTIVES: dict[Objective, Literal["surrogate", "clip", "spo"]] = {
    Objective.clip: "clip",
    Objective.spo: "spo",
    Objective.adaptive_kl: "surrogate",
}


class PPO(AblatesMemory):
    """Proximal policy optimisation for discrete and continuous actions."""

    weight_parts = ("net", "reward_scaler/_extra_state", "value_scale/_extra_state")
    net: Network

    def __init__(self, config: PPOConfig, spec: EnvSpec, num_envs: int, device: torch.device) -> None:
        self.config, self.device = config, device
        self.rollout_length = config.rollout_length
        self.net = Network(spec, **config.network(), shared=config.shared_network).to(device)
        if config.rpo_alpha and not isinstance(self.net.head, GaussianHead):
            raise ConfigError(f"algo.rpo_alpha={config.rpo_alpha} perturbs the mean of a Gaussian, and env={spec.id} has actions "
                              f"{describe_space(spec.action_space)}; leave it out")  # fmt: skip
        self.mirror = self._mirror_of(spec) if config.mirror is Mirroring.augment else None
        self.optimizer = FlatAdam(self.net, max_grad_norm=config.max_grad_norm, betas=(config.adam_beta1, config.adam_beta2))
        self.reward_scaler = RewardScaler(num_envs, discount=config.discount, clip=config.reward_clip).to(device)
        self.value_scale = ValueScale(preserves=config.popart) if config.normalize_value else None
        self.world: World = ALONE
        self.kl_coef = config.kl_coef
        self.learning_rate = config.learning_rate  # where it is adaptive

    def join(self, world: World) -> None:
        self.world = self.reward_scaler.moments.world = world
        self.net.join(world)
        self.optimizer.join(world)
        if self.value_scale is not None:
            self.value_scale.moments.world = world

    def state_dict(self) -> State:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "reward_scaler": self.reward_scaler.state_dict(),
            "kl_coef": self.kl_coef,
            "learning_rate": self.learning_rate,
            **({} if self.value_scale is None else {"value_scale": self.value_scale.state_dict()}),
        }

    def load_state_dict(self, state: State) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.reward_scaler.load_state_dict(state["reward_scaler"])
        if self.value_scale is not None:
            self.value_scale.load_state_dict(state["value_scale"])
        self.kl_coef = state["kl_coef"]
        self.learning_rate = state.get("learning_rate", self.config.learning_rate)  # runs from before it could adapt have none

    def act(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        return self.net.act(obs, carry, is_first, mode)

    def array_policy(self) -> ArrayPolicy | None:
        return self.net.array_policy()

    def explain(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> tuple[PolicyOutput, Explanation]:
        scale = self.reward_scaler.moments.std.item() if self.config.normalize_reward else 1.0
        explanation = self.net.explain(obs, carry, is_first, value_scale=1.0)
        assert explanation.value is not None
        return self.act(obs, carry, is_first, mode=mode), explanation._replace(value=scale * self._to_return(explanation.value))

    @torch.no_grad()
    def update(self, rollout: Rollout, progress: Progress) -> Metrics:
        with self.net.learning_from(rows_of(rollout.obs)):  # ratios compare policies under one normaliser
            return self._learn(rollout, progress)

    def _learn(self, rollout: Rollout, progress: Progress) -> Metrics:
        config = self.config
        annealed = config.learning_rate_at(progress.fraction_before(rollout))
        reward = rollout.reward.sign() if config.sign_reward else rollout.reward
        reward = self.reward_scaler(reward, rollout.is_last) if config.normalize_reward else reward
        evaluated = self.net.evaluate(rollout)
        inputs, sequences = evaluated.inputs, evaluated.sequences
        params = self.net.policy_params(inputs) if evaluated.params is None else evaluated.params
        old_log_prob, old_params = self.net.head.log_prob(params, rows_of(rollout.action)), self.net.head.freeze(params)
        advantage = self._advantage(rollout, reward, evaluated)
        value_before = self._to_return(evaluated.value)
        target = target_before = value_before + advantage
        if self.value_scale is not None:
            evaluated = self.value_scale.update(target, evaluated, self.net)
        mirrored = None if self.mirror is None else self.net.preprocess(self.mirror.observation(rows_of(rollout.obs)))
        num_envs = rollout.reward.shape[1] * (1 if mirrored is None else 2)
        num_visited = self.world.size * num_envs * (len(rollout.reward) if sequences is None else 1)  # of all ranks

        loss, epochs = self._loss(), []
        for epoch in range(config.num_epochs):
            learning_rate = self.learning_rate if config.adaptive_learning_rate else annealed
            if epoch > 0 and config.recompute_advantage:
                evaluated = self.net.evaluate(rollout, afresh=True)
                advantage = self._advantage(rollout, reward, evaluated)
                target = self._to_return(evaluated.value) + advantage
            action = self._perturbed(rollout.action) if config.rpo_alpha else rollout.action
            batch = batch_of(evaluated, action=action, advantage=advantage, target=self._to_value(target),
                             old_log_prob=old_log_prob, old_params=old_params)  # fmt: skip
            batch = batch if mirrored is None else self._with_mirrored(batch, mirrored)
            order = torch.randperm(num_visited, device=self.device)
            steps = gradient_steps(
                self.net, self.optimizer, loss, batch, learning_rate=learning_rate, order=order, num_minibatches=config.num_minibatches,
                num_envs=num_envs,
            )  # fmt: skip
            epochs.append(steps)
            (approximate_kl,) = averages([ops.approximate_kl(steps.log_ratio)], len(steps.log_ratio), self.world)
            if config.adaptive_learning_rate:
                self.learning_rate = config.adapted(learning_rate, approximate_kl.item())
            if config.target_kl is not None and approximate_kl > config.target_kl:
                break
        self.optimizer.check()
        if config.objective is Objective.adaptive_kl:
            self._adapt_kl_coef(inputs, old_params, sequences)

        policy_loss, value_loss, entropy, grad_norm = (torch.cat(column).mean() for column in list(zip(*epochs, strict=True))[1:])
        return {
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "update/entropy": entropy,
            "update/approx_kl": approximate_kl,
            "update/grad_norm": grad_norm,
            "update/explained_variance": explained_variance(value_before, target_before, self.world),
            "update/learning_rate": learning_rate,
            "update/num_epochs": float(epoch + 1),
            "update/num_gradient_steps": float((epoch + 1) * config.num_minibatches),
            **(
                {"update/kl_coef": self.kl_coef}
                if config.objective is Objective.adaptive_kl
                else {"update/clip_fraction": self._clip_fraction(steps.log_ratio)}
            ),
        }

    def _advantage(self, rollout: Rollout, reward: Tensor, evaluated: Evaluated) -> Tensor:
        """[T, B] under an evaluation of the value function."""
        return ops.gae(
            reward,
            self._to_return(evaluated.value),
            self._to_return(evaluated.next_value),
            rollout.terminated,
            rollout.is_last,
            discount=self.config.discount,
            lam=self.config.gae_lambda,
        )

    def _mirror_of(self, spec: EnvSpec) -> Mirror:
        """The symmetry of the environment, as tensors."""
        if spec.mirror is None or not isinstance(self.net.head, GaussianHead):
            raise ConfigError(f"algo.mirror=augment needs an environment with a left-right symmetry ({', '.join(spec.mirrored)}, with what "
                              f"they observe by default), and none is known of env={spec.id}; leave it out")  # fmt: skip
        return Mirror(*(Signs(*(torch.from_numpy(x).to(self.device) for x in signs)) for signs in spec.mirror))

    def _with_mirrored(self, batch: Batch, inputs: Tensor) -> Batch:
        """A batch with each row behind which its mirrored one follows; `inputs` [N, *] are those of the mirrored observations."""
        assert self.mirror is not None
        assert batch.old_params is not None
        mean, log_std = batch.old_params.chunk(2, dim=1)
        old_params = torch.cat((self.mirror.action(mean), log_std[:, self.mirror.action.source]), dim=1)
        mirrored = batch._replace(inputs=inputs, action=self.mirror.action(batch.action), old_params=old_params)
        pairs = zip(batch[:-1], mirrored[:-1], strict=True)
        return Batch._make([*(torch.stack((x, y), dim=1).flatten(0, 1) for x, y in pairs), None])

    def _perturbed(self, action: Tensor) -> Tensor:
        """Actions [T, B, A] less uniform noise: their density is that under a Gaussian whose mean has the noise added."""
        alpha = self.config.rpo_alpha
        noise = self.world.draw(action.transpose(0, 1).contiguous(), lambda x: x.uniform_(-alpha, alpha))
        return action - noise.transpose(0, 1)

    def _clip_fraction(self, log_ratio: Tensor) -> Tensor:
        """The part of all ranks' rows [N] whose ratio is outside the interval."""
        outside = ((log_ratio.exp() - 1.0).abs() > self.config.clip).float().mean()
        return averages([outside], len(log_ratio), self.world)[0]

    def _to_return(self, value: Tensor) -> Tensor:
        """The network's values to (scaled) returns."""
        return value if self.value_scale is None else self.value_scale.to_return(value)

    def _to_value(self, returns: Tensor) -> Tensor:
        """The inverse of `_to_return`."""
        return returns if self.value_scale is None else self.value_scale.to_value(returns)

    def _loss(self) -> PolicyGradientLoss:
        config = self.config
        return PolicyGradientLoss(
            objective=_OBJECTIVES[config.objective],
            clip=config.clip,
            kl_coef=self.kl_coef if config.objective is Objective.adaptive_kl else 0.0,
            value_clip=config.value_clip,
            value_coef=config.value_coef,
            entropy_coef=config.entropy_coef,
            normalize_advantage=config.normalize_advantage,
        )

    def _adapt_kl_coef(self, inputs: Tree, old_params: Tensor, sequences: Sequences | None) -> None:
        """Halve or double the penalty's weight when the divergence is off its target by a factor of 1.5 (section 4 of the paper)."""
        params = self.net.policy_params(inputs, *(sequences[:2] if sequences else ()))
        every = self.net.head.kl(old_params, params)[0]
        kl = averages([every.mean()], len(every), self.world)[0].item()
        if kl < self.config.kl_target / 1.5:
            self.kl_coef /= 2.0
        elif kl > self.config.kl_target * 1.5:
            self.kl_coef *= 2.0
