"""Shell completion: the candidates, requested as bash, zsh and fish request them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlx.cli.main import app
from rlx.config.algo_registry import ALGORITHMS
from rlx.config.compose import Composer
from rlx.store.layout import runs_directory
from rlx.store.runs import RunDir


@pytest.fixture(autouse=True)
def _runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLX_RUNS_DIR", raising=False)


def make_run(name: str) -> None:
    RunDir.create(runs_directory(), name, Composer().compose([]).config, {"algo": "ppo", "env": "cartpole"})


def _bash_words(line: str, breaks: str = "=:") -> tuple[list[str], int]:
    """COMP_WORDS and COMP_CWORD for a line with the cursor at its end; bash breaks words at `=` and `:`."""
    words = []
    for word in line.split(" "):
        for character in breaks:
            word = word.replace(character, f"\n{character}\n")
        words += [part for part in word.split("\n") if part] or [""]
    return words, len(words) - 1


def bash(line: str, breaks: str = "=:") -> list[str]:
    words, cursor = _bash_words(line, breaks)
    env = {"_RLX_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words), "COMP_CWORD": str(cursor)}
    return CliRunner().invoke(app, [], env=env, prog_name="rlx").stdout.split()


def fish(line: str) -> list[str]:
    env = {"_RLX_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args", "_TYPER_COMPLETE_ARGS": line}
    out = CliRunner().invoke(app, [], env=env, prog_name="rlx").stdout
    return [candidate.partition("\t")[0] for candidate in out.splitlines() if candidate]


def zsh(line: str) -> str:
    return CliRunner().invoke(app, [], env={"_RLX_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line}, prog_name="rlx").stdout


def bash_without_equals_break(line: str) -> list[str]:
    """For those who took `=` out of COMP_WORDBREAKS."""
    return bash(line, breaks=":")


whole_word = pytest.mark.parametrize("ask", [fish, bash_without_equals_break])


@pytest.mark.parametrize("ask", [bash, fish, bash_without_equals_break])
def test_a_group_and_its_settings_are_offered_together(ask: Callable[[str], list[str]]) -> None:
    assert ask("rlx train al") == ["algo=", "algo."]


def test_bash_gets_only_what_follows_the_equals_sign() -> None:
    assert sorted(bash("rlx train algo=")) == sorted(ALGORITHMS)
    assert bash("rlx train algo=rein") == ["reinforce"]
    assert bash("rlx train log.wandb=") == ["auto", "online", "offline", "disabled"]


@whole_word
def test_other_shells_get_the_whole_word(ask: Callable[[str], list[str]]) -> None:
    assert sorted(ask("rlx train algo=")) == sorted(f"algo={name}" for name in ALGORITHMS)
    assert ask("rlx train algo=rein") == ["algo=reinforce"]


def test_no_meaning_is_so_long_that_fish_takes_its_end_for_a_candidate() -> None:
    for section in ("algo", "env", "loop", "log", "runtime"):
        assert all(word.startswith(f"{section}.") for word in fish(f"rlx train {section}."))


def test_zsh_gets_the_whole_word_with_its_meaning() -> None:
    assert f'"algo=reinforce":"{ALGORITHMS["reinforce"].summary}"' in zsh("rlx train algo=rein")
    assert '"algo=ppo"' in zsh("rlx train env=cartpole algo=")


@pytest.mark.parametrize("ask", [bash, fish])
def test_a_lone_key_comes_with_its_default_so_that_no_space_follows_it(ask: Callable[[str], list[str]]) -> None:
    assert ask("rlx train algo.ga") == ["algo.gae_lambda=", "algo.gae_lambda=0.95"]
    assert ask("rlx train algo.shared") == ["algo.shared_network=", "algo.shared_network=true", "algo.shared_network=false"]


@pytest.mark.parametrize("ask", [bash, fish])
def test_the_settings_are_those_of_the_algorithm_on_the_line(ask: Callable[[str], list[str]]) -> None:
    assert "algo.clip=" in ask("rlx train algo.")
    assert "algo.clip=" not in ask("rlx train algo=a2c algo.")
    assert "algo.episodes_per_update=" in ask("rlx train seed=3 algo=reinforce algo.")
    assert "algo.clip=" in ask("rlx config experiment=demo algo.")


@pytest.mark.parametrize("ask", [bash, fish])
def test_what_is_given_already_is_left_out(ask: Callable[[str], list[str]]) -> None:
    assert "seed=" not in ask("rlx train seed=3 ")
    assert "algo=" not in ask("rlx train algo=ppo al")
    assert "algo.clip=" in ask("rlx train algo=ppo al")  # algo. would be alone, so what is in it is offered
    assert "algo.clip=" not in ask("rlx train algo.clip=0.1 algo.")
    assert "runtime.device=" not in ask("rlx train runtime.device=cuda:1 runtime.")


def test_values_of_switches_devices_and_optional_settings() -> None:
    assert bash("rlx train env.native=") == ["true", "false"]
    assert bash("rlx train algo.objective=") == ["clip", "adaptive_kl", "spo"]
    assert bash("rlx train algo.target_kl=") == ["null"]
    assert bash("rlx train runtime.device=c") == ["cpu", "cuda", "cuda:0"]
    assert bash("rlx train runtime.device=cuda:") == []  # bash would put it behind the colon
    assert bash("rlx train recipe=nu") == ["null"]


def test_environments_by_short_name_and_by_id() -> None:
    assert bash("rlx train env=half") == ["halfcheetah"]
    assert bash("rlx train env=Half") == ["HalfCheetah-v5"]
    assert bash("rlx envs half") == ["halfcheetah"]


def test_what_cannot_be_set_is_not_offered() -> None:
    assert "algo.name=" not in bash("rlx train algo.")
    assert "env.id=" not in bash("rlx train env.")
    assert bash("rlx train nonsense.") == []
    assert bash("rlx train nonsense=") == []


def test_everything_offered_for_a_key_is_a_valid_override() -> None:
    keys = [word for section in ("env", "loop", "log", "runtime") for word in fish(f"rlx train {section}.") if word.endswith("=")]
    assert len(keys) > 15
    conditional = ("env.worker_timeout_s=", "env.opponent=", "env.opening_plies=")  # need workers, or a game
    offered = [fish(f"rlx train {key}") for key in keys if key not in conditional]
    for choice in (0, -1):
        Composer().compose([words[choice] for words in offered])


def test_the_users_own_groups_are_offered(tmp_path: Path) -> None:
    (tmp_path / "mine" / "env").mkdir(parents=True)
    (tmp_path / "mine" / "env" / "maze.yaml").write_text("id: Maze-v0\n")
    assert bash("rlx train --config-dir mine env=maz") == ["maze"]
    assert bash("rlx train --config-dir nowhere env=tic") == ["tic_tac_toe"]


@pytest.mark.parametrize("ask", [bash, fish])
@pytest.mark.parametrize("verb", ["resume", "eval", "model", "show"])
def test_runs_are_offered_newest_first_after_latest(ask: Callable[[str], list[str]], verb: str) -> None:
    assert ask(f"rlx {verb} ") == []
    make_run("first")
    make_run("second")
    assert ask(f"rlx {verb} ") == ["latest", "second", "first"]
    assert ask(f"rlx {verb} f") == ["first"]


def test_a_resumed_run_is_offered_only_what_it_may_change() -> None:
    make_run("lander")
    keys = fish("rlx resume lander ")
    assert keys == ["loop.", "log.", "runtime."]
    assert fish("rlx resume lander runtime.") == [
        "runtime.device=",
        *(f"runtime.device={d}" for d in ("auto", "cpu", "cuda", "cuda:0", "mps")),
    ]
    assert bash("rlx resume loop.total") == ["loop.total_env_steps=", "loop.total_env_steps=200000"]  # without a name: the latest


def test_damaged_runs_do_not_break_completion(tmp_path: Path) -> None:
    make_run("lander")
    (tmp_path / "runs" / "lander" / "meta.json").write_text("{")
    assert bash("rlx resume lan") == ["lander"]


def test_completion_imports_nothing_heavy() -> None:
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: sys.stderr.write(str([m for m in ('torch', 'wandb', 'gymnasium', 'numpy') if m in sys.modules])))\n"
        "from rlx.cli.main import app; app(prog_name='rlx')"
    )
    env = {**os.environ, "_RLX_COMPLETE": "complete_bash", "COMP_WORDS": "rlx\ntrain\nalgo\n=", "COMP_CWORD": "3"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert (done.stdout.split(), done.stderr) == (sorted(ALGORITHMS), "[]")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_typers_own_script_completes_in_bash(tmp_path: Path) -> None:
    make_run("lander")
    python = shlex.quote(sys.executable)
    (tmp_path / "rlx").write_text(f'#!/bin/sh\nexec {python} -c \'from rlx.cli.main import app; app(prog_name="rlx")\' "$@"\n')
    (tmp_path / "rlx").chmod(0o755)
    asked = ["rlx train algo=", "rlx train algo.ga", "rlx resume "]
    calls = "\n".join(
        f"COMP_WORDS=({' '.join(shlex.quote(w) for w in words)}); COMP_CWORD={cursor}; _rlx_completion rlx; echo ${{COMPREPLY[@]}}"
        for words, cursor in map(_bash_words, asked)
    )
    script = f'eval "$(rlx --show-completion bash)"\n{calls}\n'
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert done.stdout.splitlines() == [
        "a2c alphago alphazero dqn i2a ibp muzero pets ppo pqn reinforce sac td3",
        "algo.gae_lambda= algo.gae_lambda=0.95",
        "latest lander",
    ], done.stderr


def test_checkpoints_of_the_run_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlx import checkpoint

    def taken(env_steps: int, score: float) -> checkpoint.Checkpoint:
        return checkpoint.Checkpoint(Path(f"{env_steps:012d}"), {"env_steps": env_steps, "score": score})

    make_run("pole")
    monkeypatch.setattr(checkpoint, "find_checkpoints", lambda _: ([taken(900, 1.0), taken(400, 2.0)], []))
    assert fish("rlx eval pole --checkpoint ") == ["best", "latest", "900", "400"]
    assert fish("rlx eval pole --checkpoint 4") == ["400"]
