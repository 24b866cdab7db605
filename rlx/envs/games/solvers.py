"""Solvers that label positions won, drawn or lost: tic-tac-toe by exhaustive search, connect four by alpha-beta search on bitboards.

The bitboard of connect four and its threat masks are those of Pons' tutorial (http://blog.gamesolver.org, part 6 and 7): seven columns
of seven bits, the top bit of each always empty.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from rlx.envs.games.openspiel import Game, GameState
from rlx.errors import ConfigError

POSITIONS = Path(__file__).with_name("connect_four.txt")
"""Decisive positions of connect four, one a line: the columns played so far, and the columns that keep the outcome."""

_ROWS, _COLUMNS = 6, 7
_H1 = _ROWS + 1
_BOTTOM = np.uint64(sum(1 << (c * _H1) for c in range(_COLUMNS)))
_BOARD = np.uint64(sum(((1 << _ROWS) - 1) << (c * _H1) for c in range(_COLUMNS)))
_ORDER = (3, 2, 4, 1, 5, 0, 6)
_TABLE_BITS = 22


class Probe(NamedTuple):
    """Positions with their best moves."""

    histories: NDArray[np.int32]  # [P, L] actions so far, then -1
    optimal: NDArray[np.bool_]  # [P, A] moves that keep the outcome of perfect play


def probe(game: Game) -> Probe | None:
    """Labelled positions of a game for measuring play; None for a game that is not solved here."""
    if game.name == "tic_tac_toe":
        return _probe_tic_tac_toe(game)
    if _is_connect_four(game):
        return read_positions(game)
    return None


def _is_connect_four(game: Game) -> bool:
    return game.name == "connect_four" and game.planes_shape[1:] == (_ROWS, _COLUMNS) and game.parameters.get("x_in_row", 4) == 4


class SolverPlayer:
    """Plays a random move that keeps the outcome of perfect play. Only for tic-tac-toe: connect four takes minutes per opening move."""

    def __init__(self, game: Game, seed: int, *, key: str) -> None:
        if game.name != "tic_tac_toe":
            raise ConfigError(f"{key}=solver plays tic_tac_toe only, not {game}; say uct:5000 for a strong opponent")
        self._rng = np.random.default_rng(seed)

    def move(self, state: GameState) -> int:
        return int(self._rng.choice(_optimal(state)))


# Tic-tac-toe


def _optimal(state: GameState) -> list[int]:
    values = {a: -outcome(state.child(a)) for a in state.legal_actions()}
    return [a for a, v in values.items() if v == max(values.values())]


_VALUES: dict[str, int] = {}


def outcome(state: GameState) -> int:
    """Outcome of perfect play at tic-tac-toe for the player to move."""
    key = str(state)
    if key not in _VALUES:
        who = len(state.history()) % 2
        over = state.is_terminal()
        _VALUES[key] = int(state.player_return(who)) if over else max(-outcome(state.child(a)) for a in state.legal_actions())
    return _VALUES[key]


def _probe_tic_tac_toe(game: Game) -> Probe:
    """All 4,520 reachable positions that are not over."""
    seen: dict[str, tuple[list[int], list[int]]] = {}
    stack = [game.new_state()]
    while stack:
        state = stack.pop()
        if state.is_terminal() or str(state) in seen:
            continue
        seen[str(state)] = (list(state.history()), _optimal(state))
        stack += [state.child(a) for a in state.legal_actions()]
    return _make_probe(game, list(seen.values()))


def _make_probe(game: Game, found: list[tuple[list[int], list[int]]]) -> Probe:
    histories = np.full((len(found), game.max_length), -1, dtype=np.int32)
    optimal = np.zeros((len(found), game.num_actions), dtype=bool)
    for i, (history, moves) in enumerate(found):
        histories[i, : len(history)] = history
        optimal[i, moves] = True
    return Probe(histories, optimal)


# Connect four


def read_positions(game: Game) -> Probe:
    """The shipped positions: 12 to 24 stones on the board, and at least one move that worsens the outcome."""
    lines = [line.split() for line in POSITIONS.read_text().splitlines() if line and not line.startswith("#")]
    return _make_probe(game, [([int(c) for c in history], [int(c) for c in moves]) for history, moves in lines])


class ConnectFourSolver:
    """Outcomes on the board of six rows and seven columns; solved positions stay cached between calls."""

    def __init__(self) -> None:
        self._keys = np.zeros(1 << _TABLE_BITS, dtype=np.uint64)
        self._bounds = np.zeros(1 << _TABLE_BITS, dtype=np.int8)

    def values(self, history: list[int]) -> dict[int, int]:
        """For each legal column after this history, the outcome for the player who plays it: 1 won, 0 drawn, -1 lost."""
        own, mask = 0, 0  # stones of the player to move, and all stones
        for column in history:
            own, mask = own ^ mask, mask | (mask + (1 << (column * _H1)))
        values = {}
        for column in range(_COLUMNS):
            stone = (mask + (1 << (column * _H1))) & (((1 << _ROWS) - 1) << (column * _H1))
            if not stone:
                continue
            if _has_won(np.uint64(own | stone)):
                values[column] = 1
                continue
            after = mask | stone
            values[column] = -int(_solve(np.uint64(own ^ mask), np.uint64(after), len(history) + 1, -1, 1, self._keys, self._bounds))
        return values


@numba.njit(cache=True, nogil=True)
def _has_won(stones):
    for step in (1, 7, 6, 8):
        pairs = stones & (stones >> np.uint64(step))
        if pairs & (pairs >> np.uint64(2 * step)):
            return True
    return False


@numba.njit(cache=True, nogil=True)
def _threats(stones, mask):
    """Empty cells that would make four in a row for `stones`."""
    one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)
    found = (stones << one) & (stones << two) & (stones << three)
    for step in (7, 6, 8):
        s, s2, s3 = np.uint64(step), np.uint64(2 * step), np.uint64(3 * step)
        pair = (stones << s) & (stones << s2)
        found |= pair & (stones << s3)
        found |= pair & (stones >> s)
        pair = (stones >> s) & (stones >> s2)
        found |= pair & (stones << s)
        found |= pair & (stones >> s3)
    return found & (_BOARD ^ mask)


@numba.njit(cache=True, nogil=True)
def _solve(own, mask, plies, alpha, beta, keys, bounds):
    """Outcome for the player to move, exact within [alpha, beta]; neither player has four in a row yet."""
    moves = (mask + _BOTTOM) & _BOARD
    if moves == 0:
        return 0
    if _threats(own, mask) & moves:
        return 1
    theirs = _threats(own ^ mask, mask)
    forced = theirs & moves
    if forced:
        if forced & (forced - np.uint64(1)):
            return -1
        moves = forced
    moves &= ~(theirs >> np.uint64(1))  # a stone below an opponent's threat makes that threat playable
    if moves == 0:
        return -1
    if plies >= _ROWS * _COLUMNS - 2:
        return 0
    key = own + mask + _BOTTOM  # unique: the bit above the highest stone of every column is set
    slot = np.int64((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - _TABLE_BITS))
    if keys[slot] == key:  # -1: at most -1, 1: at least 1, 2: at most 0, 3: at least 0, 4: exactly 0
        known = bounds[slot]
        if known == 1 or known == -1:
            return known
        if known == 4:
            return 0
        if known == 2:
            beta = min(beta, 0)
        if known == 3:
            alpha = max(alpha, 0)
        if alpha >= beta:
            return 0
    low, high, best = alpha, beta, -1
    for column in _ORDER:
        stone = moves & (np.uint64(0x3F) << np.uint64(column * _H1))
        if stone:
            value = -_solve(own ^ mask, mask | stone, plies + 1, -high, -max(low, best), keys, bounds)
            best = max(best, value)
            if best >= high:
                break
    keys[slot] = key
    if best == 1 or best == -1:
        bounds[slot] = best
    elif alpha < 0 < beta:
        bounds[slot] = 4
    else:
        bounds[slot] = 3 if beta <= 0 else 2
    return best


def find_positions(count: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """Decisive positions of games between moderate players, with their best moves; the shipped ones were found with this."""
    game, solver, rng = Game("connect_four"), ConnectFourSolver(), np.random.default_rng(seed)
    found: dict[tuple[int, ...], list[int]] = {}
    while len(found) < count:
        state, player = game.new_state(), game.uct(100, int(rng.integers(2**31)))
        target = int(rng.integers(12, 25))
        while not state.is_terminal() and len(state.history()) < target:
            state.apply_action(int(rng.choice(state.legal_actions())) if rng.random() < 0.25 else int(player.step(state)))
        if state.is_terminal():
            continue
        history = [int(a) for a in state.history()]
        values = solver.values(history)
        if len(set(values.values())) > 1:
            found[tuple(history)] = [c for c, v in values.items() if v == max(values.values())]
    return [(list(history), moves) for history, moves in found.items()]
