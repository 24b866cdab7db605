"""The worker's side of a job: train one run of a sweep, from its last checkpoint if there is one."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from rlx.errors import RankError, RlxError
from rlx.store.runs import RunDir
from rlx.sweep.executors.executor import Job, Result
from rlx.track.heartbeat import HeartbeatConsole

_LOCK_PATIENCE_S = 60.0
"""Time to wait for a run that another process holds, because a stopped process still saves."""


def work(job: Job) -> Result:
    """Train a run to its end or to the job's pause. It never raises: an error is a result, and its traceback is printed."""
    from rlx.run import train

    run = RunDir(Path(job.run))
    if not run.path.is_dir():
        return Result(status="failed", exit_code=2, error=f"{run.path} is not there: every machine that works on a sweep must see its "
                                                            "directory; set RLX_RUNS_DIR to a file system that they share")  # fmt: skip
    try:
        config = run.config(trust=False) if job.config is None else run.config_of(job.config)
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while run.is_locked() and time.monotonic() < deadline:
            time.sleep(0.1)
        with _ranks(job.ranks):
            outcome = train(
                run,
                config,
                overrides=[],
                console=HeartbeatConsole(run.path),
                wandb=None if job.mirror else "disabled",
                should_pause=job.should_pause,
            )
    except RankError as error:
        print(f"rlx: {error}", flush=True)
        return Result(status="lost", error=str(error), exit_code=error.exit_code)
    except RlxError as error:  # the run has logged the traceback, if the user's code raised
        print(f"rlx: {error}", flush=True)
        return Result(status="failed", error=str(error), exit_code=error.exit_code)
    except Exception as error:
        traceback.print_exc()
        return Result(status="failed", error=f"{type(error).__name__}: {error}", exit_code=1)
    if outcome.finished:
        return Result(status="finished")
    return Result(status="stopped" if outcome.exit_code else "paused", exit_code=outcome.exit_code)


@contextlib.contextmanager
def _ranks(num_ranks: int) -> Iterator[None]:
    """Train with so many processes in the block, of which this one is the first."""
    if num_ranks == 1:
        yield
        return
    from rlx.launcher import leading_others
    from rlx.ranks import leading

    with leading_others(num_ranks), leading():
        yield
