"""AlphaGo: its phases, what each of them learns from, its search with rollouts, and its parts as players."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import run_main
from nested import settings_of

from rlx.algos.alphago import AlphaGo, Phase
from rlx.collect import Collector
from rlx.config.algos.alphago_config import AlphaGoConfig, Part, ValueData
from rlx.envs.games.openspiel import Game
from rlx.envs.games.selfplay import SelfPlayVectorEnv
from rlx.errors import ConfigError, NonFiniteError
from rlx.nn.resnet import descend
from rlx.planning.adapters.game_rules import RulesAdapter
from rlx.planning.adapters.playouts import LinearPolicy, PlayoutAdapter, play_out, sample_legal
from rlx.planning.search import SearchConfig, search
from rlx.tree_ops import map_tree
from rlx.types import EnvSpec, Progress

CPU = torch.device("cpu")
TINY = {"num_blocks": 1, "num_channels": 8, "num_simulations": 8, "batch_size": 32, "replay_size": 4000, "num_expert_simulations": 20,
        "expert_fraction": 0.3, "reinforce_fraction": 0.4, "games_per_update": 8, "snapshot_every": 4}  # fmt: skip


def make(game: Game | None = None, num_envs: int = 8, **settings: Any) -> tuple[AlphaGo, Collector]:
    torch.manual_seed(0)
    env = SelfPlayVectorEnv(game or Game("tic_tac_toe"), num_envs)
    spec = EnvSpec(id="x", observation_space=env.single_observation_space, action_space=env.single_action_space, game=env.game)
    algo = AlphaGo(settings_of(AlphaGoConfig, **{**TINY, **settings}), spec, num_envs, CPU)
    collector = Collector(env, algo, seed=0)
    collector.reset()
    return algo, collector


def run(algo: AlphaGo, collector: Collector, until: float, total: int = 4000, progress: Progress | None = None) -> list[dict[str, Any]]:
    progress, lines = progress or Progress(total_env_steps=total), []
    while progress.env_steps < until * total:
        rollout, _ = collector.collect(1)
        progress.advance(rollout)
        lines.append(dict(algo.update(rollout, progress)))
    return lines


def uniform(game: Game) -> LinearPolicy:
    return LinearPolicy(np.zeros((game.num_actions, int(np.prod(game.planes_shape))), dtype=np.float32), np.zeros(game.num_actions))


def test_the_phases_follow_from_the_env_steps() -> None:
    algo, collector = make()
    lines = run(algo, collector, 1.0, total=1600)
    phases = [line["train/phase"] for line in lines]
    assert phases == sorted(phases)
    assert [phases.count(float(p)) for p in Phase] == [60, 80, 60]
    assert {p for p in Phase if any("loss/supervised" in line for line, at in zip(lines, phases, strict=True) if at == p)} == {Phase.expert}
    assert {p for p in Phase if any("loss/policy" in line for line, at in zip(lines, phases, strict=True) if at == p)} == {Phase.reinforce}
    assert {p for p in Phase if any("loss/value" in line for line, at in zip(lines, phases, strict=True) if at == p)} == {Phase.value}


def test_the_supervised_policy_imitates_what_experts_would_play_not_the_random_moves_between() -> None:
    game = Game("tic_tac_toe")
    algo, collector = make(
        game, expert_random_moves=0.5, expert_fraction=0.9, reinforce_fraction=0.05, replay_ratio=1e-9, num_expert_simulations=500
    )
    run(algo, collector, 0.2)
    planes, label, _ = algo.expert_moves[torch.arange(algo.expert_moves.size)]
    assert torch.equal(label.sum(dim=1), torch.ones(len(label)))
    wins = [i for i in range(len(planes)) if _winning(planes[i])]
    assert len(wins) > 20
    taken = np.mean([int(label[i].argmax()) in _winning(planes[i]) for i in wins])
    assert taken > 0.95, "an expert that sees a win takes it, though half of the moves played are random"


def _winning(planes: torch.Tensor) -> set[int]:
    """Cells that complete a line of the player to move."""
    own, other = planes[0].flatten().bool().tolist(), planes[1].flatten().bool().tolist()
    lines = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)]
    found = set()
    for line in lines:
        empty = [c for c in line if not own[c] and not other[c]]
        if len(empty) == 1 and sum(own[c] for c in line) == 2:
            found.add(empty[0])
    return found


def test_the_supervised_policy_learns_what_experts_play() -> None:
    algo, collector = make(
        expert_fraction=0.9, reinforce_fraction=0.05, num_envs=32, replay_ratio=8.0, num_channels=16, num_expert_simulations=100
    )
    lines = run(algo, collector, 0.9, total=2400)
    accuracy = [line["supervised/new_game_accuracy"] for line in lines if "supervised/new_game_accuracy" in line]
    assert np.mean(accuracy[-20:]) > np.mean(accuracy[:5]) + 0.2


def test_the_policy_gradient_begins_at_the_supervised_policy_and_its_pool_grows() -> None:
    algo, collector = make()
    progress = Progress(total_env_steps=4000)
    run(algo, collector, 0.3, progress=progress)
    before = {name: tensor.clone() for name, tensor in algo.supervised.state_dict().items()}
    assert all(torch.equal(before[name], tensor) for name, tensor in algo.policy.state_dict().items())
    assert len(algo._pool) == 1
    run(algo, collector, 0.7, progress=progress)
    assert all(torch.equal(before[name], tensor) for name, tensor in algo.supervised.state_dict().items()), "it stays as it was"
    assert any(not torch.equal(before[name], tensor) for name, tensor in algo.policy.state_dict().items())
    assert len(algo._pool) == 1 + algo._steps["policy"] // 4 > 2


def test_the_policy_gradient_raises_what_won_and_lowers_what_lost() -> None:
    """One state, two moves of a game for two that the first move decides: the policy must find the move that wins."""
    game = Game("connect_four", {"rows": 2, "columns": 3, "x_in_row": 2})
    algo, collector = make(
        game, num_envs=32, expert_fraction=0.01, reinforce_fraction=0.95, games_per_update=16, reinforce_learning_rate=3e-3
    )
    run(algo, collector, 0.9, total=12000)
    logits = algo._fast_policy(game.look([game.state_of([0, 2])]).planes)[0][0]
    p = np.exp(logits - logits.max())
    assert p[0] + p[1] > 3 * p[2], "beside or on the own stone wins; on the other's loses"


def test_a_gradient_that_is_not_finite_stops_training_before_it_spreads() -> None:
    algo, collector = make()
    run(algo, collector, 0.1)
    before = {name: tensor.clone() for name, tensor in algo.supervised.named_parameters()}
    weight = algo.supervised.policy.weight
    loss = torch.sqrt((weight - weight.detach()).square().sum())  # zero, with a gradient that is not a number
    with pytest.raises(NonFiniteError, match=r"norm nan.*smaller algo\.learning_rate"):
        descend(algo.optimizers["supervised"], loss, 1e-3)
    assert all(torch.equal(before[name], tensor) for name, tensor in algo.supervised.named_parameters())


def test_the_entropy_bonus_keeps_the_policy_from_playing_one_game_only() -> None:
    entropies = []
    for coef in (0.0, 0.3):
        algo, collector = make(expert_fraction=0.01, reinforce_fraction=0.9, entropy_coef=coef, reinforce_learning_rate=3e-3, num_envs=16)
        lines = run(algo, collector, 0.9, total=6000)
        entropies.append(np.mean([float(line["update/entropy"]) for line in lines[-100:] if "update/entropy" in line]))
    assert entropies[1] > entropies[0] + 0.2


def test_one_position_of_each_game_teaches_the_value_network_and_it_follows_the_random_move() -> None:
    algo, collector = make(expert_fraction=0.02, reinforce_fraction=0.02, num_envs=16)
    progress, games, positions = Progress(total_env_steps=3000), 0, 0
    while progress.env_steps < 3000:
        before = algo.values.added
        rollout, _ = collector.collect(1)
        progress.advance(rollout)
        algo.update(rollout, progress)
        roles, plies = rollout.extras["roles"][0], (rollout.final_obs["history"] >= 0).sum(dim=1).tolist()
        ended = [(roles[b].tolist(), n) for b, n in zip(rollout.final_b.tolist(), plies, strict=True)]
        expected = sum(phase == Phase.value and turn + 1 < n for (phase, _, _, turn), n in ended)
        assert algo.values.added - before == expected
        games, positions = games + len(ended), positions + expected
    assert 0.3 * games < positions < games


def test_whole_games_teach_the_value_network_every_position() -> None:
    algo, collector = make(expert_fraction=0.02, reinforce_fraction=0.02, value_data=ValueData.whole_games)
    run(algo, collector, 1.0, total=2000)
    assert algo.values.added > 1500


def test_rollouts_end_games_and_leave_the_states_alone() -> None:
    game, rng = Game("tic_tac_toe"), np.random.default_rng(0)
    late, early = game.state_of([0, 3, 1, 4, 8]), game.state_of([0, 3, 1])
    outcome = play_out(game, [late] * 400 + [early] * 400, uniform(game), rng)
    assert set(outcome.tolist()) <= {-1.0, 0.0, 1.0}
    assert late.history() == [0, 3, 1, 4, 8]
    assert outcome[:400].mean() == pytest.approx(_exact(late), abs=0.12)
    assert outcome[400:].mean() == pytest.approx(_exact(early), abs=0.12)


def _exact(state: Any) -> float:
    """What random play is worth for player 0."""
    if state.is_terminal():
        return float(state.player_return(0))
    return float(np.mean([_exact(state.child(a)) for a in state.legal_actions()]))


def test_sampled_moves_are_legal_and_follow_the_softmax() -> None:
    rng, logits = np.random.default_rng(0), np.log(np.array([[0.5, 0.3, 0.15, 0.05]]))
    n = 20_000
    moves = sample_legal(np.repeat(logits, n, axis=0), np.full(n, 3), np.tile([0, 2, 3], n), rng)
    shares = np.bincount(moves, minlength=4) / n
    np.testing.assert_allclose(shares, np.array([0.5, 0.0, 0.15, 0.05]) / 0.7, atol=0.015)
    assert sample_legal(logits, np.array([3]), np.array([1, 2, 3]), None).tolist() == [1]


def test_a_leaf_is_worth_a_mixture_of_the_value_network_and_a_rollout() -> None:
    game = Game("tic_tac_toe")
    state = game.state_of([0, 3, 1])

    def evaluate(planes: Any) -> Any:
        return np.zeros((len(planes), 9), dtype=np.float32), np.full(len(planes), 0.25, dtype=np.float32)

    def leaves(mix: float) -> Any:
        model = PlayoutAdapter(game, [state] * 200, evaluate, mix=mix, policy=uniform(game), rng=np.random.default_rng(1))
        model.root()
        return model.step(np.arange(200), np.zeros(200, dtype=int), np.full(200, 4), np.ones(200, dtype=int)).value

    plain, pure, half = RulesAdapter(game, [state], evaluate), leaves(1.0), leaves(0.5)
    plain.root()
    assert plain.step(np.zeros(1, int), np.zeros(1, int), np.full(1, 4), np.ones(1, int)).value.tolist() == [0.25]
    assert set(pure.tolist()) <= {-1.0, 0.0, 1.0}
    assert pure.mean() == pytest.approx(_exact(game.state_of([0, 3, 1, 4])), abs=0.2)
    np.testing.assert_allclose(half, 0.5 * 0.25 + 0.5 * pure)


def test_search_with_rollouts_alone_finds_the_win_and_the_block() -> None:
    game = Game("tic_tac_toe")

    def evaluate(planes: Any) -> Any:
        return np.zeros((len(planes), 9), dtype=np.float32), np.zeros(len(planes), dtype=np.float32)

    states = [game.state_of([0, 3, 1, 4]), game.state_of([0, 3, 1]), game.state_of([0, 3, 8, 4])]
    model = PlayoutAdapter(game, states, evaluate, mix=1.0, policy=uniform(game), rng=np.random.default_rng(0))
    found = search(model, SearchConfig(num_simulations=300, c_init=2.5), np.random.default_rng(0))
    assert found.best().tolist() == [2, 2, 5]


def test_every_part_plays_and_evaluations_use_the_one_that_was_asked_for() -> None:
    algo, collector = make(player=Part.value)
    assert algo.player is Part.sl_policy
    run(algo, collector, 1.0, total=1600)
    assert algo.player is Part.value
    obs = map_tree(torch.from_numpy, algo.game.observe([algo.game.state_of(history) for history in ([], [4], [0])]))
    parts = algo.parts()
    assert set(parts) == {"sl_policy", "rl_policy", "rollout_policy", "value", "search_mix_0", "search_mix_0.5", "search_mix_1"}
    first = torch.zeros(3, dtype=torch.bool)
    for name, part in parts.items():
        torch.manual_seed(0)
        action = part.act(obs, part.initial_carry(3), first, mode="eval").action
        assert all(a not in row.tolist() for a, row in zip(action.tolist(), obs["history"], strict=True)), name
        if name == "value":
            assert torch.equal(action, algo.act(obs, (), first, mode="eval").action)


def test_the_value_part_takes_a_win_that_the_rules_decide() -> None:
    game = Game("tic_tac_toe")
    algo, _ = make(game)
    obs = game.observe([game.state_of([0, 3, 1, 4])])
    assert algo.best(Part.value, obs, np.random.default_rng(0)).tolist() == [2]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"expert_fraction": 0.5, "reinforce_fraction": 0.5}, "algo.expert_fraction + algo.reinforce_fraction must be below 1"),
        ({"expert_fraction": 0.0}, "algo.expert_fraction must be within"),
        ({"mix": 1.5}, "algo.mix must be within"),
        ({"games_per_update": 0}, "algo.games_per_update must be at least 1"),
        ({"temperature": 0.0}, "algo.temperature must be above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("+", r"\+")):
        settings_of(AlphaGoConfig, **settings)


def test_a_run_is_trained_evaluated_and_taken_apart_from_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = " ".join(f"algo.{'search.' * (k == 'num_simulations')}{k}={v}" for k, v in TINY.items())
    settings = "env=tic_tac_toe recipe=null env.num_envs=16 loop.eval_every=0 log.wandb=disabled log.console=quiet"
    assert run_main(f"train algo=alphago {words} {settings} loop.total_env_steps=2000 --name go", monkeypatch) == 0
    capsys.readouterr()
    assert run_main("eval go --episodes 4 --opponent random --json", monkeypatch) == 0
    result = json.loads(capsys.readouterr().out)
    assert 0.0 <= result["optimal_moves"] <= 1.0
    assert run_main("arena go --parts --opponents random --openings 2 --json", monkeypatch) == 0
    rows = json.loads(capsys.readouterr().out)["players"]
    assert {row["player"] for row in rows} >= {"go:sl_policy", "go:search_mix_0.5", "random"}
    assert len(rows) == 8
    assert run_main("arena random --parts --opponents one_ply", monkeypatch) != 0
