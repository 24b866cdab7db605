"""Policies of actions in (-1, 1): a Gaussian squashed by tanh, with its derivatives written out.

Haarnoja et al. 2018, https://arxiv.org/abs/1801.01290, appendix C. The logarithm of the density subtracts sum log(1 - tanh(u)^2), which is
computed as 2 (log 2 - u - softplus(-2 u)): exact for every u, where log(1 - tanh(u)^2 + 1e-6) has a wrong gradient beyond |u| = 7. Nothing
ever inverts a tanh. Entropies are those of actions in (-1, 1), whatever the units of the environment.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_HALF_LOG_2PI, _LOG_2 = 0.5 * math.log(2.0 * math.pi), math.log(2.0)
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
"""Bounds of the logarithm of the standard deviation; its gradient is 0 beyond them."""


class Squashed(NamedTuple):
    """Samples of the policy, and what their derivatives need."""

    action: Tensor  # [*, A] in (-1, 1)
    log_prob: Tensor  # [*]
    noise: Tensor  # [*, A] standard normal
    log_std: Tensor  # [*, A] as the network gave it, before it is bounded
    std: Tensor  # [*, A]

    def pullback(self, d_action: Tensor, d_log_prob: Tensor | float) -> Tensor:
        """From the derivatives of a loss by action [N, A] and log-probability (a number, or [N, 1]) to those by the parameters [N, 2 A].

        With u = mean + std noise: d action / d u = 1 - action^2, d log_prob / d u = 2 action, and d log_prob / d log_std = -1 at fixed u.
        """
        d_u = d_action * (1.0 - self.action.square()) + 2.0 * d_log_prob * self.action
        d_log_std = d_u * self.std * self.noise - d_log_prob
        inside = (self.log_std > LOG_STD_MIN) & (self.log_std < LOG_STD_MAX)
        return torch.cat((d_u, d_log_std * inside), dim=-1)


def sample(params: Tensor, noise: Tensor | None = None) -> Squashed:
    """Samples of the policy with parameters [*, 2 A], which are means and log standard deviations before the tanh.

    Args:
        params: the network's output.
        noise: [*, A] standard normal; None draws it.
    """
    mean, raw = params.chunk(2, dim=-1)
    noise = torch.randn_like(mean) if noise is None else noise
    log_std = raw.clamp(LOG_STD_MIN, LOG_STD_MAX)
    std = log_std.exp()
    u = torch.addcmul(mean, std, noise)
    of_each = 0.5 * noise.square() + log_std + 2.0 * (_LOG_2 - u - F.softplus(-2.0 * u))
    return Squashed(u.tanh(), -of_each.sum(-1) - noise.shape[-1] * _HALF_LOG_2PI, noise, raw, std)


def mode(params: Tensor) -> Tensor:
    """The action [*, A] of an evaluation, tanh of the mean, from parameters [*, 2 A]."""
    return params.chunk(2, dim=-1)[0].tanh()
