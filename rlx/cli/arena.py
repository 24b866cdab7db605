"""rlx arena: print the ratings of players from their games."""

from __future__ import annotations

from typing import Annotated

import typer

from rlx.cli.complete import complete_runs
from rlx.cli.options import Trust, print_json


def arena(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Runs that play the same game.", autocompletion=complete_runs)],
    opponents: Annotated[str, typer.Option(help="Others that take part, with commas: random, one_ply, uct:N.")] = "uct:100,random",
    openings: Annotated[int, typer.Option(min=1, help="Openings for each pair of players; each is played twice, colours swapped.")] = 20,
    opening_plies: Annotated[int | None, typer.Option(min=0, help="Random moves of an opening. (default: by the game)")] = None,
    simulations: Annotated[int | None, typer.Option(min=1, help="Of the runs' searches. (default: as in evaluations)")] = None,
    parts: Annotated[bool, typer.Option("--parts", help="Let each part of an alphago run play for itself.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Draws the openings.")] = 0,
    trust: Trust = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Let players meet each other and rate them: Elo with 95 % intervals, wins, draws and losses.

    Examples:

      rlx arena latest --opponents uct:100,uct:1000,random

      rlx arena small large --openings 50

      rlx arena GO --parts --opponents uct:1000
    """
    from rlx.evaluation.tournament import rate_runs
    from rlx.render.tables import make_table, terminal
    from rlx.stats.intervals import FEWEST

    named = [name.strip() for name in opponents.split(",") if name.strip()]
    found = rate_runs(runs, named, openings=openings, opening_plies=opening_plies, simulations=simulations, parts=parts, seed=seed,
                      trust=trust)  # fmt: skip
    if as_json:
        print_json([found.as_dict()])
        return
    console = terminal()
    console.print(f"{found.game}: {2 * found.openings} games for each pair, from {found.openings} openings of {found.opening_plies} random "
                  "plies, colours swapped", soft_wrap=True)  # fmt: skip
    table = make_table("player", "Elo", "95 % interval", "wins", "draws", "losses", "score")
    for row in found.standings:
        known = row.elo_low is not None and row.elo_high is not None and row.elo_low < row.elo_high
        interval = f"{row.elo_low:.0f} to {row.elo_high:.0f}" if known else "–"
        table.add_row(row.player, f"{row.elo:.0f}", interval, str(row.wins), str(row.draws), str(row.losses), f"{row.score:.2f}")
    console.print(table)
    zero = f"{found.anchor} is at 0" if found.anchor else "their mean is at 0"
    console.print(f"Bradley-Terry ratings, {zero}; an opening counts as one observation for the intervals, which need {FEWEST}",
                  style="dim", soft_wrap=True)  # fmt: skip
