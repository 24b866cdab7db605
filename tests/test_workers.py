"""Worker processes: the results of GymVectorEnv, and every way in which a process can fail."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import rlx.envs.workers as workers
from rlx.envs.registry import EnvFactory, VectorEnvFactory
from rlx.envs.vector import GymVectorEnv, ReplayVectorEnv
from rlx.envs.workers import ProcessVectorEnv
from rlx.errors import ConfigError, EnvError

TOY = """
import os, sys, time
import gymnasium
import numpy as np

GOOD, RAISE, SLEEP, EXIT, PAUSE = range(5)

class Toy(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gymnasium.spaces.Discrete(5)

    def __init__(self, defect=""):
        if defect == "raise":
            raise OSError("no such ROM")
        if defect == "exit":
            os._exit(7)
        if defect == "first":
            try:
                os.mkdir(os.path.join(os.path.dirname(__file__), "first"))
            except FileExistsError:
                time.sleep(0.5)
            else:
                raise OSError("the first of them")

    def reset(self, *, seed=None, options=None):
        if seed == 13:
            raise LookupError("unlucky")
        if seed == 14:
            sys.exit("no licence")
        if seed == 15:
            return 0.5, {}
        if seed == 16:
            return np.array([0, np.nan, 0]), {}
        self.steps = 0
        return np.array([0, seed, "torch" in sys.modules], dtype=np.float64), {}

    def step(self, action):
        self.steps += 1
        if action == RAISE:
            raise ZeroDivisionError("broken physics")
        if action == SLEEP:
            time.sleep(1000)
        if action == EXIT:
            os._exit(3)
        if action == PAUSE:
            time.sleep(0.3)
        return np.array([self.steps, action, os.getpid()], dtype=np.float64), float(action), False, False, {}

gymnasium.register("Toy-v0", "toys:Toy")
"""
GOOD, RAISE, SLEEP, EXIT, PAUSE = range(5)


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A module that only the parent's sys.path leads to."""
    (tmp_path / "toys.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("toys", None)
    gymnasium.registry.pop("Toy-v0", None)


@pytest.fixture
def toy(toys):
    """A batch of five in two workers (environments 0 and 1, then 2 to 4), reset."""
    env = ProcessVectorEnv(EnvFactory("toys:Toy-v0"), 5, num_workers=2, timeout_s=30)
    env.reset(seed=np.arange(5))
    yield env
    env.close()
    assert not any(alive(pid) for pid in pids(env))


def pids(env: ProcessVectorEnv) -> list[int]:
    return [w.process.pid for w in env._workers]


def alive(pid: int) -> bool:
    """Running, that is neither gone nor a zombie that its new parent has not collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def episodes(env, num_steps: int):
    """Everything that env returns in num_steps steps of seeded actions, resetting what ends."""
    rng = np.random.default_rng(7)
    env.single_action_space.seed(7)
    seen = [np.array(env.reset(seed=rng.integers(2**31 - 1, size=env.num_envs))[0])]
    for _ in range(num_steps):
        result = env.step(np.stack([env.single_action_space.sample() for _ in range(env.num_envs)]))[:4]
        seen += [np.array(x) for x in result]
        ended = result[2] | result[3]
        if ended.any():
            seeds = rng.integers(2**31 - 1, size=env.num_envs)
            seen.append(np.array(env.reset(seed=seeds, options={"reset_mask": ended})[0]))
    return seen


def assert_same(ours, theirs):
    assert [(x.dtype, x.shape) for x in ours] == [(x.dtype, x.shape) for x in theirs]
    assert all(x.tobytes() == y.tobytes() for x, y in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("env_id", "num_steps"), [("CartPole-v1", 150), ("Pendulum-v1", 210), ("HalfCheetah-v5", 100)])
def test_results_are_those_of_one_process_bit_by_bit(env_id, num_steps):
    if env_id == "HalfCheetah-v5":
        pytest.importorskip("mujoco")
    make = EnvFactory(env_id)
    here, there = GymVectorEnv(make, 5), ProcessVectorEnv(make, 5, num_workers=2, timeout_s=60)
    try:
        assert there.single_observation_space == here.single_observation_space
        assert there.single_action_space == here.single_action_space
        assert_same(episodes(there, num_steps), episodes(here, num_steps))
    finally:
        here.close()
        there.close()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_state_taken_in_mid_episode_goes_on_alike_with_and_without_workers(env_id):
    make = EnvFactory(env_id)
    with_workers = [ReplayVectorEnv(ProcessVectorEnv(make, 3, num_workers=n, timeout_s=60)) for n in (2, 3)]
    envs = [*with_workers, ReplayVectorEnv(GymVectorEnv(make, 3))]
    try:
        episodes(envs[0], 33)
        state = pickle.loads(pickle.dumps(envs[0].state_dict()))
        for env in envs[1:]:
            env.load_state_dict(state)
        for actions in np.random.default_rng(0).integers(2, size=(40, 3)):
            actions = actions if env_id == "CartPole-v1" else actions[:, None].astype(np.float32)
            first, *others = [[np.array(x) for x in env.step(actions)[:4]] for env in envs]
            for other in others:
                assert_same(other, first)
            for env in envs:
                env.reset(seed=actions.ravel().astype(np.int64), options={"reset_mask": first[2] | first[3]})
    finally:
        for env in envs:
            env.close()


def test_environments_are_split_as_evenly_as_they_can_be():
    make = EnvFactory("CartPole-v1")
    for num_envs, num_workers, sizes in [(5, 2, [2, 3]), (2, 4, [1, 1])]:
        env = ProcessVectorEnv(make, num_envs, num_workers=num_workers, timeout_s=60)
        env.close()
        assert [w.last - w.first for w in env._workers] == sizes
        assert [i for w in env._workers for i in range(w.first, w.last)] == list(range(num_envs))


def test_registry_steps_in_as_many_processes_as_it_is_told(toys):
    env = VectorEnvFactory("toys:Toy-v0", workers=3, worker_timeout_s=30)(3)
    try:
        env.reset(seed=np.arange(3))
        obs = env.step(np.zeros(3, dtype=np.int64))[0]
        assert len({*obs[:, 2], os.getpid()}) == 4
    finally:
        env.close()


def test_masked_reset_leaves_the_other_environments_alone(toy):
    toy.step(np.zeros(5, dtype=np.int64))
    obs, _ = toy.reset(seed=np.arange(20, 25), options={"reset_mask": np.array([False, False, False, True, False])})
    assert obs[:, 0].tolist() == [1, 1, 1, 0, 1]
    assert obs[3, 1] == 23


def test_actions_that_would_be_rounded_are_refused(toy):
    with pytest.raises(TypeError):
        toy.step(np.full(5, 0.5))


def test_environment_that_raises_is_named_by_its_index_in_the_whole_batch(toy):
    with pytest.raises(EnvError, match=r"^environment 3 \(Toy-v0\) raised ZeroDivisionError in step: broken physics") as caught:
        toy.step(np.array([GOOD, GOOD, GOOD, RAISE, RAISE]))
    assert caught.value.trace.startswith("Traceback")
    assert caught.value.trace.endswith('raise ZeroDivisionError("broken physics")\nZeroDivisionError: broken physics\n')
    with pytest.raises(EnvError, match=r"^environment 4 .* LookupError in reset: unlucky"):
        toy.reset(seed=np.array([0, 1, 2, 3, 13]))
    with pytest.raises(EnvError, match=r"^environment 2 .* ZeroDivisionError in replay"):
        toy.restore(range(5), [np.zeros(0, dtype=np.int64)] * 2 + [np.array([GOOD, RAISE])] * 3)
    toy.reset(seed=np.arange(5))
    assert toy.step(np.zeros(5, dtype=np.int64))[0][:, 0].tolist() == [1] * 5  # no answer was left over


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (14, r"^environment 4 \(Toy-v0\) raised SystemExit in reset: no licence \(reset with seed 14; .*toys.py:"),
        (15, r"^environment 4 \(Toy-v0\) broke gymnasium's contract in reset with seed 15: its observation has shape \(\), .* \(3,\)"),
        (16, r"^environment 4 \(Toy-v0\) gave an observation with nan at index 1 in reset with seed 16"),
    ],
)
def test_workers_check_what_environments_return_and_survive_what_they_do(toy, seed, message):
    with pytest.raises(EnvError, match=message):
        toy.reset(seed=np.array([0, 1, 2, 3, seed]))
    toy.reset(seed=np.arange(5))
    assert toy.step(np.zeros(5, dtype=np.int64))[0][:, 0].tolist() == [1] * 5


def test_lowest_environment_is_the_one_named_when_two_workers_raise(toy):
    with pytest.raises(EnvError, match=r"^environment 1 "):
        toy.step(np.array([PAUSE, RAISE, RAISE, GOOD, GOOD]))


def test_config_error_of_make_keeps_its_type_and_text(toys):
    with pytest.raises(ConfigError) as here:
        EnvFactory("toys:Toyy-v0")()
    with pytest.raises(ConfigError) as there:
        ProcessVectorEnv(EnvFactory("toys:Toyy-v0"), 2, num_workers=2, timeout_s=30)
    assert str(there.value) == str(here.value)


def test_make_that_raises_or_exits_is_reported(toys):
    with pytest.raises(ConfigError, match=r"cannot be made with env\.kwargs=.*OSError: no such ROM"):
        ProcessVectorEnv(EnvFactory("toys:Toy-v0", {"defect": "raise"}), 2, num_workers=2, timeout_s=30)
    with pytest.raises(ConfigError, match="the first of them"):  # and not that its worker has gone while the other still starts
        ProcessVectorEnv(EnvFactory("toys:Toy-v0", {"defect": "first"}), 2, num_workers=2, timeout_s=30)
    with pytest.raises(EnvError, match=r"^worker [01] \(environment [01]\) exited with code 7"):
        ProcessVectorEnv(EnvFactory("toys:Toy-v0", {"defect": "exit"}), 2, num_workers=2, timeout_s=30)


@pytest.mark.parametrize("when", ["idle", "stepping"])
def test_killed_worker_is_reported_at_once_with_its_environments(toy, when):
    actions = np.array([SLEEP if when == "stepping" else GOOD, GOOD, SLEEP, GOOD, GOOD])
    delay = threading.Timer(0.3 if when == "stepping" else 0.0, os.kill, [pids(toy)[1], signal.SIGKILL])
    delay.start()
    if when == "idle":
        gone(pids(toy)[1], 5.0)
    with pytest.raises(EnvError, match=r"^worker 1 \(environments 2 to 4\) was killed by SIGKILL.*`rlx resume`"):
        toy.step(actions)
    delay.join()
    assert not any(alive(pid) for pid in pids(toy))  # the one that sleeps is ended as well
    with pytest.raises(EnvError, match="closed"):
        toy.reset(seed=np.arange(5))


def test_exit_code_of_a_worker_is_reported(toy):
    with pytest.raises(EnvError, match=r"^worker 0 \(environments 0 to 1\) exited with code 3"):
        toy.step(np.array([GOOD, EXIT, GOOD, GOOD, GOOD]))


def test_hung_worker_is_given_up_after_the_timeout(toys):
    env = ProcessVectorEnv(EnvFactory("toys:Toy-v0"), 3, num_workers=2, timeout_s=1.0)
    env.reset(seed=np.arange(3))
    with pytest.raises(EnvError, match=r"^worker 1 \(environments 1 to 2\) did not answer for 1 s.*env\.worker_timeout_s"):
        env.step(np.array([GOOD, SLEEP, GOOD]))
    assert not any(alive(pid) for pid in pids(env))


def test_stopped_worker_cannot_block_a_large_restore(toys):
    env = ProcessVectorEnv(EnvFactory("toys:Toy-v0"), 2, num_workers=2, timeout_s=1.0)
    os.kill(pids(env)[1], signal.SIGSTOP)
    with pytest.raises(EnvError, match=r"^worker 1 \(environment 1\) did not answer for 1 s"):
        env.restore([0, 1], [np.zeros(1, dtype=np.int64), np.zeros(10**6, dtype=np.int64)])
    assert not any(alive(pid) for pid in pids(env))


def test_replay_that_takes_longer_than_the_timeout_is_not_taken_for_hung(toys):
    env = ProcessVectorEnv(EnvFactory("toys:Toy-v0"), 1, num_workers=1, timeout_s=1.0)
    try:
        reported: list[int] = []
        obs, (rewards,) = env.restore([0], [np.full(6, PAUSE)], reported.append)  # 1.8 s
        assert obs[0, 0] == 6
        assert rewards.tolist() == [PAUSE] * 6
        assert 0 < sum(reported) <= 6  # how far it is reaches the parent, who says how long it takes
    finally:
        env.close()


def test_signals_meant_for_the_run_leave_workers_alone_even_before_they_are_ready(toys, monkeypatch):
    def interrupted(*args):
        worker = start(*args)
        for number in workers.SIGNALS:
            os.kill(worker.process.pid, number)
        return worker

    start = workers._start
    monkeypatch.setattr(workers, "_start", interrupted)
    env = ProcessVectorEnv(EnvFactory("toys:Toy-v0"), 2, num_workers=2, timeout_s=30)
    try:
        env.reset(seed=np.arange(2))
        for number in workers.SIGNALS:
            threading.Timer(0.1, lambda n=number: [os.kill(pid, n) for pid in pids(env)]).start()
        assert env.step(np.array([PAUSE, PAUSE]))[0][:, 0].tolist() == [1, 1]
        time.sleep(0.1)  # idle
        assert env.step(np.zeros(2, dtype=np.int64))[0][:, 0].tolist() == [2, 2]
    finally:
        env.close()
    assert not workers.SIGNALS & signal.pthread_sigmask(signal.SIG_BLOCK, [])  # the parent still receives them


def test_close_is_prompt_idempotent_and_leaves_nothing(toys):
    descriptors = len(os.listdir("/proc/self/fd"))
    env = ProcessVectorEnv(EnvFactory("toys:Toy-v0"), 4, num_workers=2, timeout_s=30)
    obs, _ = env.reset(seed=np.arange(4))
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in (*pids(env), os.getpid())]
    assert all("memfd:rlx" in m for m in maps)  # a file without a name: nothing in /dev/shm to leave behind
    processes = [worker.process for worker in env._workers]
    env.close()
    env.close()
    assert [process.returncode for process in processes] == [0, 0]  # none had to be killed
    assert not any(alive(pid) for pid in pids(env))
    assert obs[:, 1].tolist() == [0, 1, 2, 3]  # still readable
    del env, obs
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_forgotten_environments_take_their_workers_with_them(toys):
    env = ProcessVectorEnv(EnvFactory("toys:Toy-v0"), 2, num_workers=2, timeout_s=30)
    ours = pids(env)
    del env
    assert all(gone(pid, 5.0) for pid in ours)


SCRIPT = """
import os, sys
import numpy as np
print("main", flush=True)
from rlx.envs.registry import EnvFactory
from rlx.envs.workers import ProcessVectorEnv
env = ProcessVectorEnv(EnvFactory("toys:Toy-v0"), 2, num_workers=2, timeout_s=2.0)
obs, _ = env.reset(seed=np.arange(2))
print(obs[:, 2].tolist(), *(w.process.pid for w in env._workers), flush=True)
"""


def script(path: Path, body: str, head: str = "", **kwargs) -> subprocess.Popen[str]:
    """A user's script without the `if __name__ == "__main__"` that multiprocessing would ask for."""
    (path / "script.py").write_text(head + SCRIPT + body)
    pythonpath = os.pathsep.join([str(path), str(Path(workers.__file__).parents[2])])
    environ = {**os.environ, "PYTHONPATH": pythonpath}
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(path / "script.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        **kwargs,
    )


def test_main_script_is_not_executed_again_and_workers_do_without_torch(toys):
    out, err = script(toys, "", head="import torch").communicate(timeout=60)  # ends without close()
    assert err == ""
    first, second = out.splitlines()
    assert first == "main"
    assert second.startswith("[0.0, 0.0] ")
    assert not any(alive(int(pid)) for pid in second.split()[2:])


@pytest.mark.parametrize("worker", ["idle", "hung"])
def test_workers_go_when_the_parent_is_killed(toys, worker):
    body = "env.step(np.array([2, 2]))" if worker == "hung" else "import time; time.sleep(1000)"
    with script(toys, body) as parent:
        parent.stdout.readline()
        *_, first, second = parent.stdout.readline().split()
        time.sleep(0.2)
        parent.kill()
        assert all(gone(int(pid), workers.CLOSE_S + 3.0) for pid in (first, second))


def test_suspended_run_does_not_take_its_workers_for_hung(toys):
    with script(toys, "env.step(np.array([4, 4])); print('stepped')", process_group=0) as parent:
        parent.stdout.readline()
        parent.stdout.readline()
        os.killpg(parent.pid, signal.SIGSTOP)
        time.sleep(2.5)  # the timeout is 2
        os.killpg(parent.pid, signal.SIGCONT)
        out, err = parent.communicate(timeout=60)
        assert (out, err) == ("stepped\n", "")


LIVES = """
import gymnasium
import numpy as np

class Lives(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    reports_life_loss = True

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {"life_lost": True} if action else {}
"""


@pytest.mark.parametrize("num_workers", [0, 2])
def test_lost_lives_are_reported_from_this_process_and_from_workers(tmp_path, monkeypatch, num_workers):
    (tmp_path / "lives.py").write_text(LIVES)
    monkeypatch.syspath_prepend(tmp_path)
    env = VectorEnvFactory("lives:Lives", workers=num_workers, worker_timeout_s=30)(3)
    try:
        env.reset(seed=np.arange(3))
        assert env.step(np.array([0, 1, 1]))[-1]["life_lost"].tolist() == [False, True, True]
        assert env.step(np.array([1, 0, 0]))[-1]["life_lost"].tolist() == [True, False, False]
    finally:
        env.close()
    sys.modules.pop("lives", None)


def test_an_environment_without_lives_reports_none(toy):
    assert toy.step(np.full(5, GOOD))[-1] == {}
