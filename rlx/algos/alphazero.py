"""AlphaZero: a network guides a tree search over the known rules, and is trained on the games that the search plays against itself.

Silver et al. 2017 (AlphaGo Zero) and 2018 (AlphaZero); l = (z - v)^2 - pi^T log p + c ||theta||^2. The search is PUCT as there, or Gumbel
(Danihelka et al. 2022), whose target is the improved policy. Deviations: Adam instead of momentum; games enter the replay in the order in
which they began, so that short games, which end first, are not over-represented.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rlx.config.algos.alphazero_config import AlphaZeroConfig
from rlx.config.algos.search_config import SearchRule
from rlx.errors import ConfigError
from rlx.nn.finite import FiniteWatch
from rlx.nn.resnet import FrozenResNet, ResNet, adam, descend, forward, squared_norm
from rlx.planning.adapters.game_rules import EvaluationCache, RulesAdapter
from rlx.planning.search import SearchConfig, SearchResult, search
from rlx.replay import PositionReplay, Symmetries, gradient_steps_owed
from rlx.transfer import fetch, send
from rlx.types import EnvSpec, Game, Metrics, Mode, PolicyOutput, Progress, Rollout, State, Tree


class _Ply(NamedTuple):
    """The training data of one move, kept until its game is over."""

    planes: Tensor  # [C, H, W] as they were observed
    player: int  # who moved
    policy: Tensor  # [A]
    value: float  # of the search, for the player who moved
    trained: bool  # the search was a full one, so that the position enters the replay
    random: bool  # a uniformly random move was played instead of the search's


class AlphaZero:
    """Self-play with tree search."""

    weight_parts = ("net",)

    def __init__(self, config: AlphaZeroConfig, spec: EnvSpec, num_envs: int, device: torch.device) -> None:
        if spec.game is None:
            raise ConfigError(f"algo={config.name} plays two-player games, and env={spec.id} is none; try env=connect_four")
        self.config, self.device, self.game = config, device, spec.game
        self.rollout_length = 1
        net = ResNet(self.game.planes_shape, self.game.num_actions, num_blocks=config.num_blocks, num_channels=config.num_channels)
        self.net = net.to(device)
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = adam(self.net, config.learning_rate, config.weight_decay)
        self.replay = PositionReplay(config.replay_size, self.game.planes_shape, self.game.num_actions)
        self.replay_bytes = self.replay.num_bytes
        self._symmetries = Symmetries(self.game.symmetries)
        self._frozen = FrozenResNet(self.net, device)
        self._steps = 0
        self._finite = FiniteWatch()
        self._open: list[list[_Ply]] = [[] for _ in range(num_envs)]
        self._order = list(range(num_envs))  # when each open game began, counted in games
        self._begun, self._released = num_envs, 0  # games that have begun, and games that were moved to the replay
        self._waiting: dict[int, dict[str, Any]] = {}  # finished games by number, while a game that began earlier is still open

    # Saving

    def state_dict(self) -> State:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "replay": self.replay.state_dict(),
            "steps": self._steps,
            "open": [_pack(game, self.game) for game in self._open],
            "order": list(self._order),
            "begun": self._begun,
            "released": self._released,
            "waiting": {str(k): dict(v) for k, v in self._waiting.items()},
        }

    def load_state_dict(self, state: State) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.replay.load_state_dict(state["replay"])
        self._steps, self._begun, self._released = state["steps"], state["begun"], state["released"]
        self._open = [_unpack(game) for game in state["open"]]
        self._order = list(state["order"])
        self._waiting = {int(k): dict(v) for k, v in state["waiting"].items()}
        self._frozen = FrozenResNet(self.net, self.device)

    # Acting

    def initial_carry(self, batch_size: int) -> Tree:
        """Empty: network evaluations are cached in the carry from one search to the next, and dropped after a gradient step."""
        return ()

    def act(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        """Search from the positions obs [B, *], and choose a move in each."""
        (obs,) = fetch(obs)
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        known = None
        if carry and bool((carry["steps"] == self._steps).all()):
            known = EvaluationCache(**{name: carry[name].cpu().numpy() for name in EvaluationCache._fields})
        found, model, full = self.search(obs, mode=mode, rng=rng, known=known)
        carry = {name: torch.from_numpy(array) for name, array in model.known(found.trees)._asdict().items()}
        carry["steps"] = torch.full((len(found.depth),), self._steps)
        action, is_random = found.best(), np.zeros(len(found.depth), dtype=bool)
        if mode == "train":
            action, is_random = self._explore(found, action, num_plies(obs), rng)
        spent = [model.network_s, found.times["tree"], sum(found.times.values()), model.evaluations, model.duplicates]
        extras = {
            "policy": torch.from_numpy(found.policy(self.game.num_actions)),
            "root_value": torch.from_numpy(found.improved_value().astype(np.float32)),
            "trained": torch.from_numpy(full),
            "random": torch.from_numpy(is_random),
            "depth": torch.from_numpy(found.depth),
            "spent": torch.tensor([spent], dtype=torch.float64).expand(len(action), -1) / len(action),
        }
        return PolicyOutput(torch.from_numpy(action).to(self.device), carry, extras)

    def search(
        self, obs: Tree, *, mode: Mode, rng: np.random.Generator, known: EvaluationCache | None = None
    ) -> tuple[SearchResult, RulesAdapter, NDArray[np.bool_]]:
        """Search from the positions obs [B, *], with training's noise only in mode "train".

        Args:
            known: cached evaluations of the network with its current weights.

        Returns:
            The trees, the model that was searched, and where the search was a full one [B].
        """
        config = self.config
        num_simulations = (config.search.num_eval_simulations if mode == "eval" else None) or config.search.num_simulations
        states = [self.game.state_of(h) for h in obs["history"].tolist()]
        model = RulesAdapter(self.game, states, self._frozen, known, seen=self.game.seen(obs))
        full = np.ones(len(states), dtype=bool)
        if mode == "train" and config.search.rule is SearchRule.puct and config.search.full_search_fraction < 1.0:
            full = rng.random(len(states)) < config.search.full_search_fraction
        budget = np.where(full, num_simulations, config.search.num_cheap_simulations)
        explore = full if config.search.rule is SearchRule.puct else num_plies(obs) < config.exploration_plies
        return search(model, self.search_config(mode), rng, num_simulations=budget, explore=explore), model, full

    def search_config(self, mode: Mode) -> SearchConfig:
        config, explore = self.config, mode == "train"
        settings = config.search.arguments(explore=explore)
        return SearchConfig(**settings, forced_playouts=config.search.forced_playouts if explore else 0.0, prove=config.search.prove)

    def _explore(
        self, found: SearchResult, best: NDArray[np.int64], ply: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Moves of training: early in a game sampled by their visits under PUCT, and with probability `random_moves` uniformly.

        Returns:
            The moves [B], and where they are uniformly random instead of the search's [B].
        """
        config, action, early = self.config, best, ply < self.config.exploration_plies
        if config.search.rule is SearchRule.puct:
            visits = found.visits(self.game.num_actions)
            drawn = np.array([rng.choice(len(v), p=v / v.sum()) for v in visits])
            action = np.where(early, drawn, action)
        if config.random_moves == 0.0:
            return action, np.zeros(len(best), dtype=bool)
        trees = found.trees
        anything = np.array([trees.action[b, rng.integers(trees.count[b, 0])] for b in range(len(best))])
        is_random = early & (rng.random(len(best)) < config.random_moves) & (anything != action)
        return np.where(is_random, anything, action), is_random

    # Learning

    def update(self, rollout: Rollout, progress: Progress) -> Metrics:
        extras = rollout.extras
        final_t, final_b, reward, planes, player = fetch(
            rollout.final_t, rollout.final_b, rollout.reward, rollout.obs["planes"], rollout.obs["player"]
        )
        ended = set(zip(final_t.tolist(), final_b.tolist(), strict=True))
        for t in range(len(rollout.reward)):
            for b, game in enumerate(self._open):
                value, trained, is_random = (extras[name][t, b].item() for name in ("root_value", "trained", "random"))
                seen = torch.from_numpy(planes[t, b].copy()), int(player[t, b])
                game.append(_Ply(*seen, extras["policy"][t, b], value, bool(trained), bool(is_random)))
                if (t, b) in ended:
                    self._end(b, float(reward[t, b]))
        metrics: dict[str, Tensor | float] = {
            "search/root_value": extras["root_value"].mean(),
            "search/depth": extras["depth"].mean(),
            **_timing(extras["spent"]),
            **self._release(),
        }
        return metrics | self._train(self.config.learning_rate_at(progress.fraction_before(rollout)))

    def _end(self, b: int, outcome: float) -> None:
        """Keep a finished game until all games that began before it are finished too."""
        game, self._open[b] = self._open[b], []
        self._waiting[self._order[b]] = {"outcome": outcome, **_pack(game, self.game)}
        self._order[b] = self._begun
        self._begun += 1

    def _release(self) -> dict[str, float]:
        """Move finished games to the replay, in the order in which they began; returns metrics of these games."""
        lengths, outcomes = [], []
        while self._released in self._waiting:
            game = self._waiting.pop(self._released)
            self._released += 1
            value = game["value"].numpy()
            z = outcomes_of_play(game["player"].numpy(), value, game["random"].numpy(), game["outcome"])
            z = (1.0 - self.config.value_mix) * z + self.config.value_mix * value
            kept = game["trained"]
            self.replay.add(game["planes"][kept].float(), game["policy"][kept], torch.from_numpy(z)[kept].float())
            lengths.append(len(z))
            outcomes.append(game["outcome"])
        if not lengths:
            return {}
        z = np.array(outcomes)
        return {
            "game/length": float(np.mean(lengths)),
            "game/first_player_score": float((z + 1.0).mean() / 2.0),
            "game/draws": float((z == 0.0).mean()),
        }

    def _train(self, learning_rate: float) -> dict[str, Tensor | float]:
        """Take the gradient steps that the replay ratio requires; returns their metrics."""
        config, replay = self.config, self.replay
        num_added = replay.added - config.replay_start
        owed = gradient_steps_owed(num_added, replay_ratio=config.replay_ratio, batch_size=config.batch_size, taken=self._steps)
        if owed < config.steps_per_update or replay.added < config.replay_start:
            return {}
        total: dict[str, Tensor] = {}
        self.net.train()
        for _ in range(owed):
            for name, value in self._step(learning_rate).items():
                total[name] = total.get(name, torch.zeros(())) + value / owed
        self._finite.check()
        self._steps += owed
        self._frozen = FrozenResNet(self.net, self.device)
        total["loss/weights"] = self.config.weight_decay * squared_norm(self.net)
        return {**total, "update/learning_rate": learning_rate, "update/num_gradient_steps": float(owed), "replay/size": float(replay.size)}

    def _step(self, learning_rate: float) -> dict[str, Tensor]:
        index = torch.randint(self.replay.size, (self.config.batch_size,))
        planes, policy, z = self.replay[index]
        repeated = 1.0 - len(torch.unique(planes.flatten(1), dim=0)) / len(planes)
        planes, policy = self._symmetries.turn(planes, policy, torch.randint(len(self._symmetries), (len(index),)))
        planes, policy, z = send(self.device, planes, policy, z)
        logits, value = forward(self.net, planes.contiguous(memory_format=torch.channels_last))
        policy_loss = F.cross_entropy(logits, policy)
        value_loss = F.mse_loss(value, z)
        descend(self.optimizer, policy_loss + self.config.value_coef * value_loss, learning_rate, finite=self._finite)
        entropy = -torch.xlogy(policy, policy).sum(dim=1).mean()
        result = {
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "update/target_entropy": entropy,  # the lower bound of the policy's loss
            "replay/repeated": torch.tensor(repeated),
        }
        return {name: number.detach() for name, number in result.items()}


