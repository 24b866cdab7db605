"""Games: observations of positions, symmetries, opponents, and perfect play."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from rlx.envs.games.openspiel import Game, playable_names
from rlx.envs.games.opponents import parse_opponent
from rlx.envs.games.selfplay import SelfPlayVectorEnv, VersusOpponent
from rlx.envs.games.solvers import POSITIONS, ConnectFourSolver, _has_won, probe
from rlx.envs.registry import check_env_id
from rlx.errors import ConfigError
from rlx.tree_ops import leaves

NAMED: list[tuple[str, dict[str, Any]]] = [
    ("tic_tac_toe", {}), ("connect_four", {}), ("connect_four", {"rows": 5, "columns": 4}), ("othello", {}),
    ("hex", {"board_size": 5}), ("go", {"board_size": 5}), ("breakthrough", {"rows": 6, "columns": 6}),
    ("breakthrough", {"rows": 6, "columns": 4}),
]  # fmt: skip


def ids(case: Any) -> str:
    return str(case)


@pytest.mark.parametrize(("name", "parameters"), NAMED, ids=ids)
def test_a_turned_game_is_the_same_game(name: str, parameters: dict[str, Any]) -> None:
    """Random games beside their images: planes, legal moves and outcome turn together, move by move."""
    game, rng = Game(name, parameters), np.random.default_rng(0)
    for cells, actions in game.symmetries:
        back = np.argsort(actions)
        for _ in range(8):
            state, image = game.new_state(), game.new_state()
            while not state.is_terminal():
                a, b = game.look([state]), game.look([image])
                turned = a.planes.reshape(*a.planes.shape[:2], -1)[..., cells].reshape(a.planes.shape)
                np.testing.assert_array_equal(turned, b.planes)
                legal = np.isin(np.arange(game.num_actions), a.legal)
                np.testing.assert_array_equal(np.flatnonzero(legal[actions]), np.sort(b.legal))
                move = int(rng.choice(a.legal))
                state.apply_action(move)
                image.apply_action(int(back[move]))
            assert state.returns() == image.returns()


@pytest.mark.parametrize(("name", "parameters"), NAMED, ids=ids)
def test_the_player_to_move_comes_first(name: str, parameters: dict[str, Any]) -> None:
    """A move puts stones only on the plane of who made it, which is the second plane for who moves next."""
    game, rng = Game(name, parameters), np.random.default_rng(1)
    state = game.new_state()
    for _ in range(12):
        before = game.look([state])
        mover = int(before.player[0])
        moves = before.legal[before.legal < np.prod(game.planes_shape[1:])] if name == "go" else before.legal  # a pass shows no stone
        state.apply_action(int(rng.choice(moves)))
        if state.is_terminal():
            return
        after = game.look([state])
        own, other = (0, 1) if after.player[0] == mover else (1, 0)
        gained = after.planes[0, own] - before.planes[0, 0]
        assert gained.max() == 1.0, "who moved has a stone where there was none"
        assert (after.planes[0, other] <= before.planes[0, 1]).all(), "who did not move has none that are new"


def test_the_side_to_move_is_shown_where_the_rules_differ_by_side() -> None:
    for name, plane in (("hex", 2), ("go", 2), ("breakthrough", 2)):
        game = Game(name, {} if name == "breakthrough" else {"board_size": 5})
        start = game.new_state()
        seen = game.look([start, start.child(start.legal_actions()[0])])
        assert seen.planes[0, plane].max() == 0.0
        assert seen.planes[1, plane].min() == 1.0


def test_a_pass_is_shown_because_the_next_one_ends_the_game() -> None:
    game = Game("go", {"board_size": 5})
    passed = game.state_of([0, game.num_actions - 1])
    assert game.look([passed]).planes[0, -1].min() == 1.0
    assert passed.child(game.num_actions - 1).is_terminal()


def test_the_point_that_ko_forbids_is_shown() -> None:
    """White may not take back at 5 at once, where black has just captured; after the same stones by another way it may. 1 is suicide."""
    game = Game("go", {"board_size": 3})
    seen = game.look([game.state_of(h) for h in ([2, 7, 0, 5, 4, 6, 8], [0, 6, 2, 7, 8, 9, 4])])
    np.testing.assert_array_equal(seen.planes[0, [0, 1, 2, 4]], seen.planes[1, [0, 1, 2, 4]])
    assert seen.num_legal.tolist() == [1, 2]
    assert np.flatnonzero(seen.planes[0, 3]).tolist() == [5]
    assert not seen.planes[1, 3].any()


@pytest.mark.parametrize("size", [3, 5])
def test_planes_of_go_imply_the_legal_moves(size: int) -> None:
    """Random games that pass only where they must; on 3x3 planes repeat often, and ko is common."""
    game, rng = Game("go", {"board_size": size}), np.random.default_rng(0)
    legal: dict[bytes, list[int]] = {}
    again = ko = 0
    for _ in range(60):
        state = game.new_state()
        while not state.is_terminal():
            seen = game.look([state])
            key = seen.planes.tobytes()
            again += key in legal
            ko += bool(seen.planes[0, 3].any())
            assert legal.setdefault(key, seen.legal.tolist()) == seen.legal.tolist()
            state.apply_action(int(rng.choice(seen.legal[:-1] if len(seen.legal) > 1 else seen.legal)))
    assert again > 60
    assert ko > 10


def test_positions_that_are_over_have_an_outcome_and_no_moves() -> None:
    game = Game("tic_tac_toe")
    seen = game.look([game.state_of([0, 3, 1, 4, 2]), game.state_of([0]), game.state_of([0, 3, 1, 4, 8, 5])])
    assert seen.player.tolist() == [-1, 1, -1]
    assert seen.outcome.tolist() == [1.0, 0.0, -1.0]
    assert seen.num_legal.tolist() == [0, 8, 0]
    assert seen.legal.tolist() == list(range(1, 9))
    assert not seen.planes[0].any()


def test_any_of_openspiels_games_for_two_can_be_seen() -> None:
    assert len(playable_names()) > 20
    for name in ("chess", "y", "pentago", "ultimate_tic_tac_toe"):
        game = Game(name)
        assert game.look([game.new_state()]).planes.shape == (1, *game.planes_shape)


def test_a_game_survives_pickling() -> None:
    game = pickle.loads(pickle.dumps(Game("hex", {"board_size": 4})))
    assert (str(game), game.num_actions) == ("hex(board_size=4)", 16)


@pytest.mark.parametrize(("name", "parameters", "said"), [
    ("backgammon", {}, "chance has a part in it"), ("kuhn_poker", {}, "chance has a part in it"),
    ("phantom_ttt", {}, "it hides information"), ("matrix_rps", {}, "its players move at the same time"),
    ("conect_four", {}, r"did you mean env=spiel:connect_four\?"), ("connect_four", {"row": 3}, "it has columns, rows, x_in_row"),
    ("connect_four", {"egocentric_obs_tensor": True}, "has no such parameter"), ("hex", {"board_size": -3}, "cannot be made"),
    ("clobber", {"rows": "many"}, "cannot be made"),
])  # fmt: skip
def test_what_a_search_cannot_play_is_refused_with_its_reason(name: str, parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Game(name, parameters)


def test_an_unknown_game_is_refused_before_a_run_begins() -> None:
    with pytest.raises(ConfigError, match="did you mean env=spiel:othello"):
        check_env_id("spiel:otello")


# Environments


def play_randomly(env: Any, seeds: list[int], games: int) -> list[tuple[list[int], float]]:
    rng = np.random.default_rng(0)
    obs, _ = env.reset(seed=np.array(seeds))
    done = []
    while len(done) < games:
        actions = np.array([rng.choice(env.game.state_of(o).legal_actions()) for o in obs["history"]])
        obs, reward, terminated, truncated, _ = env.step(actions)
        assert not truncated.any()
        assert not reward[~terminated].any()
        done += [([int(a) for a in obs["history"][i] if a >= 0], float(reward[i])) for i in np.flatnonzero(terminated)]
        if terminated.any():
            obs, _ = env.reset(seed=np.array(seeds), options={"reset_mask": terminated})
    return done


def test_an_observation_has_the_actions_so_far_and_the_reward_is_what_player_0_gets() -> None:
    game = Game("connect_four")
    for history, reward in play_randomly(SelfPlayVectorEnv(game, 4), [0] * 4, 12):
        assert game.state_of(history).player_return(0) == reward


def test_open_games_are_restored_exactly() -> None:
    game = Game("go", {"board_size": 5})
    env, copy = SelfPlayVectorEnv(game, 3), SelfPlayVectorEnv(game, 3)
    env.reset()
    copy.reset()
    for a in (0, 5, 7):
        env.step(np.array([a, a + 1, a + 2]))
    copy.load_state_dict(env.state_dict())
    after = np.array([12, 13, 14])
    for one, other in zip(leaves(env.step(after)), leaves(copy.step(after)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["connect_four", "go", "othello", "breakthrough", "clobber"])
def test_an_observation_shows_what_a_search_sees_of_the_state(name: str) -> None:
    """Also the order of the moves, which a tree's edges follow, and of games that have ended."""
    game, rng = Game(name, {"board_size": 5} if name == "go" else {}), np.random.default_rng(0)
    env = SelfPlayVectorEnv(game, 3)
    obs, _ = env.reset()
    ended = np.zeros(3, dtype=bool)
    for _ in range(60):
        states = [game.state_of(history) for history in obs["history"].tolist()]
        for shown, expected in zip(game.seen(obs)[:2] + game.seen(obs)[3:], game.look(states)[:2] + game.look(states)[3:], strict=True):
            assert shown.dtype == expected.dtype
            np.testing.assert_array_equal(shown, expected)
        for key, space in env.single_observation_space.spaces.items():
            assert all(space.contains(row) for row in obs[key]), key
        if ended.any():
            obs, _ = env.reset(options={"reset_mask": ended})
        obs, _, ended, _, _ = env.step(np.array([rng.choice(np.flatnonzero(row)) for row in obs["legal"]]))


