"""Distributions of actions out of torch.distributions, for comparisons with rlx's heads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Normal, kl_divergence

from rlx.nn.discrete_heads import BernoulliHead, Head
from rlx.nn.heads import GaussianHead, ProductHead


class Reference:
    """The distribution of one row out of torch.distributions: one for each number, over what is allowed."""

    def __init__(self, head: Head, params: Tensor, mask: list[bool]) -> None:
        self.numbers: list[tuple[Distribution, list[int] | None]] = []
        self._add(head, params, mask)

    def _add(self, head: Head, params: Tensor, mask: list[bool]) -> None:
        if isinstance(head, ProductHead):
            for part in head._heads:
                self._add(part, params[: part.num_outputs], mask[: part.mask_width])
                params, mask = params[part.num_outputs :], mask[part.mask_width :]
        elif isinstance(head, GaussianHead):
            self.numbers += [(Normal(m, s, validate_args=False), None) for m, s in zip(params, head.log_std.exp(), strict=True)]
        elif isinstance(head, BernoulliHead):
            for i, logit in enumerate(params):
                allowed = [bit for bit in (0, 1) if mask[2 * i + bit]]
                whole = Bernoulli(logits=logit, validate_args=False) if len(allowed) == 2 else Categorical(logits=0.0 * logit.unsqueeze(0))
                self.numbers.append((whole, allowed))
        else:
            for n in head.choices:
                allowed = [i for i in range(n) if mask[i]]
                self.numbers.append((Categorical(logits=params[:n][allowed], validate_args=False), allowed))
                params, mask = params[n:], mask[n:]

    def log_prob(self, action: Tensor) -> Tensor:
        terms = []
        for (distribution, allowed), x in zip(self.numbers, action.reshape(-1), strict=True):
            value = x if allowed is None else torch.tensor(allowed.index(int(x)))
            terms.append(distribution.log_prob(value.double() if isinstance(distribution, Bernoulli) else value))
        return sum(terms, torch.zeros(()))

    def entropy(self) -> Tensor:
        return sum((distribution.entropy() for distribution, _ in self.numbers), torch.zeros(()))

    def kl(self, new: Reference) -> Tensor:
        pairs = zip(self.numbers, new.numbers, strict=True)
        return sum((kl_divergence(p, q) for (p, _), (q, _) in pairs), torch.zeros(()))


def references(head: Head, params: Tensor, mask: Tensor) -> list[Reference]:
    return [Reference(head, x, allowed.tolist()) for x, allowed in zip(params, mask, strict=True)]