def outcomes_of_play(
    player: NDArray[np.int64], value: NDArray[np.float32], random: NDArray[np.bool_], outcome: float
) -> NDArray[np.float64]:
    """Value targets z of a game's positions [n], each for the player to move.

    z is the game's outcome. A random move makes the outcome no estimate of the moves before it: up to that move, z is the search's value
    of the position in which it was played.

    Args:
        player: [n] the player to move, 0 or 1.
        value: [n] of the search, for the player to move.
        random: [n] where a uniformly random move was played.
        outcome: of the game, for player 0.
    """
    z, sign = np.empty(len(player)), np.where(player == 0, 1.0, -1.0)
    led_to = outcome  # for player 0
    for t in reversed(range(len(player))):
        if random[t]:
            led_to = sign[t] * value[t]
        z[t] = sign[t] * led_to
    return z


def num_plies(obs: Tree) -> NDArray[np.int64]:
    """Actions that were taken before each observation [B, *] of a game."""
    return np.asarray((obs["history"] >= 0).sum(axis=1))


def _pack(game: list[_Ply], rules: Game) -> dict[str, Any]:
    """A game's plies as tensors."""
    planes = torch.stack([ply.planes for ply in game]) if game else torch.zeros(0, *rules.planes_shape)
    policy = torch.stack([ply.policy for ply in game]) if game else torch.zeros(0, rules.num_actions)
    player, value = (torch.tensor([getattr(ply, name) for ply in game]) for name in ("player", "value"))
    trained, random = (torch.tensor([getattr(ply, name) for ply in game], dtype=torch.bool) for name in ("trained", "random"))
    return {"planes": planes, "player": player, "policy": policy, "value": value, "trained": trained, "random": random}


def _unpack(state: dict[str, Any]) -> list[_Ply]:
    return [
        _Ply(planes, int(player), policy, float(value), bool(trained), bool(random))
        for planes, player, policy, value, trained, random in zip(*(state[name] for name in _Ply._fields), strict=True)
    ]


def _timing(spent: Tensor) -> dict[str, float]:
    """How the search's time divides into network and tree, from extras [T, B, 5]."""
    network_s, tree_s, total_s, evaluations, duplicates = spent.sum(dim=(0, 1)).tolist()
    return {
        "search/duplicate_share": duplicates / max(evaluations + duplicates, 1.0),
        "time/search_network_share": network_s / total_s,
        "time/search_tree_share": tree_s / total_s,
        "time/simulations_per_s": (evaluations + duplicates) / total_s,
        "time/evaluations_per_s": evaluations / total_s,
    }
