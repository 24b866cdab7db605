"""Memories of networks: steps against a plain loop over their equations, unrolls against steps, and gradients against autograd."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor
from zygote import in_child

from rlx.nn.memories import NoMemory, make_memory
from rlx.tree_ops import map_tree

KINDS = ("lstm", "gru")
T, B, D, H = 7, 3, 4, 5


def sequences(pattern: str, *, num_steps: int = T, num_envs: int = B, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Features [T, B, D] and is_first [T, B], in a pattern of resets."""
    generator = torch.Generator().manual_seed(num_steps * 10 + num_envs)
    x = torch.randn(num_steps, num_envs, D, generator=generator, dtype=dtype)
    if pattern == "some":
        is_first = torch.rand(num_steps, num_envs, generator=generator) < 0.3
    elif pattern == "start":
        is_first = torch.zeros(num_steps, num_envs, dtype=torch.bool)
        is_first[0, ::2] = True
    elif pattern == "one env":  # the others have none
        is_first = torch.zeros(num_steps, num_envs, dtype=torch.bool)
        is_first[1:, -1] = True
    else:
        is_first = torch.full((num_steps, num_envs), pattern == "all")
    return x, is_first


def memory_of(kind: str, dtype: torch.dtype = torch.float64, size: int = H):
    torch.manual_seed(1)
    memory = make_memory(kind, D, size).to(dtype)
    with torch.no_grad():
        for parameter in memory.parameters():  # biases that are not zero
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=dtype))
    return memory


def carry_of(memory, num_envs: int = B):
    torch.manual_seed(2)
    return {name: torch.randn_like(zeros) for name, zeros in memory.initial(num_envs).items()}


def reference(kind: str, memory, x: Tensor, carry, is_first: Tensor) -> Tensor:
    """The equations of torch.nn.LSTM's and torch.nn.GRU's documentation, one environment and one step at a time."""
    wi, wh, bi, bh = memory.weight_ih, memory.weight_hh, memory.bias_ih, memory.bias_hh
    rows = []
    for b in range(x.shape[1]):
        h, c = carry["hidden"][b].clone(), carry["cell"][b].clone() if kind == "lstm" else None
        for t in range(len(x)):
            if is_first[t, b]:
                h, c = torch.zeros_like(h), torch.zeros_like(h)
            gi, gh = wi @ x[t, b] + bi, wh @ h + bh
            if kind == "lstm":
                i, f, g, o = (gi + gh).chunk(4)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            else:
                (ir, iz, i_n), (hr, hz, hn) = gi.chunk(3), gh.chunk(3)
                r, z = (ir + hr).sigmoid(), (iz + hz).sigmoid()
                n = (i_n + r * hn).tanh()
                h = (1 - z) * n + z * h
            rows.append(h)
    return torch.stack(rows).unflatten(0, (x.shape[1], len(x))).transpose(0, 1)


def stepped(memory, x: Tensor, carry, is_first: Tensor) -> Tensor:
    rows = []
    for features, begins in zip(x, is_first, strict=True):
        out, carry = memory.step(features, carry, begins)
        rows.append(out)
    return torch.stack(rows)


