"""Boards of games in the terminal, and the names of moves."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rich.text import Text

    from rlx.envs.games.openspiel import Game, GameState

_STONES = (("●", "bold yellow"), ("○", "bold cyan"))
_PLACEMENT = ("tic_tac_toe", "othello", "hex", "go")
"""Games whose moves are cells, numbered row by row."""


def move_names(game: Game, state: GameState) -> dict[int, str]:
    """The names of the legal moves: a column, a cell such as b3, or OpenSpiel's name."""
    return {int(a): move_name(game, state, int(a)) for a in state.legal_actions()}


def move_name(game: Game, state: GameState, action: int) -> str:
    _, height, width = game.planes_shape
    if game.name == "connect_four":
        return str(action + 1)
    if game.name in _PLACEMENT:
        if action >= height * width:
            return "pass"
        row, column = divmod(action, width)
        return f"{string.ascii_lowercase[column]}{row_name(game, row)}"
    return str(state.action_to_string(state.current_player(), action)).replace(" ", "").lower()


def row_name(game: Game, row: int) -> str:
    """Rows are numbered from the top, but from the bottom in go and breakthrough, as is usual there."""
    height = game.planes_shape[1]
    return str(height - row if game.name == "breakthrough" else row + 1)


def side_name(player: int) -> Text:
    from rich.text import Text

    return Text(f"{_STONES[player][0]}", style=_STONES[player][1])


def draw(game: Game, state: GameState, last: int | None = None) -> Text:
    """The board; stones of player 0 are filled, the last move is underlined."""
    from rich.text import Text

    if game.name not in (*_PLACEMENT, "connect_four", "breakthrough"):
        return Text(str(state))
    stones = _stones(game, state)
    height, width = stones.shape
    rows = range(height) if game.name not in ("go", "connect_four") else range(height - 1, -1, -1)
    numbered = game.name != "connect_four"
    margin = max(len(row_name(game, r)) for r in range(height)) if numbered else 0
    columns = string.ascii_lowercase[:width] if numbered else "".join(str((c + 1) % 10) for c in range(width))
    text = Text()
    for row in rows:
        indent = " " * row if game.name == "hex" else ""
        text.append(f"{indent}{row_name(game, row).rjust(margin) if numbered else ''} ", style="dim")
        for column in range(width):
            symbol, style = _STONES[stones[row, column]] if stones[row, column] >= 0 else ("·", "dim")
            text.append(symbol, style=f"{style} underline" if last == row * width + column else style)
            text.append(" ")
        text.append("\n")
    indent = " " * height if game.name == "hex" else ""
    text.append(indent + " " * (margin + 1) + " ".join(columns), style="dim")
    return text


def _stones(game: Game, state: GameState) -> np.ndarray:
    """The player index of the stone on each cell [H, W], or -1."""
    if state.is_terminal():  # has no planes of its own: take the position before and add the last move
        history = state.history()
        before = game.state_of(history[:-1])
        stones = _stones(game, before)
        return _after(game, state, before, stones, int(history[-1]))
    seen = game.look([state])
    own, other = seen.planes[0, 0] > 0, seen.planes[0, 1] > 0
    player = int(seen.player[0])
    return np.where(own, player, np.where(other, 1 - player, -1))


def _after(game: Game, state: GameState, before: GameState, stones: np.ndarray, action: int) -> np.ndarray:
    """The board after a game's last move, read from OpenSpiel's drawing where a move does more than put a stone."""
    player, (height, width) = before.current_player(), stones.shape
    stones = stones.copy()
    if game.name == "connect_four":
        stones[int((stones[:, action] >= 0).sum()), action] = player
    elif game.name == "breakthrough":
        row, column, direction = action // (width * 12), action // 12 % width, action // 2 % 6
        stones[row, column] = -1
        stones[row + (1 if direction < 3 else -1), column + direction % 3 - 1] = player
    elif game.name == "othello":
        drawn = [line.split()[1:-1] for line in str(state).splitlines() if line[:1].isdigit()]
        stones = np.array([[{"x": 0, "o": 1}.get(c, -1) for c in row] for row in drawn])
    elif action < height * width:
        stones[action // width, action % width] = player
    return stones
