"""MuZero: its targets and losses by hand, its search beside AlphaZero's, its replay, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from launch import run_main
from nested import settings_of
from torch import Tensor

from rlx.algos.muzero import MuZero
from rlx.build import env_spec
from rlx.columns import Column
from rlx.config.algos.muzero_config import Layers, MuZeroConfig
from rlx.config.algos.search_config import SearchRule
from rlx.config.schema import EnvConfig
from rlx.envs.games.openspiel import Game
from rlx.envs.registry import VectorEnvFactory
from rlx.errors import ConfigError
from rlx.models.latent import Bins, FrozenLatent, make_net, scale_latent
from rlx.planning.adapters.game_rules import RulesAdapter
from rlx.planning.adapters.latent_tree import LatentAdapter
from rlx.planning.search import SearchConfig, search
from rlx.planning.tree import Trees
from rlx.replay import SequenceReplay
from rlx.tree_ops import map_tree
from rlx.types import EnvSpec, Rollout

CPU = torch.device("cpu")
GAME = Game("tic_tac_toe")
POLE = EnvSpec(id="pole", observation_space=gymnasium.spaces.Box(-1, 1, (4,)), action_space=gymnasium.spaces.Discrete(2))
BOARD = EnvSpec(
    id="spiel:tic_tac_toe", observation_space=gymnasium.spaces.Box(-1, 8, (9,)), action_space=gymnasium.spaces.Discrete(9), game=GAME
)


def muzero(spec: EnvSpec = POLE, num_envs: int = 2, **settings: Any) -> MuZero:
    small: dict[str, Any] = {"num_channels": 16, "num_simulations": 4, "batch_size": 8, "replay_start": 16, "replay_size": 500}
    return MuZero(settings_of(MuZeroConfig, **small | settings), spec, num_envs, CPU)


# The search


class TrueRules:
    """The rules of tic-tac-toe as a latent model: a latent is the list of the actions so far. Nothing follows the end of a game."""

    def __init__(self) -> None:
        self.calls = 0
        self._cells = np.random.default_rng(5).normal(size=(27, 10)).astype(np.float32)

    def evaluate(self, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A made-up network, for both searches."""
        out = planes.reshape(len(planes), -1) @ self._cells[: planes[0].size]
        return 0.3 * out[:, :9], np.tanh(out[:, 9])

    def root(self, obs: Tensor) -> tuple[Tensor, np.ndarray, np.ndarray]:
        self.calls += 1
        return obs, *self._predict(obs)

    def expand(self, latent: Tensor, action: Tensor) -> tuple[Tensor, np.ndarray, np.ndarray, np.ndarray]:
        self.calls += 1
        latent, reward = latent.clone(), np.zeros(len(latent), dtype=np.float32)
        for i, row in enumerate(latent):
            state = GAME.state_of(row.tolist())
            if not state.is_terminal():
                who = state.current_player()
                row[int((row >= 0).sum())] = action[i]
                state.apply_action(int(action[i]))
                reward[i] = state.player_return(who) if state.is_terminal() else 0.0
        return latent, reward, *self._predict(latent)

    def _predict(self, latent: Tensor) -> tuple[np.ndarray, np.ndarray]:
        states = [GAME.state_of(row.tolist()) for row in latent]
        seen = GAME.look(states)
        logits, value = self.evaluate(seen.planes)
        for i, state in enumerate(states):
            allowed = state.legal_actions()
            if state.is_terminal():
                value[i] = 0.0
            else:
                logits[i, [a for a in range(9) if a not in allowed]] = -1e9
        return logits, value


HISTORIES = [[], [4, 0], [0, 4, 8], [0, 3, 1, 4], [4, 0, 8, 2, 1]]


def histories() -> np.ndarray:
    rows = np.full((len(HISTORIES), 9), -1)
    for row, history in zip(rows, HISTORIES, strict=True):
        row[: len(history)] = history
    return rows


