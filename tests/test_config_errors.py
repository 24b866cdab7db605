"""Invalid configurations are refused in one line with what was got, what was expected and what to type, and leave no files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlx.config.compose import Composer
from rlx.store.layout import runs_directory
from rlx.store.runs import RunDir

TINY = "recipe=null env.num_envs=2 algo.rollout_length=8 loop.total_env_steps=32 loop.eval_every=0 log.wandb=disabled log.console=quiet"

pytestmark = pytest.mark.usefixtures("here")

Rlx = Callable[[str], tuple[int, str, str]]
"""A command line to its exit code, stdout and stderr."""


@pytest.fixture
def rlx(run_command: Rlx) -> Rlx:
    return run_command


def write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def assert_refused(result: tuple[int, str, str], *says: str, code: int = 2) -> None:
    exit_code, out, err = result
    assert exit_code == code, err
    assert out == ""
    assert err.startswith("rlx: ")
    assert err.count("\n") == 1, "one line"
    assert not [piece for piece in says if piece not in err], err
    assert "Traceback" not in err
    assert "use +" not in err, "Hydra's advice for a typo is to add the typo"


BAD_SETTINGS: list[tuple[str, ...]] = [
    # typos of keys
    ("algo.learnin_rate=1", "algo.learnin_rate: unknown key for algo=ppo; did you mean algo.learning_rate?"),
    ("loop.total_steps=1", "loop.total_steps: unknown key; write loop.total_env_steps=1"),
    ("env.num_env=1", "env.num_env: unknown key; write env.num_envs=1"),
    ("sede=1", "sede: unknown key; did you mean seed?"),
    ("device=cpu", "device: unknown key; write runtime.device=cpu"),
    ("algo=a2c algo.clip=0.2", "algo.clip: unknown key for algo=a2c; it is a setting of algo=ppo"),
    ("algo=dqn env=cartpole algo.memory=lstm", "algo.memory: unknown key for algo=dqn; it is a setting of algo=reinforce, a2c, ppo"),
    ("algo=td3 env=pendulum algo.model.kind=perfect", "algo.model.kind: unknown key for algo=td3; it is a setting of algo=sac"),
    ("quite.another=1", "quite.another: unknown key; `rlx config` lists every key"),
    ("hydra.run.dir=x", "hydra.run.dir: unknown key"),
    ("_target_=os.system", "_target_: unknown key"),
    # what others call them
    ("algo.lr=1e-3", "algo.lr: unknown key for algo=ppo; write algo.learning_rate=1e-3"),
    ("lr=1e-3", "lr: unknown key; write algo.learning_rate=1e-3"),
    ("learning_rate=1e-3", "write algo.learning_rate=1e-3"),
    ("gamma=0.9", "gamma: unknown key; write algo.discount=0.9"),
    ("n_steps=2048", "write algo.rollout_length=2048"),
    ("algo=muzero n_steps=3", "write algo.td_steps=3"),
    ("batch_size=64", "write algo.num_minibatches=N: a rollout of algo.rollout_length * env.num_envs steps is dealt into N minibatches"),
    ("algo=dqn target_update_interval=500", "write algo.target_every=500"),
    ("algo=sac env=pendulum alpha=0.2", "write algo.entropy_coef=0.2"),
    ("algo=muzero batch_size=64", "write algo.batch_size=64"),
    ("n_epochs=3", "write algo.num_epochs=3"),
    ("betas=[0.9,0.95]", "write algo.adam_beta1=0.9 algo.adam_beta2=0.95"),
    ("clip_range=0.1", "write algo.clip=0.1"),
    ("vf_coef=1", "write algo.value_coef=1"),
    ("algo=pets env=pendulum algo.population=9", "write algo.planner.num_candidates=9"),
    ("algo=alphazero env=connect_four algo.blocks=2", "write algo.num_blocks=2"),
    ("env_id=CartPole-v1", "write env=CartPole-v1"),
    ("total_timesteps=1e6", "write loop.total_env_steps=1e6"),
    ("wandb=false", "write log.wandb=disabled"),
    ("--seed 3", "--seed: unknown option; did you mean `rlx train seed=3`?"),
    ("--algo ppo --env CartPole-v1 -n 1000", "did you mean `rlx train algo=ppo env=CartPole-v1 loop.total_env_steps=1000`?"),
    ("--learning-rate=1e-3 --track --cuda", "did you mean `rlx train algo.learning_rate=1e-3 log.wandb=online runtime.device=cuda`?"),
    ("PPO cartpole --dryrun", "PPO: expected key=value; did you mean `rlx train algo=ppo env=cartpole --dry-run`?"),
    ("algo = ppo", "algo: expected key=value; did you mean `rlx train algo=ppo`?"),
    ("seed 3", "seed: expected key=value; did you mean `rlx train seed=3`?"),
    ("--mutirun seed=1,2", "--mutirun: unknown option; did you mean `rlx train --multirun seed=1,2`?"),
    # typos of groups
    ("algo=pppo", "algo=pppo: no such algo; did you mean algo=ppo?"),
    ("algo=ddpg env=pendulum", "algo=ddpg: is no algorithm of its own here; write algo=td3 algo.twin=false algo.delay=1 algo.smoothing=0"),
    ("algo=dreamer", "algo=dreamer: no such algo; expected one of "),
    (
        "algo=alphazero env=cartpole",
        "algo=alphazero plays two-player games, and env=CartPole-v1 is none; try env=connect_four, or algo=ppo",
    ),
    ("algo=ppo env=connect_four", "env=spiel:connect_four is a two-player game, which algo=ppo cannot play; try algo=alphazero"),
    ("algo=alphazero env=spiel:conect_four", "env=spiel:conect_four: OpenSpiel has no such game; did you mean env=spiel:connect_four?"),
    (
        "algo=alphazero env=spiel:backgammon",
        "env=spiel:backgammon: chance has a part in it; search needs two players, full information, no "
        "dice and one outcome at the end, as in connect_four, othello or go",
    ),
    (
        "env.opponent=random",
        "env.opponent has no effect unless env is a two-player game; set that too, or leave env.opponent out",
    ),
    (
        "algo=alphazero env=go env.workers=2",
        "env.workers has no effect unless the environment is no two-player game; set that too, or leave env.workers out",
    ),
    (
        "algo=pets env=cartpole_continuous algo.ensemble_size=1 algo.trust=disagreement",
        "algo.trust has no effect unless algo.ensemble_size is above 1; set that too, or leave algo.trust out",
    ),
    (
        "algo=alphazero env=go algo.search.c_puct=2",
        "algo.search.c_puct has no effect unless algo.search.rule=puct; set that too, or leave algo.search.c_puct out",
    ),
    ("algo=alphazero env=hex algo.replay_start=1", "algo.replay_start must be at least algo.batch_size=512, got 1"),
    ("env=cartpol", "env=cartpol: no such environment; did you mean env=cartpole?"),
    ("recipe=ppo_cartpol", "recipe=ppo_cartpol: no such recipe; did you mean recipe=ppo_cartpole?"),
    ("experiment=dmeo", "experiment=dmeo: no such experiment; did you mean experiment=demo?"),
    ("algo=null", "algo=null: expected one name"),
    ("env=[cartpole]", "env=[cartpole]: expected one name"),
    ("algo@other=ppo", "algo@other=ppo: a key has no '@'; write algo=ppo"),
    # types
    ("algo.learning_rate=fast", "algo.learning_rate must be a number, got fast"),
    ("algo.hidden_sizes=64", "algo.hidden_sizes must be a list, e.g. '[64,64]', got 64"),
    ("algo.hidden_sizes=[64,wide]", "algo.hidden_sizes[1]: Value 'wide'"),
    ("algo.activation=swish", "algo.activation must be one of tanh, relu, silu, gelu, elu, got swish"),
    ("algo.anneal_learning_rate=perhaps", "algo.anneal_learning_rate must be true or false, got perhaps"),
    ("env.num_envs=2.5", "env.num_envs must be a whole number, got 2.5"),
    ("env.num_envs=null", "env.num_envs must be a whole number, got null"),
    ("loop.target_return=high", "loop.target_return must be a number or null, got high"),
    ("env=minipacman env.task=foo", "env.kwargs.task must be one of regular, avoid, hunt, ambush, rush, got 'foo'"),
    ("env=minipacman env.tsk=hunt", "env.tsk: unknown key; did you mean env.task?"),
    ("env=cartpole env.task=hunt", "env.task: unknown key"),
    (
        "env=sokoban env.kwargs.boxs=2",
        "env.kwargs.boxs: rlx/Sokoban-v0 has no such setting; did you mean env.kwargs.num_boxes? It has eval_levels, levels, ",
    ),
    ("env=sokoban env.size=9 env.kwargs.size=8", "env.kwargs.size is given twice: env.kwargs.size=9 and env.kwargs.size=8"),
    ("env.kwargs=3", "env.kwargs must be a mapping, e.g. '{name: value}', got 3"),
    ("log.wandb=yes", "log.wandb must be one of auto, online, offline, disabled, got yes"),
    ("loop=5", "loop: is a group of settings; set one of loop.total_env_steps,"),
    ("seed=seven", "seed must be a whole number, got seven"),
    # ranges
    ("seed=-1", "seed must be within [0, 2**63), got -1"),
    ("algo.discount=1.5", "algo.discount must be within [0, 1], got 1.5"),
    ("algo.learning_rate=0", "algo.learning_rate must be above 0, got 0"),
    ("algo.learning_rate=", "algo.learning_rate: no value after the =; write algo.learning_rate=VALUE"),
    ("algo.advantage=\u201cgae\u201d algo=reinforce", "it has typographic quotes; write plain ones"),
    ("algo.learning_rate=None", "algo.learning_rate must be a number, got null"),
    ("algo.learning_rate=nan", "algo.learning_rate must be a number, got nan"),
    ("algo.clip=1", "algo.clip must be within (0, 1), got 1"),
    ("algo.hidden_sizes=[64,0]", "algo.hidden_sizes must be positive widths, e.g. [64,64], got [64, 0]"),
    ("env.num_envs=0", "env.num_envs must be at least 1, got 0"),
    ("env=hopper env.threads=9 env.num_envs=8", "env.threads must be between 1 and env.num_envs=8, got 9"),
    ("env.workers=9 env.num_envs=8", "env.workers must be between 0 and env.num_envs=8, got 9"),
    ("loop.total_env_steps=0", "loop.total_env_steps must be at least 1, got 0"),
    ("runtime.device=gpu", "runtime.device must be auto, cpu, cuda, cuda:N or mps, got gpu"),
    (
        "recipe=null algo.rollout_length=7 env.num_envs=3 algo.num_minibatches=4",
        "algo.num_minibatches=4 does not divide the batch of algo.rollout_length * env.num_envs = 7 * 3 = 21",
        "nearest that divide it: 3 and 7",
    ),
    # absurd numbers
    ("env.num_envs=1e9", "env.num_envs must be at most 1,048,576, got 1000000000"),
    ("env=pendulum env.num_envs=1e6 recipe=null", "env.num_envs must be at most 16,384, got 1000000: each Pendulum-v1 is an object"),
    ("env.num_envs=9e3 env.workers=5e3", "env.workers must be at most 1,024, got 5000"),
    ("algo.learning_rate=1e300", "algo.learning_rate must be 0, or from 1.2e-38 to 3.4e38, which float32 has, got 1e+300"),
    ("algo.learning_rate=1e-300", "algo.learning_rate must be 0, or from 1.2e-38 to 3.4e38"),
    ("algo=dqn env=cartpole algo.distributional=c51 algo.v_max=inf", "algo.v_max must be finite, got inf"),
    (
        "algo=sac env=pendulum algo.imagined=mbpo algo.stop=rank algo.model.ensemble_size=1",
        "algo.model.ensemble_size must be at least 2 with algo.stop=rank: doubt is the disagreement of members, got 1",
    ),
    ("algo=sac env=pendulum algo.target_entropy=-inf", "algo.target_entropy must be finite, or null, got -inf"),
    ("algo.max_grad_norm=nan", "algo.max_grad_norm must be a number, got nan"),
    ("algo.rollout_length=1e300", "algo.rollout_length must be a whole number of at most 64 bits, got 1e+300"),
    ("algo.rollout_length=1e8 env.num_envs=1000", "a rollout of 100,000,000 steps of env.num_envs=1000: that takes 6,400 GB of memory"),
    ("algo.hidden_sizes=[1e9]", "algo.hidden_sizes must be at most 8,192, got [1000000000]"),
    (f"algo.hidden_sizes=[{'8,' * 200}8]", "algo.hidden_sizes must be at most 100 of them, got 201"),
    (
        "algo=alphazero env=connect_four algo.num_blocks=1e3 algo.num_channels=8e3",
        "the networks of algo=alphazero: that takes 18,432 GB of memory",
        "free here",
    ),
    (
        "algo=alphazero env=connect_four algo.search.num_simulations=1e9",
        "algo.search.num_simulations must be at most 100,000, got 1000000000",
    ),
    ("seed=99999999999999999999", "seed must be a whole number of at most 64 bits, got 99999999999999999999"),
    (f"seed={'9' * 5000}", "cannot be read (Exceeds the limit"),
    ("loop.total_env_steps=inf", "loop.total_env_steps must be a whole number of at most 64 bits, got inf"),
    ("loop.total_env_steps=1M", "loop.total_env_steps must be a whole number, e.g. 1000 or 1e6, got 1M"),
    ("loop.eval_episodes=1e9", "loop.eval_episodes must be within [1, 1,000,000], got 1000000000"),
    # how a setting is written
    ("seed=1,2,3", "seed: one run takes one value, got several (1,2,3); did you mean `rlx sweep`, which trains with each of them?"),
    ("algo=ppo,a2c", "algo: one run takes one value, got several (ppo,a2c); did you mean `rlx sweep`, which trains with each of them?"),
    ("'seed=range(1,4)'", "seed: one run takes one value", "did you mean `rlx sweep`, which trains with each of them?"),
    ("+algo.clip=0.1", "+algo.clip=0.1: keys are not added or removed; write algo.clip=VALUE"),
    ("++algo.clip=0.1", "++algo.clip=0.1: keys are not added or removed; write algo.clip=VALUE"),
    ("'~algo.clip'", "~algo.clip: keys are not added or removed; write algo.clip=VALUE"),
    ("cartpole", "cartpole: expected key=value; did you mean `rlx train env=cartpole`?"),
    ("''", "'': expected key=value"),
    ("=3", "=3: expected key=value"),
    ("'algo.hidden_sizes=[1,2'", "algo.hidden_sizes=[1,2: cannot be read", "write lists as 'key=[1,2]'"),
    ("seed=1 seed=2", "seed is given twice: seed=1 and seed=2"),
    ("--dryrun", "--dryrun: unknown option; did you mean `rlx train --dry-run`?"),
    ("--nmae lander", "--nmae: unknown option; did you mean `rlx train --name=lander`?"),
    # settings without effect
    ("algo.kl_coef=2", "algo.kl_coef has no effect unless algo.objective=adaptive_kl; set that too, or leave algo.kl_coef out"),
    ("algo.clip=0.1 algo.objective=adaptive_kl", "algo.clip has no effect unless algo.objective=clip"),
    ("algo.reward_clip=5", "algo.reward_clip has no effect unless algo.normalize_reward=true"),
    ("algo=reinforce algo.advantage=to_go algo.value_coef=1", "algo.value_coef has no effect unless algo.advantage=baseline"),
    ("algo=reinforce algo.advantage=gae algo.n_step=3", "algo.n_step has no effect unless algo.advantage=nstep"),
    ("algo=a2c algo.advantage=nstep algo.gae_lambda=0.9", "algo.gae_lambda has no effect unless algo.advantage=gae or q"),
    ("algo=a2c algo.advantage=to_go", "algo.advantage=to_go needs episodes up to their end", "use algo=reinforce"),
    ("algo=a2c algo.rollout_length=4 algo.advantage=nstep algo.n_step=6", "algo.n_step=6 is more than a rollout has", "algo.n_step=4"),
    ("algo=reinforce algo.advantage=q algo.memory=gru", "algo.advantage=q learns Q(s, a) of single observations", "baseline, nstep or gae"),
    (
        "algo=alphazero env=go algo.search.rule=puct algo.search.dirichlet_fraction=0 algo.search.dirichlet_alpha=1",
        "unless algo.search.dirichlet_fraction is above 0",
    ),
    ("algo=alphazero env=go algo.exploration_plies=0 algo.random_moves=0.1", "no effect unless algo.exploration_plies is above 0"),
    ("algo=muzero env=cartpole algo.symmetries=false", "algo.symmetries has no effect unless env is a two-player game"),
    ("algo=muzero env=cartpole algo.exploration_plies=3", "algo.exploration_plies has no effect unless env is a two-player game"),
    (
        "algo=muzero env=go algo.search.min_return_range=0.3",
        "algo.search.min_return_range has no effect unless the environment is no two-player game",
    ),
    ("env.worker_timeout_s=5", "env.worker_timeout_s has no effect unless env.workers is above 0"),
    ("algo.log_std_init=-1", "algo.log_std_init=-1.0 has no effect: env=CartPole-v1 has discrete actions; leave it out"),
    ("env.id=Pendulum-v1", "env.id: is not set by itself; write env=Pendulum-v1"),
    ("algo.name=a2c", "algo.name: is not set by itself; write algo=a2c"),
    # environments
    ("env=CartPol-v1", "env=CartPol-v1: no such environment is registered with gymnasium; did you mean CartPole-v1"),
    ("env=Qqqqqqqq-v7", "env=Qqqqqqqq-v7: no such environment", "see `rlx envs`, or write my_module:MyEnv-v0"),
    ("env=nowhere:My-v0", "env=nowhere:My-v0: module 'nowhere' cannot be imported (No module named 'nowhere')", "current directory"),
    ("env=../up:My-v0", "module '../up' cannot be imported (that is not a module's name)"),
    ("env=json:My-v0", "module 'json' (", "registers no environment 'My-v0'; importing it must call gymnasium.register("),
    ("env=pendulum env.kwargs.gravity=3", "env=Pendulum-v1 cannot be made with env.kwargs={'gravity': 3}", "unexpected keyword argument"),
    ("env=sokoban env.levels=nowhere", "env.kwargs.levels=nowhere: cannot be read (it is missing)"),
    ("env=cartpole env.kwargs.max_episode_steps=many", "env=CartPole-v1 cannot be made with env.kwargs=", "an integer"),
    # names and directories
    ("--name a/b", "--name a/b: expected a letter or digit, and then up to 199 letters, digits, '.', '_', '+' or '-'"),
    ("--name ..", "--name ..: expected a letter or digit"),
    ("--name ''", "--name '': expected a letter or digit"),
    ("--name " + "x" * 300, "expected a letter or digit, and then up to 199"),
    ("--name .. --auto-resume", "--name ..: expected a letter or digit"),
    ("--name latest", "--name latest: that is how every command calls the run that was started last"),
    ("--config-dir nowhere", "--config-dir nowhere is not a directory; it should hold algo/, env/, recipe/ or experiment/"),
]


@pytest.mark.parametrize(("settings", "says"), [(case[0], case[1:]) for case in BAD_SETTINGS], ids=[case[0][:80] for case in BAD_SETTINGS])
def test_bad_setting_is_refused_in_one_line(settings: str, says: tuple[str, ...], rlx: Rlx, here: Path) -> None:
    assert_refused(rlx(f"train {settings}"), *says)
    assert list(here.iterdir()) == []


def test_whole_numbers_are_taken_as_they_are_written(rlx: Rlx, here: Path) -> None:
    write(here, {"conf/experiment/mine.yaml": GLOBAL + "loop:\n  log_every: 1e3\n"})
    config = (
        Composer(here / "conf")
        .compose(["experiment=mine", "recipe=null", "loop.total_env_steps=1e6", "algo.hidden_sizes=[3.2e1,64.0]", "seed=-0.0"])
        .config
    )
    found = (config.loop.log_every, config.loop.total_env_steps, *config.algo.hidden_sizes, config.seed)
    assert found == (1000, 1_000_000, 32, 64, 0)
    assert all(type(number) is int for number in found)


@pytest.mark.parametrize("settings", ["algo.learnin_rate=1", "seed=1,2", "seed=-1", "env=cartpol"])
def test_rlx_config_refuses_what_rlx_train_refuses(settings: str, rlx: Rlx) -> None:
    assert rlx(f"config {settings}") == rlx(f"train {settings}")


@pytest.mark.parametrize("settings", ["algo.log_std_init=-1", "env=pendulum env.kwargs.gravity=3", "--name a/b", "runtime.device=cuda:99"])
def test_dry_run_refuses_what_rlx_train_refuses(settings: str, rlx: Rlx) -> None:
    refused = rlx(f"train {settings}")
    assert_refused(refused)
    assert rlx(f"train --dry-run {settings}") == refused


MY_ENVS = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, Graph

class Plain(gymnasium.Env):
    observation_space, action_space = Box(-1, 1, (3,), np.float32), Discrete(2)
    def reset(self, *, seed=None, options=None): return np.zeros(3, np.float32), {}
    def step(self, action): return np.zeros(3, np.float32), 1.0, True, False, {}

class TwoKnobs(Plain): action_space = Box(0, 5, (2,), np.int64)
Knobs, Path = 3, dict
class Network(Plain): observation_space = Graph(Box(-1, 1, (3,)), None)
class Spaceless(gymnasium.Env): pass
class Licensed(Plain):
    def __init__(self): raise ValueError("the licence has run out")

for kind in (Plain, TwoKnobs, Network, Spaceless, Licensed):
    gymnasium.register(id=f"{kind.__name__}-v0", entry_point=kind)
"""

