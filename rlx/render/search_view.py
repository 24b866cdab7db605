"""What a search of a run found in a position, in the terminal: a table of moves, the expected line, and the tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlx.render.board import move_name
from rlx.render.tables import make_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from rlx.envs.games.openspiel import Game, GameState
    from rlx.evaluation.game_session import Analysis, Branch

_MAX_ROWS = 8
_OUTCOMES = {1.0: "won", 0.0: "drawn", -1.0: "lost"}


def print_analysis(console: Console, analysis: Analysis, game: Game, state: GameState) -> None:
    """Print an analysis of the position `state`."""
    from rich.tree import Tree

    table = make_table("move", "visits", "policy", "value", "prior")
    for move in analysis.moves[:_MAX_ROWS]:
        value = "–" if move.value is None else f"{move.value:+.2f}"
        if move.proven is not None:
            value = _OUTCOMES.get(move.proven, f"{move.proven:+.2f}")
        table.add_row(
            move_name(game, state, move.action), str(move.visits), f"{100 * move.policy:.0f} %", value, f"{100 * move.prior:.0f} %"
        )
    console.print(table)
    names, after = [], state
    for action in analysis.line:
        names.append(move_name(game, after, action))
        after = after.child(action)
    console.print(f"expected line: {' '.join(names)}", style="dim", soft_wrap=True)
    tree = Tree(f"{analysis.visits} visits, value {analysis.value:+.2f}", guide_style="dim")
    _grow(tree, analysis.tree, game, state)
    console.print(tree)


def _grow(node: Any, branches: Sequence[Branch], game: Game, state: GameState) -> None:
    for branch in branches:
        name = move_name(game, state, branch.action)
        child = node.add(f"{name}   {branch.visits} visits, value {branch.value:+.2f} for the player who moves")
        _grow(child, branch.children, game, state.child(branch.action))
