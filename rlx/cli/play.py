"""rlx play: against a trained run, or let machines play."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlx.cli.complete import complete_checkpoints, complete_runs
from rlx.cli.options import Trust

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from rlx.envs.games.openspiel import Game, GameState
    from rlx.evaluation.match import Player, SearchingPlayer
    from rlx.planning.search import SearchResult

_HELP = "your move, or: hint · explain (on/off) · undo · moves · quit"


def play(
    run: Annotated[str, typer.Argument(help="A run that plays a game.", autocompletion=complete_runs)] = "latest",
    opponent: Annotated[str | None, typer.Option(help="Another run, random, one_ply or uct:N plays instead of you.")] = None,
    second: Annotated[bool, typer.Option("--second", help="The run begins; otherwise you do, or the opponent.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Show what each search of the run found.")] = False,
    simulations: Annotated[int | None, typer.Option(min=1, help="Of the run's search. (default: as in evaluations)")] = None,
    checkpoint: Annotated[str, typer.Option(help="best, latest, or the env steps of one.", autocompletion=complete_checkpoints)] = "latest",
    seed: Annotated[int, typer.Option(min=0, help="Of the opponent's randomness.")] = 0,
    trust: Trust = False,
) -> None:
    """Play against a trained run in the terminal, with hints and undo; or watch it play.

    Examples:

      rlx play latest

      rlx play latest --second --explain

      rlx play latest --opponent uct:1000
    """
    from rlx.errors import ConfigError
    from rlx.evaluation.players import find_player, load_run
    from rlx.render.tables import terminal

    if opponent is None and not sys.stdin.isatty():
        raise ConfigError("rlx play asks for moves and this is no terminal; let machines play with --opponent uct:1000")
    algo, game, name = load_run(run, checkpoint=checkpoint, simulations=simulations, trust=trust)
    other = None if opponent is None else find_player(opponent, game, simulations=simulations, trust=trust)
    if other is not None:
        import numpy as np

        other.begin(game, np.array([seed]))
    table = _Table(terminal(), algo, game, name, other, run_side=0 if second else 1, explain=explain)
    try:
        table.play()
    except (KeyboardInterrupt, EOFError):
        table.console.print("\nleft the game", style="dim")


class _Table:
    """One game, and who sits at it."""

    def __init__(
        self, console: Console, algo: SearchingPlayer, game: Game, name: str, other: Player | None, *, run_side: int, explain: bool
    ) -> None:
        self.console, self.algo, self.game, self.name, self.other = console, algo, game, name, other
        self.run_side, self.explain = run_side, explain
        self.history: list[int] = []

    @property
    def state(self) -> GameState:
        return self.game.state_of(self.history)

    def play(self) -> None:
        while not (state := self.state).is_terminal():
            self.show()
            if state.current_player() == self.run_side:
                self.run_moves(state)
            elif self.other is not None:
                self.other_moves(state)
            elif not self.person_moves(state):
                return
        self.show()
        self.console.print(self.result())

    def show(self) -> None:
        from rlx.render.board import draw

        last = self.history[-1] if self.history and self.game.name not in ("connect_four", "breakthrough") else None
        self.console.print()
        self.console.print(draw(self.game, self.state, last))

    def result(self) -> str:
        outcome = self.state.player_return(self.run_side)
        me = "you" if self.other is None else self.other.name
        moves = f"after {len(self.history)} moves"
        if outcome == 0:
            return f"a draw {moves}"
        won = self.name if outcome > 0 else me
        return f"{won} win{'' if won == 'you' else 's'} {moves}"

    # Moves

    def row(self) -> NDArray[np.int32]:
        """The actions so far, as an observation [1, L]."""
        import numpy as np

        row = np.full((1, self.game.max_length), -1, dtype=np.int32)
        row[0, : len(self.history)] = self.history
        return row

    def search(self) -> SearchResult:
        import numpy as np

        return self.algo.search(self.row(), mode="eval", rng=np.random.default_rng(0))[0]

    def run_moves(self, state: GameState) -> None:
        from rlx.render.board import move_name, side_name

        found = self.search()
        action = int(found.best()[0])
        if self.explain:
            self.show_search(state, found)
        value = float(found.improved_value()[0])
        self.console.print(side_name(self.run_side), f"{self.name} plays {move_name(self.game, state, action)}", end="")
        self.console.print(f"   it expects {value:+.2f}", style="dim")
        self.history.append(action)

    def other_moves(self, state: GameState) -> None:
        import numpy as np

        from rlx.render.board import move_name, side_name

        assert self.other is not None
        action = self.other.move(self.row(), np.array([0]))[0]
        text = f"{self.other.name} plays {move_name(self.game, state, action)}"
        self.console.print(side_name(1 - self.run_side), text)
        self.history.append(action)

    def person_moves(self, state: GameState) -> bool:
        """Ask until there is a move; returns False to leave."""
        from rlx.render.board import move_names, side_name

        names = {name: action for action, name in move_names(self.game, state).items()}
        while True:
            self.console.print(side_name(1 - self.run_side), f"{_HELP}", style="dim")
            word = input("> ").strip().lower()
            if word in names:
                self.history.append(names[word])
                return True
            if word in ("quit", "q", "exit"):
                self.console.print("left the game", style="dim")
                return False
            if word in ("undo", "u"):
                if self.undo():
                    return True
                self.console.print("there is nothing to take back")
            elif word in ("hint", "h"):
                self.show_search(state, self.search())
            elif word in ("explain", "e"):
                self.explain = not self.explain
                self.console.print(f"explanations are {'on' if self.explain else 'off'}")
            elif word in ("moves", "m", "help", "?"):
                self.console.print("moves: " + " ".join(names), soft_wrap=True)
            else:
                self.console.print(f"{word!r} is not a move here; moves: {' '.join(list(names)[:40])}", soft_wrap=True)

    def undo(self) -> bool:
        """Take back to the person's move before; False if there was none."""
        for ply in range(len(self.history) - 1, -1, -1):
            if self.game.state_of(self.history[:ply]).current_player() != self.run_side:
                del self.history[ply:]
                return True
        return False

    # Explanations

    def show_search(self, state: GameState, found: SearchResult) -> None:
        """The root's moves, the line that the search expects, and the tree below it."""
        from rich.tree import Tree

        from rlx.render.tables import make_table

        trees, edges = found.trees, found.root_edges(0)
        policy = found.policy(self.game.num_actions)[0]
        table = make_table("move", "visits", "policy", "value", "prior")
        proven = _proven(found)
        order = sorted(range(edges.start, edges.stop), key=lambda e: (-trees.n[0, e], -trees.prior[0, e]))
        names = _names(self.game, state)
        for e in order[:8]:
            action, n = int(trees.action[0, e]), int(trees.n[0, e])
            value = proven[e - edges.start] or (f"{trees.w[0, e] / n:+.2f}" if n else "–")
            table.add_row(names(action), str(n), f"{100 * policy[action]:.0f} %", value, f"{100 * trees.prior[0, e]:.0f} %")
        self.console.print(table)
        line = self.principal_variation(state, found)
        self.console.print(f"expected line: {' '.join(line)}", style="dim", soft_wrap=True)
        tree = Tree(f"{int(trees.visits[0, 0])} visits, value {float(found.improved_value()[0]):+.2f}", guide_style="dim")
        self._grow(tree, state, found, 0, depth=3)
        self.console.print(tree)

    def principal_variation(self, state: GameState, found: SearchResult) -> list[str]:
        trees, slot, line = found.trees, 0, []
        while slot >= 0 and trees.count[0, slot]:
            first, last = trees.start[0, slot], trees.start[0, slot] + trees.count[0, slot]
            e = max(range(first, last), key=lambda e: trees.n[0, e])
            action = int(trees.action[0, e])
            if trees.n[0, e] == 0 or action not in state.legal_actions():  # a learned model may expect what is against the rules
                break
            line.append(_names(self.game, state)(action))
            state, slot = state.child(action), int(trees.child[0, e])
        return line

    def _grow(self, branch: Any, state: GameState, found: SearchResult, slot: int, *, depth: int) -> None:
        trees = found.trees
        first, last = int(trees.start[0, slot]), int(trees.start[0, slot] + trees.count[0, slot])
        legal = state.legal_actions()
        visited = [e for e in range(first, last) if trees.n[0, e] > 0 and trees.action[0, e] in legal]
        names = _names(self.game, state)
        for e in sorted(visited, key=lambda e: -trees.n[0, e])[:3]:
            action, n = int(trees.action[0, e]), int(trees.n[0, e])
            node = branch.add(f"{names(action)}   {n} visits, value {trees.w[0, e] / n:+.2f} for who plays it")
            if depth > 1 and trees.child[0, e] >= 0:
                self._grow(node, state.child(action), found, int(trees.child[0, e]), depth=depth - 1)


def _proven(found: SearchResult) -> list[str]:
    """What the search has proven of the root's moves, for whoever plays them; empty where it is open."""
    outcome = {1.0: "won", 0.0: "drawn", -1.0: "lost"}
    least, most = (bounds[0].tolist() for bounds in found.trees.root_bounds())
    return [outcome.get(low, f"{low:+.2f}") if low == high else "" for low, high in zip(least, most, strict=True)]


def _names(game: Game, state: GameState) -> Any:
    from rlx.render.board import move_name

    return lambda action: move_name(game, state, action)
