"""Evaluation return and training return: named wherever a return is shown, and never mixed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from rlx.config.compose import Composer
from rlx.store.measures import in_words, training_return
from rlx.store.runs import RunDir, new_meta

EVALUATED, TRAINED = "eval/return_mean (evaluation, most likely actions)", "episode/return_mean_100 (training, sampled actions)"


@pytest.fixture
def run(here: Path) -> RunDir:
    """A run with three evaluations, whose training return is half of what they found."""
    composed = Composer().compose(["algo=ppo", "env=cartpole"])
    found = RunDir.create(here / "runs", "car", composed.config, new_meta(composed))
    found.begin_segment({})
    lines = [
        line
        for steps, value in ((1000, 100.0), (2000, 300.0), (3000, 480.0))
        for line in (
            {"env_steps": steps, "iteration": 1, "episode/return_mean_100": value / 2, "time/elapsed_s": 1.0},
            {"env_steps": steps, "iteration": 1, "eval/return_mean": value, "time/elapsed_s": 1.0},
        )
    ]
    found.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found.end_segment(status="finished")
    return found


def test_returns_are_named_with_their_measure_and_other_metrics_are_not():
    assert in_words("eval/return_mean") == EVALUATED
    assert in_words("eval/return_iqm") == "eval/return_iqm (evaluation, most likely actions)"
    assert in_words("episode/return_mean_100") == TRAINED
    assert [in_words(name) for name in ("eval/length_mean", "loss/value", "time/elapsed_s")] == [
        "eval/length_mean",
        "loss/value",
        "time/elapsed_s",
    ]


def test_the_training_return_of_a_checkpoint_is_that_of_the_line_at_or_before_it(run):
    assert [training_return(run, steps) for steps in (999, 1000, 2500, 3000, 9000)] == [None, 50.0, 150.0, 240.0, 240.0]
    assert training_return(RunDir(run.path / "nothing"), 1000) is None


def test_compare_says_which_measure_it_compares(run, run_command):
    assert run_command("compare car")[1].startswith(f"{EVALUATED}, last value")
    code, out, _ = run_command("compare car --measure training")
    assert code == 0
    assert out.startswith(f"{TRAINED}, last value")
    assert "240" in out
    assert "480" not in out
    assert "next: rlx plot car --metric episode/return_mean_100" in out
    (row,) = csv.DictReader(io.StringIO(run_command("compare car --measure evaluation --csv")[1]))
    assert (row["metric"], row["mean"]) == ("eval/return_mean", "480.0")
    assert run_command("compare car --latex --measure training")[1].startswith(f"% {TRAINED}")


@pytest.mark.parametrize("command", ["compare car", "plot car --terminal"])
def test_a_measure_that_does_not_exist_or_contradicts_the_metric_is_refused(command, run, run_command):
    code, out, err = run_command(f"{command} --measure trainin")
    assert (code, out) == (2, "")
    assert "--measure trainin: did you mean training?" in err
    code, out, err = run_command(f"{command} --measure training --metric eval/return_mean")
    assert (code, out) == (2, "")
    assert "short for --metric episode/return_mean_100" in err


def test_the_list_and_one_run_show_both_measures_by_name(run, run_command):
    head, row = run_command("ls")[1].splitlines()[:2]
    assert [title for title in head.split() if title in ("train", "eval", "best", "return")] == ["train", "eval", "best"]
    assert row.split()[-5:-2] == ["240", "480", "480"]
    out = run_command("show car")[1]
    assert "training return    240   last 100 training episodes, sampled actions" in out
    assert "evaluation return  480, best 480   most likely actions" in out
    assert f"{TRAINED}   ● {EVALUATED}" in out


def test_a_plot_says_which_measure_it_draws(run, run_command):
    pytest.importorskip("matplotlib")
    assert run_command("plot car --terminal")[1].startswith(f"{EVALUATED}, IQM over seeds")
    assert run_command("plot car --terminal --measure training")[1].startswith(f"{TRAINED}, IQM over seeds")
