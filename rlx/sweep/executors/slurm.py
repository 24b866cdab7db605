"""Runs of a sweep as jobs of SLURM, submitted through submitit: jobs that start together are one job array.

A job that SLURM preempts, or whose time is up, gets SIGUSR2: its run saves, and the job is requeued under its own number and resumes.
To the sweep this is only a run that takes longer.
"""

from __future__ import annotations

import getpass
import logging
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from rlx.errors import ConfigError
from rlx.signals import SignalHandler
from rlx.store.runs import RunDir
from rlx.sweep.executors.executor import Job, Result, open_log

_TYPES: dict[str, type] = {
    "partition": str, "account": str, "qos": str, "timeout_min": int, "mem_gb": float, "cpus_per_task": int, "gpus_per_node": int,
    "gres": str, "constraint": str, "exclude": str, "nodelist": str, "mem_per_cpu": str, "mem_per_gpu": str, "signal_delay_s": int,
    "comment": str, "mail_type": str, "mail_user": str, "wckey": str, "setup": str,
}  # fmt: skip
"""Keys of --slurm; `sbatch.KEY` sets any other option of sbatch."""
_GENERIC = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")
"""Keys that submitit has without `slurm_`."""
_SBATCH = "sbatch."
_SIGNAL = "SUBMITIT_PREEMPT_SIGNAL"
_SLOTS = 100
_TIMEOUT_MIN = 60
"""Default time limit: a short job is scheduled sooner, and one that needs longer is requeued."""
_SIGNAL_DELAY_S = 120
"""Time between the signal and a job's time limit, in which the run saves."""
_MAX_REQUEUES = 1000
"""submitit's own limit is 3, which would end long runs."""
_LOOK_EVERY_S = {"slurm": 1.0, "local": 0.05}
_ASK_EVERY_S = 10.0
"""Interval between calls of squeue, which loads the cluster's shared controller."""
_SUBMIT_AGAIN_S = 30.0
_SUBMIT_TRIES = 20
_COMMAND_S = 60.0


