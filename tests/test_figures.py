"""Figures of rlx plot: they show the run's data, and the same data gives the same file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlx.config.compose import Composer
from rlx.errors import ConfigError
from rlx.render import figures
from rlx.render.braille import plot_many
from rlx.stats.curves import band
from rlx.stats.data import Group, RunData
from rlx.store.runs import RunDir, new_meta

Command = Callable[[str], tuple[int, str, str]]
METRIC = "eval/return_mean"


def run_of(seed: int, slope: float, *, status: str = "finished", **settings: Any) -> RunData:
    lines = [{"env_steps": 1000 * i, "iteration": i, METRIC: slope * i + seed, "time/elapsed_s": 2.0 * i} for i in range(1, 11)]
    return RunData(name=f"r{seed}", seed=seed, status=status, settings={"algo": "ppo", "env": "cartpole", **settings}, lines=lines)


def groups(count: int, seeds: int = 3) -> list[Group]:
    return [
        Group(label=f"lr={i}", values={"algo.learning_rate": 10.0**-i}, runs=[run_of(s, i + 1.0) for s in range(seeds)])
        for i in range(count)
    ]


def test_a_curve_is_the_band_of_its_group_and_its_legend_counts_the_seeds() -> None:
    two = groups(2, seeds=5)
    (axes,) = figures.draw_curves(two, METRIC).axes
    assert [line.get_label() for line in axes.lines] == ["lr=0 (5 seeds)", "lr=1 (5 seeds)"]
    for line, g in zip(axes.lines, two, strict=True):
        x, centre, low, high = band(g.runs, METRIC)
        np.testing.assert_array_equal(line.get_xdata(), x)
        np.testing.assert_array_equal(line.get_ydata(), centre)
        assert (low < centre).any()
        assert (high > centre).any()
    assert len(axes.collections) == 2
    assert axes.get_xlabel() == "env steps"


def test_one_seed_is_a_line_without_a_band_and_says_so() -> None:
    (axes,) = figures.draw_curves(groups(2, seeds=1), METRIC).axes
    assert len(axes.collections) == 0
    assert axes.lines[0].get_label() == "lr=0 (1 seed)"


def test_a_few_seeds_are_drawn_themselves_where_there_is_no_interval() -> None:
    (axes,) = figures.draw_curves(groups(1, seeds=4), METRIC).axes
    (seeds,) = axes.collections
    assert len(seeds.get_segments()) == 4  # type: ignore[attr-defined]
    assert "thin: every seed" in axes.get_ylabel()
    assert "95 % interval" in figures.draw_curves(groups(1, seeds=5), METRIC).axes[0].get_ylabel()
    short = groups(1, seeds=4)
    for run in short[0].runs:
        del run.lines[1:]
    (dots,) = figures.draw_curves(short, METRIC).axes[0].collections
    assert len(dots.get_offsets()) == 4


@pytest.mark.parametrize("seeds", [1, 5])
def test_a_curve_of_one_point_is_a_dot_with_its_interval(seeds: int) -> None:
    short = groups(1, seeds)
    for run in short[0].runs:
        del run.lines[1:]
    (axes,) = figures.draw_curves(short, METRIC).axes
    assert axes.lines[0].get_marker() == "o"
    assert [len(c.get_segments()) for c in axes.collections] == [1] * (seeds > 1)  # type: ignore[attr-defined]


def test_every_seed_and_a_threshold_are_drawn_on_request() -> None:
    (axes,) = figures.draw_curves(groups(1), METRIC, every_seed=True, threshold=7.0).axes
    assert len(axes.lines) == 1 + 3 + 1
    assert list(axes.lines[-1].get_ydata()) == [7.0, 7.0]


def test_wall_time_is_in_the_unit_that_reads_well() -> None:
    (axes,) = figures.draw_curves(groups(1), METRIC, x="time/elapsed_s").axes
    assert axes.get_xlabel() == "training time [s]"
    slow = run_of(0, 1.0)
    slow.lines[-1]["time/elapsed_s"] = 7200.0
    (axes,) = figures.draw_curves([Group(label="all", values={}, runs=[slow])], METRIC, x="time/elapsed_s").axes
    assert axes.get_xlabel() == "training time [min]"
    assert axes.lines[0].get_xdata()[-1] == pytest.approx(120.0)


def test_groups_without_the_metric_are_left_out_of_the_legend() -> None:
    silent = Group(label="silent", values={}, runs=[RunData(name="x", seed=0, status="new", settings={}, lines=[])])
    (axes,) = figures.draw_curves([silent, *groups(1)], METRIC).axes
    assert [line.get_label() for line in axes.lines] == ["lr=0 (3 seeds)"]


def test_a_slice_has_a_panel_for_every_key_a_dot_for_every_run_and_a_line_through_the_aggregates() -> None:
    found = [
        figures.Trial(values={"algo.learning_rate": rate, "algo.activation": name}, scores=[rate * 10, rate * 20], complete=True)
        for rate in (1e-4, 1e-3, 1e-1)
        for name in ("tanh", "relu")
    ]
    rate, name = figures.draw_slices(found, METRIC).axes
    assert rate.get_xscale() == "log"
    assert sum(len(c.get_offsets()) for c in rate.collections) == 12
    np.testing.assert_allclose(rate.lines[0].get_xdata(), [1e-4, 1e-3, 1e-1])
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [15e-4, 15e-3, 15e-1])
    assert [t.get_text() for t in name.get_xticklabels()] == ["relu", "tanh"]
    assert (rate.lines[0].get_linestyle(), name.lines[0].get_linestyle()) == ("-", "None")


def test_pruned_settings_are_grey_and_not_in_the_line() -> None:
    found = [figures.Trial(values={"k": k}, scores=[float(k)], complete=k < 3) for k in (1, 2, 3)]
    figure = figures.draw_slices(found, METRIC)
    (axes,) = figure.axes
    assert list(axes.lines[0].get_xdata()) == [1.0, 2.0]
    assert figure.get_supxlabel() == "grey: 1 setting pruned, failed or not finished"


@pytest.mark.parametrize(("minimize", "best"), [(False, 3.0), (True, 1.0)])
def test_parallel_coordinates_show_the_best_setting_widest(minimize: bool, best: float) -> None:
    found = [figures.Trial(values={"a": a, "b": name}, scores=[a], complete=True) for a, name in ((1.0, "x"), (3.0, "y"), (2.0, "x"))]
    (axes,) = figures.draw_parallel(found, METRIC, minimize=minimize).axes
    widest = max(axes.lines, key=lambda line: line.get_linewidth())
    assert widest.get_ydata()[-1] == pytest.approx((best - 1.0) / 2.0)
    assert {"a", "b", f"{METRIC}\n(evaluation, most likely actions)"} <= {t.get_text() for t in axes.texts}


@pytest.mark.parametrize("minimize", [False, True])
def test_the_best_of_parallel_coordinates_is_a_whole_one_in_the_brightest_colour(minimize: bool) -> None:
    sign = -1.0 if minimize else 1.0
    found = [figures.Trial(values={"a": a}, scores=[sign * a], complete=a < 9.0) for a in (1.0, 3.0, 2.0, 9.0)]
    (axes,) = figures.draw_parallel(found, METRIC, minimize=minimize).axes
    widest = max(axes.lines, key=lambda line: line.get_linewidth())
    assert widest.get_ydata()[0] == pytest.approx((3.0 - 1.0) / 8.0)
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] != line.get_xdata()[1]]
    shades = [sum(line.get_color()[:2]) for line in lines if not isinstance(line.get_color(), str)]
    assert len(shades) == 3
    assert max(shades) == sum(widest.get_color()[:2])  # type: ignore[index]


def test_parallel_coordinates_survive_a_setting_without_a_score() -> None:
    found = [figures.Trial(values={"a": 1}, scores=[], complete=False), figures.Trial(values={"a": 2}, scores=[5.0], complete=True)]
    (axes,) = figures.draw_parallel(found, METRIC).axes
    assert any("grey: 1 setting pruned" in t.get_text() for t in axes.texts)


@pytest.mark.parametrize("ending", figures.FORMATS)
def test_the_same_data_gives_the_same_file(ending: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        figures.save(figures.draw_curves(groups(2), METRIC), tmp_path / f"{name}{ending}")
    assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()
    assert (tmp_path / f"a{ending}").stat().st_size > 1000


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.png, \.svg, \.pdf"):
        figures.save(figures.draw_curves(groups(1), METRIC), tmp_path / "x.gif")


# In the terminal


def test_curves_in_the_terminal_carry_their_letters_at_their_ends() -> None:
    rows = plot_many([[(0, 0), (1, 1)], [(0, 1), (1, 0)]], width=40, height=8)
    text = ["".join(character for character, _ in row) for row in rows]
    assert text[0].endswith("a")
    assert text[7].endswith("b")
    assert max(map(len, text)) <= 40
    owners = {owner for row in rows for _, owner in row}
    assert owners == {None, 0, 1}


def test_curves_that_end_together_keep_their_letters_apart() -> None:
    rows = plot_many([[(0, 0), (1, 1)]] * 3, width=40, height=8)
    letters = [character for row in rows[:8] for character, _ in row if character in "abc"]
    assert sorted(letters) == ["a", "b", "c"]


def test_what_is_not_finite_is_a_gap_and_nothing_draws_nothing() -> None:
    assert plot_many([[(0, math.nan)]], width=40, height=8) == []
    assert len(plot_many([[(0, 1), (1, math.nan), (2, 3)]], width=40, height=8)) == 10


# The command


@pytest.fixture
def swept(here: Path) -> Path:
    """A sweep of two learning rates with three seeds, and a run beside it."""
    root = here / "runs"
    composed = Composer().compose(["algo=ppo", "env=cartpole"])
    path = root / "lr"
    path.mkdir(parents=True)
    (path / "sweep.json").write_text(json.dumps({"format": 1, "swept": ["algo.learning_rate"]}))
    for i, rate in enumerate((1e-3, 1e-2)):
        for seed in range(3):
            config = Composer().compose(["algo=ppo", "env=cartpole", f"algo.learning_rate={rate}", f"seed={seed}"]).config
            run = RunDir.create(path, f"00{i}-s{seed}", config, {**new_meta(composed), "seed": seed, "sweep": "lr"})
            write(run, [(i + 1.0) * k + seed for k in range(1, 6)])
    write(RunDir.create(root, "alone", composed.config, new_meta(composed)), [1.0, 2.0, 3.0])
    return root


def write(run: RunDir, values: list[float]) -> None:
    lines = [{"env_steps": 1000 * (k + 1), "iteration": k, METRIC: v, "time/elapsed_s": float(k)} for k, v in enumerate(values)]
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_plot_draws_a_sweep_in_the_terminal_and_writes_it_beside_its_runs(swept: Path, run_command: Command) -> None:
    code, out, err = run_command("plot lr")
    assert (code, err) == (0, "")
    assert "a  learning_rate=0.001 (3)" in out
    assert "runs/lr/plots/curves-eval-return_mean.png" in out
    assert (swept / "lr/plots/curves-eval-return_mean.png").stat().st_size > 5000
    assert max(map(len, out.splitlines())) <= 100


def test_plot_of_loose_runs_writes_where_told_in_every_format(swept: Path, run_command: Command) -> None:
    code, _, _ = run_command("plot alone lr/001-s0 --by algo.learning_rate --out a.svg --out b.pdf")
    assert code == 0
    assert b"<svg" in Path("a.svg").read_bytes()
    assert Path("b.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("kind", ["slice", "parallel"])
def test_kinds_that_show_settings(kind: str, swept: Path, run_command: Command) -> None:
    assert run_command(f"plot lr --kind {kind}")[0] == 0
    assert (swept / f"lr/plots/{kind}-eval-return_mean.png").is_file()
    code, _, err = run_command(f"plot alone --kind {kind}")
    assert (code, "have one setting" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("plot nothing", "no such run or sweep"),
        ("plot lr --metric eval/retrun_mean", "did you mean eval/return_mean?"),
        ("plot lr --by algo.learnin_rate", "did you mean algo.learning_rate?"),
        ("plot lr --kind pie", "--kind pie"),
        ("plot lr --x minutes", "--x minutes"),
        ("plot lr --out x.gif", ".png, .svg, .pdf"),
        ("plot lr --out x.png --terminal", "leave one out"),
    ],
)
def test_a_mistake_is_one_line(words: str, said: str, swept: Path, run_command: Command) -> None:
    code, _, err = run_command(words)
    assert (code, "Traceback" in err) == (2, False)
    assert said in err


def test_a_file_that_cannot_be_written_is_said(swept: Path, run_command: Command) -> None:
    Path("file").write_text("")
    code, _, err = run_command("plot lr --out file/x.png")
    assert (code, "cannot be written" in err) == (6, True)
