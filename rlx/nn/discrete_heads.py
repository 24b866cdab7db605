"""Distributions of actions that are choices, and what all heads have in common; see `rlx.nn.heads`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from rlx.distributed import ALONE, World

_FORBIDDEN = -1e30
"""Logit of a choice that is masked out. Its probability is exactly 0; with -inf, entropies and their gradients would be NaN."""


class Evaluation(NamedTuple):
    """Log-probability and entropy of actions, with their pullback to the distribution's parameters."""

    log_prob: Tensor  # [B]
    entropy: Tensor  # [B]
    pullback: Callable[[Tensor, float], Tensor]
    """From d loss / d log_prob [B] and d loss / d entropy (the same for all B) to d loss / d params [B, D]."""


class Head(nn.Module, ABC):
    """A family of action distributions.

    Args:
        num_outputs: D, the number of parameters that the network computes.
        choices: the number of choices of each discrete number of an action; `mask_width` is their sum M.
    """

    def __init__(self, num_outputs: int, choices: Sequence[int] = ()) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.choices = tuple(choices)
        self.mask_width = sum(choices)
        self.num_frozen = num_outputs
        """D', the width of what `freeze` returns."""
        self.world: World = ALONE
        """The ranks that act together: noise is drawn for the rows of all of them, so that it does not depend on their number."""

    @abstractmethod
    def masked(self, params: Tensor, mask: Tensor) -> Tensor:
        """[B, D] and the choices that are allowed, bool [B, M], to the parameters of the distribution over these [B, D].

        Every other method takes them in place of `params`; its gradients with respect to forbidden logits are 0.
        """

    @abstractmethod
    def sample(self, params: Tensor) -> Tensor:
        """[B, D] to actions [B, *]."""

    @abstractmethod
    def mode(self, params: Any) -> Any:
        """[B, D] to the most likely actions [B, *]."""

    @abstractmethod
    def probs(self, params: Tensor) -> Tensor | None:
        """[B, D] to the probabilities of all choices [B, M], or None where there are none."""

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor] | None:
        """[B, D] to the means and standard deviations of the continuous numbers of an action, each [B, A], or None without any."""
        return None

    @abstractmethod
    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """[B, D], [B, *] to [B]."""

    @abstractmethod
    def evaluate(self, params: Tensor, action: Tensor) -> Evaluation:
        """Log-probability and entropy of actions [B, *], with their derivatives."""

    @abstractmethod
    def kl(self, old: Tensor, params: Tensor) -> tuple[Tensor, Callable[[float], Tensor]]:
        """KL(old || new) [B], and from d loss / d kl (the same for all B) to d loss / d params [B, D]. `old` is from `freeze`."""

    def freeze(self, params: Tensor) -> Tensor:
        """The form of this distribution that `kl` takes as `old`, [B, D']."""
        return params.detach()


class CategoricalHead(Head):
    """A softmax over `num_actions` logits."""

    def __init__(self, num_actions: int) -> None:
        super().__init__(num_actions, (num_actions,))

    def masked(self, params: Tensor, mask: Tensor) -> Tensor:
        """[B, D], bool [B, D] to [B, D]."""
        return torch.where(mask, params, _FORBIDDEN)

    def sample(self, params: Tensor) -> Tensor:
        """[B, D] to actions [B]."""
        # argmax(logits + Gumbel noise) is a sample; -log(Exp(1)) is Gumbel noise. Twice as fast as torch.multinomial.
        return (params - self.world.draw(params, Tensor.exponential_).log_()).argmax(-1)

    def mode(self, params: Any) -> Any:
        """[B, D] to the most likely actions [B]; a tensor or an array."""
        return params.argmax(-1)

    def probs(self, params: Tensor) -> Tensor | None:
        """[B, D] to the probabilities of the actions [B, D]."""
        return params.softmax(-1)

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


