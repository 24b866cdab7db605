"""Claims about groups of runs: verdicts on made-up runs, and what compare and plot say of a sweep that has them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlx.config.compose import Composer
from rlx.render.claims_figure import draw_claims_figure
from rlx.stats.claims import Judged, judge_claims, matches
from rlx.stats.data import RunData
from rlx.store.claim_spec import Claim, known_claims, read_claims
from rlx.store.runs import RunDir, new_meta
from rlx.store.sweeps import SweepDir
from rlx.sweep.prepare import Prepared, find, prepare

Command = Callable[[str], tuple[int, str, str]]
METRIC = "eval/return_mean"
NEAR, LOW = [0.0, 1.0, 2.0, 3.0, 4.0], [-50.0, -49.0, -48.0, -47.0, -46.0]
"""Five seeds of two groups that differ far more than either spreads."""


def run_of(seed: int, values: Sequence[float], *, metric: str = METRIC, budget: int = 4000, **settings: Any) -> RunData:
    lines = [{"env_steps": (i + 1) * budget // len(values), metric: value} for i, value in enumerate(values)]
    return RunData(name=f"r{seed}", seed=seed, status="finished", lines=lines,
                   settings={"algo": "sac", "env": "pendulum", "loop.total_env_steps": budget, **settings})  # fmt: skip


def runs_of(metric: str = METRIC, **arms: Sequence[float]) -> list[RunData]:
    """A run for each seed of each arm, whose metric is half of its last value at half of the budget."""
    return [run_of(s, [v / 2, v], metric=metric, experiment=arm) for arm, values in arms.items() for s, v in enumerate(values)]


def claim_of(relation: str, **fields: Any) -> Claim:
    given = {"name": "it", "left": "experiment=a", "relation": relation} | ({} if relation == "falls" else {"right": "experiment=b"})
    return read_claims([given | fields], "here")[0]


def judge(claim: Claim, runs: Sequence[RunData]) -> Judged:
    (judged,) = judge_claims([claim], runs, metric=METRIC)
    return judged


def verdict(relation: str, a: Sequence[float], b: Sequence[float], **fields: Any) -> str:
    return judge(claim_of(relation, **fields), runs_of(a=a, b=b)).verdict


@pytest.mark.parametrize(
    ("relation", "a", "b", "expected"),
    [
        ("below", LOW, NEAR, "holds"),
        ("below", NEAR, LOW, "fails"),
        ("below", [0, 2, 4, 6, 8], [1, 3, 5, 7, 9], "undecided"),
        ("below", LOW[:4], NEAR[:4], "not enough seeds"),
        ("above", NEAR, LOW, "holds"),
        ("above", LOW, NEAR, "fails"),
        ("not below", NEAR, LOW, "holds"),
        ("not below", NEAR, NEAR, "holds"),
        ("not below", LOW, NEAR, "fails"),
        ("not below", [-40, -20, -10, 0, 40], NEAR, "undecided"),  # far below the margin, but spread over 0
        ("not below", NEAR[:1], LOW[:1], "not enough seeds"),
        ("not above", LOW, NEAR, "holds"),
        ("not above", NEAR, LOW, "fails"),
    ],
)
def test_verdicts_follow_the_interval_of_the_difference(relation: str, a: Sequence[float], b: Sequence[float], expected: str) -> None:
    assert verdict(relation, a, b) == expected


def test_not_below_allows_half_of_the_right_sides_interval_unless_the_claim_says_how_much() -> None:
    judged = judge(claim_of("not below"), runs_of(a=[v - 1 for v in NEAR], b=NEAR))
    (level,) = judged.right
    assert judged.margin == pytest.approx((level.ci[1] - level.ci[0]) / 2)
    assert (judged.difference, judged.verdict) == (-1.0, "holds")
    assert verdict("not below", [v - 1 for v in NEAR], NEAR, margin=0.5) == "undecided"
    assert verdict("not below", LOW, NEAR, margin=60.0) == "holds"


def test_a_side_may_be_a_difference_and_the_right_one_has_a_factor() -> None:
    runs = runs_of(a=[10, 11, 12, 13, 14], b=[5, 6, 7, 8, 9], c=NEAR)
    drop = judge(claim_of("above", left=["experiment=a", "experiment=c"], right=["experiment=b", "experiment=c"]), runs)
    assert (drop.left_value, drop.right_value, drop.difference) == (10.0, 5.0, 5.0)
    half = judge(claim_of("below", left="experiment=b", right="experiment=a", times=0.5), runs)
    assert (half.right_value, half.difference) == (6.0, 1.0)


def test_the_interval_of_a_difference_covers_it() -> None:
    """MOVER on expanded percentiles: 400 pairs of five normal runs, of which one side spreads three times as far."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        judged = judge(claim_of("below"), runs_of(a=rng.normal(0.0, 3.0, 5).tolist(), b=rng.normal(1.0, 1.0, 5).tolist()))
        covered += judged.ci[0] <= -1.0 <= judged.ci[1]
    assert 0.91 <= covered / 400 <= 0.995


