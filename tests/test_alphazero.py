"""AlphaZero: its replay of games, their symmetries, and learning from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nested import settings_of

from rlx.algos.alphazero import AlphaZero, outcomes_of_play
from rlx.collect import Collector
from rlx.config.algos.alphazero_config import AlphaZeroConfig
from rlx.config.algos.search_config import SearchRule
from rlx.envs.games.openspiel import Game
from rlx.envs.games.selfplay import SelfPlayVectorEnv
from rlx.errors import ConfigError
from rlx.nn.resnet import FrozenResNet, ResNet, adam, descend, squared_norm
from rlx.replay import PositionReplay, gradient_steps_owed
from rlx.tree_ops import map_tree, pick
from rlx.types import EnvSpec, Progress

CPU = torch.device("cpu")
TINY = {"num_blocks": 1, "num_channels": 8, "num_simulations": 4, "batch_size": 32, "replay_start": 64, "replay_size": 4000}


def observed(game: Game, *histories: list[int]) -> Any:
    """What an environment shows after these actions, as tensors."""
    return map_tree(torch.from_numpy, game.observe([game.state_of(history) for history in histories]))


def make(num_envs: int = 8, game: Game | None = None, **settings: Any) -> tuple[AlphaZero, Collector]:
    env = SelfPlayVectorEnv(game or Game("tic_tac_toe"), num_envs)
    spec = EnvSpec(id="x", observation_space=env.single_observation_space, action_space=env.single_action_space, game=env.game)
    algo = AlphaZero(settings_of(AlphaZeroConfig, **{**TINY, **settings}), spec, num_envs, CPU)
    collector = Collector(env, algo, seed=0)
    collector.reset()
    return algo, collector


def run(algo: AlphaZero, collector: Collector, iterations: int, total: int = 10**9) -> list[dict[str, Any]]:
    progress, lines = Progress(total_env_steps=total), []
    for _ in range(iterations):
        rollout, _ = collector.collect(1)
        progress.advance(rollout)
        lines.append(dict(algo.update(rollout, progress)))
    return lines


def test_every_position_of_every_game_is_kept_in_the_order_in_which_games_began(monkeypatch: pytest.MonkeyPatch) -> None:
    algo, collector = make(5, replay_ratio=1e-9)
    added: list[int] = []
    add = PositionReplay.add
    monkeypatch.setattr(PositionReplay, "add", lambda self, planes, policy, z: (added.append(len(z)), add(self, planes, policy, z)))
    ended: list[tuple[int, int]] = []  # when a game began, and its length
    begun = [0] * 5
    order, next_id = list(range(5)), 5
    for now in range(1, 61):
        rollout, _ = collector.collect(1)
        for b in rollout.final_b.tolist():
            ended.append((order[b], now - begun[b]))
            begun[b], order[b], next_id = now, next_id, next_id + 1
        algo.update(rollout, Progress(total_env_steps=10**9, env_steps=5 * now))
    lengths = dict(ended)
    assert sorted(lengths)[: len(added)] == list(range(len(added)))
    assert added == [lengths[i] for i in range(len(added))]
    assert len(added) >= 20
    assert [i for i, _ in ended] != sorted(i for i, _ in ended), "some games overtook others"


def test_outcomes_are_for_whoever_moves() -> None:
    game = Game("tic_tac_toe")
    algo, collector = make(1, game, replay_ratio=1e-9)
    while algo.replay.added == 0:
        rollout, _ = collector.collect(1)
        history, reward = rollout.final_obs["history"], rollout.reward
        algo.update(rollout, Progress(total_env_steps=10**9, env_steps=1))
    planes, policy, z = algo.replay[torch.arange(algo.replay.size)]
    outcome = float(reward[0, 0])
    assert z.tolist() == [outcome if ply % 2 == 0 else -outcome for ply in range(len(z))]
    states = [game.state_of(history[0, :ply].tolist()) for ply in range(len(z))]
    np.testing.assert_array_equal(planes.numpy(), game.look(states).planes)
    torch.testing.assert_close(policy.sum(dim=1), torch.ones(len(z)))
    for state, target in zip(states, policy, strict=True):
        assert set(np.flatnonzero(target.numpy())) <= set(state.legal_actions())


def test_moves_with_a_cheap_search_are_played_and_not_trained_on() -> None:
    algo, collector = make(8, rule=SearchRule.puct, full_search_fraction=0.3, num_cheap_simulations=2, replay_ratio=1e-9)
    lines = run(algo, collector, 80)
    played = sum(line.get("game/length", 0.0) > 0 for line in lines)
    assert played > 5
    plies = 80 * 8
    assert 0.15 * plies < algo.replay.added < 0.45 * plies


def test_cheap_searches_play_without_noise_and_forced_visits() -> None:
    algo, _ = make(64, rule=SearchRule.puct, full_search_fraction=0.5, num_cheap_simulations=32, num_simulations=33)
    found, _, full = algo.search(algo.game.observe([algo.game.new_state()] * 64), mode="train", rng=np.random.default_rng(0))
    plain, _, _ = algo.search(algo.game.observe([algo.game.new_state()]), mode="eval", rng=np.random.default_rng(0))
    prior, forced = found.trees.prior[:, :9], found.trees.forced
    assert 0.3 < full.mean() < 0.7
    np.testing.assert_allclose(prior[~full], np.broadcast_to(plain.trees.prior[:, :9], prior[~full].shape), atol=1e-3)
    assert (np.abs(prior[full] - plain.trees.prior[:, :9]).max(axis=1) > 0.01).all()
    np.testing.assert_array_equal(forced, 2.0 * full)


def test_acting_changes_nothing_and_without_noise_repeats_itself() -> None:
    algo, _ = make(4)
    obs = observed(algo.game, *[[]] * 4)
    before = {k: v.clone() for k, v in algo.net.state_dict().items()}
    first = torch.ones(4, dtype=torch.bool)
    one = algo.act(obs, (), first, mode="eval")
    other = algo.act(obs, (), first, mode="eval")
    assert torch.equal(one.action, other.action)
    assert all(torch.equal(before[k], v) for k, v in algo.net.state_dict().items())
    moves = {tuple(algo.act(obs, (), first, mode="train").action.tolist()) for _ in range(10)}
    assert len(moves) > 1, "training explores"


def test_positions_and_policies_turn_together() -> None:
    game = Game("tic_tac_toe")
    algo, _ = make(1, game)
    state = game.state_of([0, 4, 1])
    planes, policy = torch.from_numpy(game.look([state]).planes), torch.zeros(1, 9)
    policy[0, 2] = 1.0  # the block
    for k, (_, actions) in enumerate(game.symmetries):
        turned, target = algo._symmetries.turn(planes, policy, torch.tensor([k]))
        image = game.state_of([int(np.argsort(actions)[a]) for a in (0, 4, 1)])
        np.testing.assert_array_equal(turned.numpy(), game.look([image]).planes)
        assert target[0, int(np.argsort(actions)[2])] == 1.0


def test_the_copy_that_searches_ask_is_the_network() -> None:
    torch.manual_seed(1)
    net = ResNet((2, 6, 7), 7, num_blocks=2, num_channels=16)
    net.train()
    for _ in range(5):  # running statistics that are not the initial ones
        net(torch.rand(32, 2, 6, 7))
    torch.nn.init.normal_(net.value.weight)
    planes = (torch.rand(64, 2, 6, 7) > 0.7).float()
    logits, value = FrozenResNet(net, CPU)(planes.numpy())
    expected_logits, expected_value = net.eval()(planes)
    assert np.abs(logits - expected_logits.detach().numpy()).max() < 0.05 * expected_logits.abs().max()  # bfloat16 has 8 bits
    assert np.abs(value - expected_value.detach().numpy()).max() < 0.05


def test_a_new_network_has_no_opinion_of_any_position() -> None:
    net = ResNet((2, 6, 7), 7, num_blocks=1, num_channels=8).eval()
    assert net((torch.rand(16, 2, 6, 7) > 0.5).float())[1].abs().max() == 0.0


def test_the_replay_forgets_the_oldest_first_and_restores() -> None:
    replay = PositionReplay(10, (1, 1, 1), 2)
    for k in range(7):
        replay.add(torch.full((2, 1, 1, 1), float(k)), torch.zeros(2, 2), torch.full((2,), float(k)))
    assert sorted(replay[torch.arange(replay.size)][2].tolist()) == [2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    copy = PositionReplay(10, (1, 1, 1), 2)
    copy.load_state_dict(replay.state_dict())
    for both in (replay, copy):
        both.add(torch.full((1, 1, 1, 1), 9.0), torch.zeros(1, 2), torch.tensor([9.0]))
    assert torch.equal(replay[torch.arange(10)][2], copy[torch.arange(10)][2])


def test_gradient_steps_follow_the_positions() -> None:
    algo, collector = make(16, replay_ratio=2.0)
    lines = run(algo, collector, 40)
    steps = sum(line.get("update/num_gradient_steps", 0.0) for line in lines)
    assert steps == int((algo.replay.added - 64) * 2.0 / 32)


def test_losses_fall_towards_what_the_data_allows() -> None:
    """A fixed replay is learnt: the policy's loss nears the entropy of its targets, the value's falls below that of knowing nothing."""
    algo, collector = make(32, num_simulations=8, replay_ratio=1e-9, learning_rate=5e-3)
    run(algo, collector, 40)
    algo.net.train()
    steps = [algo._step(algo.config.learning_rate) for _ in range(300)]
    first, last = ({k: np.mean([s[k] for s in part]) for k in steps[0]} for part in (steps[:5], steps[-20:]))
    assert last["loss/policy"] - last["update/target_entropy"] < 0.6 * (first["loss/policy"] - first["update/target_entropy"])
    assert last["loss/value"] < 0.98 * first["loss/value"]


def test_weight_decay_is_c_times_the_squared_norm_in_the_loss() -> None:
    """Steps of the optimiser under c are those of plain Adam on loss + c ||theta||^2."""
    torch.manual_seed(0)
    nets = [ResNet((2, 3, 3), 9, num_blocks=1, num_channels=4).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    decayed, plain = adam(nets[0], 1e-2, 0.3), adam(nets[1], 1e-2, 0.0)
    planes = torch.rand(8, 2, 3, 3, dtype=torch.float64)
    for _ in range(5):
        losses = [logits.square().mean() + (value - 0.5).square().mean() for logits, value in (net(planes) for net in nets)]
        descend(decayed, losses[0], 1e-2)
        descend(plain, losses[1] + 0.3 * sum(p.square().sum() for p in nets[1].parameters()), 1e-2)
    assert float(squared_norm(nets[1])) == pytest.approx(sum(float(p.detach().square().sum()) for p in nets[1].parameters()), rel=1e-5)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_papers_c_acts_within_a_run() -> None:
    """After 150 gradient steps; decoupled decay would have shrunk the weights by 2 c lr * 150 = 0.06 %."""
    norms = {}
    for c in (0.0, 1e-3):
        torch.manual_seed(0)
        algo, collector = make(32, replay_ratio=1e-9, weight_decay=c)
        run(algo, collector, 12)
        algo.net.train()
        for _ in range(150):
            algo._step(algo.config.learning_rate)
        norms[c] = float(squared_norm(algo.net))
    assert norms[1e-3] < 0.93 * norms[0.0]


def test_an_environment_without_rules_is_refused() -> None:
    import gymnasium

    spec = EnvSpec(id="Box-v0", observation_space=gymnasium.spaces.Box(0, 1), action_space=gymnasium.spaces.Discrete(2))
    with pytest.raises(ConfigError, match="env=Box-v0 is none; try env=connect_four"):
        AlphaZero(AlphaZeroConfig(), spec, 1, CPU)


def test_random_moves_are_played_and_leave_the_targets_alone() -> None:
    """With every early move random the moves are spread evenly; the policy recorded beside them is the search's."""
    algo, _ = make(512, random_moves=1.0, exploration_plies=9)
    obs = observed(algo.game, *[[]] * 512)
    played = algo.act(obs, (), torch.ones(512, dtype=torch.bool), mode="train")
    counts = torch.bincount(played.action, minlength=9)
    assert counts.min() > 30
    assert (played.extras["policy"].sum(dim=1) - 1.0).abs().max() < 1e-5
    evaluated = algo.act(pick(obs, slice(4)), (), torch.ones(4, dtype=torch.bool), mode="eval")
    assert len(set(evaluated.action.tolist())) == 1, "evaluations do not explore"


