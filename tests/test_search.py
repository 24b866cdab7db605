"""The tree search: the kernels against plain Python, by hand, and on games whose outcome is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from reference_tree import Node, search_one

from rlx.envs.games.openspiel import Game, playable_names
from rlx.envs.games.solvers import ConnectFourSolver, outcome, probe
from rlx.errors import NonFiniteError
from rlx.planning.adapters.game_rules import RulesAdapter
from rlx.planning.search import Expansion, SearchConfig, considered_visits, search
from rlx.planning.tree import Trees


class RandomModel:
    """A made-up game: what lies behind a path of actions is drawn from the path itself, so that any order of questions agrees."""

    def __init__(self, num_trees: int, *, seed: int, most: int = 6) -> None:
        self._seed, self._most = seed, most
        self._paths: list[dict[int, tuple[int, ...]]] = [{0: ()} for _ in range(num_trees)]

    def root(self) -> Expansion:
        return self._found([(b, ()) for b in range(len(self._paths))])

    def step(self, trees: Any, parents: Any, actions: Any, slots: Any) -> Expansion:
        paths = []
        for b, parent, action, slot in zip(trees, parents, actions, slots, strict=True):
            path = (*self._paths[b][int(parent)], int(action))
            self._paths[b][int(slot)] = path
            paths.append((int(b), path))
        return self._found(paths)

    def _found(self, paths: list[tuple[int, tuple[int, ...]]]) -> Expansion:
        counts, actions, logits, rest = [], [], [], []
        for b, path in paths:
            rng = np.random.default_rng([self._seed, b, len(path), *path])
            over = bool(path) and rng.random() < 0.15
            count = 0 if over else int(rng.integers(1, self._most + 1))
            counts.append(count)
            actions += sorted(rng.choice(20, size=count, replace=False).tolist())
            logits += rng.normal(size=count).tolist()
            value, discount = (0.0, 0.0) if over else (rng.uniform(-1, 1), rng.choice([-1.0, 1.0, -1.0]))
            rest.append((value, rng.uniform(-1, 1) if over else 0.0, discount))
        value, reward, discount = (np.array(column, dtype=np.float32) for column in zip(*rest, strict=True))
        return Expansion(np.array(counts), np.array(actions, dtype=np.int64), np.array(logits, dtype=np.float32), value, reward, discount)


def same_tree(trees: Trees, b: int, slot: int, node: Node) -> int:
    """Compare a tree in arrays with one of objects; returns the number of nodes compared."""
    first, count = int(trees.start[b, slot]), int(trees.count[b, slot])
    assert (count, int(trees.visits[b, slot]) if count else 1) == (len(node.edges), node.visits)
    compared = 1
    for e, edge in zip(range(first, first + count), node.edges, strict=True):
        assert (trees.action[b, e], trees.n[b, e]) == (edge.action, edge.n)
        assert trees.w[b, e] == pytest.approx(edge.w, abs=1e-5)
        assert trees.prior[b, e] == pytest.approx(edge.prior, abs=1e-6)
        if edge.child is not None:
            compared += same_tree(trees, b, int(trees.child[b, e]), edge.child)
    return compared


@pytest.mark.parametrize("config", [
    SearchConfig(num_simulations=60), SearchConfig(num_simulations=60, c_init=3.0, fpu_reduction=0.0),
    SearchConfig(num_simulations=60, gumbel=True),
    SearchConfig(num_simulations=45, gumbel=True, gumbel_scale=1.0, max_considered=4, c_scale=0.1),
    SearchConfig(num_simulations=60, track_bounds=True), SearchConfig(num_simulations=60, track_bounds=True, q_range=1.0),
    SearchConfig(num_simulations=60, gumbel=True, track_bounds=True, min_range=0.7),
    SearchConfig(num_simulations=60, prove=True), SearchConfig(num_simulations=60, gumbel=True, prove=True),
])  # fmt: skip
def test_the_kernels_grow_the_same_trees_as_plain_python(config: SearchConfig) -> None:
    for seed in range(4):
        found = search(RandomModel(8, seed=seed), config, np.random.default_rng(seed))
        compared = 0
        for b in range(8):
            model = RandomModel(8, seed=seed)
            compared += same_tree(found.trees, b, 0, search_one(model, config, b, model.root(), found.gumbel[b]))
        assert compared > 200
        proven = (found.trees.least == found.trees.most) & (found.trees.count > 0)
        assert proven.any() == config.prove


def test_trees_side_by_side_do_not_touch_each_other() -> None:
    config = SearchConfig(num_simulations=40)
    together = search(RandomModel(8, seed=1), config, np.random.default_rng(0))
    budgets = np.array([40, 1, 17, 40, 5, 40, 40, 2])
    mixed = search(RandomModel(8, seed=1), config, np.random.default_rng(0), num_simulations=budgets)
    for b in np.flatnonzero(budgets == 40):
        np.testing.assert_array_equal(together.visits(20)[b], mixed.visits(20)[b])
    np.testing.assert_array_equal(mixed.visits(20).sum(axis=1), budgets)


class Bandit:
    """A root with three moves that end the game at once."""

    def __init__(self, reward: tuple[float, float, float] = (0.0, 1.0, -1.0)) -> None:
        self._reward = np.array(reward, dtype=np.float32)

    def root(self) -> Expansion:
        zero = np.zeros(1, dtype=np.float32)
        return Expansion(np.array([3]), np.arange(3), np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32)), zero, zero, zero)

    def step(self, trees: Any, parents: Any, actions: Any, slots: Any) -> Expansion:
        zero = np.zeros(len(actions), dtype=np.float32)
        none = np.zeros(0, dtype=np.int64)
        return Expansion(np.zeros(len(actions), dtype=np.int64), none, none.astype(np.float32), zero, self._reward[actions], zero)


def test_the_improved_value_by_hand() -> None:
    """Each move was visited once: Q = 0, 1, -1. Weights 0.5 e^.51, 0.3 e^1.02 and 0.2, where .51 = (50 + 1) 0.02 (Q + 1) / 2."""
    found = search(Bandit(), SearchConfig(num_simulations=3, gumbel=True, c_scale=0.02), np.random.default_rng(0))
    weights = np.array([0.5, 0.3, 0.2]) * np.exp([0.51, 1.02, 0.0])
    assert found.improved_value()[0] == pytest.approx((weights[1] - weights[2]) / weights.sum(), abs=1e-6)
    assert found.value()[0] == 0.0  # the mean also counts the two moves that were only tried


def test_the_improved_value_is_within_what_is_proven_and_counts_no_move_that_is_proven_worse() -> None:
    """Three moves that end the game at once, of which one wins. The mean counts what was only tried, the improved value does not."""
    for gumbel in (False, True):
        found = search(Bandit(), SearchConfig(num_simulations=3, gumbel=gumbel, prove=True, forced_playouts=2.0), np.random.default_rng(0))
        assert found.improved_value()[0] == 1.0
    free = search(Bandit(), SearchConfig(num_simulations=50), np.random.default_rng(0))
    forced = search(Bandit(), SearchConfig(num_simulations=50, forced_playouts=8.0), np.random.default_rng(0))
    assert forced.value()[0] < free.value()[0] - 0.1
    assert forced.improved_value()[0] > free.value()[0]


@pytest.mark.parametrize("gumbel", [False, True])
def test_the_value_that_is_learnt_is_not_pulled_down_by_moves_that_were_only_tried(gumbel: bool) -> None:
    """Positions of tic-tac-toe, a network that knows their values well and good moves not at all: bias and error against perfect play."""
    game, rng = Game("tic_tac_toe"), np.random.default_rng(0)
    known = probe(game)
    assert known is not None
    states = [game.state_of(h) for h in known.histories[::15]]
    truth = np.array([outcome(state) for state in states])
    every = [game.state_of(h) for h in known.histories]
    table = {p.tobytes(): 0.8 * outcome(s) for p, s in zip(game.look(every).planes, every, strict=True)}

    def network(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return rng.normal(size=(len(planes), 9)).astype(np.float32), np.array([table[p.tobytes()] for p in planes], dtype=np.float32)

    config = SearchConfig(num_simulations=16, gumbel=gumbel, gumbel_scale=1.0, c_scale=0.5, forced_playouts=0.0 if gumbel else 2.0)
    found = search(RulesAdapter(game, states, network), config, rng)
    mean, improved = found.value() - truth, found.improved_value() - truth
    assert mean.mean() < -0.2
    assert abs(improved.mean()) < 0.5 * abs(mean.mean())
    assert np.square(improved).mean() < (0.6 if gumbel else 0.9) * np.square(mean).mean()


def test_puct_by_hand() -> None:
    """Without reduction and with c = 1: scores of the first visits are P sqrt(N), then Q + P sqrt(N) / (1 + n)."""
    config = SearchConfig(num_simulations=1, c_init=1.0, c_base=1e9, fpu_reduction=0.0)

    def visits(simulations: int) -> list[int]:
        config_n = dataclasses.replace(config, num_simulations=simulations)
        return search(Bandit(), config_n, np.random.default_rng(0)).visits(3)[0].tolist()

    assert visits(1) == [1, 0, 0]  # the prior alone
    # N = 2: a: 0 + .5 sqrt(2) / 2 = .354; b: parent's mean 0 + .3 sqrt(2) = .424
    assert visits(2) == [1, 1, 0]
    # N = 3: b: 1 + .3 sqrt(3) / 2 = 1.26, the others below 1
    assert visits(3) == [1, 2, 0]
    assert visits(50)[1] > 40


def test_muzeros_values_are_within_0_and_1_beside_the_same_exploration() -> None:
    """As above, with Q scaled to [0, 1]. N = 2: a: 1/2 + .354, b: 1/2 + .424; N = 3: a: 1/2 + .433, b: 1 + .260, c: 2/3 + .346."""
    config = SearchConfig(num_simulations=3, c_init=1.0, c_base=1e9, fpu_reduction=0.0, q_range=1.0)
    assert search(Bandit(), config, np.random.default_rng(0)).visits(3)[0].tolist() == [1, 2, 0]

    def share(q_range: float) -> float:
        config = SearchConfig(num_simulations=400, c_init=4.0, fpu_reduction=0.0, q_range=q_range)
        return float(search(Bandit(), config, np.random.default_rng(0)).visits(3)[0, 1] / 400)

    assert share(1.0) < share(2.0) - 0.05, "half the range is twice the exploration"


def priors(game: Game, config: SearchConfig, num: int, explore: np.ndarray | None = None) -> np.ndarray:
    """Of the legal moves of `num` roots at a game's beginning, under a network that knows nothing, with the noise of `config`."""
    model = RulesAdapter(game, [game.new_state()] * num, lambda planes: (np.zeros((len(planes), game.num_actions), dtype=np.float32),
                                                                       np.zeros(len(planes), dtype=np.float32)))  # fmt: skip
    found = search(model, config, np.random.default_rng(0), explore=explore)
    return np.stack([found.trees.prior[b, found.root_edges(b)] for b in range(num)])


