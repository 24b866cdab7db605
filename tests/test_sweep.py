"""A sweep from the shell: every run as if trained alone, nothing lost or trained twice, whatever dies."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launch import SETTINGS, finish, left_over, lines, new_job, run_main, start, wait_for

from rlx.checkpoint import find_checkpoints
from rlx.config.override_types import read_overrides
from rlx.errors import ConfigError
from rlx.store.runs import RunDir
from rlx.store.sweep_spec import Search, Spec
from rlx.store.sweeps import SweepDir
from rlx.sweep.executors import local
from rlx.sweep.executors.choose import job_maker
from rlx.sweep.executors.executor import Job, Result
from rlx.sweep.executors.local import LocalExecutor
from rlx.sweep.launch import make_plan
from rlx.sweep.prepare import prepare

Command = Callable[[str], tuple[int, str, str]]

SHORT = (
    "loop.total_env_steps=6000 loop.log_every=1000 loop.eval_every=3000 loop.eval_episodes=3 loop.checkpoint_every=2000 log.wandb=disabled"
)
SMALL = f"algo=ppo env=cartpole recipe=null {SHORT}"
LONGER = SMALL.replace("=6000", "=30_000")

TROUBLE = '''
import os, signal, time
from pathlib import Path
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Trouble(CartPoleEnv):
    """CartPole that does something bad, once, after some steps, where a file says so."""
    steps = 0
    def step(self, action):
        Trouble.steps += 1
        what = Path("trouble")
        if Trouble.steps == 700 and what.exists():
            kind = what.read_text()
            if kind.startswith("once "):
                what.unlink()
            if "kill" in kind:
                os.kill(os.getpid(), signal.SIGKILL)
            if "hang" in kind:
                time.sleep(1000)
            if "raise" in kind:
                raise RuntimeError("the pole is gone")
        return super().step(action)

gymnasium.register("Trouble-v0", Trouble, max_episode_steps=500)
'''


def sweep_of(here: Path, name: str) -> SweepDir:
    return SweepDir.open(here / "runs", name)


def records(sweep: SweepDir) -> dict[str, list[dict[str, Any]]]:
    return {run.name: lines(run) for run in sweep.runs()}


def starts(sweep: SweepDir) -> dict[str, int]:
    """How often each run was started, according to the run itself."""
    return {run.name: len(run.segments) for run in sweep.runs()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A directory with the sweep `lr`, two settings with two seeds, and what the command said."""
    directory, out = tmp_path_factory.mktemp("trained"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(directory)
        patch.delenv("RLX_RUNS_DIR", raising=False)
        assert run_main(f"sweep {SMALL} algo.learning_rate=1e-5,1e-2 --seeds 2 --name lr", patch) == 0
    return directory, out.getvalue()


@pytest.fixture
def swept(trained: tuple[Path, str], here: Path) -> SweepDir:
    """A copy of that sweep in runs/."""
    shutil.copytree(trained[0] / "runs", here / "runs")
    return sweep_of(here, "lr")


@pytest.fixture
def trouble(here: Path) -> str:
    """Words of a sweep over an environment that misbehaves if there is a file `trouble`."""
    (here / "trouble_env.py").write_text(TROUBLE)
    return f"algo=ppo env=trouble_env:Trouble-v0 algo.rollout_length=64 env.num_envs=2 {SHORT.replace('=6000', '=3000')}"


# What is trained


def test_a_sweep_trains_every_value_with_every_seed_as_if_each_were_trained_alone(
    trained: tuple[Path, str], swept: SweepDir, here: Path, run_command: Command
) -> None:
    assert "2 settings × 2 seeds = 4 runs" in trained[1]
    assert "finished: 4 runs" in trained[1]
    assert [run.name for run in swept.runs()] == ["000-s0", "000-s1", "001-s0", "001-s1"]
    assert {run.status for run in swept.runs()} == {"finished"}
    run_command(f"train {SMALL} algo.learning_rate=1e-2 seed=1 --name alone")
    alone = RunDir(here / "runs" / "alone")
    assert lines(alone) == lines(RunDir(swept.path / "001-s1"))
    assert (alone.path / "config.yaml").read_text() == (swept.path / "001-s1" / "config.yaml").read_text()


def test_runs_of_a_sweep_are_ordinary_runs(swept: SweepDir, run_command: Command) -> None:
    assert run_command("show lr/000-s0")[0] == 0
    assert run_command("eval lr/000-s0 --episodes 2")[0] == 0
    code, out, _ = run_command("resume lr/000-s0 loop.total_env_steps=7000 log.console=quiet")
    assert (code, "finished after" in out) == (0, True)
    assert "`rlx show lr/000-s0`" in out
    code, _, err = run_command("resume lr")
    assert (code, "`rlx sweep --resume lr` goes on with all" in err) == (2, True)


def test_groups_are_swept_and_each_run_is_composed_on_its_own(here: Path, run_command: Command) -> None:
    code, out, _ = run_command(f"sweep algo=reinforce,ppo env=cartpole recipe=null algo.clip=0.1,0.3 {SHORT} --seeds 1 --name algos")
    assert (code, "3 settings × 1 seed = 3 runs" in out) == (0, True)
    assert [run.meta()["algo"] for run in sweep_of(here, "algos").runs()] == ["reinforce", "ppo", "ppo"]


def test_train_m_is_a_sweep(here: Path, run_command: Command) -> None:
    code, _, _ = run_command(f"train -m {SMALL} seed=3,5 --name multi")
    assert code == 0
    assert [run.name for run in sweep_of(here, "multi").runs()] == ["000-s3", "000-s5"]


def test_the_same_command_again_finds_its_sweep_and_trains_nothing_twice(here: Path, run_command: Command) -> None:
    command = f"sweep {SMALL} algo.gae_lambda=0.9,0.95 --seeds 1"
    run_command(command)
    (swept,) = list((here / "runs").iterdir())
    code, out, _ = run_command(command)
    assert code == 0
    assert "2 of them done" in out
    assert starts(SweepDir(swept)) == {"000-s0": 1, "001-s0": 1}
    assert "ppo-cartpole-v1-gae_lambda-" in swept.name


def test_more_seeds_extend_a_sweep_and_leave_its_runs_alone(swept: SweepDir, run_command: Command) -> None:
    before = (swept.path / "000-s0/meta.json").read_bytes()
    code, out, _ = run_command("sweep --resume lr --seeds 3")
    assert (code, "6 runs, 4 of them done" in out) == (0, True)
    assert [run.status for run in swept.runs()] == ["finished"] * 6
    assert (swept.path / "000-s0/meta.json").read_bytes() == before


def test_a_dry_run_lists_and_trains_nothing(here: Path, run_command: Command) -> None:
    code, out, _ = run_command(f"sweep {SMALL} algo.learning_rate=1e-3,1e-2 --seeds 2 --dry-run")
    assert code == 0
    assert "learning_rate=0.01" in out
    assert not (here / "runs").exists()


# What dies


def test_a_sweep_killed_at_three_random_moments_and_resumed_equals_one_that_was_not(here: Path, run_command: Command) -> None:
    words = f"{LONGER} algo.learning_rate=1e-3,1e-2 --seeds 2 --jobs 2"
    assert run_command(f"sweep {words} --name whole")[0] == 0
    for _ in range(3):
        process = start("sweep", *words.split(), "--name", "killed", cwd=here)
        wait_for((here / "runs/killed/sweep.json").exists, process)
        time.sleep(random.uniform(0.0, 2.5))
        os.killpg(process.pid, signal.SIGKILL)
        finish(process)
    assert run_command("sweep --resume killed")[0] == 0
    whole, killed = sweep_of(here, "whole"), sweep_of(here, "killed")
    assert records(whole) == records(killed)
    assert {run.status for run in killed.runs()} == {"finished"}
    for run in killed.runs():
        assert sum(segment["status"] == "finished" for segment in run.segments) == 1


def test_ctrl_c_saves_every_run_and_leaves_no_process(here: Path, run_command: Command) -> None:
    words = f"{LONGER.replace('=30_000', '=2_000_000')} --seeds 2 --jobs 2 --name stopped"
    process = start("sweep", *words.split(), cwd=here)
    wait_for(lambda: len(list(here.glob("runs/stopped/*/metrics.jsonl"))) == 2, process)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    code, out, _ = finish(process)
    assert code == 130
    assert "`rlx sweep --resume stopped` goes on" in out
    assert left_over(process) == []
    for run in sweep_of(here, "stopped").runs():
        assert run.status == "stopped"
        assert list(run.checkpoints.iterdir())


def test_runs_save_themselves_if_only_the_sweep_is_killed(here: Path) -> None:
    words = f"{LONGER.replace('=30_000', '=5_000_000')} --seeds 1 --name orphan"
    process = start("sweep", *words.split(), cwd=here)
    wait_for(lambda: list(here.glob("runs/orphan/*/metrics.jsonl")), process)
    time.sleep(0.3)
    process.kill()
    finish(process)
    (run,) = sweep_of(here, "orphan").runs()
    deadline = time.monotonic() + 20
    while run.is_locked() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert run.status == "stopped"


def test_a_run_whose_process_dies_goes_on_from_its_checkpoint(here: Path, run_command: Command, trouble: str) -> None:
    (here / "trouble").write_text("once kill")
    code, out, _ = run_command(f"sweep {trouble} --seeds 2 --jobs 1 --name dies")
    assert code == 0
    assert "SIGKILL" in out
    (here / "trouble").unlink(missing_ok=True)
    run_command(f"sweep {trouble} --seeds 2 --jobs 1 --name lives")
    assert records(sweep_of(here, "dies")) == records(sweep_of(here, "lives"))


def test_a_run_that_hangs_is_seen_killed_and_goes_on(here: Path, run_command: Command, trouble: str) -> None:
    (here / "trouble").write_text("once hang")
    code, out, _ = run_command(f"sweep {trouble} --seeds 1 --stall-timeout 3 --name hangs")
    assert code == 0
    assert "no heartbeat for 3 s in phase collect" in out
    assert [run.status for run in sweep_of(here, "hangs").runs()] == ["finished"]


def test_a_run_that_dies_every_time_fails_and_the_rest_goes_on(here: Path, run_command: Command, trouble: str) -> None:
    (here / "trouble").write_text("kill")
    code, out, err = run_command(f"sweep {trouble} --seeds 1 --retries 1 --name dies")
    assert code == 8
    assert "1 run failed" in err
    assert "failed: 000-s0: its process was ended by SIGKILL" in out
    assert [e["event"] for e in sweep_of(here, "dies").events()].count("start") == 2


def test_failed_runs_are_listed_with_their_error_and_can_be_retried(here: Path, run_command: Command, trouble: str) -> None:
    (here / "trouble").write_text("raise")
    code, out, err = run_command(f"sweep {trouble} --seeds 2 --name fails")
    assert code == 8
    assert "failed: 000-s0, 000-s1: " in out
    assert "the pole is gone" in out
    assert "`rlx sweep --resume fails --retry-failed`" in err
    assert "in step\n    raise RuntimeError" in (here / "runs/fails/000-s0/log.txt").read_text()
    code, out, _ = run_command("sweep --resume fails")
    assert (code, "2 failed before and are left alone" in out) == (8, True)
    code, out, _ = run_command("ls --sweep fails")
    assert (code, "the pole is gone" in out) == (0, True)
    (here / "trouble").unlink()
    assert run_command("sweep --resume fails --retry-failed")[0] == 0
    assert [run.status for run in sweep_of(here, "fails").runs()] == ["finished"] * 2


# Where it is trained


def test_jobs_times_cores_never_exceed_the_cores_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "available_cores", lambda: 8)
    assert local._slots(None, 1, 0) == 8
    assert local._slots(None, 3, 0) == 2
    assert local._slots(2, 4, 0) == 2
    assert local._slots(None, 1, 2) == 2  # one GPU each
    with pytest.raises(ConfigError, match=r"--jobs 3: runs each of 4 cores .* 8 cores here; say --jobs 2 or less"):
        local._slots(3, 4, 0)
    with pytest.raises(ConfigError, match="9 cores busy"):
        local._slots(None, 9, 0)
    with pytest.raises(ConfigError, match="there are 2 here"):
        local._slots(3, 1, 2)
    with pytest.raises(ConfigError, match="at least 1"):
        local._slots(0, 1, 0)


