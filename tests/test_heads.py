"""Action heads against torch.distributions and autograd, with and without masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from reference_heads import references
from torch import Tensor, nn
from torch.distributions import Normal

from rlx.collect import env_actions
from rlx.errors import ConfigError
from rlx.nn.discrete_heads import BernoulliHead, CategoricalHead, FactorizedCategoricalHead, Head
from rlx.nn.heads import GaussianHead, ProductHead, make_head
from rlx.spaces import ProductSpace, choices_of, mask_width
from rlx.types import EnvSpec

NUM_ROWS = 7


def make_spec(action: gymnasium.Space) -> EnvSpec:
    return EnvSpec(id="Test-v0", observation_space=spaces.Box(-1.0, 1.0, (3,)), action_space=action)


def product() -> ProductHead:
    return ProductHead(
        [GaussianHead(2, 0.0), CategoricalHead(3), FactorizedCategoricalHead([2, 4]), BernoulliHead(2), GaussianHead(1, 0.0)]
    )


HEADS: dict[str, Callable[[], Head]] = {
    "categorical": lambda: CategoricalHead(4),
    "factorized, even": lambda: FactorizedCategoricalHead([3, 3]),
    "factorized, ragged": lambda: FactorizedCategoricalHead([2, 5, 1, 3]),
    "bernoulli": lambda: BernoulliHead(3),
    "gaussian": lambda: GaussianHead(3, 0.0),
    "product": product,
}
every_head = pytest.mark.parametrize("name", HEADS)
every_discrete_head = pytest.mark.parametrize("name", [name for name in HEADS if name != "gaussian"])
with_and_without_mask = pytest.mark.parametrize("is_masked", [False, True])


def make(name: str) -> Head:
    """A head in float64, with deviations unlike 1."""
    head = HEADS[name]().double()
    for p in head.parameters():
        nn.init.normal_(p, std=0.5)
    return head


def some_params(head: Head) -> Tensor:
    return 2 * torch.randn(NUM_ROWS, head.num_outputs, dtype=torch.float64)


def some_mask(head: Head, num_rows: int = NUM_ROWS) -> Tensor:
    """Half of the choices [B, M], at least one of each number."""
    masks = []
    for n in head.choices:
        mask = torch.rand(num_rows, n) < 0.5
        mask[torch.arange(num_rows), torch.randint(n, (num_rows,))] = True
        masks.append(mask)
    return torch.cat(masks, -1) if masks else torch.zeros(num_rows, 0, dtype=torch.bool)


def sampled(head: Head, params: Tensor) -> Tensor:
    with torch.no_grad():
        return head.sample(params)


def case(name: str, is_masked: bool) -> tuple[Head, Tensor, Tensor, Tensor]:
    """A head, the network's outputs, a mask, and actions that it allows."""
    head = make(name)
    params = some_params(head)
    mask = some_mask(head) if is_masked else torch.ones(NUM_ROWS, head.mask_width, dtype=torch.bool)
    return head, params, mask, sampled(head, head.masked(params, mask))


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12, check_dtype=False)


def zero_grads(head: Head) -> None:
    for p in head.parameters():
        p.grad = torch.zeros_like(p)


def gradients(head: Head, params: Tensor, loss: Tensor) -> list[Tensor]:
    """Autograd's, of the network's outputs and of the head's parameters; zero where the loss does not depend on them."""
    sources = [params, *head.parameters()]
    if not loss.requires_grad:  # everything is forced
        return [torch.zeros_like(s) for s in sources]
    found = torch.autograd.grad(loss, sources, allow_unused=True)
    return [torch.zeros_like(s) if g is None else g for s, g in zip(sources, found, strict=True)]


@with_and_without_mask
@every_head
def test_log_prob_and_entropy_equal_torch_distributions(name, is_masked):
    head, params, mask, action = case(name, is_masked)
    with torch.no_grad():
        expected = references(head, params, mask)
        evaluation = head.evaluate(head.masked(params, mask), action)
        close(evaluation.log_prob, torch.stack([r.log_prob(a) for r, a in zip(expected, action, strict=True)]))
        close(evaluation.entropy, torch.stack([r.entropy() for r in expected]))
        close(head.log_prob(head.masked(params, mask), action), evaluation.log_prob)


@with_and_without_mask
@pytest.mark.parametrize("d_entropy", [0.0, -0.3])
@every_head
def test_gradients_of_log_prob_and_entropy_equal_autograds(name, d_entropy, is_masked):
    head, params, mask, action = case(name, is_masked)
    d_log_prob, leaf = torch.randn(NUM_ROWS, dtype=torch.float64), params.clone().requires_grad_()
    loss = torch.zeros(())
    for r, a, weight in zip(references(head, leaf, mask), action, d_log_prob, strict=True):
        loss = loss + weight * r.log_prob(a) + d_entropy * r.entropy()
    expected = gradients(head, leaf, loss)
    zero_grads(head)
    ours = [head.evaluate(head.masked(params, mask), action).pullback(d_log_prob, d_entropy), *(p.grad for p in head.parameters())]
    for actual, theirs in zip(ours, expected, strict=True):
        close(actual, theirs)


