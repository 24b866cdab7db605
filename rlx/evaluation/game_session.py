"""A game against a trained run, move by move, and what the run's search finds in a position; `rlx play` shows both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlx.envs.games.openspiel import Game, GameState
from rlx.evaluation.match import SearchingPlayer
from rlx.planning.search import SearchResult

_MAX_BRANCHES = 3
"""Moves of each node of `Analysis.tree`."""
_DEPTH = 3


class MoveStatistics(NamedTuple):
    """What a search says of a move in the position that was searched; values are those of the player who moves."""

    action: int
    visits: int
    policy: float
    value: float | None
    """None of a move that was not visited."""
    prior: float
    proven: float | None
    """The outcome under perfect play, where the search has proven it."""


class Branch(NamedTuple):
    """A move of the search tree and the most visited moves after it."""

    action: int
    visits: int
    value: float
    """Of the player who moves."""
    children: Sequence[Branch]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What a search found in a position."""

    best: int
    """The move to play."""
    value: float
    """Of the position, for the player to move."""
    visits: int
    moves: Sequence[MoveStatistics]
    """All, the most visited first."""
    line: Sequence[int]
    """The most visited moves, one after the other."""
    tree: Sequence[Branch]
    """The most visited moves, three plies deep."""


class GameSession:
    """One game of a run; what the other side plays comes from outside.

    Args:
        game: the rules.
        algo: the run's player.
        run_side: the player index of the run, 0 or 1.
    """

    def __init__(self, game: Game, algo: SearchingPlayer, *, run_side: int) -> None:
        self.game, self.run_side = game, run_side
        self._algo = algo
        self.history: list[int] = []

    @property
    def state(self) -> GameState:
        return self.game.state_of(self.history)

    @property
    def is_over(self) -> bool:
        return bool(self.state.is_terminal())

    @property
    def is_runs_turn(self) -> bool:
        return bool(self.state.current_player() == self.run_side)

    @property
    def outcome(self) -> float:
        """The return of the run, once the game is over."""
        return float(self.state.player_return(self.run_side))

    @property
    def history_row(self) -> NDArray[np.int32]:
        """The actions so far [1, L], then -1."""
        row = np.full((1, self.game.max_length), -1, dtype=np.int32)
        row[0, : len(self.history)] = self.history
        return row

    def play(self, action: int) -> None:
        """Make a move, which must be legal."""
        self.history.append(action)

    def undo(self) -> bool:
        """Go back to the position before the other side's last move; False if there was none."""
        for ply in range(len(self.history) - 1, -1, -1):
            if self.game.state_of(self.history[:ply]).current_player() != self.run_side:
                del self.history[ply:]
                return True
        return False

    def analyse(self) -> Analysis:
        """Search the position as the run does when it moves."""
        found = self._algo.search(self.game.observe([self.state]), mode="eval", rng=np.random.default_rng(0))[0]
        trees, edges, state = found.trees, found.root_edges(0), self.state
        policy = found.policy(self.game.num_actions)[0]
        lows, highs = (bounds[0].tolist() for bounds in trees.root_bounds())
        moves = []
        for e, low, high in zip(range(edges.start, edges.stop), lows, highs, strict=True):
            action, visits = int(trees.action[0, e]), int(trees.n[0, e])
            moves.append(MoveStatistics(
                action, visits, float(policy[action]), float(trees.w[0, e]) / visits if visits else None, float(trees.prior[0, e]),
                low if low == high else None,
            ))  # fmt: skip
        return Analysis(
            best=int(found.best()[0]), value=float(found.improved_value()[0]), visits=int(trees.visits[0, 0]),
            moves=sorted(moves, key=lambda m: (-m.visits, -m.prior)), line=_line(found, state), tree=_branches(found, state, 0, _DEPTH),
        )  # fmt: skip


def _line(found: SearchResult, state: GameState) -> list[int]:
    trees, slot, line = found.trees, 0, []
    while slot >= 0 and trees.count[0, slot]:
        first, last = trees.start[0, slot], trees.start[0, slot] + trees.count[0, slot]
        e = max(range(first, last), key=lambda e: trees.n[0, e])
        action = int(trees.action[0, e])
        if trees.n[0, e] == 0 or action not in state.legal_actions():  # a learned model may expect what is against the rules
            break
        line.append(action)
        state, slot = state.child(action), int(trees.child[0, e])
    return line


def _branches(found: SearchResult, state: GameState, slot: int, depth: int) -> list[Branch]:
    """The most visited legal moves of a node of the first tree."""
    trees, legal = found.trees, state.legal_actions()
    first, last = int(trees.start[0, slot]), int(trees.start[0, slot] + trees.count[0, slot])
    visited = [e for e in range(first, last) if trees.n[0, e] > 0 and trees.action[0, e] in legal]
    branches = []
    for e in sorted(visited, key=lambda e: -trees.n[0, e])[:_MAX_BRANCHES]:
        action, visits, child = int(trees.action[0, e]), int(trees.n[0, e]), int(trees.child[0, e])
        children = _branches(found, state.child(action), child, depth - 1) if depth > 1 and child >= 0 else []
        branches.append(Branch(action, visits, float(trees.w[0, e]) / visits, children))
    return branches
