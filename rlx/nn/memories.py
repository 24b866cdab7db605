"""Memories of networks between steps, as a value (`carry`) that is passed in and out.

Every memory has `step`, for acting, and `unroll`, for learning, which returns what T steps would return one after the other. Where an
episode begins (`is_first`), both replace the carry by zeros before the step.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlx.nn.gru import GRU
from rlx.nn.reset_steps import ResetSteps
from rlx.types import Tree


class NoMemory(nn.Module):
    """The memory of a feed-forward network: an empty carry, and features that pass unchanged. The interface of every memory."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        """D', of what `step` and `unroll` return."""

    def initial(self, batch_size: int) -> Tree:
        """The carry [B, *] of episodes that begin: zeros."""
        return ()

    def step(self, features: Tensor, carry: Tree, is_first: Tensor) -> tuple[Tensor, Tree]:
        """Features [B, D] and the carry of one step to features [B, D'] and the next carry; `is_first` [B] resets the carry."""
        return features, carry

    def unroll(self, features: Tensor, carry: Tree, is_first: Tensor | None) -> Tensor:
        """Features [T, B, D] of consecutive steps to the features [T, B, D'] that `step` returns one step after the other.

        Differentiable with respect to the features and the parameters, not to the carry, which is data.

        Args:
            features: [T, B, D].
            carry: [B, *] before the first step.
            is_first: [T, B] bool. On an accelerator it is best on the CPU, where it is read: reading it back waits for the device.
        """
        return features


class _Recurrent(nn.Module):
    """What an LSTM and a GRU share: parameters as of `torch.nn.LSTM`, orthogonal weights and zero biases (details of Huang et al. 2022).

    Args:
        num_features: D, of the inputs.
        size: D', units of the memory.
    """

    num_gates: int
    carry_names: tuple[str, ...]

    def __init__(self, num_features: int, size: int) -> None:
        super().__init__()
        self.num_features = size
        self.weight_ih = nn.Parameter(torch.empty(self.num_gates * size, num_features))
        self.weight_hh = nn.Parameter(torch.empty(self.num_gates * size, size))
        self.bias_ih = nn.Parameter(torch.zeros(self.num_gates * size))
        self.bias_hh = nn.Parameter(torch.zeros(self.num_gates * size))
        for weight in (self.weight_ih, self.weight_hh):
            nn.init.orthogonal_(weight)

    def initial(self, batch_size: int) -> Tree:
        return {name: self.weight_hh.new_zeros(batch_size, self.num_features) for name in self.carry_names}

    def step(self, features: Tensor, carry: Tree, is_first: Tensor) -> tuple[Tensor, Tree]:
        raise NotImplementedError

    def _run(self, x: Tensor, carry: Tree, weights: list[Tensor]) -> Tensor:
        with warnings.catch_warnings():
            # The optimiser holds all parameters in one vector, so that cuDNN copies these together at each call; they are small.
            warnings.filterwarnings("ignore", "RNN module weights")
            return self._sequence(x, carry, weights)

    def _sequence(self, x: Tensor, carry: Tree, weights: list[Tensor]) -> Tensor:
        """Inputs [L, B, *] and the carry [B, D'] to outputs [L, B, D'], without resets."""
        raise NotImplementedError

    def _reset_column(self) -> Tensor:
        """Weights [gates * D', 1] of an input that is 1 in a step which sets the carry to zero, whatever it was."""
        raise NotImplementedError

    def unroll(self, features: Tensor, carry: Tree, is_first: Tensor | None) -> Tensor:
        """As of `NoMemory`, in one call of torch's kernel for whole sequences.

        That kernel knows no resets, so that each reset is one more step, see `ResetSteps`.
        """
        assert is_first is not None, "a memory must know where episodes begin"
        steps = ResetSteps(is_first.cpu(), features.device)
        carry = steps.begin(carry)
        if not steps.any:
            return self._run(features, carry, [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh])
        weight = torch.cat((self.weight_ih, self._reset_column()), dim=1)
        return steps.remove(self._run(steps.insert(features), carry, [weight, self.weight_hh, self.bias_ih, self.bias_hh]))


_CLOSED = -1e4
"""What closes a gate: its sigmoid is 0, and so is the derivative."""