@pytest.mark.parametrize(("name", "least", "most"), [("tic_tac_toe", 4.5, 6.0), ("breakthrough", 6.0, 9.5), ("gomoku", 8.0, 12.0)])
def test_noise_has_about_as_many_moves_in_every_game(name: str, least: float, most: float) -> None:
    """1 / sum p^2 of the noise alone: 10 / legal moves each, whether there are 9, 22 of 768 or all 225."""
    noise = priors(Game(name), SearchConfig(num_simulations=1, dirichlet_alpha=None, dirichlet_fraction=1.0), 200)
    assert least < 1.0 / np.square(noise).sum(axis=1).mean() < most


def test_only_searches_that_explore_have_noise_and_forced_visits() -> None:
    game, explore = Game("tic_tac_toe"), np.array([True, False, False, True])
    config = SearchConfig(num_simulations=64, dirichlet_alpha=None, forced_playouts=8.0)
    noisy = priors(game, config, 4, explore)
    assert [bool(np.ptp(row) > 0.01) for row in noisy] == explore.tolist()
    bandit = SearchConfig(num_simulations=200, forced_playouts=8.0)
    free = search(Bandit(), dataclasses.replace(bandit, forced_playouts=0.0), np.random.default_rng(0))
    for explores in (True, False):
        found = search(Bandit(), bandit, np.random.default_rng(0), explore=np.array([explores]))
        assert (found.visits(3)[0].tolist() != free.visits(3)[0].tolist()) == explores


