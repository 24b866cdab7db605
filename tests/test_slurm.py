"""Sweeps on SLURM: options, what is submitted (to stand-ins for sbatch and its kin), and jobs that run, in submitit's local cluster."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("submitit", reason="submitit is not installed: pip install 'rlx[slurm]'")

from launch import SETTINGS, TIMEOUT_S, drain, finish, lines, new_job, start, wait_for

from rlx.config.compose import Composer
from rlx.errors import ConfigError
from rlx.run import train
from rlx.signals import SignalHandler
from rlx.store.runs import RunDir, new_meta
from rlx.sweep.executors import slurm
from rlx.sweep.executors.executor import Job, Result
from rlx.sweep.executors.slurm import SlurmExecutor, Task, parse_options
from rlx.track.console import QuietConsole

# Options


def test_options_have_types() -> None:
    words = ["partition=gpu", "timeout_min=90", "mem_gb=7.5", "gpus_per_node=0", "setup=module load cuda", "setup=ulimit -c 0",
             "sbatch.reservation=us", "sbatch.exclusive="]  # fmt: skip
    assert parse_options(words) == {
        "partition": "gpu", "timeout_min": 90, "mem_gb": 7.5, "gpus_per_node": 0, "setup": ["module load cuda", "ulimit -c 0"],
        "sbatch.": {"reservation": "us", "exclusive": True},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("partion=gpu", r"did you mean partition\?.*sbatch\.partion"),
        ("zzz=1", r"expected one of partition, account"),
        ("timeout_min=1.5", "expected a whole number greater than 0"),
        ("timeout_min=0", "expected a whole number greater than 0"),
        ("mem_gb=lots", "expected a number greater than 0"),
        ("mem_gb=nan", "expected a number greater than 0"),
        ("gpus_per_node=-1", "expected a whole number"),
        ("partition", "expected KEY=VALUE"),
        ("partition=", "expected KEY=VALUE"),
        ("=gpu", "expected KEY=VALUE"),
    ],
)
def test_an_option_that_cannot_be_is_refused_with_advice(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"--slurm {word}: .*{said}" if "=" in word[1:] else said):
        parse_options([word])


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="qos is given twice"):
        parse_options(["qos=a", "qos=b"])


def test_without_submitit_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install 'rlx\[slurm\]'"):
        SlurmExecutor(tmp_path / "s")


def test_a_machine_without_slurm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="sbatch was not found on this machine; log in to a SLURM submit node, or use --executor local"):
        SlurmExecutor(tmp_path / "s")


def test_a_preemption_signal_that_runs_use_themselves_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")
    with pytest.raises(ConfigError, match="SUBMITIT_PREEMPT_SIGNAL=USR1: expected USR2"):
        SlurmExecutor(tmp_path / "s", cluster="local")


# What is submitted

FAKES = {
    "srun": "",
    "scontrol": "",
    "sbatch": 'if [ -e refuse ]; then echo "sbatch: error: invalid partition specified: gpv" >&2; exit 1; fi\n'
    'cp "$1" sbatch.$(( $(ls sbatch.* 2>/dev/null | wc -l) + 7 )); echo "Submitted batch job $(( $(ls sbatch.* | wc -l) + 6 ))"',
    "squeue": "cat queue",
    "sacct": 'printf "JobID|State|NodeList\\n7_0|OUT_OF_MEMORY|n1\\n7_1|COMPLETED|n1\\n"',
    "scancel": 'echo "$@" >> cancelled',
}


def stand_in(scripts: dict[str, str], head: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put scripts where the commands of SLURM are looked for."""
    commands = here / "commands"
    commands.mkdir()
    for name, script in scripts.items():
        (commands / name).write_text(f"{head}\n{script}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")