def test_against_an_opponent_seeds_decide_colour_opening_and_replies() -> None:
    game = Game("connect_four")
    env = VersusOpponent(game, 4, parse_opponent("uct:20"), opening_plies=3)
    shown, _ = env.reset(seed=np.array([10, 11, 10, 12]))
    obs = shown["history"]
    np.testing.assert_array_equal(obs[0], obs[2])
    np.testing.assert_array_equal(obs[0, :3], obs[1, :3])
    assert [game.state_of(o).current_player() for o in obs] == [0, 1, 0, 0]
    again, _ = VersusOpponent(game, 4, parse_opponent("uct:20"), opening_plies=3).reset(seed=np.array([10, 11, 10, 12]))
    np.testing.assert_array_equal(obs, again["history"])


def test_the_reward_against_an_opponent_is_the_agents() -> None:
    game = Game("tic_tac_toe")
    done = play_randomly(VersusOpponent(game, 2, parse_opponent("one_ply")), [4, 5], 60)
    assert np.mean([reward for _, reward in done]) < -0.3, "whoever plays at random loses to one ply of foresight"


def score(first: str, second: str, games: int = 30) -> float:
    """Mean return of one opponent against another, colours in turn."""
    game, total = Game("connect_four"), 0.0
    for seed in range(games):
        players = [parse_opponent(name)(game, seed + 1000 * i) for i, name in enumerate((first, second))]
        state = game.new_state()
        while not state.is_terminal():
            state.apply_action(players[(state.current_player() + seed) % 2].move(state))
        total += state.player_return(seed % 2)
    return total / games


