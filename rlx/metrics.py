"""What happened since the last line was logged, and the last hundred episodes."""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor

from rlx.collect import Episode
from rlx.types import Metrics, State

WINDOW = 100


class MetricBuffer:
    """Collects episodes and the updates' metrics until they are flushed into one line."""

    def __init__(self) -> None:
        self._episodes: list[Episode] = []
        self._updates: list[dict[str, Tensor | float]] = []
        self._recent: deque[float] = deque(maxlen=WINDOW)

    def add_episodes(self, episodes: list[Episode]) -> None:
        self._episodes += episodes
        self._recent.extend(e.return_ for e in episodes)

    def add_update(self, metrics: Metrics) -> None:
        self._updates.append(dict(metrics))

    @property
    def return_mean_100(self) -> float | None:
        """Mean return of the last 100 training episodes; None before there were 100."""
        return sum(self._recent) / WINDOW if len(self._recent) == WINDOW else None

    def flush(self) -> dict[str, float]:
        """Means over what was added since the last flush, as numbers; what is not defined is left out."""
        line: dict[str, float] = {}
        if self._episodes:
            n = len(self._episodes)
            line["episode/return"] = sum(e.return_ for e in self._episodes) / n
            line["episode/length"] = sum(e.length for e in self._episodes) / n
            line["episode/count"] = n
            solved = [e.solved for e in self._episodes if e.solved is not None]
            if solved:
                line["episode/solve_rate"] = sum(solved) / len(solved)
        if self._recent:
            line["episode/return_mean_100"] = sum(self._recent) / len(self._recent)
        means: dict[str, Tensor] = {}
        names = dict.fromkeys(name for metrics in self._updates for name in metrics)
        for name in names:
            values = [metrics[name] for metrics in self._updates if name in metrics]
            if name.endswith("/num_gradient_steps"):
                line[name] = float(sum(values))
            elif isinstance(values[0], Tensor):
                line[name] = math.nan  # keeps its place
                where = values[-1].device if isinstance(values[-1], Tensor) else None
                means[name] = torch.stack([v.to(where) for v in values if isinstance(v, Tensor)]).mean()
            else:
                line[name] = float(sum(values)) / len(values)
        line |= _read(means)
        self._episodes, self._updates = [], []
        return {name: value for name, value in line.items() if math.isfinite(value)}

    def state_dict(self) -> State:
        return {"episodes": [tuple(e) for e in self._episodes], "updates": [dict(u) for u in self._updates], "recent": list(self._recent)}

    def load_state_dict(self, state: State) -> None:
        self._episodes = [Episode(*e) for e in state["episodes"]]
        self._updates = [dict(u) for u in state["updates"]]
        self._recent = deque(state["recent"], maxlen=WINDOW)


def _read(means: dict[str, Tensor]) -> dict[str, float]:
    """The numbers, of each device in one transfer."""
    found: dict[str, float] = {}
    for device in {x.device for x in means.values()}:
        names = [name for name, x in means.items() if x.device == device]
        found |= zip(names, torch.stack([means[name] for name in names]).tolist(), strict=True)
    return found