def test_a_job_of_several_ranks_needs_the_cores_of_each(here: Path) -> None:
    run = RunDir(Path(new_job(here, "r", "runtime.threads=2").run))
    config = run.config(trust=False)
    job = job_maker([config], ranks=3)(run, config)
    assert (job.ranks, job.cores) == (3, 6)


@pytest.mark.slow
def test_a_run_of_a_sweep_whose_rank_is_killed_goes_on_and_equals_one_that_was_trained_on_as_many(here: Path) -> None:
    words = [*SETTINGS, "loop.total_env_steps=30000"]
    process = start("sweep", *words, "seed=1,2", "--name", "w", "--ranks", "2", "--jobs", "1", cwd=here)
    run = RunDir(here / "runs" / "w" / "000-s1")
    wait_for(lambda: find_checkpoints(run.checkpoints)[0], process)
    first = run.segments[-1]["pid"]
    other = subprocess.run(["pgrep", "-P", str(first)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(other[0]), signal.SIGKILL)
    code, out, err = finish(process)
    assert code == 0, (out, err)
    assert [(s["ranks"], s["status"]) for s in run.segments] == [(2, "failed"), (2, "finished")]
    assert finish(start("train", *words, "seed=1", "--name", "alone", "--ranks", "2", cwd=here))[0] == 0
    assert lines(RunDir(here / "runs" / "alone")) == lines(run)


def test_every_gpu_job_gets_a_gpu_of_its_own_and_gives_it_back(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "available_cores", lambda: 8)
    executor = LocalExecutor(2, gpus=["4", "7"])
    jobs = [Job(run=str(here / name), gpus=1) for name in "abc"]
    for job in jobs:
        Path(job.run).mkdir()
    monkeypatch.setattr(local, "_child", _tell_gpu)

    def work_on(job: Job) -> None:
        executor.start(job)

    work_on(jobs[0])
    work_on(jobs[1])
    ended: list[tuple[Job, Result]] = []
    while len(ended) < 2:
        ended += executor.wait(5.0)
    work_on(jobs[2])
    while len(ended) < 3:
        ended += executor.wait(5.0)
    executor.close()
    seen = {Path(job.run).name: (Path(job.run) / "gpu").read_text() for job, _ in ended}
    assert {seen["a"], seen["b"]} == {"4", "7"}
    assert seen["c"] in ("4", "7")


def _tell_gpu(job: Job, gpu: str | None, answer: Any) -> None:
    (Path(job.run) / "gpu").write_text(str(gpu))
    answer.send(Result(status="finished"))


def test_the_server_of_processes_ignores_ctrl_c_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(local.forkserver, "ensure_running", lambda: seen.append(signal.getsignal(signal.SIGINT)))
    before = signal.getsignal(signal.SIGINT)
    local.warm_up()
    assert (seen, signal.getsignal(signal.SIGINT)) == ([signal.SIG_IGN], before)


def test_runs_have_one_thread_unless_they_ask_for_more(swept: SweepDir) -> None:
    assert [run.segments[0]["threads"] for run in swept.runs()] == [1] * 4


# What it keeps


def test_a_torn_last_line_of_the_ledger_is_ignored_and_ended(swept: SweepDir) -> None:
    before = swept.events()
    assert len(before) > 4
    with (swept.path / "ledger.jsonl").open("ab") as file:
        file.write(b'{"event": "st')
    assert swept.events() == before
    swept.log("later")
    assert [e["event"] for e in swept.events()] == [*[e["event"] for e in before], "later"]


def kept(here: Path, name: str, **changes: Any) -> SweepDir:
    """A search of which nothing was trained."""
    overrides = read_overrides(["algo=ppo", "algo.clip=0.1,0.2"])
    spec = Spec(overrides=overrides, seeds=[0], swept=["algo.clip"], objective="eval/return_iqm", **{"search": Search(trials=2), **changes})
    return SweepDir.create(here / "runs", name, spec, {})


def test_events_that_lack_something_are_left_out(here: Path) -> None:
    swept = kept(here, "mine")
    swept.log("trial", point="000", number=0, overrides={"algo": "ppo"}, values={})
    before = swept.history()
    for event in ({"event": "trial", "point": "001"}, {"event": "told", "point": "000"}, {"event": "trial", "number": "x"}):
        swept.log(**event)  # type: ignore[arg-type]
    assert swept.history() == before


def test_a_second_process_of_a_shared_study_is_told_to_take_a_directory_of_its_own(here: Path, run_command: Command) -> None:
    with kept(here, "mine", search=Search(trials=2, storage="sqlite:///x.db")).lock():
        code, _, err = run_command("sweep --resume mine")
    assert (code, "needs a runs directory of its own, RLX_RUNS_DIR=" in err) == (2, True)


@pytest.mark.parametrize("content", ['{"format": 2}', '{"format": 3}', "[]", "{", None])
def test_a_damaged_sweep_is_named_and_the_others_are_listed(content: str | None, here: Path, run_command: Command) -> None:
    kept(here, "whole")
    damaged = kept(here, "torn").path / "sweep.json"
    damaged.write_text(content or damaged.read_text().replace('"sampler"', '"sampling"'))
    code, _, err = run_command("ls --sweep torn")
    assert (code, "is damaged, or of another version of rlx" in err) == (2, True)
    code, out, _ = run_command("ls")
    assert (code, "whole" in out, "torn" in out) == (0, True, True)


@pytest.mark.usefixtures("swept")
def test_ls_shows_progress_and_the_best_setting(run_command: Command) -> None:
    code, out, _ = run_command("ls --sweep latest")
    assert code == 0
    assert "4 of 4 runs, at rest" in out
    assert "best so far" in out
    assert "rlx compare lr" in out
    (seen,) = map(json.loads, run_command("ls --sweep lr --json")[1].splitlines())
    assert seen["counts"] == {"finished": 4}
    assert seen["best"]["values"] == {"algo.learning_rate": 0.01}
    assert "lr" in run_command("ls")[1]


def test_runs_that_were_to_be_online_and_cannot_are_a_line_of_the_sweep(
    swept: SweepDir, run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlx.track import wandb

    monkeypatch.setattr(wandb, "why_no_login", lambda: "no login")
    assert [wandb.why_offline(mode) for mode in ("online", "offline", "disabled")] == ["no login", "", ""]
    monkeypatch.setattr("rlx.sweep.launch.why_offline", lambda mode: "no login")
    said = f"W&B: runs are offline (no login); `wandb login` and then `rlx sync {swept.path.name}`"
    assert said in run_command(f"sweep --resume {swept.path.name}")[1]


def test_meta_names_the_sweep_for_wandb_groups(swept: SweepDir) -> None:
    meta = RunDir(swept.path / "001-s0").meta()
    assert (meta["sweep"], meta["point"], meta["values"]) == ("lr", "001", {"algo.learning_rate": 0.01})


# What is refused


def test_a_sweep_under_torchrun_is_refused_by_each_process(here: Path, run_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = run_command("sweep --seeds 2")
    assert code == 2
    assert "leave the launcher out, and say `rlx sweep --ranks N`" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("algo.learnin_rate=1,2", "algo.learnin_rate: unknown key"),
        ("algo=ppo,a2c algo.clipp=1,2", "algo.clipp: unknown key"),
        ("'algo.learning_rate=range(5,1)'", "algo.learning_rate"),
        ("'algo.learning_rate=interval(1e-5,1e-2)'", "--trials"),
        ("algo.discount=0.9,1.5", "algo.discount must be within [0, 1], got 1.5"),
        ("--seeds 0", "--seeds"),
        ("--seeds x", "--seeds"),
        ("seed=1,2 --seeds 3", "seed"),
        ("--seeds 2 --jobs 0", "--jobs 0"),
        ("--seeds 2 --jobs 999", "say --jobs"),
        ("--executor kubernetes", "--executor kubernetes: expected one of local, ray, slurm"),
        ("--aggregate mode", "--aggregate mode"),
        ("--pruner hyperband", "--pruner is for a search"),
        ("--address x:1", "--address goes with --executor ray"),
        ("--trials 0 algo.clip=1,2", "--trials 0"),
        ("--seeds 2 --objective eval/return_mean loop.eval_every=0", "never evaluates"),
        ("--seeds 2 --objective eval/retrun_mean", "no run logs it; did you mean eval/return_mean?"),
        ("--seeds 2 --objective eval/optimal_moves", "no run logs it"),
        ("--seeds 2 --objective episode/return_mean", "did you mean episode/return_mean_100?"),
        ("--resume nothing", "no such sweep"),
        ("--resume latest algo=ppo", "algo=ppo has no place"),
        ("--resume latest --aggregate mean", "--aggregate has no place"),
        ("--seeds 2 --name latest", "latest"),
        ("--multirum", "--multirum: unknown option"),
        ("--seeds 2 --jobs -1 --dry-run", "--jobs -1: expected at least 1"),
        ("--seeds 2 --retries -1 --dry-run", "--retries -1: expected at least 0"),
        ("--seeds 2 --stall-timeout -1 --dry-run", "--stall-timeout -1: expected at least 0"),
        ("--seeds 2 --ranks 0 --dry-run", "--ranks 0: expected a number from 1"),
        ("--seeds 2 --ranks 2 --executor ray --dry-run", "use --executor local or slurm"),
        ("algo=ppo env.num_envs=4,6 --ranks 4 --dry-run", "env.num_envs=6 cannot be divided among 4 ranks"),
        ("algo=ppo,dqn --ranks 2", "algo=dqn learns in one process"),
        ("--retry-failed", "add --resume NAME"),
        ("algo.clipp=1", "did you mean algo.clip?"),
        ("algo=ppo", "nothing to sweep"),
        ("algo=ppo --trials 3 --storage foo", "--storage foo"),
        ("algo=ppo loop.total_env_steps=9000 --trials 3 --pruner median", "after the rungs at 1,000 and 3,000; set loop.eval_every=1000"),
        ("algo=ppo algo.clip=0.1,0.2 --trials 3 --sampler grid", "the grid has 2 settings, and each is tried once; say --trials 2"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_type(words: str, said: str, here: Path, run_command: Command) -> None:
    code, _, err = run_command(f"sweep {words}")
    assert (code, "Traceback" in err) == (2, False)
    assert said in err
    assert not list((here / "runs").glob("*"))


def test_an_objective_that_no_run_logs_ends_the_sweep_with_the_metrics_there_are(here: Path, run_command: Command) -> None:
    code, _, err = run_command(f"sweep {SMALL} --seeds 3 --jobs 1 --objective loss/polcy --name typo")
    assert code == 2
    assert "start it again under another --name; did you mean loss/policy?" in err
    assert sum(run.status == "finished" for run in sweep_of(here, "typo").runs()) == 1


GRID: dict[str, Any] = {"search": None}
TRIALS: dict[str, Any] = {"search": Search(trials=2)}


@pytest.mark.parametrize(
    ("spec", "words", "said"),
    [
        (GRID, "algo=ppo algo.clip=0.1,0.3", "algo.clip 0.1,0.2 there and 0.1,0.3 here; choose another --name\n"),
        (GRID, "algo=ppo env=acrobot algo.clip=0.1,0.2", "sweep: env not given there and acrobot here; choose another --name\n"),
        (GRID, "algo=ppo algo.clip=0.1,0.2 --seeds 3", "seeds 0 there and 0, 1, 2 here; choose another --name, or extend it: "
                                                       "`rlx sweep --resume mine --seeds 0,1,2`"),
        (TRIALS, "algo=ppo algo.clip=0.1,0.2 --trials 5", "trials 2 there and 5 here; choose another --name, or extend it: "
                                                          "`rlx sweep --resume mine --trials 5`"),
        (TRIALS, "algo=ppo algo.clip=0.1,0.2 --trials 1 --sampler random", "sampler tpe there and random here"),
    ],
)  # fmt: skip
def test_a_name_that_another_sweep_has_is_refused_with_the_word_that_differs(
    spec: dict[str, Any], words: str, said: str, here: Path, run_command: Command
) -> None:
    kept(here, "mine", **spec)
    code, _, err = run_command(f"sweep {words} --name mine --dry-run")
    assert (code, said in err) == (2, True)


def test_a_run_that_is_taken_for_a_sweep_is_said_to_be_one(here: Path, run_command: Command) -> None:
    (here / "runs/single").mkdir(parents=True)
    (here / "runs/single/meta.json").write_text("{}")
    kept(here, "s-min")
    for words in ("sweep --resume single", "ls --sweep single"):
        code, _, err = run_command(words)
        assert (code, "is a run and no sweep: `rlx resume single`" in err) == (2, True)


def test_a_sweep_is_worked_on_by_one_process(swept: SweepDir, run_command: Command) -> None:
    with swept.lock():
        code, _, err = run_command("sweep --resume lr --seeds 3")
    assert (code, "another process" in err) == (2, True)


def test_a_search_that_is_renamed_keeps_its_study(here: Path) -> None:
    options = {**dict.fromkeys(("sampler", "pruner", "rungs", "storage", "space")), "trials": 3}
    words = ["algo=ppo", "env=cartpole", "algo.learning_rate=interval(1e-5,1e-2)"]
    spec, prepared = prepare(words, None, "a", None, "episode/return", False, "iqm", options)
    sweep = SweepDir.create(here / "runs", "a", spec, {})
    make_plan(sweep, spec, prepared, failed=[], where="local").study.ask()
    renamed = SweepDir(sweep.path.rename(here / "runs" / "b"))
    assert make_plan(renamed, spec, prepared, failed=[], where="local").study.claimed() == 1
