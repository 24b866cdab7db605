"""Cadences that are not given follow from the budget; those that were typed are kept."""

from __future__ import annotations

import json

import pytest

from rlx import start
from rlx.config.cadence import usual_cadence
from rlx.config.compose import Composer, conf_dir
from rlx.config.recipe_families import recipe_family
from rlx.config.schema import LoopConfig
from rlx.errors import ConfigError
from rlx.store.layout import runs_directory
from rlx.store.runs import RunDir

LONG = 100_000_000
RECIPES = sorted(path.stem for path in (conf_dir() / "recipe").glob("*.yaml"))
TINY = "algo=ppo env=cartpole env.num_envs=2 algo.rollout_length=8 recipe=null log.wandb=disabled log.console=quiet loop.eval_episodes=1"


def cadences(loop: LoopConfig) -> tuple[int, int, int]:
    return loop.cadence.log_every, loop.cadence.eval_every, loop.cadence.checkpoint_every


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (1, (10_000, 50_000, 50_000)),
        (5_000_000, (10_000, 50_000, 50_000)),
        (20_000_000, (10_000, 200_000, 200_000)),
        (LONG, (50_000, 1_000_000, 1_000_000)),
        (LONG + 1, (50_001, 1_000_001, 1_000_001)),
    ],
)
def test_cadences_that_are_not_given_grow_with_large_budgets_only(total, expected):
    assert cadences(LoopConfig(total_env_steps=total)) == expected


def test_cadences_that_are_given_are_kept_and_0_is_not_null():
    loop = LoopConfig(total_env_steps=LONG, log_every=7, eval_every=0, checkpoint_every=0)
    assert cadences(loop) == (7, 0, 0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_makes_a_long_run_log_or_evaluate_more_than_its_budget_asks_for(recipe):
    algo, _, env = recipe.partition("_")
    composer = Composer()
    of_family = [name for name, id_ in composer.env_ids().items() if recipe_family(id_) == env]
    place = env if composer.file("env", env) else [*of_family, "cartpole"][0]
    words = [f"algo={'sac' if algo == 'trust' else algo}", f"recipe={recipe}", f"env={place}"]
    loop = composer.compose([*words, f"loop.total_env_steps={LONG}"]).config.loop
    assert 40 <= LONG / loop.cadence.log_every <= 2_000
    assert LONG / (loop.cadence.eval_every or LONG) <= 100
    assert LONG / (loop.cadence.checkpoint_every or LONG) <= 100
    own = composer.settings_of("recipe", recipe)
    usual = composer.compose(words).config.loop
    assert all(
        getattr(usual, key.removeprefix("loop.")) == value for key, value in own.items() if key.startswith("loop.") and "_every" in key
    )


def test_typed_cadences_are_kept_beside_a_typed_budget_and_small_budgets_keep_those_of_the_recipe():
    composer = Composer()
    typed = composer.compose(["algo=dqn", "env=cartpole", f"loop.total_env_steps={LONG}", "loop.log_every=500"])
    assert cadences(typed.config.loop) == (500, 1_000_000, 1_000_000)
    assert typed.sources["loop.log_every"] == "command line"
    assert typed.sources["loop.eval_every"] == "default"
    assert cadences(composer.compose(["algo=dqn", "env=cartpole", "loop.total_env_steps=20_000"]).config.loop) == (1_000, 5_000, 10_000)


def begun(arguments: str, name: str = "long") -> RunDir:
    composed = start.compose(arguments.split())
    return start.create(composed, name, start.Checked(warnings=[], network=None)).run


@pytest.mark.usefixtures("here")
def test_a_resume_with_another_budget_gives_the_cadences_that_a_new_run_of_it_has():
    begun("algo=dqn env=cartpole loop.eval_every=6000")
    config = start.to_resume("long", [f"loop.total_env_steps={LONG}"], trust=False).config
    assert cadences(config.loop) == (50_000, 6_000, 1_000_000), "typed when the run was started"
    config = start.to_resume("long", [f"loop.total_env_steps={LONG}", "loop.log_every=2000"], trust=False).config
    assert cadences(config.loop) == (2_000, 6_000, 1_000_000)
    assert cadences(start.to_resume("long", ["log.console=quiet"], trust=False).config.loop) == (1_000, 6_000, 10_000)
    composed = start.compose(f"algo=dqn env=cartpole loop.eval_every=6000 loop.total_env_steps={LONG}".split())
    again = start.to_auto_resume(composed, "long", trust=False)
    assert cadences(again.config.loop) == (50_000, 6_000, 1_000_000)
    assert "loop.log_every=null" in map(str, again.overrides)


@pytest.mark.usefixtures("here")
def test_a_run_that_does_not_say_what_was_typed_keeps_its_cadences():
    run = begun("algo=dqn env=cartpole")
    run.write_meta({key: value for key, value in run.meta().items() if key != "typed"})
    assert cadences(start.to_resume("long", [f"loop.total_env_steps={LONG}"], trust=False).config.loop) == (1_000, 5_000, 10_000)


@pytest.mark.usefixtures("here")
def test_a_run_logs_at_the_cadence_of_its_budget_and_resumes_at_that_of_a_larger_one(run_command, monkeypatch):
    monkeypatch.setattr("rlx.config.cadence._SHARES", {"log_every": (32, 4), "eval_every": (64, 2), "checkpoint_every": (64, 2)})
    assert run_command(f"train {TINY} --name long loop.total_env_steps=128")[0] == 0
    assert run_command("resume long loop.total_env_steps=640")[0] == 0
    lines = [json.loads(line) for line in (runs_directory() / "long" / "metrics.jsonl").read_text().splitlines()]
    assert [line["env_steps"] for line in lines if "eval/return_mean" not in line] == [32, 64, 96, 128, 160, 320, 480, 640]
    assert [line["env_steps"] for line in lines if "eval/return_mean" in line] == [64, 128, 320, 640]


@pytest.mark.usefixtures("here")
def test_config_and_dry_run_say_what_null_stands_for(run_command):
    code, out, _ = run_command("config algo=ppo env=cartpole loop.total_env_steps=100_000_000")
    assert code == 0
    assert "default, 50,000 for this budget" in out
    code, out, _ = run_command("train algo=ppo env=cartpole loop.total_env_steps=100_000_000 --dry-run")
    assert code == 0
    assert "# env steps: a line every 50,000, evaluations every 1,000,000, checkpoints every 1,000,000" in out


@pytest.mark.usefixtures("here")
def test_a_search_whose_rungs_come_before_the_first_line_is_refused_by_the_cadence_that_null_stands_for(run_command):
    searched = "algo.learning_rate=interval(1e-4,1e-2) loop.total_env_steps=9_000 --trials 3 --pruner median --dry-run"
    code, _, err = run_command(f"sweep algo=ppo env=cartpole recipe=null {searched}")
    assert code == 2
    assert f"is logged every {usual_cadence('eval_every', 9_000):,} env steps" in err


def test_cadences_below_their_range_are_refused():
    with pytest.raises(ConfigError, match=r"loop\.log_every must be at least 1, or null, got 0"):
        LoopConfig(log_every=0)
