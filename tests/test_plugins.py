"""Algorithms and environments of other people: from one file to a resumed sweep, as an installed package, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hydra.core.config_store import ConfigStore

from rlx.config import algo_registry
from rlx.config.completion import override_candidates
from rlx.config.compose import Composer, _of_shipped_files

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "my_algo.py"
TINY = "env=cartpole env.num_envs=4 algo.rollout_length=8 loop.total_env_steps=64 loop.eval_every=0 log.wandb=disabled log.console=quiet"

Rlx = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def rlx(run_command: Rlx) -> Rlx:
    return run_command


@pytest.fixture
def fresh(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with the example, none of whose modules stays imported."""
    Composer().compose(["env=cartpole"])  # what a process registers only once belongs to what is put back
    before, groups = set(sys.modules), copy.deepcopy(ConfigStore.instance().repo)
    monkeypatch.syspath_prepend(here)
    shutil.copy(EXAMPLE, here)
    forget()
    yield here
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(here)):
            del sys.modules[name]
    ConfigStore.instance().repo = groups
    forget()


def forget() -> None:
    algo_registry.algorithm.cache_clear()
    algo_registry.entry_points.cache_clear()
    _of_shipped_files.cache_clear()


def install(directory: Path, group: str, line: str) -> None:
    """What an installed package leaves on the path."""
    info = directory / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{line}\n")
    forget()


def test_a_file_is_trained_resumed_evaluated_and_listed(fresh: Path, rlx: Rlx) -> None:
    assert rlx(f"train algo=my_algo:MyAlgo {TINY} --name mine")[0] == 0
    assert rlx("resume mine loop.total_env_steps=128")[0] == 0
    assert rlx("eval mine --episodes 2 --json")[0] == 0
    listed = rlx("ls --json")[1]
    assert json.loads(listed.splitlines()[0])["algo"] == "my_algo:MyAlgo"
    code, out, _ = rlx("show mine")
    assert code == 0
    assert "rollout_length" in out


def test_a_sweep_over_its_settings_goes_on_where_it_was(fresh: Path, rlx: Rlx) -> None:
    assert rlx(f"sweep algo=my_algo:MyAlgo {TINY} algo.min_std=0.1,0.2 --name both --jobs 1")[0] == 0
    assert rlx("sweep --resume both --seeds 2 --jobs 1")[0] == 0
    assert json.loads(rlx("ls --sweep both --json")[1].splitlines()[0])["counts"] == {"finished": 4}


def test_its_settings_are_described_checked_and_completed(fresh: Path, rlx: Rlx) -> None:
    code, out, _ = rlx("config algo=my_algo:MyAlgo --describe")
    assert code == 0
    assert "Share of the candidates that the next ones are drawn around. Within (0, 1]." in out
    for word, says in {
        "algo.elite_fraction=2": "algo.elite_fraction must be within (0, 1], got 2",
        "algo.min_sd=1": "did you mean algo.min_std?",
        "env=connect_four": "is a two-player game, which algo=my_algo:MyAlgo cannot play",
        "env=pendulum": "needs discrete actions",
    }.items():
        code, _, err = rlx(f"train algo=my_algo:MyAlgo {word} --dry-run")
        assert (code, says in err) == (2, True), err
    assert "algo.min_std=" in [word for word, _ in override_candidates("algo.min", ["algo=my_algo:MyAlgo"], None, resuming=False)]


def test_a_run_of_somebody_else_imports_no_algorithm(fresh: Path, rlx: Rlx, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rlx(f"train algo=my_algo:MyAlgo {TINY} --name mine")[0] == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(fresh / "another-user"))
    (fresh / "my_algo.py").write_text("raise SystemExit('imported')")
    del sys.modules["my_algo"]
    forget()
    for command in ("ls", "show mine"):
        assert rlx(command)[0] == 0
    code, _, err = rlx("resume mine")
    assert code == 2
    assert "uses algo=my_algo:MyAlgo, which imports the module 'my_algo' and so runs its code; if you trust" in err


def test_an_installed_package_adds_an_algorithm_by_name(fresh: Path, rlx: Rlx) -> None:
    install(fresh, "rlx.algorithms", "cross_entropy = my_algo:MyAlgo")
    assert "cross_entropy" in rlx("algos")[1]
    assert "did you mean algo=cross_entropy?" in rlx("train algo=cros_entropy")[2]
    assert rlx(f"train algo=cross_entropy {TINY} --name mine")[0] == 0
    assert rlx("resume mine loop.total_env_steps=96")[0] == 0