@with_and_without_mask
@every_head
def test_autograd_through_log_prob_equals_the_pullback(name, is_masked):
    head, params, mask, action = case(name, is_masked)
    leaf, d_log_prob = params.clone().requires_grad_(), torch.randn(NUM_ROWS, dtype=torch.float64)
    expected = gradients(head, leaf, (head.log_prob(head.masked(leaf, mask), action) * d_log_prob).sum())
    zero_grads(head)
    ours = [head.evaluate(head.masked(params, mask), action).pullback(d_log_prob, 0.0), *(p.grad for p in head.parameters())]
    for actual, theirs in zip(ours, expected, strict=True):
        close(actual, theirs)


@with_and_without_mask
@every_head
def test_kl_and_its_gradients_equal_torch_distributions(name, is_masked):
    head, params, mask, _ = case(name, is_masked)
    frozen = head.freeze(head.masked(params, mask))
    assert frozen.shape == (NUM_ROWS, head.num_frozen)
    with torch.no_grad():
        old = references(head, params, mask)
        params = params + torch.randn_like(params)
        for p in head.parameters():
            p += torch.randn_like(p)
    leaf = params.clone().requires_grad_()
    expected_kl = torch.stack([p.kl(q) for p, q in zip(old, references(head, leaf, mask), strict=True)])
    expected = gradients(head, leaf, 0.4 * expected_kl.sum())
    zero_grads(head)
    kl, pullback = head.kl(frozen, head.masked(params, mask))
    close(kl, expected_kl.detach())
    for actual, theirs in zip([pullback(0.4), *(p.grad for p in head.parameters())], expected, strict=True):
        close(actual, theirs)


@every_head
def test_kl_to_itself_is_zero_and_frozen_parameters_carry_no_gradient(name):
    head = make(name)
    params = some_params(head).requires_grad_()
    frozen = head.freeze(params)
    assert not frozen.requires_grad
    assert head.kl(frozen, params.detach())[0].abs().max() < 1e-12


@pytest.mark.parametrize("name", ["gaussian", "product"])
def test_pullbacks_add_to_the_gradients_of_the_head(name):
    head, params, _, action = case(name, is_masked=False)
    zero_grads(head)
    evaluation = head.evaluate(params, action)
    first = evaluation.pullback(torch.ones(NUM_ROWS).double(), -0.1)
    once = [p.grad.clone() for p in head.parameters()]
    torch.testing.assert_close(evaluation.pullback(torch.ones(NUM_ROWS).double(), -0.1), first, atol=0, rtol=0)
    for p, g in zip(head.parameters(), once, strict=True):
        close(p.grad, 2 * g)


# Samples, modes and probabilities


def chosen(head: Head, action: Tensor) -> Tensor:
    """Which choice was taken of each number, [B, M] with zeros and ones; numbers of a Box are left out."""
    numbers = action.reshape(len(action), -1)
    if isinstance(head, ProductHead):
        numbers = torch.cat([x for part, x in zip(head._heads, numbers.split(head._num_numbers, -1), strict=True) if part.choices], -1)
    return torch.cat([nn.functional.one_hot(x.long(), n) for x, n in zip(numbers.T, head.choices, strict=True)], -1)


@with_and_without_mask
@every_discrete_head
def test_samples_have_the_frequencies_of_the_probabilities(name, is_masked):
    num_samples, head = 20_000, make(name).float()
    params, mask = some_params(head)[:1].float(), some_mask(head, 1) if is_masked else torch.ones(1, head.mask_width, dtype=torch.bool)
    params = head.masked(params, mask).expand(num_samples, -1)
    probs, frequencies = head.probs(params)[0], chosen(head, sampled(head, params)).float().mean(0)
    assert ((frequencies - probs).abs() <= 4.5 * (probs * (1 - probs) / num_samples).sqrt() + 1e-6).all()


def test_the_numbers_of_an_action_are_independent():
    head = FactorizedCategoricalHead([2, 3])
    action = head.sample(torch.zeros(30_000, 5))
    joint = torch.bincount(3 * action[:, 0] + action[:, 1], minlength=6) / len(action)
    torch.testing.assert_close(joint, torch.full((6,), 1 / 6), atol=0.01, rtol=0)


