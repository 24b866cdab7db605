"""make bench: the speed figures of rlx, beside Stable-Baselines3, and a loop compiled by JAX, in the same run.

    python tests/bench.py [solve] [cartpole] [halfcheetah] [sac] [atari] [minigrid] [start] [checkpoint] [sweep] [selfplay] [planning] [latent] [i2a] [memory] [envs] [mujoco] [terrain]

Both sides run in processes of their own, one thread each, in turn (A B A B ...), so that a drift of the machine's speed meets
both; the ratio is that of the medians. Measure with nothing else running.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench_terrain import terrain

RLX = str(Path(sys.executable).with_name("rlx"))
QUIET = ["log.console=quiet", "log.wandb=disabled"]

SB3 = """
import sys, time, warnings; warnings.filterwarnings("ignore")
import numpy as np, torch; torch.set_num_threads(1)
from collections import deque
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
class Watch(BaseCallback):
    start, returns = None, deque(maxlen=100)
    def _on_rollout_start(self): self.start = self.start or time.perf_counter()
    def _on_step(self):
        for info in self.locals["infos"]:
            if "episode" in info: self.returns.append(info["episode"]["r"])
        return target is None or len(self.returns) < 100 or np.mean(self.returns) < target
target, seed = None, int(sys.argv[1])
linear = lambda x: (lambda left: left * x)
"""
SB3_SOLVE = (
    SB3
    + """
target = 475.0  # the tuned settings of RL Baselines3 Zoo for CartPole-v1
model = PPO("MlpPolicy", make_vec_env("CartPole-v1", 8, seed=seed), n_steps=32, batch_size=256, n_epochs=20, gae_lambda=0.8, gamma=0.98,
            learning_rate=linear(1e-3), clip_range=linear(0.2), ent_coef=0.0, seed=seed, device="cpu")
watch = Watch(); model.learn(100_000, callback=watch); print(time.perf_counter() - watch.start)
if np.mean(watch.returns) < target: print(f"SB3 seed {seed}: {np.mean(watch.returns):.0f} after its whole budget", file=sys.stderr)
"""
)
SB3_SPEED = (
    SB3
    + """
