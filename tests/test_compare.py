"""rlx compare: its output for real run directories, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rlx.config.compose import Composer
from rlx.store.runs import RunDir, new_meta

Command = Callable[[str], tuple[int, str, str]]
Sweep = Callable[..., Path]
METRIC = "eval/return_mean"


@pytest.fixture
def sweep(here: Path) -> Sweep:
    """Makes a sweep called lr: for each learning rate the last scores of its seeds, each reached over four evaluations."""

    def make(scores: dict[float, Sequence[float]], *, env: str = "cartpole", status: str = "finished", steps: int = 4) -> Path:
        path = here / "runs" / "lr"
        path.mkdir(parents=True, exist_ok=True)
        (path / "sweep.json").write_text(json.dumps({"format": 1, "swept": ["algo.learning_rate"]}))
        first = len({p.name.rpartition("-s")[0] for p in path.glob("*-s*")})
        for point, (rate, values) in enumerate(scores.items(), start=first):
            for seed, value in enumerate(values):
                words = ["algo=ppo", f"env={env}", f"algo.learning_rate={rate}", f"seed={seed}"]
                composed = Composer().compose(words)
                run = RunDir.create(path, f"{point:03d}-s{seed}", composed.config, {**new_meta(composed), "seed": seed, "sweep": "lr"})
                write(run, [value * (k + 1) / steps for k in range(steps)], status)
        return path

    return make


def write(run: RunDir, values: Sequence[float], status: str = "finished") -> None:
    run.begin_segment({})
    lines = [{"env_steps": 1000 * (k + 1), "iteration": k, METRIC: v, "time/elapsed_s": k + 1.0} for k, v in enumerate(values)]
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.end_segment(status=status)


def said(run_command: Command, words: str) -> str:
    code, out, err = run_command(words)
    assert (code, err) == (0, "")
    return out


def test_the_table_says_how_good_how_sure_how_fast_and_who_is_better(sweep: Sweep, run_command: Command) -> None:
    sweep({0.001: [100, 200, 300, 400, 150], 0.01: [480, 490, 500, 495, 485]})
    out = said(run_command, "compare lr")
    slow, fast = (next(line.split() for line in out.splitlines() if line.startswith(f"learning_rate={r} ")) for r in ("0.001", "0.01"))
    assert slow[1:5] == ["5", "230.0", "200.0", "216.7"]  # seeds, mean, median, IQM
    assert slow[-1] == "245"  # optimality gap to 475
    assert fast[1:4] == ["5", "490.0", "490.0"]
    assert fast[-1] == "0"
    assert "5 of 5" in out
    assert "0 of 5" in out
    assert "worse" in out
    assert "0.00" in out
    assert "next: rlx plot lr" in out


def test_the_verdict_of_five_against_five_is_the_exact_test(sweep: Sweep, run_command: Command) -> None:
    sweep({0.001: [1, 2, 3, 4, 5], 0.01: [6, 7, 8, 9, 10]})
    (pair,) = json.loads(said(run_command, "compare lr --json"))["pairs"]
    assert pair["verdict"] == "worse"
    assert pair["improvement"] == 0.0
    assert pair["p"] == pytest.approx(2 / 252)


def test_no_verdict_from_one_seed_and_the_command_that_gets_one(sweep: Sweep, run_command: Command) -> None:
    sweep({0.001: [1], 0.01: [500]})
    out = said(run_command, "compare lr")
    assert "too few seeds" in out
    assert "better" not in out.replace("P(better)", "")
    assert "worse" not in out
    assert "(one seed)" in out
    assert "rlx sweep --resume lr --seeds 4" in out


def test_three_against_three_are_too_few_however_far_apart(sweep: Sweep, run_command: Command) -> None:
    sweep({0.001: [1, 2, 3], 0.01: [498, 499, 500]})
    out = said(run_command, "compare lr")
    assert "too few seeds for a verdict: 4 for each group is the least: rlx sweep --resume lr --seeds 4" in out


def test_equal_groups_are_not_distinguishable(sweep: Sweep, run_command: Command) -> None:
    sweep({0.001: [500] * 5, 0.01: [500] * 5})
    assert "not distinguishable" in said(run_command, "compare lr")


def test_a_single_run_is_shown_and_not_judged(sweep: Sweep, run_command: Command) -> None:
    sweep({0.001: [7]})
    assert "one run: nothing to compare" in said(run_command, "compare lr")


def test_json_is_json_even_where_there_is_no_number(sweep: Sweep, run_command: Command) -> None:
    sweep({0.001: [1], 0.01: [2]})
    out = said(run_command, "compare lr --json")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    result = json.loads(out, parse_constant=refuse)
    assert [row["iqm_ci"] for row in result["rows"]] == [[None, None]] * 2
    assert result["resamples"] == 5000


def test_csv_has_a_line_for_every_group_and_its_settings_in_columns(sweep: Sweep, run_command: Command) -> None:
    sweep({0.001: [100, 200], 0.01: [500, 500]})
    rows = list(csv.DictReader(io.StringIO(said(run_command, "compare lr --csv"))))
    assert [(float(r["algo.learning_rate"]), float(r["mean"]), r["seeds"]) for r in rows] == [(0.001, 150, "2"), (0.01, 500, "2")]
    assert [r["steps_to_threshold"] for r in rows] == ["", "4000.0"]


def test_latex_escapes_what_latex_would_take_for_its_own(sweep: Sweep, run_command: Command) -> None:
    sweep({0.001: [1, 2], 0.01: [3, 4]})
    out = said(run_command, "compare lr --latex")
    assert "learning\\_rate=0.001 & 2 & 1.500 & 1.500 & 1.500 &" in out
    assert out.count("\\toprule") == out.count("\\bottomrule") == 1


def test_less_is_better_on_request(sweep: Sweep, run_command: Command) -> None:
    sweep({0.001: [1, 2, 3, 4, 5], 0.01: [6, 7, 8, 9, 10]})
    (pair,) = json.loads(said(run_command, "compare lr --json --minimize"))["pairs"]
    assert (pair["verdict"], pair["improvement"]) == ("better", 1.0)


def test_a_sweep_is_compared_and_drawn_by_its_own_objective_and_direction(sweep: Sweep, run_command: Command) -> None:
    path = sweep({0.001: [1, 2, 3, 4, 5], 0.01: [6, 7, 8, 9, 10]})
    spec = {"format": 1, "swept": ["algo.learning_rate"], "objective": "time/elapsed_s", "direction": "minimize"}
    (path / "sweep.json").write_text(json.dumps(spec))
    assert "time/elapsed_s (less is better), last value of every run" in said(run_command, "compare lr")
    assert "time/elapsed_s (less is better)" in said(run_command, "plot lr --kind parallel")
    (pair,) = json.loads(said(run_command, f"compare lr --json --metric {METRIC}"))["pairs"]
    assert pair["verdict"] == "worse"
    (path / "sweep.json").write_text(json.dumps({**spec, "objective": METRIC}))
    (pair,) = json.loads(said(run_command, "compare lr --json"))["pairs"]
    assert pair["verdict"] == "better"


def test_experiments_are_told_apart_by_their_names(here: Path, run_command: Command) -> None:
    path = here / "runs" / "arms"
    path.mkdir(parents=True)
    (path / "sweep.json").write_text(json.dumps({"format": 1, "swept": ["experiment"]}))
    for point, (experiment, values) in enumerate({"i2a_off": [1, 2, 3], "i2a_copy": [4, 5, 6], "i2a_learned": [7, 8, 9]}.items()):
        for seed, value in enumerate(values):
            composed = Composer().compose([f"experiment={experiment}", f"seed={seed}"])
            run = RunDir.create(path, f"{point:03d}-s{seed}", composed.config, {**new_meta(composed), "seed": seed, "sweep": "arms"})
            write(run, [value])
    for words in ("arms", "arms/000-s? arms/001-s? arms/002-s?"):
        out = json.loads(said(run_command, f"compare {words} --json"))
        assert {row["group"]: row["mean"] for row in out["rows"]} == {
            "experiment=i2a_off": 2.0, "experiment=i2a_copy": 5.0, "experiment=i2a_learned": 8.0,
        }  # fmt: skip


def test_values_at_an_earlier_step(sweep: Sweep, run_command: Command) -> None:
    sweep({0.001: [400, 400]})
    (row,) = json.loads(said(run_command, "compare lr --json --at 2000"))["rows"]
    assert row["scores"] == [200.0, 200.0]


def test_runs_that_go_on_or_failed_are_named(sweep: Sweep, run_command: Command) -> None:
    sweep({0.001: [10, 20]})
    sweep({0.01: [30]}, status="failed")
    sweep({0.1: []})
    out = said(run_command, "compare lr")
    assert "not finished, taken where they are: lr/001-s0 (failed at 4,000 steps)" in out


def test_a_run_of_a_sweep_that_cannot_be_read_is_named_and_the_others_are_compared(sweep: Sweep, run_command: Command) -> None:
    path = sweep({0.001: [10, 20]})
    (path / "000-s1" / "config.yaml").unlink()
    out = said(run_command, "compare lr")
    assert "lr/000-s1 cannot be read and is left out" in out
    assert "cannot be read" in said(run_command, "plot lr --terminal")
    assert run_command("compare lr/000-s1")[0] == 2


def test_two_environments_are_scaled_and_each_resampled_by_itself(sweep: Sweep, run_command: Command) -> None:
    for env, scale in (("cartpole", 1.0), ("acrobot", 100.0)):
        sweep({0.001: [scale * s for s in (1, 2, 3)], 0.01: [scale * s for s in (4, 5, 6)]}, env=env)
    result = json.loads(said(run_command, "compare lr --json"))
    assert result["normalized"]
    (pair,) = result["pairs"]
    assert (pair["verdict"], pair["p"]) == ("worse", pytest.approx(2 / 400))
    assert [max(row["scores"]) for row in result["rows"]] == [pytest.approx(0.4), 1.0]


def test_more_than_six_groups_are_compared_with_the_best(sweep: Sweep, run_command: Command) -> None:
    sweep({10.0**-i: [i, i + 0.5] for i in range(1, 9)})
    result = json.loads(said(run_command, "compare lr --json"))
    assert [pair["a"] for pair in result["pairs"]] == ["learning_rate=1e-08"] * 7
    assert len(json.loads(said(run_command, "compare lr --json --all-pairs"))["pairs"]) == 28
    assert "confirm it with new seeds" in said(run_command, "compare lr")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compare nothing", "no such run or sweep"),
        ("compare lrr", "did you mean lr?"),
        ("compare 'x*'", "no run or sweep in"),
        ("compare lr --metric eval/retrun_mean", "did you mean eval/return_mean?"),
        ("compare lr --by algo.learnin_rate", "did you mean algo.learning_rate?"),
        ("compare lr --confidence 2", "--confidence 2.0: expected a share"),
        ("compare lr --at 9000000", "the furthest is at 4,000 env steps"),
        ("compare lr --at 10", "has eval/return_mean that early"),
        ("compare lr --json --csv", "choose one"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_type(words: str, message: str, sweep: Sweep, run_command: Command) -> None:
    sweep({0.001: [1, 2], 0.01: [3, 4]})
    code, out, err = run_command(words)
    assert (code, out, "Traceback" in err) == (2, "", False)
    assert message in " ".join(err.split())
