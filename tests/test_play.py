"""Playing: matches, ratings, the board in the terminal, and a person at it."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from launch import TIMEOUT_S, default_signals, run_main

from rlx.envs.games.openspiel import Game
from rlx.envs.games.opponents import parse_opponent
from rlx.errors import ConfigError
from rlx.evaluation.game_session import GameSession
from rlx.evaluation.match import KnownPlayer, play_match
from rlx.evaluation.players import load_run
from rlx.evaluation.tournament import rate_players
from rlx.render.board import draw, move_names
from rlx.stats.elo import fit, rate

Command = Callable[[str], tuple[int, str, str]]
TINY = "algo.num_blocks=1 algo.num_channels=4 algo.search.num_simulations=8 env.num_envs=2 loop.total_env_steps=4 loop.eval_every=0"


def player(name: str) -> KnownPlayer:
    return KnownPlayer(name, parse_opponent(name))


# Matches and ratings


def test_every_opening_is_played_from_both_sides() -> None:
    game = Game("connect_four")
    match = play_match(game, player("uct:50"), player("uct:50"), openings=6, opening_plies=4, seed=0)
    assert match.returns.shape == (6, 2)
    again = play_match(game, player("uct:50"), player("uct:50"), openings=6, opening_plies=4, seed=0)
    np.testing.assert_array_equal(match.returns, again.returns)


def test_a_stronger_player_wins_its_match_from_either_side() -> None:
    match = play_match(Game("tic_tac_toe"), player("solver"), player("random"), openings=20, opening_plies=0, seed=1)
    assert match.returns.min() >= 0.0, "perfect play does not lose"
    assert match.returns.mean() > 0.7
    assert (match.lengths >= 5).all()


def test_an_opening_does_not_end_the_game() -> None:
    match = play_match(Game("tic_tac_toe"), player("random"), player("random"), openings=30, opening_plies=9, seed=0)
    assert (match.lengths > 4).all()


def table_of(elo: list[float], games: int) -> np.ndarray:
    """Expected points of players with these ratings."""
    difference = np.subtract.outer(np.array(elo), np.array(elo))
    scores = games / (1.0 + 10.0 ** (-difference / 400.0))
    np.fill_diagonal(scores, 0.0)
    return scores


def test_ratings_are_those_that_made_the_scores() -> None:
    elo = np.array([300.0, 100.0, -50.0, -350.0])
    np.testing.assert_allclose(fit(table_of(elo.tolist(), 100_000)), elo - elo.mean(), atol=0.1)


def test_who_never_loses_has_a_finite_rating() -> None:
    elo = fit(np.array([[0.0, 20.0], [0.0, 0.0]]))
    assert 300 < elo[0] - elo[1] < 2000


def test_intervals_hold_the_truth_and_narrow_with_games() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for openings in (20, 200):
        points = {(0, 1): rng.binomial(2, 0.76, size=openings).astype(float), (0, 2): rng.binomial(2, 0.91, size=openings).astype(float),
                  (1, 2): rng.binomial(2, 0.76, size=openings).astype(float)}  # fmt: skip
        ratings = rate(points, 3, anchor=2)
        assert ratings.elo[2] == ratings.low[2] == ratings.high[2] == 0.0
        assert (ratings.low <= ratings.elo).all()
        assert (ratings.elo <= ratings.high).all()
        widths.append(ratings.high[0] - ratings.low[0])
        assert ratings.low[0] < 400 < ratings.high[0]
    assert widths[1] < 0.5 * widths[0]


# The board


@pytest.mark.parametrize(("name", "parameters"), [
    ("tic_tac_toe", {}), ("connect_four", {}), ("othello", {}), ("hex", {"board_size": 4}), ("go", {"board_size": 5}),
    ("breakthrough", {"rows": 6, "columns": 4}),
])  # fmt: skip
def test_the_board_shows_every_stone_to_the_end_of_the_game(name: str, parameters: dict[str, int]) -> None:
    """Stones drawn are those of OpenSpiel's own drawing, as far as it shows them."""
    game, rng = Game(name, parameters), np.random.default_rng(3)
    symbols = {"tic_tac_toe": "xo", "connect_four": "xo", "othello": "xo", "hex": "xo", "go": "XO", "breakthrough": "bw"}[name]
    for _ in range(5):
        state = game.new_state()
        while True:
            text = str(state)
            board = text[text.index("\n\n") :] if name == "go" else text  # its heading names the players
            if name == "othello":
                board = "\n".join(line for line in text.splitlines() if line[:1].isdigit())
            if name == "go":
                board = board.rpartition("\n ")[0]
            if name == "breakthrough":
                board = "\n".join(line for line in text.splitlines() if line[:1].isdigit())
            drawn = draw(game, state).plain
            assert [drawn.count(s) for s in "●○"] == [board.count(s) for s in symbols], text
            if state.is_terminal():
                break
            state.apply_action(int(rng.choice(state.legal_actions())))