BAD_MODULES = {
    "TwoKnobs-v0": ("has action space Box((2,), int64, 0 to 5)", "expects Discrete, MultiDiscrete, MultiBinary, a Box of floats"),
    "Network-v0": ("has observation space Graph(", "no Box, Discrete, MultiDiscrete or MultiBinary"),
    "Spaceless-v0": ("has no observation_space: its constructor must set it",),
    "Licensed-v0": ("cannot be made with env.kwargs={}: ValueError: the licence has run out",),
    "Knobs": ("Knobs is a int and makes no environment; expected a class that inherits from gymnasium.Env",),
    "Path": ("Path is a type and makes no environment",),
    "TwoKnobs": ("has action space Box((2,), int64, 0 to 5)",),
    "Plane-v0": ("my_envs.py) registers no environment 'Plane-v0'; did you mean env=my_envs:Plain-v0?",),
}


@pytest.mark.parametrize("name", BAD_MODULES)
def test_environment_of_ones_own_that_cannot_be_trained_on(name: str, rlx: Rlx, here: Path) -> None:
    write(here, {"my_envs.py": MY_ENVS})
    assert_refused(rlx(f"train env=my_envs:{name}"), f"env=my_envs:{name}", *BAD_MODULES[name])
    assert not (here / "runs").exists()


