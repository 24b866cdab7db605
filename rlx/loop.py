"""The training loop: one for every algorithm, and it knows none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from rlx.checkpoint import Checkpointer
from rlx.clock import Clock
from rlx.collect import Collector
from rlx.metrics import MetricBuffer
from rlx.rng import GlobalRNG
from rlx.types import Algorithm, Progress, Stateful


class LoopConfig(Protocol):
    total_env_steps: int
    target_return: float | None
    log_every: int
    eval_every: int
    checkpoint_every: int


class Logger(Protocol):
    """Where a run's numbers go."""

    def write(self, line: Mapping[str, float], progress: Progress) -> None: ...

    def rewind(self, env_steps: int) -> None:
        """Forget what was written after env_steps."""
        ...

    def tick(self, progress: Progress, metrics: MetricBuffer, clock: Clock) -> None:
        """Called at the start of a phase, for a live view."""
        ...

    def sync(self) -> None:
        """Return when what was written is on the disk."""
        ...


class Signals(Protocol):
    """What the outside world asks for between two iterations."""

    def should_stop(self) -> bool: ...

    def should_save(self) -> bool:
        """True once for every request to save and go on."""
        ...


def crossed(every: int, before: int, now: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]; never for 0."""
    return every > 0 and before // every != now // every


def train(
    algo: Algorithm,
    collector: Collector,
    evaluate: Callable[[Algorithm, int], dict[str, float]],
    *,
    config: LoopConfig,
    logger: Logger,
    checkpointer: Checkpointer,
    signals: Signals,
) -> tuple[Progress, bool]:
    """Collect, update, log, evaluate and checkpoint until the budget is spent or the target is reached.

    Checkpoints are taken only between iterations, so that there is no "where was I" to save.

    Returns:
        How far it got, and whether that is the end (False after a request to stop).
    """
    progress, metrics, clock = Progress(total_env_steps=config.total_env_steps), MetricBuffer(), Clock()
    state: dict[str, Stateful] = {
        "progress": progress, "algo": algo, "collector": collector, "metrics": metrics, "clock": clock, "rng": GlobalRNG()
    }  # fmt: skip
    if not checkpointer.restore(state):
        collector.reset()
    logger.rewind(progress.env_steps)  # also to nothing: a run may have been killed before its first checkpoint

    def save(score: float | None = None) -> None:
        with clock.measure("checkpoint"):
            logger.tick(progress, metrics, clock)
            checkpointer.begin_save(state, progress.env_steps, score=score, first=logger.sync)

    def is_done() -> bool:
        recent = metrics.return_mean_100
        reached = config.target_return is not None and recent is not None and recent >= config.target_return
        return reached or progress.env_steps >= config.total_env_steps

    done = is_done()
    while not done and not signals.should_stop():
        with clock.measure("collect"):
            logger.tick(progress, metrics, clock)
            rollout, episodes = collector.collect(algo.rollout_length)
        before, now = progress.advance(rollout)
        metrics.add_episodes(episodes)
        with clock.measure("update"):
            metrics.add_update(algo.update(rollout, progress))
        done, score = is_done(), None
        if done or crossed(config.log_every, before, now):
            logger.write(metrics.flush() | clock.line(now), progress)
        if config.eval_every > 0 and (done or crossed(config.eval_every, before, now)):
            with clock.measure("evaluate"):
                logger.tick(progress, metrics, clock)
                result = evaluate(algo, now)
            logger.write(result | clock.line(now), progress)
            score = result["eval/return_mean"]
        due = crossed(config.checkpoint_every, before, now) or signals.should_save()
        if done or due or (score is not None and checkpointer.is_best(score)):
            save(score)
    if not done:
        save()
    with clock.measure("checkpoint"):
        checkpointer.wait()
    return progress, done
