"""An agent at play in a grid world, step by step, with what its decisions were based on."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rlx.config.schema import RunConfig
from rlx.envs.grids.grid_env import GridVectorEnv, make_grid
from rlx.envs.grids.grid_settings import WORLDS, settings_of
from rlx.envs.grids.gridworld import Grid
from rlx.errors import ConfigError
from rlx.evaluation.capabilities import ablated, check_ablation
from rlx.evaluation.episodes import Begun, episode_seeds, play_steps
from rlx.evaluation.evaluate import EVAL_STREAM
from rlx.evaluation.loading import choose_checkpoint, load_policy
from rlx.rng import seed_everything
from rlx.store.runs import RunDir
from rlx.types import Explains, Explanation, Mode, Policy, PolicyOutput, Tree


class BoardExplanation(NamedTuple):
    """The explanation of one decision: the fields of `rlx.types.Explanation` without those of a batch."""

    probs: NDArray[np.float32] | None  # [A]
    value: float | None = None
    probs_without: NDArray[np.float32] | None = None  # [A]
    planes: NDArray[np.uint8] | None = None  # [A, D, C, H, W]
    reward: NDArray[np.float32] | None = None  # [A, D]
    saliency: NDArray[np.float32] | None = None  # [A]
    q_value: NDArray[np.float32] | None = None  # [A]

    @property
    def shift(self) -> float | None:
        """KL(policy || policy without imagination), in nats."""
        if self.probs is None or self.probs_without is None:
            return None
        p, q = (x.astype(np.float64).clip(1e-12) for x in (self.probs, self.probs_without))
        return max(0.0, float((p * np.log(p / q)).sum()))

    @property
    def depth(self) -> int:
        """Frames of each imagined rollout."""
        return 0 if self.planes is None else self.planes.shape[1]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A board, the step that led to it, and the decision that follows."""

    episode: int
    """From 1."""
    step: int
    """Env steps of the episode before it."""
    planes: NDArray[np.uint8]
    """[C, H, W]."""
    reward: float | None
    """Of the step that led here; None where an episode begins."""
    events: tuple[str, ...]
    """Of that step."""
    return_: float
    """Undiscounted, until here."""
    action: int | None
    """The one that is taken; None where the episode has ended."""
    explanation: BoardExplanation | None
    terminated: bool = False

    @property
    def when(self) -> str:
        """The episode, the number of the step, and the return so far."""
        number = f"after {self.step} steps" if self.action is None else f"step {self.step + 1}"
        return f"episode {self.episode}, {number}, return {self.return_:+.1f}"


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Episodes of a run, which are played while `moments` is consumed."""

    title: str
    grid: Grid
    depth: int
    """Frames of each imagined rollout; 0 where nothing is imagined."""
    moments: Iterator[Moment]


def watch_run(
    run: RunDir,
    *,
    checkpoint: str = "latest",
    episodes: int = 1,
    steps: int | None = None,
    stochastic: bool = False,
    ablation: Mapping[str, str] | None = None,
    seed: int = 0,
    trust: bool = False,
    warn: Callable[[str], None] = warnings.warn,
) -> Watch:
    """Play the first episodes of `rlx eval` step by step.

    Args:
        run: on a grid world.
        checkpoint: `best`, `latest`, or the env steps of one.
        episodes: how many are played.
        steps: stop after so many decisions.
        stochastic: sample actions as in training, instead of taking the most likely one.
        ablation: choices of `Ablatable.ablate`.
        seed: draws other episodes than the usual ones.
        trust: run the code that somebody else's run names.
        warn: is called with a message where a damaged checkpoint is passed over.

    Raises:
        ConfigError: if an argument does not fit the run, or it is not on a grid world.
        CheckpointError: if there is no such checkpoint.
    """
    config, ablation = run.config(trust=trust), ablation or {}
    env = _board(run, config)
    check_ablation(ablation, algo=config.algo.name, run=run.reference)
    chosen = choose_checkpoint(run, checkpoint, warn=warn)
    mode: Mode = "train" if stochastic else "eval"
    algo = ablated(load_policy(config, chosen, env), ablation, mode=mode)
    seed_everything(seed)
    moments = play(env, algo, episode_seeds(episodes, stream=[*EVAL_STREAM, seed]), mode=mode, steps=steps)
    first = next(moments)
    changes = "".join(f", {name} {choice}" for name, choice in ablation.items())
    return Watch(title=f"{run.name} at {chosen.env_steps:,} env steps{changes}", grid=env.rules,
                 depth=first.explanation.depth if first.explanation else 0, moments=itertools.chain([first], moments))  # fmt: skip


def _board(run: RunDir, config: RunConfig) -> GridVectorEnv:
    """One board of the world that a run is on; raises a ConfigError if that is no grid world."""
    if config.env.id not in WORLDS:
        instead = f"rlx play {run.reference} shows it" if config.env.is_game else f"rlx eval {run.reference} --video 1 records it"
        raise ConfigError(
            f"{run.reference} is algo={config.algo.name} on env={config.env.id}, and rlx watch is for grid worlds (sokoban, minipacman); "
            f"{instead}"
        )
    if config.env.wrappers:
        raise ConfigError(
            f"{run.reference} has env.wrappers, and rlx watch shows worlds without wrappers; rlx eval {run.reference} --video 1 records it"
        )
    return make_grid(settings_of(config.env.id, config.env.kwargs), 1, split="evaluation")


def play(
    env: GridVectorEnv, policy: Policy, seeds: NDArray[np.int64], *, mode: Mode = "eval", steps: int | None = None
) -> Iterator[Moment]:
    """The moments of one episode for every seed, each with the board where it ended, until so many decisions were taken.

    Args:
        env: a single board.
        policy: is asked for explanations if it has any.
        seeds: of the episodes.
        mode: "train" samples actions.
        steps: decisions in all; None for no limit.
    """
    taken = 0
    explaining = _Explaining(policy)
    for step in play_steps(env, explaining, seeds, mode=mode):
        board = env.planes()[0].copy()
        if isinstance(step, Begun):
            before: dict[str, Any] = {"step": 0, "planes": board, "reward": None, "events": (), "return_": 0.0}
            if taken == steps:
                return
            continue
        episode = int(step.episode[0]) + 1
        yield Moment(episode=episode, action=int(step.action[0]), explanation=explaining.explanation, **before)
        taken += 1
        events = tuple(name for name, happened in zip(env.rules.events, step.info["events"][0], strict=True) if happened)
        before = {"step": int(step.length[0]), "planes": board, "reward": float(step.reward[0]), "events": events,
                  "return_": float(step.return_[0])}  # fmt: skip
        if step.is_last[0]:
            yield Moment(episode=episode, action=None, explanation=None, terminated=bool(step.terminated[0]), **before)
        elif taken == steps:
            return


class _Explaining:
    """A policy for one environment that keeps the explanation of its last decision, None where there is none."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self.device, self.initial_carry = policy, policy.device, policy.initial_carry
        self.explanation: BoardExplanation | None = None

    def act(self, obs: Any, carry: Tree, is_first: torch.Tensor, *, mode: Mode) -> PolicyOutput:
        if isinstance(self._policy, Explains):
            output, explanation = self._policy.explain(obs, carry, is_first, mode=mode)
            self.explanation = _of_board(explanation)
            return output
        return self._policy.act(obs, carry, is_first, mode=mode)


def _of_board(explanation: Explanation) -> BoardExplanation:
    """The explanation of the first of a batch."""
    first = [None if x is None else x[0].cpu().numpy() for x in explanation[: len(BoardExplanation._fields)]]
    probs, value, without, planes, reward, saliency, q_value = first
    bits = None if planes is None else planes.astype(np.uint8)
    return BoardExplanation(probs, None if value is None else float(value), without, bits, reward, saliency, q_value)
