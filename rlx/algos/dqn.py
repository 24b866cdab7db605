"""Deep Q-learning, with double Q-learning, n-step returns, dueling networks, prioritised replay and C51 as settings.

Mnih et al. 2015, https://doi.org/10.1038/nature14236. Of the windows of n steps that are drawn, the targets are

    y = R + gamma^m max_a' Q'(s_m, a')                                   (double=false)
    y = R + gamma^m Q'(s_m, argmax_a' Q(s_m, a'))                        (double=true; van Hasselt et al. 2016, arXiv:1509.06461)

with R the discounted rewards of the window and m its length: n, or less where the episode ends. After a termination the second term is 0;
a truncated episode bootstraps from the observation that it ended in. With distributional=c51 Q is the mean of a distribution, and the
target is the projected distribution of R + gamma^m Z'(s_m, a') (Bellemare et al. 2017, algorithm 1).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from rlx import ops
from rlx.columns import Column
from rlx.config.algos.dqn_config import Distributional, DQNConfig
from rlx.experience import Experience, Steps
from rlx.nn.atoms import Atoms, cross_entropy_loss
from rlx.nn.backbone import ArrayPolicy
from rlx.nn.network_agent import NetworkAgent
from rlx.nn.optim import FlatAdam
from rlx.nn.q_networks import QNetwork
from rlx.nn.targets import Target
from rlx.replay import gradient_steps_due
from rlx.types import EnvSpec, Explanation, Metrics, Mode, PolicyOutput, Progress, Rollout, State, Tree

_MEASURED = 10
"""Gradient steps of which one is measured."""


class DQN(NetworkAgent):
    """Deep Q-learning for discrete actions."""

    weight_parts = ("net",)
    net: QNetwork

    def __init__(self, config: DQNConfig, spec: EnvSpec, num_envs: int, device: torch.device) -> None:
        self.config, self.device = config, device
        self.rollout_length = config.rollout_length
        self.net = QNetwork(
            spec, hidden_sizes=config.hidden_sizes, activation=config.activation.value, layer_norm=config.layer_norm,
            encoder=config.encoder.value, dueling=config.dueling,
            atoms=Atoms(config.v_min, config.v_max, config.num_atoms) if config.distributional is Distributional.c51 else None,
        ).to(device)  # fmt: skip
        self.optimizer = FlatAdam(self.net, epsilon=1e-8, max_grad_norm=config.max_grad_norm)
        self.target = Target(self.net, self.optimizer)
        self.experience = Experience(
            spec, config.replay_size, num_envs, action=Column(torch.long), n_step=config.n_step, discount=config.discount, device=device,
            exponent=config.priority_exponent if config.per else 0.0,
        )  # fmt: skip
        self.replay_bytes = self.experience.num_bytes
        self.epsilon = 1.0
        """Probability of a random action in training, until the next update."""

    # Saving

    def state_dict(self) -> State:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "target": self.target.state_dict(),
            "experience": self.experience.state_dict(),
            "epsilon": self.epsilon,
        }

    def load_state_dict(self, state: State) -> None:
        for name in ("net", "optimizer", "target", "experience"):
            getattr(self, name).load_state_dict(state[name])
        self.epsilon = state["epsilon"]
        if self.optimizer.num_steps == 0:  # the network may come from another run
            self.target.move(1.0)

    # Acting

    def act(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        return self.net.act(obs, carry, is_first, mode, epsilon=self.epsilon)

    def array_policy(self) -> ArrayPolicy | None:
        return self.net.array_policy(epsilon=self.epsilon)

    def explain(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> tuple[PolicyOutput, Explanation]:
        return self.act(obs, carry, is_first, mode=mode), self.net.explain(obs, carry, is_first, mode, epsilon=self.epsilon)

    # Learning

    @torch.no_grad()
    def update(self, rollout: Rollout, progress: Progress) -> Metrics:
        config, after = self.config, progress.env_steps
        before = after - rollout.num_env_steps
        self.experience.add(dataclasses.replace(rollout, reward=rollout.reward.sign()) if config.sign_reward else rollout)
        fraction = min(1.0, after / progress.total_env_steps)
        self.epsilon = 1.0 if after < config.initial_steps else config.epsilon_at(fraction)
        due = gradient_steps_due(before, after, utd=config.utd, begin=config.initial_steps)
        metrics = (
            self._learn(due, config.learning_rate_at(progress.fraction_before(rollout)), config.correction_at(fraction)) if due else {}
        )
        return {**metrics, "update/epsilon": self.epsilon, "update/num_gradient_steps": float(due)}

    def _learn(self, num_steps: int, learning_rate: float, correction: float) -> dict[str, Tensor | float]:
        """Gradient steps on batches of their own; returns the metrics of one of them in ten."""
        config, metrics = self.config, dict[str, Tensor | float]()
        found = list[tuple[Tensor, Tensor]]()
        for batch in self.experience.draw_batches(num_steps, config.batch_size, correction=correction):
            measures = self.optimizer.num_steps % _MEASURED == 0
            value, loss, error, grad_norm = self._step(batch, learning_rate)
            if self.optimizer.num_steps % config.target_every == 0:
                self.target.move(config.tau)
            if config.per:
                found.append((batch.rows, error))
            if measures:
                metrics = {"loss/value": loss, "update/q_value": value.mean(), "update/grad_norm": grad_norm}
        self.optimizer.check()
        if config.per:  # once per update, since every transfer waits for the device
            rows, errors = zip(*found, strict=True)
            self.experience.prioritise(torch.cat(rows), torch.cat(errors))
        if metrics:
            metrics |= {"update/learning_rate": learning_rate, "replay/size": float(self.experience.size)}
        return metrics

    def _step(self, batch: Steps, learning_rate: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One gradient step; returns the values [N] of the actions taken, the loss, the errors [N] and the gradient's norm."""
        net = self.net
        inputs, next_inputs = net.preprocess(batch.obs), net.preprocess(batch.next_obs)
        self.optimizer.zero_grad()
        learn = self._learn_values if net.atoms is None else self._learn_distributions
        value, loss, error = learn(batch, inputs, next_inputs)
        return value, loss, error, self.optimizer.step(loss, learning_rate)

    def _learn_values(self, batch: Steps, inputs: Tree, next_inputs: Tree) -> tuple[Tensor, Tensor, Tensor]:
        """Add the gradient of the Huber loss; returns the values [N] of the actions taken, the loss and the errors [N]."""
        next_q = self.target.module(next_inputs)
        next_value = next_q.gather(1, self._next_action(next_inputs, next_q)[:, None])[:, 0]
        q, backward = self.net.forward_vjp(inputs)
        taken = batch.action[:, None]
        value = q.gather(1, taken)[:, 0]
        error = value - torch.addcmul(batch.reward, batch.discount, next_value)
        loss, slope = ops.huber_loss(error, batch.weight)
        backward(torch.zeros_like(q).scatter_(1, taken, slope[:, None]))
        return value, loss, error

    def _learn_distributions(self, batch: Steps, inputs: Tree, next_inputs: Tree) -> tuple[Tensor, Tensor, Tensor]:
        """The same for the cross-entropies of distributions; errors are their divergences from the targets."""
        atoms, target, row = self.net.atoms, self.target.module, torch.arange(len(batch.action), device=self.device)
        assert atoms is not None
        next_logits = target.logits(next_inputs)
        next_action = self._next_action(next_inputs, target.values_of(next_logits, next_inputs))
        wanted = atoms.project(next_logits[row, next_action].softmax(-1), batch.reward, batch.discount)
        logits, backward = self.net.logits_vjp(inputs)
        taken = logits[row, batch.action]
        loss, slope, error = cross_entropy_loss(taken, wanted, batch.weight)
        d_logits = torch.zeros_like(logits)
        d_logits[row, batch.action] = slope
        backward(d_logits)
        return atoms.mean(taken), loss, error

    def _next_action(self, next_inputs: Tree, next_q: Tensor) -> Tensor:
        """The actions [N] whose values are bootstrapped from, given the target network's values [N, A]."""
        return (self.net(next_inputs) if self.config.double else next_q).argmax(-1)