def test_after_the_first_plies_the_best_move_is_played() -> None:
    algo, _ = make(64, random_moves=0.5, exploration_plies=2)
    obs = observed(algo.game, *[[4, 0]] * 64)
    later = algo.act(obs, (), torch.zeros(64, dtype=torch.bool), mode="train")
    assert len(set(later.action.tolist())) == 1
    early = algo.act(observed(algo.game, *[[]] * 64), (), torch.ones(64, dtype=torch.bool), mode="train")
    assert len(set(early.action.tolist())) > 2


def test_the_value_learns_a_mix_of_outcome_and_search() -> None:
    algo, collector = make(1, replay_ratio=1e-9, value_mix=0.25)
    roots = []
    while algo.replay.added == 0:
        rollout, _ = collector.collect(1)
        roots.append(float(rollout.extras["root_value"][0, 0]))
        algo.update(rollout, Progress(total_env_steps=10**9, env_steps=1))
    outcome = float(rollout.reward[0, 0])
    _, _, z = algo.replay[torch.arange(algo.replay.size)]
    expected = [0.75 * (outcome if ply % 2 == 0 else -outcome) + 0.25 * root for ply, root in enumerate(roots)]
    assert z.tolist() == pytest.approx(expected, abs=1e-6)


def test_after_a_random_move_the_outcome_says_nothing_of_the_moves_before() -> None:
    """Six plies, of which 1 and 3 were random: 0 and 1 lead to the search's value at 1, 2 and 3 to that at 3, the rest to the outcome."""
    player, value = np.array([0, 1, 0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, -0.4, 0.5, 0.6], dtype=np.float32)
    random = np.array([False, True, False, True, False, False])
    z = outcomes_of_play(player, value, random, 1.0)
    assert z.tolist() == pytest.approx([-0.2, 0.2, 0.4, -0.4, 1.0, -1.0])
    twice = outcomes_of_play(np.array([0, 0, 1]), value, np.array([False, False, True]), -1.0)  # a player may move twice in a row
    assert twice.tolist() == pytest.approx([-0.3, -0.3, 0.3])
    assert outcomes_of_play(player, value, random & False, -1.0).tolist() == [-1, 1, -1, 1, -1, 1]


