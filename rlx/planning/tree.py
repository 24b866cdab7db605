"""Search trees as arrays, B of them side by side, and the kernels that walk them.

A node is a position; its legal moves are a stretch of the tree's edges, so that a game with thousands of actions costs only what is
legal. An edge (s, a) carries the prior of the network, the visits N, the sum W of the returns backed up through it, and the model's
reward r and discount d, from the view of the player who moves at s. A return is backed up as G <- r + d G: d = -1 where the opponent moves
next, 1 (or gamma) where the same player does, 0 where the game is over. With known rules this is AlphaZero (Silver et al. 2018), with a
learned model MuZero (Schrittwieser et al. 2020).

With known rules, ends of games prove returns: every node has bounds of its return under perfect play, those of its best move (Cazenave and
Saffidine 2010, score-bounded search). Returns are clipped to these bounds, and a descent ends at a node whose bounds are equal.

Selection is by PUCT (eq. 2 of MuZero's appendix B) or, under Gumbel (Danihelka et al. 2022), by sequential halving at the root and by
matching the improved policy below it. `tests/reference_tree.py` is a reference implementation in plain Python.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
PUCT, GUMBEL = 0, 1


class Rule(NamedTuple):
    """How a child is selected."""

    kind: int  # PUCT or GUMBEL
    c_init: float  # PUCT's exploration rate at the first visits
    c_base: float  # visits at which the rate begins to grow
    fpu_reduction: float  # an unvisited move's Q is its parent's value less this times the square root of the visited moves' prior
    q_range: float  # PUCT scales Q to [0, q_range]
    c_visit: float  # Gumbel's c_visit
    c_scale: float  # Gumbel's c_scale
    prove: bool  # below the root, moves whose return is proven are not selected again
    min_range: float  # minimum range for normalising Q


class Trees:
    """B trees of at most `num_nodes` nodes.

    Arrays by node [B, N] and by edge [B, E]; `num_edges` grows when it must.
    """

    def __init__(self, num_trees: int, num_nodes: int, num_edges: int) -> None:
        nodes, edges = (num_trees, num_nodes), (num_trees, num_edges)
        self.size = np.zeros(num_trees, dtype=np.int32)  # nodes in use
        self.used = np.zeros(num_trees, dtype=np.int32)  # edges in use
        self.start = np.zeros(nodes, dtype=np.int32)  # first edge
        self.count = np.zeros(nodes, dtype=np.int32)  # legal moves; 0 is the end of a game
        self.parent_edge = np.full(nodes, -1, dtype=np.int32)  # the edge that leads here; -1 at the root
        self.visits = np.zeros(nodes, dtype=np.int32)  # returns that passed through, its own value among them
        self.value = np.zeros(nodes, dtype=np.float32)  # of the network
        self.action = np.zeros(edges, dtype=np.int32)
        self.logit = np.zeros(edges, dtype=np.float32)
        self.prior = np.zeros(edges, dtype=np.float32)
        self.node = np.zeros(edges, dtype=np.int32)  # where the edge begins
        self.child = np.full(edges, -1, dtype=np.int32)  # where it leads; -1 before its first visit
        self.n = np.zeros(edges, dtype=np.int32)
        self.w = np.zeros(edges, dtype=np.float64)
        self.reward = np.zeros(edges, dtype=np.float32)
        self.discount = np.zeros(edges, dtype=np.float32)
        self.forced = np.zeros(num_trees)  # at a root: a visited child gets sqrt(forced * prior * visits) visits at least (KataGo's k)
        self.low = np.full(num_trees, -1.0)  # bounds of Q, by which it is normalised to [0, 1]
        self.high = np.full(num_trees, 1.0)
        self.least = np.full(nodes, -1.0, dtype=np.float32)  # bounds of the return of the player who moves, under perfect play
        self.most = np.full(nodes, 1.0, dtype=np.float32)

    def room_for(self, more: Array, trees: Array) -> None:
        """Make room for `more` [b] new edges in trees [b]."""
        needed = int((self.used[trees] + more).max(initial=0))
        have = self.action.shape[1]
        if needed <= have:
            return
        extra = max(needed, 2 * have) - have
        for name in ("action", "logit", "prior", "node", "child", "n", "w", "reward", "discount"):
            old = getattr(self, name)
            fill = -1 if name == "child" else 0
            setattr(self, name, np.concatenate([old, np.full((len(old), extra), fill, dtype=old.dtype)], axis=1))

    def add(self, trees: Array, edges: Array, counts: Array, actions: Array, logits: Array, values: Array) -> None:
        """Add a node to each of `trees` [b] at the end of `edges` [b] (-1: as the root), with its legal moves.

        Args:
            counts: legal moves of each node [b].
            actions: the moves, of one node after the other [sum of counts].
            logits: the network's, in the same order.
            values: [b] of the network, for the player to move.

        Raises:
            ValueError: if these are not as long as `counts` says; a kernel would read past their ends.
        """
        if not (len(trees) == len(edges) == len(counts) == len(values)) or not (int(counts.sum()) == len(actions) == len(logits)):
            raise ValueError(
                f"a model must return one count and one value for each of {len(trees)} positions, and one action and one logit for each "
                f"of {int(counts.sum())} legal moves; got {len(counts)}, {len(values)}, {len(actions)} and {len(logits)}"
            )
        self.room_for(counts, trees)
        _add(trees, edges, counts, actions, logits, values, self.size, self.used, self.start, self.count, self.parent_edge, self.visits,
             self.value, self.action, self.logit, self.prior, self.node, self.child, self.least, self.most)  # fmt: skip

    def select(self, trees: Array, rule: Rule, considered: Array, gumbel: Array) -> Array:
        """The edge [b] at which a descent of each of `trees` [b] leaves the tree, or reaches a position whose return is proven.

        Args:
            considered: [b] visits that a root's child must have to be visited next; -1 under PUCT.
            gumbel: [B, A'] noise of the root's legal moves, in their order.
        """
        return np.asarray(
            _select(trees, rule, considered, gumbel, self.start, self.count, self.visits, self.value, self.logit, self.prior, self.child,
                    self.n, self.w, self.forced, self.low, self.high, self.least, self.most)
        )  # fmt: skip

    def backup(self, trees: Array, edges: Array, values: Array, *, prove: bool = False, track_bounds: bool = False) -> None:
        """Back up values [b], of the positions that `edges` [b] lead to, through these edges to the roots."""
        _backup(trees, edges, values, prove, track_bounds, self.start, self.count, self.parent_edge, self.visits, self.node, self.child,
                self.n, self.w, self.reward, self.discount, self.low, self.high, self.least, self.most)  # fmt: skip

    def root_bounds(self) -> tuple[Array, Array]:
        """Proven lower and upper bounds [B, A'] of the return of the roots' moves under perfect play."""
        return _root_bounds(self.count, self.start, self.child, self.reward, self.discount, self.least, self.most)

    def is_proven(self, trees: Array) -> Array:
        """Whether the return of the roots of `trees` [b] is proven."""
        return np.asarray(self.least[trees, 0] == self.most[trees, 0])

    def hold(self, trees: Array, edges: Array, sign: int) -> None:
        """Add a virtual loss through each of `edges` (sign 1), so that the next descent selects another leaf; sign -1 removes it."""
        _hold(trees, edges, sign, self.parent_edge, self.visits, self.node, self.n, self.w)


@numba.njit(cache=True, nogil=True)
def _add(
    trees, edges, counts, actions, logits, values, size, used, start, count, parent_edge, visits, value, action, logit, prior, node, child,
    least, most,
):  # fmt: skip
    at = 0
    for i in range(len(trees)):
        b, e, c = trees[i], edges[i], counts[i]
        slot, first = size[b], used[b]
        size[b] += 1
        used[b] += c
        start[b, slot], count[b, slot], value[b, slot], parent_edge[b, slot] = first, c, values[i], e
        visits[b, slot] = 1
        if c == 0:
            least[b, slot] = most[b, slot] = 0.0
        if e >= 0:
            child[b, e] = slot
        top = -np.inf
        for k in range(c):
            top = max(top, logits[at + k])
        total = 0.0
        for k in range(c):
            total += math.exp(logits[at + k] - top)
        for k in range(c):
            action[b, first + k] = actions[at + k]
            logit[b, first + k] = logits[at + k] - top
            prior[b, first + k] = math.exp(logits[at + k] - top) / total
            node[b, first + k] = slot
        at += c


@numba.njit(cache=True, nogil=True)
def _q(b, e, n, w):
    return w[b, e] / n[b, e]


@numba.njit(cache=True, nogil=True)
def _is_known(b, e, rule, child, least, most):
    """Whether the return after edge e is proven, so that another visit adds nothing."""
    return rule.prove and child[b, e] >= 0 and least[b, child[b, e]] == most[b, child[b, e]]


@numba.njit(cache=True, nogil=True)
def _puct(b, s, rule, start, count, visits, value, prior, child, n, w, forced, low, high, least, most):
    """The edge of node s with the largest Q + U. Only the width of Q's range matters for that, not its lower end."""
    first, last = start[b, s], start[b, s] + count[b, s]
    width = max(high[b] - low[b], rule.min_range)
    seen, total = 0.0, value[b, s]
    for e in range(first, last):
        if n[b, e] > 0:
            seen += prior[b, e]
            total += w[b, e]
    parent = rule.q_range * (total / visits[b, s] - low[b]) / width
    unseen = parent - rule.fpu_reduction * math.sqrt(seen)
    scale = math.sqrt(visits[b, s]) * (rule.c_init + math.log((visits[b, s] + rule.c_base + 1.0) / rule.c_base))
    best, best_score = -1, -np.inf
    for e in range(first, last):
        if s > 0 and _is_known(b, e, rule, child, least, most):
            continue
        if s == 0 and forced[b] > 0.0 and n[b, e] > 0 and n[b, e] < math.sqrt(forced[b] * prior[b, e] * (visits[b, s] - 1)):
            return e
        q = unseen if n[b, e] == 0 else rule.q_range * (_q(b, e, n, w) - low[b]) / width
        score = q + prior[b, e] * scale / (1.0 + n[b, e])
        if score > best_score:
            best, best_score = e, score
    return best


@numba.njit(cache=True, nogil=True)
def improved_scores(b, s, rule, out, start, count, visits, value, logit, prior, n, w, low, high):
    """Write logit + sigma(completed Q) of the edges of node s to out (Danihelka et al. 2022, section 4 and appendix D)."""
    first, c = start[b, s], count[b, s]
    width = max(high[b] - low[b], rule.min_range)
    mass, weighted, total, most = 0.0, 0.0, 0, 0
    for k in range(c):
        e = first + k
        if n[b, e] > 0:
            mass += prior[b, e]
            weighted += prior[b, e] * _q(b, e, n, w)
            total += n[b, e]
            most = max(most, n[b, e])
    mixed = value[b, s]  # v_mix: the completed Q of an unvisited move
    if mass > 0.0:
        mixed = (value[b, s] + total * weighted / mass) / (1.0 + total)
    for k in range(c):
        e = first + k
        q = (_q(b, e, n, w) if n[b, e] > 0 else mixed) - low[b]
        out[k] = logit[b, e] + (rule.c_visit + most) * rule.c_scale * q / width


@numba.njit(cache=True, nogil=True)
def _gumbel_root(b, rule, wanted, gumbel, scores, start, count, visits, value, logit, prior, n, w, low, high):
    """The root's edge with the best Gumbel score among those with as many visits as wanted."""
    improved_scores(b, 0, rule, scores, start, count, visits, value, logit, prior, n, w, low, high)
    best, best_score = -1, -np.inf
    for k in range(count[b, 0]):
        e = start[b, 0] + k
        if n[b, e] == wanted and gumbel[b, k] + scores[k] > best_score:
            best, best_score = e, gumbel[b, k] + scores[k]
    return best


@numba.njit(cache=True, nogil=True)
def _gumbel_inner(b, s, rule, scores, start, count, visits, value, logit, prior, child, n, w, low, high, least, most):
    """The edge whose share of the visits is furthest below the improved policy."""
    improved_scores(b, s, rule, scores, start, count, visits, value, logit, prior, n, w, low, high)
    c, first = count[b, s], start[b, s]
    top, total, tried = -np.inf, 0.0, 0
    for k in range(c):
        top = max(top, scores[k])
        tried += n[b, first + k]
    for k in range(c):
        total += math.exp(scores[k] - top)
    best, best_score = -1, -np.inf
    for k in range(c):
        score = math.exp(scores[k] - top) / total - n[b, first + k] / (1.0 + tried)
        if score > best_score and not _is_known(b, first + k, rule, child, least, most):
            best, best_score = first + k, score
    return best


@numba.njit(cache=True, nogil=True)
def _select(trees, rule, considered, gumbel, start, count, visits, value, logit, prior, child, n, w, forced, low, high, least, most):
    out = np.empty(len(trees), dtype=np.int64)
    scores = np.empty(max(1, count.max()))
    for i in range(len(trees)):
        b, s = trees[i], 0
        while True:
            if rule.kind == PUCT:
                e = _puct(b, s, rule, start, count, visits, value, prior, child, n, w, forced, low, high, least, most)
            elif s == 0:
                e = _gumbel_root(b, rule, considered[i], gumbel, scores, start, count, visits, value, logit, prior, n, w, low, high)
            else:
                e = _gumbel_inner(b, s, rule, scores, start, count, visits, value, logit, prior, child, n, w, low, high, least, most)
            s = child[b, e]
            if s < 0 or least[b, s] == most[b, s]:
                break
        out[i] = e
    return out


@numba.njit(cache=True, nogil=True)
def _edge_bounds(b, e, child, reward, discount, least, most):
    """Lower and upper bound of the return after edge e under perfect play."""
    c = child[b, e]
    if c < 0:
        return np.float32(-1.0), np.float32(1.0)
    one, other = reward[b, e] + discount[b, e] * least[b, c], reward[b, e] + discount[b, e] * most[b, c]
    return min(one, other), max(one, other)


@numba.njit(cache=True, nogil=True)
def _root_bounds(count, start, child, reward, discount, least, most):
    shape = (len(count), count[:, 0].max())
    lower, upper = np.full(shape, np.float32(-1.0)), np.full(shape, np.float32(-1.0))
    for b in range(len(count)):
        for k in range(count[b, 0]):
            lower[b, k], upper[b, k] = _edge_bounds(b, start[b, 0] + k, child, reward, discount, least, most)
    return lower, upper


@numba.njit(cache=True, nogil=True)
def _narrow(b, s, start, count, child, reward, discount, least, most):
    """Bound node s by its best move; returns whether its bounds became tighter."""
    lower, upper = np.float32(-1.0), np.float32(-1.0)
    for e in range(start[b, s], start[b, s] + count[b, s]):
        one, other = _edge_bounds(b, e, child, reward, discount, least, most)
        lower, upper = max(lower, one), max(upper, other)
    changed = lower > least[b, s] or upper < most[b, s]
    least[b, s], most[b, s] = lower, upper
    return changed


@numba.njit(cache=True, nogil=True)
def _backup(trees, edges, values, prove, track, start, count, parent_edge, visits, node, child, n, w, reward, discount, low, high, least,
            most):  # fmt: skip
    for i in range(len(trees)):
        b, e, g = trees[i], edges[i], float(values[i])
        changed = prove and count[b, child[b, e]] == 0
        if prove:
            g = min(max(g, least[b, child[b, e]]), most[b, child[b, e]])
        while e >= 0:
            s = node[b, e]
            g = reward[b, e] + discount[b, e] * g
            n[b, e] += 1
            w[b, e] += g
            visits[b, s] += 1
            if track:
                q = w[b, e] / n[b, e]
                low[b], high[b] = min(low[b], q), max(high[b], q)
            if prove:
                one, other = _edge_bounds(b, e, child, reward, discount, least, most)
                if one == other:
                    w[b, e] = n[b, e] * one
                changed = changed and _narrow(b, s, start, count, child, reward, discount, least, most)
                g = min(max(g, least[b, s]), most[b, s])
            e = parent_edge[b, s]


@numba.njit(cache=True, nogil=True)
def _hold(trees, edges, sign, parent_edge, visits, node, n, w):
    for i in range(len(trees)):
        b, e = trees[i], edges[i]
        while e >= 0:
            n[b, e] += sign
            w[b, e] -= sign
            visits[b, node[b, e]] += sign
            e = parent_edge[b, node[b, e]]
