"""Imagination-augmented agents: a model-free agent with encodings of imagined rollouts as additional inputs.

Racaniere et al. 2017, https://arxiv.org/abs/1707.06203. For each action a rollout of `rollout_depth` steps is imagined. It begins with that
action and continues with a small rollout policy that imitates the agent's own. An encoder processes each rollout backwards in time, and
policy and value take the encodings beside the model-free path. The encoder learns how much weight to give to the model's predictions.

Deviations: PPO's surrogate and GAE instead of A3C, Adam instead of RMSProp. The paper trains its model beforehand on data of another agent.
Here, in phase one, `model_fraction` of the env steps, the agent is model-free and the model learns from the agent's steps. Phase two adds
imagination to the same agent. The encodings enter with weight zero at first, so that the policy does not change at the transition. The
model continues to learn at a lower replay ratio, because a better agent reaches states that a weaker one did not. Rollouts that were
imagined when acting are stored as bits, and the gradient steps use these instead of imagining again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlx import ops
from rlx.columns import Column
from rlx.config.algos.i2a_config import IMAGINATION_ABLATIONS, Decide, I2AConfig, Imagination
from rlx.errors import ConfigError
from rlx.models.grid import GridModel, Transitions, cell_errors, frame_accuracy, judge, model_loss
from rlx.models.grid_rollouts import CopyGrid, LearnedGrid, PerfectGrid, distinct, num_bytes, pack, unpack
from rlx.models.unroll import Imagined, every_action_then, unroll
from rlx.nn.discrete_heads import CategoricalHead
from rlx.nn.imagination_net import I2ANet, num_parameters
from rlx.nn.optim import FlatAdam
from rlx.planning.adapters.grid_tree import GridPlan, search_tree, weigh_rollouts
from rlx.planning.search import SearchConfig
from rlx.replay import TransitionReplay
from rlx.types import EnvSpec, Explanation, GridWorld, Metrics, Mode, Model, PolicyOutput, Progress, Rollout, State, Tree

_LOOK_AHEAD = 5
"""Steps of model/frame_accuracy_5."""
_MOST_JUDGED = 256
"""Most steps of a rollout on which the model's error and its influence on the policy are measured."""


class _Batch(NamedTuple):
    """What gradient steps are taken on, [n, *] each."""

    planes: Tensor  # [n, C, H, W]
    action: Tensor  # [n]
    old_log_prob: Tensor  # [n]
    advantage: Tensor  # [n]
    target: Tensor  # [n]
    imagined: tuple[Tensor, ...]  # (bits [n, A, D, bytes], reward [n, A, D]), or nothing

    def rows(self, index: Tensor) -> _Batch:
        planes, action, old_log_prob, advantage, target = (x[index] for x in self[:5])
        return _Batch(planes, action, old_log_prob, advantage, target, tuple(x[index] for x in self.imagined))