def test_equal_values_of_one_side_leave_the_interval_of_the_other() -> None:
    judged = judge(claim_of("below"), runs_of(a=LOW, b=[1000.0] * 5))
    assert judged.verdict == "holds"
    assert judged.ci[1] - judged.ci[0] == pytest.approx(judged.left[0].ci[1] - judged.left[0].ci[0])
    assert verdict("not below", [1000.0] * 5, [1000.0] * 5) == "holds"
    assert verdict("below", [1000.0] * 5, [1000.0] * 5) == "fails"


def test_a_negative_control_is_as_it_must_be_if_the_claim_fails() -> None:
    for a, verdict_, as_expected in ((LOW, "fails", True), (NEAR, "holds", False), ([-40, -20, -10, 0, 40], "undecided", None)):
        judged = judge(claim_of("not below", expected="fails"), runs_of(a=a, b=NEAR))
        assert (judged.verdict, judged.as_expected) == (verdict_, as_expected)


@pytest.mark.parametrize(
    ("levels", "rho", "expected"),
    [
        ((0.9, 0.7, 0.4, 0.1), -1.0, "holds"),
        ((0.9, 0.4, 0.7, 0.1), -0.8, "fails"),
        ((0.1, 0.4, 0.7, 0.9), 1.0, "fails"),
        ((0.5, 0.5, 0.5, 0.5), math.nan, "fails"),
    ],
)
def test_a_dose_falls_if_the_order_of_its_levels_is_reversed(levels: Sequence[float], rho: float, expected: str) -> None:
    arms = {f"p{i}": [level + 0.01 * seed for seed in range(5)] for i, level in enumerate(levels)}
    claim = claim_of("falls", left=[f"experiment=p{i}" for i in range(4)], metric="trust/use")
    judged = judge(claim, runs_of("trust/use", **arms))
    assert judged.verdict == expected
    assert judged.difference == pytest.approx(rho, nan_ok=True)
    assert judge(claim, [run for run in runs_of("trust/use", **arms) if run.seed < 4]).verdict == "not enough seeds"


def test_a_dose_is_judged_on_the_levels_that_were_trained() -> None:
    claim = claim_of("falls", left=["experiment=p0", "experiment=p1", "experiment=p2"])
    judged = judge(claim, runs_of(p0=NEAR, p2=LOW))
    assert (judged.verdict, judged.missing) == ("holds", ["experiment=p1"])
    assert judge(claim, runs_of(p0=NEAR)).verdict == "not trained"


def test_all_groups_of_a_claim_have_the_same_seeds() -> None:
    runs = runs_of(a=[0, 1, 2, 3, 4, 1000, 1000], b=NEAR)
    judged = judge(claim_of("below"), runs)
    assert judged.seeds == 5
    assert judged.left[0].scores == NEAR
    assert judge(claim_of("below"), [run for run in runs if run.seed != 2]).verdict == "not enough seeds"
    again = [*runs, run_of(0, [20.0], experiment="b")]  # a second run of seed 0 counts with the first as one
    pooled = judge(claim_of("below"), again)
    assert pooled.right[0].scores == [10.0, 1.0, 2.0, 3.0, 4.0]
    assert pooled.pooled == ["experiment=b"]


def test_shares_of_the_budget_are_env_steps_and_a_mean_is_that_of_training() -> None:
    half, end = judge_claims([claim_of("below", at=[0.5, 1])], runs_of(a=LOW, b=NEAR), metric=METRIC)
    assert (half.at, half.left_value, end.at, end.left_value) == (2000, -24.0, 4000, -48.0)
    assert judge(claim_of("below", statistic="mean"), runs_of(a=LOW, b=NEAR)).left_value == -36.0
    short = [*runs_of(a=LOW, b=NEAR)[:-1], run_of(4, [1.0], budget=3000, experiment="b")]
    assert judge(claim_of("below"), short).at == 3000


def test_environments_are_judged_by_themselves() -> None:
    other = [run_of(run.seed, [-line[METRIC] for line in run.lines], env="acrobot", experiment=run.settings["experiment"])
             for run in runs_of(a=LOW, b=NEAR)]  # fmt: skip
    judged = judge_claims([claim_of("below")], [*runs_of(a=LOW, b=NEAR), *other], metric=METRIC)
    assert [(j.env, j.verdict) for j in judged] == [("acrobot", "fails"), ("pendulum", "holds")]


