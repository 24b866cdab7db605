"""Known rules and a network as the model of a tree search. Network evaluations are cached within a search and for the next one."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlx.planning.search import Array, Expansion
from rlx.planning.tree import Trees

_DIGEST = 16
"""Bytes of a position's hash: a collision is expected after 2^64 positions."""
Evaluate = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""From planes [n, C, H, W] to logits [n, A] and values [n] for the player to move."""


class EvaluationCache(NamedTuple):
    """Network evaluations of the positions in B trees, for reuse by a later search; E edges, as in `Trees`."""

    digest: Array  # [B, N, 16] uint8 hash of a position's planes and legal moves
    num_legal: Array  # [B, N]; 0: no evaluation
    value: Array  # [B, N]
    logit: Array  # [B, E] of the legal moves of one node after the other


class RulesAdapter:
    """Known rules and a network: game states are stepped, and each distinct position is evaluated once.

    Args:
        game: with `look(states)`; states with `child(action)`.
        states: the B roots; none is over.
        evaluate: the network.
        known: cached evaluations of the same network.
        seen: the result of `game.look(states)`, if it is already computed.
    """

    def __init__(self, game: Any, states: list[Any], evaluate: Evaluate, known: EvaluationCache | None = None, *, seen: Any = None) -> None:
        self._look, self._evaluate, self._root = game.look, evaluate, seen
        self._states: list[list[Any]] = [[s] for s in states]
        self._player: list[list[int]] = [[] for _ in states]
        self._digest: list[list[bytes]] = [[] for _ in states]
        self._index: dict[bytes, int] = {}
        self._logits: list[Array] = []  # of the legal moves, by index
        self._values: list[float] = []
        if known is not None:
            self._load_cache(known)
        self.evaluations = self.duplicates = 0
        self.network_s = 0.0

    def _load_cache(self, known: EvaluationCache) -> None:
        digests, start = known.digest.tobytes(), np.cumsum(known.num_legal, axis=1) - known.num_legal
        num_nodes = known.num_legal.shape[1]
        for b, slot in np.argwhere(known.num_legal > 0).tolist():
            at = _DIGEST * (b * num_nodes + slot)
            self._index[digests[at : at + _DIGEST]] = len(self._values)
            first = start[b, slot]
            self._logits.append(known.logit[b, first : first + known.num_legal[b, slot]])
            self._values.append(known.value[b, slot])

    def known(self, trees: Trees) -> EvaluationCache:
        """Cached evaluations of the nodes in these trees, which this model was searched with."""
        digest = np.zeros((*trees.count.shape, _DIGEST), dtype=np.uint8)
        for b, digests in enumerate(self._digest):
            digest[b, : len(digests)] = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, _DIGEST)
        return EvaluationCache(digest, trees.count, trees.value, trees.logit)

    def root(self) -> Expansion:
        seen = self._look([s[0] for s in self._states]) if self._root is None else self._root
        for players, who in zip(self._player, seen.player.tolist(), strict=True):
            players.append(who)
        logits, value = self._predict(seen, np.arange(len(self._states)))
        nothing = np.zeros(len(value), dtype=np.float32)
        return Expansion(seen.num_legal, seen.legal, logits, value, nothing, nothing)

    def step(self, trees: Array, parents: Array, actions: Array, slots: Array) -> Expansion:
        states, players = self._states, self._player
        mover = np.empty(len(trees), dtype=np.int64)
        children = []
        for i, (b, parent, action) in enumerate(zip(trees.tolist(), parents.tolist(), actions.tolist(), strict=True)):
            children.append(states[b][parent].child(action))
            mover[i] = players[b][parent]
        seen = self._look(children)
        for b, slot, state, who in zip(trees.tolist(), slots.tolist(), children, seen.player.tolist(), strict=True):
            assert len(states[b]) == slot
            states[b].append(state)
            players[b].append(who)
        logits, value = self._predict(seen, trees)
        over = seen.player < 0
        reward = np.where(mover == 0, seen.outcome, -seen.outcome).astype(np.float32)
        discount = np.where(over, 0.0, np.where(seen.player == mover, 1.0, -1.0)).astype(np.float32)
        return Expansion(seen.num_legal, seen.legal, logits, value, reward, discount)

    def _predict(self, seen: Any, trees: Array) -> tuple[Array, NDArray[np.float32]]:
        """Logits of the legal moves [m] and values [n] of positions in trees [n], from the cache or the network."""
        value = np.zeros(len(seen.player), dtype=np.float32)
        ends = np.cumsum(seen.num_legal)
        which, new, going = list[int](), list[int](), list[int]()
        for i, (b, who) in enumerate(zip(trees.tolist(), seen.player.tolist(), strict=True)):
            digest = _digest(seen.planes[i], seen.legal[ends[i] - seen.num_legal[i] : ends[i]])
            self._digest[b].append(digest)
            if who < 0:
                continue
            index = self._index.setdefault(digest, len(self._values) + len(new))
            if index == len(self._values) + len(new):
                new.append(i)
            which.append(index)
            going.append(i)
        if new:
            began = time.perf_counter()
            logits, values = self._evaluate(seen.planes[new])
            self.network_s += time.perf_counter() - began
            self._logits += [row[seen.legal[ends[i] - seen.num_legal[i] : ends[i]]] for i, row in zip(new, logits, strict=True)]
            self._values += values.tolist()
        self.evaluations += len(new)
        self.duplicates += len(which) - len(new)
        value[going] = [self._values[index] for index in which]
        return np.concatenate([np.zeros(0, dtype=np.float32), *(self._logits[index] for index in which)]), value


def _digest(planes: NDArray[np.float32], legal: NDArray[np.int64]) -> bytes:
    """Hash of a position's planes and legal moves, the key of its cached evaluation.

    The value depends on the planes alone, the cached logits also on the legal moves. Planes do not always determine these: few games
    encode repetitions, and some rules depend on more of the history than the board.
    """
    digest = hashlib.blake2b(planes.data, digest_size=_DIGEST)
    digest.update(legal.data)
    return digest.digest()
