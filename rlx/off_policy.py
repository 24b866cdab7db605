"""What SAC and TD3 share: a replay, K value networks and their targets, a policy of actions in [-1, 1], and when they learn.

Observations go through one encoder. It is trained with the value networks, and the policy reads its features as they are, without a
gradient of its own (Yarats et al. 2019, https://arxiv.org/abs/1910.01741, for images).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlx.action_range import ActionRange
from rlx.columns import Column
from rlx.config.algos.off_policy_config import OffPolicyConfig
from rlx.experience import Experience, Steps
from rlx.nn.compiled_off_policy import CompiledActorCritic, compile_actor_critic
from rlx.nn.critics import Critics
from rlx.nn.encoders import make_encoder
from rlx.nn.leaf_encoders import Encoder, EncoderSettings, FlatEncoder
from rlx.nn.mlp import MLP
from rlx.nn.network_report import count_parameters, layers_in_words, part_report, report_of, trunk_report
from rlx.nn.optim import FlatAdam
from rlx.nn.targets import Target
from rlx.replay import gradient_steps_due
from rlx.types import EnvSpec, Metrics, Mode, PolicyOutput, Progress, Rollout, State, Tree

_MEASURED = 10
"""Gradient steps of which one is measured: reading every one would take a tenth of a small network's time."""


class Values(nn.Module):
    """An encoder, and K values of its features and an action in [-1, 1]."""

    def __init__(self, encoder: Encoder, critics: Critics) -> None:
        super().__init__()
        self.encoder, self.critics = encoder, critics

    def features(self, obs: Tree) -> Tensor:
        """Observations [N, *] to features [N, D]."""
        features: Tensor = self.encoder(self.encoder.preprocess(obs))
        return features

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        """Features [N, D] and actions [N, A] to values [K, N]."""
        return self.critics(torch.cat((features, action), dim=-1))


class Actor(nn.Module):
    """The policy's network; with `log_alpha` the weight of the entropy beside it, which is learned by the same optimiser."""

    def __init__(self, net: MLP, *, log_alpha: float | None = None) -> None:
        super().__init__()
        self.net = net
        self.log_alpha = None if log_alpha is None else nn.Parameter(torch.tensor([log_alpha]))