class SlurmExecutor:
    """Jobs of a SLURM cluster.

    Args:
        folder: where submitit keeps its files; all nodes must see it.
        slots: jobs at once, waiting ones included; 100 by default.
        options: KEY=VALUE as given to --slurm.
        cluster: `local` starts processes on this machine in the same way, for tests.

    Raises:
        ConfigError: if submitit or SLURM is missing, or an option is not one.
    """

    def __init__(
        self, folder: Path, *, slots: int | None = None, options: Sequence[str] = (), cluster: Literal["slurm", "local"] = "slurm"
    ) -> None:
        if slots is not None and slots < 1:
            raise ConfigError(f"--jobs {slots}: expected at least 1")
        self._options = parse_options(options)
        try:
            import submitit
        except ImportError:
            raise ConfigError("--executor slurm needs submitit, which is not installed: pip install 'rlx[slurm]'") from None
        if cluster == "slurm":
            for command in ("sbatch", "srun"):
                if shutil.which(command) is None:
                    raise ConfigError(
                        f"--executor slurm: {command} was not found on this machine; log in to a SLURM submit node, or use --executor local"
                    )
        if _preemption_signal() is None:
            raise ConfigError(
                f"SUBMITIT_PREEMPT_SIGNAL={os.environ[_SIGNAL]}: expected USR2, as without it; runs use others for other things"
            )
        logging.getLogger("submitit").setLevel(logging.ERROR)
        self.slots = slots or _SLOTS
        where = f"the SLURM partition {self._options['partition']}" if "partition" in self._options else "SLURM"
        self.description = f"{self.slots} job{'s' if self.slots > 1 else ''} on {where}"
        if folder.is_symlink():
            raise ConfigError(f"{folder} is a link, which rlx does not follow in a sweep: remove it")
        self._name = folder.absolute().parent.name
        self._folder = folder.absolute() / secrets.token_hex(6)  # results are pickles: the folder must be new
        self._submitit, self._cluster = submitit, cluster
        self._new: list[Job] = []
        self._open: dict[Job, Any] = {}
        self._ended: list[tuple[Job, Result]] = []
        self._to_stop: list[Job] = []
        self._to_kill: list[Job] = []
        self._stopped: set[Job] = set()
        self._killed: set[Job] = set()
        self._missing: set[Job] = set()
        self._states: dict[str, str] = {}
        self._looked = self._asked = self._refused = float("-inf")
        self._refusals = 0
        self._accepted = False

    def start(self, job: Job) -> None:
        self._new.append(job)

    def wait(self, timeout_s: float) -> list[tuple[Job, Result]]:
        deadline = time.monotonic() + timeout_s
        self._submit()
        self._cancel()
        while True:
            now = time.monotonic()
            if now - self._looked >= _LOOK_EVERY_S[self._cluster]:
                self._looked = now
                self._look()
            if self._ended or now >= deadline:
                ended, self._ended = self._ended, []
                return ended
            time.sleep(min(0.02, max(0.0, deadline - now)))

    def stop(self, job: Job) -> None:
        if job in self._new:
            self._new.remove(job)
            self._ended.append((job, Result(status="stopped", exit_code=130)))
        elif job in self._open and job not in self._stopped:  # a second signal would end the run without saving
            self._stopped.add(job)
            self._to_stop.append(job)

    def kill(self, job: Job) -> None:
        if job in self._new:
            self._new.remove(job)
            self._ended.append((job, Result(status="lost", error="it was not submitted yet")))
        elif job in self._open:
            self._killed.add(job)
            self._to_kill.append(job)

    def close(self) -> None:
        self._new.clear()
        for job in self._open:
            self.kill(job)
        self._cancel()
        self._ended.clear()
        if self._cluster == "local":
            while self._gone() != set(self._open):
                time.sleep(0.02)
        self._open.clear()

    def waiting(self, job: Job) -> bool:
        """Whether an open job is queued, for the first time or again."""
        handle = self._open.get(job)
        return handle is None or self._states.get(handle.job_id) in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD")

    # Submitting

    def _submit(self) -> None:
        """Hand the new jobs to sbatch, one array for each kind of machine that they need.

        Raises:
            ConfigError: if sbatch refuses the jobs: at once if it never accepted one, else after minutes, since a limit may clear.
        """
        refused = self._submitit.core.utils
        if time.monotonic() - self._refused < _SUBMIT_AGAIN_S:
            return
        while self._new:
            first = self._new[0]
            alike = [job for job in self._new if (job.cores, job.gpus) == (first.cores, first.gpus)]
            try:
                handles = self._executor(first).submit_array([Task(job) for job in alike])
            except (refused.FailedJobError, refused.FailedSubmissionError) as error:
                self._refusals += 1
                self._refused = time.monotonic()
                if self._accepted and self._refusals < _SUBMIT_TRIES:
                    return
                for job in list(self._new):
                    self.stop(job)
                said = " ".join(str(error).split()) or "no reason given"
                raise ConfigError(f"--executor slurm: sbatch refused the jobs: {said}; say what it lacks with --slurm KEY=VALUE") from error
            self._accepted, self._refusals = True, 0
            self._new = [job for job in self._new if job not in alike]
            self._open |= dict(zip(alike, handles, strict=True))
            self._asked = time.monotonic()  # a job takes a moment to show up in the queue

    def _executor(self, job: Job) -> Any:
        """Submitit's executor for jobs like this one; made late, because it makes its folder."""
        limits = {f"{self._cluster}_max_num_timeout": _MAX_REQUEUES}
        executor = self._submitit.AutoExecutor(folder=self._folder, cluster=self._cluster, **limits)
        executor.update_parameters(**self.parameters(job))
        return executor

    def parameters(self, job: Job) -> dict[str, Any]:
        """Submitit's parameters for a job's cores, GPU and time."""
        given = dict(self._options)
        more = {"requeue": True, **given.pop(_SBATCH, {})}
        chosen: dict[str, Any] = {"timeout_min": _TIMEOUT_MIN, "cpus_per_task": job.cores, "signal_delay_s": _SIGNAL_DELAY_S, **given}
        if job.gpus and not {"gpus_per_node", "gres"} & given.keys():
            chosen["gpus_per_node"] = job.gpus
        cores = chosen["cpus_per_task"]
        slurm = {f"slurm_{key}": value for key, value in chosen.items() if key not in _GENERIC}
        return {
            **{key: value for key, value in chosen.items() if key in _GENERIC},
            "name": f"rlx-{self._name}",
            "stderr_to_stdout": True,
            **slurm,
            "slurm_array_parallelism": self.slots,
            "slurm_srun_args": [f"--cpus-per-task={cores}"],  # since SLURM 22.05 srun does not take it over from sbatch
            "slurm_additional_parameters": more,
        }

    # Ending

    def _cancel(self) -> None:
        stop, self._to_stop = [self._open[j] for j in self._to_stop if j in self._open], []
        kill, self._to_kill = [j for j in self._to_kill if j in self._open], []
        if self._cluster == "local":
            for handle in stop:
                os.kill(int(handle.job_id), signal.SIGTERM)
            for job in kill:
                self._open[job].cancel()
            return
        if stop:
            ids = [handle.job_id for handle in stop]
            _run("scancel", "--state=PENDING", *ids)
            _run("scancel", "--signal=INT", *ids)  # plain scancel would give a run KillWait, 30 s, to save
        if kill:
            ids = [self._open[job].job_id for job in kill]
            _run("scancel", "--signal=KILL", *ids)
            _run("scancel", *ids)
            for job in kill:
                self._end(job, Result(status="lost"))  # SLURM may never report it

    def _look(self) -> None:
        """Find out which jobs have ended."""
        if not self._open:
            return
        gone = self._gone()  # before results are looked for: a job that ends in between has left one
        results = set(os.listdir(self._folder))  # opening a directory is what refreshes it on a network file system
        for job, handle in list(self._open.items()):
            if handle.paths.result_pickle.name in results:
                self._end(job, self._result(handle))
            elif job in gone:
                stopped = job in self._stopped
                self._end(job, Result(status="stopped", exit_code=130) if stopped else Result(status="lost", error=self._cause(handle)))

    def _end(self, job: Job, result: Result) -> None:
        del self._open[job]
        if job in self._killed:
            result = Result(status="lost", error="the sweep cancelled it")
        for those in (self._stopped, self._killed, self._missing):
            those.discard(job)
        self._ended.append((job, result))

    def _gone(self) -> set[Job]:
        """Jobs that neither run nor wait any more."""
        if self._cluster == "local":
            return {job for job, handle in self._open.items() if handle.done()}
        patience = 2.0 if self._stopped else _ASK_EVERY_S
        if time.monotonic() - self._asked < patience:
            return set()
        self._asked = time.monotonic()
        answer = _run("squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i %T")
        if answer is None:
            return set()
        self._states = {words[0]: words[1] for line in answer.splitlines() if len(words := line.split()) >= 2}
        missing = {job for job, handle in self._open.items() if handle.job_id not in self._states}
        gone, self._missing = missing & self._missing, missing  # missing twice in a row: a result may appear late
        return gone

    def _result(self, handle: Any) -> Result:
        try:
            result = handle.result()
        except Exception as error:  # the job may have raised anything; keep it as text
            trace = str(error).split("-" * 22)
            last = [line for line in (trace[1] if len(trace) > 2 else str(error)).splitlines() if line.strip()]
            return Result(status="failed", error=last[-1].strip() if last else type(error).__name__, exit_code=1)
        return result if isinstance(result, Result) else Result(status="failed", error=f"it returned {result!r}", exit_code=1)

    def _cause(self, handle: Any) -> str:
        """Why a job ended without a result, by SLURM's state."""
        state = str(handle.get_info(mode="force").get("State", "")) if self._cluster == "slurm" else ""
        ended = f"ended as {state}" if state else "ended without a result"
        log = f"; see {handle.paths.stdout}" if handle.paths.stdout.exists() else ""
        return f"its job {handle.job_id} {ended}{log}"


