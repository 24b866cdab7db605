"""Opponents: random moves, one-ply search, and OpenSpiel's Monte-Carlo tree search."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from rlx.envs.games.openspiel import Game, GameState
from rlx.errors import ConfigError


class Opponent(Protocol):
    """Plays one game."""

    def move(self, state: GameState) -> int: ...


MakeOpponent = Callable[[Game, int], Opponent]
"""A function from a Game and a seed to an opponent for one game."""

NAMES = "random, one_ply, uct:SIMULATIONS (e.g. uct:1000) or solver"


def parse_opponent(text: str, key: str = "env.opponent") -> MakeOpponent:
    """The constructor of the opponent that a name stands for.

    Args:
        text: the name.
        key: the setting or option that has the name, for messages.

    Raises:
        ConfigError: if there is no such opponent; from the constructor, if the opponent cannot play the game.
    """
    kind, colon, number = text.partition(":")
    if text == "random":
        return RandomPlayer
    if text == "one_ply":
        return OnePlyPlayer
    if kind == "uct" and (not colon or (number.isdigit() and int(number) >= 1)):
        simulations = int(number or 1000)
        return lambda game, seed: UCTPlayer(game, seed, simulations=simulations)
    if text == "solver":
        from rlx.envs.games.solvers import SolverPlayer

        return functools.partial(SolverPlayer, key=key)
    raise ConfigError(f"{key}={text}: no such opponent; expected {NAMES}")


class RandomPlayer:
    """Any legal move."""

    def __init__(self, game: Game, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def move(self, state: GameState) -> int:
        return int(self._rng.choice(state.legal_actions()))


class OnePlyPlayer(RandomPlayer):
    """Plays a move that wins at once, else one that stops the other from winning at once, else a random one."""

    def move(self, state: GameState) -> int:
        me = state.current_player()
        safe = []
        for action in state.legal_actions():
            after = state.child(action)
            if after.is_terminal():
                if after.player_return(me) > 0:
                    return int(action)
                if after.player_return(me) == 0:
                    safe.append(action)
            elif not any(_wins(after, reply) for reply in after.legal_actions()):
                safe.append(action)
        return int(self._rng.choice(safe or state.legal_actions()))


def _wins(state: GameState, action: int) -> bool:
    after = state.child(action)
    return bool(after.is_terminal() and after.player_return(state.current_player()) > 0)


class UCTPlayer:
    """See `Game.uct`."""

    def __init__(self, game: Game, seed: int, *, simulations: int) -> None:
        self._bot: Any = game.uct(simulations, seed)

    def move(self, state: GameState) -> int:
        return int(self._bot.step(state))