def test_opponents_are_as_strong_as_their_names() -> None:
    assert score("one_ply", "random") > 0.5
    assert score("uct:100", "one_ply") > 0.5
    assert score("uct:400", "uct:20") > 0.4


@pytest.mark.parametrize("name", ["", "uct:", "uct:0", "uct:x", "stockfish", "uct:-5"])
def test_an_opponent_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected random, one_ply, uct:SIMULATIONS"):
        parse_opponent(name)


# Perfect play


def test_tic_tac_toe_has_4520_open_positions_and_the_known_outcomes() -> None:
    game = Game("tic_tac_toe")
    known = probe(game)
    assert known is not None
    assert known.histories.shape == (4520, 9)
    assert known.optimal.any(axis=1).all()
    of = {tuple(int(a) for a in h if a >= 0): o for h, o in zip(known.histories, known.optimal, strict=True)}
    assert of[()].all(), "every first move draws"
    corner = next(o for h, o in of.items() if h == (0,))
    assert np.flatnonzero(corner).tolist() == [4], "only the centre draws against a corner"


def brute_force(state: Any) -> int:
    """Outcome for whoever moves, by looking at every continuation."""
    best = -1
    for action in state.legal_actions():
        after = state.child(action)
        value = int(after.player_return(state.current_player())) if after.is_terminal() else -brute_force(after)
        best = max(best, value)
        if best == 1:
            return 1
    return best


