"""Action distributions as functions of the policy network's output, without distribution objects in the inner loop.

A head says how many outputs it needs and turns them, `params [B, D]`, into samples, log-probabilities, entropies and
divergences, the last three with their derivatives (see `rlx.nn.mlp` for why they are written out). Actions with several
numbers are independent given the observation: log-probabilities, entropies and divergences are sums over them. Continuous
actions are not squashed: the environment clips them, and log-probabilities are those of the actions before clipping.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.errors import ConfigError
from rlx.nn.discrete_heads import BernoulliHead, CategoricalHead, Evaluation, FactorizedCategoricalHead, Head
from rlx.spaces import ProductSpace, choices_of, describe_space, original_space, space_leaves
from rlx.types import EnvSpec

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class GaussianHead(Head):
    """A diagonal Gaussian whose log standard deviation is a parameter, not a function of the observation.

    The pullbacks add to `log_std.grad` and return the gradient of the mean.
    """

    def __init__(self, num_actions: int, log_std_init: float) -> None:
        super().__init__(num_actions)
        self.num_frozen = 2 * num_actions
        self.log_std = nn.Parameter(torch.full((num_actions,), float(log_std_init)))

    def masked(self, params: Tensor, mask: Tensor) -> Tensor:
        """The same parameters: nothing is forbidden."""
        return params

    def sample(self, params: Tensor) -> Tensor:
        """[B, A] to actions [B, A]."""
        return torch.addcmul(params, self.world.draw(params, Tensor.normal_), self.log_std.exp())

    def mode(self, params: Any) -> Any:
        """[B, A] to the most likely actions [B, A]; a tensor or an array."""
        return params

    def probs(self, params: Tensor) -> Tensor | None:
        """None: actions are continuous."""
        return None

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor] | None:
        """[B, A] to means and standard deviations, each [B, A]."""
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


class ProductHead(Head):
    """Independent parts of different kinds, see `ProductSpace`: an action is all their numbers as floats."""

    def __init__(self, parts: Sequence[Head]) -> None:
        super().__init__(sum(head.num_outputs for head in parts), [n for head in parts for n in head.choices])
        self.num_frozen = sum(head.num_frozen for head in parts)
        self.parts = nn.ModuleList(parts)
        self._heads = tuple(parts)
        self._num_outputs = [head.num_outputs for head in parts]
        self._num_numbers = [len(head.choices) or head.num_outputs for head in parts]

    def masked(self, params: Tensor, mask: Tensor) -> Tensor:
        """[B, D], bool [B, M] to [B, D]."""
        masks = mask.split([head.mask_width for head in self._heads], dim=-1)
        return torch.cat([head.masked(x, allowed) for head, x, allowed in self._zip(params, masks)], dim=-1)

    def sample(self, params: Tensor) -> Tensor:
        """[B, D] to actions [B, K]."""
        return _join_numbers([head.sample(x) for head, x in self._zip(params)], params)

    def mode(self, params: Tensor) -> Tensor:
        """[B, D] to the most likely actions [B, K]."""
        return _join_numbers([head.mode(x) for head, x in self._zip(params)], params)

    def probs(self, params: Tensor) -> Tensor | None:
        """[B, D] to the probabilities of all choices [B, M], or None where there are none."""
        probs = [p for head, x in self._zip(params) if (p := head.probs(x)) is not None]
        return torch.cat(probs, dim=-1) if probs else None

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor] | None:
        """[B, D] to means and standard deviations [B, A] of the continuous parts, or None without any."""
        moments = [m for head, x in self._zip(params) if (m := head.moments(x)) is not None]
        return (torch.cat([mean for mean, _ in moments], -1), torch.cat([std for _, std in moments], -1)) if moments else None

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """[B, D], [B, K] to [B]."""
        return _sum([head.log_prob(x, part) for head, x, part in self._zip(params, self._split(action))])

    @torch.no_grad()
    def evaluate(self, params: Tensor, action: Tensor) -> Evaluation:
        """Log-probability and entropy."""
        parts = [head.evaluate(x, part) for head, x, part in self._zip(params, self._split(action))]
        return Evaluation(
            _sum([part.log_prob for part in parts]),
            _sum([part.entropy for part in parts]),
            lambda d_log_prob, d_entropy: torch.cat([part.pullback(d_log_prob, d_entropy) for part in parts], dim=-1),
        )

    @torch.no_grad()
    def kl(self, old: Tensor, params: Tensor) -> tuple[Tensor, Callable[[float], Tensor]]:
        """KL(old || new) [B], and its derivative."""
        olds = old.split([head.num_frozen for head in self._heads], dim=-1)
        parts = [head.kl(frozen, x) for head, x, frozen in self._zip(params, olds)]
        return _sum([kl for kl, _ in parts]), lambda d_kl: torch.cat([pullback(d_kl) for _, pullback in parts], dim=-1)

    def freeze(self, params: Tensor) -> Tensor:
        """The form of this distribution that `kl` takes as `old`, [B, D']."""
        return torch.cat([head.freeze(x) for head, x in self._zip(params)], dim=-1)

    def _zip(self, params: Tensor, *others: Sequence[Tensor]) -> Iterator[Any]:
        """Each head with its parameters, and what else is given for it."""
        return zip(self._heads, params.split(self._num_outputs, dim=-1), *others, strict=True)

    def _split(self, action: Tensor) -> list[Tensor]:
        """Actions [B, K] to those of each head."""
        parts = []
        for head, numbers in zip(self._heads, action.split(self._num_numbers, dim=-1), strict=True):
            if isinstance(head, CategoricalHead):
                parts.append(numbers[:, 0].long())
            else:
                parts.append(numbers.long() if isinstance(head, FactorizedCategoricalHead) else numbers)
        return parts


def _join_numbers(actions: Sequence[Tensor], params: Tensor) -> Tensor:
    """Actions [B] or [B, k] of each head to [B, K]."""
    return torch.cat([action.view(params.shape[0], -1).to(params.dtype) for action in actions], dim=-1)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    """Sum of tensors [B]."""
    return torch.stack(list(terms)).sum(0)


def make_head(spec: EnvSpec, *, log_std_init: float) -> Head:
    """The head for the env's action space.

    Raises:
        ConfigError: for action spaces with a part that is neither Discrete, MultiDiscrete, MultiBinary nor a Box of floats.
    """
    space = spec.action_space
    for path, leaf in [*space_leaves(original_space(space)), ("", space)]:
        if not _is_supported(leaf):
            raise ConfigError(
                f"env={spec.id} has action space {describe_space(leaf)}{path and f' at {path}'}; this algorithm expects Discrete, "
                f"MultiDiscrete, MultiBinary, a Box of floats, or a Dict or Tuple of them: {_advice(leaf)}"
            )
    parts = space.parts if isinstance(space, ProductSpace) else (space,)
    if log_std_init != 0.0 and not any(isinstance(part, spaces.Box) for part in parts):
        raise ConfigError(f"algo.log_std_init={log_std_init} has no effect: env={spec.id} has discrete actions; leave it out")
    heads = [_head_of(part, log_std_init) for part in parts]
    return ProductHead(heads) if isinstance(space, ProductSpace) else heads[0]


def _is_supported(leaf: gymnasium.Space[Any]) -> bool:
    if isinstance(leaf, spaces.Box):
        return np.issubdtype(leaf.dtype, np.floating)
    return isinstance(leaf, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)


def _advice(leaf: gymnasium.Space[Any]) -> str:
    """What to do about a space that is not supported."""
    if isinstance(leaf, spaces.Box):
        return "declare whole numbers as MultiDiscrete, for example in a wrapper (env.wrappers)"
    return "wrap the environment (env.wrappers), or choose another (see `rlx envs`)"


def _head_of(part: gymnasium.Space[Any], log_std_init: float) -> Head:
    if isinstance(part, spaces.Discrete):
        return CategoricalHead(int(part.n))
    if isinstance(part, spaces.MultiDiscrete):
        return FactorizedCategoricalHead(choices_of(part))
    if isinstance(part, spaces.MultiBinary):
        return BernoulliHead(len(choices_of(part)))
    return GaussianHead(math.prod(part.shape or ()), log_std_init)
