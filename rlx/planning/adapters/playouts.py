"""Rollouts of a fast policy to the end of a game, and known rules with such rollouts in the values of leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.planning.adapters.game_rules import Evaluate, RulesAdapter
from rlx.planning.search import Array, Expansion


def sample_legal(logits: Array, num_legal: Array, legal: Array, rng: np.random.Generator | None) -> NDArray[np.int64]:
    """Moves [n] sampled from softmax(logits [n, A]) over the legal moves, as `Game.look` lists them; the most probable if rng is None."""
    rows = np.repeat(np.arange(len(logits)), num_legal)
    scores = np.full(logits.shape, -np.inf)
    scores[rows, legal] = logits[rows, legal]
    if rng is not None:
        scores[rows, legal] += rng.gumbel(size=len(rows))
    return np.asarray(scores.argmax(axis=1))


class LinearPolicy:
    """A softmax policy, linear in a position's planes: weak, and hundreds of times faster than a residual network.

    Args:
        weight: [A, C * H * W].
        bias: [A].
    """

    def __init__(self, weight: Array, bias: Array) -> None:
        self._weight, self._bias = np.ascontiguousarray(weight.T), bias

    def __call__(self, planes: Array) -> Array:
        """Logits [n, A] of planes [n, C, H, W]."""
        return np.asarray(planes.reshape(len(planes), -1) @ self._weight + self._bias)


def play_out(game: Any, states: list[Any], policy: LinearPolicy, rng: np.random.Generator) -> Array:
    """Outcomes [n] for player 0 of one rollout from each of the states, none of which is over; the states are not changed."""
    outcome = np.zeros(len(states), dtype=np.float32)
    going, states = np.arange(len(states)), [s.clone() for s in states]
    while len(going):
        seen = game.look(states)
        over = seen.player < 0
        outcome[going[over]] = seen.outcome[over]
        alive = np.flatnonzero(~over)
        going, states = going[alive], [states[i] for i in alive.tolist()]
        if len(alive):
            moves = sample_legal(policy(seen.planes[alive]), seen.num_legal[alive], seen.legal, rng)
            for state, move in zip(states, moves.tolist(), strict=True):
                state.apply_action(move)
    return outcome


class PlayoutAdapter(RulesAdapter):
    """Known rules, with leaf values (1 - mix) * value network + mix * outcome of one rollout (Silver et al. 2016, section 5 and Methods).

    Args:
        mix: the paper's lambda, above 0.
        policy: plays the rollouts.
        rng: of the rollouts.
    """

    def __init__(
        self, game: Any, states: list[Any], evaluate: Evaluate, *, mix: float, policy: LinearPolicy, rng: np.random.Generator,
        seen: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(game, states, evaluate, seen=seen)
        self._game, self._mix, self._policy, self._rng = game, mix, policy, rng

    def step(self, trees: Array, parents: Array, actions: Array, slots: Array) -> Expansion:
        found = super().step(trees, parents, actions, slots)
        going = np.flatnonzero(found.counts > 0)
        at = list(zip(trees[going].tolist(), slots[going].tolist(), strict=True))
        outcome = play_out(self._game, [self._states[b][slot] for b, slot in at], self._policy, self._rng)
        z = np.where(np.array([self._player[b][slot] for b, slot in at]) == 0, outcome, -outcome)
        value = found.value.copy()
        value[going] = (1.0 - self._mix) * value[going] + self._mix * z
        return found._replace(value=value)
