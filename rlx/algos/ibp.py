"""IBP, the imagination-based planner: an agent that decides before each action whether to imagine, what, and when to stop.

Pascanu et al. 2017, https://arxiv.org/abs/1707.06170. Before an action a manager chooses a route: act, or imagine one more action in the
real state or in the last imagined one. A model imagines it, a memory (LSTM) reads what came of it, and a controller chooses the next action
by that memory. Three parts learn from the same episodes, each with an optimiser of its own:

- the model, supervised, from real steps;
- controller and memory, from the task's reward, whose gradient passes backwards through the model in all imagined and real steps (SVG,
  Heess et al. 2015, https://arxiv.org/abs/1510.09142) with the routes as data. The states of real steps are those that came, with the
  model's Jacobian: s' = s'_real + I(s, a) - stop(I(s, a));
- the manager, by REINFORCE with a value as its baseline, from the task's reward less the price of what was imagined.

`act` imagines with the model as of the last update and records the routes. `update` imagines the same again, with gradients, and checks
that the routes have the probabilities that they had when they were chosen.

Deviations: the controller's output is an acceleration, since forces vary with the ship's mass over two decades. Rewards below -5 have no
gradient, which a few ships that are thrown out would dominate. The entropy bonus of the manager falls to 0, so that a price can end all
imagination. The model is fitted to the newest steps and not only to the last ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlx.columns import Column
from rlx.config.algos.ibp_config import IBPConfig, PlannerModel, PriceSchedule, Strategy
from rlx.errors import ConfigError
from rlx.models.flight import PerfectFlight
from rlx.models.interaction import InteractionNetwork
from rlx.nn.optim import FlatAdam
from rlx.nn.planner_networks import Controller, ManagerNetworks
from rlx.replay import TransitionReplay
from rlx.transfer import fetch, send_arrays
from rlx.tree_ops import map_tree
from rlx.types import Bodies, EnvSpec, Explanation, Metrics, Mode, PolicyOutput, Progress, RewardFn, Rollout, State, Tree

ACT, ROOT, LAST = 0, 1, 2
"""The routes: act, imagine in the real state, imagine in the last imagined one."""
NONE = -1
"""In place of a route after ACT."""
_OFF = -1e9
_ROUTES = {
    Strategy.none: ((0.0, _OFF, _OFF),) * 2,
    Strategy.one_step: ((0.0, 0.0, _OFF),) * 2,
    Strategy.n_step: ((0.0, _OFF, 0.0),) * 2,
    Strategy.tree: ((0.0, 0.0, _OFF), (0.0, 0.0, 0.0)),
}
"""What is added to the logits of the routes at the first decision, where the last imagined state is the real one, and at all others."""
_WORST = -5.0
"""Reward below which there is no gradient."""
_SAME = 1e-5
"""Largest difference between what `act` and `update` compute of the same step."""
_SEED_LIMIT = 2**31 - 1

Choose = Callable[[int, Tensor, Tensor | None], Tensor]
"""choose(k, read [B, *], alive [B]) -> [B]: the routes of decision k; alive is None where every ship has yet to act."""


class Thought(NamedTuple):
    """What was imagined before an action in B states, in at most K decisions."""

    acceleration: Tensor  # [B, 2] of the action
    memory: Tree  # [B, *] at the action
    route: list[Tensor]  # [B] of every decision; NONE after ACT
    read: list[Tensor]  # [B, *] by the manager at every decision
    imagined: list[Tensor]  # [B, D] observations, without meaning where nothing was imagined


class IBP:
    """An agent that learns when to imagine, for environments whose rules are `types.Bodies`."""

    def __init__(self, config: IBPConfig, spec: EnvSpec, num_envs: int, device: torch.device) -> None:
        self.config, self.device = config, device
        self.bodies, self.reward_fn = _rules(spec)
        self.rollout_length = self.bodies.num_decisions
        (self._size,) = spec.observation_space.shape or (0,)
        num_noted = 3 + self._size + 2 * self.bodies.num_moving + 2 + 2
        self.controller = Controller(self._size, num_noted, config.memory_size, config.hidden_sizes).to(device)
        self._controller_adam = FlatAdam(self.controller, max_grad_norm=config.max_grad_norm)
        self.manager: ManagerNetworks | None = None
        if config.is_managed:
            self.manager = ManagerNetworks(self._size, config.memory_size, config.hidden_sizes, num_routes=3).to(device)
            self._manager_adam = FlatAdam(self.manager, max_grad_norm=config.max_grad_norm)
        self.model: PerfectFlight | InteractionNetwork = PerfectFlight(self.bodies)
        if config.model is PlannerModel.learned:
            self.model = InteractionNetwork(self.bodies, config.model_hidden_size).to(device)
            self._model_adam = FlatAdam(self.model, max_grad_norm=config.max_grad_norm)
            sizes = {"obs": self._size, "action": 2, "next_obs": self._size}
            columns: dict[str, Tree] = {name: Column(torch.float32, (size,)) for name, size in sizes.items()}
            self.replay = TransitionReplay(config.model_replay_size, num_envs, columns, device)
        self.replay_bytes = self.replay.num_bytes if config.model is PlannerModel.learned else 0
        self._allowed = torch.tensor(_ROUTES[config.strategy], device=device)  # [2, 3]

    # Saving

    def state_dict(self) -> State:
        state = {"controller": self.controller.state_dict(), "controller_optimizer": self._controller_adam.state_dict()}
        if self.manager is not None:
            state |= {"manager": self.manager.state_dict(), "manager_optimizer": self._manager_adam.state_dict()}
        if isinstance(self.model, InteractionNetwork):
            state |= {"model": self.model.state_dict(), "model_optimizer": self._model_adam.state_dict()}
            state["replay"] = self.replay.state_dict()
        return state

    def load_state_dict(self, state: State) -> None:
        self.controller.load_state_dict(state["controller"])
        self._controller_adam.load_state_dict(state["controller_optimizer"])
        if self.manager is not None:
            self.manager.load_state_dict(state["manager"])
            self._manager_adam.load_state_dict(state["manager_optimizer"])
        if isinstance(self.model, InteractionNetwork):
            self.model.load_state_dict(state["model"])
            self._model_adam.load_state_dict(state["model_optimizer"])
            self.replay.load_state_dict(state["replay"])

    # Acting

    def initial_carry(self, batch_size: int) -> dict[str, Tensor]:
        """The memory, and the step before, of which the memory is told when it is seen where it led."""
        memory: dict[str, Tensor] = self.controller.memory.initial(batch_size)
        return memory | {name: memory["hidden"].new_zeros(batch_size, n) for name, n in (("obs", self._size), ("acceleration", 2))}

    def act(self, obs: Tensor, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        """Imagine, and act by it; in mode "eval" the manager takes the most likely route."""
        return self._act(obs, carry, is_first, mode)[0]

    @torch.no_grad()
    def _act(self, obs: Tensor, carry: Any, is_first: Tensor, mode: Mode) -> tuple[PolicyOutput, Thought]:
        memory = {name: carry[name] for name in self.controller.memory.carry_names}
        if self.bodies.num_decisions > 1:
            memory = self._remember(carry["obs"], carry["acceleration"], obs, memory)
        memory = map_tree(lambda x: x.masked_fill(is_first[:, None], 0.0), memory)
        strangers, seeds = self._draw_strangers(len(obs))
        log_probs: list[Tensor] = []
        thought = self._think(obs, memory, self._choices(len(obs), mode, log_probs), strangers)
        calls = sum(((route > ACT).long() for route in thought.route), torch.zeros(len(obs), dtype=torch.long, device=self.device))
        extras: dict[str, Tree] = {"model_calls": calls}
        if self.manager is not None:
            missing = self.config.num_imaginations - len(thought.route)
            routes = [*thought.route, *[torch.full_like(calls, NONE)] * missing]
            extras["route"] = torch.stack(routes, dim=1).to(torch.int8)
            extras["log_prob"] = torch.stack([*log_probs, *[torch.zeros_like(log_probs[0])] * missing], dim=1)
        if seeds is not None:
            extras["stranger"] = seeds
        action = self.bodies.to_action(obs, thought.acceleration)
        return PolicyOutput(action, {**thought.memory, "obs": obs, "acceleration": thought.acceleration}, extras), thought

    def _choices(self, num: int, mode: Mode, log_probs: list[Tensor]) -> Choose:
        """How routes are chosen in a batch of `num` states; the log-probabilities [B] of the manager's decisions are added to the list."""
        if self.manager is None:
            always = torch.full((num,), LAST if self.config.strategy is Strategy.n_step else ROOT, device=self.device)
            return lambda k, read, alive: always
        noise = torch.empty(self.config.num_imaginations, num, 3, device=self.device).exponential_() if mode == "train" else None

        def choose(k: int, read: Tensor, alive: Tensor | None) -> Tensor:
            every = self._log_probs(read, self._allowed[min(k, 1)])
            # The index of the first of several exponential clocks that run at these rates is distributed as the rates are.
            route = (every if noise is None else every - noise[k].log()).argmax(1)
            log_prob = every.gather(1, route[:, None])[:, 0]
            if alive is not None:
                route, log_prob = route.masked_fill(~alive, NONE), log_prob.masked_fill(~alive, 0.0)
            log_probs.append(log_prob)
            return route

        return choose

    def _log_probs(self, read: Tensor, allowed: Tensor) -> Tensor:
        """[n, 3] of the routes."""
        assert self.manager is not None
        return (self.manager.policy(read) + allowed).log_softmax(-1)

    def _draw_strangers(self, num: int) -> tuple[Tensor | None, Tensor | None]:
        """First observations [B, K, D] of other ships, and the seeds [B, K] of their scenes, NONE where the own future is imagined."""
        if not (self.config.corrupt_prob and self.config.num_imaginations):
            return None, None
        shape = num, self.config.num_imaginations
        seeds = torch.randint(_SEED_LIMIT, shape, device=self.device)
        seeds = seeds.masked_fill(torch.rand(shape, device=self.device) >= self.config.corrupt_prob, NONE)
        return self._strangers(seeds), seeds

    def _strangers(self, seeds: Tensor) -> Tensor:
        """Of seeds [*], observations [*, D]; NaN where the seed is NONE."""
        (drawn,) = fetch(seeds)
        rows = self.bodies.scenes(np.maximum(drawn.reshape(-1), 0))
        rows[:, drawn.reshape(-1) == NONE] = np.nan
        (scenes,) = send_arrays(self.device, np.ascontiguousarray(rows.T, dtype=np.float32))
        return scenes.view(*seeds.shape, self._size)

    # Imagining

    def _think(self, obs: Tensor, memory: Tree, choose: Choose, strangers: Tensor | None) -> Thought:
        """Decide and imagine, at most K times, and choose the acceleration of the action.

        Args:
            obs: [B, D] real states.
            memory: [B, *].
            choose: the routes of each decision.
            strangers: [B, K, D] other ships, whose future is shown instead of the own one; NaN where it is not.
        """
        last, alive = obs, None
        routes, reads, imagined = list[Tensor](), list[Tensor](), list[Tensor]()
        for k in range(self.config.num_imaginations):
            reads.append(ManagerNetworks.inputs(obs, memory))
            route = choose(k, reads[-1], alive)
            routes.append(route)
            if self.manager is not None:
                alive = route > ACT
                if self.device.type == "cpu" and not alive.any():  # elsewhere the answer would have to be waited for
                    break
            base = torch.where((route == LAST)[:, None], last, obs)
            acceleration = self.controller(base, memory)
            action = self.bodies.to_action(base, acceleration)
            found = self.model(base, action)
            if strangers is not None:
                found = self._mistake(found, strangers[:, k], memory)
            told = self._told(route, obs, base, acceleration, found, self.reward_fn(base, action, found), k)
            noted = self.controller.note(told, memory)
            if alive is None:
                memory, last = noted, found
            else:
                memory = {name: torch.where(alive[:, None], noted[name], memory[name]) for name in noted}
                last = torch.where(alive[:, None], found, last)
            imagined.append(last)
        return Thought(self.controller(obs, memory), memory, routes, reads, imagined)

    @torch.no_grad()
    def _others(self, stranger: Tensor, memory: Tree) -> Tensor:
        """Where other ships [B, D] would get to under the same memory."""
        known = stranger.nan_to_num(1.0)
        return self.model(known, self.bodies.to_action(known, self.controller(known, memory)))

    def _mistake(self, found: Tensor, stranger: Tensor, memory: Tree) -> Tensor:
        """What was found [B, D], with the position and velocity of other ships where there are any."""
        moved = torch.cat((self._others(stranger, memory)[:, :4], found[:, 4:]), dim=1)
        return torch.where(stranger[:, :1].isnan(), found, moved)

    def _told(
        self, route: Tensor, obs: Tensor, base: Tensor, acceleration: Tensor, found: Tensor, reward: Tensor, k: int
    ) -> Tensor:  # fmt: skip
        """What the memory is told of a step [B, *]: imagined in `base` as number k, or real."""
        moving = self.bodies.num_moving
        routes = (route[:, None] == torch.arange(3, device=self.device)).to(obs.dtype)
        number = torch.full_like(reward, k / max(1, self.config.num_imaginations))
        return torch.cat(
            (routes, obs, base[:, :moving], acceleration, found[:, :moving], torch.stack((reward, number), dim=1)), dim=1
        )  # fmt: skip

    def _remember(self, obs: Tensor, acceleration: Tensor, next_obs: Tensor, memory: Tree) -> Tree:
        """The memory after a real step."""
        reward = self.reward_fn(obs, self.bodies.to_action(obs, acceleration), next_obs)
        route = torch.full((len(obs),), ACT, device=self.device)
        return self.controller.note(
            self._told(route, obs, obs, acceleration, next_obs, reward, self.config.num_imaginations), memory
        )  # fmt: skip

    # Learning

    def update(self, rollout: Rollout, progress: Progress) -> Metrics:
        """Learn from whole episodes: J steps of B environments."""
        fraction = progress.fraction_before(rollout)
        share = 1.0 - fraction if self.config.anneal_learning_rate else 1.0
        self._controller_adam.zero_grad()
        with self._fixed_model():
            reward, thoughts, differs = self._live_again(rollout)
        task_loss = -reward.clamp(min=_WORST).sum(0).mean()
        metrics: dict[str, Tensor | float] = {}
        if self.manager is not None:
            metrics = self._update_manager(rollout, thoughts, fraction, share, differs)
        else:
            _check_same(differs)
        task_loss.backward()
        norm = self._controller_adam.step(task_loss.detach(), share * self.config.learning_rate)
        metrics |= {
            "loss/controller": task_loss.detach(), "update/grad_norm": norm, "update/learning_rate": share * self.config.learning_rate,
            "imagination/calls": rollout.extras["model_calls"].float().mean(),
        }  # fmt: skip
        if isinstance(self.model, InteractionNetwork):
            metrics |= self._update_model(rollout, share)
        self._controller_adam.check()
        steps = 1 + (self.manager is not None) + (self.config.model_steps if isinstance(self.model, InteractionNetwork) else 0)
        return metrics | {"update/num_gradient_steps": float(steps)}

    @contextlib.contextmanager
    def _fixed_model(self) -> Iterator[None]:
        """Let gradients pass through the model and not into its weights."""
        weights = list(self.model.parameters()) if isinstance(self.model, InteractionNetwork) else []
        for weight in weights:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in weights:
                weight.requires_grad_(True)

    def _live_again(self, rollout: Rollout) -> tuple[Tensor, list[Thought], Tensor]:
        """Imagine and act as recorded, with gradients: rewards [J, B], thoughts, and the largest change of an action."""
        extras: Any = rollout.extras
        strangers = self._strangers(extras["stranger"]) if "stranger" in extras else None
        real: Any = rollout.next_obs
        obs: Tensor = rollout.all_obs[0]
        memory = self.controller.memory.initial(len(obs))
        rewards, thoughts, differs = [], [], []
        for t in range(len(real)):
            choose = self._choices(len(obs), "eval", []) if self.manager is None else _recorded(extras["route"][t].long())
            thought = self._think(obs, memory, choose, None if strangers is None else strangers[t])
            action = self.bodies.to_action(obs, thought.acceleration)
            differs.append((action.detach() - rollout.action[t]).abs().max())
            predicted = self.model(obs, action)
            next_obs = real[t] + (predicted - predicted.detach())
            rewards.append(self.reward_fn(obs, action, next_obs))
            thoughts.append(thought)
            if t + 1 < len(real):
                memory = self._remember(obs, thought.acceleration, next_obs, thought.memory)
            obs = next_obs
        return torch.stack(rewards), thoughts, torch.stack(differs).max()

    def _update_manager(
        self, rollout: Rollout, thoughts: list[Thought], fraction: float, share: float, differs: Tensor
    ) -> dict[str, Tensor | float]:
        """A step of REINFORCE on everything that was decided in J steps, n decisions in all, and of the value."""
        assert self.manager is not None
        extras: Any = rollout.extras
        step_of = [(t, k) for t, thought in enumerate(thoughts) for k in range(len(thought.route))]
        read = torch.stack([thoughts[t].read[k] for t, k in step_of])  # [n, B, *]
        route = torch.stack([thoughts[t].route[k] for t, k in step_of])  # [n, B]
        allowed = self._allowed[torch.tensor([min(k, 1) for _, k in step_of], device=self.device)]
        log_probs = self._log_probs(read, allowed[:, None])
        decided = route != NONE
        log_prob = log_probs.gather(-1, route.clamp(min=0)[..., None])[..., 0]
        recorded = torch.stack([extras["log_prob"][t, :, k] for t, k in step_of])
        _check_same(torch.maximum(differs, ((log_prob.detach() - recorded) * decided).abs().max()))
        growing = self.config.price_schedule is PriceSchedule.growing
        prices = torch.tensor([self.config.price * (1 + t * growing) for t, _ in step_of], device=self.device)
        paid = prices[:, None] * (route > ACT)
        task = _to_come(-rollout.reward)
        cost = _to_come(paid) + task[torch.tensor([t for t, _ in step_of], device=self.device)]
        expected = -self.manager.value(read)[..., 0]
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        coef = self.config.entropy_coef * max(0.0, 1.0 - 2.0 * fraction)
        policy_loss = manager_loss(log_prob, cost - expected.detach(), decided)
        entropy_mean = (entropy * decided).sum(0).mean()
        value_loss = 0.5 * ((expected - cost).square() * decided).sum(0).mean()
        self._manager_adam.zero_grad()
        loss = policy_loss - coef * entropy_mean + value_loss
        loss.backward()
        self._manager_adam.step(loss.detach(), share * self.config.manager_learning_rate)
        self._manager_adam.check()
        return {
            "loss/manager": policy_loss.detach(), "loss/value": value_loss.detach(),
            "imagination/entropy": entropy_mean.detach() / decided.sum(0).float().mean(),
            "imagination/paid": paid.sum(0).mean(), "imagination/from_last": (route == LAST).sum() / (route > ACT).sum().clamp(min=1),
        }  # fmt: skip

    def _update_model(self, rollout: Rollout, share: float) -> dict[str, Tensor | float]:
        """Fit the model to real steps."""
        assert isinstance(self.model, InteractionNetwork)
        obs: Any = rollout.obs
        next_obs: Any = rollout.next_obs
        with torch.no_grad():
            predicted = self.model(obs.flatten(0, 1), rollout.action.flatten(0, 1))
            error = (predicted - next_obs.flatten(0, 1))[:, :2].norm(dim=1).median()
        self.replay.add(obs=obs, action=rollout.action, next_obs=next_obs)
        config, losses = self.config, []
        rows = torch.randint(self.replay.size, (config.model_steps, config.model_batch_size), device=self.device)
        drawn = [self.replay.take(name, rows) for name in ("obs", "action", "next_obs")]
        for batch in zip(*drawn, strict=True):
            self._model_adam.zero_grad()
            loss = self.model.loss(*batch)
            loss.backward()
            self._model_adam.step(loss.detach(), share * config.model_learning_rate)
            losses.append(loss.detach())
        self._model_adam.check()
        return {"loss/model": torch.stack(losses).mean(), "model/position_error": error}

    # Explaining

    def explain(self, obs: Tensor, carry: Tree, is_first: Tensor, *, mode: Mode = "eval") -> tuple[PolicyOutput, Explanation]:
        """What `act` returns for the same random numbers, with the tree that was imagined."""
        output, thought = self._act(obs, carry, is_first, mode)
        value = None
        if self.manager is not None and thought.read:
            with torch.no_grad():
                value = self.manager.value(thought.read[0])[:, 0]
        if not thought.imagined:
            return output, Explanation(None, value)
        begins, last = [], torch.zeros(len(obs), dtype=torch.long, device=self.device)
        for k, route in enumerate(thought.route[: len(thought.imagined)]):
            begins.append(torch.where(route == LAST, last, torch.zeros_like(last)).masked_fill(route <= ACT, NONE))
            last = torch.where(route > ACT, k + 1, last)
        return output, Explanation(
            None, value, imagined=torch.stack(thought.imagined, dim=1), imagined_from=torch.stack(begins, dim=1)
        )  # fmt: skip