model = PPO("MlpPolicy", make_vec_env({id!r}, {envs}, seed=seed), n_steps={steps}, batch_size={batch}, n_epochs={epochs}, seed=seed, device="cpu")
watch = Watch(); model.learn({total}, callback=watch); print(model.num_timesteps / (time.perf_counter() - watch.start))
"""
)
SB3_ATARI = """
import time, warnings; warnings.filterwarnings("ignore")
import ale_py, gymnasium, torch; torch.set_num_threads(1); gymnasium.register_envs(ale_py)
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack
env = VecFrameStack(make_atari_env("PongNoFrameskip-v4", 8, seed=0), 4)
model = PPO("CnnPolicy", env, n_steps=128, batch_size=256, n_epochs=4, clip_range=0.1, ent_coef=0.01, device="cpu")
model.learn(1024); start = time.process_time(); model.learn(4096); print(4096 / (time.process_time() - start))
"""
SB3_SAC = """
import sys, time, warnings; warnings.filterwarnings("ignore")
import torch; torch.set_num_threads(1)
from stable_baselines3 import SAC
model = SAC("MlpPolicy", {id!r}, policy_kwargs=dict(net_arch={sizes}), batch_size={batch}, learning_starts=100, seed=int(sys.argv[1]), device="cpu")
model.learn(200); start = time.process_time(); model.learn({total}, reset_num_timesteps=False)
print({total} / (time.process_time() - start))
"""


def rlx(*overrides: str) -> list[dict[str, float]]:
    """Train in a process and a directory of its own; returns the lines of metrics.jsonl."""
    with tempfile.TemporaryDirectory() as directory:
        environment = {**os.environ, "RLX_RUNS_DIR": directory}
        subprocess.run([RLX, "train", *overrides, *QUIET, "--name", "bench"], check=True, env=environment, stdout=subprocess.DEVNULL)
        return [json.loads(line) for line in (Path(directory) / "bench" / "metrics.jsonl").read_text().splitlines()]


def sb3(script: str, seed: int) -> float:
    done = subprocess.run([sys.executable, "-c", script, str(seed)], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def steps_per_s(*overrides: str) -> float:
    last = rlx(*overrides, "loop.eval_every=0", "loop.checkpoint_every=0")[-1]
    return last["env_steps"] / last["time/elapsed_s"]


def compare(title: str, ours: Callable[[int], float], theirs: Callable[[int], float], *, repeats: int, unit: str) -> None:
    pairs = [(ours(seed), theirs(seed)) for seed in range(repeats)]
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    spread = " to ".join(f"{f(x for x, _ in pairs):,.2f}" for f in (min, max))
    print(
        f"{title}\n  rlx {a:,.2f} {unit} ({spread})   SB3 {b:,.2f} {unit}   ratio rlx / SB3 {a / b:.3f}, SB3 / rlx {b / a:.2f}", flush=True
    )


def solve() -> None:
    def ours(seed: int) -> float:
        lines = rlx("algo=ppo", "env=cartpole", "loop.target_return=475", f"seed={seed}")
        solved = [line for line in lines if line.get("episode/return_mean_100", 0.0) >= 475.0]
        return solved[0]["time/elapsed_s"]

    title = "PPO on CartPole-v1, seconds from the first env step until the last 100 training episodes average 475, median of 5 seeds"
    compare(title, ours, lambda seed: sb3(SB3_SOLVE, seed), repeats=5, unit="s")


def cartpole() -> None:
    shape = ["algo=ppo", "env=cartpole", "recipe=null", "env.num_envs=4", "algo.rollout_length=128", "loop.total_env_steps=102400"]
    theirs = SB3_SPEED.format(id="CartPole-v1", envs=4, steps=128, batch=128, epochs=4, total=20480)
    title = "PPO at CleanRL's CartPole shape: 4 envs x 128 steps, 4 epochs x 4 minibatches, 64-64"
    compare(title, lambda seed: steps_per_s(*shape, f"seed={seed}"), lambda seed: sb3(theirs, seed), repeats=3, unit="steps/s")
    python = os.environ.get("RLX_BENCH_JAX") or (sys.executable if importlib.util.find_spec("jax") else None)
    if python is None:
        print(
            "  JAX is not installed: no figure of a loop that is compiled as a whole (RLX_BENCH_JAX names another Python that has it)",
            flush=True,
        )
        return
    pairs = [(steps_per_s(*shape, f"seed={seed}"), jax(python, seed)) for seed in range(3)]
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(
        f"  rlx {a:,.0f} steps/s   the whole loop compiled by JAX {b:,.0f} steps/s, after 5 s of compiling   ratio {a / b:.2f}", flush=True
    )


def jax(python: str, seed: int) -> float:
    """Env steps per second of `tests/bench_jax.py` on one thread."""
    script, one = str(Path(__file__).with_name("bench_jax.py")), "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    done = subprocess.run([python, script, str(seed)], check=True, capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": one})
    return float(done.stdout)


def halfcheetah() -> None:
    shape = ["algo=ppo", "env=halfcheetah", "recipe=null", "env.num_envs=1", "algo.rollout_length=2048", "algo.num_epochs=10",
             "algo.num_minibatches=32", "loop.total_env_steps=20480"]  # fmt: skip
    theirs = SB3_SPEED.format(id="HalfCheetah-v5", envs=1, steps=2048, batch=64, epochs=10, total=10240)
    title = "PPO on HalfCheetah-v5 at SB3's default shape: 1 env x 2048 steps, 10 epochs x 32 minibatches of 64, 64-64"
    compare(title, lambda seed: steps_per_s(*shape, f"seed={seed}"), lambda seed: sb3(theirs, seed), repeats=3, unit="steps/s")


def start() -> None:
    def wall(*command: str) -> float:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as directory:
            subprocess.run([RLX, *command], check=True, env={**os.environ, "RLX_RUNS_DIR": directory}, stdout=subprocess.DEVNULL)
        return time.perf_counter() - begin

    print(f"rlx --help: {statistics.median(wall('--help') for _ in range(5)):.2f} s")
    one = ["train", "loop.total_env_steps=1", "loop.eval_every=0", "--name", "one"]
    print(f"rlx train of one iteration, start to exit, W&B offline: {statistics.median(wall(*one) for _ in range(5)):.2f} s "
          "(the first env step comes before that)", flush=True)  # fmt: skip


def measured(total_env_steps: int, *overrides: str) -> tuple[float, float]:
    """CPU seconds, user and system, and greatest resident memory in MB of a training in a process of its own."""
    quiet = [*QUIET, "loop.eval_every=0", "loop.checkpoint_every=0", f"loop.total_env_steps={total_env_steps}"]
    with tempfile.TemporaryDirectory() as directory:
        environment = {**os.environ, "RLX_RUNS_DIR": directory, "PYTHONPATH": str(Path(__file__).parent)}
        process = subprocess.Popen([RLX, "train", *overrides, *quiet, "--name", "bench"], env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def steps_per_cpu_s(few: int, many: int, *overrides: str) -> tuple[float, float]:
    """Env steps per CPU second beyond starting, from a short and a long training, and the resident memory in MB."""
    (short, _), (long, memory) = measured(few, *overrides), measured(many, *overrides)
    return (many - few) / (long - short), memory


def atari() -> None:
    """Counts CPU time, so that other processes matter less."""
    env = ["env=pong", "env.protocol=v4"] if importlib.util.find_spec("ale_py") else ["env=bench_frames:Frames", "algo.sign_reward=true"]
    shape = ["algo=ppo", *env, "recipe=null", "env.num_envs=8", "algo.rollout_length=128", "algo.num_epochs=4", "algo.num_minibatches=4",
             "algo.encoder=nature", "algo.shared_network=true", "algo.hidden_sizes=[]"]  # fmt: skip
    theirs = 0.0
    if all(importlib.util.find_spec(name) for name in ("ale_py", "stable_baselines3", "cv2")):
        theirs = sb3(SB3_ATARI, 0)
        print(f"SB3's PPO at the same shape: {theirs:,.0f} env steps per CPU second", flush=True)
    for precision, target in (("highest", 260), ("bf16", 400)):
        speed, memory = steps_per_cpu_s(1024, 8 * 1024, *shape, f"runtime.precision={precision}")
        print(f"PPO on {env[0]}, 8 envs x 128, 4 epochs x 4 minibatches, Nature network, {precision}: {speed:,.0f} env steps per CPU second "
              f"(at least {target} wanted), {memory:,.0f} MB resident (at most 900)"
              + f", {speed / theirs:.2f} times SB3's speed" * bool(theirs), flush=True)  # fmt: skip


def sac() -> None:
    """In CPU time; at 256-256 beside the arithmetic of its matrix products, at the speed of one such product."""
    for env, env_id, width, batch, total in (("pendulum", "Pendulum-v1", 64, 128, 6000), ("halfcheetah", "HalfCheetah-v5", 256, 256, 1500)):
        shape = ["algo=sac", f"env={env}", "recipe=null", "env.num_envs=1", f"algo.hidden_sizes=[{width},{width}]", f"algo.batch_size={batch}",
                 "algo.initial_steps=100"]  # fmt: skip
        ours: list[float] = []
        measured(200, *shape)  # compiles kernels, if this is the first time

        def speed(seed: int, shape: list[str] = shape, total: int = total, ours: list[float] = ours) -> float:
            ours.append(steps_per_cpu_s(200, 200 + total, *shape, f"seed={seed}")[0])
            return ours[-1]

        theirs = SB3_SAC.format(id=env_id, sizes=[width, width], batch=batch, total=total // 2)
        title = f"SAC on {env_id}, one gradient step of {batch} for each env step, {width}-{width}"
        if importlib.util.find_spec("stable_baselines3"):
            compare(title, speed, lambda seed, script=theirs: sb3(script, seed), repeats=3, unit="steps per CPU s")
        else:
            print(f"{title}\n  rlx {speed(0):,.0f} steps per CPU s; Stable-Baselines3 is not installed", flush=True)
        if width == 256:
            per_s, floor = (
                statistics.median(ours),
                2 * batch * (4 * products(17, width, 12) + 12 * products(23, width, 1)) / flops_per_s(),
            )
            print(f"  matrix products alone would take {1e3 * floor:.1f} of its {1e3 / per_s:.1f} ms, {floor * per_s:.0%}", flush=True)


def products(num_inputs: int, width: int, num_outputs: int) -> int:
    """Multiplications of one row with the weights of two hidden layers."""
    return num_inputs * width + width * width + width * num_outputs


def flops_per_s() -> float:
    """Of a 256 x 256 x 256 matrix product on one thread, in CPU time; the best of many."""
    import torch

    torch.set_num_threads(1)
    a, b, best = torch.randn(256, 256), torch.randn(256, 256), 0.0
    for _ in range(50):
        begin = time.process_time()
        for _ in range(20):
            a @ b
        best = max(best, 20 * 2 * 256**3 / (time.process_time() - begin))
    return best


def minigrid() -> None:
    if importlib.util.find_spec("minigrid") is None:
        print("minigrid is not installed: no figure of PPO on DoorKey", flush=True)
        return
    shape = ["algo=ppo", "env=doorkey", "recipe=null", "env.num_envs=16", "algo.rollout_length=128", "algo.num_epochs=4",
             "algo.num_minibatches=8"]  # fmt: skip
    speed, _ = steps_per_cpu_s(2048, 10 * 2048, *shape)
    print(f"PPO on MiniGrid-DoorKey-5x5, 16 envs x 128, 4 epochs x 8 minibatches: {speed:,.0f} env steps per CPU second (at least 2,000 wanted)",
          flush=True)  # fmt: skip


def checkpoint() -> None:
    for algo, env, total in (("ppo", "cartpole", 200_000), ("a2c", "cartpole", 400_000), ("ppo", "pendulum", 100_000)):
        lines = rlx(f"algo={algo}", f"env={env}", f"loop.total_env_steps={total}")
        spent = sum(line.get("time/checkpoint_s", 0.0) for line in lines)
        elapsed = lines[-1]["time/elapsed_s"]
        print(
            f"checkpoints of {algo} on {env} at the default cadence: {spent:.3f} s of {elapsed:.1f} s, {100 * spent / elapsed:.2f} %",
            flush=True,
        )
    _replay_checkpoint()


def _replay_checkpoint(num_rows: int = 1_000_000, num_new: int = 10_000) -> None:
    """What checkpoints of a replay of a million rows of 42 floats cost, the first and one 10,000 rows later."""
    import torch

    from rlx.checkpointer import Checkpointer
    from rlx.columns import Column
    from rlx.replay import TransitionReplay

    replay = TransitionReplay(num_rows, 1, {"row": Column(torch.float32, (42,))})
    replay.add(row=torch.randn(num_rows, 1, 42))
    with tempfile.TemporaryDirectory() as directory:
        checkpointer, before = Checkpointer(Path(directory), algo="bench", keep=9), 0
        for steps in (num_rows, num_rows + num_new):
            begin, cpu = time.perf_counter(), time.process_time()
            checkpointer.begin_save({"algo": replay}, steps)
            held = time.perf_counter() - begin
            checkpointer.wait()
            size = sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file())
            print(f"checkpoint of {num_rows:,} rows x 42 floats at {steps:,}: {(size - before) / 1e6:.2f} MB written, training held "
                  f"{1e3 * held:.0f} ms, {1e3 * (time.process_time() - cpu):.0f} ms of CPU", flush=True)  # fmt: skip
            before = size
            replay.add(row=torch.randn(num_new, 1, 42))
        checkpointer.close()


def sweep() -> None:
    """What a sweep adds to the training of its runs: start-up, checkpoints' last writes, scheduling."""

    def ratio() -> tuple[float, float, float]:
        with tempfile.TemporaryDirectory() as directory:
            words = [
                "sweep",
                "algo=ppo",
                "env=cartpole",
                "algo.learning_rate=1e-3,3e-3,1e-2,2e-2",
                "--seeds",
                "5",
                "--jobs",
                "2",
                "--name",
                "s",
            ]
            begin = time.perf_counter()
            subprocess.run([RLX, *words], check=True, env={**os.environ, "RLX_RUNS_DIR": directory}, stdout=subprocess.DEVNULL)
            wall = time.perf_counter() - begin
            records = [path.read_text().splitlines() for path in Path(directory).glob("s/*/metrics.jsonl")]
            training = sum(json.loads(lines[-1])["time/elapsed_s"] for lines in records)
        assert len(records) == 20
        return wall, training / 2, wall / (training / 2)

    measured = sorted((ratio() for _ in range(3)), key=lambda m: m[2])
    wall, ideal, median = measured[1]
    print(f"rlx sweep of 20 PPO CartPole runs, 2 jobs, W&B as without a login: {wall:.1f} s, start to exit, for {2 * ideal:.1f} s of training; "
          f"ratio to half of that {median:.2f} ({measured[0][2]:.2f} to {measured[-1][2]:.2f})", flush=True)  # fmt: skip