def gradients(out: Tensor, x: Tensor, memory) -> list[Tensor]:
    torch.manual_seed(3)
    return list(torch.autograd.grad((out * torch.randn(out.shape, dtype=torch.float64).to(out)).sum(), [x, *memory.parameters()]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("kind", "pattern", "shape"),
    [
        *itertools.product(KINDS, ("none", "some", "all", "start", "one env"), [(T, B)]),
        *itertools.product(KINDS, ("some", "all"), [(1, B), (T, 1), (1, 1), (T, 6)]),
    ],
)
def test_an_unroll_and_its_gradients_equal_the_equations(kind, pattern, shape, dtype):
    memory, (x, is_first) = memory_of(kind), sequences(pattern, num_steps=shape[0], num_envs=shape[1])
    x.requires_grad_()
    carry = carry_of(memory, shape[1])
    expected = reference(kind, memory, x, carry, is_first)
    wanted = [expected, *gradients(expected, x, memory)]
    memory, x, carry = memory.to(dtype), x.detach().to(dtype).requires_grad_(), {k: v.to(dtype) for k, v in carry.items()}
    out = memory.unroll(x, carry, is_first)
    tolerance = 1e-11 if dtype is torch.float64 else 5e-6
    for got, true in zip([out, *gradients(out, x, memory)], wanted, strict=True):
        assert torch.allclose(got.double(), true, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_unrolls_equal_steps_to_six_digits(kind):
    memory, (x, is_first) = memory_of(kind, torch.float32, 32), sequences("some", num_steps=64, dtype=torch.float32)
    carry = carry_of(memory)
    with torch.no_grad():
        assert (memory.unroll(x, carry, is_first) - stepped(memory, x, carry, is_first)).abs().max() < 1e-6
    x.requires_grad_()
    exact = memory_of(kind, torch.float64, 32)
    exact.load_state_dict(memory.state_dict())
    x64 = x.detach().double().requires_grad_()
    wanted = gradients(stepped(exact, x64, {k: v.double() for k, v in carry.items()}, is_first), x64, exact)
    for got, true in zip(gradients(memory.unroll(x, carry, is_first), x, memory), wanted, strict=True):
        assert (got - true).norm() / true.norm() < 2e-6


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_passes_from_one_episode_to_the_next(kind):
    memory, (x, is_first) = memory_of(kind, torch.float32), sequences("none", dtype=torch.float32)
    is_first[4, 1] = True
    carry = carry_of(memory)
    out = memory.unroll(x, carry, is_first)
    changed = x.clone()
    changed[:4, 1] = 1e3
    other = memory.unroll(changed, {name: 7.0 * value for name, value in carry.items()}, is_first)
    assert torch.equal(out[4:, 1], other[4:, 1])
    assert not torch.equal(out[4:, 0], other[4:, 0])  # an environment without a reset does remember
    x.requires_grad_()
    (grad,) = torch.autograd.grad(memory.unroll(x, carry, is_first)[4:, 1].sum(), x)
    assert not grad[:4].any()
    assert grad[4:, 1].all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_carry_that_is_not_finite_ends_with_its_episode(kind):
    memory, (x, is_first) = memory_of(kind, torch.float32), sequences("all", dtype=torch.float32)
    carry = {name: torch.full_like(value, torch.nan) for name, value in memory.initial(B).items()}
    assert memory.unroll(x, carry, is_first).isfinite().all()
    assert memory.step(x[0], carry, is_first[0])[0].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_carry_is_used_but_is_data(kind):
    memory, (x, is_first) = memory_of(kind), sequences("none")
    carry = {name: value.requires_grad_() for name, value in carry_of(memory).items()}
    out = memory.unroll(x, carry, is_first)
    assert not torch.allclose(out, memory.unroll(x, memory.initial(B), is_first))
    assert torch.autograd.grad(out.sum(), list(carry.values()), allow_unused=True) == (None,) * len(carry)


@pytest.mark.parametrize("kind", KINDS)
def test_unrolling_twice_gives_the_same_bits(kind):
    memory, (x, is_first) = memory_of(kind, torch.float32, 64), sequences("some", num_steps=32, dtype=torch.float32)
    x.requires_grad_()
    carry = carry_of(memory)
    first, second = (gradients(memory.unroll(x, carry, is_first), x, memory) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_begins_with_orthogonal_weights_zero_biases_and_an_empty_carry(kind):
    memory = make_memory(kind, D, H)
    weight = memory.weight_hh.detach()
    assert torch.allclose(weight.t() @ weight, torch.eye(H), atol=1e-5)
    assert not memory.bias_ih.any()
    assert not memory.bias_hh.any()
    assert all(x.shape == (2, H) and not x.any() for x in memory.initial(2).values())
    assert memory.num_features == H


def test_no_memory_passes_features():
    memory, (x, is_first) = make_memory("none", D, H), sequences("some")
    assert isinstance(memory, NoMemory)
    assert memory.num_features == D
    assert memory.unroll(x, (), is_first) is x
    features, carry = memory.step(x[0], (), is_first[0])
    assert torch.equal(features, x[0])
    assert carry == ()


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_on_an_accelerator_gives_the_same_numbers_and_waits_once(kind):
    def check() -> int:
        from accelerated import REAL, device_here

        with device_here() as device:
            memory, (x, is_first) = memory_of(kind, torch.float32), sequences("some", dtype=torch.float32)
            carry = carry_of(memory)
            x.requires_grad_()
            out = memory.unroll(x, carry, is_first)
            expected = [out.detach(), *gradients(out, x, memory)]
            there = copy.deepcopy(memory).to(device)
            x_there, carry_there = x.detach().to(device).requires_grad_(), map_tree(lambda leaf: leaf.to(device), carry)
            if not REAL:
                from accelerator import METER

                METER.reset()
            out = there.unroll(x_there, carry_there, is_first)
            waits = 1 if REAL else METER.waits
            found = [out.detach(), *gradients(out, x_there, there)]
            assert all(torch.allclose(a.cpu(), b, atol=1e-5) for a, b in zip(found, expected, strict=True))
            with torch.no_grad():
                features, _ = there.step(x_there.detach()[0], carry_there, is_first[0].to(device))
            assert torch.allclose(features.cpu(), expected[0][0], atol=1e-6)
        return waits

    assert in_child(check, preload=("accelerated",)) == 1
