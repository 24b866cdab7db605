"""Action distributions as functions of the policy network's output, without distribution objects in the inner loop.

A head says how many outputs it needs and turns them, `params [B, D]`, into samples, log-probabilities, entropies and
divergences, the last three with their derivatives (see `rlx.nn.mlp` for why they are written out). Continuous actions are
not squashed: the environment clips them, and log-probabilities are those of the actions before clipping.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from rlx.errors import ConfigError
from rlx.types import EnvSpec

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Evaluation(NamedTuple):
    """Log-probability and entropy of actions, with their pullback to the distribution's parameters."""

    log_prob: Tensor  # [B]
    entropy: Tensor  # [B]
    pullback: Callable[[Tensor, float], Tensor]
    """From d loss / d log_prob [B] and d loss / d entropy (the same for all B) to d loss / d params [B, D]."""


class CategoricalHead(nn.Module):
    """A softmax over `num_actions` logits."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.num_outputs = num_actions

    def sample(self, params: Tensor) -> Tensor:
        """[B, D] to actions [B]."""
        # argmax(logits + Gumbel noise) is a sample; -log(Exp(1)) is Gumbel noise. Twice as fast as torch.multinomial.
        return (params - torch.empty_like(params).exponential_().log_()).argmax(-1)

    def mode(self, params: Any) -> Any:
        """[B, D] to the most likely actions [B]; a tensor or an array."""
        return params.argmax(-1)

    def probs(self, params: Tensor) -> Tensor | None:
        """[B, D] to the probabilities of the actions [B, D]."""
        return params.softmax(-1)

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor] | None:
        """None: actions are discrete."""
        return None

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """[B, D], [B] to [B]."""
        return params.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    @torch.no_grad()
    def evaluate(self, params: Tensor, action: Tensor) -> Evaluation:
        """Log-probability and entropy; d log p(a) / d logits = onehot(a) - p, d H / d logits = -p (log p + H)."""
        log_probs = params.log_softmax(-1)
        probs = log_probs.exp()
        index = action.unsqueeze(-1)
        entropy = -(probs * log_probs).sum(-1)

        def pullback(d_log_prob: Tensor, d_entropy: float) -> Tensor:
            weight = d_log_prob.unsqueeze(-1)
            grad = (probs * -weight).scatter_add_(-1, index, weight)
            if d_entropy:
                grad.addcmul_(probs, log_probs + entropy.unsqueeze(-1), value=-d_entropy)
            return grad

        return Evaluation(log_probs.gather(-1, index).squeeze(-1), entropy, pullback)

    @torch.no_grad()
    def kl(self, old: Tensor, params: Tensor) -> tuple[Tensor, Callable[[float], Tensor]]:
        """KL(old || new) [B], and from d loss / d kl (the same for all B) to d loss / d params [B, D]. `old` is from `freeze`."""
        old_log, new_log = old.log_softmax(-1), params.log_softmax(-1)
        return (old_log.exp() * (old_log - new_log)).sum(-1), lambda d_kl: (new_log.exp() - old_log.exp()) * d_kl

    def freeze(self, params: Tensor) -> Tensor:
        """The form of this distribution that `kl` takes as `old`, [B, D']."""
        return params.detach()


class GaussianHead(nn.Module):
    """A diagonal Gaussian whose log standard deviation is a parameter, not a function of the observation.

    The pullbacks add to `log_std.grad` and return the gradient of the mean.
    """

    def __init__(self, num_actions: int, log_std_init: float) -> None:
        super().__init__()
        self.num_outputs = num_actions
        self.log_std = nn.Parameter(torch.full((num_actions,), float(log_std_init)))

    def sample(self, params: Tensor) -> Tensor:
        """[B, A] to actions [B, A]."""
        return torch.addcmul(params, torch.randn_like(params), self.log_std.exp())

    def mode(self, params: Any) -> Any:
        """[B, A] to the most likely actions [B, A]; a tensor or an array."""
        return params

    def probs(self, params: Tensor) -> Tensor | None:
        """None: actions are continuous."""
        return None

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor] | None:
        """[B, A] to the means and standard deviations of the continuous numbers of an action, each [B, A]."""
        return params, self.log_std.exp().expand_as(params)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """[B, A], [B, A] to [B]."""
        z = (action - params) * (-self.log_std).exp()
        return -0.5 * z.square().sum(-1) - (self.log_std.sum() + self.num_outputs * _HALF_LOG_2PI)

    @torch.no_grad()
    def evaluate(self, params: Tensor, action: Tensor) -> Evaluation:
        """Log-density and entropy; with z = (a - mean) / std, d log p / d mean = z / std and d log p / d log_std = z^2 - 1."""
        inverse_std = (-self.log_std).exp()
        z = (action - params) * inverse_std
        squares = z.square()
        log_std_sum = self.log_std.sum()
        entropy = (log_std_sum + self.num_outputs * (0.5 + _HALF_LOG_2PI)).expand(len(params))

        def pullback(d_log_prob: Tensor, d_entropy: float) -> Tensor:
            weight = d_log_prob.unsqueeze(-1)
            self.log_std.grad.add_(((squares - 1.0) * weight).sum(0)).add_(d_entropy * len(params))  # type: ignore[union-attr]
            return z * inverse_std * weight

        return Evaluation(-0.5 * squares.sum(-1) - (log_std_sum + self.num_outputs * _HALF_LOG_2PI), entropy, pullback)

    @torch.no_grad()
    def kl(self, old: Tensor, params: Tensor) -> tuple[Tensor, Callable[[float], Tensor]]:
        """KL(old || new) [B], and from d loss / d kl (the same for all B) to d loss / d mean [B, A]. `old` is from `freeze`."""
        old_mean, old_log_std = old.chunk(2, dim=-1)
        inverse_std = (-self.log_std).exp()
        variance_ratio = (2.0 * (old_log_std - self.log_std)).exp()
        z = (params - old_mean) * inverse_std
        kl = 0.5 * (variance_ratio + z.square() - 1.0 + 2.0 * (self.log_std - old_log_std)).sum(-1)

        def pullback(d_kl: float) -> Tensor:
            self.log_std.grad.add_((1.0 - variance_ratio - z.square()).sum(0), alpha=d_kl)  # type: ignore[union-attr]
            return z * inverse_std * d_kl

        return kl, pullback

    def freeze(self, params: Tensor) -> Tensor:
        """The form of this distribution that `kl` takes as `old`, [B, 2 A]."""
        return torch.cat((params.detach(), self.log_std.detach().expand_as(params)), dim=-1)


def make_head(spec: EnvSpec, *, log_std_init: float) -> CategoricalHead | GaussianHead:
    """The head for the env's action space.

    Raises:
        ConfigError: for action spaces that are neither Discrete nor a flat Box.
    """
    space = spec.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        if log_std_init != 0.0:
            raise ConfigError(f"algo.log_std_init={log_std_init} has no effect: env={spec.id} has discrete actions; leave it out")
        return CategoricalHead(int(space.n))
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating):
        return GaussianHead(space.shape[0], log_std_init)
    raise ConfigError(
        f"env={spec.id} has action space {space}; this algorithm expects Discrete(n) or a one-dimensional Box of floats: "
        "wrap the environment, or choose another (see `rlx envs`)"
    )