class Task:
    """The function of a cluster job: train its run; on preemption, save and requeue."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self) -> Result:
        from rlx.sweep.executors.worker import work

        _output_to(Path(self.job.run))
        number = _preemption_signal()
        assert number is not None
        requeue = signal.getsignal(number)  # submitit's, which ends this process
        preempted = False

        def preempt(received: int, frame: FrameType | None) -> None:
            nonlocal preempted
            training = _training()
            if training is not None:
                preempted = True
                training.request_stop()
            elif callable(requeue):
                requeue(received, frame)  # there is nothing to save

        def leave(received: int, frame: FrameType | None) -> None:
            raise _Leave

        signal.signal(number, preempt)
        signal.signal(signal.SIGTERM, leave)  # until training begins; submitit's handler ignores it
        try:
            result = work(self.job)
        except _Leave:
            return Result(status="stopped", exit_code=128 + signal.SIGTERM)
        for each in (number, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        if preempted and callable(requeue) and result.status in ("paused", "stopped") and not self._paused_where_it_should():
            try:
                requeue(number, None)
            except Exception as error:
                return Result(status="lost", error=f"it was preempted and could not be requeued: {error}")
        return result

    def checkpoint(self) -> Any:
        """The same task for the requeued job: the run resumes from its checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _paused_where_it_should(self) -> bool:
        return any(self.job.should_pause(line["env_steps"], line) for line in RunDir(Path(self.job.run)).metrics())


