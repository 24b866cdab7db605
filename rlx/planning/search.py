"""Tree search in B trees side by side: select a leaf in every tree, evaluate all leaves in one network call, back up.

A `TreeModel` expands edges: it returns the legal moves, logits, value, reward and discount of the positions that they lead to.
`rlx.planning.adapters` has one for known rules, for a latent model and for grid worlds.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rlx.errors import NonFiniteError
from rlx.planning.tree import GUMBEL, PUCT, Rule, Trees, improved_scores

Array = NDArray[Any]
_DIRICHLET_TOTAL = 10.0
"""Sum of the concentrations of a root's noise: AlphaZero's 0.3, 0.15 and 0.03 in chess, shogi and Go are about 10 over the legal moves."""


class Expansion(NamedTuple):
    """Legal moves and evaluations of n positions, with m legal moves in all."""

    counts: Array  # [n] legal moves; 0: the game is over
    actions: Array  # [m] the moves, of one position after the other
    logits: Array  # [m] of the network, float32
    value: Array  # [n] for the player to move there, float32
    reward: Array  # [n] of the move that led there, for the player who made it, float32
    discount: Array  # [n] -1: the opponent moves there; 0: the game is over; else the discount, where the same player moves again

    def checked(self) -> Expansion:
        """This expansion.

        Raises:
            NonFiniteError: if a logit, value or reward is not finite.
        """
        if not all(np.isfinite(column).all() for column in (self.logits, self.value, self.reward)):
            raise NonFiniteError("the search got logits, values or rewards that are not finite from the network; "
                                 "try a smaller algo.learning_rate")  # fmt: skip
        return self


class TreeModel(Protocol):
    """The model that a search expands nodes with. A node is identified by its tree and its slot; a root's slot is 0."""

    def root(self) -> Expansion:
        """The B root positions; their reward and discount have no meaning."""
        ...

    def step(self, trees: Array, parents: Array, actions: Array, slots: Array) -> Expansion:
        """Positions after `actions` [n] in the nodes `parents` [n] of `trees` [n]; `slots` [n] are the slots of the new nodes."""
        ...


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Settings of a search.

    Attributes:
        gumbel: Gumbel search instead of PUCT.
        num_simulations: of every tree.
        q_range: PUCT: width of the range that Q is scaled to: 2 for [-1, 1] as in AlphaZero, 1 for [0, 1] as in MuZero (eq. 2 and 5 of its
            appendix B); c_init and fpu_reduction are in the same unit.
        forced_playouts: KataGo's k in PUCT: a visited child of a root gets at least sqrt(k * prior * visits) visits; 0 forces none.
        dirichlet_alpha: of the root's noise under PUCT; None is 10 over the root's legal moves, 0 adds none.
        dirichlet_fraction: the noise's share of the root's prior.
        max_considered: most root moves that Gumbel search begins with.
        gumbel_scale: of the root's Gumbel noise: 1 samples the moves to consider, 0 takes the most probable.
        prove: back up proven wins, losses and draws; for known rules, whose returns are within [-1, 1].
        num_leaves: descents of one tree before their leaves are evaluated together, with virtual losses; PUCT only.
        track_bounds: normalise Q by the least and greatest Q of the tree (Schrittwieser et al. 2020, eq. 5), instead of by [-1, 1].
        min_range: minimum range for normalising Q, so that small differences are not scaled up to the whole range.
    """

    gumbel: bool = False
    num_simulations: int = 32
    c_init: float = 1.25
    c_base: float = 19652.0
    fpu_reduction: float = 0.25
    q_range: float = 2.0
    forced_playouts: float = 0.0
    dirichlet_alpha: float | None = 0.0
    dirichlet_fraction: float = 0.25
    c_visit: float = 50.0
    c_scale: float = 1.0
    max_considered: int = 16
    gumbel_scale: float = 0.0
    prove: bool = False
    num_leaves: int = 1
    track_bounds: bool = False
    min_range: float = 1e-8

    @property
    def rule(self) -> Rule:
        return Rule(
            kind=GUMBEL if self.gumbel else PUCT, c_init=self.c_init, c_base=self.c_base, fpu_reduction=self.fpu_reduction,
            q_range=self.q_range, c_visit=self.c_visit, c_scale=self.c_scale, prove=self.prove, min_range=self.min_range,
        )  # fmt: skip


@dataclass(kw_only=True)
class SearchResult:
    """B searched trees."""

    trees: Trees
    config: SearchConfig
    gumbel: Array
    """[B, A'] noise of the root's legal moves under Gumbel."""
    depth: Array
    """[B] mean length of a descent."""
    times: dict[str, float] = field(default_factory=dict)
    """Seconds in `model` and in `tree`."""

    def root_edges(self, b: int) -> slice:
        start = int(self.trees.start[b, 0])
        return slice(start, start + int(self.trees.count[b, 0]))

    def value(self) -> Array:
        """Mean of the returns that were backed up to each root [B] and of its own value, within the proven bounds."""
        trees, out = self.trees, np.empty(len(self.trees.size))
        for b in range(len(out)):
            out[b] = (trees.value[b, 0] + trees.w[b, self.root_edges(b)].sum()) / trees.visits[b, 0]
        return np.clip(out, trees.least[:, 0], trees.most[:, 0]) if self.config.prove else out

    def improved_value(self) -> Array:
        """Values of the roots [B] under `policy`: the mean of Q weighted by it, within the proven bounds.

        `value` weighs Q by visits, which include the exploring ones and lower it where there are few simulations. The Q of an unvisited
        move is v_mix (Danihelka et al. 2022, eq. 33).
        """
        trees, out = self.trees, np.empty(len(self.trees.size))
        for b in range(len(out)):
            edges = self.root_edges(b)
            n, prior = trees.n[b, edges], trees.prior[b, edges]
            q = np.divide(trees.w[b, edges], n, out=np.zeros(len(n)), where=n > 0)
            seen = prior[n > 0].sum()
            mean = (prior * q)[n > 0].sum() / seen if seen > 0.0 else trees.value[b, 0]
            mixed = (trees.value[b, 0] + n.sum() * mean) / (1.0 + n.sum())
            out[b] = self._target(b) @ np.where(n > 0, q, mixed)
        return np.clip(out, trees.least[:, 0], trees.most[:, 0]) if self.config.prove else out

    @functools.cached_property
    def candidates(self) -> Array:
        """Mask of root moves [B, A'] that are not proven dominated by another move."""
        if not self.config.prove:
            return np.ones(self.gumbel.shape, dtype=bool)
        least, most = self.trees.root_bounds()
        floor = least.max(axis=1, keepdims=True)
        promising = most > floor
        surpassed = (promising & (least == floor)).any(axis=1, keepdims=True)
        return np.asarray(promising | ((least == floor) & ~surpassed))

    def policy(self, num_actions: int) -> Array:
        """Policy targets [B, A]: shares of the visits under PUCT, or Gumbel's improved policy."""
        trees, out = self.trees, np.zeros((len(self.trees.size), num_actions), dtype=np.float32)
        for b in range(len(out)):
            out[b, trees.action[b, self.root_edges(b)]] = self._target(b)
        return out

    def _target(self, b: int) -> Array:
        """`policy` of one root's legal moves, in their order."""
        candidates = self.candidates[b, : self.trees.count[b, 0]]
        target = np.where(candidates, softmax(self.scores(b)) if self.config.gumbel else self._pruned_visits(b, candidates), 0.0)
        if target.sum() <= 0.0:  # none of them was visited
            target = np.where(candidates, self.trees.prior[b, self.root_edges(b)], 0.0)
        return np.asarray(target / target.sum())

    def visits(self, num_actions: int) -> Array:
        """Visits of the root's moves [B, A]."""
        out = np.zeros((len(self.trees.size), num_actions), dtype=np.int64)
        for b in range(len(out)):
            edges = self.root_edges(b)
            out[b, self.trees.action[b, edges]] = self.trees.n[b, edges]
        return out

    def best(self) -> Array:
        """Moves to play [B]: the most visited candidate. Ties go to the larger prior, under Gumbel to the larger score plus noise."""
        trees, out = self.trees, np.empty(len(self.trees.size), dtype=np.int64)
        for b in range(len(out)):
            edges = self.root_edges(b)
            n = trees.n[b, edges]
            n = np.where(self.candidates[b, : len(n)], n, -1)
            tie = self.gumbel[b, : len(n)] + self.scores(b) if self.config.gumbel else trees.prior[b, edges]
            out[b] = trees.action[b, edges][np.argmax(np.where(n == n.max(), tie, -np.inf))]
        return out

    def scores(self, b: int) -> Array:
        """Gumbel's logit + sigma(completed Q) of the root's moves."""
        t = self.trees
        out = np.empty(int(t.count[b, 0]))
        improved_scores(b, 0, self.config.rule, out, t.start, t.count, t.visits, t.value, t.logit, t.prior, t.n, t.w, t.low, t.high)
        return out

    def _pruned_visits(self, b: int, candidates: Array) -> Array:
        """Visits of the candidates, without forced playouts that PUCT would not have made: policy target pruning (Wu 2019, section 3.2)."""
        trees, edges, config, forced = self.trees, self.root_edges(b), self.config, float(self.trees.forced[b])
        n = np.where(candidates, trees.n[b, edges], 0).astype(np.float64)
        if forced > 0.0 and len(n) > 1:
            total, prior = float(trees.visits[b, 0]), trees.prior[b, edges].astype(np.float64)
            scale = math.sqrt(total) * (config.c_init + math.log((total + config.c_base + 1.0) / config.c_base))
            q = np.divide(trees.w[b, edges], n, out=np.zeros_like(n), where=n > 0)
            q = config.q_range * (q - trees.low[b]) / max(trees.high[b] - trees.low[b], config.min_range)
            best = int(np.argmax(n))
            goal = q[best] + prior[best] * scale / (1.0 + n[best])
            gap = goal - q
            needed = np.where(gap > 0.0, np.ceil(prior * scale / np.maximum(gap, 1e-9) - 1.0), n)
            num_forced = np.floor(np.sqrt(forced * prior * (total - 1.0)))
            kept = np.maximum(n - num_forced, np.minimum(n, needed))
            kept[kept <= 1.0] = 0.0
            kept[best] = n[best]
            n = kept
        return n


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


def considered_visits(most: int, num_simulations: int) -> list[int]:
    """For each simulation, the visits of its move before it, under sequential halving of `most` moves (Danihelka et al. 2022, fig. 1)."""
    if most <= 1:
        return list(range(num_simulations))
    rounds = math.ceil(math.log2(most))
    visits, sequence, left = [0] * most, list[int](), most
    while len(sequence) < num_simulations:
        for _ in range(max(1, num_simulations // (rounds * left))):
            sequence += visits[:left]
            visits[:left] = [v + 1 for v in visits[:left]]
        left = max(2, left // 2)
    return sequence[:num_simulations]


def search(
    model: TreeModel, config: SearchConfig, rng: np.random.Generator, *, num_simulations: Array | None = None, explore: Array | None = None
) -> SearchResult:
    """Search B trees from the model's roots.

    Args:
        model: expands the nodes.
        config: settings for all trees.
        rng: of the noise at the roots.
        num_simulations: [B] of each tree; the default is config.num_simulations.
        explore: [B] bool: roots that get noise and, under PUCT, forced playouts; the default is all.
    """
    began = time.perf_counter()
    root = model.root().checked()
    in_model = time.perf_counter() - began
    num_trees = len(root.counts)
    budget = np.full(num_trees, config.num_simulations) if num_simulations is None else num_simulations
    most = int(budget.max())
    trees = Trees(num_trees, most + config.num_leaves + 1, int(root.counts.max()) * (most + 2))
    everyone = np.arange(num_trees)
    trees.add(everyone, np.full(num_trees, -1), root.counts, root.actions, root.logits, root.value)
    if config.track_bounds:
        trees.low[:] = trees.high[:] = root.value
    explore = np.ones(num_trees, dtype=bool) if explore is None else explore
    trees.forced[explore] = config.forced_playouts
    gumbel = _root_noise(trees, config, rng, explore)
    table = _table(root.counts, budget, config) if config.gumbel else np.full((num_trees, most), -1)
    rule = config.rule
    done = np.zeros(num_trees, dtype=np.int64)
    while len(active := everyone[(done < budget) & ~trees.is_proven(everyone)]):
        picks = []
        for _ in range(1 if config.gumbel else config.num_leaves):
            picks.append(trees.select(active, rule, table[active, done[active]], gumbel))
            if config.num_leaves > 1:
                trees.hold(active, picks[-1], 1)
        if config.num_leaves > 1:
            for edges in picks:
                trees.hold(active, edges, -1)
        chosen = np.concatenate([np.stack([active, edges], axis=1) for edges in picks])
        in_model += _evaluate(model, trees, np.unique(chosen, axis=0) if config.num_leaves > 1 else chosen, config)
        done[active] += 1 if config.num_leaves == 1 else len(picks)
    total = time.perf_counter() - began
    return SearchResult(
        trees=trees, config=config, gumbel=gumbel, depth=_mean_depth(trees), times={"model": in_model, "tree": total - in_model}
    )


def _evaluate(model: TreeModel, trees: Trees, chosen: Array, config: SearchConfig) -> float:
    """Expand the edges [n, 2] (tree, edge) at which descents ended, where they are new, and back up; returns the model's seconds."""
    b, edges = chosen[:, 0], chosen[:, 1]
    new = trees.child[b, edges] < 0
    values, seconds = np.zeros(len(b), dtype=np.float32), 0.0
    if new.any():
        at, by = b[new], edges[new]
        slots = trees.size[at].copy()
        if config.num_leaves > 1:  # several new nodes of one tree get consecutive slots
            slots += np.arange(len(at)) - np.searchsorted(at, at)
        began = time.perf_counter()
        found = model.step(at, trees.node[at, by], trees.action[at, by], slots).checked()
        seconds = time.perf_counter() - began
        trees.add(at, by, found.counts, found.actions, found.logits, found.value)
        trees.reward[at, by], trees.discount[at, by] = found.reward, found.discount
        values[new] = found.value
    trees.backup(b, edges, values, prove=config.prove, track_bounds=config.track_bounds)
    return seconds


def _root_noise(trees: Trees, config: SearchConfig, rng: np.random.Generator, explore: Array) -> Array:
    """Gumbel noise of the root moves [B, A']; under PUCT zeros, and Dirichlet noise is mixed into the priors of the roots in `explore`."""
    counts = trees.count[:, 0]
    shape = len(counts), max(1, int(counts.max()))
    if config.gumbel:
        return rng.gumbel(size=shape) * config.gumbel_scale * explore[:, None]
    if config.dirichlet_alpha != 0.0:
        for b in np.flatnonzero(explore).tolist():
            edges = slice(0, int(counts[b]))
            alpha = _DIRICHLET_TOTAL / counts[b] if config.dirichlet_alpha is None else config.dirichlet_alpha
            noise = rng.dirichlet(np.full(counts[b], alpha))
            trees.prior[b, edges] = (1.0 - config.dirichlet_fraction) * trees.prior[b, edges] + config.dirichlet_fraction * noise
    return np.zeros(shape)


def _table(counts: Array, budget: Array, config: SearchConfig) -> Array:
    """Visits [B, S] that a root's child must have to be selected at each simulation of Gumbel search."""
    rows: dict[tuple[int, int], list[int]] = {}
    out = np.zeros((len(counts), int(budget.max())), dtype=np.int64)
    for b, (c, n) in enumerate(zip(counts.tolist(), budget.tolist(), strict=True)):
        key = (min(c, config.max_considered), n)
        if key not in rows:
            rows[key] = considered_visits(*key)
        out[b, :n] = rows[key]
    return out


def _mean_depth(trees: Trees) -> Array:
    """Mean depth of the nodes of each tree [B] below its root."""
    depth = np.zeros(trees.visits.shape, dtype=np.int32)
    everyone = np.arange(len(trees.size))
    for slot in range(1, depth.shape[1]):
        has = everyone[trees.size > slot]
        if not len(has):
            break
        edges = trees.parent_edge[has, slot]
        depth[has, slot] = depth[has, trees.node[has, edges]] + 1
    return np.asarray(depth.sum(axis=1) / np.maximum(trees.size - 1, 1))
