"""The estimators of the policy gradient: what each step's score, grad log pi(a_t|s_t), is multiplied by.

From most variance to least bias and back, with G_t the discounted rewards from t on and V(s_T) added where an episode was cut:

    return    R(tau) = (rewards before t) + G_t     all rewards of the episode, those before the action included
    to_go     G_t                                   an action does not change what came before it
    baseline  G_t - V(s_t)                          a function of the state has no effect on the mean
    q         Q(s_t, a_t) - V(s_t)                  a learnt expectation instead of the one return that was drawn
    nstep     r_t + ... + gamma^n V(s_{t+n}) - V(s_t)
    gae       sum_l (gamma lambda)^l delta_{t+l}    the exponential average of all n

The first three have the same mean whatever V is; the others are as biased as V or Q is wrong. As everywhere in rlx there is no factor
gamma^t. R(tau) divided by it would count a reward before t as gamma^(k - t), which explodes; past rewards change nothing in the mean, so
they are counted as they are. `rlx variance` measures these functions, and the algorithms train with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from rlx import ops

Kind = Literal["return", "to_go", "baseline", "q", "nstep", "gae"]
KINDS: tuple[Kind, ...] = get_args(Kind)
UNBIASED: tuple[Kind, ...] = ("return", "to_go", "baseline")


class Outcomes(NamedTuple):
    """What followed the actions of T steps in B environments."""

    reward: Tensor  # [T, B]
    value: Tensor  # [T, B] V(obs_t)
    next_value: Tensor  # [T, B] V(next_obs_t), where next_obs is never a reset observation
    terminated: Tensor  # [T, B] bool
    is_last: Tensor  # [T, B] bool, terminated or truncated
    gain: Tensor | None = None  # [T, B] Q(obs_t, a_t) - V(obs_t) of a learnt Q


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """One of the estimators, as a function of outcomes.

    Return, to_go and baseline need whole episodes: what they give for a step whose episode does not end within the T steps has no meaning.
    """

    kind: Kind
    discount: float
    lam: float = 1.0
    """Trace decay; of gae, and of what the critic learns under q."""
    num_steps: int = 1
    """n; of nstep."""

    def __call__(self, x: Outcomes) -> Tensor:
        """The advantages [T, B]."""
        if self.kind == "gae":
            return self._gae(x)
        if self.kind == "nstep":
            return ops.n_step_advantages(
                x.reward, x.value, x.next_value, x.terminated, x.is_last, discount=self.discount, num_steps=self.num_steps
            )
        if self.kind == "q":
            assert x.gain is not None, "advantages of kind q need a learnt Q"
            return x.gain
        return_ = self._returns(x)
        if self.kind == "baseline":
            return return_ - x.value
        return return_ + ops.rewards_so_far(x.reward, x.is_last) if self.kind == "return" else return_

    def target(self, x: Outcomes, advantage: Tensor) -> Tensor:
        """What V learns [T, B], from the advantages of the same outcomes: the returns that they are made of."""
        if self.kind in ("gae", "nstep"):
            return x.value + advantage
        return x.value + self._gae(x) if self.kind == "q" else self._returns(x)

    def _returns(self, x: Outcomes) -> Tensor:
        return ops.returns_to_go(x.reward, x.next_value * ~x.terminated, x.is_last, discount=self.discount)

    def _gae(self, x: Outcomes) -> Tensor:
        return ops.gae(x.reward, x.value, x.next_value, x.terminated, x.is_last, discount=self.discount, lam=self.lam)


def next_values(value: Tensor, final_value: Tensor, is_last: Tensor) -> Tensor:
    """[T, B] values of the true successors, from those of the states and those of the last observations of episodes, both [T, B]."""
    following = torch.cat((value[1:], final_value[-1:]))
    return torch.where(is_last, final_value, following)
