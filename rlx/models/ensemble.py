"""An ensemble of probabilistic networks that predict how observations change, fitted to bootstraps of what was seen.

Chua et al. 2018 (PETS), https://arxiv.org/abs/1805.12114, section 4: each of K members gives the mean and variance of a Gaussian over
s' - s. Inputs are standardised as there; so are targets, which puts the variance's bounds and the weight decay on one scale for every
environment. Deviations: SiLU is the paper's swish; training stops early on held-out data and each member keeps its best weights; the
bounds of the variance are fixed unless `learn_bounds`, as in mbrl-lib, where "so far this works better".
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlx.errors import NonFiniteError
from rlx.nn.optim import FlatAdam

_CONSTANT = 1e-6
"""A feature is constant if its deviation is below this share of its size plus one: float32 has no more digits."""
_MIN_LOG_VARIANCE, _MAX_LOG_VARIANCE = -10.0, 0.5


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] of x [N, D] in float64; the deviation of a constant feature is exactly 0.

    Raises:
        NonFiniteError: if x is not finite.
    """
    variance, mean = torch.var_mean(x.to(torch.float64), dim=0, correction=0)
    if not (mean.isfinite().all() and variance.isfinite().all()):
        raise NonFiniteError("the environment gave an observation or reward that is not finite: clip or repair it in the environment")
    std = variance.sqrt()
    return mean, torch.where(std > _CONSTANT * (1.0 + mean.abs()), std, 0.0)