def test_games_with_random_moves_teach_what_the_search_found_there() -> None:
    algo, collector = make(1, replay_ratio=1e-9, random_moves=0.4)
    plies = []
    while algo.replay.added == 0 or not any(random for random, _ in plies):
        before = algo.replay.added
        rollout, _ = collector.collect(1)
        plies.append((bool(rollout.extras["random"][0, 0]), float(rollout.extras["root_value"][0, 0])))
        algo.update(rollout, Progress(total_env_steps=10**9, env_steps=1))
        if algo.replay.added > before:
            random, value = (np.array(column) for column in zip(*plies, strict=True))
            _, _, z = algo.replay[torch.arange(before, algo.replay.added)]
            player = np.arange(len(plies)) % 2
            assert z.tolist() == pytest.approx(outcomes_of_play(player, value, random, float(rollout.reward[0, 0])).tolist(), abs=1e-6)
            if random.any():
                return
            plies = []


def test_a_random_move_that_the_search_would_have_played_spoils_nothing() -> None:
    algo, _ = make(256, random_moves=1.0, exploration_plies=9, num_simulations=16)
    obs = observed(algo.game, *[[0, 3, 1, 4]] * 256)  # 2 wins at once
    played = algo.act(obs, (), torch.ones(256, dtype=torch.bool), mode="train")
    assert torch.equal(played.extras["random"], played.action != 2)
    assert 20 < int((~played.extras["random"]).sum()) < 90