def _recorded(route: Tensor) -> Choose:
    """Choose the recorded routes [B, K]."""
    return lambda k, read, alive: route[:, k]


def _to_come(cost: Tensor) -> Tensor:
    """Sums [n, *] of costs [n, *] from each on; a product, since cumulative sums of a GPU are not deterministic."""
    return torch.ones(len(cost), len(cost), device=cost.device).triu() @ cost


def manager_loss(log_prob: Tensor, disadvantage: Tensor, decided: Tensor) -> Tensor:
    """A loss whose gradient is an unbiased estimate of that of the expected cost of an episode (Williams 1992, REINFORCE).

    Args:
        log_prob: [n, B] of the decisions of B episodes.
        disadvantage: [n, B] cost that came after each decision, less a baseline that does not depend on it.
        decided: [n, B] whether there was such a decision.
    """
    return (disadvantage * log_prob * decided).sum(0).mean()


def _check_same(difference: Tensor) -> None:
    found = difference.item()
    assert found <= _SAME or found != found, f"act and update differ by {found} in what they compute of the same step"


def _rules(spec: EnvSpec) -> tuple[Bodies, RewardFn]:
    """The rules of the environment, and its reward.

    Raises:
        ConfigError: if it has none that are known.
    """
    if spec.bodies is None or spec.reward_fn is None or not isinstance(spec.action_space, gymnasium.spaces.Box):
        raise ConfigError(
            f"algo=ibp imagines how a body moves among others, and env={spec.id} is no such environment (or has env.wrappers); use "
            "env=spaceship, or algo=pets, which plans with a model of any environment with continuous actions"
        )
    return spec.bodies, spec.reward_fn
