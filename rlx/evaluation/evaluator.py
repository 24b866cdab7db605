"""Evaluation during training: fixed episodes under mode "eval", in environments and under random generators of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlx.collect import Episode
from rlx.distributed import ALONE, World
from rlx.errors import EvaluationError, RlxError
from rlx.evaluation.episodes import MAX_PARALLEL, Stopped, episode_seeds, never, run_episodes
from rlx.rng import isolated_rng
from rlx.stats.aggregate import iqm
from rlx.stats.intervals import mean_interval, score_interval
from rlx.transfer import send_arrays
from rlx.tree_ops import Tree, pick
from rlx.types import Algorithm, VectorEnv


def summarize(episodes: list[Episode], *, game: bool = False) -> dict[str, float]:
    """Mean, interquartile mean, standard deviation and 95 % interval (of the mean) of the undiscounted returns.

    There is no interval for fewer than five episodes, or if all returns are equal.

    Args:
        game: returns are 1 for a win, 0 for a draw and -1 for a loss, so that an interval for bounded scores applies.
    """
    returns = np.array([e.return_ for e in episodes], dtype=np.float64)
    low, high = np.array(score_interval((returns + 1.0) / 2.0)) * 2.0 - 1.0 if game else mean_interval([returns], resamples=2000)
    solved = [float(e.solved) for e in episodes if e.solved is not None]
    return {
        "eval/return_mean": float(returns.mean()),
        "eval/return_iqm": float(iqm(returns)),
        "eval/return_std": float(returns.std(ddof=1)) if len(returns) > 1 else 0.0,
        **({"eval/return_ci_low": float(low), "eval/return_ci_high": float(high)} if math.isfinite(low) else {}),
        "eval/length_mean": float(np.mean([e.length for e in episodes])),
        **({"eval/solve_rate": float(np.mean(solved))} if solved else {}),
        **{f"eval/{name}": value for name, value in mean_measures(episodes).items()},
        **({"eval/cut_episodes": float(cut)} if (cut := sum(e.cut for e in episodes)) else {}),
    }


def mean_measures(episodes: Sequence[Episode]) -> dict[str, float]:
    """The means of what the environment measures of episodes; empty where it measures nothing."""
    measured = [e.measures for e in episodes if e.measures is not None]
    return {name: float(np.mean([each[name] for each in measured])) for name in (measured[0] if measured else ())}


class Evaluator:
    """Evaluates during training, always on the same episodes.

    The environments are made when they are first needed, and anew after one has failed.

    Args:
        make_env: builds a vector env of a given size.
        num_episodes: episodes per evaluation.
        seed: of the run; the episodes are drawn from it and shared with no other part of the run.
        paired: whether this is a game, see `episode_seeds`.
        probe: for a solved game, observations [P, *] and the moves of perfect play there [P, A].
        max_steps: see `run_episodes`.
        world: the ranks among which the episodes are divided; all of them evaluate together, and get the same metrics.
    """

    def __init__(
        self,
        make_env: Callable[[int], VectorEnv],
        *,
        num_episodes: int,
        seed: int,
        paired: bool = False,
        probe: tuple[Tree, NDArray[Any]] | None = None,
        max_steps: int = 0,
        world: World = ALONE,
    ) -> None:
        self._world = world
        self._own = slice(self._world.rank, None, self._world.size)  # long episodes are spread, whichever these are
        self._make_env, self._max_steps = make_env, max_steps
        self._num_envs = min(len(range(num_episodes)[self._own]), MAX_PARALLEL)
        self._env: VectorEnv | None = None  # made for the first evaluation only: some simulators allow one instance
        self._seed = seed
        self._seeds = episode_seeds(num_episodes, stream=[seed, 2], paired=paired)
        self._probe, self._paired = probe, paired

    def __call__(self, algo: Algorithm, env_steps: int, *, should_stop: Callable[[], bool] = never) -> dict[str, float] | None:
        """Metrics `eval/*` of the policy; None if `should_stop` returned True.

        Args:
            algo: the policy.
            env_steps: of training so far; with the seed they seed the random generators.
            should_stop: is asked before every env step.

        Raises:
            EvaluationError: if an environment fails, or gives numbers that are not finite.
        """
        found: dict[str, float] = {}
        own: list[Episode] | EvaluationError | None
        with isolated_rng(self._seed, env_steps):
            try:
                own = self._episodes(algo, should_stop)
                if self._probe is not None:
                    found = {"eval/optimal_moves": optimal_moves(algo, *self._probe, should_stop=should_stop)}
            except Stopped:
                own = None
            except (RlxError, MemoryError) as error:
                self.close()
                failed = EvaluationError(str(error) or type(error).__name__)
                failed.trace = getattr(error, "trace", "")
                if self._world.size == 1:
                    raise failed from error
                own = failed
        episodes = self._all_episodes(own)
        if episodes is None:
            return None
        for seed, episode in zip(self._seeds, episodes, strict=True):
            if not math.isfinite(episode.return_):
                raise EvaluationError(f"the return of the episode with seed {seed} is {episode.return_}; look at the environment's rewards")
        return summarize(episodes, game=self._paired) | found

    def _episodes(self, algo: Algorithm, should_stop: Callable[[], bool]) -> list[Episode]:
        """This rank's episodes, in the order of their seeds."""
        if not self._num_envs:
            return []
        return run_episodes(self._made(), algo, self._seeds[self._own], max_steps=self._max_steps, should_stop=should_stop)

    def _all_episodes(self, own: list[Episode] | EvaluationError | None) -> list[Episode] | None:
        """The episodes of all ranks, in the order of their seeds; None if one of them stopped, and the error where there was one."""
        if self._world.size == 1:
            return own if isinstance(own, list) else None
        sent = (str(own), own.trace) if isinstance(own, EvaluationError) else own
        parts = self._world.broadcast(self._world.gather(sent)) or []
        if (failed := next((part for part in parts if isinstance(part, tuple)), None)) is not None:
            error = EvaluationError(failed[0])
            error.trace = failed[1]
            raise error
        if any(part is None for part in parts):
            return None
        of_ranks = [iter(part) for part in parts if isinstance(part, list)]
        return [next(of_ranks[i % len(of_ranks)]) for i in range(len(self._seeds))]

    def _made(self) -> VectorEnv:
        if self._env is None:
            try:
                self._env = self._make_env(self._num_envs)
            except RlxError as error:
                number = "1 environment" if self._num_envs == 1 else f"{self._num_envs} environments"
                less = "loop.eval_episodes=1 needs one, loop.eval_every=0 none"
                error.args = (f"an evaluation needs {number} beside those that train ({less}): {error}",)
                raise
        return self._env

    def close(self) -> None:
        env, self._env = self._env, None
        if env is not None:
            env.close()


@torch.no_grad()
def optimal_moves(
    algo: Algorithm,
    obs: Tree,
    optimal: NDArray[Any],
    *,
    batch_size: int = 512,
    should_stop: Callable[[], bool] = never,
) -> float:
    """Share of positions (observations [P, *] of a game) in which the policy chooses a move of perfect play [P, A].

    Raises:
        Stopped: when `should_stop`, which is asked before every batch, returns True.
    """
    right = 0
    for begin in range(0, len(optimal), batch_size):
        if should_stop():
            raise Stopped
        part = pick(obs, slice(begin, begin + batch_size))
        seen, is_first = send_arrays(algo.device, part, part["history"][:, 0] < 0)
        action, _, _ = algo.act(seen, algo.initial_carry(len(is_first)), is_first, mode="eval")
        right += int(optimal[np.arange(begin, begin + len(is_first)), action.cpu().numpy()].sum())
    return right / len(optimal)
