"""rlx play: a game against a trained run in the terminal, or between machines."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from rlx.cli.complete import complete_checkpoints, complete_runs
from rlx.cli.options import Trust

if TYPE_CHECKING:
    from rich.console import Console

    from rlx.evaluation.game_session import GameSession
    from rlx.evaluation.match import Player

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
    import numpy as np

    from rlx.errors import ConfigError
    from rlx.evaluation.game_session import GameSession
    from rlx.evaluation.players import find_player, load_run
    from rlx.render.tables import terminal

    if opponent is None and not sys.stdin.isatty():
        raise ConfigError("rlx play asks for moves and this is no terminal; let machines play with --opponent uct:1000")
    algo, game, name = load_run(run, checkpoint=checkpoint, simulations=simulations, trust=trust)
    other = None if opponent is None else find_player(opponent, game, simulations=simulations, trust=trust)
    if other is not None:
        other.begin(game, np.array([seed]))
    console = terminal()
    session = GameSession(game, algo, run_side=0 if second else 1)
    try:
        _Screen(console, session, name, other, explain=explain).play()
    except (KeyboardInterrupt, EOFError):
        console.print("\nleft the game", style="dim")


class _Screen:
    """The dialogue of a game."""

    def __init__(self, console: Console, session: GameSession, name: str, other: Player | None, *, explain: bool) -> None:
        self.console, self.session, self.name, self.other, self.explain = console, session, name, other, explain

    def play(self) -> None:
        session = self.session
        while not session.is_over:
            self.show()
            if session.is_runs_turn:
                self.run_moves()
            elif self.other is not None:
                self.other_moves(self.other)
            elif not self.person_moves():
                return
        self.show()
        outcome, moves = session.outcome, f"after {len(session.history)} moves"
        other = "you" if self.other is None else self.other.name
        winner = self.name if outcome > 0 else other
        self.console.print(f"a draw {moves}" if outcome == 0 else f"{winner} win{'' if winner == 'you' else 's'} {moves}")

    def show(self) -> None:
        from rlx.render.board import draw

        game, history = self.session.game, self.session.history
        last = history[-1] if history and game.name not in ("connect_four", "breakthrough") else None
        self.console.print()
        self.console.print(draw(game, self.session.state, last))

    def explain_position(self) -> None:
        from rlx.render.search_view import print_analysis

        print_analysis(self.console, self.session.analyse(), self.session.game, self.session.state)

    def say_move(self, side: int, name: str, action: int, *, end: str = "\n") -> None:
        from rlx.render.board import move_name, side_name

        self.console.print(side_name(side), f"{name} plays {move_name(self.session.game, self.session.state, action)}", end=end)

    def run_moves(self) -> None:
        from rlx.render.search_view import print_analysis

        session, found = self.session, self.session.analyse()
        if self.explain:
            print_analysis(self.console, found, session.game, session.state)
        self.say_move(session.run_side, self.name, found.best, end="")
        self.console.print(f"   it expects {found.value:+.2f}", style="dim")
        session.play(found.best)

    def other_moves(self, other: Player) -> None:
        import numpy as np

        action = other.move(self.session.history_row, np.array([0]))[0]
        self.say_move(1 - self.session.run_side, other.name, action)
        self.session.play(action)

    def person_moves(self) -> bool:
        """Ask until there is a move; False to leave."""
        from rlx.render.board import move_names, side_name

        session = self.session
        names = {name: action for action, name in move_names(session.game, session.state).items()}
        while True:
            self.console.print(side_name(1 - session.run_side), _HELP, style="dim")
            word = input("> ").strip().lower()
            if word in names:
                session.play(names[word])
                return True
            if word in ("quit", "q", "exit"):
                self.console.print("left the game", style="dim")
                return False
            if word in ("undo", "u"):
                if session.undo():
                    return True
                self.console.print("there is nothing to take back")
            elif word in ("hint", "h"):
                self.explain_position()
            elif word in ("explain", "e"):
                self.explain = not self.explain
                self.console.print(f"explanations are {'on' if self.explain else 'off'}")
            elif word in ("moves", "m", "help", "?"):
                self.console.print("moves: " + " ".join(names), soft_wrap=True)
            else:
                self.console.print(f"{word!r} is not a move here; moves: {' '.join(list(names)[:40])}", soft_wrap=True)
