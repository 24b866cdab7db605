"""Matches of two-player games: between runs, and against built-in opponents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rlx.envs.games.openspiel import Game
from rlx.envs.games.opponents import MakeOpponent, Opponent
from rlx.planning.search import SearchResult
from rlx.transfer import send_arrays
from rlx.tree_ops import Tree
from rlx.types import HasParts, Mode, Policy


class SearchingPlayer(Policy, Protocol):
    """An algorithm that plays games by search."""

    def search(self, obs: Tree, *, mode: Mode, rng: np.random.Generator) -> tuple[SearchResult, *tuple[Any, ...]]:
        """Search from the positions that arrays [B, *] show (`Game.observe`); what was searched comes first."""
        ...


class Player(Protocol):
    """A player of many games side by side."""

    name: str

    def begin(self, game: Game, seeds: NDArray[np.int64]) -> None:
        """New games, as many as there are seeds."""
        ...

    def move(self, histories: NDArray[np.int32], games: NDArray[np.int64]) -> list[int]:
        """Moves after the actions of each row [n, L]; `games` [n] says which games these are."""
        ...


@dataclass
class RunPlayer:
    """A trained policy, without exploration."""

    name: str
    algo: Policy

    def begin(self, game: Game, seeds: NDArray[np.int64]) -> None:
        self._game = game

    @torch.no_grad()
    def move(self, histories: NDArray[np.int32], games: NDArray[np.int64]) -> list[int]:
        n, device = len(histories), self.algo.device
        is_first = torch.zeros(n, dtype=torch.bool, device=device)
        (obs,) = send_arrays(device, self._game.observe([self._game.state_of(h) for h in histories.tolist()]))
        action, _, _ = self.algo.act(obs, self.algo.initial_carry(n), is_first, mode="eval")
        return [int(a) for a in action.tolist()]


def parts_of(player: Player) -> list[Player]:
    """The parts of a run's algorithm, each as a player of its own; the player itself where there are none."""
    if isinstance(player, RunPlayer) and isinstance(player.algo, HasParts):
        return [RunPlayer(f"{player.name}:{name}", part) for name, part in player.algo.parts().items()]
    return [player]


class KnownPlayer:
    """A built-in opponent."""

    def __init__(self, name: str, make: MakeOpponent) -> None:
        self.name, self._make = name, make
        self._opponents: list[Opponent] = []

    def begin(self, game: Game, seeds: NDArray[np.int64]) -> None:
        self._game = game
        self._opponents = [self._make(game, int(seed)) for seed in seeds]

    def move(self, histories: NDArray[np.int32], games: NDArray[np.int64]) -> list[int]:
        states = [self._game.state_of(h) for h in histories.tolist()]
        return [self._opponents[g].move(s) for g, s in zip(games.tolist(), states, strict=True)]


class Match(NamedTuple):
    """Two players' games, each opening played twice with colours swapped."""

    returns: NDArray[np.float64]  # [openings, 2] of the first player, scaled to [-1, 1]; in column 0 it began
    lengths: NDArray[np.int64]  # [openings, 2] in plies


def play_match(game: Game, first: Player, second: Player, *, openings: int, opening_plies: int, seed: int) -> Match:
    """Play 2 * openings games; both players meet every opening from both sides.

    Args:
        opening_plies: random moves at the beginning, fewer where they would end the game.
    """
    rng = np.random.default_rng([seed, openings, opening_plies])
    begun = [_opening(game, opening_plies, rng) for _ in range(openings)]
    states = [game.state_of(h) for h in begun for _ in range(2)]
    seeds = rng.integers(2**31 - 1, size=(2, len(states)))
    for player, own in zip((first, second), seeds, strict=True):
        player.begin(game, own)
    histories = np.full((len(states), game.max_length), -1, dtype=np.int32)
    length = np.zeros(len(states), dtype=np.int64)
    for i, state in enumerate(states):
        moves = state.history()
        histories[i, : len(moves)], length[i] = moves, len(moves)
    going = np.array([not s.is_terminal() for s in states])
    while going.any():
        turn = np.array([s.current_player() if g else -1 for s, g in zip(states, going, strict=True)])
        side = np.arange(len(states)) % 2  # which player index `first` is
        for player, mine in ((first, turn == side), (second, turn == 1 - side)):
            which = np.flatnonzero(mine & going)
            if not len(which):
                continue
            for i, action in zip(which.tolist(), player.move(histories[which], which), strict=True):
                states[i].apply_action(action)
                histories[i, length[i]] = action
                length[i] += 1
                going[i] = not states[i].is_terminal()
    returns = np.array([s.player_return(i % 2) / game.scale for i, s in enumerate(states)])
    return Match(returns.reshape(openings, 2), length.reshape(openings, 2))


def _opening(game: Game, plies: int, rng: np.random.Generator) -> list[int]:
    """Random moves that do not end the game."""
    state: Any = game.new_state()
    for _ in range(plies):
        moves = [a for a in state.legal_actions() if not state.child(a).is_terminal()]
        if not moves:
            break
        state.apply_action(int(rng.choice(moves)))
    return [int(a) for a in state.history()]
