"""SAC with a model: its targets and gradients against the equations, what corruption of nothing changes, and which settings are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_off_policy import CPU, SMALL, SPEC, batch, rollout

from rlx.algos.sac import SAC
from rlx.config.algos.sac_config import SACConfig
from rlx.config.algos.trusted_config import CorruptionKind, Expansion, Imagined, LearnedTermination, ModelSettings, RewardSource, Weights
from rlx.config.compose import Composer
from rlx.errors import ConfigError
from rlx.nn import squashed
from rlx.types import Progress

FIT: dict[str, Any] = {
    "hidden_sizes": [6], "max_epochs": 1, "fit_every": 50, "ensemble_size": 3, "reward": RewardSource.learned,
    "termination": LearnedTermination.never,
}  # fmt: skip


def make(corruption: str = "none", **settings: Any) -> SAC:
    """An agent with networks away from their first values, a model that was fitted once, and gradients of a first step."""
    torch.manual_seed(3)
    model = ModelSettings(**FIT, corruption=CorruptionKind(corruption), corrupt_prob=0.0 if corruption != "none" else 0.5)
    algo, progress = SAC(SACConfig(**{**SMALL, "model": model, **settings}), SPEC, 1, CPU), Progress(total_env_steps=100)
    for p in [*algo.actor.parameters(), *algo.target.module.parameters()]:
        p.data += 0.2 * torch.randn_like(p)
    for _ in range(8):
        steps = rollout(1)
        progress.advance(steps)
        algo.update(steps, progress)
    return algo


def test_with_all_weight_on_no_imagined_step_the_target_is_the_mean_of_the_critics():
    algo, steps = make(expansion=Expansion.steve, weights=Weights.model_free), batch()
    assert algo.critics.num_members == 3
    assert algo.imagination is not None
    torch.manual_seed(5)
    found = algo.imagination.expand(steps, algo._policy_of, algo._target_values, alpha=0.2, measure=True)
    torch.manual_seed(5)
    with torch.no_grad():
        next_ = squashed.sample(algo.policy(steps.next_obs))
        soft = algo.target.module(steps.next_obs, next_.action).mean(0) - 0.2 * next_.log_prob
    torch.testing.assert_close(found.target, steps.reward + steps.discount * soft)
    assert found.metrics == {"trust/w_0": 1.0, "trust/use": 0.0, "trust/model_calls": 0.0}


def test_targets_look_ahead_from_observations_in_float64_as_mujoco_has_them():
    algo, steps = make(expansion=Expansion.steve), batch()
    assert algo.imagination is not None
    found = []
    for next_obs in (steps.next_obs, steps.next_obs.double()):
        torch.manual_seed(5)
        targets = algo.imagination.expand(steps._replace(next_obs=next_obs), algo._policy_of, algo._target_values, alpha=0.2, measure=False)
        found.append(targets.target)
    assert torch.equal(*found)


def test_critics_learn_from_imagined_steps_of_their_own_beside_the_real_ones():
    algo, steps = make(expansion=Expansion.mve, horizon=2, td_k=True), batch()
    assert algo.imagination is not None
    torch.manual_seed(5)
    found = algo.imagination.expand(steps, algo._policy_of, algo._target_values, alpha=algo.alpha, measure=False)
    extra = found.extra
    assert extra is not None
    real = algo.values(steps.obs, steps.action) - found.target
    imagined = torch.stack([algo.values(extra.obs[k], extra.action[k])[k] - extra.target[k] for k in range(3)])
    loss = 0.5 * (real.square().sum(1) + (extra.weight * imagined.square()).sum(1)).sum() / (6 + 2 * 6)
    expected = torch.autograd.grad(loss, list(algo.values.parameters()))
    torch.manual_seed(5)
    with torch.no_grad():
        algo._step(steps, 0, 0.0, measure=True)
    for p, grad in zip(algo.values.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("where", [{"expansion": Expansion.steve}, {"imagined": Imagined.mbpo}])
def test_corruption_of_nothing_is_the_run_without_it_bit_for_bit(where):
    runs = [make(corruption, **where) for corruption in ("none", "independent", "regional", "shared")]
    for other in runs[1:]:
        for a, b in zip(runs[0].values.parameters(), other.values.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algo.horizon=5"], "algo.horizon.*algo.expansion=mve or steve"),
        (["algo.expansion=steve", "algo.num_critics=3"], "algo.num_critics.*algo.expansion=none"),
        (["algo.model.fit_every=9"], "algo.model.fit_every.*algo.expansion=mve or steve or algo.imagined=mbpo"),
        (["algo.imagined=mbpo", "algo.stop_limit=0.1"], "algo.stop_limit.*algo.stop=threshold"),
        (["algo.expansion=steve", "algo.model.ensemble_size=1"], "algo.model.ensemble_size must be at least 2"),
        (["algo.expansion=mve", "algo.model.corrupt_prob=0.1"], "algo.model.corrupt_prob.*algo.model.corruption="),
    ],
)  # fmt: skip
def test_a_setting_of_a_model_that_has_no_effect_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        Composer().compose(["algo=sac", "env=pendulum", *words])


def test_a_condition_holds_if_either_of_its_keys_has_a_value():
    for words in (["algo.expansion=mve"], ["algo.expansion=steve"], ["algo.imagined=mbpo"]):
        config = Composer().compose(["algo=sac", "env=pendulum", *words, "algo.model.fit_every=9"]).config
        assert config.algo.model.fit_every == 9
