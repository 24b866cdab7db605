"""rlx config, algos, envs, ls, show, doctor: what they print, on whole runs and on damaged ones."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from rlx import diagnostics
from rlx.cli.main import app
from rlx.config.algo_registry import ALGORITHMS
from rlx.config.compose import Composer
from rlx.config.documentation import key_docs
from rlx.errors import ConfigError
from rlx.extras import EXTRA_MODULES
from rlx.render.braille import MARK, plot
from rlx.render.numbers import digits, number
from rlx.store.layout import runs_directory
from rlx.store.runs import RunDir

ANSI = re.compile(r"\x1b\[")
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RLX_RUNS_DIR", "FORCE_COLOR", "WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def rlx(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="rlx")


def output(*arguments: str) -> str:
    result = rlx(*arguments)
    assert result.exception is None, result.exception
    assert result.exit_code == 0
    return result.stdout


def json_lines(*arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output(*arguments, "--json").splitlines()]


def make_run(
    name: str = "lander", *overrides: str, status: str | None = "finished", num_lines: int = 4, error: str | None = None
) -> RunDir:
    """A run of 1,000 env steps a line: returns 10, 20, ..., evaluated at every second line, saved at the last two of them."""
    composed = Composer().compose(["recipe=null", *overrides])
    config = composed.config
    meta = {**composed.choices, "algo": config.algo.name, "env_id": config.env.id, "seed": config.seed}
    run = RunDir.create(runs_directory(), name, config, meta)
    run.begin_segment({"argv": ["train"], "overrides": ["loop.total_env_steps=4000"], "device": "cpu", "threads": 1})
    lines: list[dict[str, Any]] = []
    for i in range(1, num_lines + 1):
        at = {"env_steps": 1000 * i, "iteration": i}
        lines.append(at | {"episode/return_mean_100": 10.0 * i, "policy/entropy": 0.5, "time/elapsed_s": 2.0 * i})
        if i % 2 == 0:
            lines.append(at | {"eval/return_mean": 100.0 - i})
            write_checkpoint(run, 1000 * i, score=100.0 - i)
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status:
        run.end_segment(status=status, env_steps=1000 * num_lines, **({"error": error} if error else {}))
    return run


def write_checkpoint(run: RunDir, env_steps: int, *, score: float | None, why_not_exact: str | None = None) -> Path:
    path = run.checkpoints / f"{env_steps:012d}"
    path.mkdir(parents=True)
    files = {"algo.pt": b"algo", "run.pt": b"run"}
    for name, data in files.items():
        (path / name).write_bytes(data)
    manifest = {"format": 3, "env_steps": env_steps, "algo": "ppo", "score": score, "exact": why_not_exact is None,
                "why_not_exact": why_not_exact, "files": {n: hashlib.sha256(d).hexdigest() for n, d in files.items()}}  # fmt: skip
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def test_importing_the_commands_imports_nothing_heavy() -> None:
    code = (
        "import sys, rlx.cli.catalogue, rlx.cli.listing, rlx.cli.doctor, rlx.cli.complete, rlx.render.braille;"
        "print([m for m in ('torch', 'wandb', 'gymnasium', 'hydra', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_ls_and_show_do_without_torch_and_gymnasium() -> None:
    make_run()
    code = (
        "import sys; from typer.testing import CliRunner; from rlx.cli.main import app\n"
        "codes = [CliRunner().invoke(app, [verb]).exit_code for verb in ('ls', 'show')]\n"
        "print(codes, [m for m in ('torch', 'wandb', 'gymnasium', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[0, 0] []"


# config


def test_config_says_where_each_value_comes_from() -> None:
    lines = output("config", "algo=a2c", "recipe=null", "algo.discount=0.9", "seed=7").splitlines()
    found = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines if len(line.split()) > 2}
    assert found["algo.discount"] == ["0.9", "command line"]
    assert found["seed"] == ["7", "command line"]
    assert found["algo.gae_lambda"] == ["1.0", "default"]
    assert "algo=a2c" in lines
    assert "env=cartpole (CartPole-v1)" in lines


def test_config_marks_settings_that_have_no_effect() -> None:
    assert re.search(r"^algo\.observation_clip +10\.0 +default, unused$", output("config", "recipe=null"), re.MULTILINE)
    described = output("config", "--describe", "recipe=null")
    assert "Unused unless algo.normalize_observation=true." in described


def test_config_names_the_recipe_and_its_values(tmp_path: Path) -> None:
    (tmp_path / "mine" / "recipe").mkdir(parents=True)
    (tmp_path / "mine" / "recipe" / "tuned.yaml").write_text("# @package _global_\nalgo:\n  discount: 0.5\n")
    text = output("config", "recipe=tuned", "--config-dir", str(tmp_path / "mine"))
    assert text.startswith("recipe: ")
    assert "tuned" in text.splitlines()[0]
    assert re.search(r"^algo\.discount +0\.5 +.*tuned\.yaml$", text, re.MULTILINE)


def test_config_json_is_one_object_with_values_sources_and_docs() -> None:
    (found,) = json_lines("config", "recipe=null", "algo.clip=0.3")
    clip = found["values"]["algo.clip"]
    assert (clip["value"], clip["source"]) == (0.3, "command line")
    assert clip["doc"].startswith("Half-width of the probability-ratio interval")
    assert found["choices"]["algo"] == "ppo"


def test_what_is_piped_has_neither_colour_nor_wrapped_lines() -> None:
    make_run("a-run-with-a-long-name-" + "x" * 60)
    for arguments in (["config", "--describe"], ["algos"], ["envs"], ["ls"], ["show"]):
        text = output(*arguments)
        assert not ANSI.search(text), arguments
    assert "a-run-with-a-long-name-" + "x" * 60 + "  ppo" in output("ls")


@pytest.mark.parametrize("command", ["--help", "algos", "ls --json", "compare lander --latex"])  # each writes in another way
def test_a_command_whose_output_nobody_reads_ends_quietly_as_if_by_sigpipe(command: str, tmp_path: Path) -> None:
    make_run()
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, "-m", "rlx.cli.main", *command.split()], stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_has_help_and_every_command_an_example(name: str) -> None:
    command = COMMANDS[name]
    assert [p.name for p in command.params if p.name != "help" and not getattr(p, "help", None)] == []
    assert f"rlx {name}" in str(command.help).partition("Examples:")[2]


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_setting_of_an_algorithm_has_its_sentence(algo: str) -> None:
    assert [k for k, doc in key_docs(algo, group="algo").items() if not doc] == []


def test_docs_prefer_the_subclass_and_fall_back_to_the_base() -> None:
    docs = key_docs("reinforce")
    assert docs["algo.rollout_length"].startswith("Env steps per env between collections")
    assert docs["algo.discount"] == "Per-step gamma. Within [0, 1]."
    assert "algo.name" not in docs
    assert "env.id" not in docs


# algos, envs


def test_algos_lists_every_algorithm_with_its_summary() -> None:
    text = output("algos")
    assert all(name in text and info.summary in text for name, info in ALGORITHMS.items())
    assert [row["name"] for row in json_lines("algos")] == list(ALGORITHMS)


def test_envs_lists_short_names_ids_and_recipes() -> None:
    rows = {row["name"]: row for row in json_lines("envs")}
    assert rows["cartpole"]["id"] == "CartPole-v1"
    assert rows["cartpole"]["native"]
    assert not rows["lunarlander"]["native"]
    recipes = {name.partition("_")[0] for name in Composer().options("recipe") if name.endswith("_cartpole")}
    assert set(rows["cartpole"]["recipes"]) == recipes


def test_envs_with_a_pattern_also_finds_the_newest_gymnasium_ids() -> None:
    ids = [row["id"] for row in json_lines("envs", "Walker")]
    assert "Walker2d-v5" in ids
    assert "BipedalWalker-v3" in ids
    assert "Walker2d-v4" not in ids
    assert "Walker2d-v3" not in ids


def test_envs_says_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRA_MODULES, "mujoco", ("no_such_module",))
    rows = {row["name"]: row for row in json_lines("envs")}
    assert rows["halfcheetah"]["missing"] == "pip install 'rlx[mujoco]'"
    assert rows["cartpole"]["missing"] is None
    assert "pip install 'rlx[mujoco]'" in output("envs", "cheetah")  # the brackets are no markup


def test_envs_with_an_unknown_pattern_says_what_to_do() -> None:
    error = rlx("envs", "zzz").exception
    assert isinstance(error, ConfigError)
    assert "rlx envs" in str(error)


# ls


def test_ls_without_runs_says_what_to_type() -> None:
    assert "rlx train algo=ppo env=cartpole" in output("ls")
    assert output("ls", "--json") == ""


def test_ls_shows_the_newest_first_with_steps_return_and_evaluations() -> None:
    make_run("old")
    time.sleep(0.002)
    make_run("new", "loop.total_env_steps=8000", status="stopped")
    new, old = json_lines("ls")
    assert (new["run"], old["run"]) == ("new", "old")
    assert (new["status"], new["env_steps"], new["total_env_steps"]) == ("stopped", 4000, 8000)
    assert (new["return_mean_100"], new["last_eval"], new["best_eval"]) == (40.0, 96.0, 98.0)
    assert new["age_s"] < 60
    assert re.search(r"^new +ppo +cartpole +stopped +4000 of 8000 +40 +96 +98 +\d+ s *$", output("ls"), re.MULTILINE)


def test_ls_filters_and_sorts() -> None:
    make_run("a", status="stopped")
    make_run("b", "env=pendulum")
    make_run("c", "algo=a2c")

    def names(*arguments: str) -> list[str]:
        return [row["run"] for row in json_lines("ls", *arguments)]

    assert (names("--algo", "a2c"), names("--env", "pend"), names("--status", "stopped")) == (["c"], ["b"], ["a"])
    assert names("--sort", "name") == ["a", "b", "c"]
    assert names("--algo", "ppo", "--sort", "steps") in (["a", "b"], ["b", "a"])
    assert "No run of the 3 in runs matches" in output("ls", "--algo", "pets")
    for wrong in (["--sort", "size"], ["--status", "done"]):
        assert isinstance(CliRunner().invoke(app, ["ls", *wrong]).exception, ConfigError)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((487.34, 12.5), ["487.3", "12.5"]),
        ((0.0012345, 0.0001), ["0.001234", "0.000100"]),
        ((1234567.0, 3.0), ["1,234,567", "3"]),
        ((5.0, 1e-17), ["5.000", "0.000"]),
        ((100.0, 0.01), ["100.0", "0.01"]),
        ((0.0, 0.0), ["0.0", "0.0"]),
    ],
)
def test_evaluations_are_shown_with_significant_digits(values: tuple[float, ...], shown: list[str]) -> None:
    assert digits(*values) == shown


def test_ls_looks_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run()
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert [row["run"] for row in json_lines("ls", "--runs-dir", "elsewhere")] == ["lander"]
    monkeypatch.setenv("RLX_RUNS_DIR", str(tmp_path / "elsewhere"))
    assert [row["run"] for row in json_lines("ls")] == ["lander"]


def test_a_run_that_is_being_trained_is_running_and_one_that_vanished_is_killed() -> None:
    run = make_run(status=None)
    assert json_lines("ls")[0]["status"] == "killed"
    with (run.path / ".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert json_lines("ls")[0]["status"] == "running"
        assert "rlx resume" not in output("show")


def _tear_meta(run: RunDir) -> None:
    (run.path / "meta.json").write_text('{"name": "lan')


def _meta_of_another_shape(run: RunDir) -> None:
    (run.path / "meta.json").write_text('{"segments": {"started": 3}, "created": 7, "seed": []}')


def _segments_of_another_shape(run: RunDir) -> None:
    (run.path / "meta.json").write_text('{"segments": [{"started": 3, "ended": "?", "overrides": "x", "env_steps": "many"}]}')


def _drop_meta(run: RunDir) -> None:
    (run.path / "meta.json").unlink()


def _drop_config(run: RunDir) -> None:
    (run.path / "config.yaml").unlink()


def _binary_config(run: RunDir) -> None:
    (run.path / "config.yaml").write_bytes(b"\xff\xfe\x00")


def _garble_config(run: RunDir) -> None:
    (run.path / "config.yaml").write_text("algo: [")


def _garble_metrics(run: RunDir) -> None:
    with run.metrics_path.open("ab") as file:
        file.write(b"\x00\x00\x00\n")


def _drop_metrics(run: RunDir) -> None:
    run.metrics_path.unlink()


def _garble_manifest(run: RunDir) -> None:
    (run.checkpoints / "000000004000" / "manifest.json").write_text("[]")


DAMAGE = [_tear_meta, _meta_of_another_shape, _segments_of_another_shape, _drop_meta, _drop_config, _binary_config,
          _garble_config, _garble_metrics, _drop_metrics, _garble_manifest]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_a_damaged_run_is_listed_and_shown_as_far_as_it_can_be_read(damage: Callable[[RunDir], None]) -> None:
    run = make_run()
    damage(run)
    (row,) = json_lines("ls")
    assert row["run"] == "lander"
    if damage is not _drop_metrics:
        assert (row["env_steps"], row["best_eval"]) == (4000, 98.0)
    assert "lander" in output("ls")
    assert "Checkpoints" in output("show", "lander")
    assert json_lines("show", "lander")[0]["run"] == "lander"


@pytest.mark.parametrize(
    ("damage", "said"),
    [(_tear_meta, "meta.json is damaged"), (_drop_config, "config.yaml is missing"), (_garble_config, "config.yaml is damaged"),
     (_garble_metrics, "metrics.jsonl is damaged")],
)  # fmt: skip
def test_ls_says_what_is_damaged(damage: Callable[[RunDir], None], said: str) -> None:
    damage(make_run())
    assert f"lander: {said}" in output("ls")


def test_half_a_last_line_of_metrics_is_not_counted() -> None:
    run = make_run()
    with run.metrics_path.open("a") as file:
        file.write('{"env_steps": 9000, "eval/return_mean": 999.0')
    (row,) = json_lines("ls")
    assert (row["env_steps"], row["best_eval"], row["problem"]) == (4000, 98.0, None)


def test_ls_of_two_hundred_runs_is_fast() -> None:
    run = make_run(num_lines=100)
    for i in range(200):
        shutil.copytree(run.path, run.path.with_name(f"copy{i}"), ignore=shutil.ignore_patterns("checkpoints"))
    start = time.process_time()
    assert len(json_lines("ls")) == 201
    assert time.process_time() - start < 2.0


# show


@pytest.mark.parametrize(("hosts", "resume"), [(["here"], "rlx resume wide --ranks 2"), (["here", "there"], "rlx resume wide")])
def test_show_tells_how_many_ranks_trained_a_run_and_goes_on_with_as_many(hosts: list[str], resume: str) -> None:
    run = make_run("wide")
    run.begin_segment({"argv": ["train"], "overrides": [], "device": "cpu", "threads": 1, "ranks": 2, "hosts": hosts})
    run.end_segment(status="stopped", env_steps=4000)
    text = output("show", "wide")
    assert re.search(r"cpu, .*2 ranks", text)
    assert re.search(rf"^  go on +{resume}$", text, re.MULTILINE)


def test_show_tells_settings_checkpoints_metrics_and_what_to_do_next() -> None:
    make_run("lander", "algo.clip=0.3")
    text = output("show", "lander")
    assert "ppo on CartPole-v1, seed 0, recipe none" in text
    assert re.search(r"^  algo\.clip +0\.3$", text, re.MULTILINE)
    assert re.search(r"^  2,000 +98 .*exactly +best *$", text, re.MULTILINE)
    assert re.search(r"^  4,000 +96 .*exactly *$", text, re.MULTILINE)
    assert "entropy\N{NO-BREAK SPACE}0.5" in text
    assert "loop.total_env_steps=4000" in text  # what the segment changed
    assert MARK in text
    assert "rlx resume lander loop.total_env_steps=400000" in text
    assert "rlx eval lander --checkpoint best" in text


def test_show_accepts_latest_and_a_path(tmp_path: Path) -> None:
    make_run("old")
    time.sleep(0.002)
    make_run("new")
    assert json_lines("show")[0]["run"] == "new"
    assert json_lines("show", "latest")[0]["run"] == "new"
    (tmp_path / "runs" / "old").rename(tmp_path / "moved")
    assert "rlx resume moved" in output("show", "moved").replace(f"{tmp_path}/", "")


def test_show_of_an_unknown_run_names_the_nearest() -> None:
    make_run("lander")
    assert "did you mean lander?" in str(rlx("show", "landr").exception)


def test_show_names_damaged_checkpoints_and_does_not_call_them_best() -> None:
    run = make_run()
    (run.checkpoints / "000000002000" / "run.pt").write_bytes(b"ruin")
    (run.checkpoints / "000000001000.damaged-1700000000").mkdir()
    (run.checkpoints / "000000003000.tmp-12").mkdir()
    found = {c["name"]: c for c in json_lines("show")[0]["checkpoints"]}
    assert found["000000002000"]["damage"] == "run.pt is damaged"
    assert not found["000000002000"]["best"]
    assert found["000000004000"]["best"]
    assert found["000000001000.damaged-1700000000"]["damage"] == "found damaged and put aside"
    assert "000000003000.tmp-12" not in found


def test_show_says_why_a_resume_is_not_exact() -> None:
    write_checkpoint(make_run(), 5000, score=None, why_not_exact="its physics outlives the episode")
    assert "not exactly: its physics outlives the episode" in output("show")


def test_of_equal_scores_the_newest_is_best_as_for_eval() -> None:
    write_checkpoint(make_run(), 5000, score=98.0)
    assert [c["name"] for c in json_lines("show")[0]["checkpoints"] if c["best"]] == ["000000005000"]


def test_show_repeats_the_error_that_ended_a_run() -> None:
    make_run(status="failed", error="NonFiniteError: the loss is nan")
    assert "NonFiniteError: the loss is nan" in output("show")


def test_show_of_a_run_without_configuration_does_not_offer_to_resume_it() -> None:
    _drop_config(make_run())
    text = output("show")
    assert "rlx resume" not in text
    assert "rlx train" in text


def test_show_does_not_import_the_module_that_a_run_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'was-imported')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    text = (run.path / "config.yaml").read_text().replace("id: CartPole-v1", "id: evil:Env-v0")
    (run.path / "config.yaml").write_text(text)
    assert json_lines("show")[0]["resumable"]
    assert not (tmp_path / "was-imported").exists()


# plot


def test_plot_draws_a_rising_line_from_bottom_left_to_top_right() -> None:
    lines = plot([(0, 0.0), (100, 10.0)], width=30, height=5, x_label="steps")
    assert len(lines) == 7
    assert lines[0].startswith("10 ┤")
    assert lines[4].startswith(" 0 ┤⡠") or lines[4].startswith(" 0 ┤⣀")
    assert lines[0][-1] not in " ┤"
    assert lines[6].split() == ["0", "steps", "100"]
    assert all(len(line) <= 30 for line in lines)


def test_plot_of_one_point_or_a_constant_is_in_the_middle() -> None:
    for points in ([(5.0, 3.0)], [(1.0, 3.0), (9.0, 3.0)]):
        lines = plot(points, width=30, height=5)
        drawn = [i for i, line in enumerate(lines[:5]) if re.search("[⠁-⣿]", line)]
        assert drawn == [2]
        assert lines[2].startswith("  3 ┤")


def test_plot_of_nothing_finite_is_nothing() -> None:
    assert plot([]) == []
    assert plot([(0.0, math.nan), (1.0, math.inf), (2.0, -math.inf)], [(3.0, math.nan)]) == []


def test_plot_leaves_a_gap_where_a_value_is_not_finite() -> None:
    whole = plot([(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0)], width=40, height=4)
    gap = plot([(0, 1.0), (1, math.nan), (2, 1.0), (3, 2.0)], width=40, height=4)
    assert sum(line.count(" ") for line in gap) > sum(line.count(" ") for line in whole)


def test_plot_marks_lie_over_the_curve() -> None:
    lines = plot([(0, 0.0), (10, 10.0)], [(0, 0.0), (10, 10.0)], width=30, height=5)
    assert lines[0].endswith(MARK)
    assert f"┤{MARK}" in lines[4]


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1.0, 1e12, 1e299])
def test_plot_fits_any_scale(scale: float) -> None:
    lines = plot([(0, -scale), (1e7, scale)], width=60, height=6, x_label="env steps")
    assert all(len(line) <= 60 for line in lines)
    assert "10M" in lines[-1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-12.345, "-12.35"),
        (9999, "9999"),
        (10_000, "10k"),
        (409_600, "409.6k"),
        (999_999, "1M"),
        (2.5e9, "2.5G"),
        (1e-5, "1e-05"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


# doctor


def test_doctor_passes_here_and_leaves_nothing_behind(tmp_path: Path) -> None:
    report = json_lines("doctor")[0]
    assert report["broken"] == 0, report
    assert {"versions", "cpu", "threads", "gpu", "runs", "disk", "wandb", "conf", "repeatable", "extras"} <= {
        c["name"] for c in report["checks"]
    }
    assert list(tmp_path.iterdir()) == []


def test_doctor_fails_when_runs_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLX_RUNS_DIR", str(tmp_path / "file" / "runs"))
    monkeypatch.setattr(diagnostics, "CHECKS", (diagnostics._storage,))
    result = rlx("doctor")
    assert result.exit_code == 1
    assert "set RLX_RUNS_DIR to a directory that you can write" in result.stdout
    assert "1 broken" in result.stdout


def test_doctor_reports_a_failing_check_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def _driver() -> Any:
        raise RuntimeError("no kernel image for this card")
        yield

    monkeypatch.setattr(diagnostics, "CHECKS", (_driver, diagnostics._extras))
    result = rlx("doctor")
    assert result.exit_code == 1
    assert "RuntimeError: no kernel image for this card" in result.stdout
    assert "extras" in result.stdout


def test_doctor_warns_of_a_slow_disk_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "_measure", lambda directory: (0.4, 5e6, False))
    monkeypatch.setattr(diagnostics, "CHECKS", (diagnostics._storage,))
    result = rlx("doctor")
    assert result.exit_code == 0
    assert "loop.checkpoint_every" in result.stdout
    assert "has no locks" in result.stdout


def test_doctor_reads_no_secret_aloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(diagnostics, "CHECKS", (diagnostics._tracking,))
    text = rlx("doctor").stdout
    assert "there is a login" in text
    assert "0" * 40 not in text


@pytest.mark.parametrize("command", sorted(typer.main.get_command(app).commands))  # type: ignore[attr-defined]
def test_help_shows_all_that_was_written(command: str) -> None:
    """What stands in square brackets is markup to rich, and vanishes."""
    for parameter in typer.main.get_command(app).commands[command].params:  # type: ignore[attr-defined]
        assert not re.search(r"\[[a-z]", getattr(parameter, "help", None) or ""), parameter.name