def test_the_most_considered_moves_are_halved_until_the_budget_is_spent() -> None:
    assert considered_visits(1, 4) == [0, 1, 2, 3]
    assert considered_visits(4, 8) == [0, 0, 0, 0, 1, 1, 2, 2]
    assert considered_visits(16, 32) == [0] * 16 + [1] * 8 + [2] * 4 + [3] * 4
    assert considered_visits(3, 2) == [0, 0]


@pytest.mark.parametrize(("most", "simulations"), [(2, 5), (4, 16), (7, 32), (16, 16), (16, 100)])
def test_sequential_halving_spends_its_budget_on_ever_fewer_moves(most: int, simulations: int) -> None:
    sequence = considered_visits(most, simulations)
    assert len(sequence) == simulations
    visits = [0] * most
    for wanted in sequence:
        visits[visits.index(wanted)] += 1
    assert sorted(visits, reverse=True) == visits
    assert visits[0] - visits[1] <= 1, "the last two are compared to the end"


def test_gumbel_plays_by_values_where_they_differ_and_by_logits_where_they_do_not() -> None:
    found = search(Bandit(), SearchConfig(num_simulations=16, gumbel=True), np.random.default_rng(0))
    assert found.best()[0] == 1
    policy = found.policy(3)[0]
    assert policy[1] > 0.99
    assert policy.sum() == pytest.approx(1.0)


