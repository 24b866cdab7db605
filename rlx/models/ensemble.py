"""An ensemble of probabilistic networks that predict how observations change.

Chua et al. 2018 (PETS), https://arxiv.org/abs/1805.12114, section 4: each of K members gives the mean and variance of a Gaussian over
s' - s. Inputs are standardised as there; so are targets, which puts the variance's bounds and the weight decay on one scale for every
environment. Deviations: SiLU is the paper's swish; the bounds of the variance are fixed unless `learn_bounds`, as in mbrl-lib, where "so
far this works better". `rlx.models.fit` fits an ensemble to data.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlx.nn.finite import finite_moments

_CONSTANT = 1e-6
"""A feature is constant if its standard deviation is below this share of |mean| + 1, which float32 cannot resolve."""
_MIN_LOG_VARIANCE, _MAX_LOG_VARIANCE = -10.0, 0.5


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] of x [N, D] in float64; the deviation of a constant feature is exactly 0.

    Raises:
        NonFiniteError: if x is not finite.
    """
    _, mean, variance = finite_moments(x)
    std = variance.sqrt()
    return mean, torch.where(std > _CONSTANT * (1.0 + mean.abs()), std, 0.0)


def bound_log_variance(raw: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Log-variances bounded smoothly to (low, high): appendix A.1 of the paper."""
    raw = high - F.softplus(high - raw)
    return low + F.softplus(raw - low)


def gaussian_nll(mean: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    """Twice the negative log-likelihood without its constant, (mean - target)^2 / variance + log variance: eq. 1 of the paper."""
    return (mean - target).square() * (-log_variance).exp() + log_variance


class BatchedNetworks(nn.Module):
    """K networks with SiLU in one module: every layer is one batched matrix product.

    Args:
        sizes: of the input, of the hidden layers and of the output.
        num_members: K.
    """

    def __init__(self, sizes: Sequence[int], num_members: int) -> None:
        super().__init__()
        self.num_members = num_members
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, o in itertools.pairwise(sizes):
            std = 1.0 / (2.0 * i**0.5)
            self.weights.append(nn.init.trunc_normal_(torch.empty(num_members, i, o), std=std, a=-2.0 * std, b=2.0 * std))
            self.biases.append(torch.zeros(num_members, 1, o))

    def outputs(self, x: Tensor) -> Tensor:
        """Each member's outputs [K, M, O] for its inputs [K, M, I]."""
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if i < last:
                x = F.silu(x)
        return x

    @torch.no_grad()
    def decay(self, amount: float) -> None:
        """Decay the weights, decoupled from the gradient (Loshchilov and Hutter 2019)."""
        for weight in self.weights:
            weight.mul_(1.0 - amount)


class Ensemble(BatchedNetworks):
    """K probabilistic networks with the scales of their inputs and targets.

    Args:
        num_inputs: I.
        num_outputs: O.
        num_members: K.
        hidden_sizes: widths of the hidden layers.
        learn_bounds: learn the bounds of the log-variance, with a loss on their distance.
    """

    input_mean: Tensor
    input_scale: Tensor
    output_mean: Tensor
    output_scale: Tensor

    def __init__(self, num_inputs: int, num_outputs: int, *, num_members: int, hidden_sizes: Sequence[int], learn_bounds: bool) -> None:
        super().__init__([num_inputs, *hidden_sizes, 2 * num_outputs], num_members)
        self.num_outputs, self.learn_bounds = num_outputs, learn_bounds
        self.low = nn.Parameter(torch.full((num_outputs,), _MIN_LOG_VARIANCE), requires_grad=learn_bounds)
        self.high = nn.Parameter(torch.full((num_outputs,), _MAX_LOG_VARIANCE), requires_grad=learn_bounds)
        self.register_buffer("input_mean", torch.zeros(num_inputs))
        self.register_buffer("input_scale", torch.ones(num_inputs))  # reciprocal of the deviation; 1 of a constant feature
        self.register_buffer("output_mean", torch.zeros(num_outputs))
        self.register_buffer("output_scale", torch.ones(num_outputs))  # the deviation; 0 of a constant, which is then predicted exactly

    def standardise(self, inputs: Tensor, targets: Tensor) -> None:
        """Set the scales to those of inputs [N, I] and targets [N, O].

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
        mean, raw = self.outputs(x).chunk(2, dim=-1)
        return mean, bound_log_variance(raw, self.low, self.high)

    def losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Each member's negative log-likelihood and squared error [K] on standardised inputs [K, M, I] and targets [K, M, O]."""
        mean, log_variance = self(inputs)
        varies = (self.output_scale > 0.0).to(mean.dtype)
        share = varies / varies.sum().clamp(min=1.0)
        nll = (gaussian_nll(mean, log_variance, targets) * share).sum(-1).mean(-1)
        return nll, ((mean - targets).square() * share).sum(-1).mean(-1)