class OffPolicyActorCritic:
    """The part of an agent that does not depend on its losses; a subclass defines them.

    Args:
        config: its settings.
        spec: gives the spaces.
        num_envs: B.
        device: of the networks.
        num_critics: K.
        params_per_action: outputs of the policy for each number of an action.
        log_alpha: as of `Actor`.

    Raises:
        ConfigError: for action spaces other than a bounded Box.
    """

    weight_parts: tuple[str, ...] = ("actor", "values")

    def __init__(
        self,
        config: OffPolicyConfig,
        spec: EnvSpec,
        num_envs: int,
        device: torch.device,
        *,
        num_critics: int,
        params_per_action: int,
        log_alpha: float | None = None,
    ) -> None:
        self.settings, self.device = config, device
        self.rollout_length = config.rollout_length
        self.range = ActionRange(spec, device, verb=f"algo={config.name} chooses")
        column = Column(torch.float32, (self.range.size,))
        self.experience = Experience(
            spec, config.replay_size, num_envs, action=column, n_step=config.n_step, discount=config.discount, device=device
        )
        self.replay_bytes = self.experience.num_bytes
        encoder = make_encoder(spec, EncoderSettings(kind=config.encoder.value))
        sizes, activation = config.hidden_sizes, config.activation.value
        critics = Critics(
            encoder.num_features + self.range.size, num_members=num_critics, hidden_sizes=sizes, activation=activation,
            layer_norm=config.layer_norm,
        )  # fmt: skip
        net = MLP([encoder.num_features, *sizes, params_per_action * self.range.size], activation, output_gain=0.01)
        self.values = Values(encoder, critics).to(device)
        self.actor = Actor(net, log_alpha=log_alpha).to(device)
        self.encoder, self.critics, self.policy = encoder, critics, net  # parts of these two
        self.values_optimizer = FlatAdam(self.values, epsilon=1e-8, max_grad_norm=config.max_grad_norm)
        self.actor_optimizer = FlatAdam(self.actor, epsilon=1e-8, max_grad_norm=config.max_grad_norm)
        self.target = Target(self.values, self.values_optimizer)
        self._compiled: CompiledActorCritic | None = None
        self._compiled_parts: tuple[Any, ...] = ()
        self.env_steps = 0
        """Env steps of the run at the last update: the first ones are random."""

    # Saving

    def state_dict(self) -> State:
        return {
            "actor": self.actor.state_dict(),
            "values": self.values.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "values_optimizer": self.values_optimizer.state_dict(),
            "target": self.target.state_dict(),
            "experience": self.experience.state_dict(),
            "env_steps": self.env_steps,
        }

    def load_state_dict(self, state: State) -> None:
        for name in ("actor", "values", "actor_optimizer", "values_optimizer", "target", "experience"):
            getattr(self, name).load_state_dict(state[name])
        self.env_steps = state["env_steps"]
        if self.values_optimizer.num_steps == 0:  # the networks may come from another run
            self.target.move(1.0)

    # Acting

    def initial_carry(self, batch_size: int) -> Tree:
        return ()

    @property
    def _is_random(self) -> bool:
        return self.env_steps < self.settings.initial_steps

    @torch.no_grad()
    def act(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        """Actions [B, A]: random before learning begins, then of the policy, with noise in training."""
        params = self.policy(self.values.features(obs))
        if mode == "eval":
            action = self._mode(params)
        elif self._is_random:
            action = torch.rand(len(params), self.range.size, device=self.device) * 2.0 - 1.0
        else:
            action = self._explore(params, torch.randn(len(params), self.range.size, device=self.device))
        return PolicyOutput(self.range.to_env(action), carry, {})

    def array_policy(self) -> Callable[[NDArray[Any]], NDArray[Any]] | None:
        """`act` in mode "train" on arrays."""
        encoder = self.encoder
        if not isinstance(encoder, FlatEncoder) or (forward := self.policy.on_arrays()) is None:
            return None
        size, centre, half = self.range.size, self.range.centre_array, self.range.half_array

        def policy(obs: NDArray[Any]) -> NDArray[Any]:
            if self._is_random:
                return centre + half * (2.0 * torch.rand(len(obs), size).numpy() - 1.0)
            params = torch.from_numpy(forward(encoder.raw_array(obs)))
            action = self._explore(params, torch.randn(len(obs), size)).numpy()
            return centre + half * action

        return policy

    def _mode(self, params: Tensor) -> Tensor:
        """The action [B, A] of an evaluation in [-1, 1], from the policy's output."""
        raise NotImplementedError

    def _explore(self, params: Tensor, noise: Tensor) -> Tensor:
        """The action [B, A] of training in [-1, 1], from the policy's output and standard normal noise [B, A]."""
        raise NotImplementedError

    # Learning

    @torch.no_grad()
    def update(self, rollout: Rollout, progress: Progress) -> Metrics:
        config, after = self.settings, progress.env_steps
        before = after - rollout.num_env_steps
        self.experience.add(rollout, self.range.normalised(rollout.action))
        self.env_steps = after
        metrics = self._prepare(rollout, progress)
        due = gradient_steps_due(before, after, utd=config.utd, begin=config.initial_steps)
        if after <= config.n_step * rollout.reward.shape[1]:  # no window is complete yet
            due = 0
        if not due:
            return {**metrics, "update/num_gradient_steps": 0.0}
        first = gradient_steps_due(0, before, utd=config.utd, begin=config.initial_steps)
        learning_rate = config.learning_rate_at(progress.fraction_before(rollout))
        for number, batch in enumerate(self._batches(due), start=first):
            metrics |= self._step(batch, number, learning_rate, measure=number % _MEASURED == 0)
        self.values_optimizer.check()
        self.actor_optimizer.check()
        if metrics:
            metrics |= {"update/learning_rate": learning_rate, "replay/size": float(self.experience.size)}
        return {**metrics, "update/num_gradient_steps": float(due)}

    def _prepare(self, rollout: Rollout, progress: Progress) -> dict[str, Tensor | float]:
        """What an agent does with a rollout that was added to the replay, before gradient steps; returns metrics."""
        return {}

    def _batches(self, num: int) -> Iterator[Steps]:
        """A batch for each of `num` gradient steps."""
        return self.experience.draw_batches(num, self.settings.batch_size)

    def _step(self, batch: Steps, number: int, learning_rate: float, *, measure: bool) -> dict[str, Tensor | float]:
        """Gradient step `number` since the beginning of the run on a batch; returns metrics if they are to be measured."""
        raise NotImplementedError

    @property
    def _target_policy(self) -> Target[Actor] | None:
        """What chooses the actions of targets, if not the policy itself."""
        return None

    @property
    def compiled(self) -> CompiledActorCritic | None:
        """The kernels of gradient steps; None where they do not apply, or where a subclass has replaced something that they contain."""
        parts = (self.actor, self.policy, self.values, self.critics, self.actor_optimizer, self.values_optimizer, self.target)
        if len(parts) != len(self._compiled_parts) or any(a is not b for a, b in zip(parts, self._compiled_parts, strict=True)):
            self._compiled_parts, self._compiled = parts, self._compile()
        return self._compiled

    def _compile(self) -> CompiledActorCritic | None:
        is_replaced = type(self)._policy_vjp is not OffPolicyActorCritic._policy_vjp or type(self.actor) is not Actor
        if is_replaced or type(self.values) is not Values or self.encoder.has_weights:
            return None
        return compile_actor_critic(
            self.policy, self.critics, self.actor_optimizer, self.values_optimizer, self.target, self._target_policy,
            num_actions=self.range.size, log_alpha=self.actor.log_alpha,
        )  # fmt: skip

    def _noise(self, num: int) -> Tensor:
        """Standard normal [n, A]."""
        return torch.randn(num, self.range.size, device=self.device)

    def _learn_values(
        self, features: Tensor, action: Tensor, target: Tensor, weight: Tensor, learning_rate: float
    ) -> tuple[Tensor, Tensor | float]:  # fmt: skip
        """One step of the values towards targets [B] or [K, B]: half the squared error, summed over K; returns values [K, B] and the loss.

        Args:
            features: [B, D] with the graph of their encoder, if that has weights; or [K, B, D] of each value network.
            action: [B, A] in [-1, 1], or [K, B, A].
            target: of the values.
            weight: [B] of the losses, or [K, B].
            learning_rate: step size.
        """
        if compiled := self.compiled:
            return compiled.values_step(features, action, target, weight, learning_rate)
        encoder = self.encoder
        value, backward = self.critics.forward_vjp(torch.cat((features.detach(), action), dim=-1))
        error = value - target
        d_value = error * (weight / action.shape[-2])
        loss = 0.5 * (d_value * error).sum()
        d_inputs = backward(d_value, inputs=encoder.has_weights)
        if d_inputs is not None:
            _zero_grad(encoder)
            features.backward(d_inputs.sum(0)[:, : encoder.num_features])
        self.values_optimizer.step(loss, learning_rate)
        return value, loss

    def _policy_vjp(self, features: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        """The policy's output for features [B, D], and the function that adds the gradient of a loss to its parameters' gradients."""
        return self.policy.forward_vjp(features)

    def _features(self, obs: Tree) -> Tensor:
        """Features [B, D] of a batch; with the graph of the encoder, if it has weights."""
        with torch.set_grad_enabled(self.encoder.has_weights):
            return self.values.features(obs)

    def _next_features(self, obs: Tree) -> tuple[Tensor, Tensor]:
        """Features [B, D] of successors for the policy, and for the target networks."""
        features = self.values.features(obs)
        return features, self.target.module.features(obs) if self.encoder.has_weights else features

    def _is_due(self, number: int, delay: int) -> bool:
        """Whether the policy takes a step with gradient step `number` of the values."""
        return (number + 1) % delay == 0

    # Reports

    def network_report(self) -> dict[str, Any]:
        critics = self.critics
        widths = [*(weight.shape[-1] for weight in critics.weights)]
        layers = f"{critics.num_members} x {layers_in_words(widths, critics.activation, has_norms=len(critics.scales) > 0)}"
        value = part_report("value", critics.num_inputs, layers, 1, count_parameters(critics))
        return report_of(self.encoder, [trunk_report("policy", self.policy), value])

    def policy_module(self) -> nn.Module:
        """The policy of evaluations, for exports."""
        return _Greedy(self)


class _Greedy(nn.Module):
    """The action of an evaluation, in the environment's units, in operations that torch can trace."""

    def __init__(self, agent: OffPolicyActorCritic) -> None:
        super().__init__()
        self.encoder, self.net = agent.encoder, agent.policy
        self._mode, self._to_env = agent._mode, agent.range.to_env

    def forward(self, obs: Tree, carry: Tree, is_first: Tensor) -> tuple[Tensor, Tree]:
        """Observations [B, *] to actions [B, A]; there is no memory."""
        return self._to_env(self._mode(self.net(self.encoder(self.encoder.preprocess(obs))))), carry


def _zero_grad(module: nn.Module) -> None:
    """Gradients as zeros, in the optimiser's vector."""
    for parameter in module.parameters():
        parameter.grad.zero_()  # type: ignore[union-attr]
