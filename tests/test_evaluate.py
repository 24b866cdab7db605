"""Evaluation: every seed counts once, and training is not affected."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from launch import run_main
from torch import Tensor

from rlx.algos.ppo import PPO
from rlx.collect import SEED_LIMIT, Collector, Episode
from rlx.config.algos.ppo_config import PPOConfig
from rlx.envs.registry import VectorEnvFactory
from rlx.envs.vector import GymVectorEnv
from rlx.errors import ConfigError, EnvError, EvaluationError
from rlx.evaluation.episodes import Begun, Stopped, episode_seeds, play_steps, run_episodes
from rlx.evaluation.evaluate import evaluate_run, evaluate_settings
from rlx.evaluation.evaluator import Evaluator, summarize
from rlx.rng import GlobalRNG, seed_everything
from rlx.store.runs import RunDir
from rlx.types import EnvSpec, PolicyOutput, Progress

SEEDS = np.arange(100, 110)


class Balancer:
    """Pushes by a rule, but pushes left at every fourth step of an episode: it has a memory."""

    device = torch.device("cpu")

    def initial_carry(self, batch_size: int) -> Tensor:
        return torch.full((batch_size,), 2)  # a memory that must be cleared at an episode's first step

    def act(self, obs: Tensor, carry: Tensor, is_first: Tensor, *, mode: str) -> PolicyOutput:
        assert mode == "eval"
        carry = torch.where(is_first, 0, carry) + 1
        push = (obs[:, 2] > 0).long()
        return PolicyOutput(torch.where(carry % 4 == 0, 0, push), carry, {})


class Gambler(Balancer):
    """Draws from every global generator."""

    def act(self, obs: Tensor, carry: Tensor, is_first: Tensor, *, mode: str) -> PolicyOutput:
        coin = int(random.random() < 0.5) + int(np.random.random() < 0.5)
        return PolicyOutput((torch.rand(len(obs)) + coin > 1).long(), carry, {})


def cartpole(num_envs: int) -> Any:
    return VectorEnvFactory("CartPole-v1")(num_envs)


def alone(seed: int) -> Episode:
    """One episode in one env, written out."""
    env, policy = cartpole(1), Balancer()
    obs, carry, is_first, return_, length = env.reset(seed=[seed])[0], policy.initial_carry(1), torch.tensor([True]), 0.0, 0
    while True:
        action, carry, _ = policy.act(torch.tensor(obs), carry, is_first, mode="eval")
        obs, reward, terminated, truncated, _ = env.step(action.numpy())
        return_, length, is_first = return_ + float(reward[0]), length + 1, torch.tensor([False])
        if terminated[0] or truncated[0]:
            return Episode(return_, length)


@pytest.mark.parametrize("num_envs", [1, 3, 10, 16])
def test_every_seed_is_played_once_in_order_whatever_the_number_of_envs(num_envs):
    expected = [alone(seed) for seed in SEEDS]
    assert len({e.length for e in expected}) > 5
    assert run_episodes(cartpole(num_envs), Balancer(), SEEDS) == expected


def test_environments_that_reuse_their_arrays_are_evaluated_alike():
    def run(num_envs: int) -> list[Episode]:
        return run_episodes(VectorEnvFactory("CartPole-v1", native=False)(num_envs), Balancer(), SEEDS)

    assert run(1) == run(3) == run(10)


def test_episodes_cut_by_a_time_limit_count_in_full():
    class Idle(Balancer):
        def act(self, obs: Tensor, carry: Tensor, is_first: Tensor, *, mode: str) -> PolicyOutput:
            return PolicyOutput(torch.zeros(len(obs), 1), carry, {})

    episodes = run_episodes(VectorEnvFactory("Pendulum-v1")(2), Idle(), SEEDS[:3])
    assert [e.length for e in episodes] == [200] * 3
    assert all(e.return_ < 0 for e in episodes)


def test_evaluation_leaves_the_global_generators_untouched(same):
    evaluator, rng = Evaluator(cartpole, num_episodes=5, seed=0), GlobalRNG()
    before = copy.deepcopy(rng.state_dict())
    evaluator(Gambler(), env_steps=10)
    assert same(rng.state_dict(), before)


def test_evaluation_draws_from_the_seed_and_the_env_steps_alone():
    evaluator = Evaluator(cartpole, num_episodes=20, seed=0)
    first = evaluator(Gambler(), env_steps=10)
    torch.rand(7)
    random.random()
    np.random.random()
    assert evaluator(Gambler(), env_steps=10) == first
    assert evaluator(Gambler(), env_steps=20) != first
    assert Evaluator(cartpole, num_episodes=20, seed=1)(Gambler(), env_steps=10) != first


def test_environments_to_evaluate_in_are_made_for_the_first_evaluation_and_never_more_than_it_has_episodes():
    made = []

    def make_env(num_envs: int) -> Any:
        made.append(num_envs)
        return cartpole(num_envs)

    evaluator = Evaluator(make_env, num_episodes=3, seed=0)
    assert made == []
    for env_steps in (10, 20):
        evaluator(Gambler(), env_steps=env_steps)
    assert made == [3]
    evaluator.close()
    Evaluator(make_env, num_episodes=3, seed=0).close()  # one that never evaluated has nothing to close
    assert made == [3]


def test_a_simulator_that_exists_only_once_is_told_what_an_evaluation_needs():
    def taken(num_envs: int) -> Any:
        raise ConfigError("env=X-v0 cannot be made with env.kwargs={}: OSError: port 5005 is in use")

    with pytest.raises(EvaluationError, match=r"needs 3 environments beside those that train .*loop\.eval_every=0 none.*port 5005"):
        Evaluator(taken, num_episodes=3, seed=0)(Gambler(), env_steps=10)


class Endless(gymnasium.Env):
    """Never ends an episode; earns 1 a step."""

    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, dtype=np.float32), 1.0, False, False, {}


def test_episodes_that_do_not_end_are_cut_and_counted():
    evaluator = Evaluator(lambda n: GymVectorEnv(Endless, n), num_episodes=3, seed=0, max_steps=7)
    result = evaluator(Gambler(), env_steps=10)
    assert (result["eval/return_mean"], result["eval/length_mean"], result["eval/cut_episodes"]) == (7.0, 7.0, 3.0)
    assert "eval/cut_episodes" not in Evaluator(cartpole, num_episodes=3, seed=0, max_steps=501)(Gambler(), env_steps=10)


def test_an_evaluation_is_given_up_before_its_next_env_step():
    env, asked = GymVectorEnv(Endless, 3), iter([False] * 4 + [True])
    with pytest.raises(Stopped):
        run_episodes(env, Gambler(), SEEDS, should_stop=lambda: next(asked))
    assert next(asked, None) is None
    evaluator = Evaluator(lambda n: GymVectorEnv(Endless, n), num_episodes=3, seed=0)
    before = GlobalRNG().state_dict()
    assert evaluator(Gambler(), env_steps=10, should_stop=lambda: True) is None
    assert str(GlobalRNG().state_dict()) == str(before)


def test_environments_of_an_evaluation_are_made_when_needed_and_anew_after_a_failure():
    made = []

    def make(num_envs: int) -> Any:
        made.append(cartpole(num_envs))
        return made[-1]

    evaluator = Evaluator(make, num_episodes=3, seed=0)
    assert made == []
    expected = evaluator(Gambler(), env_steps=10)
    evaluator(Gambler(), env_steps=20)
    assert len(made) == 1
    made[0].step = fail
    with pytest.raises(EvaluationError, match="environment 1 went away"):
        evaluator(Gambler(), env_steps=30)
    assert evaluator(Gambler(), env_steps=10) == expected
    assert len(made) == 2


def fail(action: Any) -> Any:
    raise EnvError("environment 1 went away")


def test_evaluation_does_not_change_training(same):
    def train(*, evaluates: bool) -> Any:
        seed_everything(0)
        env = VectorEnvFactory("CartPole-v1").training(4)[0]
        spec = EnvSpec(id="CartPole-v1", observation_space=env.single_observation_space, action_space=env.single_action_space)
        algo = PPO(PPOConfig(hidden_sizes=[8], normalize_observation=True, normalize_reward=True), spec, 4, torch.device("cpu"))
        collector, progress = Collector(env, algo, seed=0), Progress(total_env_steps=10_000)
        evaluator = Evaluator(cartpole, num_episodes=3, seed=0)
        collector.reset()
        for _ in range(3):
            rollout, _ = collector.collect(16)
            progress.advance(rollout)
            algo.update(rollout, progress)
            if evaluates:
                evaluator(algo, progress.env_steps)
        return algo.state_dict(), collector.state_dict(), GlobalRNG().state_dict()

    assert same(train(evaluates=True), train(evaluates=False))


def test_the_first_episodes_are_the_same_however_many_are_played():
    assert episode_seeds(5, stream=[0, 2]).tolist() == episode_seeds(50, stream=[0, 2])[:5].tolist()
    assert set(episode_seeds(50, stream=[0, 2])).isdisjoint(episode_seeds(50, stream=[1, 2]))
    assert set(episode_seeds(50, stream=[0, 2])).isdisjoint(episode_seeds(50, stream=[0, 1]))


def test_summary_golden_numbers():
    # deviations -1, 0, 1 with n - 1 = 2
    summary = summarize([Episode(1.0, 10), Episode(2.0, 20), Episode(3.0, 60)])
    assert summary["eval/return_mean"] == 2.0
    assert summary["eval/return_std"] == 1.0
    assert summary["eval/length_mean"] == 30.0
    assert "eval/return_ci_low" not in summary
    summary = summarize([Episode(r, 10) for r in (1.0, 2.0, 3.0, 4.0, 5.0)])
    half = 2.776 * 1.5811 / 5**0.5  # Student's t with 4 degrees of freedom is the least
    assert summary["eval/return_ci_low"] <= 3.0 - half + 1e-3
    assert summary["eval/return_ci_high"] >= 3.0 + half - 1e-3


def test_summary_of_one_episode_is_defined():
    assert summarize([Episode(4.0, 8)]) == {
        "eval/return_mean": 4.0,
        "eval/return_std": 0.0,
        "eval/return_iqm": 4.0,
        "eval/length_mean": 8.0,
    }


def test_what_an_environment_measures_is_averaged_over_the_episodes_as_it_was_where_they_ended():
    env = cartpole(3)
    env.episode_measures = lambda: {"distance": env._elapsed * 2.0}  # of an episode's length
    episodes = run_episodes(env, Balancer(), SEEDS)
    assert [e.measures for e in episodes] == [{"distance": 2.0 * e.length} for e in episodes]
    summary = summarize(episodes)
    assert summary["eval/distance"] == pytest.approx(2.0 * summary["eval/length_mean"])


@pytest.mark.parametrize("returns", [[1.0, 2.0, 3.0, 4.0], [500.0] * 10])
def test_few_episodes_or_equal_ones_have_no_interval(returns):
    assert not [key for key in summarize([Episode(r, 8) for r in returns]) if "_ci_" in key]


def test_games_that_all_end_alike_have_an_interval_within_their_bounds():
    won = summarize([Episode(1.0, 8)] * 20, game=True)
    assert 0.6 < won["eval/return_ci_low"] < won["eval/return_ci_high"] == 1.0
    drawn = summarize([Episode(0.0, 8)] * 100, game=True)
    assert -0.06 < drawn["eval/return_ci_low"] < 0.0 < drawn["eval/return_ci_high"] < 0.06


def test_games_are_played_from_both_sides_in_turn():
    seeds = episode_seeds(7, stream=[1], paired=True)
    assert (seeds % 2).tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert (seeds[::2][:3] + 1 == seeds[1::2]).all()
    assert episode_seeds(4, stream=[1], paired=True).tolist() == seeds[:4].tolist()
    assert seeds.max() < SEED_LIMIT


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a short run on Sokoban, named boxes."""
    directory = tmp_path_factory.mktemp("boxes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        words = "env.num_envs=8 algo.rollout_length=16 loop.total_env_steps=512 loop.log_every=128 loop.eval_episodes=4"
        quiet = "env.max_episode_steps=20 log.wandb=disabled log.console=quiet"
        assert run_main(f"train algo=ppo env=sokoban {words} {quiet} --name boxes", patch) == 0
    return directory


def test_solved_levels_are_counted_in_training_and_in_evaluations(
    boxes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(boxes)
    lines = [json.loads(line) for line in (boxes / "runs/boxes/metrics.jsonl").read_text().splitlines()]
    assert all(0.0 <= line["episode/solve_rate"] <= 1.0 for line in lines if "episode/count" in line)
    assert 0.0 <= lines[-1]["eval/solve_rate"] <= 1.0
    capsys.readouterr()
    assert run_main("eval boxes --stochastic --episodes 40 --json", monkeypatch) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["solve_rate_ci"][0] <= one["solve_rate"] <= one["solve_rate_ci"][1]
    assert 0.0 < one["solve_rate"] < 0.9
    assert run_main("eval boxes --stochastic --episodes 40 --env num_boxes=3 --env max_episode_steps=60 --json", monkeypatch) == 0
    three = json.loads(capsys.readouterr().out)
    assert three["solve_rate"] < one["solve_rate"]
    assert three["length_mean"] > 20
    assert run_main("eval boxes --episodes 4 --env num_boxes=2", monkeypatch) == 0
    assert "episodes of rlx/Sokoban-v0 with num_boxes=2:" in capsys.readouterr().out


def test_a_run_is_evaluated_from_python(boxes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(boxes / "runs" / "boxes")
    capsys.readouterr()
    found = evaluate_run(run, episodes=6, stochastic=True, env_settings=["max_episode_steps=7"])
    assert (found.run, found.env, found.env_steps, found.mode, len(found.episodes)) == ("boxes", "rlx/Sokoban-v0", 512, "stochastic", 6)
    assert found.return_mean == pytest.approx(np.mean([e.return_ for e in found.episodes]))
    assert found.solve_rate == np.mean([bool(e.solved) for e in found.episodes])
    assert max(e.length for e in found.episodes) <= 7
    assert evaluate_run(run, episodes=6, stochastic=True, env_settings=["max_episode_steps=7"]) == found
    told = evaluate_settings(run, [["num_boxes=1"], ["num_boxes=2"], ["size=9"]], episodes=1)
    assert [next(told).env_settings, next(told).env_settings] == [("num_boxes=1",), ("num_boxes=2",)]
    with pytest.raises(ConfigError, match="acts on Box"):
        next(told)
    with pytest.raises(ConfigError, match="algo=ppo searches no tree"):
        evaluate_run(run, simulations=3)
    with pytest.raises(ConfigError, match=r"algo=ppo, which has no such ablation; leave it out$"):
        evaluate_run(run, ablation={"vision": "off"})
    with pytest.raises(ConfigError, match=r"--memory off: this run has no memory \(algo.memory=none\); leave it out"):
        evaluate_run(run, ablation={"memory": "off"})
    with pytest.raises(Stopped):
        evaluate_run(run, should_stop=lambda: True)
    assert capsys.readouterr() == ("", ""), "the library prints nothing"


def test_episodes_are_generated_reset_by_reset_and_step_by_step() -> None:
    env = GymVectorEnv(Endless, 2)
    items = list(play_steps(env, Gambler(), np.array([1, 2, 3]), max_steps=2))
    told = [
        ("begun", item.envs.tolist(), item.episode.tolist()) if isinstance(item, Begun)
        else ("stepped", item.length.tolist(), item.episode.tolist(), item.is_last.tolist(), item.return_.tolist())
        for item in items
    ]  # fmt: skip
    no, yes = [False] * 2, [True] * 2
    assert told == [
        ("begun", [0, 1], [0, 1]), ("stepped", [1, 1], [0, 1], no, [1.0, 1.0]), ("stepped", [2, 2], [0, 1], yes, [2.0, 2.0]),
        ("begun", [0, 1], [2, 3]), ("stepped", [1, 1], [2, 3], no, [1.0, 1.0]), ("stepped", [2, 2], [2, 3], yes, [2.0, 2.0]),
    ]  # fmt: skip


def test_several_values_of_a_setting_are_measured_as_each_alone(
    boxes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(boxes)
    together = "eval boxes --stochastic --episodes 12 --env num_boxes=1,3 --env max_episode_steps=20"
    assert run_main(f"{together} --json", monkeypatch) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert run_main(f"{together.replace('1,3', '3')} --json", monkeypatch) == 0
    assert lines[1] == json.loads(capsys.readouterr().out)
    assert lines[0]["env"] == ["num_boxes=1", "max_episode_steps=20"]
    assert run_main(together, monkeypatch) == 0
    out = capsys.readouterr().out
    for line in lines:
        row = next(row for row in out.splitlines() if line["env"][0] in row)
        assert f"{100 * line['solve_rate']:.1f} %" in row
    assert run_main(f"{together} --video 1", monkeypatch) == 2
    assert "one value of every --env at a time" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "message"), [
    ("--env num_boxes", "--env num_boxes: expected name=value"), ("--env num_boxes=1,", "--env num_boxes=: expected name=value"),
    ("--env num_box=2", "did you mean env.kwargs.num_boxes?"),
    ("--env size=9", "acts on Box(0, 1, (4, 7, 7), uint8) with Discrete(4), but this is Box(0, 1, (4, 9, 9), uint8)"),
])  # fmt: skip
def test_environments_to_evaluate_in_that_do_not_fit_are_refused(
    words: str, message: str, boxes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(boxes)
    assert run_main(f"eval boxes {words}", monkeypatch) == 2
    assert message in " ".join(capsys.readouterr().err.split())