@pytest.mark.parametrize("config", [
    SearchConfig(num_simulations=60, gumbel=True), SearchConfig(num_simulations=45, gumbel=True, gumbel_scale=1.0, c_scale=0.1),
    SearchConfig(num_simulations=60, gumbel=True, track_bounds=True), SearchConfig(num_simulations=60, fpu_reduction=3.0, c_init=4.0),
])  # fmt: skip
def test_a_model_that_equals_the_rules_gives_the_same_tree_as_the_rules(config: SearchConfig) -> None:
    rules = TrueRules()
    states = [GAME.state_of(row) for row in HISTORIES]
    legal = np.array([[a in s.legal_actions() for a in range(9)] for s in states])
    known = search(RulesAdapter(GAME, states, rules.evaluate), config, np.random.default_rng(1))
    latent = LatentAdapter(rules, torch.from_numpy(histories()), legal, discount=-1.0, num_nodes=config.num_simulations + 2)
    learned = search(latent, config, np.random.default_rng(1))

    def same(b: int, s: int, other: int) -> int:
        """Compare two nodes of both trees, below which the learned one may also know of actions that are against the rules."""

        def edges(trees: Trees, slot: int) -> dict[int, int]:
            first = int(trees.start[b, slot])
            return {int(trees.action[b, e]): e for e in range(first, first + int(trees.count[b, slot]))}

        one, two, compared = edges(known.trees, s), edges(learned.trees, other), 1
        for action, e in one.items():
            f = two[action]
            assert known.trees.n[b, e] == learned.trees.n[b, f]
            assert known.trees.w[b, e] == pytest.approx(learned.trees.w[b, f], abs=1e-5)
            assert known.trees.prior[b, e] == pytest.approx(learned.trees.prior[b, f], abs=1e-6)
            child = int(known.trees.child[b, e])
            if child >= 0 and known.trees.count[b, child]:  # below the end of a game only the learned model goes on
                compared += same(b, child, int(learned.trees.child[b, f]))
        assert all(learned.trees.n[b, f] == 0 for action, f in two.items() if action not in one)
        return compared

    assert sum(same(b, 0, 0) for b in range(len(states))) > 50
    np.testing.assert_allclose(known.value(), learned.value(), atol=1e-5)
    np.testing.assert_array_equal(known.best(), learned.best())


def test_the_network_is_called_once_for_each_simulation_of_all_trees() -> None:
    rules = TrueRules()
    legal = np.array([[a not in row for a in range(9)] for row in HISTORIES])
    model = LatentAdapter(rules, torch.from_numpy(histories()), legal, discount=-1.0, num_nodes=22)
    found = search(model, SearchConfig(num_simulations=20, gumbel=True), np.random.default_rng(0))
    assert rules.calls == model.calls == 21  # and once for the roots
    assert (found.visits(9).sum(axis=1) == 20).all()
    assert (found.visits(9)[1, [0, 4]] == 0).all()


def test_latents_of_different_trees_do_not_mix() -> None:
    net = make_net((4,), 3, 7, num_channels=8, num_blocks=1, convolve=False)
    torch.nn.init.normal_(net.heads.weight)
    frozen = FrozenLatent(net, Bins(10.0, 7))
    obs, config = torch.randn(6, 4), SearchConfig(num_simulations=12, gumbel=True, track_bounds=True)

    def visits(rows: Tensor) -> np.ndarray:
        model = LatentAdapter(frozen, rows, np.ones((len(rows), 3), dtype=bool), discount=0.9, num_nodes=14)
        return search(model, config, np.random.default_rng(0)).trees.w[:, :30]

    np.testing.assert_allclose(visits(obs)[2], visits(obs[2:3])[0], rtol=1e-3, atol=1e-5)


# The networks


