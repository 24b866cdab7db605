"""Imagination: many steps of a model under given actions or under a policy. Planners, I2A and predictions share this one function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from rlx.tree_ops import Tree, map_tree
from rlx.types import Model, ModelStep

ActionOf = Callable[[Tree, int], Tensor]
"""From the states of a model and the step k to the actions [*] of that step."""


class Imagined(NamedTuple):
    """H steps of a model."""

    states: Tree  # [H, *, D] what each step leads to
    reward: Tensor  # [H, *]; 0 after a termination
    alive: Tensor | None  # [H, *] float: 1 while the episode goes on after step k, 0 once it has terminated; None if it never does
    disagreement: Tensor | None  # [H, B, N]; 0 once every particle has terminated


@runtime_checkable
class TakesManySteps(Protocol):
    """A model that computes all steps under given actions at once, faster than one by one."""

    def steps(self, state: Tree, actions: Tensor) -> ModelStep:
        """`step` under each of the actions [H, *] in turn; the results have H in front."""
        ...


def unroll(model: Model, state: Tree, actions: Tensor | ActionOf, horizon: int) -> Imagined:
    """`horizon` steps of a model.

    Args:
        model: to step.
        state: from `model.initial`.
        actions: [H, *] in units of the action space, or a policy.
        horizon: steps, H.

    After a termination, states repeat if the model is stepped one by one, and have no meaning if it computes all steps at once.
    """
    if isinstance(actions, Tensor) and isinstance(model, TakesManySteps):
        states, reward, discount, disagreement = model.steps(state, actions)
        return _masked(states, reward, discount, disagreement)
    steps: list[ModelStep] = []
    going: Tensor | None = None
    for k in range(horizon):
        step = model.step(state, actions[k] if isinstance(actions, Tensor) else actions(state, k))
        if (discount := step.discount) is not None:
            going = torch.ones_like(discount, dtype=torch.bool) if going is None else going
            step = step._replace(state=map_tree(functools.partial(_where, going), step.state, state))
            going = going & (discount > 0.0)
        state = step.state
        steps.append(step)
    states = map_tree(lambda *leaves: torch.stack(leaves), *(step.state for step in steps))
    reward = torch.stack([step.reward for step in steps])
    discounts, disagreements = [step.discount for step in steps], [step.disagreement for step in steps]
    return _masked(states, reward, _stack(discounts), _stack(disagreements))


def every_action_then(policy: Callable[[Tree], Tensor], num_actions: int) -> ActionOf:
    """Actions for `unroll` with a candidate for each action: first that action, then samples from the logits [n, A] of a rollout policy."""

    def action_of(state: Tensor, k: int) -> Tensor:
        if k == 0:
            return torch.arange(num_actions, device=state.device).repeat(len(state) // num_actions)
        logits = policy(state)
        return (logits - torch.empty_like(logits).exponential_().log_()).argmax(-1)  # the Gumbel-max trick

    return action_of


def _masked(states: Tree, reward: Tensor, discount: Tensor | None, disagreement: Tensor | None) -> Imagined:
    """Steps with reward and disagreement 0 after a termination, also where the model predicts NaN there."""
    if discount is None:
        return Imagined(states, reward, None, disagreement)
    alive = discount.cumprod(0)
    before = alive[:-1]
    rest = torch.where(before > 0.0, before * reward[1:], 0.0)
    reward = torch.cat([reward[:1].expand(-1, *rest.shape[1:]), rest])
    if disagreement is not None:
        extra = before.dim() - disagreement.dim()  # dimensions of particles
        some = before.flatten(1, extra).amax(1) if extra else before
        disagreement = torch.cat([disagreement[:1], torch.where(some > 0.0, disagreement[1:], 0.0)])
    return Imagined(states, reward, alive, disagreement)


def _where(going: Tensor, after: Tensor, before: Tensor) -> Tensor:
    return torch.where(going.view(*going.shape, *[1] * (after.dim() - going.dim())), after, before)


def _stack(parts: list[Tensor | None]) -> Tensor | None:
    """Tensors with their step in front; None if a step has none."""
    tensors = [part for part in parts if part is not None]
    return torch.stack(tensors) if len(tensors) == len(parts) else None