def selfplay() -> None:
    """What self-play costs beside the calls of its network: connect four, 5 blocks of 64 channels, 256 games, 32 simulations."""
    import torch

    from rlx.config.compose import Composer
    from rlx.parts import build

    torch.set_num_threads(1)
    words = ["algo=alphazero", "env=connect_four", "recipe=null", "env.num_envs=256", "loop.eval_every=0", *QUIET]
    with tempfile.TemporaryDirectory() as directory:
        parts = build(Composer().compose(words).config, Path(directory), torch.device("cpu"))
        parts.collector.reset()
        for _ in range(8):  # games at different lengths, kernels compiled
            parts.collector.collect(1)
        measured = []
        for _ in range(12):
            begin = time.perf_counter()
            rollout, _ = parts.collector.collect(1)
            wall = time.perf_counter() - begin
            network_s, _, _, evaluations, duplicates = rollout.extras["spent"].sum(dim=(0, 1)).tolist()
            measured.append((wall / network_s, evaluations / wall, (evaluations + duplicates) / wall))
        parts.close()
    ratio, evaluations_per_s, simulations_per_s = (statistics.median(column) for column in zip(*measured, strict=True))
    print(f"self-play of connect four, wall time over that of its network's calls: {ratio:.3f} "
          f"({min(measured)[0]:.3f} to {max(measured)[0]:.3f}); {evaluations_per_s:,.0f} evaluations/s, "
          f"{simulations_per_s:,.0f} simulations/s, one thread", flush=True)  # fmt: skip