def test_moves_have_names_of_their_own() -> None:
    for name in ("tic_tac_toe", "connect_four", "othello", "hex", "go", "breakthrough", "chess"):
        game = Game(name)
        state = game.new_state()
        names = move_names(game, state)
        assert len(set(names.values())) == len(names) == len(state.legal_actions())
    assert move_names(Game("connect_four"), Game("connect_four").new_state())[0] == "1"
    assert move_names(Game("tic_tac_toe"), Game("tic_tac_toe").new_state())[5] == "c2"
    go = Game("go", {"board_size": 5})
    assert move_names(go, go.new_state())[25] == "pass"


# From Python


def test_a_game_is_played_and_analysed_from_python(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    algo, game, name = load_run("three", simulations=30)
    session = GameSession(game, algo, run_side=1)
    assert (name, session.is_over, session.is_runs_turn, session.undo()) == ("three", False, False, False)
    for action in (0, 3, 1, 4):
        session.play(action)
    found = session.analyse()
    assert (found.best, found.line, found.value) == (2, [2], 1.0), "it wins"
    moves = {move.action: move for move in found.moves}
    assert moves.keys() == {2, 5, 6, 7, 8}
    assert (moves[2].proven, moves[2].value) == (1.0, 1.0)
    assert sum(move.visits for move in found.moves) <= found.visits
    assert next(branch for branch in found.tree if branch.action == 2).children == [], "the game ends there"
    session.play(2)
    assert (session.is_over, session.outcome) == (True, -1.0)
    assert session.undo()
    assert session.history == [0, 3, 1, 4]
    assert capsys.readouterr() == ("", "")


def test_players_are_rated_from_python() -> None:
    found = rate_players(Game("tic_tac_toe"), [player("random"), player("solver"), player("one_ply")], openings=6)
    assert [row.player for row in found.standings] == ["solver", "one_ply", "random"]
    assert (found.anchor, found.standings[2].elo, found.standings[0].losses) == ("random", 0.0, 0)
    assert [row.wins + row.draws + row.losses for row in found.standings] == [24, 24, 24]
    with pytest.raises(ConfigError, match="random is named twice"):
        rate_players(Game("tic_tac_toe"), [player("random"), player("random")], openings=1)


# The commands


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a hardly trained run of connect four, and one of tic-tac-toe."""
    directory = tmp_path_factory.mktemp("games")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.delenv("RLX_RUNS_DIR", raising=False)
        for name, env in (("four", "connect_four"), ("three", "tic_tac_toe")):
            words = f"train algo=alphazero env={env} recipe=null {TINY} log.wandb=disabled log.console=quiet --name {name}"
            assert run_main(words, patch) == 0
    return directory


@pytest.fixture
def runs(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Their runs directory, in the current one."""
    monkeypatch.chdir(trained)
    monkeypatch.delenv("RLX_RUNS_DIR", raising=False)
    return trained / "runs"


def test_arena_rates_runs_and_opponents(runs: Path, run_command: Command) -> None:
    code, out, err = run_command("arena four --opponents uct:100,random --openings 4 --json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    elo = {row["player"]: row["elo"] for row in result["players"]}
    assert elo["uct:100"] > elo["random"] == 0.0
    assert [row["wins"] + row["draws"] + row["losses"] for row in result["players"]] == [16, 16, 16]
    code, out, _ = run_command("arena four --opponents uct:20 --openings 2")
    assert code == 0
    assert "4 games for each pair, from 2 openings of 4 random plies, colours swapped" in out
    assert "their mean is at 0" in out


def test_machines_play_to_the_end(runs: Path, run_command: Command) -> None:
    code, out, err = run_command("play three --opponent one_ply --explain")
    assert (code, err) == (0, "")
    assert "expected line:" in out
    assert out.splitlines()[-1].startswith(("a draw after", "three wins after", "one_ply wins after"))


def test_eval_plays_the_opponent_of_the_run(runs: Path, run_command: Command) -> None:
    code, out, _ = run_command("eval three --episodes 10 --json")
    assert code == 0
    result = json.loads(out)
    assert 0.0 <= result["optimal_moves"] <= 1.0
    assert result["opponent"] == "uct:1000"
    assert sum(result[k] for k in ("wins", "draws", "losses")) == 10


@pytest.mark.parametrize(("words", "said"), [
    ("play four --opponent three", "--opponent three plays tic_tac_toe, not connect_four"),
    ("play four --opponent nobody", "neither a run"), ("play four", "this is no terminal"),
    ("arena four --opponents four", "named twice"), ("arena four --opponents ''", "one player"),
    ("arena four three", "plays tic_tac_toe, not connect_four"), ("arena nothing", "no such run"),
    ("eval three --opponent stockfish", "rlx: --opponent=stockfish: no such opponent; expected random, "),
    ("eval four --opponent solver", "rlx: --opponent=solver plays tic_tac_toe only, not connect_four;"),
    ("play four --opponent solver", "rlx: --opponent=solver plays tic_tac_toe only, not connect_four;"),
    ("arena four --opponents solver", "rlx: --opponents=solver plays tic_tac_toe only, not connect_four;"),
    ("train algo=alphazero env=connect_four env.opponent=solver", "rlx: env.opponent=solver plays tic_tac_toe only, not connect_four;"),
    ("eval three --video 1", "rlx play three shows them"),
])  # fmt: skip
def test_a_mistake_is_one_line(words: str, said: str, runs: Path, run_command: Command) -> None:
    code, _, err = run_command(words)
    assert code == 2
    assert "Traceback" not in err
    assert said in err


def test_a_person_plays_in_a_terminal(runs: Path) -> None:
    terminal, other = pty.openpty()
    command = [sys.executable, "-m", "rlx.cli.main", "play", "three"]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=runs.parent, env=env, stdin=other, stdout=other, stderr=other, start_new_session=True,
                               preexec_fn=default_signals)  # fmt: skip
    os.close(other)
    said = ""

    def until(text: str, count: int = 1) -> None:
        nonlocal said
        deadline = time.monotonic() + TIMEOUT_S
        while said.count(text) < count:
            assert time.monotonic() < deadline, said
            if select.select([terminal], [], [], 0.1)[0]:
                said += os.read(terminal, 4096).decode(errors="replace")

    def answer(word: str) -> None:
        os.write(terminal, f"{word}\n".encode())

    until("> ")
    answer("z9")
    until("is not a move here")
    answer("undo")
    until("there is nothing to take back")
    answer("hint")
    until("expected line:")
    answer("b2")
    until("three plays")
    answer("undo")
    until("> ", 6)
    answer("moves")
    until("moves: a1 b1 c1 a2 b2")
    answer("quit")
    until("left the game")
    assert process.wait(TIMEOUT_S) == 0
    os.close(terminal)