@every_discrete_head
def test_probs_add_up_to_one_for_each_number_and_the_mode_has_the_most(name):
    head = make(name)
    params = head.masked(some_params(head), some_mask(head))
    probs, taken = head.probs(params), chosen(head, head.mode(params))
    for p, one_hot in zip(probs.split(head.choices, -1), taken.split(head.choices, -1), strict=True):
        close(p.sum(-1), torch.ones(NUM_ROWS))
        assert torch.equal((p * one_hot).sum(-1), p.max(-1).values)


@every_discrete_head
def test_probs_are_those_of_log_prob(name):
    head, params, mask, action = case(name, is_masked=True)
    probs = head.probs(head.masked(params, mask))
    discrete = (probs.log() * chosen(head, action)).nan_to_num(neginf=0.0).sum(-1)
    if name == "product":
        means, deviations = head.moments(params)
        normals = Normal(means, deviations).log_prob(action[:, [0, 1, 7]]).sum(-1)
        discrete = discrete + normals
    close(discrete.detach(), head.log_prob(head.masked(params, mask), action).detach())


def test_categorical_never_samples_what_has_no_probability():
    samples = CategoricalHead(3).sample(torch.tensor([0.0, -math.inf, 0.0]).expand(10_000, 3))
    assert set(samples.tolist()) == {0, 2}


def test_gaussian_samples_have_its_mean_and_deviation():
    head = GaussianHead(2, 0.0)
    head.log_std.data.copy_(torch.tensor([0.0, math.log(3.0)]))
    samples = sampled(head, torch.tensor([1.0, -2.0]).expand(100_000, 2))
    torch.testing.assert_close(samples.mean(0), torch.tensor([1.0, -2.0]), atol=0.04, rtol=0)
    torch.testing.assert_close(samples.std(0), torch.tensor([1.0, 3.0]), atol=0.04, rtol=0)
    assert abs(torch.corrcoef(samples.t())[0, 1]) < 0.02
    assert head.probs(samples) is None


def test_actions_have_the_form_that_their_space_says():
    for name, shape, dtype in [
        ("categorical", (7,), torch.int64),
        ("factorized, ragged", (7, 4), torch.int64),
        ("bernoulli", (7, 3), torch.int8),
        ("gaussian", (7, 3), torch.float32),
        ("product", (7, 8), torch.float32),
    ]:
        head = make(name).float()
        params = some_params(head).float()
        for action in (sampled(head, params), head.mode(params)):
            assert action.shape == shape
            assert action.dtype == dtype


def test_modes_are_the_most_likely_actions():
    assert CategoricalHead(3).mode(torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])).tolist() == [1, 0]
    assert FactorizedCategoricalHead([2, 3]).mode(torch.tensor([[0.0, 2.0, 1.0, 3.0, 0.0]])).tolist() == [[1, 1]]
    assert BernoulliHead(2).mode(torch.tensor([[0.5, -1.5]])).tolist() == [[1, 0]]
    assert GaussianHead(2, 0.0).mode(torch.tensor([[0.5, -1.5]])).tolist() == [[0.5, -1.5]]
    head = ProductHead([GaussianHead(1, 0.0), CategoricalHead(2), BernoulliHead(1)])
    assert head.mode(torch.tensor([[0.5, 0.0, 1.0, -1.0]])).tolist() == [[0.5, 1.0, 0.0]]


# Masks


@every_discrete_head
def test_what_is_forbidden_has_probability_zero_and_is_never_chosen(name):
    head = make(name).float()
    params, mask = 5 * some_params(head).float(), some_mask(head)
    params = head.masked(params, mask)
    assert (head.probs(params)[~mask] == 0.0).all()
    assert not chosen(head, head.mode(params))[~mask].any()
    many, masks = params.repeat_interleave(1000, 0), mask.repeat_interleave(1000, 0)
    assert not chosen(head, sampled(head, many))[~masks].any()


@pytest.mark.parametrize("scale", [1.0, 1e4])
@every_discrete_head
def test_under_a_mask_everything_is_finite_and_forbidden_logits_have_no_gradient(name, scale):
    head = make(name).float()
    params, mask = scale * some_params(head).float(), some_mask(head)
    leaf = params.clone().requires_grad_()
    masked = head.masked(leaf, mask)
    action = sampled(head, masked)
    zero_grads(head)
    evaluation = head.evaluate(masked.detach(), action)
    kl, pull_kl = head.kl(head.freeze(head.masked(params + torch.randn_like(params), mask)), masked.detach())
    direct = evaluation.pullback(torch.randn(NUM_ROWS), -0.1) + pull_kl(0.5)
    (by_autograd,) = torch.autograd.grad(masked, leaf, direct)
    for x in (evaluation.log_prob, evaluation.entropy, kl, direct, *(p.grad for p in head.parameters())):
        assert x.isfinite().all()
    assert torch.equal(direct, by_autograd)  # so what comes before the mask needs no mask of its own in the backward pass
    if isinstance(head, CategoricalHead | FactorizedCategoricalHead):
        assert (direct[~mask] == 0.0).all()
    if isinstance(head, BernoulliHead):
        assert (direct[~mask.unflatten(-1, (-1, 2)).all(-1)] == 0.0).all()