def planning() -> None:
    """How long PETS plans for an env step of continuous cartpole, with the settings that solve it in three episodes."""
    lines = rlx("algo=pets", "env=cartpole_continuous", "loop.total_env_steps=600", "loop.eval_every=0")
    ms = [line["time/plan_ms"] for line in lines if "time/plan_ms" in line][-1]
    print(f"PETS plans {ms:.0f} ms for an env step of continuous cartpole: {1000 / ms:.0f} planned env steps/s", flush=True)


def latent() -> None:
    """How fast MuZero searches its latent model of CartPole, and what part of that its network takes."""
    lines = rlx("algo=muzero", "env=cartpole", "loop.total_env_steps=5000", "loop.eval_every=0")
    last = [line for line in lines if "time/simulations_per_s" in line][-1]
    per_s, network, calls = (
        last[k] for k in ("time/simulations_per_s", "time/search_network_share", "search/network_calls_per_simulation")
    )
    print(f"MuZero on CartPole (64 units, 32 trees): {per_s:,.0f} simulations/s, {network:.0%} of it in {calls:.2f} network calls each; "
          f"{last['time/steps_per_s']:,.0f} env steps/s with training", flush=True)  # fmt: skip


def i2a() -> None:
    """How fast I2A trains on small Sokoban once it imagines, beside its model-free path alone and with three passes over each rollout."""
    common = ["algo=i2a", "env=sokoban", "loop.total_env_steps=26000", "loop.log_every=1"]

    def imagining(*overrides: str) -> float:
        lines = [line for line in rlx(*common, "loop.eval_every=0", "loop.checkpoint_every=0", *overrides) if "loss/policy" in line]
        return statistics.median(line["time/steps_per_s"] for line in lines[3:])  # the first are of phase one, and compile

    arms = {
        "tau = 3, its recipe": ("algo.model_fraction=0.01",),
        "tau = 3, three passes": ("algo.model_fraction=0.01", "algo.num_epochs=3"),
        "tau = 3, three passes, two threads": ("algo.model_fraction=0.01", "algo.num_epochs=3", "runtime.threads=2"),
        "model-free": ("algo.imagination=off",),
    }
    measured = [{name: imagining(*overrides) for name, overrides in arms.items()} for _ in range(3)]
    alone = statistics.median(speeds["model-free"] for speeds in measured)
    for name in arms:
        speeds = sorted(m[name] for m in measured)
        print(f"I2A on Sokoban 7 x 7, {name}: {speeds[1]:,.0f} frames/s ({speeds[0]:,.0f} to {speeds[2]:,.0f}), "
              f"{speeds[1] / alone:.2f} of model-free", flush=True)  # fmt: skip