def test_a_group_is_described_by_settings_that_have_an_effect() -> None:
    run = RunData(name="r", seed=0, status="finished", lines=[], unused=frozenset({"algo.p"}),
                  settings={"experiment": "a", "algo.p": 0.5, "algo.k": 3, "algo.on": True, "recipe": None})  # fmt: skip
    assert matches(run, "experiment=a algo.k=3 algo.on=true recipe=null")
    assert matches(run, "algo.k=3.0")
    for words in ("algo.p=0.5", "experiment=b", "algo.k=three", "algo.nothing=1"):
        assert not matches(run, words)


def test_claims_in_a_damaged_sweep_are_none() -> None:
    assert known_claims({}) == []
    assert known_claims({"claims": [{"name": "a", "left": ["x"]}]}) == []
    assert known_claims({"claims": 3}) == []


# A sweep from the command line

ARMS = """
arms: [i2a_learned, i2a_off]
sweep:
  algo.corrupt_prob: 0,0.2
claims:
  - {name: helps, left: experiment=i2a_learned algo.corrupt_prob=0, relation: above, right: experiment=i2a_off, at: [0.5, 1]}
  - {name: control, left: experiment=i2a_learned algo.corrupt_prob=0.2, relation: not below, right: experiment=i2a_off, expected: fails}
  - {name: dose, left: [experiment=i2a_learned algo.corrupt_prob=0, experiment=i2a_learned algo.corrupt_prob=0.2], relation: falls}
  - {name: wide, left: experiment=i2a_learned algo.corrupt_prob=0, relation: above, right: experiment=i2a_wide}
"""


def prepared_arms(here: Path, seeds: str) -> Prepared:
    options = dict.fromkeys(("trials", "sampler", "pruner", "rungs", "storage", "space"))
    words = ["experiment=mine", "env=sokoban", "loop.total_env_steps=4000", "algo.rollout_depth=3"]  # which i2a_wide does not use
    return prepare(words, seeds, "arms", here, METRIC, False, "iqm", options)[1]


@pytest.fixture
def arms(here: Path) -> Callable[..., Path]:
    """Makes a sweep called arms of an experiment with claims, whose runs have made-up returns."""

    def make(**returns: Sequence[float]) -> Path:
        (here / "experiment").mkdir()
        (here / "experiment" / "mine.yaml").write_text(ARMS)
        prepared = prepared_arms(here, str(len(next(iter(returns.values())))))
        sweep = SweepDir.create(here / "runs", "arms", prepared.spec, {key: point for key, (point, _) in prepared.points.items()})
        for (key, (point, composed)), values in zip(prepared.points.items(), returns.values(), strict=True):
            for seed, value in enumerate(values):
                run = sweep.create_run(key, seed, composed, point.values)
                run.begin_segment({})
                lines = [{"env_steps": 2000 * (k + 1), "iteration": k, METRIC: value * (k + 1) / 2} for k in range(2)]
                run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
                run.end_segment(status="finished")
        return sweep.path

    return make


def said(run_command: Command, words: str) -> str:
    code, out, err = run_command(words)
    assert (code, err) == (0, "")
    return out


def test_compare_prints_every_claim_with_its_verdict_and_what_to_train(arms: Callable[..., Path], run_command: Command) -> None:
    arms(learned=[v + 100 for v in NEAR], poor=LOW, off=NEAR)
    out = said(run_command, "compare arms")
    rows = {line.split("  ")[0]: line.rstrip() for line in out.splitlines()}
    assert rows["helps"].endswith("holds")
    assert "100.0" in rows["helps"]
    assert rows["control"].endswith("fails, as it must")
    assert "Spearman -1.00" in rows["dose"]
    assert rows["wide"].endswith("not trained")
    assert "helps: eval/return_mean of i2a_learned corrupt_prob=0 is above i2a_off" in out
    assert "control: eval/return_mean of i2a_learned corrupt_prob=0.2 is not below i2a_off; a negative control, which must fail" in out
    assert "`rlx sweep experiment=i2a_wide env=sokoban loop.total_env_steps=4000 seed=0,1,2,3,4`" in out
    assert out.count("i2a_wide: `rlx sweep") == 1
    assert "experiment=i2a_off " in out  # without the corruption that it does not use


def test_json_has_the_numbers_of_every_claim(arms: Callable[..., Path], run_command: Command) -> None:
    arms(learned=[v + 100 for v in NEAR], poor=LOW, off=NEAR)
    claims = json.loads(said(run_command, "compare arms --json"))["claims"]
    assert [(c["claim"]["name"], c["at"], c["verdict"], c["as_expected"]) for c in claims] == [
        ("helps", 2000, "holds", True), ("helps", 4000, "holds", True), ("control", 4000, "fails", True), ("dose", 4000, "holds", True),
        ("wide", None if claims[-1]["at"] is None else 4000, "not trained", None),
    ]  # fmt: skip
    assert claims[1]["difference"] == 100.0
    assert claims[1]["right"][0]["scores"] == NEAR


