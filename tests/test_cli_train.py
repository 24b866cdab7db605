"""rlx train, resume and eval as a user meets them: what they write, what they say, and what the same command does again."""

from __future__ import annotations

import fcntl
import gc
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from launch import GAME_PLAYING, POLICY_GRADIENT, run_main

from rlx.config.compose import Composer
from rlx.config.saved import load_config
from rlx.render.numbers import digits
from rlx.store.runs import RunDir

COMMAND = Path(sys.executable).with_name("rlx")
SMALL = (
    "recipe=null env.num_envs=4 algo.rollout_length=16 loop.log_every=128 loop.eval_every=320 loop.eval_episodes=5 "
    "loop.checkpoint_every=128 log.wandb=disabled log.console=plain"
)
FAST = f"{SMALL} loop.total_env_steps=640"
TINY = f"{SMALL} loop.total_env_steps=64"
ALGO_SETTINGS = {"reinforce": "algo.episodes_per_update=2", "a2c": "", "ppo": "algo.num_epochs=1"}
SHARED_KEYS = {
    *("env_steps", "iteration", "loss/policy", "loss/value"),
    *("episode/return", "episode/return_mean_100", "episode/length", "episode/count"),
    *("update/entropy", "update/grad_norm", "update/explained_variance", "update/learning_rate", "update/num_gradient_steps"),
    *("eval/return_mean", "eval/return_iqm", "eval/return_std", "eval/return_ci_low", "eval/return_ci_high", "eval/length_mean"),
    *("time/elapsed_s", "time/steps_per_s", "time/collect_s", "time/update_s", "time/evaluate_s", "time/checkpoint_s"),
}
OWN_KEYS = {"reinforce": set(), "a2c": set(), "ppo": {"update/approx_kl", "update/clip_fraction", "update/num_epochs"}}

MY_MODULE = """
import gymnasium
import numpy as np

class Line(gymnasium.Env):
    '''Walk to the right end.'''
    observation_space = gymnasium.spaces.Box(-1.0, 9.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = float(self.start()), 0
        return np.array([self.x], np.float32), {}

    def start(self):
        return self.np_random.integers(4)

    def step(self, action):
        self.x, self.t = max(0.0, self.x + 2.0 * action - 1.0), self.t + 1
        return np.array([self.x], np.float32), float(self.x >= 6), self.x >= 6, self.t >= 20, {}

class Forgetful(Line):
    '''Begins where it likes, whatever the seed.'''
    def start(self):
        return np.random.default_rng().integers(10**6) / 10**6

gymnasium.register(id="Line-v0", entry_point=Line)
gymnasium.register(id="Forgetful-v0", entry_point=Forgetful)
"""

pytestmark = pytest.mark.usefixtures("here")

Rlx = Callable[..., str]
"""A command line to what it prints; `code` is the exit code that it must have."""


@pytest.fixture
def rlx(run_command: Callable[[str], tuple[int, str, str]]) -> Rlx:
    def run(line: str, code: int = 0) -> str:
        exit_code, out, err = run_command(line)
        assert exit_code == code, err
        return err if code else out

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run of every algorithm."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLX_RUNS_DIR", str(root))
        for name, settings in ALGO_SETTINGS.items():
            assert run_main(f"train algo={name} env=cartpole {FAST} {settings} seed=7 --name {name}", patch) == 0
    return root


@pytest.fixture
def runs(trained: Path, here: Path) -> Path:
    """A copy of them in runs/."""
    return shutil.copytree(trained, here / "runs")


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_time(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines(run)]


def contents(run: Path) -> dict[Path, bytes]:
    return {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()}


def meta(run: Path) -> dict[str, Any]:
    return json.loads((run / "meta.json").read_text())


# What a run writes


