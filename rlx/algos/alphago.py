"""AlphaGo: supervised learning from experts, a policy gradient, a value network, and a tree search that uses all three.

Silver et al. 2016, https://doi.org/10.1038/nature16961. A run has three phases, which its env steps determine. First, experts play, and the
supervised and the rollout policy imitate them. Second, the policy plays against a pool of its earlier versions and follows the gradient of
the outcome. Third, the value network learns from games of both policies, one position of each game. Deviations: the experts are a tree
search with random rollouts instead of people; the rollout policy is linear in the board's cells instead of in patterns; networks are
residual.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rlx.config.algos.alphago_config import AlphaGoConfig, Part, ValueData
from rlx.errors import ConfigError
from rlx.nn.finite import FiniteWatch
from rlx.nn.resnet import FrozenResNet, ResNet, adam, descend, forward
from rlx.planning.adapters.game_rules import RulesAdapter
from rlx.planning.adapters.playouts import LinearPolicy, PlayoutAdapter, sample_legal
from rlx.planning.search import SearchConfig, SearchResult, search
from rlx.replay import PositionReplay, Symmetries, gradient_steps_owed
from rlx.transfer import fetch
from rlx.types import EnvSpec, Metrics, Mode, Policy, PolicyOutput, Progress, Rollout, State, Tree

_SUPERVISED, _CURRENT, _UNIFORM = -1, -2, -3
"""Which policy moves: the supervised one, the current one, or uniformly random moves; numbers from 0 are members of the pool."""


class Phase(IntEnum):
    expert = 0
    reinforce = 1
    value = 2


class _Played(NamedTuple):
    """A finished game of the policy gradient."""

    history: Tensor  # [L]
    side: int  # of the current policy
    outcome: float  # for player 0


class AlphaGo:
    """Supervised learning, policy gradient and a value network, in this order; then search."""

    weight_parts = ("nets",)

    def __init__(self, config: AlphaGoConfig, spec: EnvSpec, num_envs: int, device: torch.device) -> None:
        if spec.game is None:
            raise ConfigError(f"algo={config.name} plays two-player games, and env={spec.id} is none; try env=connect_four")
        self.config, self.device, self.game = config, device, spec.game
        self.rollout_length = 1
        self.supervised, self.policy, self.value = (self._tower() for _ in range(3))
        self.rollout_policy = nn.Linear(int(np.prod(self.game.planes_shape)), self.game.num_actions).to(device)
        nn.init.zeros_(self.rollout_policy.weight)
        self.optimizers = {
            "supervised": self._adam(self.supervised, config.learning_rate),
            "rollout_policy": self._adam(self.rollout_policy, config.learning_rate),
            "policy": adam(self.policy, config.reinforce_learning_rate, 0.0),  # no weight decay in this phase, as in the paper
            "value": self._adam(self.value, config.learning_rate),
        }
        self.expert_moves, self.values = (
            PositionReplay(config.replay_size, self.game.planes_shape, self.game.num_actions) for _ in range(2)
        )
        self.replay_bytes = self.expert_moves.num_bytes + self.values.num_bytes
        self._symmetries = Symmetries(self.game.symmetries)
        self._steps = dict.fromkeys(("supervised", "value", "policy"), 0)
        self._finite = FiniteWatch()
        self._fraction = 0.0  # of the budget that is spent
        self._pool: list[State] = []
        self._opponent = 0  # member of the pool that new games are played against
        self._played: list[_Played] = []
        self._freeze()

    def _tower(self) -> ResNet:
        net = ResNet(
            self.game.planes_shape, self.game.num_actions, num_blocks=self.config.num_blocks, num_channels=self.config.num_channels
        )
        return net.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _adam(self, net: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        return adam(net, learning_rate, self.config.weight_decay)

    # Saving

    def state_dict(self) -> State:
        return {
            "nets": {name: getattr(self, name).state_dict() for name in ("supervised", "policy", "value", "rollout_policy")},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "expert_moves": self.expert_moves.state_dict(),
            "values": self.values.state_dict(),
            "steps": dict(self._steps),
            "fraction": self._fraction,
            "pool": list(self._pool),
            "opponent": self._opponent,
            "played": [tuple(game) for game in self._played],
        }

    def load_state_dict(self, state: State) -> None:
        for name, net in state["nets"].items():
            getattr(self, name).load_state_dict(net)
        for name, optimizer in state["optimizers"].items():
            self.optimizers[name].load_state_dict(optimizer)
        self.expert_moves.load_state_dict(state["expert_moves"])
        self.values.load_state_dict(state["values"])
        self._steps, self._fraction, self._opponent = dict(state["steps"]), state["fraction"], state["opponent"]
        self._pool = list(state["pool"])
        self._played = [_Played(*game) for game in state["played"]]
        self._freeze()

    def _freeze(self) -> None:
        """Make copies of the networks for inference."""
        self._fast_supervised, self._fast_policy, self._fast_value = (
            FrozenResNet(net, self.device) for net in (self.supervised, self.policy, self.value)
        )
        self._fast_pool = [self._frozen(weights) for weights in self._pool]
        self._freeze_rollout_policy()

    def _freeze_rollout_policy(self) -> None:
        weight, bias = (p.detach().cpu().numpy() for p in (self.rollout_policy.weight, self.rollout_policy.bias))
        self._fast_rollout_policy = LinearPolicy(weight.copy(), bias.copy())

    def _frozen(self, weights: State) -> FrozenResNet:
        net = self._tower()
        net.load_state_dict(weights)
        return FrozenResNet(net, self.device)

    # Acting

    @property
    def phase(self) -> Phase:
        if self._fraction < self.config.expert_fraction:
            return Phase.expert
        return Phase.reinforce if self._fraction < self.config.expert_fraction + self.config.reinforce_fraction else Phase.value

    def initial_carry(self, batch_size: int) -> Tree:
        """Roles [B, 4], drawn when a game begins (phase, side of the current policy, opponent, ply of the random move); labels [B, L]."""
        roles = torch.zeros(batch_size, 4, dtype=torch.long, device=self.device)
        return {"roles": roles, "labels": torch.full((batch_size, self.game.max_length), -1, device=self.device)}

    def act(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        """Moves in the positions obs [B, *]: those of the phase, or in mode "eval" of `player`."""
        (obs,) = fetch(obs)
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        if mode == "eval":
            return PolicyOutput(torch.from_numpy(self.best(self.player, obs, rng)).to(self.device), carry, {})
        roles = torch.where(is_first[:, None], torch.from_numpy(self._draw_roles(len(is_first), rng)).to(self.device), carry["roles"])
        labels = torch.where(is_first[:, None], -1, carry["labels"])
        ply = (obs["history"] >= 0).sum(axis=1)
        action, label = self._play(obs, ply, roles.cpu().numpy(), rng)
        labels = labels.clone()
        labels[torch.arange(len(ply)), torch.from_numpy(ply)] = torch.from_numpy(label).to(self.device)
        carry = {"roles": roles, "labels": labels}
        return PolicyOutput(torch.from_numpy(action).to(self.device), carry, carry)

    @property
    def player(self) -> Part:
        """The part that evaluations play with: `algo.player` in the last phase, before it the policy that is being trained."""
        newest = {Phase.expert: Part.sl_policy, Phase.reinforce: Part.rl_policy, Phase.value: self.config.player}
        return newest[self.phase]

    def _draw_roles(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        side = rng.integers(2, size=n)
        turn = rng.integers(self._usual_length(), size=n)
        return np.stack([np.full(n, int(self.phase)), side, np.full(n, self._opponent), turn], axis=1)

    def _usual_length(self) -> int:
        """Upper limit of the ply of the random move: three quarters of the longest game, which most games reach."""
        return max(2, self.game.max_length * 3 // 4)

    def _play(
        self, obs: Tree, ply: NDArray[np.int64], roles: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Moves [B], and the experts' moves [B], -1 in games of other phases."""
        seen = self.game.seen(obs)
        phase, side, opponent, turn = roles.T
        expert = phase == Phase.expert
        who = np.where(seen.player == side, _CURRENT, opponent)
        if self.config.value_data is ValueData.one_position:
            of_value = np.where(ply < turn, _SUPERVISED, np.where(ply == turn, _UNIFORM, _CURRENT))
        else:
            of_value = np.full(len(ply), _CURRENT)
        who = np.where(phase == Phase.value, of_value, np.where(expert, _UNIFORM, who))
        logits = np.zeros((len(ply), self.game.num_actions), dtype=np.float32)
        for number in np.unique(who[who != _UNIFORM]).tolist():
            rows = np.flatnonzero(who == number)
            net = self._fast_supervised if number == _SUPERVISED else self._fast_policy if number == _CURRENT else self._fast_pool[number]
            logits[rows] = net(seen.planes[rows])[0]
        action = sample_legal(logits, seen.num_legal, seen.legal, rng)
        label = np.full(len(ply), -1)
        if expert.any():
            uct = self.game.uct(self.config.num_expert_simulations, int(rng.integers(2**31 - 1)))
            for i in np.flatnonzero(expert).tolist():
                label[i] = uct.step(self.game.state_of(obs["history"][i].tolist()))
            action = np.where(expert & (rng.random(len(ply)) >= self.config.expert_random_moves), label, action)
        return action, label

    def best(self, part: Part, obs: Tree, rng: np.random.Generator, *, mix: float | None = None) -> NDArray[np.int64]:
        """Moves [B] of one part of the player, without exploration; `mix` replaces `algo.mix`."""
        if part is Part.search:
            return np.asarray(self.search(obs, mode="eval", rng=rng, mix=mix)[0].best())
        seen = self.game.seen(obs)
        if part is Part.value:
            return self._best_by_value(self._states(obs), seen)
        if part is Part.rollout_policy:
            return sample_legal(self._fast_rollout_policy(seen.planes), seen.num_legal, seen.legal, None)
        net = self._fast_supervised if part is Part.sl_policy else self._fast_policy
        return sample_legal(net(seen.planes)[0], seen.num_legal, seen.legal, None)

    def _states(self, obs: Tree) -> list[Any]:
        """States of the games, rebuilt from their histories, because planes do not determine a state."""
        return [self.game.state_of(history) for history in obs["history"].tolist()]

    def _best_by_value(self, states: list[Any], seen: Any) -> NDArray[np.int64]:
        """Moves [B] to the positions with the highest predicted value."""
        parent = np.repeat(np.arange(len(states)), seen.num_legal)
        after = self.game.look([states[b].child(a) for b, a in zip(parent.tolist(), seen.legal.tolist(), strict=True)])
        going = after.player >= 0
        value = np.where(seen.player[parent] == 0, after.outcome, -after.outcome)
        if going.any():
            found = self._fast_value(after.planes[going])[1]
            value[going] = np.where(after.player[going] == seen.player[parent][going], found, -found)
        scores = np.full((len(states), self.game.num_actions), -np.inf)
        scores[parent, seen.legal] = value
        return np.asarray(scores.argmax(axis=1))

    def search(
        self, obs: Tree, *, mode: Mode, rng: np.random.Generator, mix: float | None = None
    ) -> tuple[SearchResult, RulesAdapter, NDArray[np.bool_]]:
        """Search from the positions obs [B, *], guided by the supervised policy.

        Returns:
            The trees, the model that was searched, and ones [B]: every search is a full one.
        """
        config = self.config
        mix = config.mix if mix is None else mix
        states, seen = self._states(obs), self.game.seen(obs)
        model = RulesAdapter(self.game, states, self._prior_and_value, seen=seen)
        if mix > 0.0:
            model = PlayoutAdapter(self.game, states, self._prior_and_value, mix=mix, policy=self._fast_rollout_policy, rng=rng, seen=seen)
        num_simulations = config.search.num_eval_simulations or config.search.num_simulations
        found = search(
            model, SearchConfig(num_simulations=num_simulations, c_init=config.search.c_puct, num_leaves=config.search.num_leaves), rng
        )
        return found, model, np.ones(len(states), dtype=bool)

    def _prior_and_value(self, planes: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self._fast_supervised(planes)[0] / np.float32(self.config.temperature), self._fast_value(planes)[1]

    # Learning

    def update(self, rollout: Rollout, progress: Progress) -> Metrics:
        seen: dict[str, list[float]] = {}
        for e, (t, b) in enumerate(zip(rollout.final_t.tolist(), rollout.final_b.tolist(), strict=True)):
            history, labels = rollout.final_obs["history"][e].cpu(), rollout.extras["labels"][t, b].cpu()
            found = self._keep(history, labels, rollout.extras["roles"][t, b].tolist(), float(rollout.reward[t, b]))
            for name, number in found.items():
                seen.setdefault(name, []).append(number)
        metrics: dict[str, Tensor | float] = {name: float(np.mean(numbers)) for name, numbers in seen.items()}
        before = self.phase
        if before is Phase.expert:
            metrics |= self._supervised_steps(self._fraction / self.config.expert_fraction)
        elif before is Phase.reinforce:
            metrics |= self._reinforce()
        else:
            phase_start = self.config.expert_fraction + self.config.reinforce_fraction
            metrics |= self._value_steps((self._fraction - phase_start) / (1.0 - phase_start))
        self._fraction = min(1.0, progress.env_steps / progress.total_env_steps)
        if self.phase is not Phase.expert and not self._pool:
            self._begin_reinforce()
        return metrics | {"train/phase": float(before)}

    def _keep(self, history: Tensor, labels: Tensor, roles: list[int], outcome: float) -> dict[str, float]:
        """Store a finished game for the training of its phase; returns metrics of the networks before they are trained on it."""
        phase, side, opponent, turn = roles
        if phase == Phase.expert:
            return self._learn_moves(history, labels)
        if phase == Phase.value:
            return self._learn_outcome(history, outcome, turn)
        self._played.append(_Played(history.clone(), side, outcome))
        supervised = 0  # the first of the pool
        return {"reinforce/score_against_supervised": (1.0 + (outcome if side == 0 else -outcome)) / 2.0} if opponent == supervised else {}

    def _learn_moves(self, history: Tensor, labels: Tensor) -> dict[str, float]:
        """Store the experts' moves; returns the accuracy of both policies on them, before they are trained on them."""
        seen = self.game.look(self.game.plies(history.tolist()))
        label = labels[: len(seen.player)]
        greedy = sample_legal(self._fast_supervised(seen.planes)[0], seen.num_legal, seen.legal, None)
        fast = sample_legal(self._fast_rollout_policy(seen.planes), seen.num_legal, seen.legal, None)
        played = F.one_hot(label.long(), self.game.num_actions).float()
        self.expert_moves.add(torch.from_numpy(seen.planes), played, torch.zeros(len(label)))
        return {
            "supervised/new_game_accuracy": float((greedy == label.numpy()).mean()),
            "rollout_policy/new_game_accuracy": float((fast == label.numpy()).mean()),
        }

    def _learn_outcome(self, history: Tensor, outcome: float, turn: int) -> dict[str, float]:
        """Store the position after the random move, or all positions, with the outcome; returns the value's error before the training."""
        states = self.game.plies(history.tolist())
        if self.config.value_data is ValueData.one_position:
            states = states[turn + 1 : turn + 2]
        if not states:  # the game was over before
            return {}
        seen = self.game.look(states)
        z = np.where(seen.player == 0, outcome, -outcome).astype(np.float32)
        error = float(np.square(self._fast_value(seen.planes)[1] - z).mean())
        self.values.add(torch.from_numpy(seen.planes), torch.zeros(len(z), self.game.num_actions), torch.from_numpy(z))
        return {"value/new_game_mse": error}

    def _owed(self, name: str, replay: PositionReplay) -> int:
        config = self.config
        return gradient_steps_owed(replay.added, replay_ratio=config.replay_ratio, batch_size=config.batch_size, taken=self._steps[name])

    def _supervised_steps(self, fraction: float) -> dict[str, Tensor | float]:
        owed = self._owed("supervised", self.expert_moves)
        total: dict[str, Tensor | float] = {}
        for _ in range(owed):
            planes, policy, _ = self._sample(self.expert_moves)
            logits = forward(self.supervised, planes)[0]
            loss = F.cross_entropy(logits, policy)
            descend(self.optimizers["supervised"], loss, self.config.learning_rate_at(fraction), finite=self._finite)
            fast_loss = F.cross_entropy(self.rollout_policy(planes.flatten(1)), policy)
            descend(self.optimizers["rollout_policy"], fast_loss, self.config.learning_rate, finite=self._finite)
            total = {"loss/supervised": loss.detach(), "loss/rollout_policy": fast_loss.detach()}
        if owed:
            self._finite.check()
            self._steps["supervised"] += owed
            self._fast_supervised = FrozenResNet(self.supervised, self.device)
            self._freeze_rollout_policy()
        return total

    def _value_steps(self, fraction: float) -> dict[str, Tensor | float]:
        owed = self._owed("value", self.values)
        total: dict[str, Tensor | float] = {}
        for _ in range(owed):
            planes, _, z = self._sample(self.values)
            loss = F.mse_loss(forward(self.value, planes)[1], z)
            descend(self.optimizers["value"], loss, self.config.learning_rate_at(fraction), finite=self._finite)
            total = {"loss/value": loss.detach()}
        if owed:
            self._finite.check()
            self._steps["value"] += owed
            self._fast_value = FrozenResNet(self.value, self.device)
        return total

    def _sample(self, replay: PositionReplay) -> tuple[Tensor, Tensor, Tensor]:
        planes, policy, z = replay[torch.randint(replay.size, (self.config.batch_size,))]
        planes, policy = self._symmetries.turn(planes, policy, torch.randint(len(self._symmetries), (len(z),)))
        return planes.to(self.device).contiguous(memory_format=torch.channels_last), policy.to(self.device), z.to(self.device)

    def _begin_reinforce(self) -> None:
        """Copy the supervised policy: it is the start of the policy gradient, and its first opponent."""
        self.policy.load_state_dict(self.supervised.state_dict())
        self.policy.eval()  # batch normalisation keeps the statistics of the experts' games: a batch of own games is too correlated
        self._fast_policy = FrozenResNet(self.policy, self.device)
        self._join_pool()

    def _join_pool(self) -> None:
        self._pool.append({name: tensor.detach().clone() for name, tensor in self.policy.state_dict().items()})
        self._fast_pool.append(self._frozen(self._pool[-1]))

    def _reinforce(self) -> dict[str, Tensor | float]:
        """Take one policy-gradient step once `games_per_update` games are over, along the mean of (z - b) grad log p; returns metrics."""
        if len(self._played) < self.config.games_per_update:
            return {}
        games, self._played = self._played, []
        sides = np.array([game.side for game in games])
        z = np.array([game.outcome if game.side == 0 else -game.outcome for game in games], dtype=np.float32)
        baseline = np.array([z[sides == side].mean() for side in sides])  # one for each side, because the first player wins more often
        states: list[Any] = []
        actions: list[int] = []
        advantage: list[float] = []
        for game, gain in zip(games, (z - baseline).tolist(), strict=True):
            for state, action in zip(self.game.plies(game.history.tolist()), game.history.tolist(), strict=False):
                if state.current_player() == game.side:
                    states.append(state)
                    actions.append(action)
                    advantage.append(gain)
        seen = self.game.look(states)
        illegal = torch.ones(len(states), self.game.num_actions, dtype=torch.bool)
        illegal[torch.from_numpy(np.repeat(np.arange(len(states)), seen.num_legal)), torch.from_numpy(seen.legal)] = False
        planes = torch.from_numpy(seen.planes).to(self.device).contiguous(memory_format=torch.channels_last)
        self.policy.eval()
        illegal = illegal.to(self.device)
        log_all = forward(self.policy, planes)[0].masked_fill(illegal, -torch.inf).log_softmax(dim=1)
        log_p = log_all.gather(1, torch.tensor(actions, device=self.device)[:, None]).squeeze(1)
        loss = -(log_p * torch.tensor(advantage, device=self.device)).mean()
        entropy = -(log_all.exp() * log_all.masked_fill(illegal, 0.0)).sum(dim=1).mean()
        descend(self.optimizers["policy"], loss - self.config.entropy_coef * entropy, self.config.reinforce_learning_rate)
        self._steps["policy"] += 1
        self._fast_policy = FrozenResNet(self.policy, self.device)
        if self._steps["policy"] % self.config.snapshot_every == 0:
            self._join_pool()
        self._opponent = int(torch.randint(len(self._pool), ()))
        return {
            "loss/policy": loss.detach().cpu(),
            "update/entropy": entropy.detach().cpu(),
            "reinforce/score_against_pool": float((z.mean() + 1.0) / 2.0),
            "reinforce/pool_size": float(len(self._pool)),
        }

    # Parts of the player, for comparisons

    def parts(self) -> Mapping[str, Policy]:
        """Every part as a player of its own, and the search with each kind of leaf (Silver et al. 2016, figure 4b)."""
        single = {part.value: AlphaGoPart(self, part, None) for part in Part if part is not Part.search}
        return single | {f"search_mix_{mix:g}": AlphaGoPart(self, Part.search, mix) for mix in (0.0, 0.5, 1.0)}


class AlphaGoPart:
    """A policy that plays with one part of AlphaGo."""

    def __init__(self, whole: AlphaGo, part: Part, mix: float | None) -> None:
        self._whole, self._part, self._mix, self.device = whole, part, mix, whole.device

    def initial_carry(self, batch_size: int) -> Tree:
        return ()

    def act(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        action = self._whole.best(self._part, fetch(obs)[0], rng, mix=self._mix)
        return PolicyOutput(torch.from_numpy(action).to(self.device), carry, {})
