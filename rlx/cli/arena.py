"""rlx arena: who is stronger, from games."""

from __future__ import annotations

import itertools
import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlx.cli.complete import complete_runs
from rlx.cli.options import Trust, echo

if TYPE_CHECKING:
    from rlx.evaluation.match import Player


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
    from rlx.errors import ConfigError
    from rlx.evaluation.match import RunPlayer, play_match
    from rlx.evaluation.players import find_player, load_run, split
    from rlx.stats.elo import rate

    algo, game, reference = load_run(runs[0], simulations=simulations, trust=trust)
    asked = [*runs, *[name.strip() for name in opponents.split(",") if name.strip()]]
    found: list[Player] = [RunPlayer(reference, algo)]
    found += [find_player(name, game, simulations=simulations, key="--opponents", trust=trust) for name in asked[1:]]
    players = [one for player in found for one in (split(player) if parts else [player])]
    if parts and len(players) == len(found):
        raise ConfigError(f"--parts: {runs[0]} has no parts that play for themselves; runs of algo=alphago have")
    if len(players) < 2:
        raise ConfigError("one player: name another run, or --opponents uct:100")
    names = [player.name for player in players]
    if len(set(names)) < len(names):
        raise ConfigError(f"{max(names, key=names.count)} is named twice: its games against itself would say nothing")
    plies = opening_plies if opening_plies is not None else min(8, max(1, game.max_length // 10))
    points, tally = {}, {name: [0, 0, 0] for name in names}
    for i, j in itertools.combinations(range(len(names)), 2):
        match = play_match(game, players[i], players[j], openings=openings, opening_plies=plies, seed=seed)
        points[i, j] = (match.returns.sum(axis=1) + 2.0) / 2.0
        for name, returns in ((names[i], match.returns), (names[j], -match.returns)):
            for k, kind in enumerate((returns > 0, returns == 0, returns < 0)):
                tally[name][k] += int(kind.sum())
    anchor = names.index("random") if "random" in names else None
    ratings = rate(points, len(names), anchor=anchor)
    rows: list[dict[str, Any]] = []
    for i in sorted(range(len(names)), key=lambda i: -ratings.elo[i]):
        wins, draws, losses = tally[names[i]]
        games = wins + draws + losses
        rows.append({"player": players[i].name, "elo": round(float(ratings.elo[i]), 1), "elo_low": _rounded(ratings.low[i]),
                     "elo_high": _rounded(ratings.high[i]), "games": games, "wins": wins, "draws": draws, "losses": losses,
                     "score": (wins + draws / 2) / games})  # fmt: skip
    if as_json:
        echo(
            json.dumps(
                {"game": str(game), "opening_plies": plies, "anchor": names[anchor] if anchor is not None else None, "players": rows}
            )
        )
        return
    _print(
        rows,
        f"{game}: {2 * openings} games for each pair, from {openings} openings of {plies} random plies, colours swapped",
        anchor is not None,
    )


def _rounded(end: float) -> float | None:
    return round(float(end), 1) if math.isfinite(end) else None


def _print(rows: list[dict[str, Any]], title: str, anchored: bool) -> None:
    from rlx.render.tables import make_table, terminal
    from rlx.stats.intervals import FEWEST

    console = terminal()
    console.print(title, soft_wrap=True)
    table = make_table("player", "Elo", "95 % interval", "wins", "draws", "losses", "score")
    for row in rows:
        known = row["elo_low"] is not None and row["elo_low"] < row["elo_high"]
        interval = f"{row['elo_low']:.0f} to {row['elo_high']:.0f}" if known else "–"
        counts = [str(row[k]) for k in ("wins", "draws", "losses")]
        table.add_row(row["player"], f"{row['elo']:.0f}", interval, *counts, f"{row['score']:.2f}")
    console.print(table)
    zero = "random is at 0" if anchored else "their mean is at 0"
    console.print(
        f"Bradley-Terry ratings, {zero}; an opening counts as one observation for the intervals, which need {FEWEST}",
        style="dim",
        soft_wrap=True,
    )
