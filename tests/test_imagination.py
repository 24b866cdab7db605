"""The model beside an agent: when it is fitted, what is corrupted, blended and saved, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from rlx.action_range import ActionRange
from rlx.collect import Collector
from rlx.config.algos.trusted_config import Expansion, Imagined, ModelSettings, StopRule, TrustedConfig, Weights
from rlx.envs.control.reward_functions import RULES
from rlx.envs.control.simulators import SIMULATORS, simulator_of
from rlx.envs.native import NATIVE
from rlx.errors import ConfigError
from rlx.experience import Steps
from rlx.imagination import Imagination
from rlx.types import EnvSpec, PolicyOutput, Progress, Tree

POLE = "rlx/CartPoleContinuous-v0"
CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"initial_steps": 40, "rollouts_per_step": 2.0, "rollout_steps": 3}
SMALL_MODEL: dict[str, Any] = {"hidden_sizes": [8], "max_epochs": 2, "ensemble_size": 3, "fit_every": 40, "batch_size": 16}
WHERE: dict[str, Any] = {"expansion": Expansion, "imagined": Imagined, "stop": StopRule, "weights": Weights}
OF_MODEL = {field.name for field in fields(ModelSettings)} - {"learning_rate"}


class Random:
    """An agent whose actions are random."""

    device, rollout_length = CPU, 1

    def initial_carry(self, batch_size: int) -> Tree:
        return ()

    def act(self, obs: Tensor, carry: Tree, is_first: Tensor, *, mode: str) -> PolicyOutput:
        return PolicyOutput(torch.rand(len(obs), 1) * 2.0 - 1.0, carry, {})


def pole_spec(**changes: Any) -> EnvSpec:
    env, rules = NATIVE[POLE](1), RULES[POLE]
    return EnvSpec(**{
        "id": POLE, "observation_space": env.single_observation_space, "action_space": env.single_action_space, "reward_fn": rules.reward,
        "termination_fn": rules.termination, "simulator": simulator_of(POLE, {}), "simulated": tuple(SIMULATORS), **changes,
    })  # fmt: skip


def make(spec: EnvSpec | None = None, **settings: Any) -> Imagination:
    of_model = {key: settings.pop(key) for key in list(settings) if key in OF_MODEL}
    kinds = {name: type(getattr(ModelSettings(), name)) for name in OF_MODEL}
    model = ModelSettings(**{key: kinds[key](value) for key, value in {**SMALL_MODEL, **of_model}.items()})
    config = TrustedConfig(model=model, **{key: WHERE.get(key, lambda x: x)(value) for key, value in {**SMALL, **settings}.items()})
    spec = spec or pole_spec()
    return Imagination(config, spec, 2, ActionRange(spec, CPU, verb="tests choose"), CPU)


def policy(obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    return noise.tanh(), torch.zeros_like(obs[..., 0])


def run(imagination: Imagination, env_steps: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Metrics of the updates in which there are any."""
    collector, progress, metrics = Collector(NATIVE[POLE](2), Random(), seed=seed), Progress(total_env_steps=1000), []
    collector.reset()
    while progress.env_steps < env_steps:
        rollout, _ = collector.collect(1)
        progress.advance(rollout)
        if found := imagination.update(rollout, progress, policy):
            metrics.append({"env_steps": progress.env_steps, **found})
    return metrics


def real_steps(num: int) -> Steps:
    return Steps(torch.zeros(num, 4), torch.zeros(num, 1), torch.full((num,), 7.0), torch.ones(num), torch.zeros(num, 4),
                 torch.arange(num), torch.ones(num))  # fmt: skip


def test_the_model_is_fitted_before_learning_begins_and_then_every_so_many_env_steps():
    metrics = run(make(expansion="mve", initial_steps=50), 170)
    assert [found["env_steps"] for found in metrics] == [50, 80, 120, 160]
    assert "trust/spearman" not in metrics[0]
    assert "trust/spearman_5" not in metrics[2]  # of too few windows
    assert all(-1.0 <= found["trust/spearman"] <= 1.0 for found in metrics[2:])


def test_a_control_without_a_model_fits_nothing():
    imagination = make(expansion="steve", weights="model_free")
    assert run(imagination, 120) == []
    assert imagination.learner.replay.size == 0


def test_batches_are_imagined_but_for_a_share():
    torch.manual_seed(0)
    imagination = make(imagined="mbpo", real_fraction=0.25)
    assert imagination.blend(real_steps(16), 8).reward.tolist() == [7.0] * 16  # nothing has been imagined yet
    metrics = run(imagination, 90)
    assert metrics[-1]["trust/rollout_length"] <= 3.0
    blended = imagination.blend(real_steps(16), 8)
    assert [value == 7.0 for value in blended.reward.tolist()] == ([True] * 2 + [False] * 6) * 2
    assert set(blended.reward.tolist()) == {1.0, 7.0}
    imagined = blended.reward == 1.0
    assert (blended.obs[imagined] != blended.next_obs[imagined]).any(1).all()
    assert set(np.round(blended.discount[imagined].double().numpy(), 4)) <= {0.0, 0.99}
    assert torch.equal(blended.next_obs[~imagined], torch.zeros(4, 4))