class LSTMMemory(_Recurrent):
    """A long short-term memory (Hochreiter and Schmidhuber 1997; with forget gates, Gers et al. 2000)."""

    num_gates, carry_names = 4, ("hidden", "cell")

    def step(self, features: Tensor, carry: Tree, is_first: Tensor) -> tuple[Tensor, Tree]:
        hidden, cell = (carry[name].masked_fill(is_first.unsqueeze(1), 0.0) for name in self.carry_names)
        gates = torch.addmm(F.linear(features, self.weight_ih, self.bias_ih + self.bias_hh), hidden, self.weight_hh.t())
        write, forget, candidate, read = gates.chunk(4, dim=1)
        cell = torch.addcmul(forget.sigmoid() * cell, write.sigmoid(), candidate.tanh())
        hidden = read.sigmoid() * cell.tanh()
        return hidden, {"hidden": hidden, "cell": cell}

    def _sequence(self, x: Tensor, carry: Tree, weights: list[Tensor]) -> Tensor:
        state = [carry[name].unsqueeze(0) for name in self.carry_names]
        # has_biases, num_layers, dropout, train, bidirectional, batch_first
        out: Tensor = torch.lstm(x, state, weights, True, 1, 0.0, torch.is_grad_enabled(), False, False)[0]
        return out

    def _reset_column(self) -> Tensor:
        column = self.weight_ih.new_full((4 * self.num_features, 1), _CLOSED)
        column[2 * self.num_features : 3 * self.num_features] = 0.0
        return column  # nothing is written, kept or read: cell and hidden are 0


class GRUMemory(_Recurrent):
    """A gated recurrent unit (Cho et al. 2014, in the form of `torch.nn.GRU`)."""

    num_gates, carry_names = 3, ("hidden",)

    def step(self, features: Tensor, carry: Tree, is_first: Tensor) -> tuple[Tensor, Tree]:
        hidden = carry["hidden"].masked_fill(is_first.unsqueeze(1), 0.0)
        of_input, of_hidden = F.linear(features, self.weight_ih, self.bias_ih), F.linear(hidden, self.weight_hh, self.bias_hh)
        two, size = 2 * self.num_features, self.num_features
        reset, keep = (of_input[:, :two] + of_hidden[:, :two]).sigmoid().split(size, dim=1)
        candidate = torch.addcmul(of_input[:, two:], reset, of_hidden[:, two:]).tanh()
        hidden = torch.addcmul(candidate, keep, hidden - candidate)
        return hidden, {"hidden": hidden}

    def unroll(self, features: Tensor, carry: Tree, is_first: Tensor | None) -> Tensor:
        """As of `NoMemory`; through compiled kernels on a CPU, see `GRU`."""
        if features.device.type != "cpu" or features.dtype != torch.float32:
            return super().unroll(features, carry, is_first)
        assert is_first is not None, "a memory must know where episodes begin"
        out: Tensor = GRU.apply(features, carry["hidden"].detach(), is_first, *self.parameters())
        return out

    def _sequence(self, x: Tensor, carry: Tree, weights: list[Tensor]) -> Tensor:
        out: Tensor = torch.gru(x, carry["hidden"].unsqueeze(0), weights, True, 1, 0.0, torch.is_grad_enabled(), False, False)[0]
        return out

    def _reset_column(self) -> Tensor:
        closed = self.weight_ih.new_full((2 * self.num_features,), _CLOSED)
        # The candidate is then tanh(bias - bias); its gradient on the bias cancels too.
        return torch.cat((closed, -self.bias_ih[2 * self.num_features :])).unsqueeze(1)


Memory = NoMemory | LSTMMemory | GRUMemory
MEMORIES: dict[str, Any] = {"lstm": LSTMMemory, "gru": GRUMemory}


def make_memory(kind: str, num_features: int, size: int) -> Memory:
    """A memory for features [*, num_features].

    Args:
        kind: "none", "lstm" or "gru".
        num_features: D, of what goes in; `memory.num_features` is that of what comes out.
        size: units of the memory; unused with "none".
    """
    memory: Memory = NoMemory(num_features) if kind == "none" else MEMORIES[kind](num_features, size)
    return memory