@pytest.fixture
def fake(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SlurmExecutor]:
    """A SLURM of shell scripts: jobs 7, 8, …; what squeue says is in the file `queue`, what scancel was told in `cancelled`."""
    stand_in(FAKES, "#!/bin/sh", here, monkeypatch)
    monkeypatch.setattr(slurm, "_LOOK_EVERY_S", {"slurm": 0.0})
    monkeypatch.setattr(slurm, "_ASK_EVERY_S", 0.0)
    (here / "queue").write_text("")
    return lambda **settings: SlurmExecutor(here / "runs" / "w" / ".submitit", **settings)


def flags(script: Path) -> dict[str, str]:
    """The options in a script for sbatch."""
    words = [line.split("--", 1)[1] for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    return {key: value.strip("'") for key, _, value in (word.partition("=") for word in words)}


def test_jobs_that_start_together_are_one_array(fake: Callable[..., SlurmExecutor], here: Path) -> None:
    executor = fake(slots=3, options=["partition=cpu", "account=us", "mem_gb=4", "setup=module load x", "sbatch.reservation=r"])
    assert not (here / "runs").exists(), "a sweep that cannot begin leaves nothing behind"
    for i in range(3):
        executor.start(Job(run=str(here / f"r{i}"), cores=2))
    executor.wait(0.0)
    assert [p.name for p in here.glob("sbatch.*")] == ["sbatch.7"]
    said = flags(here / "sbatch.7")
    expected = {"array": "0-2%3", "partition": "cpu", "account": "us", "mem": "4GB", "cpus-per-task": "2", "time": "60", "requeue": "",
                "reservation": "r", "signal": "USR2@120", "open-mode": "append", "job-name": "rlx-w"}  # fmt: skip
    assert {key: said.get(key) for key in expected} == expected
    assert "gpus-per-node" not in said
    text = (here / "sbatch.7").read_text()
    assert "\nmodule load x\n" in text
    assert "--cpus-per-task=2 " in text.split("srun")[1]
    assert executor.description == "3 jobs on the SLURM partition cpu"


def test_jobs_that_need_other_machines_are_other_arrays(fake: Callable[..., SlurmExecutor], here: Path) -> None:
    executor = fake()
    for i, (cores, gpus) in enumerate([(1, 0), (4, 1), (1, 0), (4, 1)]):
        executor.start(Job(run=str(here / f"r{i}"), cores=cores, gpus=gpus))
    executor.wait(0.0)
    said = [flags(p) for p in sorted(here.glob("sbatch.*"))]
    assert [(s["array"], s["cpus-per-task"], s.get("gpus-per-node")) for s in said] == [("0-1%2", "1", None), ("0-1%2", "4", "1")]


def test_a_refusal_of_sbatch_is_told_in_its_own_words(fake: Callable[..., SlurmExecutor], here: Path) -> None:
    (here / "refuse").touch()
    executor, job = fake(options=["partition=gpv"]), Job(run=str(here / "r"))
    executor.start(job)
    with pytest.raises(ConfigError, match=r"sbatch refused the jobs: .*invalid partition specified: gpv; .*--slurm KEY=VALUE"):
        executor.wait(0.0)
    assert [(j, r.status) for j, r in executor.wait(0.0)] == [(job, "stopped")]


def test_a_refusal_after_jobs_were_taken_is_waited_out(
    fake: Callable[..., SlurmExecutor], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "_SUBMIT_AGAIN_S", 0.0)
    monkeypatch.setattr(slurm, "_SUBMIT_TRIES", 3)
    executor = fake()
    executor.start(Job(run=str(here / "a")))
    (here / "queue").write_text("7 RUNNING\n8 PENDING\n")
    assert executor.wait(0.0) == []
    (here / "refuse").touch()
    second = Job(run=str(here / "b"))
    executor.start(second)
    assert executor.wait(0.0) == executor.wait(0.0) == []
    (here / "refuse").unlink()
    assert executor.wait(0.0) == []
    assert sorted(p.name for p in here.glob("sbatch.*")) == ["sbatch.7", "sbatch.8"]
    (here / "refuse").touch()
    executor.start(Job(run=str(here / "c")))
    assert executor.wait(0.0) == executor.wait(0.0) == []
    with pytest.raises(ConfigError, match="sbatch refused"):
        executor.wait(0.0)


def test_a_job_that_waits_in_the_queue_is_told_from_one_that_hangs(fake: Callable[..., SlurmExecutor], here: Path) -> None:
    executor, first, second = fake(), Job(run=str(here / "a")), Job(run=str(here / "b"))
    executor.start(first)
    executor.start(second)
    assert executor.waiting(first)
    (here / "queue").write_text("7_0 RUNNING\n7_1 PENDING\n99 RUNNING\n")
    executor.wait(0.0)
    assert (executor.waiting(first), executor.waiting(second)) == (False, True)


def test_a_job_that_left_the_queue_without_a_result_is_lost_and_slurm_says_why(fake: Callable[..., SlurmExecutor], here: Path) -> None:
    executor, first, second = fake(), Job(run=str(here / "a")), Job(run=str(here / "b"))
    executor.start(first)
    executor.start(second)
    (here / "queue").write_text("7_1 RUNNING\n")
    assert executor.wait(0.0) == [], "missing once may be a result that is not seen yet"
    [(job, result)] = executor.wait(0.0)
    assert (job, result.status, result.error) == (first, "lost", "its job 7_0 ended as OUT_OF_MEMORY")


def test_stopping_takes_what_waits_out_of_the_queue_and_interrupts_what_runs(fake: Callable[..., SlurmExecutor], here: Path) -> None:
    executor, first, late = fake(), Job(run=str(here / "a")), Job(run=str(here / "late"))
    executor.start(first)
    (here / "queue").write_text("7 RUNNING\n")
    executor.wait(0.0)
    executor.start(late)
    for _ in range(2):
        executor.stop(first)
        executor.stop(late)
    assert [(j.name, r.status) for j, r in executor.wait(0.0)] == [("late", "stopped")]
    assert (here / "cancelled").read_text().splitlines() == ["--state=PENDING 7", "--signal=INT 7"]
    (here / "queue").write_text("")
    executor._asked = float("-inf")
    executor.wait(0.0)
    executor._asked = float("-inf")
    assert [(j.name, r.status) for j, r in executor.wait(0.0)] == [("a", "stopped")]


def test_killing_cancels_and_does_not_wait_for_slurm(fake: Callable[..., SlurmExecutor], here: Path) -> None:
    executor, job, other = fake(), Job(run=str(here / "a")), Job(run=str(here / "b"))
    executor.start(job)
    executor.start(other)
    (here / "queue").write_text("7_0 RUNNING\n7_1 RUNNING\n")
    executor.wait(0.0)
    executor.kill(job)
    assert [(j, r.status, r.error) for j, r in executor.wait(0.0)] == [(job, "lost", "the sweep cancelled it")]
    executor.close()
    assert (here / "cancelled").read_text().splitlines() == ["--signal=KILL 7_0", "7_0", "--signal=KILL 7_1", "7_1"]


# Jobs that run


@pytest.fixture
def local(here: Path) -> Iterator[SlurmExecutor]:
    executor = SlurmExecutor(here / "runs" / "w" / ".submitit", slots=2, cluster="local")
    yield executor
    executor.close()


def training(job: Job) -> bool:
    return len(RunDir(Path(job.run)).metrics()) >= 4


def until(condition: Callable[[], bool], executor: SlurmExecutor) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        assert executor.wait(0.02) == []


@pytest.mark.slow
def test_jobs_finish_and_say_what_they_say_in_their_directories(here: Path, local: SlurmExecutor) -> None:
    jobs = [new_job(here / "runs", f"r{i}", "loop.total_env_steps=6000") for i in range(2)]
    for job in jobs:
        local.start(job)
    assert sorted((j.name, r.status) for j, r in drain(local, 2)) == [("r0", "finished"), ("r1", "finished")]
    assert all("Job completed successfully" in (Path(j.run) / "log.txt").read_text() for j in jobs)
    local.start(jobs[0])  # a run that is finished already, as after a requeue that came too late
    assert [r.status for _, r in drain(local)] == ["finished"]


@pytest.mark.slow
def test_a_run_that_fails_is_failed_and_a_bug_is_told_by_its_last_line(here: Path, local: SlurmExecutor) -> None:
    broken, bug = (new_job(here / "runs", name) for name in ("broken", "bug"))
    (Path(broken.run) / "config.yaml").write_text("algo: [")
    (Path(bug.run) / "log.txt").mkdir()
    for job in (broken, bug):
        local.start(job)
    results = dict(drain(local, 2))
    assert {r.status for r in results.values()} == {"failed"}
    assert str(results[bug].error).startswith("IsADirectoryError: ")


@pytest.mark.slow
def test_a_job_whose_process_dies_is_lost_and_one_that_is_killed_too(here: Path, local: SlurmExecutor) -> None:
    died, killed = (new_job(here / "runs", name, "loop.total_env_steps=100_000_000") for name in ("died", "killed"))
    for job in (died, killed):
        local.start(job)
    until(lambda: training(died) and training(killed), local)
    os.kill(RunDir(Path(died.run)).segments[-1]["pid"], signal.SIGKILL)
    local.kill(killed)
    results = dict(drain(local, 2))
    assert {job.name: r.status for job, r in results.items()} == {"died": "lost", "killed": "lost"}
    assert "ended without a result" in str(results[died].error)
    assert RunDir(Path(died.run)).status == "killed"


@pytest.mark.slow
def test_a_run_that_is_stopped_saves(here: Path, local: SlurmExecutor) -> None:
    job, late = (new_job(here / "runs", name, "loop.total_env_steps=100_000_000") for name in ("job", "late"))
    local.start(job)
    until(lambda: training(job), local)
    local.start(late)
    local.stop(late)
    local.stop(job)
    local.stop(job)
    assert [(j.name, r.status) for j, r in drain(local, 2)] == [("late", "stopped"), ("job", "stopped")]
    run = RunDir(Path(job.run))
    assert run.status == "stopped"
    assert run.segments[-1]["env_steps"] >= run.metrics()[-1]["env_steps"]


@pytest.mark.slow
def test_a_preempted_job_saves_is_requeued_and_its_run_ends_as_if_nothing_had_been(here: Path, local: SlurmExecutor) -> None:
    words = ["loop.total_env_steps=250_000"]
    job = new_job(here / "runs", "r", *words)
    local.start(job)
    until(lambda: training(job), local)
    run = RunDir(Path(job.run))
    for number in (signal.SIGUSR2, signal.SIGTERM):  # some clusters send both; the second must not end the run unsaved
        os.kill(run.segments[-1]["pid"], number)
    assert [(j, r.status) for j, r in drain(local)] == [(job, "finished")]
    first, second = run.segments
    assert (first["status"] in ("paused", "stopped"), second["status"]) == (True, "finished")
    assert first["pid"] != second["pid"]
    saved = first["env_steps"]
    assert saved % 256 == 0
    composed = Composer().compose([*SETTINGS, *words])
    alone = RunDir.create(here / "alone", "r", composed.config, new_meta(composed))
    train(alone, composed.config, overrides=[], console=QuietConsole())
    assert lines(alone) == lines(run)
    assert "preempted" in (run.path / "log.txt").read_text() or "timed-out" in (run.path / "log.txt").read_text()


@pytest.mark.slow
def test_a_preempted_job_of_two_ranks_saves_is_requeued_and_ends_as_if_nothing_had_been(here: Path, local: SlurmExecutor) -> None:
    words = ["loop.total_env_steps=60_000"]
    job, alone = (new_job(here / "runs", name, *words, ranks=2, cores=2) for name in ("r", "alone"))
    local.start(job)
    until(lambda: training(job), local)
    run = RunDir(Path(job.run))
    os.kill(run.segments[-1]["pid"], signal.SIGUSR2)
    assert [(j, r.status) for j, r in drain(local)] == [(job, "finished")]
    assert [(s["ranks"], s["status"]) for s in run.segments] == [(2, "paused"), (2, "finished")]
    local.start(alone)
    assert [r.status for _, r in drain(local)] == ["finished"]
    assert lines(RunDir(Path(alone.run))) == lines(run)


# The whole command, on a SLURM of shell scripts that runs what it is given

RUNS = {
    "sbatch": 'id=$(( $(ls job.* 2>/dev/null | wc -l) + 7 )); cp "$1" job.$id\n'
    'last=$(sed -n "s/^#SBATCH --array=\'*0-\\([0-9]*\\)%.*/\\1/p" $1)\n'
    'if [ -z "$last" ]; then SLURM_JOB_ID=$id setsid node $id job.$id >node.log 2>&1 &\n'
    "else for i in $(seq 0 $last); do SLURM_JOB_ID=1$id$i SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=$i "
    "setsid node ${id}_$i job.$id >node.log 2>&1 & done; fi\n"
    'echo "Submitted batch job $id"',
    "node": "touch task.$1; while :; do NAME=$1 bash $2; if [ -e requeue.$1 ]; then rm requeue.$1; else break; fi; done; rm task.$1",
    "srun": 'while :; do case "$1" in --output) shift 2;; --*) shift;; *) break;; esac; done; echo $$ > pid.$NAME; exec "$@" >/dev/null',
    "scontrol": '[ "$1" = requeue ] && touch requeue.$2',
    "squeue": 'for t in task.*; do echo "${t#task.} RUNNING"; done',
    "scancel": 'case "$1" in --signal=*) n=${1#--signal=}; shift; for j in "$@"; do kill -$n $(cat pid.$j); done;; esac',
    "sacct": "exit 1",
}


@pytest.mark.slow
def test_a_sweep_goes_through_preemption_and_a_stop_and_ends_as_if_nothing_had_been(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(RUNS, f"#!/bin/bash\ncd {here}", here, monkeypatch)
    words = [*SETTINGS, "loop.total_env_steps=400_000"]
    command = ["sweep", *words, "--seeds", "2", "--name", "w", "--executor", "slurm", "--slurm", "partition=cpu"]
    runs = [RunDir(here / "runs" / "w" / f"000-s{seed}") for seed in range(2)]

    process = start(*command, cwd=here)
    wait_for(lambda: all(len(run.metrics()) >= 4 for run in runs), process)
    os.kill(runs[0].segments[-1]["pid"], signal.SIGUSR2)
    wait_for(lambda: len(runs[0].segments) == 2 and runs[0].is_locked(), process)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130, (out, err)
    assert [[s["status"] for s in run.segments] for run in runs] == [["paused", "stopped"], ["stopped"]]
    assert [p.name for p in here.glob("job.*")] == ["job.7"], "one array, requeued under its own number"

    code, out, err = finish(start(*command, cwd=here))
    assert code == 0, (out, err)
    for seed, run in enumerate(runs):
        assert run.segments[-1]["status"] == "finished"
        composed = Composer().compose([*words, f"seed={seed}"])
        alone = RunDir.create(here / "alone", run.name, composed.config, new_meta(composed))
        train(alone, composed.config, overrides=[], console=QuietConsole())
        assert lines(alone) == lines(run)


# A job that is told to leave, without the processes


@pytest.fixture
def signals() -> Iterator[list[int]]:
    """Records what would requeue this job; every handler is put back."""
    numbers = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
    before = {n: signal.getsignal(n) for n in numbers}
    requeued: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, frame: requeued.append(number))
    yield requeued
    for number, handler in before.items():
        signal.signal(number, handler)


def do(monkeypatch: pytest.MonkeyPatch, function: Callable[[Job], Result], job: Job) -> Result:
    """What the task of a job returns if working on it is `function`."""
    monkeypatch.setattr("rlx.sweep.executors.worker.work", function)
    return Task(job)()


def test_preemption_while_nothing_is_trained_requeues_at_once(monkeypatch: pytest.MonkeyPatch, signals: list[int], tmp_path: Path) -> None:
    def work(job: Job) -> Result:
        signal.raise_signal(signal.SIGUSR2)
        assert signals == [signal.SIGUSR2]
        return Result(status="finished")

    assert do(monkeypatch, work, Job(run=str(tmp_path / "r"))).status == "finished"
    assert signals == [signal.SIGUSR2]


@pytest.mark.parametrize("order", [(signal.SIGUSR2,), (signal.SIGUSR2, signal.SIGTERM), (signal.SIGTERM, signal.SIGUSR2)])
def test_preemption_while_training_requeues_after_the_run_has_saved(
    order: tuple[signal.Signals, ...], monkeypatch: pytest.MonkeyPatch, signals: list[int], tmp_path: Path
) -> None:
    def work(job: Job) -> Result:
        with SignalHandler() as handler:
            for number in order:
                signal.raise_signal(number)
            assert handler.should_stop()
            assert signals == []
        return Result(status="stopped" if handler.stopped_by else "paused")

    do(monkeypatch, work, Job(run=str(tmp_path / "r")))
    assert signals == [signal.SIGUSR2]


def test_a_run_that_was_only_terminated_is_not_requeued(monkeypatch: pytest.MonkeyPatch, signals: list[int], tmp_path: Path) -> None:
    def work(job: Job) -> Result:
        with SignalHandler() as handler:
            signal.raise_signal(signal.SIGTERM)
        return Result(status="stopped", exit_code=128 + (handler.stopped_by or 0))

    assert do(monkeypatch, work, Job(run=str(tmp_path / "r"))) == Result(status="stopped", exit_code=143)
    assert signals == []


def test_sigterm_before_training_ends_the_job(monkeypatch: pytest.MonkeyPatch, signals: list[int], tmp_path: Path) -> None:
    def work(job: Job) -> Result:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it went on")

    assert do(monkeypatch, work, Job(run=str(tmp_path / "r"))) == Result(status="stopped", exit_code=143)


@pytest.mark.parametrize(("reached", "requeued"), [(500, True), (1000, False)])
def test_a_run_that_was_due_to_pause_when_it_was_preempted_has_paused(
    reached: int, requeued: bool, monkeypatch: pytest.MonkeyPatch, signals: list[int], here: Path
) -> None:
    job = new_job(here, "r", pause_at=1000, pause_metric="eval/return_mean")
    line = f'{{"env_steps": {reached}, "iteration": 1, "eval/return_mean": 1.0}}\n'

    def work(job: Job) -> Result:
        with SignalHandler():
            signal.raise_signal(signal.SIGUSR2)
        RunDir(Path(job.run)).metrics_path.write_text(line)
        return Result(status="paused")

    do(monkeypatch, work, job)
    assert bool(signals) == requeued


def test_a_requeue_that_slurm_refuses_loses_the_job_instead_of_failing_it(
    monkeypatch: pytest.MonkeyPatch, signals: list[int], tmp_path: Path
) -> None:
    def refuse(number: int, frame: object) -> None:
        raise OSError("scontrol: disabled")

    def work(job: Job) -> Result:
        with SignalHandler():
            signal.raise_signal(signal.SIGUSR2)
        return Result(status="paused")

    signal.signal(signal.SIGUSR2, refuse)
    result = do(monkeypatch, work, Job(run=str(tmp_path / "r")))
    assert (result.status, result.error) == ("lost", "it was preempted and could not be requeued: scontrol: disabled")


def test_a_requeued_task_is_the_same_task(tmp_path: Path) -> None:
    task = Task(Job(run=str(tmp_path)))
    again = task.checkpoint()
    assert (again.function, again.args, again.kwargs) == (task, (), {})