class _Leave(BaseException):
    """SIGTERM came while there was nothing to save."""


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE words of --slurm, typed; `sbatch.KEY` ones in a dictionary of their own, `setup` a list of shell lines.

    Raises:
        ConfigError: for a key that is unknown or a value of the wrong type.
    """
    from rlx.config.choices import did_you_mean

    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or (not value and not key.startswith(_SBATCH)):
            raise ConfigError(f"--slurm {word}: expected KEY=VALUE, as in --slurm partition=gpu --slurm timeout_min=60")
        if key.startswith(_SBATCH):
            options.setdefault(_SBATCH, {})[key.removeprefix(_SBATCH)] = value or True
            continue
        if key not in _TYPES:
            raise ConfigError(f"--slurm {word}: {did_you_mean(key, list(_TYPES))}; sbatch.{key}=… passes any option on to sbatch")
        if key == "setup":
            options.setdefault(key, []).append(value)
            continue
        if key in options:
            raise ConfigError(f"--slurm {word}: {key} is given twice")
        options[key] = _typed(word, _TYPES[key], value)
    return options


def _typed(word: str, kind: type, value: str) -> Any:
    if kind is str:
        return value
    try:
        number = kind(value)
    except ValueError:
        number = -1
    if not 0 < number < float("inf") and not (number == 0 and word.startswith("gpus")):
        raise ConfigError(f"--slurm {word}: expected a {'whole ' if kind is int else ''}number greater than 0")
    return number


def _preemption_signal() -> signal.Signals | None:
    """The signal that submitit has SLURM send before the end of a job; None if runs use it for something else."""
    number = getattr(signal, f"SIG{os.environ.get(_SIGNAL, 'USR2')}", None)
    return number if number not in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1) else None


def _training() -> SignalHandler | None:
    """The handler of the run that this process trains at the moment."""
    owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return owner if isinstance(owner, SignalHandler) else None


def _output_to(run: Path) -> None:
    if run.is_dir():
        log = open_log(run)
        os.dup2(log, 1)
        os.dup2(log, 2)


def _run(*command: str) -> str | None:
    """The output of a command of SLURM; None if it failed, as it does while the controller is busy."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
