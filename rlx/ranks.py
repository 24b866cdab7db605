"""The ranks of a run: rank 0 runs the command, and the others train what it sends them.

They were started by `rlx train --ranks N` (`rlx.launcher`), torchrun, or a job of SLURM, all with the same command, which only rank 0
reads. It alone has the run's directory, and says how the run ended: the others are silent, unless rank 0 has died.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from rlx import distributed, errors, loop
from rlx.build import device_of_rank, resolve_device
from rlx.clock import Clock
from rlx.config.saved import parse_config
from rlx.config.schema import RunConfig
from rlx.distributed import World
from rlx.errors import LostRankError, RankError, RlxError
from rlx.failures import as_rlx_error
from rlx.launcher import MEETING, keep_name
from rlx.metrics import MetricBuffer
from rlx.parts import Parts, build
from rlx.signals import SignalHandler
from rlx.types import Progress

_FAILED, _ENDED, _SPEAKER = "failed", "ended", "speaker"
"""Notes: why a rank failed, the exit code of rank 0, and which rank says that rank 0 has died."""
_REPORT_S, _ANSWER_S = 2.0, 60.0
"""How long rank 0 waits for the reason of a failure, and the others for rank 0 to have recorded it."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What rank 0 sends to the others before they train."""

    config: str
    """The run's configuration, as in config.yaml."""
    inexact: bool
    trusted: bool
    """Whether the run was started by the user, or is said to be trusted."""
    run: str
    """The run's name in commands."""


class NullLogger:
    """The logger of ranks that have no directory."""

    def write(self, line: Mapping[str, float], progress: Progress) -> None:
        pass

    def rewind(self, env_steps: int, *, evaluated: bool) -> None:
        pass

    def note(self, text: str, *, trace: str = "") -> None:
        pass

    def tick(self, progress: Progress, metrics: MetricBuffer, clock: Clock) -> None:
        pass

    def sync(self) -> None:
        pass


def _join() -> World:
    if MEETING in os.environ:
        threading.Thread(target=_follow_the_launcher, args=(os.getppid(),), name="rlx-launcher", daemon=True).start()
    return distributed.start("cuda" if torch.cuda.is_available() else "cpu")


def _follow_the_launcher(launcher: int) -> None:
    """Save and stop when the command that started the ranks was killed, because nothing else would stop them."""
    import signal

    while os.getppid() == launcher:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def leading(world: World | None = None) -> Iterator[None]:
    """Run a command on rank 0; when it ends, the other ranks end with its exit code, whether they have begun to train or not."""
    world, code = _join() if world is None else world, 1
    try:
        yield
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
        raise
    except RlxError as error:
        code = error.exit_code
        raise
    finally:
        world.leave_note(_ENDED, str(code))
        world.close()


def hosts_of(world: World) -> list[str]:
    """The names of the machines of all ranks, on rank 0; the first call of every rank."""
    return list(dict.fromkeys(world.gather(socket.gethostname()) or []))


def send_work(world: World, work: Work) -> None:
    """Let the other ranks begin."""
    keep_name(work.run)
    world.broadcast(work)


def begin_together(world: World, parts: Parts) -> None:
    """Let the algorithms of all ranks, which `build` has joined, begin with the weights and statistics of rank 0."""
    if world.size > 1:
        parts.algo.load_state_dict(world.broadcast(parts.algo.state_dict()))


def agreed_signal(world: World, signals: SignalHandler) -> None:
    """Let all ranks have been stopped by the signal that reached any of them."""
    import signal

    bits = world.agree(1 << signals.stopped_by if signals.stopped_by else 0)
    if bits and signals.stopped_by is None:
        signals.stopped_by = signal.Signals((bits & -bits).bit_length() - 1)