class FactorizedCategoricalHead(Head):
    """An independent softmax for each of k numbers; their logits are concatenated."""

    _source: Tensor
    _target: Tensor

    def __init__(self, choices: Sequence[int]) -> None:
        super().__init__(sum(choices), choices)
        self._each = CategoricalHead(max(choices))
        # Where the logits are in [k, n], n the most choices of a number; the rest of it is filled with forbidden choices.
        rows = torch.arange(max(choices)) < torch.tensor(self.choices).unsqueeze(1)
        source = torch.full(rows.shape, self.num_outputs).masked_scatter_(rows, torch.arange(self.num_outputs))
        self._is_even = bool(rows.all())
        self.register_buffer("_source", source, persistent=False)
        self.register_buffer("_target", rows.flatten().nonzero()[:, 0], persistent=False)

    def masked(self, params: Tensor, mask: Tensor) -> Tensor:
        """[B, D], bool [B, D] to [B, D]."""
        return torch.where(mask, params, _FORBIDDEN)

    def sample(self, params: Tensor) -> Tensor:
        """[B, D] to actions [B, k]."""
        return self._each.sample(self._split(params))

    def mode(self, params: Tensor) -> Tensor:
        """[B, D] to the most likely actions [B, k]."""
        mode: Tensor = self._each.mode(self._split(params))
        return mode

    def probs(self, params: Tensor) -> Tensor | None:
        """[B, D] to the probabilities of the choices [B, D]."""
        return self._join(self._split(params).softmax(-1))

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """[B, D], [B, k] to [B]."""
        return self._each.log_prob(self._split(params), action).sum(-1)

    @torch.no_grad()
    def evaluate(self, params: Tensor, action: Tensor) -> Evaluation:
        """Log-probability and entropy."""
        log_prob, entropy, pullback = self._each.evaluate(self._split(params), action)
        return Evaluation(
            log_prob.sum(-1),
            entropy.sum(-1),
            lambda d_log_prob, d_entropy: self._join(pullback(d_log_prob.unsqueeze(-1).expand_as(log_prob), d_entropy)),
        )

    @torch.no_grad()
    def kl(self, old: Tensor, params: Tensor) -> tuple[Tensor, Callable[[float], Tensor]]:
        """KL(old || new) [B], and its derivative."""
        kl, pullback = self._each.kl(self._split(old), self._split(params))
        return kl.sum(-1), lambda d_kl: self._join(pullback(d_kl))

    def _split(self, params: Tensor) -> Tensor:
        """[B, D] to [B, k, n]."""
        if self._is_even:
            return params.unflatten(-1, (len(self.choices), -1))
        return torch.cat((params, params.new_full((params.shape[0], 1), _FORBIDDEN)), -1)[:, self._source]

    def _join(self, split: Tensor) -> Tensor:
        """[B, k, n] to [B, D]."""
        return split.flatten(1) if self._is_even else split.flatten(1)[:, self._target]


class BernoulliHead(Head):
    """Independent bits, each with the logit of being 1."""

    def __init__(self, num_bits: int) -> None:
        super().__init__(num_bits, (2,) * num_bits)

    def masked(self, params: Tensor, mask: Tensor) -> Tensor:
        """[B, n] and whether 0 and 1 are allowed, bool [B, 2 n] with the two of a bit side by side, to [B, n]."""
        zero, one = mask.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.where(one, torch.where(zero, params, -_FORBIDDEN), _FORBIDDEN)

    def sample(self, params: Tensor) -> Tensor:
        """[B, n] to actions [B, n]."""
        return (self.world.draw(params, Tensor.uniform_) < params.sigmoid()).to(torch.int8)

    def mode(self, params: Tensor) -> Tensor:
        """[B, n] to the most likely actions [B, n]."""
        return (params > 0.0).to(torch.int8)

    def probs(self, params: Tensor) -> Tensor | None:
        """[B, n] to the probabilities of 0 and 1, [B, 2 n]."""
        return torch.stack((-params, params), dim=-1).sigmoid().flatten(1)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """[B, n], [B, n] to [B]."""
        return logsigmoid(torch.where(action > 0, params, -params)).sum(-1)

    @torch.no_grad()
    def evaluate(self, params: Tensor, action: Tensor) -> Evaluation:
        """Log-probability and entropy; with p = sigmoid(z), d log p(a) / d z = a - p and d H / d z = -z p (1 - p)."""
        p, q = params.sigmoid(), (-params).sigmoid()
        entropy = -(p * logsigmoid(params) + q * logsigmoid(-params)).sum(-1)

        def pullback(d_log_prob: Tensor, d_entropy: float) -> Tensor:
            grad = torch.where(action > 0, q, -p) * d_log_prob.unsqueeze(-1)
            return grad.addcmul_(params * p, q, value=-d_entropy) if d_entropy else grad

        return Evaluation(self.log_prob(params, action), entropy, pullback)

    @torch.no_grad()
    def kl(self, old: Tensor, params: Tensor) -> tuple[Tensor, Callable[[float], Tensor]]:
        """KL(old || new) [B], and its derivative."""
        p = old.sigmoid()
        ones = p * (logsigmoid(old) - logsigmoid(params))
        zeros = (-old).sigmoid() * (logsigmoid(-old) - logsigmoid(-params))
        return (ones + zeros).sum(-1), lambda d_kl: (params.sigmoid() - p) * d_kl