def bound_log_variance(raw: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Smoothly within (low, high): appendix A.1 of the paper."""
    raw = high - F.softplus(high - raw)
    return low + F.softplus(raw - low)


def gaussian_nll(mean: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    """Twice the negative log-likelihood without its constant, (mean - target)^2 / variance + log variance: eq. 1 of the paper."""
    return (mean - target).square() * (-log_variance).exp() + log_variance


class Ensemble(nn.Module):
    """K networks as one: every layer is one batched matrix product.

    Args:
        num_inputs: I.
        num_outputs: O.
        num_members: K.
        hidden_sizes: widths of the hidden layers.
        learn_bounds: learn the bounds of the log-variance, drawn together by the loss.
    """

    input_mean: Tensor
    input_scale: Tensor
    output_mean: Tensor
    output_scale: Tensor

    def __init__(self, num_inputs: int, num_outputs: int, *, num_members: int, hidden_sizes: Sequence[int], learn_bounds: bool) -> None:
        super().__init__()
        self.num_members, self.num_outputs, self.learn_bounds = num_members, num_outputs, learn_bounds
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, o in itertools.pairwise([num_inputs, *hidden_sizes, 2 * num_outputs]):
            std = 1.0 / (2.0 * i**0.5)
            self.weights.append(nn.init.trunc_normal_(torch.empty(num_members, i, o), std=std, a=-2.0 * std, b=2.0 * std))
            self.biases.append(torch.zeros(num_members, 1, o))
        self.low = nn.Parameter(torch.full((num_outputs,), _MIN_LOG_VARIANCE), requires_grad=learn_bounds)
        self.high = nn.Parameter(torch.full((num_outputs,), _MAX_LOG_VARIANCE), requires_grad=learn_bounds)
        self.register_buffer("input_mean", torch.zeros(num_inputs))
        self.register_buffer("input_scale", torch.ones(num_inputs))  # reciprocal of the deviation; 1 of a constant feature
        self.register_buffer("output_mean", torch.zeros(num_outputs))
        self.register_buffer("output_scale", torch.ones(num_outputs))  # the deviation; 0 of a constant, which is then predicted exactly

    def standardise(self, inputs: Tensor, targets: Tensor) -> None:
        """Take the scales of inputs [N, I] and targets [N, O].

        Raises:
            NonFiniteError: before anything is changed, if they are not finite.
        """
        (input_mean, input_std), (output_mean, output_std) = moments(inputs), moments(targets)
        self.input_mean.copy_(input_mean)
        self.input_scale.copy_(torch.where(input_std > 0.0, 1.0 / input_std, 1.0))
        self.output_mean.copy_(output_mean)
        self.output_scale.copy_(output_std)

    def scale_inputs(self, inputs: Tensor) -> Tensor:
        return (inputs - self.input_mean) * self.input_scale

    def scale_targets(self, targets: Tensor) -> Tensor:
        """Targets [N, O] in standard deviations; a constant becomes 0."""
        return torch.where(self.output_scale > 0.0, (targets - self.output_mean) / self.output_scale, 0.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised inputs [K, M, I] to mean and log-variance [K, M, O] of the standardised targets."""
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if i < last:
                x = F.silu(x)
        mean, raw = x.chunk(2, dim=-1)
        return mean, bound_log_variance(raw, self.low, self.high)

    def losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Each member's negative log-likelihood and squared error [K] on standardised inputs [K, M, I] and targets [K, M, O]."""
        mean, log_variance = self(inputs)
        varies = (self.output_scale > 0.0).to(mean.dtype)
        share = varies / varies.sum().clamp(min=1.0)
        nll = (gaussian_nll(mean, log_variance, targets) * share).sum(-1).mean(-1)
        return nll, ((mean - targets).square() * share).sum(-1).mean(-1)

    @torch.no_grad()
    def decay(self, amount: float) -> None:
        """Shrink the weights, decoupled from the gradient (Loshchilov and Hutter 2019)."""
        for weight in self.weights:
            weight.mul_(1.0 - amount)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to fit an ensemble."""

    learning_rate: float
    batch_size: int
    max_epochs: int
    patience: int  # epochs without progress on held-out data
    weight_decay: float


class Fitted(NamedTuple):
    """How a fit went, as means over the members."""

    loss: float  # of the last epoch
    holdout_nll: float  # of the weights that were kept; NaN without held-out data
    holdout_mse: float  # squared error, where always predicting the mean change has 1
    epochs: int
    num_steps: int


_MIN_STEPS = 10
"""Gradient steps of a pass, at least: with little data a pass would teach nothing, and patience would end at once."""
_PROGRESS = 0.01
"""Less of an improvement of the held-out log-likelihood is none."""


def fit(
    ensemble: Ensemble, optimizer: FlatAdam, inputs: Tensor, targets: Tensor, counts: Tensor, holdout: Tensor, config: FitConfig
) -> Fitted:
    """Go on fitting the ensemble to data, under new scales.

    Args:
        ensemble: is changed.
        optimizer: of its parameters.
        inputs: [N, I].
        targets: [N, O].
        counts: [N, K] how often each row is in each member's bootstrap.
        holdout: [N] bool: rows that nobody is trained on.
        config: how.
    """
    ensemble.standardise(inputs, targets)
    x, y = ensemble.scale_inputs(inputs), ensemble.scale_targets(targets)
    members = ensemble.num_members
    held = (x[holdout].expand(members, -1, -1), y[holdout].expand(members, -1, -1)) if bool(holdout.any()) else None
    rows = [torch.repeat_interleave(torch.arange(len(x), device=x.device), counts[:, k] * ~holdout) for k in range(members)]
    if min(map(len, rows)) == 0:  # a handful of data may leave a member without any
        rows = [torch.arange(len(x), device=x.device)] * members
    length = max(*map(len, rows), _MIN_STEPS * config.batch_size)
    best = _Best(ensemble, held)
    num_steps, loss, epoch = 0, float("nan"), 0
    for epoch in range(1, config.max_epochs + 1):
        order = _shuffle(rows, length)
        losses = []
        for index in order.split(config.batch_size, dim=1):
            with torch.enable_grad():
                nll, _ = ensemble.losses(x[index], y[index])
                total = nll.sum()
                if ensemble.learn_bounds:
                    total = total + 0.01 * (ensemble.high.sum() - ensemble.low.sum())
                optimizer.zero_grad()
                total.backward()
            optimizer.step(total.detach(), config.learning_rate)
            ensemble.decay(config.learning_rate * config.weight_decay)
            losses.append(nll.detach().mean())
        num_steps += len(losses)
        loss = torch.stack(losses).mean().item()
        optimizer.check()
        if best.look(epoch) >= config.patience:
            break
    holdout_nll, holdout_mse = best.restore()
    return Fitted(loss, holdout_nll, holdout_mse, epoch, num_steps)


def _shuffle(rows: list[Tensor], length: int) -> Tensor:
    """Each member's rows in an order of its own, again and again up to `length`, [K, length]."""
    orders = [of_member[torch.randperm(len(of_member), device=of_member.device)] for of_member in rows]
    return torch.stack([order.repeat(-(-length // len(order)))[:length] for order in orders])


class _Best:
    """Keeps, for every member, the weights with which it predicted held-out data best."""

    def __init__(self, ensemble: Ensemble, held: tuple[Tensor, Tensor] | None) -> None:
        self._ensemble, self._held = ensemble, held
        self._parameters = [*ensemble.weights, *ensemble.biases]
        self._kept = [p.detach().clone() for p in self._parameters]
        self._nll, self._mse = self._measure()
        self._last_progress = 0

    @torch.no_grad()
    def _measure(self) -> tuple[Tensor, Tensor]:
        if self._held is None:
            nothing = torch.full((self._ensemble.num_members,), torch.nan)
            return nothing, nothing
        return self._ensemble.losses(*self._held)

    @torch.no_grad()
    def look(self, epoch: int) -> int:
        """Compare the weights after an epoch; returns for how many epochs nobody has made progress."""
        if self._held is None:
            return 0
        nll, mse = self._measure()
        better = nll < self._nll - _PROGRESS
        if better.any():
            self._last_progress = epoch
            self._nll, self._mse = torch.where(better, nll, self._nll), torch.where(better, mse, self._mse)
            for kept, now in zip(self._kept, self._parameters, strict=True):
                kept[better] = now[better]
        return epoch - self._last_progress

    @torch.no_grad()
    def restore(self) -> tuple[float, float]:
        """Put the best weights back; returns their negative log-likelihood and squared error."""
        if self._held is not None:
            for kept, now in zip(self._kept, self._parameters, strict=True):
                now.copy_(kept)
        return self._nll.mean().item(), self._mse.mean().item()