def test_leaves_that_are_evaluated_together_cost_fewer_calls_of_the_network() -> None:
    calls = {}
    for leaves in (1, 8):
        algo, _ = make(1, rule=SearchRule.puct, num_simulations=64, num_leaves=leaves)
        asked: list[int] = []
        frozen = algo._frozen
        algo._frozen = lambda planes, frozen=frozen, asked=asked: (asked.append(len(planes)), frozen(planes))[1]  # type: ignore[assignment]
        found, _, _ = algo.search(algo.game.observe([algo.game.new_state()]), mode="eval", rng=np.random.default_rng(0))
        assert found.visits(9).sum() == 64
        calls[leaves] = len(asked)
    assert calls[8] < calls[1] / 4


def test_what_the_network_said_is_forgotten_when_it_learns() -> None:
    algo, collector = make(8, replay_ratio=4.0, steps_per_update=8)
    used: list[bool] = []
    search = algo.search
    algo.search = lambda histories, **given: (used.append(given["known"] is not None), search(histories, **given))[1]  # type: ignore[method-assign]
    progress, taken = Progress(total_env_steps=10**9), []
    for _ in range(40):
        rollout, _ = collector.collect(1)
        progress.advance(rollout)
        taken.append(dict(algo.update(rollout, progress)).get("update/num_gradient_steps", 0.0))
    assert used[0] is False
    assert [not known for known in used[1:]] == [steps > 0 for steps in taken[:-1]]
    assert sum(steps > 0 for steps in taken) >= 2
    assert all(steps == 0 or steps >= 8 for steps in taken)


def test_gradient_steps_owed_follow_the_rows_and_are_never_negative():
    settings = {"replay_ratio": 4.0, "batch_size": 32}
    assert gradient_steps_owed(100, **settings, taken=0) == 12  # 400 rows of batches, 12.5 batches
    assert gradient_steps_owed(100, **settings, taken=12) == 0
    assert gradient_steps_owed(108, **settings, taken=12) == 1
    assert gradient_steps_owed(100, **settings, taken=20) == 0