@pytest.mark.parametrize("shape", [(5,), (3, 4, 4)])
def test_a_frozen_copy_says_what_the_network_says(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net, bins = make_net(shape, 3, 11, num_channels=8, num_blocks=2, convolve=len(shape) == 3), Bins(5.0, 11)
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    for _ in range(3):  # so that running statistics are not those of the beginning
        net.predict(net.step(net.represent(torch.randn(16, *shape)), torch.randint(3, (16,))))
    net.eval()
    obs, action = torch.randn(6, *shape), torch.randint(3, (6,))
    frozen = FrozenLatent(net, bins)
    latent, logits, value = frozen.root(obs)
    with torch.no_grad():
        own = net.represent(obs)
        own_logits, own_value = net.predict(own)
        after = net.step(own, action)
    np.testing.assert_allclose(logits, own_logits, atol=1e-5)
    np.testing.assert_allclose(value, bins.decode(own_value), atol=1e-4)
    latent, reward, _, _ = frozen.expand(latent, action)
    np.testing.assert_allclose(np.asarray(latent), after, atol=1e-5)
    np.testing.assert_allclose(reward, bins.decode(net.reward_after(after)).detach(), atol=1e-4)
    assert after.min() == 0.0
    assert after.max() == 1.0


def test_a_constant_latent_is_scaled_to_zero_and_not_divided_by_zero() -> None:
    assert scale_latent(torch.full((2, 3), 7.0)).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("limit", [1.0, 300.0])
def test_numbers_survive_their_bins(limit: float) -> None:
    bins = Bins(limit, 51)
    x = torch.linspace(-limit, limit, 201)
    encoded = bins.encode(x)
    assert torch.allclose(encoded.sum(-1), torch.ones(201))
    assert ((encoded > 0).sum(-1) <= 2).all()
    assert torch.allclose(bins.decode(encoded.clamp(min=1e-30).log()), x, atol=1e-4 * limit)
    assert bins.decode(bins.encode(torch.tensor([2 * limit])).clamp(min=1e-30).log()).item() == pytest.approx(limit, rel=1e-4)


# The replay


def replay(num_envs: int = 2, capacity: int = 12, ahead: int = 2, exponent: float = 1.0) -> SequenceReplay:
    columns = {"x": Column(torch.float32), "is_last": Column(torch.bool)}
    return SequenceReplay(capacity, num_envs, columns, ahead=ahead, exponent=exponent, correction=1.0)


def fill(memory: SequenceReplay, steps: int, *, begin: int = 0, ends: tuple[tuple[int, int], ...] = ()) -> None:
    """Add one step at a time; x is the step plus 100 times the environment."""
    for t in range(begin, begin + steps):
        x = torch.tensor([[t + 100.0 * b for b in range(memory.num_envs)]])
        memory.add({}, x=x, is_last=torch.tensor([[(t, b) in ends for b in range(memory.num_envs)]]))


def drawn(memory: SequenceReplay) -> set[float]:
    torch.manual_seed(0)
    index, _ = memory.draw(500)
    return set(memory.rows["x"][index].tolist())


def test_a_step_is_drawn_once_it_is_known_what_came_after_it() -> None:
    memory = replay()
    fill(memory, 2)
    assert memory.num_ready == 0
    fill(memory, 1, begin=2, ends=((2, 1),))  # step 0 of environment 0 is two steps back; the episode of environment 1 has ended
    assert drawn(memory) == {0.0, 100.0, 101.0, 102.0}
    assert memory.num_ready == 4
    uniform = memory.rows["x"][memory.draw_uniformly(4_000)]
    shares = {x: float((uniform == x).float().mean()) for x in drawn(memory)}
    assert list(shares.values()) == pytest.approx([0.25] * 4, abs=0.03)


def test_the_oldest_steps_are_forgotten_and_windows_run_in_the_order_of_time() -> None:
    memory = replay()
    fill(memory, 10)  # six steps of each environment are kept: 4 to 9
    assert drawn(memory) == {4.0, 5.0, 6.0, 7.0, 104.0, 105.0, 106.0, 107.0}
    index, _ = memory.draw(50)
    windows = memory.windows("x", index, 3)
    assert torch.equal(windows, memory.rows["x"][index][:, None] + torch.arange(3))


def test_steps_are_drawn_in_proportion_to_their_errors_and_weighted_against_it() -> None:
    memory = replay(num_envs=1, ahead=1)
    fill(memory, 4)
    memory.prioritise(torch.tensor([0, 1, 2]), torch.tensor([3.0, -6.0, 0.0]))
    index, weight = memory.draw(30_000)
    share = torch.bincount(index, minlength=4) / len(index)
    np.testing.assert_allclose(share, [1 / 3, 2 / 3, 0, 0], atol=0.02)
    by_row = {int(i): float(w) for i, w in zip(index, weight, strict=True)}
    assert by_row[1] / by_row[0] == pytest.approx(0.5, rel=1e-2)
    assert max(by_row.values()) == pytest.approx(1.0)
    fill(memory, 1, begin=4)
    assert 3.0 in drawn(memory)  # what is new counts as much as the worst


def test_a_replay_goes_on_where_it_was_saved() -> None:
    one, two = replay(), replay()
    fill(one, 7, ends=((3, 0),))
    two.load_state_dict(one.state_dict())
    for memory in (one, two):
        fill(memory, 2, begin=7)
    torch.manual_seed(1)
    first = one.draw(20)
    torch.manual_seed(1)
    second = two.draw(20)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


# Targets


def rollout(algo: MuZero, obs: Tensor, reward: list[float], *, terminated: bool = False, truncated: bool = False, **extras: Any) -> Rollout:
    """One step of one environment, with action 1."""
    ended = terminated or truncated
    flag = lambda x: torch.tensor([[x]])  # noqa: E731
    shown = {
        "obs": obs[None], "legal": torch.ones(1, 1, algo.num_actions, dtype=torch.bool), "player": torch.zeros(1, 1, dtype=torch.long),
        "policy": torch.full((1, 1, algo.num_actions), 1.0 / algo.num_actions), "root_value": torch.zeros(1, 1),
        "depth": torch.zeros(1, 1), "spent": torch.ones(1, 1, 4),
    }  # fmt: skip
    return Rollout(
        all_obs=torch.stack([obs, obs]), action=torch.ones(1, 1, dtype=torch.long), reward=torch.tensor([reward]),
        terminated=flag(terminated), truncated=flag(truncated), is_first=flag(False), final_t=torch.zeros(int(ended), dtype=torch.long),
        final_b=torch.zeros(int(ended), dtype=torch.long), final_obs=obs[: int(ended)], carry=(), extras=shown | extras,
    )  # fmt: skip


def expect(algo: MuZero, value: Callable[[float], float]) -> None:
    """Let the network's value of an observation be a function of its first number."""
    algo._frozen.root = lambda obs: (  # type: ignore[method-assign]
        obs, np.zeros((len(obs), 2)), np.array([value(x) for x in obs[:, 0].tolist()], dtype=np.float32)
    )  # fmt: skip


def remember_steps(algo: MuZero, steps: list[tuple[float, str]]) -> None:
    """Steps with their rewards and how the episode ends with them; the i-th observes i, and beyond a cut i is observed again."""
    for i, (reward, end) in enumerate(steps):
        ends: dict[str, bool] = {end: True} if end else {}
        algo._add_to_replay(rollout(algo, torch.full((1, 4), float(i)), [reward], **ends))


STEPS = [(1.0, ""), (2.0, ""), (4.0, "terminated"), (8.0, ""), (16.0, "truncated"), (0.0, "")]


def test_targets_by_hand_with_a_termination_and_a_cut() -> None:
    """d = 0.5, n = 2, K = 2. Rewards 1, 2, 4 and a termination; then 8, 16 and a cut, after which 50 is expected."""
    algo = muzero(num_envs=1, discount=0.5, td_steps=2, num_unroll_steps=2)
    remember_steps(algo, STEPS)
    expect(algo, lambda obs: 10.0 * (obs + 1.0))
    unroll = algo.targets(torch.arange(5))
    assert unroll.obs[:, 0].tolist() == [0, 1, 2, 3, 4]
    first = [1 + 1 + 0.25 * 30, 2 + 0.5 * 4, 4.0, 8 + 0.5 * (16 + 0.5 * 50), 16 + 0.5 * 50]
    assert unroll.value[:, 0].tolist() == first
    assert unroll.value[:3].tolist() == [first[:3], [first[1], first[2], 0.0], [first[2], 0.0, 0.0]]
    assert unroll.reward[:3].tolist() == [[1.0, 2.0], [2.0, 4.0], [4.0, 0.0]]
    assert unroll.has_policy.tolist()[1:3] == [[True, True, False], [True, False, False]]
    assert unroll.has_value.tolist()[1:3] == [[True] * 3] * 2  # behind a termination nothing is worth 0, and that is learnt
    assert unroll.has_value.tolist()[3:] == [[True, True, False], [True, False, False]]  # what a cut hid is not
    assert unroll.action[0].tolist() == [1, 1]


def test_targets_bootstrap_from_the_network_as_it_is_and_not_as_it_was() -> None:
    """The same steps under two networks, of which one expects 10 more: n steps ahead, and beyond the cut, d^n of that is in the target."""
    algo = muzero(num_envs=1, discount=0.5, td_steps=2, num_unroll_steps=2)
    expect(algo, lambda obs: obs)
    remember_steps(algo, STEPS)
    before = algo.targets(torch.arange(5)).value
    expect(algo, lambda obs: obs + 10.0)
    change = algo.targets(torch.arange(5)).value - before
    assert change.tolist() == [[2.5, 0, 0], [0, 0, 0], [0, 0, 0], [2.5, 5, 0], [5, 0, 0]]


def test_what_was_observed_beyond_a_cut_is_forgotten_with_its_step_and_restored() -> None:
    algo = muzero(num_envs=1, replay_size=8, replay_start=4, batch_size=4, td_steps=2, num_unroll_steps=1)
    remember_steps(algo, [(1.0, "truncated"), *[(1.0, "")] * 5])
    assert algo.replay.beyond(torch.tensor([0])).tolist() == [[0.0] * 4]
    remember_steps(algo, [(1.0, "")] * 2 + [(1.0, "truncated")])  # the ninth step takes the place of the first
    assert algo.replay.beyond(torch.tensor([0])).tolist() == [[2.0] * 4]
    remember_steps(algo, [(1.0, "")] * 8)
    with pytest.raises(KeyError):
        algo.replay.beyond(torch.tensor([0]))
    remember_steps(algo, [(1.0, ""), (1.0, "truncated")])
    copy = muzero(num_envs=1, replay_size=8, replay_start=4, batch_size=4, td_steps=2, num_unroll_steps=1)
    copy.load_state_dict(algo.state_dict())
    assert torch.equal(copy.replay.beyond(torch.tensor([2])), algo.replay.beyond(torch.tensor([2])))


def test_in_games_the_outcome_counts_for_whoever_moved() -> None:
    """X (player 0) wins with the fifth move: worth 1 to X and -1 to O, all the way back."""
    algo = muzero(BOARD, num_envs=1, symmetries=False, num_unroll_steps=2)
    moves = [0, 3, 1, 4, 2]
    for ply in range(5):
        seen = GAME.look([GAME.state_of(moves[:ply])])
        obs, won = torch.from_numpy(seen.planes), ply == 4
        algo._add_to_replay(rollout(algo, obs, [float(won)], terminated=won, player=torch.tensor([[ply % 2]])))
    unroll = algo.targets(torch.arange(5))
    assert unroll.value.tolist() == [[1, -1, 1], [-1, 1, -1], [1, -1, 1], [-1, 1, 0], [1, 0, 0]]
    assert unroll.reward.tolist() == [[0, 0], [0, 0], [0, 0], [0, 1], [1, 0]]
    assert algo.replay.num_ready == 5


def test_turned_positions_keep_their_moves() -> None:
    """Under every symmetry the action's cell is empty before it and the mover's after it, as it was on the board that was played."""
    algo = muzero(BOARD, num_envs=1, num_unroll_steps=1)
    game = [4, 0, 8, 2]
    for ply, move in enumerate(game):
        seen = GAME.look([GAME.state_of(game[:ply])])
        step = rollout(algo, torch.from_numpy(seen.planes), [0.0], terminated=ply == 3, player=torch.tensor([[ply % 2]]))
        step.action[:] = move
        step.extras["policy"] = torch.nn.functional.one_hot(torch.tensor([[move]]), 9).float()
        algo._add_to_replay(step)
    turns = set()
    for seed in range(40):
        torch.manual_seed(seed)
        unroll = algo.targets(torch.arange(3))
        assert torch.equal(unroll.policy[:, 0].argmax(-1), unroll.action[:, 0])
        for i in (1, 2):
            assert unroll.obs[i].flatten(1)[:, unroll.action[i, 0]].sum() == 0
        turns.add(int(unroll.action[1, 0]))
    assert turns == {0, 2, 6, 8}


def test_one_batch_can_be_learnt_by_heart() -> None:
    torch.manual_seed(0)
    algo = muzero(num_envs=4, learning_rate=3e-3, num_unroll_steps=3, num_channels=64, weight_decay=0.0)
    for t in range(12):
        obs, ended = torch.randn(4, 4), t in (5, 11)
        policy = torch.rand(1, 4, 2).softmax(-1)
        step = Rollout(
            all_obs=torch.stack([obs, obs]), action=torch.randint(2, (1, 4)), reward=torch.randn(1, 4).round(),
            terminated=torch.full((1, 4), ended), truncated=torch.zeros(1, 4).bool(), is_first=torch.zeros(1, 4).bool(),
            final_t=torch.zeros(4 * ended, dtype=torch.long), final_b=torch.arange(4 * ended), final_obs=obs[: 4 * ended], carry=(),
            extras={"obs": obs[None], "legal": torch.ones(1, 4, 2, dtype=torch.bool), "player": torch.zeros(1, 4), "policy": policy,
                    "root_value": torch.zeros(1, 4)},
        )  # fmt: skip
        algo._add_to_replay(step)
    unroll = algo.targets(torch.arange(24))
    floor = -(unroll.policy * unroll.policy.log()).nan_to_num() * unroll.has_policy[..., None]
    scale = torch.tensor([1.0, 1 / 3, 1 / 3, 1 / 3])
    for _ in range(400):
        losses, value = algo.losses(unroll)
        algo.optimizer.zero_grad()
        (losses["policy"] + losses["value"] + losses["reward"]).mean().backward()
        algo.optimizer.step()
    assert losses["policy"].mean() < (scale * floor.sum(-1)).sum(1).mean() + 0.05
    assert (value - unroll.value[:, 0]).abs().mean() < 0.1


# What it refuses


def test_continuous_actions_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_main("train algo=muzero env=pendulum", monkeypatch) == 2
    assert "searches over discrete actions, and env=Pendulum-v1 has action space Box" in " ".join(capsys.readouterr().err.split())


def test_players_who_do_not_take_turns_are_refused() -> None:
    game = Game("dots_and_boxes")
    spec = EnvSpec(id="spiel:dots_and_boxes", observation_space=POLE.observation_space, action_space=POLE.action_space, game=game)
    with pytest.raises(ConfigError, match=r"its players do not take turns.*try algo=alphazero"):
        muzero(spec)


def test_convolutions_over_what_is_no_board_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"algo.layers=conv needs boards or images, and env=pole has observations of shape \(4,\)"):
        muzero(layers=Layers.conv)


