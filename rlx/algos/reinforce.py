"""REINFORCE: the Monte-Carlo policy gradient, grad J = E[sum_t grad log pi(a_t|s_t) (G_t - b(s_t))].

Williams 1992, https://doi.org/10.1007/BF00992696; with returns-to-go and a learnt baseline (Sutton and Barto 2018, section 13.4), or
what else `algo.advantage` puts in the place of G_t - b(s_t). Deviations: Adam; no factor gamma^t; the loss averages over steps instead of
summing over an episode, so that the step size does not grow with the episode's length. An episode that is open during an update is
finished by the newer policy.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlx.config.algos.policy_gradient_config import Advantage
from rlx.config.algos.reinforce_config import ReinforceConfig
from rlx.distributed import ALONE, World
from rlx.nn.action_values import ActionAdvantage
from rlx.nn.advantages import Estimator, Outcomes, next_values
from rlx.nn.backbone import ArrayPolicy, rows_of
from rlx.nn.losses import Batch, PolicyGradientLoss, Sequences
from rlx.nn.memory_ablation import AblatesMemory
from rlx.nn.networks import Network
from rlx.nn.optim import FlatAdam
from rlx.nn.policy_gradient import gradient_steps
from rlx.nn.pooled import explained_variance
from rlx.tree_ops import map_tree, pick
from rlx.types import EnvSpec, Explanation, Metrics, Mode, PolicyOutput, Progress, Rollout, State, Tree


class Reinforce(AblatesMemory):
    """Monte-Carlo policy gradient for discrete and continuous actions.

    Steps are kept in `pending` until their return is complete: obs [P, B, *], action [P, B, *], reward, final_value, is_last and
    unused [P, B]. `unused` marks steps that no update has used yet; with a memory, `is_first` and `is_over` say where the environment's
    episodes begin and end. The observation normaliser is updated with the first rollout before any value is computed, and then after each
    gradient step with the rollouts since the previous one, the last `unabsorbed` rows of `pending`.
    """

    weight_parts = ("net",)
    net: Network

    def __init__(self, config: ReinforceConfig, spec: EnvSpec, num_envs: int, device: torch.device) -> None:
        self.config, self.device = config, device
        self.rollout_length = config.rollout_length
        self.net = Network(spec, **config.network()).to(device)
        self.optimizer = FlatAdam(self.net, max_grad_norm=config.max_grad_norm)
        self.estimator = Estimator(
            kind=config.advantage.value, discount=config.discount, num_steps=config.n_step,
            lam=config.gae_lambda if config.advantage is Advantage.gae else 1.0,
        )  # fmt: skip
        self.q = ActionAdvantage(self.net, spec, num_steps=config.q_steps, **config.trunk()) if config.advantage is Advantage.q else None
        self.pending: dict[str, Tree] = {}
        self.unabsorbed = 0
        self.world: World = ALONE

    def join(self, world: World) -> None:
        self.world = world
        self.net.join(world)
        self.optimizer.join(world)
        if self.q is not None:
            self.q.optimizer.join(world)

    def state_dict(self) -> State:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pending": map_tree(lambda x: self.world.gather_rows(x, 1), self.pending),
            "unabsorbed": self.unabsorbed,
            **({} if self.q is None else {"q": self.q.state_dict()}),
        }

    def load_state_dict(self, state: State) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.pending = map_tree(lambda x: self.world.own_rows(x, 1).to(self.device), state["pending"])
        self.unabsorbed = state["unabsorbed"]
        if self.q is not None:
            self.q.load_state_dict(state["q"])

    def act(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        return self.net.act(obs, carry, is_first, mode)

    def array_policy(self) -> ArrayPolicy | None:
        return self.net.array_policy()

    def explain(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> tuple[PolicyOutput, Explanation]:
        scale = 1.0 if self.config.has_critic else None
        return self.act(obs, carry, is_first, mode=mode), self.net.explain(obs, carry, is_first, value_scale=scale)

    @torch.no_grad()
    def update(self, rollout: Rollout, progress: Progress) -> Metrics:
        if self.net.encoder.is_new:
            self.net.encoder.absorb(rows_of(rollout.obs))
        else:
            self.unabsorbed += len(rollout.reward)
        self._append(rollout)
        pending = self.pending
        complete = pending["unused"] & (pending["is_last"].flip(0).cumsum(0).flip(0) > 0)
        ended = np.array([(pending["is_last"] & pending["unused"]).sum().item()])
        num_episodes = self.world.sum_float64(ended)[0]
        if num_episodes < self.config.episodes_per_update:
            return {"update/num_gradient_steps": 0.0}
        metrics = self._learn(complete, self.config.learning_rate_at(progress.fraction_before(rollout)))
        if self.unabsorbed:
            self.net.encoder.absorb(rows_of(pick(pending["obs"], slice(-self.unabsorbed, None))))
        self.unabsorbed = 0
        self._drop(complete)
        return metrics

    def _append(self, rollout: Rollout) -> None:
        if self.pending and len(self.pending["reward"]):
            self._leave_out_cut(rollout.is_first[0])
        new = {
            "obs": rollout.obs,
            "action": rollout.action,
            "reward": rollout.reward.sign() if self.config.sign_reward else rollout.reward,
            "final_value": self._final_value(rollout),
            "is_last": rollout.is_last,
            "unused": torch.ones_like(rollout.is_last),
            **({"is_first": rollout.is_first, "is_over": _is_over(rollout)} if self.net.has_memory else {}),
        }
        self.pending = map_tree(lambda *parts: torch.cat(parts), self.pending, new) if self.pending else new

    def _leave_out_cut(self, begins: Tensor) -> None:
        """Mark steps as used whose return has no end, because a run that was resumed inexactly began other episodes [B]."""
        is_last = self.pending["is_last"]
        cut = begins & ~is_last[-1]
        self.pending["unused"] = self.pending["unused"] & ~(cut & (is_last.flip(0).cumsum(0).flip(0) == 0))
        if self.net.has_memory:
            self.pending["is_over"][-1] |= cut

    def _final_value(self, rollout: Rollout) -> Tensor:
        """[T, B] value after an episode's last step: V(next_obs) where it was truncated and V is learnt, else 0."""
        final_value = torch.zeros_like(rollout.reward)
        if self.config.has_critic and len(rollout.final_t):
            final_value[rollout.final_t, rollout.final_b] = self.net.final_values(rollout)
        return final_value * ~rollout.terminated

    def _learn(self, complete: Tensor, learning_rate: float) -> dict[str, Tensor | float]:
        """Take one gradient step on the steps marked in `complete` [P, B]; returns metrics."""
        config = self.config
        rows = None if self.net.has_memory else complete.flatten().nonzero().squeeze(1)  # once, because a GPU is waited for
        inputs, action, sequences = self._data(complete, rows)
        value = self.net.value(inputs, *(sequences[:2] if sequences else ()))
        gain = None if self.q is None else self.q(inputs, action)
        advantage, target = self._advantage(complete, rows, value, gain)
        value = value.view_as(advantage)
        loss = PolicyGradientLoss(
            objective="log_prob",
            value_coef=config.value_coef if config.has_critic else 0.0,
            entropy_coef=config.entropy_coef,
            normalize_advantage=config.normalize_advantage,
        )
        batch = Batch(inputs, action, advantage, target, value, torch.zeros_like(value), None, sequences)
        steps = gradient_steps(self.net, self.optimizer, loss, batch, learning_rate=learning_rate)
        self.optimizer.check()
        metrics: dict[str, Tensor | float] = {
            "loss/policy": steps.policy_loss[0],
            "update/entropy": steps.entropy[0],
            "update/grad_norm": steps.grad_norm[0],
            "update/learning_rate": learning_rate,
            "update/num_gradient_steps": 1.0,
        }
        if config.has_critic:
            metrics["loss/value"] = steps.value_loss[0]
            learned = slice(None) if sequences is None else complete
            metrics["update/explained_variance"] = explained_variance(value[learned], target[learned], self.world)
        if self.q is not None:
            metrics["loss/q_value"] = self.q.learn(inputs, action, target - value, learning_rate)
        return metrics

    def _advantage(self, complete: Tensor, rows: Tensor | None, value: Tensor, gain: Tensor | None) -> tuple[Tensor, Tensor]:
        """Advantages and what V learns, as `_data` has the steps; from V and Q - V of these [N]."""
        pending = self.pending

        def on_grid(x: Tensor) -> Tensor:  # [P, B]; what is not complete is not used
            return x.view_as(complete) if rows is None else x.new_zeros(complete.numel()).index_copy_(0, rows, x).view_as(complete)

        grid, final_value, is_last = on_grid(value), pending["final_value"], pending["is_last"]
        outcomes = Outcomes(
            reward=pending["reward"],
            value=grid,
            next_value=next_values(grid, final_value, is_last),
            terminated=torch.zeros_like(is_last),  # the final value says it
            is_last=is_last,
            gain=None if gain is None else on_grid(gain),
        )
        advantage = self.estimator(outcomes)
        target = self.estimator.target(outcomes, advantage)
        return (advantage, target) if rows is None else (advantage.flatten()[rows], target.flatten()[rows])

    def _data(self, complete: Tensor, rows: Tensor | None) -> tuple[Tree, Tensor, Sequences | None]:
        """Inputs and actions of the complete steps [N, *], which are `rows` of P * B; of all pending ones [P, B, *] with a memory.

        Complete episodes begin in `pending`, so the memory before its first step does not matter.
        """
        pending = self.pending
        if rows is not None:
            obs, action = map_tree(lambda x: x.flatten(0, 1).index_select(0, rows), (pending["obs"], pending["action"]))
            return self.net.preprocess(obs), action, None
        sequences = Sequences(self.initial_carry(complete.shape[1]), pending["is_first"].cpu(), complete)
        carry = map_tree(lambda x: x.to(self.device), sequences.carry)
        return self.net.inputs_of(pending["obs"]), pending["action"], sequences._replace(carry=carry)

    def _drop(self, used: Tensor) -> None:
        """Mark steps as used, and drop the first rows of `pending` in which all steps of all ranks are used.

        A memory needs an episode from its beginning, although returns that lost lives ended may have used its first steps.
        """
        needed = unused = self.pending["unused"] & ~used
        if self.net.has_memory:
            needed = unused | (self.pending["is_over"].flip(0).cumsum(0).flip(0) == 0)
        rows = needed.any(1).nonzero()
        own_first = int(rows[0]) if len(rows) else len(unused)
        first = int(self.world.all_float64(np.array([float(own_first)])).min())
        self.pending = map_tree(lambda x: x[first:].clone(), {**self.pending, "unused": unused})


def _is_over(rollout: Rollout) -> Tensor:
    """[T, B] bool: the environment's episode ended with this step."""
    is_over = torch.zeros_like(rollout.is_last)
    is_over[rollout.final_t, rollout.final_b] = True
    return is_over