def test_too_few_seeds_are_said_with_the_command_that_gets_more(arms: Callable[..., Path], run_command: Command) -> None:
    arms(learned=[100.0, 101.0], poor=[1.0, 2.0], off=[3.0, 4.0])
    out = said(run_command, "compare arms")
    assert "a claim is judged from 5 seeds that all of its groups have: rlx sweep --resume arms --seeds 5" in out


def test_plot_draws_the_claims_of_a_sweep_that_has_some(arms: Callable[..., Path], run_command: Command) -> None:
    path = arms(learned=[v + 100 for v in NEAR], poor=LOW, off=NEAR)
    out = said(run_command, "plot arms")
    drawn = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "●" in drawn["control 4,000"]
    assert drawn["control 4,000"].endswith("fails, as it must")
    assert (path / "plots" / "claims.png").stat().st_size > 10_000
    assert "fails" not in said(run_command, f"plot arms --kind curves --metric {METRIC} --terminal")


def test_the_figure_has_a_panel_for_the_differences_and_one_for_each_dose() -> None:
    claims = [claim_of("below"), claim_of("falls", name="dose", left=["experiment=a", "experiment=b"])]
    differences, dose = draw_claims_figure(judge_claims(claims, runs_of(a=LOW, b=NEAR), metric=METRIC)).axes
    assert [label.get_text() for label in differences.get_yticklabels()] == ["it (4,000)"]
    assert list(differences.lines[1].get_xdata()) == [-50.0]
    assert [label.get_text() for label in dose.get_yticklabels()] == ["a", "b"]
    assert "fails, Spearman 1.00" in dose.get_title(loc="left")


def test_a_sweep_goes_on_with_other_claims(arms: Callable[..., Path], here: Path) -> None:
    arms(learned=NEAR, poor=LOW, off=NEAR)
    file = here / "experiment" / "mine.yaml"
    file.write_text(file.read_text().replace("name: helps", "name: lifts"))
    found = find(here / "runs", "arms", prepared_arms(here, "5").spec)
    assert found is not None
    assert found.spec().claims[0].name == "helps"
    found.write(prepared_arms(here, "5").spec, found.grid())  # as `rlx sweep` does when it goes on
    assert found.spec().claims[0].name == "lifts"


def test_the_claims_of_another_experiment_are_judged_on_request(arms: Callable[..., Path], run_command: Command) -> None:
    arms(learned=[v + 100 for v in NEAR], poor=LOW, off=NEAR)
    claims = json.loads(said(run_command, "compare arms --claims i2a_arms --json"))["claims"]
    assert {(c["claim"]["name"], c["verdict"]) for c in claims} >= {("bound", "not trained"), ("imagination helps", "holds")}
    assert claims[0]["pooled"] == ["experiment=i2a_learned"]  # with both corruptions
    assert "imagination helps 4,000" in said(run_command, "plot arms --claims i2a_arms --terminal")
    for words, message in (("i2a_of", "did you mean"), ("i2a_off", "claims nothing")):
        code, _, err = run_command(f"compare arms --claims {words}")
        assert (code, message in err) == (2, True)
    assert "has no effect with --kind curves" in run_command("plot arms --claims i2a_arms --kind curves")[2]


def test_a_sweep_without_claims_has_none_to_draw(here: Path, run_command: Command) -> None:
    composed = Composer().compose(["algo=ppo", "env=cartpole"])
    run = RunDir.create(here / "runs", "alone", composed.config, new_meta(composed))
    run.begin_segment({})
    run.metrics_path.write_text(json.dumps({"env_steps": 100, "iteration": 0, METRIC: 1.0}) + "\n")
    run.end_segment(status="finished")
    code, _, err = run_command("plot alone --kind claims")
    assert (code, "claim nothing" in err) == (2, True)


# What is claimed of trust


@pytest.mark.slow
def test_steve_uses_a_model_whose_errors_all_members_share(here: Path, run_command: Command) -> None:
    """The negative control: five seeds of Pendulum with half of the predictions replaced, alike in all members or in each by itself.

    It is about use and not about returns: on Pendulum agents with a model that is wrong half of the time learn in the end.
    """
    words = "env=pendulum algo.model.corruption=independent,shared algo.model.corrupt_prob=0.5 log.wandb=disabled"
    said(run_command, f"sweep experiment=trust_steve {words} --seeds 5 --name control")
    claims = json.loads(said(run_command, "compare control --claims trust_targets --json"))["claims"]
    (unseen,) = (claim for claim in claims if claim["claim"]["name"] == "unseen, steve")
    assert unseen["verdict"] == "holds"
