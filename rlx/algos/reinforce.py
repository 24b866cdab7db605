"""REINFORCE: the Monte-Carlo policy gradient, grad J = E[sum_t grad log pi(a_t|s_t) (G_t - b(s_t))].

Williams 1992, https://doi.org/10.1007/BF00992696; with returns-to-go and an optional learnt baseline (Sutton and Barto 2018,
section 13.4). Deviations: Adam; no factor gamma^t; the loss averages over steps instead of summing over an episode, so that the
step size does not grow with the episode's length. An episode that is open during an update is finished by the newer policy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlx import ops
from rlx.config.algos.base_config import Baseline, ReinforceConfig
from rlx.nn.actor_critic import ActorCritic
from rlx.nn.greedy import GreedyPolicy
from rlx.nn.optim import FlatAdam
from rlx.types import EnvSpec, Metrics, Mode, PolicyOutput, Progress, Rollout, State, Tree


class Reinforce:
    """Monte-Carlo policy gradient for discrete and continuous actions.

    Steps wait in `pending` until their episode is complete: obs [P, B, *], action [P, B, *], reward, final_value, is_last and
    unused [P, B]. `unused` marks steps that no update has learnt from yet. The normaliser absorbs the first rollout as it comes, before any
    value is taken, and after every gradient step all that has come since: that of an update is `unabsorbed` rows.
    """

    def __init__(self, config: ReinforceConfig, spec: EnvSpec, num_envs: int, device: torch.device) -> None:
        self.config, self.device = config, device
        self.rollout_length = config.rollout_length
        self.net = ActorCritic(spec, **config.network()).to(device)
        self.optimizer = FlatAdam(self.net, max_grad_norm=config.max_grad_norm)
        self.pending: dict[str, Tensor] = {}
        self.unabsorbed = 0

    def state_dict(self) -> State:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pending": dict(self.pending),
            "unabsorbed": self.unabsorbed,
        }

    def load_state_dict(self, state: State) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.pending = {name: x.to(self.device) for name, x in state["pending"].items()}
        self.unabsorbed = state["unabsorbed"]

    def initial_carry(self, batch_size: int) -> Tree:
        return ()

    def act(self, obs: Tensor, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        return PolicyOutput(self.net.act(obs, mode), carry, {})

    def policy_module(self) -> GreedyPolicy:
        """The policy of evaluations, for exports."""
        return GreedyPolicy(self.net)

    @torch.no_grad()
    def update(self, rollout: Rollout, progress: Progress) -> Metrics:
        normalizer = self.net.normalizer
        if normalizer and normalizer.is_new:
            normalizer.update(self.net.raw_features(rollout.obs.flatten(0, 1)))
        else:
            self.unabsorbed += len(rollout.reward)
        self._append(rollout)
        pending = self.pending
        complete = pending["unused"] & (pending["is_last"].flip(0).cumsum(0).flip(0) > 0)
        num_episodes = int((pending["is_last"] & pending["unused"]).sum())
        if num_episodes < self.config.episodes_per_update:
            return {"update/num_gradient_steps": 0.0}
        metrics = self._learn(complete, self.config.learning_rate_at(progress.fraction_before(rollout)))
        if normalizer and self.unabsorbed:
            normalizer.update(self.net.raw_features(pending["obs"][-self.unabsorbed :].flatten(0, 1)))
        self.unabsorbed = 0
        self._drop(complete)
        return metrics

    def _append(self, rollout: Rollout) -> None:
        new = {
            "obs": rollout.obs,
            "action": rollout.action,
            "reward": rollout.reward,
            "final_value": self._final_value(rollout),
            "is_last": rollout.is_last,
            "unused": torch.ones_like(rollout.is_last),
        }
        self.pending = {name: torch.cat((self.pending[name], x)) if self.pending else x for name, x in new.items()}

    def _final_value(self, rollout: Rollout) -> Tensor:
        """[T, B] what lies beyond an episode's last step: V where it was cut and V is known, else 0."""
        final_value = torch.zeros_like(rollout.reward)
        if self.config.baseline is Baseline.value and len(rollout.final_t):
            final_value[rollout.final_t, rollout.final_b] = self.net.value(self.net.features(rollout.final_obs))
        return final_value * ~rollout.terminated

    def _learn(self, complete: Tensor, learning_rate: float) -> dict[str, Tensor | float]:
        """One gradient step on the steps [P, B] marked `complete`."""
        config, pending = self.config, self.pending
        return_ = ops.returns_to_go(pending["reward"], pending["final_value"], pending["is_last"], discount=config.discount)[complete]
        features = self.net.features(pending["obs"][complete])
        self.optimizer.zero_grad()
        params, value, backward_network = self.net.forward_vjp(features)
        has_baseline = config.baseline is Baseline.value
        advantage = return_ - value if has_baseline else return_
        if config.normalize_advantage:
            advantage = ops.normalize(advantage)
        log_prob, entropies, backward_head = self.net.head.evaluate(params, pending["action"][complete])
        policy_loss, entropy = -(log_prob * advantage).mean(), entropies.mean()
        value_loss, d_value = ops.value_loss(value, return_)
        value_coef = config.value_coef if has_baseline else 0.0
        d_params = backward_head(advantage / -len(advantage), -config.entropy_coef / len(advantage))
        backward_network(d_params, d_value.mul_(value_coef))
        loss = policy_loss + value_coef * value_loss - config.entropy_coef * entropy
        grad_norm = self.optimizer.step(loss, learning_rate)
        self.optimizer.check()
        metrics: dict[str, Tensor | float] = {
            "loss/policy": policy_loss,
            "update/entropy": entropy,
            "update/grad_norm": grad_norm,
            "update/learning_rate": learning_rate,
            "update/num_gradient_steps": 1.0,
        }
        if has_baseline:
            metrics["loss/value"] = value_loss
            metrics["update/explained_variance"] = ops.explained_variance(value, return_)
        return metrics

    def _drop(self, used: Tensor) -> None:
        """Forget the steps that were used, and the rows of which nothing is left."""
        unused = self.pending["unused"] & ~used
        rows = unused.any(1).nonzero()
        first = int(rows[0]) if len(rows) else len(unused)
        self.pending = {name: x[first:].clone() for name, x in {**self.pending, "unused": unused}.items()}
