"""I2A as an algorithm: the encoder's input, the differences of the control arms, the phases, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from launch import run_main
from nested import settings_of

from rlx import ops
from rlx.algos.i2a import I2A
from rlx.collect import Collector
from rlx.config.algos.i2a_config import IMAGINATION_ABLATIONS, Decide, I2AConfig, Imagination
from rlx.config.compose import Composer
from rlx.envs.registry import VectorEnvFactory
from rlx.errors import ConfigError
from rlx.evaluation.episodes import run_episodes
from rlx.models.grid_rollouts import PerfectGrid, distinct, num_bytes, pack, unpack
from rlx.nn.imagination_net import I2ANet, RolloutEncoder, num_parameters
from rlx.types import EnvSpec, Progress, Rollout

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "num_channels": 4, "hidden_size": 16, "num_encoder_channels": 4, "encoder_size": 8, "num_model_channels": 8, "rollout_length": 8,
    "num_epochs": 2, "num_minibatches": 2, "model_batch_size": 16, "rollout_depth": 3,
}  # fmt: skip


def grid_env(num_envs: int) -> Any:
    return VectorEnvFactory(id="rlx/Sokoban-v0", kwargs={"max_episode_steps": 30})(num_envs)


def spec_of(env: Any, **changes: Any) -> EnvSpec:
    return EnvSpec(**{"id": "rlx/Sokoban-v0", "observation_space": env.single_observation_space,
                      "action_space": env.single_action_space, "grid": env.grid, **changes})  # fmt: skip


def make(num_envs: int = 4, **settings: Any) -> tuple[I2A, Collector]:
    env = grid_env(num_envs)
    algo = I2A(settings_of(I2AConfig, **{**SMALL, **settings}), spec_of(env), num_envs, CPU)
    collector = Collector(env, algo, seed=0)
    collector.reset()
    return algo, collector


def run(algo: I2A, collector: Collector, updates: int, total: int = 1000, progress: Progress | None = None) -> list[dict[str, Any]]:
    progress = progress or Progress(total_env_steps=total)
    metrics = []
    for _ in range(updates):
        rollout, _ = collector.collect(algo.rollout_length)
        progress.advance(rollout)
        metrics.append(dict(algo.update(rollout, progress)))
    return metrics


def boards(num_envs: int, seed: int = 0) -> torch.Tensor:
    obs, _ = grid_env(num_envs).reset(seed=np.arange(seed, seed + num_envs))
    return torch.from_numpy(obs.copy())


def give_weight(algo: I2A) -> None:
    """Let the policy heed what is imagined, which it does not at first."""
    with torch.no_grad():
        algo.net.hidden.weight.normal_(std=0.3)
        algo.net.policy.weight.normal_(std=0.3)


def act(algo: I2A, obs: torch.Tensor, mode: Any = "train", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return algo.act(obs, (), torch.zeros(len(obs), dtype=torch.bool), mode=mode)


# Whose imagination is read by whom


@pytest.mark.parametrize("imagination", [Imagination.learned, Imagination.perfect])
def test_what_an_agent_makes_of_a_state_depends_on_that_state_alone(imagination: Imagination) -> None:
    algo, _ = make(imagination=imagination, model_fraction=0.0)
    algo._in_use = True
    give_weight(algo)
    obs = boards(6)
    others = boards(6, seed=100)
    others[2] = obs[2]
    first, second = act(algo, obs), act(algo, others)
    for name in ("logits", "value", "imagined", "imagined_reward"):
        assert torch.equal(first.extras[name][2], second.extras[name][2]), name
    assert not torch.equal(first.extras["logits"], second.extras["logits"])


def test_rollout_a_begins_with_action_a_and_stands_at_place_a() -> None:
    algo, _ = make(imagination=Imagination.perfect)
    obs = boards(3)
    extras = act(algo, obs).extras
    for a in range(4):
        reached, events, _ = algo.grid.step(obs.numpy(), np.full(3, a), np.random.default_rng(0))
        assert torch.equal(unpack(extras["imagined"][:, a, 0], algo.grid.planes_shape), torch.from_numpy(reached).float())
        expected = torch.from_numpy(events @ algo.grid.event_reward) / 10.0  # in units of the largest event's
        assert torch.allclose(extras["imagined_reward"][:, a, 0], expected)


def test_encodings_stand_beside_each_other_in_the_order_of_the_actions() -> None:
    net = I2ANet((4, 7, 7), 3, num_channels=4, hidden_size=8, num_encoder_channels=4, encoder_size=5, rolls_out=True)
    planes, reward = torch.randint(2, (2, 6, 4, 7, 7)).float(), torch.rand(2, 6)
    together = net.encode(planes.flatten(0, 1), reward.flatten(), torch.arange(12).view(2, 6))
    assert net.encoder is not None
    for state in range(2):
        for action in range(3):
            n = 3 * state + action
            alone = net.encoder(planes[:, n], reward[:, n], torch.tensor([[0], [1]]))[0]
            assert torch.allclose(together[state, 5 * action : 5 * action + 5], alone, atol=1e-6)


def test_the_encoder_is_an_lstm_over_the_frames_in_reverse() -> None:
    encoder = RolloutEncoder((2, 5, 5), 3, 7)
    planes, reward = torch.randint(2, (4, 3, 2, 5, 5)).float(), torch.rand(4, 3)
    tiled = reward[:, :, None, None, None].expand(-1, -1, 1, 5, 5)
    features = torch.stack([encoder.trunk(torch.cat([p, r], dim=1)) for p, r in zip(planes, tiled, strict=True)])
    lstm = torch.nn.LSTM(features.shape[-1], 7)
    order = [0, 1, 3, 2]  # torch's gates are input, forget, cell, output
    with torch.no_grad():
        for theirs, ours in ((lstm.weight_ih_l0, encoder.inputs.weight), (lstm.weight_hh_l0, encoder.memory.weight),
                             (lstm.bias_ih_l0, encoder.inputs.bias)):  # fmt: skip
            theirs.copy_(torch.cat([ours.chunk(4)[i] for i in order]))
        lstm.bias_hh_l0.zero_()
    encoded = encoder(planes.flatten(0, 1), reward.flatten(), torch.arange(12).view(4, 3))
    assert torch.allclose(encoded, lstm(features.flip(0))[0][-1], atol=1e-6)
    assert not torch.allclose(encoded, lstm(features)[0][-1], atol=1e-3)


def test_frames_that_rollouts_share_are_encoded_once_and_rewards_tell_them_apart() -> None:
    planes, reward = torch.zeros(40, 4, 7, 7), torch.zeros(40)
    planes[torch.arange(40), 0, 1, torch.arange(40) % 4] = 1.0
    reward[::8] = -0.1
    rows, place = distinct(pack(planes), reward)
    assert len(rows) == 4 + 1, "four kinds of frames, the first of them with two rewards"
    assert torch.equal(planes[rows][place], planes)
    assert torch.equal(reward[rows][place], reward)
    algo, _ = make(imagination=Imagination.copy)
    seen = []
    algo.net.encoder.trunk.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    act(algo, boards(5))
    assert seen == [5], "where nothing happens there is one frame of each board"


def test_a_copy_tells_nothing_of_the_actions() -> None:
    algo, _ = make(imagination=Imagination.copy)
    extras = act(algo, boards(5)).extras
    assert torch.equal(extras["imagined"], extras["imagined"][:, :1].expand_as(extras["imagined"]))
    assert not extras["imagined_reward"].any()
    c_ia = algo._encode(extras["imagined"], extras["imagined_reward"]).view(5, 4, -1)
    assert torch.allclose(c_ia, c_ia[:, :1].expand_as(c_ia), atol=1e-6)


@pytest.mark.parametrize("settings", [{"imagination": Imagination.learned}, {"imagination": Imagination.learned, "corrupt_prob": 0.2},
                                      {"imagination": Imagination.perfect}])  # fmt: skip
def test_what_was_remembered_is_what_would_be_imagined_again(settings: dict[str, Any]) -> None:
    algo, collector = make(**settings)
    algo._in_use = True
    give_weight(algo)
    torch.manual_seed(7)
    rollout, _ = collector.collect(3)
    torch.manual_seed(7)
    for t in range(3):
        logits, _value, (bits, reward) = algo._evaluate(algo._planes(rollout.obs[t]))
        algo.head.sample(logits)
        assert torch.equal(bits, rollout.extras["imagined"][t])
        assert torch.equal(reward, rollout.extras["imagined_reward"][t])
        # And the gradient steps read from it what the agent read when it acted.
        again, _ = algo.net(algo._planes(rollout.obs[t]), algo._encode(bits, reward))
        assert torch.allclose(again, rollout.extras["logits"][t], atol=1e-5)


def test_imagination_begins_without_influence_and_earns_it() -> None:
    algo, collector = make(imagination=Imagination.perfect, learning_rate=0.03)
    first, *_, last = run(algo, collector, 4)
    assert abs(first["imagination/policy_shift"].item()) < 1e-7
    assert last["imagination/policy_shift"].item() > 1e-6


# Distillation


def test_the_distillation_loss_is_a_cross_entropy_and_its_gradient_autograds() -> None:
    logits, teacher = torch.randn(6, 4, dtype=torch.float64, requires_grad=True), torch.randn(6, 4, dtype=torch.float64)
    loss, gradient = ops.distillation_loss(logits.detach(), teacher)
    expected = torch.nn.functional.cross_entropy(logits, teacher.softmax(-1))
    expected.backward()
    assert torch.allclose(loss, expected)
    assert torch.allclose(gradient, logits.grad)


def test_the_rollout_policy_comes_to_imitate_the_agent_and_not_its_opposite() -> None:
    algo, _ = make(imagination=Imagination.copy)
    give_weight(algo)
    policy, planes = algo.net.rollout_policy, algo._planes(boards(64))
    assert policy is not None
    with torch.no_grad():
        teacher, _ = algo.net(planes, None)
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    losses = []
    for _ in range(150):
        imitated = policy(planes)
        loss, gradient = ops.distillation_loss(imitated.detach(), teacher)
        optimizer.zero_grad()
        imitated.backward(gradient)
        optimizer.step()
        losses.append(loss.item())
    entropy = ops.distillation_loss(teacher, teacher)[0].item()
    assert losses[-1] < losses[0]
    assert losses[-1] == pytest.approx(entropy, abs=0.1)  # which no cross-entropy is below
    assert (policy(planes).argmax(-1) == teacher.argmax(-1)).float().mean() > 0.8


def test_training_distils_and_the_agent_is_not_changed_by_its_imitator() -> None:
    results = []
    for coefficient in (0.0, 10.0):
        torch.manual_seed(0)
        algo, collector = make(imagination=Imagination.copy, distill_coef=coefficient, max_grad_norm=1e9)
        before = copy.deepcopy(algo.net.state_dict())
        run(algo, collector, 1)
        after = algo.net.state_dict()
        moved = {name for name in after if not torch.equal(before[name], after[name])}
        results.append((moved, after["policy.weight"]))
    assert not any("rollout_policy" in name for name in results[0][0])
    assert any("rollout_policy" in name for name in results[1][0])
    assert torch.allclose(results[0][1], results[1][1], atol=1e-6)


# Arms


def test_the_arms_have_the_networks_that_they_are_named_for() -> None:
    nets = {arm: make(imagination=arm)[0] for arm in Imagination}
    learned, wide = nets[Imagination.learned], nets[Imagination.wide]
    assert num_parameters(nets[Imagination.copy].net) == num_parameters(learned.net) == num_parameters(nets[Imagination.perfect].net)
    assert nets[Imagination.off].net.encoder is None
    assert wide.net.encoder is None
    wanted = num_parameters(learned.net) + num_parameters(learned.model)
    assert wanted <= num_parameters(wide.net) < 1.3 * wanted
    assert num_parameters(nets[Imagination.off].net) < num_parameters(learned.net)


@pytest.mark.parametrize("arm", list(Imagination))
def test_every_arm_learns_and_says_what_it_has(arm: Imagination) -> None:
    algo, collector = make(imagination=arm)
    metrics = run(algo, collector, 5, total=320)  # phase one are 32 steps, one update
    assert np.isfinite([float(v) for line in metrics for v in line.values()]).all()
    assert ("imagination/policy_shift" in metrics[-1]) == algo.config.has_world
    assert ("model/frame_accuracy_1" in metrics[-1]) == (arm is Imagination.learned)
    assert metrics[-1]["imagination/in_use"] == float(algo.config.has_world)
    if arm is Imagination.perfect:
        assert metrics[-1]["imagination/model_error"] == 0.0
    if arm is Imagination.copy:
        assert metrics[-1]["imagination/model_error"] > 0.1  # where something happens


def test_ghosts_are_imagined_too() -> None:
    env = VectorEnvFactory(id="rlx/MiniPacman-v0")(4)
    for imagination in (Imagination.learned, Imagination.perfect):
        config = settings_of(I2AConfig, **{**SMALL, "imagination": imagination, "model_fraction": 0.0})
        algo = I2A(config, spec_of(env, id="rlx/MiniPacman-v0"), 4, CPU)
        collector = Collector(env, algo, seed=0)
        collector.reset()
        metrics = run(algo, collector, 3)
        assert np.isfinite([float(v) for line in metrics for v in line.values()]).all()
        assert collector.collect(2)[0].extras["imagined"].shape[:5] == (2, 4, env.grid.num_actions, 3, num_bytes(env.grid.planes_shape))


def test_phase_one_lasts_its_share_of_the_budget() -> None:
    algo, collector = make(model_fraction=0.3)
    metrics = run(algo, collector, 5, total=320)  # 96 steps are three updates
    assert ["imagination/policy_shift" in line for line in metrics] == [False, False, False, True, True]
    assert [line["imagination/in_use"] for line in metrics] == [0.0, 0.0, 0.0, 1.0, 1.0]


def test_phase_one_trains_as_the_model_free_arm_does() -> None:
    algo, collector = make(distill_coef=0.0)
    off, _ = make(imagination=Imagination.off)
    mine = algo.net.state_dict()
    off.net.load_state_dict({name: mine[name] for name in off.net.state_dict() if name != "hidden.weight"}
                            | {"hidden.weight": mine["hidden.weight"][:, : algo.net.split]})  # fmt: skip
    rollout, _ = collector.collect(8)
    for each in (algo, off):
        torch.manual_seed(0)
        each._improve_policy(rollout, 1e-2)
    assert torch.allclose(algo.net.policy.weight, off.net.policy.weight, atol=1e-6)
    assert torch.allclose(algo.net.hidden.weight[:, : algo.net.split], off.net.hidden.weight, atol=1e-6)
    assert not algo.net.hidden.weight[:, algo.net.split :].any()


def test_once_begun_imagining_does_not_end_when_the_budget_grows() -> None:
    algo, collector = make(model_fraction=0.1)
    progress = Progress(total_env_steps=320)
    run(algo, collector, 2, progress=progress)
    progress.total_env_steps = 100_000
    assert run(algo, collector, 2, progress=progress)[-1]["imagination/in_use"] == 1.0


def test_a_frozen_model_stays_as_it_is_and_another_goes_on_learning() -> None:
    for reuse, moves in ((0.0, False), (2.0, True)):
        algo, collector = make(model_fraction=0.0, model_replay_ratio_later=reuse)
        run(algo, collector, 1)
        before = copy.deepcopy(algo.model.state_dict())
        run(algo, collector, 2)
        same = all(torch.equal(before[name], value) for name, value in algo.model.state_dict().items())
        assert same != moves


def test_the_model_is_trained_on_a_step_as_often_as_it_is_told() -> None:
    algo, collector = make(model_fraction=0.9, model_replay_ratio=1.5)
    run(algo, collector, 7)
    assert algo.model_optimizer.state_dict()["num_steps"] == int(1.5 * 7 * 32 / 16)


def test_values_of_cut_episodes_are_bootstrapped_and_of_ended_ones_are_not() -> None:
    algo, collector = make(imagination=Imagination.off, discount=0.5, gae_lambda=0.0)
    rollout = collector.collect(8)[0]
    zeros, two = torch.zeros(8, 4), torch.tensor([7, 7])
    terminated, truncated = zeros.bool(), zeros.bool()
    terminated[7, 0] = truncated[7, 1] = True
    rollout = Rollout(
        all_obs=rollout.all_obs, action=rollout.action, reward=zeros, terminated=terminated, truncated=truncated, is_first=rollout.is_first,
        final_t=two, final_b=torch.tensor([0, 1]), final_obs=rollout.all_obs[0, :2], carry=(),
        extras={"value": zeros, "logits": rollout.extras["logits"]},
    )  # fmt: skip
    advantage = algo._advantage(rollout)
    value = algo.net(algo._planes(rollout.all_obs[0, :2]), None)[1]
    assert advantage[7, 0] == 0.0
    assert advantage[7, 1].item() == pytest.approx(0.5 * value[1].item(), abs=1e-6)


# Deciding by search


def push_to_goal() -> torch.Tensor:
    """A board on which pushing the box to the right solves it."""
    planes = torch.zeros(1, 4, 7, 7, dtype=torch.uint8)
    planes[0, 0, 0], planes[0, 0, -1], planes[0, 0, :, 0], planes[0, 0, :, -1] = 1, 1, 1, 1
    planes[0, 1, 3, 4] = planes[0, 2, 3, 3] = planes[0, 3, 3, 2] = 1
    return planes


def test_search_sees_a_solution_in_a_perfect_world_and_not_in_a_poor_one() -> None:
    chosen = {}
    for corrupt_prob in (0.0, 0.5):
        algo, _ = make(imagination=Imagination.perfect, decide=Decide.search, corrupt_prob=corrupt_prob, num_rollouts=8, rollout_depth=2)
        assert algo.net.encoder is None
        with torch.no_grad():
            algo.net.value.weight.zero_()
        torch.manual_seed(3)
        promised = algo._plan(algo._planes(push_to_goal())).q_value[0]
        chosen[corrupt_prob] = promised
    assert chosen[0.0].argmax() == 3
    assert chosen[0.0][3].item() == pytest.approx((1 + 10 - 0.1) / 10, abs=1e-5)  # and nothing comes after it
    assert act(algo, push_to_goal(), "eval").action.shape == (1,)


def test_a_searcher_is_trained_without_an_encoder_and_only_evaluations_search() -> None:
    algo, collector = make(imagination=Imagination.perfect, decide=Decide.search, num_rollouts=1)
    metrics = run(algo, collector, 2)
    assert "imagination/policy_shift" not in metrics[-1]
    assert "imagined" not in act(algo, boards(2)).extras


def two_pushes_from_goal() -> torch.Tensor:
    planes = push_to_goal()
    planes[0, 1] = 0
    planes[0, 1, 3, 5] = 1
    return planes


def test_a_tree_finds_what_is_two_pushes_away_and_its_line_of_play_is_what_the_rules_say() -> None:
    algo, _ = make(imagination=Imagination.perfect, decide=Decide.tree, num_eval_simulations=64)
    assert algo.net.encoder is None
    assert algo.net.rollout_policy is None
    with torch.no_grad():
        algo.net.value.weight.zero_()
    planes = algo._planes(two_pushes_from_goal())
    plan = algo._plan(planes)
    assert plan.action.tolist() == [3]
    assert plan.q_value[0].argmax() == 3
    assert act(algo, two_pushes_from_goal(), "eval").action.tolist() == [3]
    first = PerfectGrid(algo.grid).step(planes.expand(4, -1, -1, -1), torch.arange(4))
    assert torch.equal(plan.planes[0, :, 0], first.state)
    assert plan.reward[0, 3].tolist() == pytest.approx([-0.1, 10.9, 0.0])
    assert torch.equal(plan.planes[0, 3, 1], plan.planes[0, 3, 2]), "a line that has ended stands still"


def test_values_beyond_the_end_of_an_episode_do_not_count_in_a_tree() -> None:
    algo, _ = make(imagination=Imagination.perfect, decide=Decide.tree, num_eval_simulations=1)
    with torch.no_grad():
        algo.net.value.weight.zero_()
        algo.net.value.bias.fill_(100.0)
        algo.net.policy.bias[3] = 100.0  # which the one simulation therefore tries
    assert algo._plan(algo._planes(push_to_goal())).q_value[0, 3].item() == pytest.approx(1.09)


def test_the_tree_of_a_state_depends_on_that_state_alone() -> None:
    algo, _ = make(imagination=Imagination.perfect, decide=Decide.tree, num_eval_simulations=24)
    give_weight(algo)
    planes = algo._planes(boards(4))
    together = algo._plan(planes)
    for i in range(4):
        alone = algo._plan(planes[i : i + 1])
        torch.testing.assert_close(alone.q_value[0], together.q_value[i], rtol=1e-4, atol=1e-5)
        assert alone.calls[0] == together.calls[i] == 24


@pytest.mark.parametrize(
    ("settings", "each"),
    [
        ({}, 4 * 3),
        ({"decide": Decide.search, "num_rollouts": 2}, 2 * 4 * 3),
        ({"decide": Decide.tree, "num_eval_simulations": 5}, 5),
    ],
)
def test_model_calls_are_counted_as_the_world_is_asked_until_an_episode_ends(settings: dict[str, Any], each: int) -> None:
    algo, _ = make(imagination=Imagination.copy, **settings)  # nothing ends in a copy
    asked = []
    algo.world = Counting(algo.world, asked)
    played = run_episodes(grid_env(3), algo, np.arange(3))
    assert [e.model_calls for e in played] == [each * e.length for e in played]
    assert sum(asked) == 3 * each * max(e.length for e in played), "and no other call was made"


class Counting:
    def __init__(self, world: Any, asked: list[int]) -> None:
        self._world, self._asked, self.initial = world, asked, world.initial

    def step(self, planes: torch.Tensor, action: torch.Tensor) -> Any:
        self._asked.append(len(planes))
        return self._world.step(planes, action)


# Reliance of a trained agent


def test_choices_change_what_is_read_and_nothing_of_the_agent() -> None:
    algo, _ = make(imagination=Imagination.learned)
    algo._in_use = True
    give_weight(algo)
    obs = boards(8)
    state = copy.deepcopy(algo.state_dict()["net"])
    logits = {
        choice: act(algo.ablate({"imagination": choice}), obs).extras["logits"] for choice in ("on", "off", "shuffled", "copy", "perfect")
    }
    assert torch.equal(logits["on"], act(algo, obs).extras["logits"])
    assert torch.equal(logits["off"], algo.net(algo._planes(obs), None)[0])
    for choice in ("off", "shuffled", "copy", "perfect"):
        assert not torch.allclose(logits[choice], logits["on"]), choice
    assert all(torch.equal(state[name], value) for name, value in algo.net.state_dict().items())
    copied = act(algo.ablate({"imagination": "copy"}), obs).extras["imagined"]
    assert torch.equal(copied, copied[:, :1].expand_as(copied))


def test_those_who_imagine_nothing_cannot_do_without_it() -> None:
    with pytest.raises(ConfigError, match="imagination=off imagines nothing"):
        make(imagination=Imagination.off)[0].ablate({"imagination": "off"})
    with pytest.raises(ConfigError, match="phase one"):
        make()[0].ablate({"imagination": "shuffled"})
    searcher = make(imagination=Imagination.perfect, decide=Decide.search)[0]
    with pytest.raises(ConfigError, match="no encoder"):
        searcher.ablate({"imagination": "off"})
    assert searcher.ablate({"imagination": "copy"}) is not searcher
    with pytest.raises(ConfigError, match="add --imagination perfect"):
        make(imagination=Imagination.off)[0].ablate({"decide": "tree"})
    with pytest.raises(ConfigError, match="imagination=off imagines nothing"):
        make(imagination=Imagination.off)[0].ablate({"imagination": "perfect", "decide": "search"})
    with pytest.raises(ConfigError, match="no rollout policy"):
        make(imagination=Imagination.perfect, decide=Decide.tree)[0].ablate({"decide": "search"})
    model_free = make(imagination=Imagination.off)[0]
    assert "model_calls" in act(model_free.ablate({"imagination": "perfect", "decide": "tree"}), boards(2), "eval").extras
    assert not model_free._in_use


def test_a_run_is_trained_and_its_reliance_measured_from_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = " ".join(f"algo.{k}={v}" for k, v in SMALL.items())
    common = "env=sokoban env.max_episode_steps=20 recipe=null env.num_envs=4 loop.eval_every=0 log.wandb=disabled log.console=quiet"
    common += " loop.total_env_steps=100"
    assert run_main(f"train algo=i2a {words} {common} --name boxes", monkeypatch) == 0
    assert run_main(f"train algo=a2c {common} --name plain", monkeypatch) == 0
    capsys.readouterr()
    for choice in IMAGINATION_ABLATIONS:
        assert run_main(f"eval boxes --episodes 3 --imagination {choice} --json", monkeypatch) == 0
        assert json.loads(capsys.readouterr().out)["imagination"] == choice
    assert run_main("eval boxes --episodes 3 --decide tree --simulations 7 --json", monkeypatch) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["decide"] == "tree"
    assert 0 < result["model_calls_mean"] <= 7 * result["length_mean"]
    assert run_main("eval boxes --episodes 3 --decide search", monkeypatch) == 0
    assert "model calls" in capsys.readouterr().out
    for wrong, said in (
        ("--decide tree --stochastic", "--stochastic: a tree chooses the actions"),
        ("--simulations 7", "add --decide tree"),
        ("--decide oracle", "expected one of network, search, tree"),
        ("--decide tree --imagination off", "no encoder whose input could be ablated"),
    ):
        assert run_main(f"eval boxes --episodes 3 {wrong}", monkeypatch) == 2
        assert said in capsys.readouterr().err
    assert run_main("eval plain --episodes 3 --decide tree", monkeypatch) == 2
    assert "algo=a2c, which has no such ablation; leave it out, or choose a run of algo=i2a" in capsys.readouterr().err
    assert run_main("eval boxes --episodes 3 --imagination upside_down", monkeypatch) == 2
    assert "expected one of on, off, shuffled, copy, perfect" in capsys.readouterr().err
    assert run_main("eval plain --episodes 3 --imagination off", monkeypatch) == 2
    assert "algo=a2c, which has no such ablation; leave it out, or choose a run of algo=i2a" in capsys.readouterr().err


def test_the_arms_are_one_sweep(here: Path, run_command: Any) -> None:
    code, out, _ = run_command("sweep +experiment=i2a_arms env=sokoban --seeds 5 --dry-run")
    assert code == 0
    assert "9 settings × 5 seeds = 45 runs" in out
    code, _, err = run_command("train experiment=i2a_arms")
    assert code == 2
    assert "rlx sweep experiment=i2a_arms" in err


@pytest.mark.parametrize(("text", "said"), [("arms: [i2a_leaned]", "did you mean experiment=i2a_learned?"), ("arms: 3", "must be a list")])
def test_arms_that_are_none_are_refused(text: str, said: str, here: Path, run_command: Any) -> None:
    (here / "experiment").mkdir()
    (here / "experiment" / "mine.yaml").write_text(text)
    code, _, err = run_command(f"sweep experiment=mine --seeds 2 --config-dir {here} --dry-run")
    assert code == 2
    assert said in err


# What is refused


def test_worlds_that_are_no_grids_are_refused_with_what_to_type() -> None:
    box = spaces.Box(-1.0, 1.0, (3,))
    for action_space in (spaces.Box(-1.0, 1.0, (1,)), spaces.Discrete(2)):
        spec = EnvSpec(id="CartPole-v1", observation_space=box, action_space=action_space)
        with pytest.raises(ConfigError, match=r"env=CartPole-v1 shows none.*try env=sokoban"):
            I2A(settings_of(I2AConfig, **SMALL), spec, 4, CPU)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("algo.rollout_depth=0", "algo.rollout_depth must be at least 1"),
        ("algo.corrupt_prob=1.5", r"algo.corrupt_prob must be within \[0, 1\]"),
        ("algo.model_fraction=1", r"algo.model_fraction must be within \[0, 1\)"),
        ("algo.imagination=off algo.decide=search", "algo.decide=search needs a world"),
        ("algo.imagination=off algo.rollout_depth=5", "rollout_depth"),
        ("algo.imagination=perfect algo.model_fraction=0.2", "model_fraction"),
        ("algo.search.num_rollouts=3", "num_rollouts"),
        ("algo.num_minibatches=7 env.num_envs=8", "nearest that divide it"),
    ],
)
def test_settings_that_cannot_be_or_do_nothing_are_refused(settings: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Composer().compose(["algo=i2a", "env=sokoban", "recipe=null", *settings.split()])
