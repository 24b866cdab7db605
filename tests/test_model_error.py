"""Measurements of a learned model: on processes with known dynamics, and the command from a run to its figure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import run_main
from scipy import stats
from torch import Tensor

from rlx.envs.native import NATIVE
from rlx.envs.registry import VectorEnvFactory
from rlx.errors import ConfigError
from rlx.evaluation.episodes import Recording, Stopped, record_episodes
from rlx.evaluation.model_error import LEVELS, ModelError, covered, judge, predictive_rank, spearman, windows
from rlx.evaluation.model_quality import RandomPolicy, evaluate_model
from rlx.models.ensemble_rollouts import EnsembleModel
from rlx.models.prediction import follow_mean, predict_observations
from rlx.render import figures
from rlx.store.runs import RunDir

Command = Callable[[str], tuple[int, str, str]]
DECAY, NOISE, HORIZON, STARTS = 0.8, 0.5, 4, 2000


class KnownMembers:
    """Members that all know x' = DECAY x + action + noise, each with an error of its own in the mean."""

    def __init__(self, noise: float, errors: tuple[float, ...] = (0.0, 0.0)) -> None:
        self.num_members = len(errors)
        self.noise_scale, self.centre = torch.full((2,), noise), torch.zeros(3)
        self._errors = torch.tensor(errors)[:, None, None]

    def predict(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        obs, action = inputs[..., :2], inputs[..., 2:]
        return (DECAY - 1.0) * obs + action + self._errors, torch.zeros_like(obs)

    def spread(self, raw: Tensor) -> Tensor:
        return torch.ones_like(raw)


def model(members: KnownMembers) -> EnsembleModel:
    return EnsembleModel(
        frozen=members, obs_scale=torch.ones(2), propagation="ts_inf", num_particles=1,  # type: ignore[arg-type]
        reward_fn=lambda o, a, n: n[..., 0], termination_fn=None, measure_disagreement=True,
    )  # fmt: skip


def linear_process(noise: float) -> tuple[Tensor, Tensor]:
    """Observations [H + 1, S, 2] and actions [H, S, 1] of x' = DECAY x + action + noise."""
    obs, action = [torch.randn(STARTS, 2)], torch.randn(HORIZON, STARTS, 1)
    for a in action:
        obs.append(DECAY * obs[-1] + a + noise * torch.randn(STARTS, 2))
    return torch.stack(obs), action


def judged(members: KnownMembers, noise: float) -> ModelError:
    obs, action = linear_process(noise)
    mean, samples, disagreement = (x.numpy() for x in predict_observations(model(members), obs[0], action, num_particles=100))
    true = obs.numpy()
    rank = np.stack([predictive_rank(s, o) for s, o in zip(samples, true[1:], strict=True)])
    return judge(true.astype(float), mean.astype(float), rank, disagreement.astype(float), np.ones(2))


# Calibration


def test_a_model_that_knows_the_mean_and_the_noise_covers_what_it_says_at_every_step_and_feature():
    found = judged(KnownMembers(NOISE), NOISE)
    for level in LEVELS:
        np.testing.assert_allclose(found.coverage(level), level, atol=0.04)  # a share of 2,000 deviates by 0.011


def test_a_model_that_believes_in_half_the_noise_covers_less():
    found = judged(KnownMembers(NOISE / 2), NOISE)
    # A normal number is within half of the 50 % interval with probability 0.264, and within half of the 90 % interval with 0.589.
    np.testing.assert_allclose(found.coverage(0.5), 0.264, atol=0.04)
    np.testing.assert_allclose(found.coverage(0.9), 0.589, atol=0.04)


def test_samples_have_noise_of_their_own_where_planners_share_it():
    obs, action = torch.zeros(3, 2), torch.zeros(1, 3, 1)
    samples = predict_observations(model(KnownMembers(NOISE)), obs, action, num_particles=4).samples
    assert samples.shape == (1, 8, 3, 2)
    assert len(samples.unique()) == 48
    planned = model(KnownMembers(NOISE))
    shared = planned.steps(planned.initial(torch.zeros(3, 2), 5), torch.zeros(1, 3, 5, 1)).state[0, :, :1]
    assert len(shared.unique()) == 12  # of two members in three states


def test_the_rank_of_the_truth_among_samples():
    samples = np.array([1.0, 2.0, 3.0, 4.0])[:, None]
    np.testing.assert_allclose(predictive_rank(samples, np.array([2.5])), [0.5])
    np.testing.assert_allclose(predictive_rank(samples, np.array([0.0])), [0.1])  # (0 + 0.5) / 5
    np.testing.assert_allclose(predictive_rank(samples, np.array([4.0])), [0.8])  # three below and half of a tie
    assert covered(np.array([0.25, 0.24, 0.75, 0.76]), 0.5).tolist() == [True, False, True, False]


# Error


def test_a_perfect_model_of_a_process_without_noise_has_no_error_at_any_step():
    found = judged(KnownMembers(0.0), 0.0)
    np.testing.assert_allclose(found.error, 0.0, atol=1e-6)
    assert (found.no_change > 0.5).all()


def test_a_constant_error_of_the_mean_adds_up_along_the_look_ahead():
    obs, action = linear_process(0.0)
    wrong = follow_mean(model(KnownMembers(0.0, (0.1, 0.3))), obs[0], action) - obs[1:]
    expected = [0.2 * sum(DECAY**i for i in range(k)) for k in range(1, HORIZON + 1)]
    np.testing.assert_allclose(wrong[:, 0, 0].numpy(), expected, atol=1e-5)


def test_members_that_differ_by_a_constant_disagree_by_what_they_differ():
    obs, action = torch.randn(3, 2), torch.randn(1, 3, 1)
    doubt = predict_observations(model(KnownMembers(NOISE, (-0.1, 0.3))), obs, action, num_particles=2).disagreement
    np.testing.assert_allclose(doubt.numpy(), 0.2, atol=1e-6)  # the deviation of -0.1 and 0.3


def test_errors_are_in_deviations_and_leave_out_what_does_not_vary():
    true = np.zeros((2, 2, 3))
    mean = np.array([[[2.0, 9.0, 3.0], [0.0, 9.0, 1.0]]])  # one step, two starts, three features
    found = judge(true, mean, np.full((1, 2, 3), 0.5), np.array([[1.0, 2.0]]), np.array([2.0, 0.0, 1.0]))
    assert found.features == [0, 2]
    np.testing.assert_allclose(found.error, [math.sqrt((1 + 9 + 0 + 1) / 4)])
    np.testing.assert_allclose(found.error_by_feature, [math.sqrt(1 / 2), math.sqrt(10 / 2)])
    np.testing.assert_allclose(found.error_by_start, [math.sqrt(10 / 2), math.sqrt(1 / 2)])
    assert found.spearman == pytest.approx(-1.0)


# Disagreement


@pytest.mark.parametrize("distinct", [3, 10, 1000])
def test_rank_correlation_is_scipys_with_and_without_ties(distinct: int):
    x, y = np.random.randint(distinct, size=(2, 50)).astype(float)
    y += x
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_rank_correlation_sees_only_the_order():
    x = np.array([3.0, 1.0, 2.0])
    assert spearman(x, np.exp(x)) == pytest.approx(1.0)
    assert spearman(x, -(x**3)) == pytest.approx(-1.0)
    assert math.isnan(spearman(x, np.ones(3)))
    assert math.isnan(spearman(x, np.array([1.0, np.nan, 2.0])))


# Episodes


def test_windows_stay_within_episodes_and_are_spread_over_all():
    episodes = [(np.arange(length + 1.0)[:, None] + 100 * e, np.arange(float(length))[:, None]) for e, length in enumerate((4, 1, 6))]
    found = windows(episodes, 3, most=100)
    assert found is not None
    obs, action = found
    assert obs[..., 0].T.tolist() == [[b, b + 1, b + 2, b + 3] for b in (0, 1, 200, 201, 202, 203)]
    assert action[0, :, 0].tolist() == [0, 1, 0, 1, 2, 3]
    few = windows(episodes, 3, most=3)
    assert few is not None
    assert few[0][0, :, 0].tolist() == [0, 200, 202]
    assert windows(episodes, 7, most=3) is None


def test_recordings_are_the_episodes_with_their_seeds_whatever_is_played_beside_them():
    def record(num_envs: int) -> list[Recording]:
        env = VectorEnvFactory("CartPole-v1")(num_envs)
        return record_episodes(env, RandomPolicy(env.single_action_space, seed=0), np.array([5, 6, 7, 8]))

    for recorded in (record(1), record(3)):
        for seed, episode in zip((5, 6, 7, 8), recorded, strict=True):
            env = VectorEnvFactory("CartPole-v1")(1)
            obs, _ = env.reset(seed=[seed])
            seen, ended = [obs[0].copy()], False
            for action in episode.action:
                assert not ended
                obs, _, terminated, truncated, _ = env.step(action[None])
                seen.append(obs[0].copy())
                ended = bool(terminated[0] or truncated[0])
            assert ended
            np.testing.assert_array_equal(np.stack(seen), np.stack(episode.obs))


def test_random_actions_fill_the_space_and_leave_the_generators_alone():
    space = NATIVE["rlx/CartPoleContinuous-v0"](1).single_action_space
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    first, again = (RandomPolicy(space, seed=3).act(torch.zeros(200, 4), (), torch.ones(200), mode="eval").action for _ in range(2))
    assert torch.equal(first, again)
    assert (first.min() < -0.9, first.max() > 0.9) == (True, True)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # type: ignore[index]


# The figure and the command


def test_the_figure_draws_what_was_measured():
    found = judged(KnownMembers(NOISE), NOISE)
    error, calibration, doubts = figures.draw_model_error(found, title="t").axes
    lines = {line.get_label(): line for line in error.lines}
    np.testing.assert_array_equal(lines["the model"].get_ydata(), found.error)
    np.testing.assert_array_equal(lines["predicting no change"].get_ydata(), found.no_change)
    lines = {line.get_label(): line for line in calibration.lines}
    np.testing.assert_allclose(lines["all steps"].get_ydata(), [found.coverage(level).mean() for level in LEVELS])
    np.testing.assert_array_equal(doubts.collections[0].get_offsets()[:, 1], found.error_by_start)


TINY = (
    "train algo=pets env=pendulum --name tiny log.wandb=disabled loop.total_env_steps=120 loop.eval_episodes=1 loop.checkpoint_every=60 "
    "algo.hidden_sizes=[16,16] algo.planner.num_candidates=10 algo.planner.num_iterations=1 algo.planner.horizon=6 "
    "algo.max_epochs=3 algo.initial_steps=100 "
    "algo.ensemble_size=3 recipe=null env.kwargs.max_episode_steps=30 env.num_envs=4"
)


@pytest.fixture
def tiny(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    assert run_main(TINY, monkeypatch) == 0
    return here / "runs" / "tiny"


def test_the_command_measures_a_run_draws_it_and_repeats_itself(tiny: Path, run_command: Command):
    code, out, err = run_command("model tiny --episodes 2")
    assert (code, err) == (0, "")
    assert "2 new episodes of Pendulum-v1, acting: plan" in out
    assert "from 50 starts" in out  # 30 - 6 + 1 in each
    assert "Spearman" in out
    assert (tiny / "plots/model.png").stat().st_size > 5000
    found = [json.loads(run_command(f"model tiny --episodes 2 --policy random --horizon 9 --json --seed {s}")[1]) for s in (0, 0, 1)]
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert (found[0]["horizon"], len(found[0]["k_step_error"]), found[0]["starts"]) == (9, 9, 44)
    assert np.shape(found[0]["coverage_90"]) == (9, 3)
    assert found[0]["figure"].endswith("plots/model-random.png")

    code, _, err = run_command("model tiny --horizon 31 --episodes 1")
    assert code == 2
    assert "--horizon 31: the longest of the episodes lasts 30 steps" in err
    code, _, err = run_command("model tiny --checkpoint 60")
    assert code == 2
    assert "tiny at 60 env steps has not fitted its model yet" in err
    for words, said in {
        "--policy best": "--policy best",
        "--out x.gif": ".png, .svg, .pdf",
        "--checkpoint 61": "expected best, latest or one of",
    }.items():
        code, _, err = run_command(f"model tiny {words}")
        assert (code in (2, 4), "Traceback" in err) == (True, False)
        assert said in err


def test_a_model_is_evaluated_from_python(tiny: Path, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    run = RunDir.open(tiny.parent, "tiny")
    found = evaluate_model(run, episodes=2, policy="random", horizon=9)
    assert (found.env_steps, found.policy, found.num_episodes, found.eval_env_steps, found.horizon) == (120, "random", 2, 60, 9)
    assert found.error.error.shape == (9,)
    assert found.as_dict() == evaluate_model(run, episodes=2, policy="random", horizon=9).as_dict()
    assert evaluate_model(run, episodes=1).horizon == 6, "that of the planner"
    with pytest.raises(ConfigError, match="has not fitted its model yet"):
        evaluate_model(run, checkpoint="60")
    with pytest.raises(Stopped):
        evaluate_model(run, should_stop=lambda: True)
    assert capsys.readouterr() == ("", "")


def test_a_run_without_a_model_is_refused_with_what_to_type(here: Path, run_command: Command):
    assert run_command("train algo=ppo env=cartpole --name p recipe=null log.wandb=disabled loop.total_env_steps=64 "
                       "env.num_envs=1 algo.rollout_length=64 loop.eval_episodes=1")[0] == 0  # fmt: skip
    code, out, err = run_command("model p")
    assert (code, out) == (2, "")
    assert "p is algo=ppo, whose predictions rlx model does not compare, as it does those of algo=pets" in err
    assert "algo=pets" in err
    assert "rlx eval p" in err