@pytest.mark.parametrize("algo", POLICY_GRADIENT)
def test_train_writes_what_is_documented(algo: str, trained: Path) -> None:
    run = trained / algo
    assert {p.name for p in run.iterdir()} - {".lock", "code.diff"} == {"config.yaml", "meta.json", "metrics.jsonl", "checkpoints"}
    assert load_config(run / "config.yaml").algo.name == algo
    facts = meta(run)
    assert (facts["name"], facts["algo"], facts["env"], facts["env_id"], facts["seed"]) == (algo, algo, "cartpole", "CartPole-v1", 7)
    assert facts["recipe"] is None
    (segment,) = facts["segments"]
    assert (segment["status"], segment["env_steps"], segment["threads"], segment["device"]) == ("finished", 640, 1, "cpu")
    assert segment["argv"][:2] == ["train", f"algo={algo}"]
    steps = sorted(int(p.name) for p in (run / "checkpoints").iterdir())
    assert steps[-1] == 640
    assert 2 <= len(steps) <= 3, "the last two and the best"
    for checkpoint in (run / "checkpoints").iterdir():
        assert {p.name for p in checkpoint.iterdir()} == {"algo.pt", "run.pt", "manifest.json"}
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        assert (manifest["algo"], manifest["exact"], manifest["why_not_exact"]) == (algo, True, None)


@pytest.mark.parametrize("algo", POLICY_GRADIENT)
def test_same_quantity_has_same_key_in_every_algorithm(algo: str, trained: Path) -> None:
    written = lines(trained / algo)
    assert {key for line in written for key in line} == SHARED_KEYS | OWN_KEYS[algo]
    for line in written:
        assert all(type(line[k]) is int for k in ("env_steps", "iteration"))
        assert all(isinstance(v, int | float) for v in line.values())
    assert [line["env_steps"] for line in written if "eval/return_mean" in line] == [320, 640]
    steps = [line["env_steps"] for line in written]
    assert steps == sorted(steps)
    elapsed = [line["time/elapsed_s"] for line in written]
    assert elapsed == sorted(elapsed)


def test_same_seed_gives_same_lines_but_for_time(rlx: Rlx, runs: Path) -> None:
    rlx(f"train algo=ppo env=cartpole {FAST} {ALGO_SETTINGS['ppo']} seed=7 --name again")
    rlx(f"train algo=ppo env=cartpole {FAST} {ALGO_SETTINGS['ppo']} seed=8 --name other")
    assert without_time(runs / "again") == without_time(runs / "ppo")
    assert without_time(runs / "other") != without_time(runs / "ppo")


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ("algo=ppo env=cartpole seed=7", r"ppo-cartpole-s7-\d{8}-\d{6}-\d{3}"),
        ("algo=a2c env=MountainCarContinuous-v0", r"a2c-MountainCarContinuous-v0-s0-\d{8}-\d{6}-\d{3}"),
        ("algo=ppo env=my_module:Line-v0", r"ppo-my_module-Line-v0-s0-\d{8}-\d{6}-\d{3}"),
    ],
)
def test_default_name_says_algorithm_environment_seed_and_time(settings: str, pattern: str, rlx: Rlx, here: Path) -> None:
    (here / "my_module.py").write_text(MY_MODULE)
    out = rlx(f"train {settings} {TINY}")
    (run,) = (here / "runs").iterdir()
    assert re.fullmatch(pattern, run.name)
    assert out.startswith(f"runs/{run.name}: ")
    assert f"`rlx eval {run.name}" in out