def test_the_solver_of_connect_four_agrees_with_brute_force() -> None:
    game, solver, rng = Game("connect_four"), ConnectFourSolver(), np.random.default_rng(0)
    compared, outcomes = 0, set()
    while compared < 60:
        state = game.new_state()
        while not state.is_terminal() and len(state.history()) < 31:
            state.apply_action(int(rng.choice(state.legal_actions())))
        if state.is_terminal():
            continue
        expected = {}
        for action in state.legal_actions():
            after = state.child(action)
            who = state.current_player()
            expected[action] = int(after.player_return(who)) if after.is_terminal() else -brute_force(after)
        assert solver.values([int(a) for a in state.history()]) == expected
        outcomes |= set(expected.values())
        compared += 1
    assert outcomes == {-1, 0, 1}


def test_four_in_a_row_is_seen_in_every_direction_and_not_around_an_edge() -> None:
    def bits(*cells: tuple[int, int]) -> np.uint64:
        return np.uint64(sum(1 << (column * 7 + row) for column, row in cells))

    assert _has_won(bits((0, 0), (1, 0), (2, 0), (3, 0)))
    assert _has_won(bits((4, 2), (4, 3), (4, 4), (4, 5)))
    assert _has_won(bits((0, 0), (1, 1), (2, 2), (3, 3)))
    assert _has_won(bits((3, 5), (4, 4), (5, 3), (6, 2)))
    assert not _has_won(bits((0, 4), (0, 5), (1, 0), (1, 1)))
    assert not _has_won(bits((0, 0), (1, 0), (2, 0)))


def test_the_shipped_positions_are_decisive_and_labelled_by_the_solver() -> None:
    game, solver = Game("connect_four"), ConnectFourSolver()
    known = probe(game)
    assert known is not None
    assert len(known.histories) == 500
    assert POSITIONS.is_file()
    for history, optimal in list(zip(known.histories, known.optimal, strict=True))[::25]:
        moves = [int(a) for a in history if a >= 0]
        assert 12 <= len(moves) <= 24
        values = solver.values(moves)
        assert np.flatnonzero(optimal).tolist() == [a for a, v in values.items() if v == max(values.values())]
        assert len(set(values.values())) > 1


def test_other_boards_are_not_measured_by_positions_of_the_usual_one() -> None:
    assert probe(Game("connect_four", {"rows": 5})) is None
    assert probe(Game("connect_four", {"x_in_row": 5})) is None
    assert probe(Game("othello")) is None