def memory() -> None:
    """Unrolling a memory, forwards and backwards, beside torch's LSTM called step by step with a mask, as is usual.

    In CPU time; 128 steps of 8 environments, 64 features and units.
    """
    import torch

    from rlx.nn.memories import make_memory

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, grad = torch.randn(128, 8, 64, requires_grad=True), torch.randn(128, 8, 64)
    lstm, zeros = torch.nn.LSTM(64, 64), torch.zeros(1, 8, 64)

    def step_by_step(is_first: torch.Tensor) -> torch.Tensor:
        outputs, hidden, cell = [], zeros, zeros
        for t in range(len(x)):
            keep = (~is_first[t]).float().view(1, -1, 1)
            out, (hidden, cell) = lstm(x[t : t + 1], (keep * hidden, keep * cell))
            outputs.append(out)
        return torch.cat(outputs)

    def cpu_ms(unroll: Callable[[torch.Tensor], torch.Tensor], is_first: torch.Tensor) -> float:
        begin = time.process_time()
        unroll(is_first).backward(grad)
        return 1000 * (time.process_time() - begin)

    memories = {kind: make_memory(kind, 64, 64) for kind in ("lstm", "gru")}
    arms: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        kind: lambda is_first, memory=memory: memory.unroll(x, memory.initial(8), is_first) for kind, memory in memories.items()
    }
    arms["nn.LSTM step by step"] = step_by_step
    for num_resets in (0, 9, 44):
        is_first = torch.zeros(128 * 8, dtype=torch.bool)
        is_first[torch.randperm(128 * 8)[:num_resets]] = True
        measured = [{name: cpu_ms(unroll, is_first.view(128, 8)) for name, unroll in arms.items()} for _ in range(15)][3:]
        ms = {name: statistics.median(each[name] for each in measured) for name in arms}
        slowest = ms["nn.LSTM step by step"]
        shown = ", ".join(f"{name} {value:.1f} ms ({slowest / value:.1f} x)" for name, value in ms.items())
        print(f"memory of 128 steps of 8 environments, {num_resets} resets, forwards and backwards: {shown}", flush=True)


