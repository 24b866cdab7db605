"""Gradients sum_t w_t grad log pi(a_t|s_t) of an episode, under many weightings w at once.

They are linear in w. The derivatives of each step's log-probability with respect to the layers' outputs are therefore computed once, and a
layer's gradients under all weightings are one matrix product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlx.nn.networks import Network
from rlx.types import Tree


class ScoreGradients:
    """The gradients of a network's policy, as vectors of P numbers.

    Args:
        net: whose encoder has no weights, and which has no memory.
    """

    def __init__(self, net: Network) -> None:
        self._net = net
        parameters = [("norms" if name.startswith("norms") else f"layer {int(name.split('.')[1]) + 1}", p)
                      for name, p in net.policy.named_parameters() if not name.startswith("norms")]  # fmt: skip
        parameters += [("norms", p) for p in net.policy.norms.parameters()]
        self._policy = [p for _, p in parameters]
        self._head = list(net.head.named_parameters())
        named = [*parameters, *self._head]
        self.num_parameters = sum(p.numel() for _, p in named)
        self.groups: dict[str, slice] = {}
        """Where the parameters of each layer lie in the vectors, and those of the action distribution."""
        at = 0
        for name, p in named:
            start = self.groups[name].start if name in self.groups else at
            self.groups[name] = slice(start, at + p.numel())
            at += p.numel()

    @torch.no_grad()
    def __call__(self, inputs: Tree, action: Tensor, weights: Tensor) -> Tensor:
        """Inputs [L, *], actions [L, *] and weights [K, L] to gradients [K, P]."""
        by_hand, kept = not len(self._net.policy.norms), [p.grad for _, p in self._head]
        for _, p in self._head:
            p.grad = torch.zeros_like(p)  # pullbacks add to it
        found = (self._by_hand if by_hand else self._by_autograd)(inputs, action, weights)
        for (_, p), grad in zip(self._head, kept, strict=True):
            p.grad = grad
        return found

    def _by_hand(self, inputs: Tree, action: Tensor, weights: Tensor) -> Tensor:
        policy, found = self._net.policy, list[Tensor]()
        params, seen, backward = policy.forward_deltas(self._net.vectors(inputs))
        masked = self._net._masked(self._params(params), inputs)
        deltas = backward(self._pad(self._net.head.evaluate(masked, action).pullback(torch.ones(len(action)), 0.0)))
        for x, delta in zip(seen, deltas, strict=True):
            weighted = weights.unsqueeze(1) * delta.t()  # [K, O, L]
            found += [(weighted.flatten(0, 1) @ x).view(len(weights), -1), weights @ delta]
        return torch.cat([*found, self._of_head(masked, action, weights)], dim=1)

    def _by_autograd(self, inputs: Tree, action: Tensor, weights: Tensor) -> Tensor:
        with torch.enable_grad():
            out = self._net.policy(self._net.vectors(inputs))
        masked = self._net._masked(self._params(out.detach()), inputs)
        slope = self._pad(self._net.head.evaluate(masked, action).pullback(torch.ones(len(action)), 0.0))
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(out, self._policy, w.unsqueeze(1) * slope, retain_graph=True)])
            for w in weights
        ]
        return torch.cat([torch.stack(rows), self._of_head(masked, action, weights)], dim=1)

    def _of_head(self, params: Tensor, action: Tensor, weights: Tensor) -> Tensor:
        """The gradients of the distribution's own parameters [K, *]."""
        if not self._head:
            return weights.new_zeros(len(weights), 0)
        pullback, rows = self._net.head.evaluate(params, action).pullback, []
        for w in weights:
            for _, p in self._head:
                p.grad.zero_()  # type: ignore[union-attr]
            pullback(w, 0.0)
            rows.append(torch.cat([p.grad.flatten() for _, p in self._head]))  # type: ignore[union-attr]
        return torch.stack(rows)

    def _params(self, out: Tensor) -> Tensor:
        """The policy's outputs without the value of a shared trunk."""
        return out if self._net.critic is not None else out[:, :-1]

    def _pad(self, d_params: Tensor) -> Tensor:
        return d_params if self._net.critic is not None else nn.functional.pad(d_params, (0, 1))