@every_head
def test_a_mask_that_allows_everything_changes_no_bit(name):
    head = make(name).float()
    params = some_params(head).float()
    masked = head.masked(params, torch.ones(NUM_ROWS, head.mask_width, dtype=torch.bool))
    assert torch.equal(masked, params)
    torch.manual_seed(3)
    first = sampled(head, params)
    torch.manual_seed(3)
    assert torch.equal(first, sampled(head, masked))


def test_a_product_of_one_part_is_that_part():
    part = make("factorized, ragged")
    params, action = some_params(part), torch.tensor([1, 4, 0, 2]).expand(NUM_ROWS, -1)
    whole, alone = ProductHead([part]).evaluate(params, action.double()), part.evaluate(params, action)
    assert torch.equal(whole.log_prob, alone.log_prob)
    d_log_prob = torch.randn(NUM_ROWS, dtype=torch.float64)
    assert torch.equal(whole.pullback(d_log_prob, 0.2), alone.pullback(d_log_prob, 0.2))


# The choice of a head


NESTED = spaces.Dict({"go": spaces.Box(-1.0, 1.0, (2,)), "say": spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)])})
PARTS = ProductSpace([NESTED["go"], spaces.Discrete(3), spaces.MultiBinary(2)], NESTED)


@pytest.mark.parametrize(
    ("space", "kind", "num_outputs"),
    [
        (spaces.Discrete(5), CategoricalHead, 5),
        (spaces.MultiDiscrete([2, 3]), FactorizedCategoricalHead, 5),
        (spaces.MultiBinary(3), BernoulliHead, 3),
        (spaces.Box(-1.0, 1.0, (2,)), GaussianHead, 2),
        (PARTS, ProductHead, 7),
    ],
)
def test_make_head_follows_the_action_space(space, kind, num_outputs):
    head = make_head(make_spec(space), log_std_init=0.0)
    assert type(head) is kind
    assert (head.num_outputs, head.mask_width, list(head.choices)) == (num_outputs, mask_width(space), choices_of(space))


@pytest.mark.parametrize("space", [spaces.Box(-1.0, 1.0, (2,)), PARTS])
def test_continuous_parts_begin_with_the_deviation_asked_for(space):
    (log_std,) = make_head(make_spec(space), log_std_init=-0.5).parameters()
    assert log_std.tolist() == [-0.5, -0.5]


@pytest.mark.parametrize(
    ("space", "advice"),
    [
        (
            spaces.Box(0, 9, (2,), dtype=np.int64),
            r"has action space Box\(\(2,\), int64, 0 to 9\); .* declare whole numbers as MultiDiscrete",
        ),
        (
            spaces.Dict({"say": spaces.Tuple([spaces.Text(3), spaces.Discrete(2)])}),
            r"has action space Text.* at \['say'\]\[0\]; .* wrap the environment",
        ),
        (spaces.Sequence(spaces.Discrete(2)), "has action space Sequence"),
    ],
)
def test_make_head_refuses_other_action_spaces(space, advice):
    with pytest.raises(ConfigError, match=f"env=Test-v0 {advice}"):
        make_head(make_spec(space), log_std_init=0.0)


@pytest.mark.parametrize(
    "space", [spaces.Discrete(2), spaces.MultiBinary(2), ProductSpace([spaces.Discrete(2)], spaces.Tuple([spaces.Discrete(2)]))]
)
def test_make_head_refuses_a_deviation_for_discrete_actions(space):
    with pytest.raises(ConfigError, match=r"algo\.log_std_init=-1\.0 has no effect"):
        make_head(make_spec(space), log_std_init=-1.0)


@pytest.mark.parametrize(
    ("space", "action", "expected"),
    [
        (spaces.MultiDiscrete([3, 4]), torch.tensor([[1, 3]]), np.array([[1, 3]])),
        (spaces.MultiDiscrete([3, 4], start=[5, -1]), torch.tensor([[1, 3]]), np.array([[6, 2]])),
        (spaces.MultiBinary(3), torch.tensor([[1, 0, 1]], dtype=torch.int8), np.array([[1, 0, 1]], np.int8)),
        (PARTS, torch.tensor([[-3.0, 0.5, 2.0, 1.0, 0.0]]), np.array([[-1.0, 0.5, 2.0, 1.0, 0.0]], np.float32)),
    ],
)
def test_actions_reach_the_environment_in_its_numbers(space, action, expected):
    actual = env_actions(space)(action)
    assert actual.dtype == space.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)