def follow(world: World | None = None) -> int:
    """Train this rank's share of what rank 0 sends; returns the exit code.

    Args:
        world: joined already; by default the one that this process was started for.

    Raises:
        RlxError: what failed here, where rank 0 cannot say it.
    """
    world = _join() if world is None else world
    work: Work | None = None
    config: RunConfig | None = None
    try:
        hosts_of(world)
        work = world.broadcast(work)
        assert work is not None
        config = parse_config(work.config, Path(work.run), import_plugins=True)
        trained = _train(world, work, config)
        world.close()  # its threads would abort this process at its exit
        return trained
    except LostRankError as error:
        code = world.note(_ENDED, wait_s=_ANSWER_S if world.note(_FAILED) else _REPORT_S)
        if code is not None:
            return int(code)
        _say_once(world, work, error)
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        found = (as_rlx_error(error, config) if config else None) or error
        _report(world, found)
        world.close()  # the others learn that this rank has left
        code = world.note(_ENDED, wait_s=_ANSWER_S)
        if code is not None:
            return int(code)
        raise found from error if found is not error else None


def _train(world: World, work: Work, config: RunConfig) -> int:
    device = device_of_rank(resolve_device(config), world)
    with SignalHandler(announce=False) as signals:
        parts = build(config, Path(), device, inexact=work.inexact, world=world)
        with contextlib.closing(parts):
            parts.trust(work.trusted)
            begin_together(world, parts)
            _, finished = loop.train(parts.algo, parts.collector, parts.evaluator, config=config.loop.cadence, logger=NullLogger(),
                                     checkpointer=parts.checkpointer, signals=signals, world=world)  # fmt: skip
        agreed_signal(world, signals)
    return 128 + signals.stopped_by if signals.stopped_by and not finished else 0


def _report(world: World, error: BaseException) -> None:
    """Tell rank 0 why this one failed."""
    trace = error.trace if isinstance(error, RlxError) else "".join(traceback.format_exception(error))
    message = str(error) if isinstance(error, RlxError) else f"{type(error).__name__}: {error}"
    said = {"rank": world.rank, "kind": type(error).__name__, "message": message, "trace": trace}
    world.leave_note(_FAILED, json.dumps(said))


def reason(world: World, run: str, lost: LostRankError) -> RlxError:
    """Why another rank has left, as an error of the kind that it met; by what it said, or that it said nothing."""
    said = world.note(_FAILED, wait_s=_REPORT_S)
    if said is None:
        return RankError(f"a rank ended without a word, as when it is killed or its machine is lost, so that the others ended too; "
                         f"{how_to_resume(world, run)} continues from the last checkpoint ({lost.detail})")  # fmt: skip
    told = json.loads(said)
    kind = getattr(errors, str(told["kind"]), None)
    found = (kind if isinstance(kind, type) and issubclass(kind, RlxError) else RankError)(f"rank {told['rank']}: {told['message']}")
    found.trace = str(told["trace"])
    return found


def _say_once(world: World, work: Work | None, lost: LostRankError) -> NoReturn:
    """Raise that rank 0 has died, on one rank."""
    speaker = world.note(_SPEAKER)
    world.leave_note(_SPEAKER, str(world.rank))
    if MEETING in os.environ or speaker is not None:  # the launcher says it, or another rank
        raise SystemExit(LostRankError.exit_code)
    again = how_to_resume(world, work.run) if work else "the same command"
    raise RankError(f"rank 0 ended without a word, as when it is killed or its machine is lost; {again} continues from the last "
                    f"checkpoint ({lost.detail})") from lost  # fmt: skip


def ranks_option(world: World) -> str:
    """What `rlx resume` needs behind a run's name to continue on as many ranks; nothing under another launcher."""
    return f" --ranks {world.size}" if MEETING in os.environ else ""


def how_to_resume(world: World, run: str) -> str:
    """The command that continues a run on as many ranks."""
    if MEETING in os.environ:
        return f"`rlx resume {run}{ranks_option(world)}`"
    return f"`rlx resume {run}` under the same launcher, or with --auto-resume by itself,"
