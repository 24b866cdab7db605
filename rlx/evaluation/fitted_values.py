"""V(s) and Q(s, a) of a policy, fitted to returns of episodes that are used for nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from rlx import ops
from rlx.evaluation.whole_episodes import Episodes
from rlx.nn.action_values import action_vectors, action_width
from rlx.nn.mlp import MLP
from rlx.nn.networks import Network
from rlx.nn.optim import FlatAdam
from rlx.types import Tree

_HIDDEN, _BATCH, _LEARNING_RATE = [64, 64], 256, 1e-3
_EPOCHS, _MOST_STEPS, _FEWEST_STEPS = 10, 4000, 500


class _Regression:
    """A network [N, D] -> [N] for targets of any size."""

    def __init__(self, num_inputs: int) -> None:
        self._mlp = MLP([num_inputs, *_HIDDEN, 1], "tanh", output_gain=0.01)
        self._optimizer = FlatAdam(self._mlp, max_grad_norm=1.0)
        self._mean, self._std = torch.tensor(0.0), torch.tensor(1.0)

    @torch.no_grad()
    def fit(self, x: Tensor, target: Tensor, *, num_steps: int, first: int, of: int) -> None:
        """Take `num_steps` gradient steps, the first of which is number `first` of a schedule of `of`."""
        mean, std = target.mean(), target.std(correction=0).clamp(min=1e-6)
        if first == 0:
            self._mean, self._std = mean, std
        goal, done = (target - self._mean) / self._std, 0
        while done < num_steps:
            for rows in torch.randperm(len(x)).split(_BATCH)[: num_steps - done]:
                out, backward = self._mlp.forward_vjp(x[rows])
                loss, slope = ops.value_loss(out[:, 0], goal[rows])
                self._optimizer.zero_grad()
                backward(slope.unsqueeze(1))
                self._optimizer.step(loss, _LEARNING_RATE * (1.0 - (first + done) / of))
                done += 1

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        return self._mlp(x)[:, 0] * self._std + self._mean


class FittedValues:
    """V and Q = V + A of a network's policy, from its inputs.

    V is fitted to discounted returns, which continue with V itself where an episode was truncated; A to what V leaves of them.

    Args:
        net: whose policy acted.
        episodes: to fit to.
        discount: gamma.
    """

    def __init__(self, net: Network, episodes: Episodes, *, discount: float) -> None:
        self._net, self._discount = net, discount
        x = net.vectors(net.preprocess(episodes.obs))
        num_steps = min(_MOST_STEPS, max(_FEWEST_STEPS, _EPOCHS * len(x) // _BATCH))
        self._v, rounds = _Regression(x.shape[1]), 10
        for i in range(rounds):
            target = self.returns(episodes, x)
            self._v.fit(x, target, num_steps=num_steps // rounds, first=i * (num_steps // rounds), of=num_steps)
        pairs = torch.cat((x, action_vectors(net.head, episodes.action)), dim=1)
        self._a = _Regression(x.shape[1] + action_width(net.head))
        self._a.fit(pairs, self.returns(episodes, x) - self._v(x), num_steps=num_steps, first=0, of=num_steps)

    def returns(self, episodes: Episodes, x: Tensor) -> Tensor:
        """The discounted returns from each of N steps with inputs x."""
        final = self._v(self._net.vectors(self._net.preprocess(episodes.final_obs))).expand_as(episodes.reward)
        target = ops.returns_to_go(episodes.reward, final * ~episodes.terminated, episodes.is_last, discount=self._discount)
        return episodes.rows(target)

    def of(self, episodes: Episodes) -> tuple[Tensor, Tensor, Tensor]:
        """V of the rows [N], V of what the episodes ended with [E], and Q - V of the rows [N]."""
        x = self._vectors(episodes.obs)
        gain = self._a(torch.cat((x, action_vectors(self._net.head, episodes.action)), dim=1))
        return self._v(x), self._v(self._vectors(episodes.final_obs)), gain

    def explained_variance(self, episodes: Episodes) -> tuple[float, float]:
        """Of returns by V, and of what V leaves of them by Q - V, on other episodes than those of the fit."""
        value, _, gain = self.of(episodes)
        return_ = self.returns(episodes, self._vectors(episodes.obs))
        return ops.explained_variance(value, return_).item(), ops.explained_variance(gain, return_ - value).item()

    def _vectors(self, obs: Tree) -> Tensor:
        return self._net.vectors(self._net.preprocess(obs))