def test_environment_of_ones_own_need_not_be_registered(rlx: Rlx, here: Path) -> None:
    write(here, {"my_envs.py": MY_ENVS + "\ndef make(gravity): return Plain()\n"})
    for env in ("my_envs:Plain", "my_envs:make env.kwargs.gravity=1"):
        assert rlx(f"train {TINY} env={env} --name x{env[8]}")[0] == 0
    assert rlx("eval xP --trust --episodes 1")[0] == 0
    assert rlx("resume xP --trust loop.total_env_steps=64")[0] == 0
    assert_refused(rlx("train env=my_envs:Plan"), "registers no environment 'Plan'; did you mean env=my_envs:Plain")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def f(:", "SyntaxError: invalid syntax (my_broken.py, line 1)"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        ("", "registers no environment 'My-v0'; importing it must call gymnasium.register("),
    ],
)
def test_module_that_does_not_import_or_registers_nothing(text: str, says: str, rlx: Rlx, here: Path) -> None:
    write(here, {"my_broken.py": text})
    assert_refused(rlx("train env=my_broken:My-v0"), "env=my_broken:My-v0: module 'my_broken'", says)
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("env", "module", "extra"),
    [
        ("halfcheetah", "gymnasium.envs.mujoco.half_cheetah_v5", "mujoco"),
        ("lunarlander", "gymnasium.envs.box2d.lunar_lander", "box2d"),
        ("ALE/Pong-v5", "ale_py", "atari"),
    ],
)
def test_missing_extra_is_named(env: str, module: str, extra: str, rlx: Rlx, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert_refused(rlx(f"train env={env}"), "needs a package that is not installed: pip install", f"rlx[{extra}]")
    assert not (here / "runs").exists()


def test_workers_of_a_native_environment_are_refused(rlx: Rlx, here: Path) -> None:
    assert_refused(rlx("train env=cartpole env.workers=2"), "env.workers=2 has no effect", "add env.native=false, or leave it out")
    assert not (here / "runs").exists()


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "mps"])
def test_device_that_is_not_there(device: str, rlx: Rlx, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert_refused(rlx(f"train runtime.device={device}"), f"runtime.device={device}: torch sees no ", "runtime.device=cpu or auto")
    assert not (here / "runs").exists()


def test_device_number_that_is_not_there(rlx: Rlx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert_refused(rlx("train runtime.device=cuda:2"), "runtime.device=cuda:2: torch sees 2 CUDA devices here")


PPO = "defaults: [/schema/algo/ppo@_here_, _self_]\n"
GLOBAL = "# @package _global_\n"
BAD_FILES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "algo/mine.yaml: syntax": (PPO + "clip: [0.1\n", "algo=mine", ("mine.yaml is not readable YAML", "line 2, column 7")),
    "env/mine.yaml: syntax": ("id: [CartPole-v1\n", "env=mine", ("mine.yaml is not readable YAML",)),
    "algo/mine.yaml: key": (PPO + "clpi: 0.1\n", "algo=mine", ("algo.clpi: unknown key; did you mean algo.clip?", "algo/mine.yaml)")),
    "env/mine.yaml: key": ("num_env: 3\n", "env=mine", ("env.num_env: unknown key; write env.num_envs (in ", "env/mine.yaml)")),
    "recipe/ppo_cartpole.yaml: key": (
        GLOBAL + "loop:\n  log_evry: 1\n", "", ("loop.log_evry: unknown key; did you mean loop.log_every?", "recipe/ppo_cartpole.yaml)"),
    ),
    "experiment/mine.yaml: flat key": (
        GLOBAL + "algo:\n  num_simulations: 8\n", "algo=muzero experiment=mine",
        ("algo.num_simulations: unknown key; write algo.search.num_simulations (search: {num_simulations: VALUE}) (in ",),
    ),
    "experiment/mine.yaml: group": (
        GLOBAL + "algo:\n  search: 8\n", "algo=muzero experiment=mine",
        ("got 8 where a group of settings stands; expected a mapping", "experiment/mine.yaml)"),
    ),
    "experiment/mine.yaml: type": (
        GLOBAL + "loop:\n  total_env_steps: lots\n", "experiment=mine", ("loop.total_env_steps must be a whole number, got lots",),
    ),
    "experiment/mine.yaml: range": (GLOBAL + "seed: -3\n", "experiment=mine", ("seed must be within [0, 2**63), got -3",)),
    "recipe/mine.yaml: package": ("algo: {clip: 0.1}\n", "recipe=mine", ("begin with the line '# @package _global_'", "recipe/mine.yaml)")),
    "algo/mine.yaml: schema": (
        "clip: 0.1\n", "algo=mine", ("does not say whose settings these are", "defaults: [/schema/algo/NAME@_here_, _self_]"),
    ),
    "algo/mine.yaml: default": (PPO.replace("ppo", "pppo"), "algo=mine", ("Could not load 'schema/algo/pppo'", "algo/mine.yaml)")),
    "env/mine.yaml: list": ("- CartPole-v1\n", "env=mine", ("mine.yaml must hold key: value lines, got list",)),
    "env/mine.yaml: tag": ("id: !!python/object/apply:os.getcwd []\n", "env=mine", ("mine.yaml is not readable YAML", "python/object")),
    "env/mine.yaml: id": ("id: Nowhere-v0\n", "env=mine", ("env=Nowhere-v0: no such environment",)),
    "config.yaml: schema": ("seed: 5\n", "algo.clip=0.1", ("config.yaml hides rlx's own: leave it out",)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_of_ones_own_is_named(case: str, rlx: Rlx, here: Path) -> None:
    text, settings, says = BAD_FILES[case]
    write(here, {f"conf/{case.partition(':')[0]}": text})
    assert_refused(rlx(f"train --config-dir conf {settings}"), *says)
    assert not (here / "runs").exists()


@pytest.mark.parametrize("file", ["algo/ppo.yaml", "env/cartpole.yaml", "recipe/ppo_cartpole.yaml"])
def test_file_that_is_not_utf8_is_named(file: str, rlx: Rlx, here: Path) -> None:
    write(here, {f"conf/{file}": ""})
    (here / "conf" / file).write_bytes(b"seed: 1  # \xff\n")
    assert_refused(rlx("train --config-dir conf env=cartpole"), f"conf/{file} is not readable YAML: 'utf-8'")


def test_broken_file_that_is_not_used_blocks_nothing_and_is_not_blamed(rlx: Rlx, here: Path) -> None:
    broken = {f"conf/{group}/a.yaml": "id: [1\n" for group in ("algo", "env", "recipe", "experiment")}
    write(here, {**broken, "conf/env/mine.yaml": "id: [2\n", "conf/algo/deep.yaml": PPO})
    assert rlx("train --dry-run --config-dir conf algo=deep env=cartpole")[0] == 0
    assert_refused(rlx("train --config-dir conf env=mine"), "conf/env/mine.yaml is not readable YAML")


def test_login_that_is_not_there_is_asked_for_before_anything_is_made(rlx: Rlx, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlx.track.wandb.why_no_login", lambda: "no login")
    says = "log.wandb=online: W&B has no login; run `wandb login` or set WANDB_API_KEY, or use log.wandb=auto or offline"
    assert_refused(rlx("train log.wandb=online"), says)
    assert list(here.iterdir()) == []
    tiny = "train recipe=null env.num_envs=2 algo.rollout_length=8 loop.eval_every=0 log.console=quiet --name w --auto-resume"
    assert rlx(f"{tiny} loop.total_env_steps=16 log.wandb=disabled")[0] == 0
    assert_refused(rlx("resume w loop.total_env_steps=32 log.wandb=online"), says)
    assert_refused(rlx(f"{tiny} loop.total_env_steps=32 log.wandb=online"), says)


def test_runs_directory_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RLX_RUNS_DIR", "~/x")
    assert runs_directory() == tmp_path / "x"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and one that has never saved, in a directory of runs."""
    from rlx.run import train
    from rlx.store.runs import new_meta

    root = tmp_path_factory.mktemp("runs")
    composed = Composer().compose(TINY.split())
    train(RunDir.create(root, "lander", composed.config, new_meta(composed)), composed.config, overrides=[])
    RunDir.create(root, "empty", composed.config, new_meta(composed))
    return root


BAD_REFERENCES: list[tuple[str, int, str]] = [
    ("resume landre", 2, "landre: no such run in runs; did you mean lander?"),
    ("eval landre", 2, "landre: no such run in runs; did you mean lander?"),
    ("eval zzz", 2, "zzz: no such run in runs; `rlx ls` lists the runs"),
    ("resume lander algo.clip=0.3", 2, "algo.clip cannot be changed when runs/lander is resumed: only loop.* (budget and cadences), log.*"),
    ("resume lander seed=3", 2, "seed cannot be changed when runs/lander is resumed"),
    ("resume lander env=pendulum", 2, "env cannot be changed when runs/lander is resumed"),
    ("resume lander runtime.threads=2", 2, "runtime.threads cannot be changed when runs/lander is resumed"),
    ("resume lander loop.total_step=3", 2, "loop.total_step: unknown key; did you mean loop.total_env_steps?"),
    ("resume lander loop.total_env_steps=lots", 2, "loop.total_env_steps must be a whole number, got lots"),
    ("resume lander loop.log_every=0", 2, "loop.log_every must be at least 1, or null, got 0"),
    ("resume lander loop.log_every=1,2", 2, "loop.log_every: one run takes one value"),
    ("resume lander --inexat", 2, "--inexat: unknown option"),
    ("resume --inexat", 2, "--inexat: unknown option"),
    ("resume lander empty", 2, "empty: expected key=value"),
    ("eval lander --checkpoint newest", 4, "--checkpoint newest: runs/lander has no such checkpoint; expected best, latest or one of 32"),
    ("eval lander --checkpoint 33", 4, "--checkpoint 33: runs/lander has no such checkpoint; expected best, latest or one of 32"),
    ("eval lander --checkpoint best", 4, "runs/lander was never evaluated, so no checkpoint is the best; use --checkpoint latest"),
    ("eval empty", 4, "runs/empty has no checkpoint to evaluate; it has not saved one yet"),
    ("train --name lander", 2, "runs/lander exists already; `rlx resume lander` continues it"),
    ("train --name lander --dry-run", 2, "runs/lander exists already"),
    ("train --name lander --auto-resume seed=3", 2, "runs/lander is another run: "),
]


@pytest.mark.parametrize(("command", "code", "says"), BAD_REFERENCES, ids=[c for c, _, _ in BAD_REFERENCES])
def test_command_that_does_not_fit_the_run_is_refused_and_changes_nothing(
    command: str, code: int, says: str, rlx: Rlx, here: Path, trained: Path
) -> None:
    shutil.copytree(trained, here / "runs")
    before = {p: p.read_bytes() for p in (here / "runs").rglob("*") if p.is_file()}
    assert_refused(rlx(command), says, code=code)
    assert {p: p.read_bytes() for p in (here / "runs").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("command", ["resume", "resume loop.total_env_steps=9", "eval", "model", "show"])
def test_without_runs_the_way_to_start_one_is_shown(command: str, rlx: Rlx, here: Path) -> None:
    assert_refused(rlx(command), "there are no runs in runs yet; start one with `rlx train algo=ppo env=cartpole`")
    assert list(here.iterdir()) == []


def test_empty_runs_variable_means_the_default(rlx: Rlx, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLX_RUNS_DIR", "")
    assert_refused(rlx("resume"), "there are no runs in runs yet")


def test_runs_directory_that_cannot_be_made(rlx: Rlx, here: Path) -> None:
    write(here, {"runs": "a file"})
    assert_refused(rlx(f"train {TINY}"), "cannot be made", "set RLX_RUNS_DIR to a directory you can write", code=6)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("eval --episodes 0", "Invalid value for '--episodes'"),
        ("eval --seed -1", "Invalid value for '--seed'"),
        ("eval --epsiodes 3", "--epsiodes: unknown option; did you mean `rlx eval --episodes=3`?"),
        ("train --name", "requires an argument"),
        ("eval --episodes 1.5", "--episodes 1.5: expected a whole number"),
        ("eval --episodes 1e12", "--episodes 1e12: expected at most 1,000,000"),
        ("watch --fps nan", "--fps nan: expected a finite number"),
        ("sweep --seed 3 algo.clip=0.1,0.2", "did you mean `rlx sweep --seeds=3 algo.clip=0.1,0.2`?"),
        ("sweep algo.clip=0.1,0.2 --trials 1e12", "--trials 1000000000000: expected at least 1 and at most 1,000,000"),
        ("sweep algo.clip=0.1,0.2 --trials 3 --sampler bayes", "--sampler bayes: expected one of tpe, random, grid, qmc, gp, cmaes"),
        ("run algo=ppo", "run: no such command; did you mean `rlx train algo=ppo`?"),
        ("ppo cartpole", "ppo: no such command; did you mean `rlx train algo=ppo env=cartpole`?"),
        ("foo", "foo: no such command; expected one of train, resume,"),
    ],
)
def test_words_that_the_command_line_does_not_know(command: str, says: str, rlx: Rlx, here: Path) -> None:
    code, _, err = rlx(command)
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("train algo.learnin_rate=1", "rlx: algo.learnin_rate: unknown key for algo=ppo; did you mean algo.learning_rate?\n"),
        ("train env=cartpol", "rlx: env=cartpol: no such environment; did you mean env=cartpole?\n"),
        ("train env=CartPol-v1", "rlx: env=CartPol-v1: no such environment is registered with gymnasium; did you mean CartPole-v1"),
    ],
)
def test_typo_is_answered_without_what_is_slow_to_import(command: str, says: str, here: Path) -> None:
    code = f"""
import sys
from rlx.cli.main import main
sys.argv = ["rlx", *{command.split()!r}]
try:
    main()
finally:
    print(*sorted({{"torch", "wandb", "optuna", "matplotlib", "numba"}} & set(sys.modules)))
"""
    answer = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (2, "\n")
    assert answer.stderr.startswith(says)
    assert list(here.iterdir()) == []
