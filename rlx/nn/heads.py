"""Action distributions as functions of the policy network's output; no distribution objects in the inner loop.

A head says how many outputs it needs and turns them, `params [B, D]`, into samples, log-probabilities, entropies and
divergences. Continuous actions are not squashed: the environment clips, the policy remembers what it chose.
"""

from __future__ import annotations

import math
from typing import Protocol

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from rlx.errors import ConfigError
from rlx.types import EnvSpec

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Head(Protocol):
    num_outputs: int

    def sample(self, params: Tensor) -> Tensor:
        """[B, D] to actions [B, *]."""
        ...

    def mode(self, params: Tensor) -> Tensor:
        """[B, D] to the most likely actions [B, *]."""
        ...

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """[B, D], [B, *] to [B]."""
        ...

    def log_prob_and_entropy(self, params: Tensor, action: Tensor, *, entropy_grad: bool) -> tuple[Tensor, Tensor]:
        """[B, D], [B, *] to ([B], [B]); an entropy that is only looked at costs no gradient."""
        ...

    def kl(self, old_params: Tensor, params: Tensor) -> Tensor:
        """KL(old || new), [B]."""
        ...

    def freeze(self, params: Tensor) -> Tensor:
        """What `kl` needs to know later of these parameters, detached: [B, D']."""
        ...


class CategoricalHead(nn.Module):
    """A softmax over `num_actions` logits."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.num_outputs = num_actions

    def sample(self, params: Tensor) -> Tensor:
        # argmax(logits + Gumbel noise) is a sample; -log(Exp(1)) is Gumbel noise. Twice as fast as torch.multinomial.
        return (params - torch.empty_like(params).exponential_().log_()).argmax(-1)

    def mode(self, params: Tensor) -> Tensor:
        return params.argmax(-1)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        return params.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def log_prob_and_entropy(self, params: Tensor, action: Tensor, *, entropy_grad: bool) -> tuple[Tensor, Tensor]:
        all_log_probs = params.log_softmax(-1)
        log_prob = all_log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        log_probs = all_log_probs if entropy_grad else all_log_probs.detach()
        return log_prob, -(log_probs.exp() * log_probs).sum(-1)

    def kl(self, old_params: Tensor, params: Tensor) -> Tensor:
        old, new = old_params.log_softmax(-1), params.log_softmax(-1)
        return (old.exp() * (old - new)).sum(-1)

    def freeze(self, params: Tensor) -> Tensor:
        return params.detach()


class GaussianHead(nn.Module):
    """A diagonal Gaussian whose log standard deviation is a parameter, not a function of the observation."""

    def __init__(self, num_actions: int, log_std_init: float) -> None:
        super().__init__()
        self.num_outputs = num_actions
        self.log_std = nn.Parameter(torch.full((num_actions,), float(log_std_init)))

    def sample(self, params: Tensor) -> Tensor:
        return torch.addcmul(params, torch.randn_like(params), self.log_std.exp())

    def mode(self, params: Tensor) -> Tensor:
        return params

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        z = (action - params) * (-self.log_std).exp()
        return -0.5 * z.square().sum(-1) - (self.log_std.sum() + self.num_outputs * _HALF_LOG_2PI)

    def log_prob_and_entropy(self, params: Tensor, action: Tensor, *, entropy_grad: bool) -> tuple[Tensor, Tensor]:
        entropy = (self.log_std if entropy_grad else self.log_std.detach()).sum() + self.num_outputs * (0.5 + _HALF_LOG_2PI)
        return self.log_prob(params, action), entropy.expand(len(params))

    def kl(self, old_params: Tensor, params: Tensor) -> Tensor:
        old_mean, old_log_std = old_params.chunk(2, dim=-1)
        variance_ratio = (2.0 * (old_log_std - self.log_std)).exp()
        distance = ((old_mean - params) * (-self.log_std).exp()).square()
        return 0.5 * (variance_ratio + distance - 1.0 + 2.0 * (self.log_std - old_log_std)).sum(-1)

    def freeze(self, params: Tensor) -> Tensor:
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