def test_an_installed_package_adds_an_environment_by_name(fresh: Path, rlx: Rlx) -> None:
    (fresh / "my_env.py").write_text("from gymnasium.envs.classic_control import CartPoleEnv\nclass Mine(CartPoleEnv):\n    pass\n")
    install(fresh, "rlx.environments", "mine = my_env:Mine")
    assert "my_env:Mine" in rlx("envs mine")[1]
    assert rlx(f"train algo=my_algo:MyAlgo {TINY.replace('env=cartpole', 'env=mine')} --name mine")[0] == 0


def test_a_broken_package_breaks_no_other_command(fresh: Path, rlx: Rlx) -> None:
    (fresh / "ruin.py").write_text("1 / 0\n")
    install(fresh, "rlx.algorithms", "ruin = ruin:Ruin")
    code, out, _ = rlx("algos --json")
    row = json.loads(out.splitlines()[-1])
    assert code == 0
    assert row["summary"].startswith("broken: ")
    assert "ZeroDivisionError" in row["summary"]
    assert rlx("config algo=ppo")[0] == 0
    code, _, err = rlx("train algo=ruin env=cartpole")
    assert code == 2
    assert "a plug-in of the package my-package; `pip uninstall my-package` removes it" in err


CLASS = "\n    ".join(f"def {method}(self): ..." for method in ("act", "initial_carry", "update", "state_dict", "load_state_dict"))
WRONG = {
    "nowhere:MyAlgo": ("", "module 'nowhere' cannot be imported (No module named 'nowhere'); it must be in the current directory"),
    "wrong:MyAlgos": ("class MyAlgo: ...", "has no 'MyAlgos'; did you mean wrong:MyAlgo?"),
    "wrong:x": ("x = 3", "wrong:x is a int; expected a class"),
    "wrong:A": ("class A:\n    def act(self): ...", "A has no initial_carry(), update()"),
    "wrong:B": (f"class B:\n    {CLASS}", "B has no settings; give the class an attribute Config, a dataclass that inherits from"),
    "wrong:C": (f"class C:\n    Config = dict\n    {CLASS}", "C.Config is <class 'dict'>; expected a dataclass"),
    "wrong:D": (
        f"from rlx.plugins import AlgoConfig\nclass S(AlgoConfig):\n    speed: int = 1\nclass D:\n    Config = S\n    {CLASS}",
        "S.speed is no setting; decorate S with @dataclass(kw_only=True)",
    ),
    "wrong:E": ("import no_such_package", "module 'wrong' cannot be imported (No module named 'no_such_package')"),
    "wrong:F": ("\n\n1 / 0", "/wrong.py:3); it must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_algorithm_is_refused_in_one_line(name: str, fresh: Path, rlx: Rlx) -> None:
    text, says = WRONG[name]
    (fresh / "wrong.py").write_text(text)
    code, out, err = rlx(f"train algo={name} env=cartpole")
    assert (code, out) == (2, "")
    assert err.startswith(f"rlx: algo={name}: ")
    assert says in err
    assert err.count("\n") == 1


WRAPPERS = """
import gymnasium

class Longer(gymnasium.RewardWrapper):
    def __init__(self, env, k=2):
        super().__init__(env)
        self.k = k

    def reward(self, reward):
        return self.k * reward

def nothing(env):
    return 3
"""


@pytest.fixture
def wrappers(fresh: Path) -> Path:
    (fresh / "my_wrappers.py").write_text(WRAPPERS)
    return fresh


def test_wrappers_are_applied_in_order_with_their_arguments(wrappers: Path, rlx: Rlx) -> None:
    from rlx.build import env_factory
    from rlx.config.compose import Composer

    words = ["env=cartpole", "env.wrappers=[my_wrappers:Longer,{target: my_wrappers:Longer, kwargs: {k: 5}}]"]
    env = env_factory(Composer().compose(words).config)(2)
    env.reset(seed=[0, 1])
    assert env.step(np.zeros(2, dtype=np.int64))[1].tolist() == [10.0, 10.0]
    env.close()


def test_a_run_in_wrappers_is_resumed_evaluated_and_untrusted_elsewhere(wrappers: Path, rlx: Rlx, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = "'env.wrappers=[{target: my_wrappers:Longer, kwargs: {k: 3}}]'"
    assert rlx(f"train algo=a2c {TINY} {wrapped} --name mine")[0] == 0
    assert rlx("resume mine loop.total_env_steps=128")[0] == 0
    found = json.loads(rlx("eval mine --episodes 1 --json")[1])
    assert found["return_mean"] == 3 * found["length_mean"]
    monkeypatch.setenv("XDG_STATE_HOME", str(wrappers / "another-user"))
    assert "uses env.wrappers=my_wrappers:Longer, which imports the module 'my_wrappers'" in rlx("eval mine")[2]


@pytest.mark.parametrize(("given", "says"), [
    ("[x]", "env.wrappers[0] must be my_module:Wrapper or {target: my_module:Wrapper, kwargs: {…}}, got x"),
    ("[{target: my_wrappers:Longer, k: 2}]", "env.wrappers[0] must be my_module:Wrapper"),
    ("[my_wrappers:Long]", "env.wrappers=my_wrappers:Long: module 'my_wrappers'", ),
    ("[{target: my_wrappers:Longer, kwargs: {j: 2}}]", "env.wrappers=my_wrappers:Longer cannot be made with kwargs={'j': 2}: TypeError"),
    ("[my_wrappers:nothing]", "env.wrappers=my_wrappers:nothing makes a int; expected a gymnasium.Wrapper"),
])  # fmt: skip
def test_what_is_no_wrapper_is_refused_in_one_line(given: str, says: str, wrappers: Path, rlx: Rlx) -> None:
    code, out, err = rlx(f"train env=cartpole 'env.wrappers={given}'")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert says in err


BROKEN = """
import torch
from my_algo import MyAlgo

class Broken(MyAlgo):
    def {method}:
        {body}
"""
ACT, SAVE = "act(self, obs, carry, is_first, *, mode)", "state_dict(self)"
FAILS = {
    "init": ("__init__(self, *args)", "1 / 0", 5, "raised ZeroDivisionError: division by zero; {file}:7"),
    "act": (ACT, "1 / 0", 5, "raised ZeroDivisionError: division by zero; {file}:7"),
    "update": ("update(self, rollout, progress)", "[].pop()", 5, "raised IndexError: pop from empty list; {file}:7"),
    "saving": (SAVE, "return {}['mean']", 5, "raised KeyError: 'mean'; {file}:7"),
    "metrics": ("update(self, rollout, progress)", "return {'a/b': 'many'}", 5, "update() returned 'many' (str) as the metric 'a/b'"),
    "wide metrics": ("update(self, rollout, progress)", "return {'a/b': torch.ones(3)}", 5, "a tensor of shape (3,) as the metric 'a/b'"),
    "no output": (ACT, "return None", 5, "returned something that cannot be used (TypeError: "),
    "shape": (ACT, "return super().act(obs[:2], carry, is_first, mode='eval')", 5, "actions of shape (2,), expected one for each of 4"),
    "state": (SAVE, "return {'net': [lambda: 1]}", 4, "algo['net'][0] is a function, which cannot be saved as data"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILS)
def test_the_failure_of_a_plug_in_is_named_and_is_no_bug_of_rlx(name: str, fresh: Path, rlx: Rlx) -> None:
    method, body, expected, says = FAILS[name]
    (fresh / "broken.py").write_text(BROKEN.format(method=method, body=body))
    code, _, err = rlx(f"train algo=broken:Broken {TINY} --name mine")
    assert (code, err.count("\n")) == (expected, 1), err
    assert says.replace("{file}", str(fresh / "broken.py")) in err
    if "raised" in says and name != "init":  # an algorithm is built once before there is a run
        assert "Traceback" in (fresh / "runs" / "mine" / "log.txt").read_text()


def test_a_plug_in_that_fails_keeps_its_last_checkpoint(fresh: Path, rlx: Rlx) -> None:
    body = "assert progress.env_steps < 64, 'late'; return super().update(rollout, progress)"
    (fresh / "broken.py").write_text(BROKEN.format(method="update(self, rollout, progress)", body=body))
    code, _, err = rlx(f"train algo=broken:Broken {TINY} loop.checkpoint_every=32 --name mine")
    assert (code, "AssertionError: late" in err) == (5, True), err
    assert [path.name for path in (fresh / "runs" / "mine" / "checkpoints").iterdir()] == ["000000000032"]
    assert json.loads(rlx("eval mine --episodes 1 --json")[1])["env_steps"] == 32