@pytest.mark.parametrize(("settings", "message"), [
    ({"discount": 1.5}, "algo.discount must be within"), ({"td_steps": 0}, "algo.td_steps must be at least 1, or null"),
    ({"value_limit": -1.0}, "algo.value_limit must be above 0"), ({"num_bins": 1}, "algo.num_bins must be at least 2"),
    ({"min_return_range": 0.0}, "algo.search.min_return_range must be above 0"),
    ({"replay_start": 4}, "algo.replay_start must be at least algo.batch_size=8"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        muzero(**settings)


def test_grid_worlds_are_seen_as_boards() -> None:
    env = VectorEnvFactory("rlx/Sokoban-v0")(2)
    spec = env_spec(EnvConfig(id="rlx/Sokoban-v0"), env)
    algo = muzero(spec, layers=Layers.conv)
    obs, _ = env.reset(seed=np.arange(2))
    action, _, extras = algo.act(torch.from_numpy(obs), (), torch.ones(2, dtype=torch.bool), mode="train")
    assert extras["obs"].shape == (2, 4, 7, 7)
    assert action.shape == (2,)


def test_actions_are_legal_and_random_before_there_is_a_model() -> None:
    for search_rule in SearchRule:
        algo = muzero(BOARD, num_envs=3, rule=search_rule)
        obs = map_tree(torch.from_numpy, GAME.observe([GAME.state_of(row) for row in HISTORIES]))
        for mode in ("train", "eval"):
            action, _, extras = algo.act(obs, (), torch.zeros(len(HISTORIES), dtype=torch.bool), mode=mode)  # type: ignore[arg-type]
            for a, row, policy in zip(action.tolist(), HISTORIES, extras["policy"], strict=True):
                legal = GAME.state_of(row).legal_actions()
                assert a in legal
                assert policy[legal].sum() == pytest.approx(1.0)