def test_a_threshold_gives_few_imagined_steps_a_small_share():
    imagination = make(imagined="mbpo", stop="threshold", stop_limit=1e-9)
    (first, *_) = run(imagination, 50)
    assert first["trust/threshold"] == pytest.approx(1e-9)
    assert first["trust/use"] == first["trust/rollout_length"] == 0.0
    assert imagination.blend(real_steps(16), 8).reward.tolist() == [7.0] * 16


def test_a_rule_and_a_horizon_report_the_predictions_that_they_take():
    (first, *_) = run(make(imagined="mbpo", termination="never"), 50)
    assert first["trust/model_calls"] == pytest.approx(2.0 * 3)
    (first, *_) = run(make(imagined="mbpo", stop="rank", termination="never"), 50)
    assert first["trust/model_calls"] == pytest.approx(2.0 * 3 * 3)


@pytest.mark.parametrize("kind", ["learned", "perfect", "useless"])
def test_every_kind_of_model_expands_and_imagines(kind):
    torch.manual_seed(0)
    imagination = make(expansion="steve", imagined="mbpo", kind=kind)
    run(imagination, 90)
    batch = imagination.blend(real_steps(8), 8)

    def critics(obs: Tensor, action: Tensor) -> Tensor:
        return torch.arange(3.0)[:, None] + obs.sum(-1)

    found = imagination.expand(batch, policy, critics, alpha=0.1, measure=True)
    assert found.target.isfinite().all()
    weights = [float(found.metrics[f"trust/w_{h}"]) for h in range(4)]
    assert sum(weights) == pytest.approx(1.0, abs=1e-5)
    assert float(found.metrics["trust/use"]) == pytest.approx(1.0 - weights[0], abs=1e-5)
    if kind == "perfect":
        obs, action = torch.randn(3, 2, 4) * 0.1, torch.zeros(3, 2, 1)
        next_obs = imagination._model.step(obs, action, noise=True).next_obs
        torch.testing.assert_close(next_obs[0], torch.from_numpy(simulator_of(POLE, {})(obs[0].numpy(), action[0].numpy())[0]).float())


def test_a_model_goes_on_from_its_state_bit_for_bit():
    settings: dict[str, Any] = {
        "imagined": "mbpo", "stop": "threshold", "corruption": "regional", "corrupt_prob": 0.3, "termination": "learned",
        "reward": "learned",
    }  # fmt: skip
    torch.manual_seed(0)
    first = make(**settings)
    run(first, 90)
    torch.manual_seed(99)
    second = make(**settings)
    second.load_state_dict(first.state_dict())
    found = []
    for imagination in (first, second):
        torch.manual_seed(1)
        metrics = run(imagination, 90, seed=5)
        found.append(([{k: v for k, v in m.items() if k != "time/fit_s"} for m in metrics], imagination.blend(real_steps(16), 8)))
    assert str(found[0][0]) == str(found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_corruption_leaves_the_data_and_the_fits_alone():
    found = []
    for corruption in ("none", "shared"):
        torch.manual_seed(0)
        imagination = make(expansion="steve", corruption=corruption, corrupt_prob=0.5)
        run(imagination, 90)
        found.append(imagination.learner.state_dict()["ensemble"])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_members_that_are_wrong_on_their_own_are_doubted_and_members_that_are_wrong_together_are_not():
    torch.manual_seed(0)
    imagination, found = make(expansion="steve", max_epochs=20, batch_size=64), {}
    run(imagination, 110)
    for corruption, prob in (("independent", 0.0), ("independent", 0.2), ("independent", 0.5), ("shared", 0.5)):
        other = make(expansion="steve", max_epochs=20, batch_size=64, corruption=corruption, corrupt_prob=prob)
        other.load_state_dict({**imagination.state_dict(), "corruption": other.state_dict()["corruption"]})
        judged = other._judge()
        found[corruption, prob] = float(judged["trust/doubt"]), float(judged["trust/error"])
    doubts = [found["independent", prob][0] for prob in (0.0, 0.2, 0.5)]
    assert doubts == sorted(doubts)
    assert found["shared", 0.5][0] < 0.5 * doubts[2]
    assert found["shared", 0.5][1] > 0.8 * found["independent", 0.5][1]


def test_what_the_environment_does_not_give_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match=r"cannot be stepped from an observation; rlx/CartPoleContinuous-v0, .*algo.model.kind=learned"):
        make(pole_spec(simulator=None), expansion="mve", kind="perfect")
    with pytest.raises(ConfigError, match=r"algo.model.reward=known.*use algo.model.reward=learned"):
        make(pole_spec(reward_fn=None), expansion="mve")
    with pytest.raises(ConfigError, match=r"algo.model.termination=known.*use algo.model.termination=learned, or never"):
        make(pole_spec(termination_fn=None), expansion="mve")
    image = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    with pytest.raises(ConfigError, match=r"one vector of floats.*algo.expansion=none"):
        make(pole_spec(observation_space=image), expansion="mve")
    assert math.isinf(
        make(pole_spec(reward_fn=None, termination_fn=None), expansion="mve", reward="learned", termination="never")._stop.limit
    )