def test_runs_go_where_the_variable_says(rlx: Rlx, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLX_RUNS_DIR", str(here / "elsewhere" / "deep"))
    rlx(f"train {TINY} --name lander")
    assert (here / "elsewhere" / "deep" / "lander" / "meta.json").is_file()
    assert not (here / "runs").exists()


# Composing


def test_dry_run_prints_a_config_that_can_be_read_back_and_trains_nothing(rlx: Rlx, here: Path) -> None:
    settings = "algo=a2c env=pendulum algo.hidden_sizes=[32,16] loop.target_return=-150.5 seed=3 env.kwargs.g=9.5"
    out = rlx(f"train {settings} --name lander --dry-run")
    assert list(here.iterdir()) == []
    (here / "config.yaml").write_text(out)
    assert load_config(here / "config.yaml") == Composer().compose(settings.split()).config
    assert yaml.safe_load(out)["env"] == {
        "id": "Pendulum-v1", "num_envs": 8, "workers": 0, "worker_timeout_s": 60.0, "threads": 1, "native": True, "protocol": None,
        "rescale_actions": True, "kwargs": {"g": 9.5}, "wrappers": [],
        "opponent": "uct:1000", "opening_plies": 0,
    }  # fmt: skip


def test_recipe_of_the_pair_is_used_unless_another_or_none_is_asked_for(rlx: Rlx) -> None:
    assert rlx("train algo=ppo env=cartpole --dry-run").startswith("# recipe: ppo_cartpole; nothing was trained\n")
    assert rlx("train algo=ppo env=CartPole-v1 --dry-run").startswith("# recipe: ppo_cartpole; ")
    assert rlx("train algo=ppo env=cartpole recipe=null --dry-run").startswith("# recipe: none; ")
    assert rlx("train algo=ppo env=MountainCarContinuous-v0 --dry-run").startswith("# recipe: none; ")
    assert yaml.safe_load(rlx("train experiment=demo --dry-run"))["loop"]["target_return"] == 475.0


def test_config_dir_adds_to_and_shadows_what_is_shipped(rlx: Rlx, here: Path) -> None:
    for name, text in {
        "env/short.yaml": "id: CartPole-v1\nnum_envs: 2\nkwargs:\n  max_episode_steps: 20\n",
        "recipe/ppo_short.yaml": "# @package _global_\nalgo:\n  rollout_length: 10\n  num_minibatches: 2\nloop:\n  total_env_steps: 40\n",
        "recipe/ppo_cartpole.yaml": "# @package _global_\nalgo:\n  clip: 0.123\n",
        "algo/careful.yaml": "defaults: [/schema/algo/ppo@_here_, _self_]\nclip: 0.05\n",
        "experiment/both.yaml": "# @package _global_\ndefaults: [override /algo: careful, override /env: short]\nseed: 9\n",
    }.items():
        (here / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "mine" / name).write_text(text)
    mine = "train --config-dir mine log.wandb=disabled"
    rlx(f"{mine} algo=ppo env=short --name lander")
    config = RunDir(here / "runs" / "lander").config(trust=False)
    assert (config.env.id, config.env.num_envs, config.algo.rollout_length, config.env.kwargs) == (
        "CartPole-v1", 2, 10, {"max_episode_steps": 20}
    )  # fmt: skip
    assert lines(here / "runs" / "lander")[-1]["env_steps"] == 40
    assert meta(here / "runs" / "lander")["recipe"] == "ppo_short"

    assert yaml.safe_load(rlx(f"{mine} algo=ppo env=cartpole --dry-run"))["algo"]["clip"] == 0.123
    composed = yaml.safe_load(rlx(f"{mine} experiment=both --dry-run"))
    assert (composed["algo"]["clip"], composed["env"]["num_envs"], composed["seed"]) == (0.05, 2, 9)
    assert "mine/env/short.yaml" in rlx("config --config-dir mine env=short")


# Environments


def test_any_gymnasium_id_trains_with_its_spaces(rlx: Rlx, here: Path) -> None:
    rlx(f"train algo=ppo env=MountainCarContinuous-v0 {TINY} env.kwargs.max_episode_steps=15 --name car")
    rlx(f"train algo=a2c env=FrozenLake-v1 {TINY} --name lake")
    assert lines(here / "runs" / "car")[-1]["eval/length_mean"] == 15
    assert meta(here / "runs" / "lake")["env_id"] == "FrozenLake-v1"


ENV_FILES = {p.stem: p.read_text() for p in sorted((Path(__file__).parents[1] / "conf" / "env").glob("*.yaml"))}


def pairs_of_env_and_algo() -> Iterator[Any]:
    """Every environment with every algorithm for it; the fast tests take one of each environment's, another for each."""
    for i, (env, text) in enumerate(ENV_FILES.items()):
        algos = GAME_PLAYING if "spiel:" in text else POLICY_GRADIENT
        for k, algo in enumerate(algos):
            yield pytest.param(env, algo, marks=[] if k == i % len(algos) else pytest.mark.slow)


@pytest.mark.parametrize(("env", "algo"), list(pairs_of_env_and_algo()))
def test_every_named_environment_trains_with_every_algorithm_for_it(env: str, algo: str, rlx: Rlx, here: Path) -> None:
    if env in ("ant", "halfcheetah", "hopper", "humanoid", "inverted_pendulum", "pusher", "reacher", "walker2d"):
        pytest.importorskip("mujoco")
    if env == "lunarlander":
        pytest.importorskip("Box2D")
    few = "env.num_envs=1 loop.total_env_steps=16 loop.eval_every=0 loop.checkpoint_every=0"
    own = "algo.rollout_length=8" if algo in POLICY_GRADIENT else "algo.num_blocks=1 algo.num_channels=4 algo.search.num_simulations=4"
    rlx(f"train algo={algo} env={env} recipe=null {few} {own} log.wandb=disabled log.console=quiet --name lander")
    (line,) = lines(here / "runs" / "lander")
    assert line["env_steps"] == 16
    assert [p.name for p in (here / "runs" / "lander" / "checkpoints").iterdir()] == ["000000000016"]


def test_module_in_the_current_directory_is_found_by_the_command_and_by_its_workers(rlx: Rlx, here: Path) -> None:
    (here / "my_module.py").write_text(MY_MODULE)
    command = [COMMAND, "train", "env=my_module:Line-v0", "env.workers=1", *TINY.split(), "--name", "lander"]
    ended = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "`rlx eval lander`" in ended.stdout, "who started it need not say --trust"
    rlx("resume lander loop.total_env_steps=128")
    assert json.loads(rlx("eval lander --episodes 3 --json"))["episodes"] == 3
    assert [segment["env_steps"] for segment in meta(here / "runs" / "lander")["segments"]] == [64, 128]


# The same command again


def test_auto_resume_goes_on_then_does_nothing_and_refuses_another_setting(rlx: Rlx, here: Path) -> None:
    unbounded = f"train --auto-resume algo=ppo env=cartpole {SMALL} {ALGO_SETTINGS['ppo']} seed=7"
    command = f"{unbounded} loop.total_env_steps=640"
    run = here / "runs" / "ppo-cartpole-s7"
    rlx(f"{unbounded} loop.total_env_steps=320")
    assert meta(run)["segments"][-1]["env_steps"] == 320
    assert "resuming ppo on CartPole-v1, seed 7" in rlx(command)
    assert [(s["env_steps"], s["overrides"]) for s in meta(run)["segments"]] == [(320, []), (640, ["loop.total_env_steps=640"])]

    before = contents(run)
    assert f"runs/{run.name} is finished" in rlx(command)
    assert contents(run) == before

    refused = rlx(f"{command} algo.clip=0.3 --name {run.name}", code=2)
    assert refused == (
        f"rlx: runs/{run.name} is another run: algo.clip is 0.2 there and 0.3 here; choose another --name, "
        "or repeat the command that started it\n"
    )
    assert contents(run) == before


def test_auto_resume_goes_on_after_a_stop(rlx: Rlx, runs: Path) -> None:
    """A run whose last checkpoint is before its end, as after a kill."""
    run = runs / "ppo"
    whole = without_time(run)
    shutil.rmtree(run / "checkpoints" / "000000000640")
    facts = meta(run)
    facts["segments"][-1]["status"] = "running"
    (run / "meta.json").write_text(json.dumps(facts))
    rlx(f"train --auto-resume algo=ppo env=cartpole {FAST} {ALGO_SETTINGS['ppo']} seed=7 --name ppo")
    assert without_time(run) == whole
    assert meta(run)["segments"][-1]["status"] == "finished"


def test_existing_name_is_refused_and_untouched(rlx: Rlx, runs: Path) -> None:
    before = contents(runs)
    assert "runs/ppo exists already" in rlx(f"train {FAST} --name ppo", code=2)
    assert contents(runs) == before


# Resuming


@pytest.mark.parametrize("algo", POLICY_GRADIENT)
def test_resume_extends_the_budget_on_the_same_axis_and_records_it(algo: str, rlx: Rlx, runs: Path) -> None:
    run = runs / algo
    before = lines(run)
    out = rlx(f"resume {algo} loop.total_env_steps=1_280 loop.log_every=64")
    after = lines(run)
    assert after[: len(before)] == before, "nothing is written twice or lost"
    assert after[-1]["env_steps"] == 1280
    assert after[-1]["iteration"] == 2 * before[-1]["iteration"]
    assert after[-1]["time/elapsed_s"] > before[-1]["time/elapsed_s"]
    config = load_config(run / "config.yaml")
    assert (config.loop.total_env_steps, config.loop.log_every, config.seed) == (1280, 64, 7)
    first, second = meta(run)["segments"]
    assert (first["overrides"], first["env_steps"]) == ([], 640)
    assert (second["overrides"], second["env_steps"]) == (["loop.total_env_steps=1_280", "loop.log_every=64"], 1280)
    assert "finished after 1,280 env steps" in out


def test_resume_without_a_name_takes_the_run_started_last(rlx: Rlx, runs: Path) -> None:
    assert rlx("resume loop.total_env_steps=704").startswith("runs/ppo: resuming ppo on CartPole-v1, seed 7\n")
    assert lines(runs / "ppo")[-1]["env_steps"] == 704


def test_resume_of_a_finished_run_says_so_and_changes_nothing(rlx: Rlx, runs: Path) -> None:
    before = contents(runs)
    assert rlx("resume a2c") == "runs/a2c is finished; train on with a larger budget: `rlx resume a2c loop.total_env_steps=…`\n"
    assert contents(runs) == before


def test_target_return_ends_a_run_and_the_way_on_names_it(rlx: Rlx, runs: Path) -> None:
    rlx("resume ppo loop.total_env_steps=6400 loop.target_return=1")
    reached = lines(runs / "ppo")[-1]["env_steps"]
    assert reached < 6400
    assert "`rlx resume ppo loop.total_env_steps=… loop.target_return=null`" in rlx("resume ppo")
    rlx("resume ppo loop.total_env_steps=3200 loop.target_return=null")
    assert lines(runs / "ppo")[-1]["env_steps"] == 3200


@pytest.mark.parametrize(
    "command",
    [
        "resume ppo",
        "resume ppo loop.total_env_steps=9999",
        f"train --auto-resume --name ppo algo=ppo env=cartpole {SMALL} {ALGO_SETTINGS['ppo']} seed=7 loop.total_env_steps=9999",
    ],
    ids=["resume", "resume further", "auto-resume"],
)
def test_second_process_on_a_run_is_refused(command: str, rlx: Rlx, runs: Path) -> None:
    before = contents(runs)
    with (runs / "ppo" / ".lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = rlx(command, code=2)
    assert refused == "rlx: runs/ppo is being trained by another process; wait for it, or stop it with Ctrl-C or SIGTERM\n"
    assert contents(runs) == before


def test_environment_that_ignores_its_seed_is_resumed_inexactly_and_says_so(rlx: Rlx, here: Path) -> None:
    (here / "my_module.py").write_text(MY_MODULE)
    why = "the same seed and actions did not give the same episode twice"
    out = rlx(f"train env=my_module:Forgetful-v0 {FAST} --name lander")
    assert f"resume will not be exact: {why}" in out
    run = here / "runs" / "lander"
    manifest = json.loads((run / "checkpoints" / "000000000640" / "manifest.json").read_text())
    assert (manifest["exact"], manifest["why_not_exact"]) == (False, why)
    before = lines(run)
    assert f"resume will not be exact: {why}" in rlx("resume lander --trust loop.total_env_steps=1280")
    assert lines(run)[: len(before)] == before
    assert lines(run)[-1]["env_steps"] == 1280


def test_inexact_resume_can_be_asked_for(rlx: Rlx, runs: Path) -> None:
    rlx(f"train algo=ppo env=pendulum {FAST} --name swing")
    out = rlx("resume swing --inexact loop.total_env_steps=704")
    assert "resume will not be exact: resumed with --inexact" in out
    assert json.loads((runs / "swing" / "checkpoints" / "000000000704" / "manifest.json").read_text())["exact"] is False


def test_a_resume_after_an_inexact_one_says_that_it_begins_new_episodes_and_is_exact_again(rlx: Rlx, runs: Path) -> None:
    rlx(f"train algo=ppo env=pendulum {FAST} --name swing")
    checkpoints = runs / "swing" / "checkpoints"
    rlx("resume swing --inexact loop.total_env_steps=704")
    out = rlx("resume swing loop.total_env_steps=768")
    assert "000000000704 was saved without the environments, which begin new episodes: resumed with --inexact" in out
    assert json.loads((checkpoints / "000000000768" / "manifest.json").read_text())["exact"] is True
    assert torch.load(checkpoints / "000000000768" / "run.pt", weights_only=True)["collector"]["env"] is not None
    assert "new episodes" not in rlx("resume swing loop.total_env_steps=832")


# Evaluating


@pytest.mark.parametrize("algo", POLICY_GRADIENT)
def test_eval_prints_what_machines_read_and_adds_only_its_results(algo: str, rlx: Rlx, runs: Path) -> None:
    before = contents(runs)
    result = json.loads(rlx(f"eval {algo} --episodes 20 --json"))
    assert {"return_mean", "return_std", "return_ci", "episodes", "env_steps"} <= result.keys()
    low, high = result["return_ci"]
    assert result["return_min"] <= low <= result["return_mean"] <= high <= result["return_max"]
    assert (result["run"], result["env_steps"], result["episodes"], result["mode"]) == (algo, 640, 20, "deterministic")
    assert result["eval_env_steps"] == 20 * result["length_mean"] == 20 * result["return_mean"], "CartPole pays 1 a step"
    assert json.loads(rlx(f"eval {algo} --episodes 20 --json")) == result
    text = rlx(f"eval {algo} --episodes 20")
    assert f"{algo} at 640 env steps, 20 deterministic episodes of CartPole-v1:" in text
    mean, std = digits(result["return_mean"], result["return_std"])
    assert f"return {mean} ± {std}   95 % interval" in text
    trained = (
        RunDir(runs / algo).metrics()[-1].get("episode/return_mean_100") or RunDir(runs / algo).metrics()[-2]["episode/return_mean_100"]
    )
    assert result["training_return_mean_100"] == trained != result["return_mean"]
    assert f"training return {digits(trained)[0]}, another measure" in text
    kept = runs / algo / "evaluations.jsonl"
    assert [json.loads(line)["return_mean"] for line in kept.read_text().splitlines()] == 3 * [result["return_mean"]]
    kept.unlink()
    assert contents(runs) == before


def test_eval_by_sampling_differs_and_can_be_repeated(rlx: Rlx, runs: Path) -> None:
    deterministic, sampled, again, other = (
        json.loads(rlx(f"eval ppo --episodes 10 --json {more}")) for more in ("", "--stochastic", "--stochastic", "--stochastic --seed 1")
    )
    assert sampled["mode"] == "stochastic"
    assert sampled == again
    assert sampled["return_mean"] != deterministic["return_mean"]
    assert other["return_mean"] != sampled["return_mean"]


def test_eval_of_the_best_the_latest_and_a_numbered_checkpoint(rlx: Rlx, runs: Path) -> None:
    scores = {}
    for path in (runs / "ppo" / "checkpoints").iterdir():
        score = json.loads((path / "manifest.json").read_text())["score"]
        if score is not None:
            scores[int(path.name)] = score
    best = max(scores, key=lambda steps: (scores[steps], steps))

    def evaluated(which: str) -> int:
        return json.loads(rlx(f"eval ppo --episodes 2 --json --checkpoint {which}"))["env_steps"]

    assert evaluated("best") == best
    assert evaluated("latest") == 640
    assert [evaluated(str(int(p.name))) for p in (runs / "ppo" / "checkpoints").iterdir()] == [
        int(p.name) for p in (runs / "ppo" / "checkpoints").iterdir()
    ]


def test_eval_by_path_and_of_a_run_from_a_machine_with_a_gpu(rlx: Rlx, runs: Path, here: Path) -> None:
    (here / "copied").mkdir()
    moved = shutil.move(runs / "a2c", here / "copied" / "a2c")
    expected = rlx(f"eval {moved} --episodes 3")
    for device in ("cuda:7", "mps"):
        for path in (Path(moved) / "config.yaml", Path(moved) / "meta.json"):
            path.write_text(re.sub(r"device: [a-z0-9:]+", f"device: {device}", path.read_text()))
        assert rlx(f"eval {moved} --episodes 3") == expected


def test_eval_falls_back_when_the_latest_checkpoint_is_damaged(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "ppo" / "checkpoints" / "000000000640" / "algo.pt").write_bytes(b"torn")
    assert run_main("eval ppo --episodes 2 --json", monkeypatch) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["env_steps"] < 640
    assert "is damaged" in err
    assert "falling back to the checkpoint before it" in err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio leaves its pipes to the collector
def test_eval_records_a_video_of_every_frame_of_an_episode(rlx: Rlx, runs: Path) -> None:
    imageio = pytest.importorskip("imageio.v3", reason="needs the video extra")
    pytest.importorskip("imageio_ffmpeg", reason="needs the video extra")
    result = json.loads(rlx("eval ppo --episodes 2 --video 1 --json"))
    (path,) = result["videos"]
    frames = imageio.imread(path)
    assert frames.shape[1:] == (400, 600, 3)
    assert len(frames) > 5
    assert frames.min() < 50, "something is drawn"
    assert frames.max() > 200, "on a light ground"
    gc.collect()


def test_code_is_kept_and_nothing_of_its_repository_is_executed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlx.store import provenance

    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, "/dev/null")
    provenance.commit.cache_clear()
    assert provenance.commit() is None
    provenance.save_uncommitted(here).join()
    assert list(here.iterdir()) == []  # no repository
    (here / "mine.py").write_text("a = 1\n")
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "mine.py"], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=here, check=True)
    (here / "mine.py").write_text("a = 2\n")
    config = here / ".git" / "config"
    config.write_text(config.read_text() + f"[core]\nfsmonitor = touch {here}/pwned\n[diff]\nexternal = touch {here}/pwned\n")
    provenance.commit.cache_clear()
    assert len(str(provenance.commit())) == 40
    provenance.save_uncommitted(here).join()
    assert "+a = 2" in (here / "code.diff").read_text()
    (here / ".gitattributes").write_text("* filter=evil\n")
    config.write_text(config.read_text() + f'[filter "evil"]\nclean = touch {here}/pwned\n')
    assert provenance.uncommitted() == b""
    assert not (here / "pwned").exists()
    provenance.commit.cache_clear()