def test_forced_visits_are_not_part_of_the_target() -> None:
    forced = search(Bandit(), SearchConfig(num_simulations=200, forced_playouts=8.0), np.random.default_rng(0))
    free = search(Bandit(), SearchConfig(num_simulations=200), np.random.default_rng(0))
    assert forced.visits(3)[0][2] > free.visits(3)[0][2]
    assert forced.policy(3)[0][2] <= free.policy(3)[0][2]


# On games


def blind(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A network that knows nothing."""
    return np.zeros((len(planes), 9 if planes.shape[-1] == 3 else 7), dtype=np.float32), np.zeros(len(planes), dtype=np.float32)


MODES = [
    SearchConfig(num_simulations=400), SearchConfig(num_simulations=400, gumbel=True), SearchConfig(num_simulations=400, num_leaves=8),
    SearchConfig(num_simulations=400, gumbel=True, prove=True), SearchConfig(num_simulations=400, num_leaves=8, prove=True),
]  # fmt: skip


@pytest.mark.parametrize("config", MODES, ids=["puct", "gumbel", "leaves", "gumbel-prove", "leaves-prove"])
@pytest.mark.parametrize(("history", "best", "sign"), [
    ([0, 3, 1, 4], 2, 1), ([8, 0, 3, 1, 4], 2, 1),  # three in a row now, for either colour
    ([0, 8, 1], 2, None),  # must block
    ([0, 1, 4, 8, 3], None, -1), ([0, 4, 3, 6, 5, 7], None, -1),  # two threats of the other, for either colour
])  # fmt: skip
def test_values_have_the_sign_of_whoever_moves(config: SearchConfig, history: list[int], best: int | None, sign: int | None) -> None:
    game = Game("tic_tac_toe")
    state = game.state_of(history)
    if state.is_terminal():
        pytest.fail("the position must be open")
    found = search(RulesAdapter(game, [state], blind), config, np.random.default_rng(0))
    if best is not None:
        assert found.best()[0] == best
    if sign is not None:
        assert np.sign(found.value()[0]) == sign


@pytest.mark.parametrize("gumbel", [False, True])
def test_search_finds_the_moves_of_perfect_play(gumbel: bool) -> None:
    game = Game("tic_tac_toe")
    known = probe(game)
    assert known is not None
    some = np.random.default_rng(0).choice(len(known.histories), 150, replace=False)
    states = [game.state_of(h) for h in known.histories[some]]
    found = search(RulesAdapter(game, states, blind), SearchConfig(num_simulations=800, gumbel=gumbel), np.random.default_rng(0))
    assert known.optimal[some, found.best()].mean() > 0.97


@pytest.mark.parametrize("gumbel", [False, True])
@pytest.mark.parametrize("simulations", [16, 200])
def test_what_a_search_proves_is_the_outcome_of_perfect_play(gumbel: bool, simulations: int) -> None:
    game, rng = Game("tic_tac_toe"), np.random.default_rng(0)
    known = probe(game)
    assert known is not None
    states = [game.state_of(h) for h in known.histories[::15]]

    def misled(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return rng.normal(size=(len(planes), 9)).astype(np.float32), np.tanh(rng.normal(size=len(planes))).astype(np.float32)

    found = search(RulesAdapter(game, states, misled), SearchConfig(num_simulations=simulations, gumbel=gumbel, prove=True), rng)
    least, most = found.trees.least[:, 0], found.trees.most[:, 0]
    truth = np.array([outcome(state) for state in states])
    assert ((least <= truth) & (truth <= most)).all()
    proven = least == most
    assert proven.mean() > (0.4 if simulations == 16 else 0.8)
    np.testing.assert_array_equal(found.value()[proven], truth[proven])
    assert known.optimal[::15][proven, found.best()[proven]].all()
    assert (found.policy(9)[proven][~known.optimal[::15][proven]] == 0.0).all(), "a proven loss is not learnt"


def test_of_proven_moves_only_the_best_are_candidates() -> None:
    """Moves with the bounds of a draw, anything, a loss and a win; then without the win, and without what is open."""
    found = search(Bandit(), SearchConfig(num_simulations=3, prove=True), np.random.default_rng(0))
    assert found.candidates.tolist() == [[False, True, False]]
    assert found.policy(3)[0].tolist() == [0.0, 1.0, 0.0]
    draw, open_, loss, win, at_least_draw = (0.0, 0.0), (-1.0, 1.0), (-1.0, -1.0), (1.0, 1.0), (0.0, 1.0)

    def candidates(*bounds: tuple[float, float]) -> list[bool]:
        found.__dict__.pop("candidates", None)
        found.trees.root_bounds = lambda: tuple(np.array([column]) for column in zip(*bounds, strict=True))  # type: ignore[method-assign]
        return [bool(x) for x in found.candidates[0]]

    assert candidates(draw, open_, loss, win) == [False, False, False, True]
    assert candidates(draw, open_, loss, loss) == [True, True, False, False]
    assert candidates(draw, at_least_draw, open_, loss) == [False, True, True, False]
    assert candidates(draw, loss, draw, loss) == [True, False, True, False]
    assert candidates(open_, loss, open_, loss) == [True, False, True, False]
    assert candidates(loss, loss, loss, loss) == [True, True, True, True]


def test_a_move_that_is_proven_worse_is_not_learnt_however_often_it_was_visited() -> None:
    """One visit each: without forced visits only the likeliest would be left, and of two that are lost none is better than the third."""
    config = SearchConfig(num_simulations=2, c_init=1.0, c_base=1e9, fpu_reduction=0.0, prove=True, forced_playouts=2.0)
    found = search(Bandit(), config, np.random.default_rng(0))
    assert found.visits(3)[0].tolist() == [1, 1, 0]
    assert found.policy(3)[0].tolist() == [0.0, 1.0, 0.0]
    lost = search(Bandit(reward=(-1.0, -1.0, 0.0)), config, np.random.default_rng(0))
    assert lost.visits(3)[0].tolist() == [1, 1, 0]
    assert lost.policy(3)[0].tolist() == [0.0, 0.0, 1.0]
    assert lost.best()[0] == 2


def test_a_search_knows_what_the_network_said_in_the_one_before() -> None:
    game, asked = Game("connect_four"), []

    def some(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked.append(len(planes))
        rows = planes.reshape(len(planes), -1)
        return np.sin(rows @ np.arange(84 * 7).reshape(84, 7)).astype(np.float32), np.tanh(rows[:, :42].sum(axis=1) / 20).astype(np.float32)

    config, rng = SearchConfig(num_simulations=60, gumbel=True), np.random.default_rng(0)
    states = [game.state_of(h) for h in ([], [3], [3, 3, 2])]
    model = RulesAdapter(game, states, some)
    found = search(model, config, rng)
    after = [s.child(int(a)) for s, a in zip(states, found.best(), strict=True)]
    fresh, informed = RulesAdapter(game, after, some), RulesAdapter(game, after, some, model.known(found.trees))
    alone, helped = (search(m, config, np.random.default_rng(1)) for m in (fresh, informed))
    np.testing.assert_array_equal(alone.visits(7), helped.visits(7))
    np.testing.assert_allclose(alone.policy(7), helped.policy(7), atol=1e-6)
    assert informed.evaluations + informed.duplicates == fresh.evaluations + fresh.duplicates
    assert informed.evaluations < 0.8 * fresh.evaluations


def test_search_finds_forced_wins_of_connect_four() -> None:
    game, solver = Game("connect_four"), ConnectFourSolver()
    known = probe(game)
    assert known is not None
    mates: list[tuple[list[int], int]] = []
    for history in known.histories:
        moves = [int(a) for a in history if a >= 0]
        if len(moves) >= 20 and len(mates) < 12:
            winning = [a for a, v in solver.values(moves).items() if v == 1]
            mates += [(moves, winning[0])] if len(winning) == 1 else []
    found = search(
        RulesAdapter(game, [game.state_of(m) for m, _ in mates], blind), SearchConfig(num_simulations=3000), np.random.default_rng(0)
    )
    assert np.mean(found.best() == [best for _, best in mates]) > 0.6, "one column in seven would be right by chance"


def test_equal_positions_are_evaluated_once() -> None:
    game, asked = Game("tic_tac_toe"), []

    def count(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked.extend(p.tobytes() for p in planes)
        return blind(planes)

    model = RulesAdapter(game, [game.new_state() for _ in range(16)], count)
    search(model, SearchConfig(num_simulations=30), np.random.default_rng(0))
    assert len(asked) == len(set(asked)) == model.evaluations
    assert model.duplicates > 10 * model.evaluations


def opinion(planes: np.ndarray, num_actions: int) -> tuple[np.ndarray, np.ndarray]:
    """A network whose logits differ from plane to plane and from action to action, each row by itself."""
    rows = planes.reshape(len(planes), -1)
    told = np.sin((rows * np.linspace(1.0, 50.0, rows.shape[1])).sum(axis=1))  # not @, which rounds differently in batches
    return np.sin(told[:, None] * np.arange(1, num_actions + 1)).astype(np.float32), np.tanh(told).astype(np.float32)


@pytest.mark.parametrize("name", [*playable_names(), "go(board_size=3)", "quoridor(board_size=3)"])
def test_logits_are_those_of_the_legal_moves_whatever_was_evaluated_before(name: str) -> None:
    """In random games planes may be equal where legal moves differ: what is kept of one position must not serve the other."""
    short, _, size = name.partition("(board_size=")
    game, rng = Game(short, {"board_size": int(size[:-1])} if size else {}), np.random.default_rng(0)
    states: list[Any] = []
    while len(states) < 150:
        state = game.new_state()
        while not state.is_terminal() and len(states) < 150:
            states.append(state)
            moves = state.legal_actions()
            state = state.child(moves[min(int(rng.geometric(0.2)) - 1, len(moves) - 1)])  # mostly the same few, so that positions recur
    model = RulesAdapter(game, states, lambda planes: opinion(planes, game.num_actions))
    found, seen = model.root(), game.look(states)
    logits, value = opinion(seen.planes, game.num_actions)
    assert found.counts.tolist() == seen.num_legal.tolist()
    np.testing.assert_allclose(found.logits, logits[np.repeat(np.arange(len(states)), seen.num_legal), seen.legal], atol=1e-4)
    np.testing.assert_allclose(found.value, value, atol=1e-4)
    known = model.known(trees_of(found))
    later = RulesAdapter(game, states, lambda planes: pytest.fail("all of it is known"), known)
    np.testing.assert_allclose(later.root().value, found.value)


def trees_of(found: Expansion) -> Trees:
    """Trees with nothing but roots."""
    trees, everyone = Trees(len(found.counts), 1, int(found.counts.max())), np.arange(len(found.counts))
    trees.add(everyone, np.full(len(everyone), -1), found.counts, found.actions, found.logits, found.value)
    return trees


def test_positions_with_equal_planes_and_other_legal_moves_are_searched_together() -> None:
    """The two roots differ in what ko forbids, or in nothing that planes show: each has the logits of its own moves."""
    game = Game("go", {"board_size": 3})
    states = [game.state_of(h) for h in ([2, 7, 0, 5, 4, 6, 8], [0, 6, 2, 7, 8, 9, 4], [0])]
    look = game.look
    game.look = lambda some: (seen := look(some))._replace(planes=np.ascontiguousarray(seen.planes[:, [0, 1, 2, 4]]))  # type: ignore[method-assign]
    model = RulesAdapter(game, states, lambda planes: opinion(planes, 10))
    found = search(model, SearchConfig(num_simulations=20, gumbel=True), np.random.default_rng(0))
    assert found.trees.count[:, 0].tolist() == [1, 2, 9]
    alone = [search(RulesAdapter(game, [s], lambda planes: opinion(planes, 10)), SearchConfig(num_simulations=20, gumbel=True),
                    np.random.default_rng(0)) for s in states]  # fmt: skip
    for b, one in enumerate(alone):
        np.testing.assert_allclose(found.trees.prior[b, found.root_edges(b)], one.trees.prior[0, one.root_edges(0)], atol=1e-6)


@pytest.mark.parametrize(("column", "short"), [("actions", 11), ("logits", 11), ("logits", 13), ("value", 2), ("counts", 2)])
def test_a_model_whose_answer_has_the_wrong_length_is_refused_before_a_kernel_reads_it(column: str, short: int) -> None:
    class Wrong(RandomModel):
        def root(self) -> Expansion:
            nothing = np.zeros(3, dtype=np.float32)
            whole = Expansion(np.full(3, 4), np.arange(12), np.zeros(12, dtype=np.float32), nothing, nothing, nothing)
            return whole._replace(**{column: np.resize(getattr(whole, column), short)})

    with pytest.raises(ValueError, match="one action and one logit for each of"):
        search(Wrong(3, seed=0), SearchConfig(num_simulations=4), np.random.default_rng(0))


@pytest.mark.parametrize("column", ["logits", "value", "reward"])
def test_a_network_that_is_not_finite_is_not_searched_with(column: str) -> None:
    class Broken(RandomModel):
        def step(self, trees: Any, parents: Any, actions: Any, slots: Any) -> Expansion:
            found = super().step(trees, parents, actions, slots)
            return found._replace(**{column: getattr(found, column) * np.float32("nan")})

    with pytest.raises(NonFiniteError, match="not finite"):
        search(Broken(3, seed=0), SearchConfig(num_simulations=40), np.random.default_rng(0))


def test_edges_grow_when_positions_have_more_moves_than_the_first() -> None:
    model = RandomModel(3, seed=5, most=20)
    found = search(model, SearchConfig(num_simulations=120), np.random.default_rng(0))
    assert (found.trees.used <= found.trees.action.shape[1]).all()
    np.testing.assert_array_equal(found.visits(20).sum(axis=1), 120)
