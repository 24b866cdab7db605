"""The training loop, one for every algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from rlx.checkpointer import Checkpointer
from rlx.clock import Clock
from rlx.collect import Collector
from rlx.distributed import ALONE, World
from rlx.errors import EnvError, EvaluationError
from rlx.metrics import MetricBuffer
from rlx.rng import GlobalRNG
from rlx.types import Algorithm, Progress, Stateful


class LoopConfig(Protocol):
    total_env_steps: int
    target_return: float | None
    log_every: int
    eval_every: int
    eval_max_steps: int
    checkpoint_every: int


class Logger(Protocol):
    """Takes a run's metrics and messages."""

    def write(self, line: Mapping[str, float], progress: Progress) -> None: ...

    def rewind(self, env_steps: int, *, evaluated: bool) -> None:
        """Delete the lines after env_steps and, unless `evaluated`, an evaluation at env_steps."""
        ...

    def note(self, text: str, *, trace: str = "") -> None:
        """Show a message; a traceback goes into the run's log."""
        ...

    def tick(self, progress: Progress, metrics: MetricBuffer, clock: Clock) -> None:
        """Called at the start of a phase, for a live view."""
        ...

    def sync(self) -> None:
        """Return when what was written is on the disk."""
        ...


class Signals(Protocol):
    """Requests from outside the process, looked at between two iterations."""

    def should_stop(self) -> bool: ...

    def should_save(self) -> bool:
        """True once for every request to save and go on."""
        ...


Pause = Callable[[int, Mapping[str, float]], bool]
"""Whether training pauses after the iteration that wrote a line, given its env steps and the line."""


def never_pause(env_steps: int, line: Mapping[str, float]) -> bool:
    return False


class Evaluate(Protocol):
    def __call__(self, algo: Algorithm, env_steps: int, /, *, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """Measure the policy; None if `should_stop`, which is called before every env step, returned True.

        Raises:
            EvaluationError: if the environment fails.
        """
        ...


def crossed(every: int, before: int, now: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]; never for 0."""
    return every > 0 and before // every != now // every


def train(
    algo: Algorithm,
    collector: Collector,
    evaluate: Evaluate,
    *,
    config: LoopConfig,
    logger: Logger,
    checkpointer: Checkpointer,
    signals: Signals,
    should_pause: Pause = never_pause,
    world: World = ALONE,
) -> tuple[Progress, bool]:
    """Collect, update, log, checkpoint and evaluate until the budget is spent or the target is reached.

    Checkpoints are taken only between iterations, so that no position within an iteration has to be saved. One is taken before every
    evaluation and records that the evaluation is due; a run that resumes from it evaluates first.

    On several ranks all of them run this loop, and take the same branches: what only one of them knows is agreed.

    Returns:
        How far it got, and whether that is the end (False after a request to stop and after a pause).

    Raises:
        EnvError: if training came to its end and no evaluation ever succeeded.
    """
    progress, metrics, clock = Progress(total_env_steps=config.total_env_steps, num_ranks=world.size), MetricBuffer(), Clock()
    state: dict[str, Stateful] = {
        "progress": progress, "algo": algo, "collector": collector, "metrics": metrics, "clock": clock, "rng": GlobalRNG()
    }  # fmt: skip
    restored = checkpointer.restore(state)
    if restored is None:
        collector.reset()
    is_due = restored is not None and restored.owes_evaluation and config.eval_every > 0
    evaluated = restored is not None and restored.evaluated
    failure: EvaluationError | None = None
    paused = False
    logger.rewind(progress.env_steps, evaluated=not is_due)  # also to nothing: a run may have been killed before its first checkpoint

    def any_rank(wants: bool) -> bool:
        return bool(world.agree(int(wants)))

    def write(line: Mapping[str, float]) -> None:
        nonlocal paused
        logger.write(line, progress)
        paused = any_rank(paused or should_pause(progress.env_steps, line))

    def save() -> None:
        with clock.measure("checkpoint"):
            logger.tick(progress, metrics, clock)
            checkpointer.begin_save(state, progress.env_steps, evaluation_due=is_due, evaluated=evaluated, first=logger.sync)

    def should_stop() -> bool:
        logger.tick(progress, metrics, clock)
        return signals.should_stop()

    def measure() -> bool:
        """Evaluate and write the line; False if there was a request to stop or a pause before that."""
        nonlocal evaluated, failure
        if paused:
            return False
        try:
            with clock.measure("evaluate"):
                result = evaluate(algo, progress.env_steps, should_stop=should_stop)
        except EvaluationError as error:
            failure = error
            logger.note(f"warning: the evaluation at {progress.env_steps:,} env steps is left out: {error}", trace=error.trace)
            return True
        if result is None:
            return False
        if cut := result.get("eval/cut_episodes"):
            where = f"evaluation at {progress.env_steps:,} env steps"
            logger.note(f"{where}: {cut:.0f} episodes were cut after {config.eval_max_steps:,} steps (loop.eval_max_steps) and count with "
                        "what they had earned")  # fmt: skip
        write(result | clock.evaluation_line(progress.env_steps))
        checkpointer.begin_score(progress.env_steps, result["eval/return_mean"], first=logger.sync)
        evaluated = True
        return True

    def is_done() -> bool:
        recent = metrics.return_mean_100
        reached = config.target_return is not None and recent is not None and recent >= config.target_return
        return reached or progress.env_steps >= config.total_env_steps

    done = is_done()
    if done and not is_due:
        logger.note(f"nothing is left to train: the run has {progress.env_steps:,} env steps, or has reached its loop.target_return")
    going = not is_due or measure()
    while going and not done and not paused and not any_rank(signals.should_stop()):
        with clock.measure("collect"):
            logger.tick(progress, metrics, clock)
            rollout, episodes = collector.collect(algo.rollout_length)
        before, now = progress.advance(rollout)
        metrics.add_episodes(episodes)
        with clock.measure("update"):
            metrics.add_update(algo.update(rollout, progress))
        done = any_rank(is_done())  # only rank 0 has the episodes
        is_due = config.eval_every > 0 and (done or crossed(config.eval_every, before, now))
        if done or crossed(config.log_every, before, now):
            write(metrics.flush() | clock.line(now))
        if done or is_due or crossed(config.checkpoint_every, before, now) or any_rank(signals.should_save()):
            save()
        going = not is_due or measure()
    finished = done and going
    if not finished:
        save()
    with clock.measure("checkpoint"):
        checkpointer.wait()
    if finished and failure is not None and not evaluated:
        error = EnvError(f"training is finished and saved, but no evaluation succeeded; `rlx resume` evaluates again. {failure}")
        error.trace = failure.trace
        raise error
    return progress, finished
