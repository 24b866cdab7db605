"""Ratings of players from a round robin of matches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlx.envs.games.openspiel import Game
from rlx.errors import ConfigError
from rlx.evaluation.capabilities import algorithms_with
from rlx.evaluation.match import Player, RunPlayer, parts_of, play_match
from rlx.evaluation.players import find_player, load_run
from rlx.stats.elo import rate
from rlx.types import HasParts

ANCHOR = "random"
"""The player whose rating is 0, if it takes part."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The rating of a player, and its games."""

    player: str
    elo: float
    elo_low: float | None
    """End of the 95 % interval; None where there are too few openings."""
    elo_high: float | None
    games: int
    wins: int
    draws: int
    losses: int
    score: float
    """Points for each game: 1 for a win, 0.5 for a draw."""


@dataclass(frozen=True, kw_only=True)
class Tournament:
    """The result of a round robin; each opening is played twice, with colours swapped."""

    game: str
    openings: int
    opening_plies: int
    anchor: str | None
    """The player whose rating is 0; None where the mean of the ratings is."""
    standings: Sequence[Standing]
    """The best first."""

    def as_dict(self) -> dict[str, Any]:
        return {"game": self.game, "opening_plies": self.opening_plies, "anchor": self.anchor,
                "players": [asdict(standing) for standing in self.standings]}  # fmt: skip


def rate_runs(
    runs: Sequence[str],
    opponents: Sequence[str] = (),
    *,
    openings: int = 20,
    opening_plies: int | None = None,
    simulations: int | None = None,
    parts: bool = False,
    seed: int = 0,
    trust: bool = False,
) -> Tournament:
    """Let runs of one game, and opponents, meet each other and rate them.

    Args:
        runs: names or paths; the first one says which game it is.
        opponents: random, one_ply, uct:N or solver.
        openings: for each pair of players.
        opening_plies: random moves of an opening; by default a tenth of the longest game, at least 1 and at most 8.
        simulations: of the runs' searches; by default those of their evaluations.
        parts: let each part of a run play for itself.
        seed: draws the openings.
        trust: run the code that somebody else's run names.

    Raises:
        ConfigError: if there are fewer than two players, or one is not a player of the game, or is there twice.
    """
    algo, game, reference = load_run(runs[0], simulations=simulations, trust=trust)
    found: list[Player] = [RunPlayer(reference, algo)]
    found += [find_player(name, game, simulations=simulations, key="--opponents", trust=trust) for name in [*runs[1:], *opponents]]
    players = [one for player in found for one in (parts_of(player) if parts else [player])]
    if parts and len(players) == len(found):
        raise ConfigError(f"--parts: {runs[0]} has no parts that play for themselves; runs of {algorithms_with(HasParts)} have")
    return rate_players(game, players, openings=openings, opening_plies=opening_plies, seed=seed)


def rate_players(game: Game, players: Sequence[Player], *, openings: int, opening_plies: int | None = None, seed: int = 0) -> Tournament:
    """Let players meet each other and rate them; arguments and errors as of `rate_runs`."""
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
    anchor = names.index(ANCHOR) if ANCHOR in names else None
    ratings = rate(points, len(names), anchor=anchor)
    standings = []
    for i in sorted(range(len(names)), key=lambda i: -ratings.elo[i]):
        wins, draws, losses = tally[names[i]]
        games = wins + draws + losses
        standings.append(Standing(
            player=names[i], elo=round(float(ratings.elo[i]), 1), elo_low=_rounded(ratings.low[i]), elo_high=_rounded(ratings.high[i]),
            games=games, wins=wins, draws=draws, losses=losses, score=(wins + draws / 2) / games,
        ))  # fmt: skip
    return Tournament(
        game=str(game), openings=openings, opening_plies=plies, anchor=None if anchor is None else ANCHOR, standings=standings
    )


def _rounded(end: float) -> float | None:
    return round(float(end), 1) if math.isfinite(end) else None
