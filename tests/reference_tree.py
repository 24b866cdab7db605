"""A reference implementation of rlx/planning/tree.py in plain Python objects: slow, and written to be read beside the papers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from rlx.planning.search import Expansion, SearchConfig, TreeModel, considered_visits


@dataclass(eq=False)
class Edge:
    action: int
    logit: float
    prior: float = 0.0
    n: int = 0
    w: float = 0.0
    reward: float = 0.0
    discount: float = 0.0
    child: Node | None = None

    @property
    def q(self) -> float:
        return self.w / self.n

    @property
    def bounds(self) -> tuple[float, float]:
        """What perfect play brings after this move, at least and at most."""
        if self.child is None:
            return -1.0, 1.0
        least, most = sorted(self.reward + self.discount * bound for bound in self.child.bounds)
        return least, most

    @property
    def known(self) -> bool:
        return self.bounds[0] == self.bounds[1]


@dataclass
class Bounds:
    """Of the returns seen in a tree, by which they are scaled to [0, 1]."""

    low: float = -1.0
    high: float = 1.0

    def scale(self, q: float, config: SearchConfig) -> float:
        return (q - self.low) / max(self.high - self.low, config.min_range)

    def see(self, q: float) -> None:
        self.low, self.high = min(self.low, q), max(self.high, q)


@dataclass(eq=False)
class Node:
    slot: int
    value: float
    edges: list[Edge] = field(default_factory=list)
    visits: int = 1

    def __post_init__(self) -> None:
        self.bounds = (-1.0, 1.0) if self.edges else (0.0, 0.0)  # of perfect play


def softmax(x: list[float]) -> list[float]:
    e = [math.exp(v - max(x)) for v in x]
    return [v / sum(e) for v in e]


def make_node(found: Expansion, i: int, slot: int) -> Node:
    first = int(found.counts[:i].sum())
    legal = range(first, first + int(found.counts[i]))
    node = Node(slot, float(found.value[i]), [Edge(int(found.actions[k]), float(found.logits[k])) for k in legal])
    for edge, prior in zip(node.edges, softmax([e.logit for e in node.edges]) if node.edges else [], strict=True):
        edge.prior = prior
    return node


def search_one(model: TreeModel, config: SearchConfig, tree: int, root: Expansion, gumbel: np.ndarray) -> Node:
    """Search one of the model's trees, with the same noise."""
    top = make_node(root, tree, 0)
    size = 1
    bounds = Bounds(top.value, top.value) if config.track_bounds else Bounds()
    table = considered_visits(min(len(top.edges), config.max_considered), config.num_simulations)
    for simulation in range(config.num_simulations):
        if config.prove and top.bounds[0] == top.bounds[1]:
            break
        node, path = top, []
        while True:
            worth = [e for e in node.edges if node is top or not config.prove or not e.known]
            if not config.gumbel:
                edge = puct(node, worth, config, bounds)
            elif node is top:
                scores = improved(node, config, bounds)
                left = [k for k, e in enumerate(node.edges) if e.n == table[simulation]]
                edge = node.edges[max(left, key=lambda k: gumbel[k] + scores[k])]
            else:
                edge = inner(node, worth, config, bounds)
            path.append((node, edge))
            if edge.child is None or not edge.child.edges or (config.prove and edge.known):
                break
            node = edge.child
        g = 0.0
        if edge.child is not None and config.prove:
            g = edge.child.bounds[0]
        if edge.child is None:
            found = model.step(np.array([tree]), np.array([node.slot]), np.array([edge.action]), np.array([size]))
            edge.child = make_node(found, 0, size)
            edge.reward, edge.discount = float(found.reward[0]), float(found.discount[0])
            g = edge.child.value
            size += 1
        for parent, taken in reversed(path):
            g = taken.reward + taken.discount * g
            taken.n += 1
            taken.w += g
            parent.visits += 1
            if config.track_bounds:
                bounds.see(taken.q)
            if config.prove:
                if taken.known:
                    taken.w = taken.n * taken.bounds[0]
                parent.bounds = (max(e.bounds[0] for e in parent.edges), max(e.bounds[1] for e in parent.edges))
                g = min(max(g, parent.bounds[0]), parent.bounds[1])
    return top


def puct(node: Node, worth: list[Edge], config: SearchConfig, bounds: Bounds) -> Edge:
    """argmax of Q, scaled to [0, q_range], + P sqrt(N) / (1 + n) (c1 + log((N + c2 + 1) / c2)), MuZero's appendix B.

    Unvisited moves are judged by KataGo's reduction.
    """
    seen = sum(e.prior for e in node.edges if e.n)
    parent = (node.value + sum(e.w for e in node.edges)) / node.visits
    unseen = config.q_range * bounds.scale(parent, config) - config.fpu_reduction * math.sqrt(seen)
    rate = config.c_init + math.log((node.visits + config.c_base + 1) / config.c_base)

    def score(e: Edge) -> float:
        return (config.q_range * bounds.scale(e.q, config) if e.n else unseen) + e.prior * math.sqrt(node.visits) * rate / (1 + e.n)

    return max(worth, key=score)


def improved(node: Node, config: SearchConfig, bounds: Bounds) -> list[float]:
    """Logits plus sigma of the completed Q, scaled to [0, 1]."""
    visited = [e for e in node.edges if e.n]
    mixed = node.value
    if visited:
        weighted = sum(e.prior * e.q for e in visited) / sum(e.prior for e in visited)
        total = sum(e.n for e in visited)
        mixed = (node.value + total * weighted) / (1 + total)
    most = max((e.n for e in visited), default=0)
    top = max(e.logit for e in node.edges)
    scale = (config.c_visit + most) * config.c_scale
    return [e.logit - top + scale * bounds.scale(e.q if e.n else mixed, config) for e in node.edges]


def inner(node: Node, worth: list[Edge], config: SearchConfig, bounds: Bounds) -> Edge:
    policy, total = softmax(improved(node, config, bounds)), sum(e.n for e in node.edges)
    left = [k for k, e in enumerate(node.edges) if e in worth]
    return node.edges[max(left, key=lambda k: policy[k] - node.edges[k].n / (1 + total))]