class I2A:
    """An agent that imagines, and its control arms, on grid worlds with discrete actions."""

    def __init__(self, config: I2AConfig, spec: EnvSpec, num_envs: int, device: torch.device) -> None:
        self.config, self.device = config, device
        self.rollout_length, self.weight_parts = config.rollout_length, ("net", "model")
        self.grid = grid = _grid(spec)
        # Rewards are divided by the largest event's: the encoder takes them, and values around 10 would dominate the clipped gradient.
        self._reward_scale = 1.0 / max(float(abs(grid.event_reward).max()), 1e-8)
        self.head = CategoricalHead(grid.num_actions)
        self.net = _network(config, grid).to(device)
        self.optimizer = FlatAdam(self.net, max_grad_norm=config.max_grad_norm)
        self.learns_model = config.imagination is Imagination.learned
        if self.learns_model:
            self.model = _model(config, grid).to(device)
            self.model_optimizer = FlatAdam(self.model, epsilon=1e-8, max_grad_norm=10.0)
            planes, outcome = Column(torch.uint8, (num_bytes(grid.planes_shape),)), Column(torch.bool, (len(grid.events) + 1,))
            columns = {"planes": planes, "next_planes": planes, "action": Column(torch.uint8), "outcome": outcome}
            self.replay = TransitionReplay(config.model_replay_size, num_envs, columns, device)
        self.replay_bytes = self.replay.num_bytes if self.learns_model else 0
        self.world = self._world(config.imagination, corrupt_prob=config.corrupt_prob)
        self._ablation = "on"  # one of IMAGINATION_ABLATIONS
        self._decide, self._in_use = config.decide, config.has_world and not self.learns_model  # in use: False in phase one
        self._owed = 0.0  # fraction of a gradient step of the model that is due

    # Saving

    def state_dict(self) -> State:
        state = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "in_use": self._in_use}
        if self.learns_model:
            state |= {"model": self.model.state_dict(), "model_optimizer": self.model_optimizer.state_dict(),
                      "replay": self.replay.state_dict(), "owed": self._owed}  # fmt: skip
        return state

    def load_state_dict(self, state: State) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._in_use = state["in_use"]
        if self.learns_model:
            self.model.load_state_dict(state["model"])
            self.model_optimizer.load_state_dict(state["model_optimizer"])
            self.replay.load_state_dict(state["replay"])
            self._owed = state["owed"]

    # Acting

    def initial_carry(self, batch_size: int) -> Tree:
        return ()

    @torch.no_grad()
    def act(self, obs: Tensor, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        planes = self._planes(obs)
        if mode == "eval" and self._searches:
            plan = self._plan(planes, lines=False)
            return PolicyOutput(plan.action, carry, {"model_calls": plan.calls})
        logits, value, imagined = self._evaluate(planes)
        action = self.head.sample(logits) if mode == "train" else self.head.mode(logits)
        extras = {"logits": logits, "value": value}
        if imagined:
            calls = torch.full_like(action, self.grid.num_actions * self.config.rollout_depth)
            extras |= {"imagined": imagined[0], "imagined_reward": imagined[1], "model_calls": calls}
        return PolicyOutput(action, carry, extras)

    @property
    def _searches(self) -> bool:
        """Whether evaluations choose actions by a search in the model instead of by the policy network."""
        return self._in_use and self._decide is not Decide.network

    def _evaluate(self, planes: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Logits [B, A] and values [B] of planes [B, C, H, W], and the imagined rollouts as `_imagine` returns them, or ()."""
        if not (self._in_use and self.net.encoder):
            return *self.net(planes, None), ()
        imagined = self._imagine(planes)
        c_ia = None if self._ablation == "off" else self._encode(*self._shuffle(*imagined))
        return *self.net(planes, c_ia), imagined

    @torch.no_grad()
    def explain(self, obs: Tensor, carry: Tree, is_first: Tensor, *, mode: Mode = "eval") -> tuple[PolicyOutput, Explanation]:
        """What `act` returns for the same random numbers, and an explanation with the imagined rollouts."""
        planes = self._planes(obs)
        without, value = self.net(planes, None)
        if self._searches and mode == "eval":
            plan = self._plan(planes)
            explanation = Explanation(without.softmax(-1), value / self._reward_scale, planes=plan.planes, reward=plan.reward,
                                      q_value=plan.q_value / self._reward_scale)  # fmt: skip
            return PolicyOutput(plan.action, carry, {"model_calls": plan.calls}), explanation
        logits, saliency, frames, rewards = without, None, None, None
        if self._in_use and self.net.encoder:
            bits, reward = self._shuffle(*self._imagine(planes))
            frames = unpack(bits.flatten(0, 2), self.grid.planes_shape).unflatten(0, reward.shape)
            rewards = reward / self._reward_scale
            if self._ablation != "off":
                c_ia = self._encode(bits, reward)
                logits, value = self.net(planes, c_ia)
                saliency = self._saliency(planes, c_ia, logits)
        action = self.head.sample(logits) if mode == "train" else self.head.mode(logits)
        explanation = Explanation(logits.softmax(-1), value / self._reward_scale, planes=frames, reward=rewards, saliency=saliency,
                                  probs_without=None if saliency is None else without.softmax(-1))  # fmt: skip
        return PolicyOutput(action, carry, {}), explanation

    def _saliency(self, planes: Tensor, c_ia: Tensor, logits: Tensor) -> Tensor:
        """Saliency [B, A] of each action's rollout: KL(policy || policy with this rollout's encoding set to 0), normalised to sum 1."""
        num_actions = self.grid.num_actions
        kept = 1.0 - torch.eye(num_actions, device=self.device)
        held_out = (c_ia.unflatten(1, (num_actions, -1))[:, None] * kept[:, :, None]).flatten(2)  # [B, A, A * encoder_size]
        others, _ = self.net(planes.repeat_interleave(num_actions, 0), held_out.flatten(0, 1))
        moved = ops.categorical_kl(logits.repeat_interleave(num_actions, 0), others).view(-1, num_actions).clamp(min=0.0)
        total = moved.sum(-1, keepdim=True)
        return torch.where(total > 0.0, moved / total.clamp(min=torch.finfo(moved.dtype).tiny), 1.0 / num_actions)

    def _imagine(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Bits [B, A, D, bytes] and rewards [B, A, D] of a rollout for every action from planes [B, C, H, W]."""
        depth, num_actions = self.config.rollout_depth, self.grid.num_actions
        rolled = self._roll_out(planes)
        bits = pack(rolled.states.flatten(0, 1)).unflatten(0, (depth, -1, num_actions))
        return bits.permute(1, 2, 0, 3), self._reward_scale * rolled.reward.unflatten(1, (-1, num_actions)).permute(1, 2, 0)

    def _shuffle(self, bits: Tensor, reward: Tensor) -> tuple[Tensor, Tensor]:
        """Rollouts of `_imagine` as the encoder takes them: unchanged, or under "shuffled" permuted over states and actions."""
        if self._ablation != "shuffled":
            return bits, reward
        order = torch.randperm(bits.shape[0] * bits.shape[1], device=self.device)
        return bits.flatten(0, 1)[order].view_as(bits), reward.flatten(0, 1)[order].view_as(reward)

    def _encode(self, bits: Tensor, reward: Tensor) -> Tensor:
        """c_ia [B, A * encoder_size], the encodings of rollouts of `_imagine`."""
        shape, bits, reward = reward.shape, bits.flatten(0, 2), reward.flatten()
        rows, place = distinct(bits, reward)
        frames = unpack(bits[rows], self.grid.planes_shape)
        return self.net.encode(frames, reward[rows], place.view(shape).permute(2, 0, 1).flatten(1))

    @torch.no_grad()
    def _plan(self, planes: Tensor, *, lines: bool = True) -> GridPlan:
        """Plan of a search in the model from planes [B, C, H, W], whose leaves have the model-free path's values.

        Args:
            lines: whether a tree's lines of play are extracted.
        """
        assert self.world is not None
        config, num_actions = self.config, self.grid.num_actions
        if self._decide is Decide.tree:
            search = SearchConfig(num_simulations=config.search.num_eval_simulations, track_bounds=True, q_range=1.0)
            return search_tree(self.world, self._model_free, planes, search, depth=config.rollout_depth if lines else 0,
                               discount=config.discount, reward_scale=self._reward_scale)  # fmt: skip
        rolled = self._roll_out(planes.repeat_interleave(config.search.num_rollouts, 0))
        return weigh_rollouts(rolled, self._model_free, num_actions=num_actions, num_rollouts=config.search.num_rollouts,
                              discount=config.discount, reward_scale=self._reward_scale)  # fmt: skip

    def _roll_out(self, planes: Tensor) -> Imagined:
        """One rollout for each first action from planes [B, C, H, W]; rollout b * A + a begins in state b with action a."""
        model, policy, num_actions = self.world, self.net.rollout_policy, self.grid.num_actions
        assert model is not None
        assert policy is not None
        return unroll(model, model.initial(planes, num_actions), every_action_then(policy, num_actions), self.config.rollout_depth)

    def _model_free(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(planes, None)

    @classmethod
    def ablations(cls) -> Mapping[str, Sequence[str]]:
        return {"imagination": IMAGINATION_ABLATIONS, "decide": [decide.value for decide in Decide]}

    def ablate(self, choices: Mapping[str, str], *, mode: Mode = "eval") -> I2A:
        """This agent with other rollouts as the encoder's input, or another method of decision.

        Raises as `Ablatable.ablate`. Choices of "imagination": on changes nothing; off sets c_ia = 0; shuffled permutes the rollouts over
        states and actions; copy and perfect exchange the model. "decide" is as algo.decide.
        """
        imagination = choices.get("imagination", "on")
        decide = Decide(choices.get("decide", self._decide.value))
        if mode == "train" and decide is not Decide.network:
            raise ConfigError(f"--stochastic: a {decide.value} chooses the actions and samples none; leave it out, or add --decide network")
        if not choices:
            return self
        given = " ".join(f"--{name} {choice}" for name, choice in choices.items())
        brings_world = decide is Decide.tree and imagination in ("copy", "perfect")  # beside a model, a tree needs only policy and value
        if not (self._in_use or brings_world):
            why = f"algo.imagination={self.config.imagination.value} imagines nothing"
            if self.learns_model:
                why = f"this checkpoint is of phase one, the first algo.model_fraction={self.config.model_fraction} of the run's env steps"
            instead = "add --imagination perfect, to search by the true rules" if decide is Decide.tree else (
                "leave it out, or choose a run or a checkpoint that imagines")  # fmt: skip
            raise ConfigError(f"{given}: {why}; {instead}")
        if decide is not Decide.network and imagination in ("off", "shuffled"):
            raise ConfigError(f"{given}: algo.decide={decide.value} has no encoder whose input could be ablated; use copy or perfect")
        if decide is Decide.search and self.net.rollout_policy is None:
            raise ConfigError(f"{given}: this run has no rollout policy, since it was trained with algo.decide=tree; use --decide tree")
        other = copy.copy(self)
        other._ablation, other._decide, other._in_use = imagination, decide, True
        if imagination in ("copy", "perfect"):
            other.world = self._world(Imagination[imagination], corrupt_prob=0.0)
        return other

    # Learning

    @torch.no_grad()
    def update(self, rollout: Rollout, progress: Progress) -> Metrics:
        learning_rate = self.config.learning_rate_at(progress.fraction_before(rollout))
        metrics = self._measure_trust(rollout) if "imagined" in rollout.extras else {}
        metrics |= self._improve_policy(rollout, learning_rate)
        metrics["imagination/in_use"] = float(self._in_use)
        if self.learns_model:
            metrics |= self._learn_model(rollout)
            # Phase two does not end again if a resumed run is given more env steps.
            self._in_use |= progress.env_steps >= self.config.model_fraction * progress.total_env_steps
        return metrics

    def _improve_policy(self, rollout: Rollout, learning_rate: float) -> dict[str, Tensor | float]:
        config, extras = self.config, rollout.extras
        advantage = self._advantage(rollout)
        target = extras["value"] + advantage
        imagined = (extras["imagined"].flatten(0, 1), extras["imagined_reward"].flatten(0, 1)) if "imagined" in extras else ()
        action = rollout.action.flatten()
        batch = _Batch(
            planes=self._planes(rollout.obs.flatten(0, 1)), action=action,
            old_log_prob=self.head.log_prob(extras["logits"].flatten(0, 1), action),
            advantage=advantage.flatten(), target=target.flatten(), imagined=imagined,
        )  # fmt: skip
        steps = []
        for _ in range(config.num_epochs):
            for index in torch.randperm(len(action), device=self.device).chunk(config.num_minibatches):
                steps.append(self._gradient_step(batch.rows(index), learning_rate))
        self.optimizer.check()
        names = ("loss/policy", "loss/value", "loss/distill", "update/entropy", "update/approx_kl", "update/grad_norm")
        return {
            **{name: torch.stack(values).mean() for name, *values in zip(names, *steps, strict=True)},
            "update/explained_variance": ops.explained_variance(extras["value"], target),
            "update/learning_rate": learning_rate,
            "update/num_gradient_steps": float(len(steps)),
        }

    def _gradient_step(self, batch: _Batch, learning_rate: float) -> tuple[Tensor, ...]:
        """One step on a minibatch [n, *]; returns the quantities that `_improve_policy` names.

        The losses bring their derivatives, and autograd carries those back through the networks.
        """
        config, n = self.config, len(batch.action)
        advantage = ops.normalize(batch.advantage) if config.normalize_advantage else batch.advantage
        self.optimizer.zero_grad()
        with torch.enable_grad():
            logits, value = self.net(batch.planes, self._encode(*batch.imagined) if batch.imagined else None)
            imitated = self.net.rollout_policy(batch.planes) if self.net.rollout_policy else None
        log_prob, entropies, pullback = self.head.evaluate(logits.detach(), batch.action)
        log_ratio, entropy = log_prob - batch.old_log_prob, entropies.mean()
        policy_loss, d_log_prob = ops.ppo_clip_loss(log_ratio, advantage, clip=config.clip)
        value_loss, d_value = ops.value_loss(value.detach(), batch.target)
        outputs, gradients = [logits, value], [pullback(d_log_prob, -config.entropy_coef / n), config.value_coef * d_value]
        loss, distill_loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy, torch.zeros(())
        if imitated is not None:
            distill_loss, d_imitated = ops.distillation_loss(imitated.detach(), logits.detach())
            outputs, gradients = [*outputs, imitated], [*gradients, config.distill_coef * d_imitated]
            loss = loss + config.distill_coef * distill_loss
        torch.autograd.backward(outputs, gradients)
        grad_norm = self.optimizer.step(loss, learning_rate)
        return policy_loss, value_loss, distill_loss, entropy, ops.approximate_kl(log_ratio), grad_norm

    def _advantage(self, rollout: Rollout) -> Tensor:
        """Advantages [T, B]. Values of the rollout are in its extras; only the last and the truncated observations are evaluated here."""
        cut = rollout.truncated[rollout.final_t, rollout.final_b]
        _, beyond, _ = self._evaluate(self._planes(torch.cat([rollout.all_obs[-1], rollout.final_obs[cut]])))
        value, num_envs = rollout.extras["value"], rollout.reward.shape[1]
        final = value.new_zeros(len(cut))
        final[cut] = beyond[num_envs:]
        next_value = rollout.to_next(torch.cat([value, beyond[None, :num_envs]]), final)
        reward = self._reward_scale * rollout.reward
        return ops.gae(reward, value, next_value, rollout.terminated, rollout.is_last, discount=self.config.discount,
                       lam=self.config.gae_lambda)  # fmt: skip

    def _measure_trust(self, rollout: Rollout) -> dict[str, Tensor | float]:
        """Metrics of imagination: the policy's shift by it (KL), the model's one-step error, and their correlation over steps."""
        t, b = _spread(rollout.reward.shape, _MOST_JUDGED)
        planes, action = self._planes(rollout.obs[t, b]), rollout.action[t, b]
        without, _ = self.net(planes, None)
        shift = ops.categorical_kl(rollout.extras["logits"][t, b], without)
        predicted = unpack(rollout.extras["imagined"][t, b, action, 0], self.grid.planes_shape)
        error = cell_errors(predicted, planes, self._planes(rollout.next_obs[t, b]))
        metrics: dict[str, Tensor | float] = {"imagination/policy_shift": shift.mean(), "imagination/model_error": error.mean()}
        agreement = ops.correlation(shift, error)
        return metrics | ({"imagination/shift_error_correlation": agreement} if agreement.isfinite() else {})

    # The model

    def _learn_model(self, rollout: Rollout) -> dict[str, Tensor | float]:
        """Measure the model on a rollout that it was not trained on, then add it to the replay and train; returns metrics."""
        config = self.config
        metrics: dict[str, Tensor | float] = dict(self._judge_model(rollout))
        obs, next_obs = (x.flatten(0, 1) for x in (rollout.obs, rollout.next_obs))
        shape = rollout.reward.shape
        self.replay.add(
            planes=pack(self._planes(obs)).unflatten(0, shape), next_planes=pack(self._planes(next_obs)).unflatten(0, shape),
            action=rollout.action, outcome=self._outcome(rollout).unflatten(0, shape),
        )  # fmt: skip
        replay_ratio = config.model_replay_ratio_later if self._in_use else config.model_replay_ratio
        self._owed += replay_ratio * rollout.num_env_steps / config.model_batch_size
        losses = []
        while self._owed >= 1.0:
            self._owed -= 1.0
            index = torch.randint(self.replay.size, (config.model_batch_size,), device=self.device)
            self.model_optimizer.zero_grad()
            with torch.enable_grad():
                loss = model_loss(self.model, self._transitions(index))
            loss.backward()
            self.model_optimizer.step(loss.detach(), config.model_learning_rate)
            losses.append(loss.detach())
        self.model_optimizer.check()
        return metrics | ({"loss/model": torch.stack(losses).mean()} if losses else {})

    def _judge_model(self, rollout: Rollout) -> Metrics:
        t, b = _spread(rollout.reward.shape, _MOST_JUDGED)
        next_planes = self._planes(rollout.next_obs[t, b])
        outcome = self._outcome(rollout).unflatten(0, rollout.reward.shape)[t, b]
        seen = Transitions(self._planes(rollout.obs[t, b]), rollout.action[t, b], next_planes, outcome)
        metrics = judge(self.model, seen, self.grid.events)
        t, b = ops.window_starts(rollout.is_last, _LOOK_AHEAD, most=_MOST_JUDGED)
        if not len(t):
            return metrics
        reached = self._planes(rollout.next_obs[t + _LOOK_AHEAD - 1, b])
        action = torch.stack([rollout.action[t + k, b] for k in range(_LOOK_AHEAD)])
        return metrics | dict(frame_accuracy(self.model, self._planes(rollout.obs[t, b]), action, reached))

    def _outcome(self, rollout: Rollout) -> Tensor:
        """[T * B, E + 1] bool the events of the steps, and where the episode terminated."""
        obs, action, next_obs, terminated = (
            x.flatten(0, 1).cpu() for x in (rollout.obs, rollout.action, rollout.next_obs, rollout.terminated)
        )
        shape = (-1, *self.grid.planes_shape)
        events = self.grid.events_of(obs.reshape(shape).numpy(), action.numpy(), next_obs.reshape(shape).numpy(), terminated.numpy())
        return torch.cat([torch.from_numpy(events), terminated[:, None]], dim=1).to(self.device)

    def _transitions(self, index: Tensor) -> Transitions:
        planes, action, next_planes, outcome = (self.replay[name][index] for name in ("planes", "action", "next_planes", "outcome"))
        shape = self.grid.planes_shape
        return Transitions(unpack(planes, shape), action.long(), unpack(next_planes, shape), outcome)

    def _world(self, imagination: Imagination, *, corrupt_prob: float) -> Model | None:
        if imagination is Imagination.learned:
            event_reward = torch.from_numpy(self.grid.event_reward).to(self.device)
            return LearnedGrid(self.model, event_reward, corrupt_prob=corrupt_prob)
        if imagination is Imagination.perfect:
            return PerfectGrid(self.grid, corrupt_prob=corrupt_prob)
        return CopyGrid() if imagination is Imagination.copy else None

    def _planes(self, obs: Tensor) -> Tensor:
        """Observations [n, *] as the networks take them: [n, C, H, W] float32, channels last in memory."""
        planes = obs.reshape(-1, *self.grid.planes_shape).to(torch.float32)
        return planes.contiguous(memory_format=torch.channels_last)


def _grid(spec: EnvSpec) -> GridWorld:
    """The rules of the environment's grid world.

    Raises:
        ConfigError: if the environment is no grid world.
    """
    if spec.grid is None:
        raise ConfigError(
            f"algo=i2a imagines frames of grid worlds, and env={spec.id} shows none: its observation space is {spec.observation_space}; "
            "try env=sokoban or env=minipacman, or algo=ppo"
        )
    return spec.grid


def _model(config: I2AConfig, grid: GridWorld) -> GridModel:
    return GridModel(grid.planes_shape, grid.num_actions, len(grid.events), num_channels=config.num_model_channels,
                     num_layers=config.num_model_layers)  # fmt: skip


def _network(config: I2AConfig, grid: GridWorld) -> I2ANet:
    """The agent's network. With imagination=wide it has at least as many parameters as an imagining agent and its model together."""

    def build(width: float, *, rolls_out: bool, encodes: bool) -> I2ANet:
        return I2ANet(
            grid.planes_shape, grid.num_actions, num_channels=round(width * config.num_channels),
            hidden_size=round(width * config.hidden_size), num_encoder_channels=config.num_encoder_channels,
            encoder_size=config.encoder_size if encodes else 0, rolls_out=rolls_out,
        )  # fmt: skip

    if config.imagination is not Imagination.wide:
        rolls_out, encodes = config.decide is not Decide.tree, config.decide is Decide.network
        return build(1.0, rolls_out=config.has_world and rolls_out, encodes=config.has_world and encodes)
    wanted = num_parameters(build(1.0, rolls_out=True, encodes=True)) + num_parameters(_model(config, grid))
    width = 1.0
    while num_parameters(net := build(width, rolls_out=False, encodes=False)) < wanted:
        width += 1.0 / 16.0
    return net


def _spread(shape: torch.Size, most: int) -> tuple[Tensor, Tensor]:
    """Times and envs of at most `most` steps of a rollout [T, B], evenly spread."""
    index = torch.arange(0, shape.numel(), -(-shape.numel() // most))
    return index // shape[1], index % shape[1]
