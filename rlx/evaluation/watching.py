"""Watching an agent play a grid world: what the board looks like at every step, and what the agent makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rlx.collect import to_tensor
from rlx.envs.grids.gridworld import GridVectorEnv
from rlx.nn.heads import CategoricalHead
from rlx.nn.networks import Network
from rlx.types import Algorithm, Explanation, Mode


class Thought(NamedTuple):
    """What an agent makes of one board, as far as it says; the fields of `rlx.types.Explanation`, without those of a batch."""

    probs: NDArray[np.float32]  # [A]
    probs_without: NDArray[np.float32] | None = None  # [A]
    value: float | None = None
    planes: NDArray[np.uint8] | None = None  # [A, D, C, H, W]
    reward: NDArray[np.float32] | None = None  # [A, D]
    saliency: NDArray[np.float32] | None = None  # [A]
    q_value: NDArray[np.float32] | None = None  # [A]

    @property
    def shift(self) -> float | None:
        """How far imagination moves the policy: KL(with || without), in nats."""
        if self.probs_without is None:
            return None
        p, q = (x.astype(np.float64).clip(1e-12) for x in (self.probs, self.probs_without))
        return max(0.0, float((p * np.log(p / q)).sum()))


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A board, what led to it, and what the agent does next."""

    episode: int
    """From 1."""
    step: int
    """Env steps of the episode before it."""
    planes: NDArray[np.uint8]
    """[C, H, W]."""
    reward: float | None
    """Of the step that led here; None where an episode begins."""
    events: tuple[str, ...]
    """What happened in it."""
    return_: float
    """Undiscounted, until here."""
    action: int | None
    """The one that is taken; None where the episode has ended."""
    thought: Thought | None
    terminated: bool = False

    @property
    def when(self) -> str:
        """Which decision this is, or how many there were."""
        number = f"after {self.step} steps" if self.action is None else f"step {self.step + 1}"
        return f"episode {self.episode}, {number}, return {self.return_:+.1f}"


@torch.no_grad()
def play(
    env: GridVectorEnv, algo: Algorithm, seeds: NDArray[np.int64], *, mode: Mode = "eval", steps: int | None = None
) -> Iterator[Moment]:
    """The moments of one episode for every seed, with the board where it ended, until so many decisions were taken.

    Args:
        env: a single board.
        algo: one that has `explain` is asked for its thoughts.
        seeds: of the episodes.
        mode: "train" samples actions.
        steps: decisions in all; None for no limit.
    """
    taken = 0
    for episode, seed in enumerate(seeds.tolist(), 1):
        obs, _ = env.reset(seed=np.array([seed]))
        carry, step, return_, done = algo.initial_carry(1), 0, 0.0, False
        reward: float | None = None
        events: tuple[str, ...] = ()
        while not done:
            if steps is not None and taken >= steps:
                return
            batch = to_tensor(np.array(obs), algo.device)
            action, carry, thought = _decide(algo, batch, carry, torch.tensor([step == 0], device=algo.device), mode)
            yield Moment(episode=episode, step=step, planes=env.planes()[0].copy(), reward=reward, events=events, return_=return_,
                         action=action, thought=thought)  # fmt: skip
            obs, rewards, terminated, truncated, info = env.step(np.array([action]))
            reward = float(rewards[0])
            events = tuple(name for name, happened in zip(env.rules.events, info["events"][0], strict=True) if happened)
            step, taken, return_, done = step + 1, taken + 1, return_ + reward, bool(terminated[0] | truncated[0])
        yield Moment(episode=episode, step=step, planes=env.planes()[0].copy(), reward=reward, events=events, return_=return_, action=None,
                     thought=None, terminated=bool(terminated[0]))  # fmt: skip


def _decide(algo: Any, obs: torch.Tensor, carry: Any, is_first: torch.Tensor, mode: Mode) -> tuple[int, Any, Thought | None]:
    """The action for obs [1, *], the carry, and what can be said of it; what is shown must be what was acted on, luck included."""
    if hasattr(algo, "explain"):
        (action, carry, _), explanation = algo.explain(obs, carry, is_first, mode=mode)
        return int(action[0]), carry, _thought(explanation)
    action, carry, _ = algo.act(obs, carry, is_first, mode=mode)
    net = getattr(algo, "net", None)
    if isinstance(net, Network) and isinstance(net.head, CategoricalHead):
        logits = net.policy_params(net.preprocess(obs))
        return int(action[0]), carry, Thought(logits.softmax(-1)[0].cpu().numpy())
    return int(action[0]), carry, None


def _thought(insight: Explanation) -> Thought:
    probs, value, without, planes, reward, saliency, q_value = (None if x is None else x[0].cpu().numpy() for x in insight)
    assert probs is not None
    bits = None if planes is None else planes.astype(np.uint8)
    return Thought(probs, without, None if value is None else float(value), bits, reward, saliency, q_value)
