"""Models by member: learned, perfect and useless dynamics, learned terminations, and what a step adds to a prediction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlx.envs.control.reward_functions import RULES
from rlx.envs.control.simulators import simulator_of
from rlx.models.ensemble import Ensemble
from rlx.models.ensemble_rollouts import EnsembleModel, FrozenEnsemble
from rlx.models.fit import EnsembleConfig, EnsembleLearner, FitConfig
from rlx.models.members import Dynamics, LearnedDynamics, MemberModel, NoDynamics, SimulatorDynamics
from rlx.models.termination import TerminationNetworks, fit_termination
from rlx.nn.optim import FlatAdam
from rlx.types import Rollout

POLE = "rlx/CartPoleContinuous-v0"
FIT = FitConfig(learning_rate=3e-3, batch_size=64, max_epochs=30, patience=10, weight_decay=1e-4)


def ensemble(outputs: int, *, features: int = 3, members: int = 4) -> Ensemble:
    made = Ensemble(features + 1, outputs, num_members=members, hidden_sizes=[8], learn_bounds=False)
    made.standardise(torch.randn(50, features + 1) * 2.0 + 1.0, torch.randn(50, outputs) * 0.3)
    return made


def model_of(dynamics: Dynamics, **settings) -> MemberModel:
    rules = {"reward_fn": None, "termination_fn": None, **settings}
    return MemberModel(dynamics=dynamics, to_env=lambda action: 1.0 + 2.0 * action, **rules)


def steps_of(change, *, num_steps: int = 400) -> Rollout:
    """A rollout of independent steps from obs in [-1, 1]^2 under actions in [-1, 1], each of its own environment-wide time step."""
    obs = torch.rand(num_steps + 1, 1, 2) * 2.0 - 1.0
    action = torch.rand(num_steps, 1, 1) * 2.0 - 1.0
    next_obs = obs[:-1] + change(obs[:-1], action)
    flags = torch.zeros(num_steps, 1, dtype=torch.bool)
    return Rollout(
        all_obs=obs, action=action, reward=torch.zeros(num_steps, 1), terminated=next_obs[..., 0] > 0.8, truncated=~flags, is_first=~flags,
        final_t=torch.arange(num_steps), final_b=torch.zeros(num_steps, dtype=torch.long), final_obs=next_obs[:, 0], carry=(),
    )  # fmt: skip


def test_members_move_as_the_planners_particles_without_noise_do():
    frozen = FrozenEnsemble(ensemble(3))
    obs, actions = torch.randn(5, 3), torch.randn(2, 5, 1)
    planned = EnsembleModel(
        frozen=frozen, obs_scale=torch.ones(3), propagation="ts_inf", num_particles=1, reward_fn=lambda o, a, n: n[..., 0],
        termination_fn=None, measure_disagreement=True,
    )  # fmt: skip
    expected = planned.steps(planned.initial(obs), (1.0 + 2.0 * actions)[:, :, None]).state[:, :, -1, :, 0]  # the slot without noise
    model, state = model_of(LearnedDynamics(frozen, 3, predicts_next=False)), obs.expand(4, -1, -1)
    for t in range(2):
        state = model.step(state, actions[t].expand(4, -1, -1), noise=False).next_obs
        torch.testing.assert_close(state, expected[t], atol=1e-5, rtol=1e-5)


def test_members_start_from_the_same_state_and_change_nothing_of_it():
    model, obs = model_of(LearnedDynamics(FrozenEnsemble(ensemble(3)), 3, predicts_next=False)), torch.randn(1, 5, 3).expand(4, -1, -1)
    before = obs.clone()
    together = model.step(obs, torch.zeros(4, 5, 1), noise=False).next_obs
    assert torch.equal(obs, before)
    alone = model.step(before, torch.zeros(4, 5, 1), noise=False).next_obs
    assert torch.equal(together, alone)


def test_noise_has_the_predicted_variance():
    torch.manual_seed(0)
    model = model_of(LearnedDynamics(FrozenEnsemble(ensemble(3)), 3, predicts_next=False))
    obs, action = torch.randn(1, 1, 3).expand(4, 4000, 3), torch.zeros(4, 4000, 1)
    step = model.step(obs, action, noise=True)
    expected = step.predicted.variance[:, 0].sqrt()
    torch.testing.assert_close(step.next_obs.std(1), expected, rtol=0.06, atol=0.0)
    torch.testing.assert_close(step.next_obs.mean(1), (obs + step.predicted.change)[:, 0], rtol=0.0, atol=float(expected.max()) * 0.1)


def test_the_reward_is_the_last_output_where_none_is_known():
    frozen = FrozenEnsemble(ensemble(4))
    obs, action = torch.randn(4, 5, 3), torch.randn(4, 5, 1)
    learned = model_of(LearnedDynamics(frozen, 3, predicts_next=False)).step(obs, action, noise=True)
    inputs = torch.cat([obs, 1.0 + 2.0 * action], dim=-1) - frozen.centre
    assert torch.equal(learned.reward, frozen.predict(inputs)[0][..., 3])
    known = model_of(LearnedDynamics(FrozenEnsemble(ensemble(3)), 3, predicts_next=False), reward_fn=lambda o, a, n: a[..., 0] + n[..., 1])
    step = known.step(obs, action, noise=False)
    torch.testing.assert_close(step.reward, 1.0 + 2.0 * action[..., 0] + step.next_obs[..., 1])


def test_a_useless_model_predicts_no_change_and_knows_the_rules():
    rules, obs = RULES[POLE], torch.tensor([[[0.0, 9.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]]]).expand(2, -1, -1)
    model = model_of(NoDynamics(2), reward_fn=rules.reward, termination_fn=rules.termination)
    step = model.step(obs, torch.ones(2, 2, 1), noise=True)
    assert torch.equal(step.next_obs, obs)
    assert step.alive.tolist() == [[1.0, 0.0]] * 2


def test_the_perfect_model_steps_every_member_from_its_own_state():
    simulator = simulator_of(POLE, {})
    assert simulator is not None
    model = model_of(SimulatorDynamics(simulator, 3))
    obs, action = torch.randn(3, 6, 4) * torch.tensor([1.5, 1.0, 0.15, 1.0]), torch.rand(3, 6, 1) - 1.0
    step = model.step(obs, action, noise=True)
    for k in range(3):
        next_obs, reward, terminated = simulator(obs[k].numpy(), (1.0 + 2.0 * action[k]).numpy())
        torch.testing.assert_close(step.next_obs[k], torch.from_numpy(next_obs).float(), atol=1e-5, rtol=1e-5)
        assert step.reward[k].tolist() == reward.tolist()
        assert step.alive[k].tolist() == (1.0 - terminated).tolist()
    assert 0.0 < step.alive.mean() < 1.0


@pytest.mark.parametrize("predict_next", [False, True])
def test_a_fit_learns_the_next_observation_or_its_change(predict_next):
    torch.manual_seed(1)
    config = EnsembleConfig(
        num_members=3, hidden_sizes=[16], learn_bounds=False, predict_reward=False, replay_size=500, bootstrap=True, holdout_fraction=0.1,
        predict_next=predict_next,
    )  # fmt: skip
    learner = EnsembleLearner(config, num_features=2, num_actions=1, num_envs=1, device=torch.device("cpu"))
    learner.add(steps_of(lambda obs, action: 0.5 * action - 0.2 * obs))
    learner.fit(FIT)
    model = model_of(LearnedDynamics(FrozenEnsemble(learner.ensemble), 2, predicts_next=predict_next))
    obs, action = torch.rand(50, 2) - 0.5, torch.zeros(3, 50, 1)  # 1 in units of the action space
    wrong = model.step(obs.expand(3, -1, -1), action, noise=False).next_obs - (obs + 0.5 - 0.2 * obs)
    assert wrong.square().mean().sqrt() < 0.1


def test_terminations_are_learned_with_their_probability():
    torch.manual_seed(0)
    networks = TerminationNetworks(2, num_members=3, hidden_sizes=[16])
    obs = torch.randn(2000, 2) * torch.tensor([1.0, 10.0])
    terminated = (obs[:, 0] > 1.8) & (torch.rand(2000) < 0.9)  # 3 % of all
    optimizer = FlatAdam(networks, epsilon=1e-8, max_grad_norm=100.0)
    fit_termination(networks, optimizer, obs, terminated, num_steps=300, batch_size=64, learning_rate=1e-2, weight_decay=0.0)
    there = torch.tensor([[3.0, 0.0], [0.0, 0.0], [-2.0, 15.0]]).expand(3, -1, -1)
    probability: Tensor = networks.probability(there)
    assert (probability[:, 0] > 0.7).all()
    assert (probability[:, 1:] < 0.05).all()
    assert float(networks.probability(obs.expand(3, -1, -1)).mean()) == pytest.approx(float(terminated.float().mean()), abs=0.015)


def test_a_fit_learns_terminations_from_the_steps_that_ended_so_and_saves_what_it_learned():
    torch.manual_seed(2)
    config = EnsembleConfig(
        num_members=2, hidden_sizes=[16], learn_bounds=False, predict_reward=False, replay_size=500, bootstrap=True, holdout_fraction=0.1,
        learn_termination=True,
    )  # fmt: skip

    def made() -> EnsembleLearner:
        return EnsembleLearner(config, num_features=2, num_actions=1, num_envs=1, device=torch.device("cpu"))

    learner, obs = made(), torch.tensor([[1.4, 0.0], [0.0, 0.0]]).expand(2, -1, -1)
    learner.add(steps_of(lambda obs, action: 0.5 * action))
    learner.fit(FIT)
    model = model_of(NoDynamics(2), termination=learner.termination)
    alive = model.step(obs, torch.zeros(2, 2, 1), noise=False).alive
    assert (alive[:, 0] < 0.5).all()
    assert (alive[:, 1] > 0.5).all()
    other = made()
    other.load_state_dict(learner.state_dict())
    for each in (learner, other):
        torch.manual_seed(3)
        each.fit(FIT)
    assert learner.termination is not None
    assert other.termination is not None
    assert torch.equal(learner.termination.probability(obs), other.termination.probability(obs))