def envs() -> None:
    """Env steps a second of the grid worlds under random actions, with observations and the resets of what ends; the best of many windows."""
    import numpy as np

    from rlx.envs.grids.sokoban_levels import generate
    from rlx.envs.registry import VectorEnvFactory

    def best(window: Callable[[], int], *, windows: int = 100) -> float:
        """Of short windows, since other processes can only slow them down."""
        window()
        speeds = []
        for _ in range(windows):
            begin = time.perf_counter()
            done = window()
            speeds.append(done / (time.perf_counter() - begin))
        return max(speeds)

    def stepping(env_id: str, kwargs: dict[str, object], num_envs: int) -> Callable[[], int]:
        env, rng = VectorEnvFactory(env_id, kwargs).training(num_envs)[0], np.random.default_rng(0)
        env.reset(seed=np.arange(num_envs))
        # As many steps as an episode of Sokoban has at most, so that every window has the resets of as many.
        actions = rng.integers(env.single_action_space.n, size=(120, num_envs))
        seeds = rng.integers(2**31, size=(120, num_envs))

        def window() -> int:
            for t in range(len(actions)):
                _, _, terminated, truncated, _ = env.step(actions[t])
                ended = terminated | truncated
                if ended.any():
                    env.reset(seed=seeds[t], options={"reset_mask": ended})
            return actions.size

        return window

    failed = []
    for env_id, kwargs, num_envs, target in (
        ("rlx/Sokoban-v0", {}, 2048, 5e6),
        ("rlx/MiniPacman-v0", {"task": "hunt"}, 256, 1e6),
    ):
        speed = best(stepping(env_id, kwargs, num_envs))
        failed += [env_id] if speed < target else []
        print(f"{env_id}, {num_envs} at once, one thread: {speed / 1e6:.1f}M env steps/s with planes and resets, at least {target / 1e6:.0f}M wanted",
              flush=True)  # fmt: skip
    for size, num_boxes in ((7, 1), (7, 2), (10, 4)):
        speed = best(
            lambda size=size, boxes=num_boxes: len(generate(np.arange(1000), size=size, num_boxes=boxes, pulls=12, min_distance=1).boards),
            windows=20,
        )
        print(f"Sokoban levels of {size} x {size} with {num_boxes} boxes: {speed:,.0f} generated/s", flush=True)
    if failed:
        sys.exit(f"too slow: {', '.join(failed)}")


