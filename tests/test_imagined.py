"""Imagined rollouts: which steps are kept under each rule, whom they follow, and where they end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlx.models.doubt import Doubt
from rlx.models.imagined import ImaginedData, ImaginedSteps, Stop, StopKind, imagine
from rlx.models.members import Dynamics, MemberModel, Predicted

NUM = 40


class Doubtful:
    """Members whose first feature grows by 1; they disagree about the second as much as it is, and an episode ends at a limit."""

    def __init__(self, members: int = 5, limit: float = 1e9) -> None:
        self.num_members, self._limit = members, limit

    def predict(self, obs: Tensor, action: Tensor) -> Predicted:
        members = torch.linspace(-1.0, 1.0, len(obs))[:, None].expand(obs.shape[:2])
        change = torch.stack([torch.ones_like(members), members * obs[..., 1], members], dim=-1)
        nothing = torch.zeros_like(obs)
        return Predicted(change, nothing, obs[..., 0] + action[..., 0], ((obs + change)[..., 0] < self._limit).float())


def policy(obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    return (noise + obs[..., :1]).tanh(), noise[..., 0]


def starts() -> Tensor:
    """Observations [NUM, 3] that begin at 0, with a doubt of their own."""
    return torch.stack([torch.zeros(NUM), torch.arange(1.0, NUM + 1) / NUM, torch.zeros(NUM)], dim=1)


def rolled(kind: StopKind, *, steps: int = 3, dynamics: Dynamics | None = None, stop: Stop | None = None) -> tuple[ImaginedSteps, int]:
    stop = stop or Stop(kind, steps)
    model = MemberModel(dynamics=dynamics or Doubtful(), to_env=lambda action: action, reward_fn=None, termination_fn=None)
    return imagine(model, policy, starts(), stop, Doubt("std", torch.tensor([0.0, 1.0, 0.0])), num_steps=steps, num_actions=1)


def test_fixed_rollouts_continue_from_where_they_came_and_follow_members_equally_often():
    torch.manual_seed(0)
    steps, num_calls = rolled("fixed")
    assert num_calls == 3 * NUM
    assert steps.obs[:, 0].tolist() == [0.0] * NUM + [1.0] * NUM + [2.0] * NUM
    assert torch.equal(steps.obs[NUM:], steps.next_obs[: 2 * NUM])
    assert torch.equal(steps.obs[:NUM], starts())
    torch.testing.assert_close(steps.reward, steps.obs[:, 0] + steps.action[:, 0])
    member = (steps.next_obs[:, 2] - steps.obs[:, 2]).view(3, NUM)
    torch.testing.assert_close(member.sort(1).values, torch.linspace(-1.0, 1.0, 5).repeat_interleave(8).expand(3, -1))
    assert not torch.equal(member[0], member[1])


def test_a_number_of_rows_that_members_do_not_divide_is_followed_too():
    steps, _ = rolled("fixed", steps=1, dynamics=Doubtful(members=7))
    assert torch.equal(steps.obs, starts())
    assert len(set(steps.next_obs[:, 2].tolist())) == 7


@pytest.mark.parametrize("kind", ["fixed", "rank", "threshold"])
def test_rollouts_end_where_the_episode_terminates(kind):
    steps, _ = rolled(kind, steps=4, dynamics=Doubtful(limit=2.0))
    assert steps.obs[:, 0].max() == 1.0
    assert torch.equal(steps.alive, (steps.next_obs[:, 0] < 2.0).float())


def test_a_schedule_lengthens_rollouts_as_the_budget_is_spent():
    stop = Stop("schedule", 5)
    assert [stop.num_steps(fraction) for fraction in (0.0, 0.12, 0.13, 0.5, 1.0)] == [1, 1, 2, 3, 5]
    assert Stop("fixed", 5).num_steps(0.0) == 5


@pytest.mark.parametrize("steps", [1, 4])
def test_rank_keeps_the_least_doubtful_share_and_charges_for_doubt_and_goes_on(steps):
    found, num_calls = rolled("rank", steps=steps)
    assert num_calls == 5 * steps * NUM
    shares = [0.5] if steps == 1 else [(4 - h) / 10 for h in range(4)]
    sizes = [round(share * NUM) for share in shares]
    assert [int((found.obs[:, 0] == h).sum()) for h in range(steps)] == sizes
    first = found.obs[:, 0] == 0.0
    assert found.obs[first, 1].sort().values.tolist() == starts()[: sizes[0], 1].tolist()
    doubt = found.obs[first, 1] * torch.linspace(-1.0, 1.0, 5).std(correction=0)
    torch.testing.assert_close(found.reward[first], found.action[first, 0] - 1e-3 * doubt)


def test_rank_keeps_as_much_of_a_model_however_bad():
    class Worse(Doubtful):
        def predict(self, obs: Tensor, action: Tensor) -> Predicted:
            predicted = super().predict(obs, action)
            return predicted._replace(change=predicted.change * torch.tensor([1.0, 100.0, 1.0]))

    assert len(rolled("rank")[0].reward) == len(rolled("rank", dynamics=Worse())[0].reward)


def test_a_threshold_ends_rollouts_for_good_and_is_the_mean_of_its_rounds():
    torch.manual_seed(1)
    stop = Stop("threshold", 3, scale=0.5, quantile=0.9)
    found, num_calls = rolled("threshold", stop=stop)
    doubt = starts()[:, 1] * torch.linspace(-1.0, 1.0, 5).std(correction=0)
    limit = 0.5 * float(doubt.quantile(0.9))
    assert stop.limit == pytest.approx(limit)
    first = found.obs[:, 0] == 0.0
    assert torch.equal(found.obs[first, 1], starts()[doubt <= limit, 1])
    second = found.obs[:, 0] == 1.0
    assert num_calls == 5 * (NUM + int(first.sum()) + int(second.sum()))
    stop.begin(torch.full((4,), 8.0))
    assert stop.limit == pytest.approx((limit + 4.0) / 2)
    other = Stop("threshold", 3, scale=0.5, quantile=0.9)
    other.load_state_dict(stop.state_dict())
    assert other.limit == stop.limit


def test_members_that_agree_everywhere_are_trusted_everywhere():
    class Certain(Doubtful):
        def predict(self, obs: Tensor, action: Tensor) -> Predicted:
            return super().predict(obs, action)._replace(change=torch.ones_like(obs))

    assert len(rolled("threshold", dynamics=Certain())[0].reward) == 3 * NUM


def test_imagined_data_is_drawn_evenly_and_saved():
    steps, _ = rolled("fixed")
    data = ImaginedData(steps, NUM)
    assert data.rollout_length == 3.0
    drawn = data.draw(6000)
    assert torch.equal(drawn.next_obs[:, 0], drawn.obs[:, 0] + 1.0)
    assert abs(float((drawn.obs[:, 0] == 1.0).float().mean()) - 1 / 3) < 0.03
    other = ImaginedData.empty(3, 1, torch.device("cpu"))
    assert other.rollout_length == 0.0
    other.load_state_dict(data.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(other.steps, steps, strict=True))
    assert other.rollout_length == 3.0