def mujoco() -> None:
    """Env steps per CPU second of rlx's batches of MuJoCo and of gymnasium's environments, in turn, with resets.

    Both take the actions that a policy of 100,000 training steps chose once: random ones would measure resets.
    """
    import numpy as np

    from rlx import load
    from rlx.envs.registry import VectorEnvFactory

    num_envs, num_steps, window, failed = 8, 500, 50, []
    for name, env_id, target in (("hopper", "Hopper-v5", 1.45), ("halfcheetah", "HalfCheetah-v5", 1.3), ("walker2d", "Walker2d-v5", 1.15),
                                 ("ant", "Ant-v5", 1.15), ("humanoid", "Humanoid-v5", 1.15)):  # fmt: skip
        with tempfile.TemporaryDirectory() as directory:
            budget = ["loop.total_env_steps=100000", "loop.eval_every=0", "loop.checkpoint_every=0"]
            environment = {**os.environ, "RLX_RUNS_DIR": directory}
            subprocess.run([RLX, "train", "algo=ppo", f"env={name}", *budget, *QUIET, "--name", "bench"], check=True, env=environment)
            policy = load(Path(directory) / "bench")
        envs = [VectorEnvFactory(env_id, native=native)(num_envs) for native in (True, False)]
        rng, steps = np.random.default_rng(0), []
        obs, _ = envs[0].reset(seed=np.arange(num_envs))
        for _ in range(num_steps):
            action = np.asarray(policy.act(obs)[0], dtype=np.float32)
            obs, _, terminated, truncated, _ = envs[0].step(action)
            steps.append((action, terminated | truncated, rng.integers(2**31 - 1, size=num_envs)))
            if steps[-1][1].any():
                obs, _ = envs[0].reset(seed=steps[-1][2], options={"reset_mask": steps[-1][1]})
        spent = np.zeros((3, num_steps // window, len(envs)))
        for repeat in range(len(spent)):
            for env in envs:
                env.reset(seed=np.arange(num_envs))
            for k in range(num_steps // window):
                for side, env in enumerate(envs):
                    begin = time.process_time()
                    for action, ended, seeds in steps[k * window : (k + 1) * window]:
                        env.step(action)
                        if ended.any():
                            env.reset(seed=seeds, options={"reset_mask": ended})
                    spent[repeat, k, side] = time.process_time() - begin
        ours, theirs = num_envs * num_steps / spent.min(axis=0).sum(axis=0)
        failed += [env_id] if ours < target * theirs else []
        print(f"{env_id}, {num_envs} envs, {sum(int(ended.sum()) for _, ended, _ in steps)} resets: {ours:,.0f} env steps per CPU second, "
              f"gymnasium {theirs:,.0f}, ratio {ours / theirs:.2f}, at least {target} wanted", flush=True)  # fmt: skip
    if failed:
        sys.exit(f"too slow: {', '.join(failed)}")


if __name__ == "__main__":
    benchmarks = {
        f.__name__: f
        for f in (
            start,
            solve,
            cartpole,
            halfcheetah,
            sac,
            atari,
            minigrid,
            checkpoint,
            sweep,
            selfplay,
            planning,
            latent,
            i2a,
            memory,
            envs,
            mujoco,
            terrain,
        )
    }
    for name in sys.argv[1:] or benchmarks:
        benchmarks[name]()
