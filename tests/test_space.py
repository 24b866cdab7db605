"""Expansion of a sweep's overrides: as in Hydra's own sweeper, and rlx's additions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from rlx.config.compose import Composer
from rlx.config.override_types import read_overrides
from rlx.errors import ConfigError
from rlx.store.claim_spec import read_claims
from rlx.store.sweep_spec import Point
from rlx.sweep import space
from rlx.sweep.points import compose_all, compose_grid
from rlx.sweep.prepare import with_arms
from rlx.sweep.space import load_space, seeds_of, swept_keys

COMPOSER = Composer()


def expand(arguments: list[str]) -> list[Point]:
    return space.expand(read_overrides(arguments), COMPOSER)


def SearchSpace(arguments: list[str]) -> space.SearchSpace:
    return space.SearchSpace(read_overrides(arguments), COMPOSER)


def parsed(words: tuple[str, ...] | list[str]) -> list[tuple[str, Any]]:
    """Keys and values, without the noise of Hydra's own ranges."""
    found = [(o.key_or_group, o.value()) for o in OverridesParser.create().parse_overrides(list(words))]
    return [(key, round(value, 12) if isinstance(value, float) else value) for key, value in found]


@pytest.mark.parametrize(
    "line",
    [
        "algo.learning_rate=1e-4,3e-4,1e-3",
        "algo.learning_rate=1e-3,1e-2 algo.clip=0.1,0.2,0.3 env=cartpole",
        "algo=ppo,a2c env=cartpole,pendulum",
        "algo.num_epochs=range(1,6)",
        "algo.num_epochs=range(5,0,-2)",
        "algo.clip=range(0.1,0.5,0.1)",
        "algo.num_epochs=choice(1,4,8) algo.anneal_learning_rate=true,false",
        "algo.num_epochs=sort(4,1,8)",
        "algo.num_epochs=sort(4,1,8,reverse=true)",
        "algo.hidden_sizes=[64,64],[32]",
        "algo.target_kl=null,0.01",
        "env.kwargs.mode='a,b',c",
        "algo=glob(*)",
        "algo=glob([a*,p*],exclude=a*)",
        "tag(x,choice(1,2))",
    ],
)
def test_the_grid_is_that_of_hydras_own_sweeper(line: str) -> None:
    words = line.replace("tag(", "algo.num_epochs=tag(").split()
    overrides = OverridesParser.create(config_loader=COMPOSER._loader).parse_overrides(words)
    (theirs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    assert [parsed(point.arguments) for point in expand(words)] == [parsed(batch) for batch in theirs]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("range(0.1,0.4,0.1)", [0.1, 0.2, 0.3]),
        ("range(0.4,0.1,-0.1)", [0.4, 0.3, 0.2]),
        ("range(0,1,0.25)", [0.0, 0.25, 0.5, 0.75]),
        ("range(1e-5,3e-5,1e-5)", [1e-5, 2e-5]),
    ],
)
def test_a_range_has_its_decimals_and_not_its_stop(word: str, values: list[float]) -> None:
    assert [point.values["algo.clip"] for point in expand([f"algo.clip={word}"])] == values


def test_a_key_of_some_algorithms_applies_to_those_and_makes_no_duplicates() -> None:
    points = expand(["algo=ppo,a2c,reinforce", "algo.clip=0.1,0.2", "algo.episodes_per_update=4,8"])
    assert [point.values for point in points] == [
        {"algo": "ppo", "algo.clip": 0.1},
        {"algo": "ppo", "algo.clip": 0.2},
        {"algo": "a2c"},
        {"algo": "reinforce", "algo.episodes_per_update": 4},
        {"algo": "reinforce", "algo.episodes_per_update": 8},
    ]
    compose_all(points, COMPOSER)


def test_a_key_that_is_not_swept_also_applies_only_where_it_exists() -> None:
    assert [p.arguments for p in expand(["algo=ppo,a2c", "algo.clip=0.3"])] == [["algo=ppo", "algo.clip=0.3"], ["algo=a2c"]]


def test_whole_numbers_are_taken_as_they_are_written() -> None:
    points = expand(["algo.rollout_length=1e2,100,2e2", "env.num_envs=range(1e0,3e0)"])
    assert [(p.values["algo.rollout_length"], p.values["env.num_envs"]) for p in points] == [(100, 1), (100, 2), (200, 1), (200, 2)]
    assert points[0].arguments == ["algo.rollout_length=100", "env.num_envs=1"]


def test_repetitions_are_dropped() -> None:
    assert len(expand(["algo.clip=0.1,0.2,0.1"])) == 2


def test_values_are_plain_data() -> None:
    words = [
        "algo.hidden_sizes=[64,64],[32]",
        "algo.activation=tanh,relu",
        "algo.target_kl=null,0.01",
        "algo.anneal_learning_rate=true,false",
    ]
    for point in expand(words):
        assert json.loads(json.dumps(point.values)) == point.values


def test_environments_without_a_file_can_be_swept() -> None:
    points = expand(["env=cartpole,Acrobot-v1"])
    assert [c.config.env.id for c in compose_all(points, COMPOSER)] == ["CartPole-v1", "Acrobot-v1"]


def test_settings_of_an_environment_have_short_names_where_its_file_lists_them() -> None:
    points = expand(["env=cartpole,minipacman", "env.task=hunt,rush"])
    assert [p.arguments for p in points] == [
        ["env=cartpole"], ["env=minipacman", "env.task=hunt"], ["env=minipacman", "env.task=rush"],
    ]  # fmt: skip
    composed = COMPOSER.compose(points[2].arguments)
    assert composed.config.env.kwargs["task"] == "rush"
    assert composed.sources["env.kwargs.task"] == "command line"


def test_a_point_that_breaks_a_rule_is_named() -> None:
    with pytest.raises(ConfigError, match=r"algo.discount must be within \[0, 1\], got 1.5 \(with algo.discount=1.5\)"):
        compose_all(expand(["algo.discount=0.9,1.5"]), COMPOSER)


def test_a_swept_setting_is_left_out_where_it_has_no_effect_and_makes_no_duplicates() -> None:
    words = ["experiment=pets_exploitation", "algo.ensemble_size=1,5", "algo.trust=none,disagreement"]
    pairs = compose_grid(expand(words), COMPOSER)
    assert [point.values for point, _ in pairs] == [
        {"algo.ensemble_size": 1, "algo.trust": "none"},
        {"algo.ensemble_size": 5, "algo.trust": "none"},
        {"algo.ensemble_size": 5, "algo.trust": "disagreement"},
    ]
    words = ["algo=pets", "env=cartpole_continuous", "algo.planner.kind=cem,mppi", "algo.planner.temperature=0.1,0.3"]
    assert [point.values for point, _ in compose_grid(expand(words), COMPOSER)] == [
        {"algo.planner.kind": "cem"},
        {"algo.planner.kind": "mppi", "algo.planner.temperature": 0.1},
        {"algo.planner.kind": "mppi", "algo.planner.temperature": 0.3},
    ]
    again = compose_grid([point for point, _ in pairs], COMPOSER)  # as a sweep on disk is
    assert again == pairs


def test_a_swept_setting_without_effect_anywhere_is_refused() -> None:
    words = ["algo=pets", "env=cartpole_continuous", "algo.ensemble_size=1,5", "algo.planner.kind=cem", "algo.planner.temperature=0.1,0.3"]
    with pytest.raises(ConfigError, match=r"algo\.planner\.temperature has no effect unless algo\.planner\.kind=mppi"):
        compose_grid(expand(words), COMPOSER)


def test_a_setting_that_is_not_swept_is_refused_where_it_has_no_effect() -> None:
    words = ["algo=pets", "env=cartpole_continuous", "algo.ensemble_size=1,5", "algo.trust=disagreement"]
    with pytest.raises(ConfigError, match=r"algo.trust has no effect .* \(with algo.ensemble_size=1\)"):
        compose_grid(expand(words), COMPOSER)


def test_a_setting_with_one_value_is_left_out_of_the_experiments_that_do_not_use_it() -> None:
    words = ["experiment=i2a_learned,i2a_off", "algo.rollout_depth=3"]
    assert [point.arguments for point, _ in compose_grid(expand(words), COMPOSER)] == [
        ["experiment=i2a_learned", "algo.rollout_depth=3"], ["experiment=i2a_off"],
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"algo.rollout_depth has no effect"):
        compose_grid(expand(["experiment=i2a_off,i2a_wide", "algo.rollout_depth=3"]), COMPOSER)


ARMS = """
arms: [i2a_learned, i2a_off]
sweep:
  algo.corrupt_prob: 0.0,0.1
  algo.rollout_depth: 3
claims:
  - {name: helps, left: experiment=i2a_learned algo.corrupt_prob=0, relation: above, right: experiment=i2a_off}
"""


def composer_of(directory: Path, text: str) -> Composer:
    (directory / "experiment").mkdir(exist_ok=True)
    (directory / "experiment" / "mine.yaml").write_text(text)
    return Composer(directory)


def test_a_file_of_arms_says_what_is_swept_in_the_arms_that_use_it(tmp_path: Path) -> None:
    composer = composer_of(tmp_path, ARMS)
    words, _, (claim,) = with_arms(["experiment=mine", "env=sokoban"], composer)
    assert words == ["experiment=i2a_learned,i2a_off", "env=sokoban", "algo.corrupt_prob=0.0,0.1", "algo.rollout_depth=3"]
    points = [point.arguments for point, _ in compose_grid(expand(words), COMPOSER)]
    assert points == [
        ["experiment=i2a_learned", "env=sokoban", "algo.corrupt_prob=0.0", "algo.rollout_depth=3"],
        ["experiment=i2a_learned", "env=sokoban", "algo.corrupt_prob=0.1", "algo.rollout_depth=3"],
        ["experiment=i2a_off", "env=sokoban"],
    ]
    assert (claim.name, claim.left, claim.at) == ("helps", ["experiment=i2a_learned algo.corrupt_prob=0"], [1.0])


def test_the_command_line_says_otherwise_and_adds_experiments(tmp_path: Path) -> None:
    words, yields, claims = with_arms(["+experiment=mine,i2a_copy", "algo.corrupt_prob=0.5"], composer_of(tmp_path, ARMS))
    assert words == ["experiment=i2a_learned,i2a_off,i2a_copy", "algo.corrupt_prob=0.5", "algo.rollout_depth=3"]
    assert yields == {"algo.rollout_depth"}
    assert len(claims) == 1


def test_an_arm_that_sets_a_key_itself_keeps_its_value(tmp_path: Path) -> None:
    composer = composer_of(tmp_path, ARMS.replace("[i2a_learned,", "[i2a_learned, i2a_poor,"))  # i2a_poor sets algo.corrupt_prob
    words, yields, _ = with_arms(["experiment=mine", "env=sokoban"], composer)
    points = [point.arguments for point, _ in compose_grid(space.expand(read_overrides(words), composer, yields), COMPOSER)]
    assert [point[0] for point in points] == ["experiment=i2a_learned"] * 2 + ["experiment=i2a_poor", "experiment=i2a_off"]
    assert points[2] == ["experiment=i2a_poor", "env=sokoban", "algo.rollout_depth=3"]


def test_files_of_arms_list_each_other_but_not_themselves(tmp_path: Path) -> None:
    composer = composer_of(tmp_path, ARMS)
    (tmp_path / "experiment" / "all.yaml").write_text("arms: [mine, i2a_wide]\nsweep: {algo.rollout_depth: 2}")
    words, yields, claims = with_arms(["experiment=all"], composer)
    assert words == ["experiment=i2a_learned,i2a_off,i2a_wide", "algo.rollout_depth=2", "algo.corrupt_prob=0.0,0.1"]
    assert (yields, [claim.name for claim in claims]) == ({"algo.rollout_depth", "algo.corrupt_prob"}, ["helps"])
    (tmp_path / "experiment" / "all.yaml").write_text("arms: [all]")
    with pytest.raises(ConfigError, match="lead back to itself, all → all"):
        with_arms(["experiment=all"], composer)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arms: [i2a_off]\nalgo: {imagination: copy}", "has arms, sweep, claims and no algo"),
        ("arms: [i2a_off]\nsweep: {algo.corrupt_prob: [0, 1]}", "sweep must hold lines like"),
        ("arms: [i2a_off]\nclaims: [{name: a, left: b=1}]", r"claim 1 \(a\): relation is missing"),
        ("arms: [i2a_off]\nclaims: [{name: a, left: b=1, relation: better, right: c=1}]", "relation must be one of above, below"),
        ("arms: [i2a_off]\nclaims: [{name: a, left: off, relation: above, right: c=1}]", "each as settings are typed"),
        ("arms: [i2a_off]\nclaims: [{name: a, left: b=1, relation: falls}]", "two or more levels"),
        ("arms: [i2a_off]\nclaims: [{name: a, left: b=1, relation: above}]", "on the left and on the right"),
        ("arms: [i2a_off]\nclaims: [{name: a, left: b=1, relation: above, right: c=1, at: 5000}]", "shares of the budget"),
        ("arms: [i2a_off]\nclaims: [{name: a, left: b=1, relation: above, right: c=1, hope: 1}]", "has no hope; expected name, left"),
        ("arms: [i2a_off]\nclaims: [3]", "expected name, left, relation and right, got 3"),
    ],
)
def test_a_file_of_arms_that_cannot_be_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        with_arms(["experiment=mine"], composer_of(tmp_path, text))


def test_experiments_of_one_family_take_recipes_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine_cartpole.yaml").write_text("# @package _global_\nloop: {total_env_steps: 777}")
    composer = composer_of(tmp_path, "# @package _global_\nalgo: {clip: 0.3}")
    (tmp_path / "experiment" / "mine_wide.yaml").write_text("# @package _global_\nalgo: {clip: 0.4}")
    for experiment in ("mine", "mine_wide"):
        composed = composer.compose([f"experiment={experiment}", "algo=ppo", "env=cartpole"])
        assert (composed.choices["recipe"], composed.config.loop.total_env_steps) == ("mine_cartpole", 777)
    assert composer.compose(["experiment=mine", "algo=ppo", "env=acrobot"]).choices["recipe"] == "ppo_acrobot"
    assert composer.compose(["experiment=mine", "env=cartpole", "recipe=null"]).choices["recipe"] is None


def test_one_recipe_for_each_pair_is_composed() -> None:
    composed = compose_all(expand(["algo=ppo,a2c", "env=cartpole"]), COMPOSER)
    assert [c.choices["recipe"] for c in composed] == ["ppo_cartpole", "a2c_cartpole"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["algo.clip=range(2,1)"], "is empty"),
        (["algo.num_epochs=1,"], "algo.num_epochs=1,: a comma stands between two values, as in 1,2; one is missing here"),
        (["algo.num_epochs=choice()"], r"choice\(\): expected choice\(A,B,…\), of at least one value"),
        (["algo.num_epochs=range(a,b)"], r"expected range\(START,STOP\) or range\(START,STOP,STEP\), of numbers"),
        (["algo.clip=interval(1e-3)"], r"expected interval\(LOW,HIGH\), of numbers"),
        (["algo.num_epochs=range(1,4,0)"], "the step of a range cannot be 0"),
        (["algo.clip=range(0,1,0.0)"], "the step of a range cannot be 0"),
        (["algo=glob(x*)"], "matches none of"),
        (["algo.clip=glob(*)"], "members of a group"),
        (["algo.clip=interval(0.1,0.3)"], "--trials"),
        (["algo.clipp=0.1,0.2"], r"did you mean algo.clip\?"),
        (["algo=ppo,a2c", "algo.episodes_per_update=1,2"], "unknown key for algo=ppo, a2c"),
        (["algo=ppo,nothing"], "no such algo"),
        (["algo.clip=range(0,1,0.00001)"], "at most 10,000"),
        (["algo.clip=range(0,1,0.01)", "algo.gae_lambda=range(0,1,0.001)"], "100,000 combinations"),
        (["--jobbs"], "unknown option"),
        (["algo.clip=range(0,1,1e-8)"], "100,000,000 values; expected at most 10,000"),
        (["algo.clip=range(0,1e300)"], "values; expected at most 10,000"),
        (["algo.clip=range(0,inf)"], "expected finite numbers"),
        (["algo.clip=range(0,1,nan)"], "expected finite numbers"),
    ],
)
def test_what_cannot_be_listed_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        expand(words)


@pytest.mark.parametrize(
    ("words", "seeds", "expected"),
    [
        ([], None, [0]),
        ([], "3", [0, 1, 2]),
        (["seed=10"], "3", [10, 11, 12]),
        ([], "3,7,11", [3, 7, 11]),
        (["seed=1,5"], None, [1, 5]),
        (["seed=range(2,5)"], None, [2, 3, 4]),
        (["seed=4"], None, [4]),
        (["seed=1e3"], "2e0", [1000, 1001]),
        (["seed=1e1,2e1"], None, [10, 20]),
    ],
)
def test_seeds(words: list[str], seeds: str | None, expected: list[int]) -> None:
    assert seeds_of(read_overrides(["algo=ppo", *words]), seeds) == (read_overrides(["algo=ppo"]), expected)


@pytest.mark.parametrize(
    ("words", "seeds"),
    [([], "0"), ([], "-1"), ([], "x"), ([], "1,1"), ([], "1,,2"), (["seed=1,2"], "3"), (["seed=3"], "1,2"), (["seed=-1,2"], None),
     (["seed=a,b"], None), (["seed=interval(1,3)"], None), ([], "99999999"),
     ([], "1e9"), ([], "1.5"), ([], ""), (["seed=range(0,1e9)"], None), (["seed=0.5,1"], None)],
)  # fmt: skip
def test_seeds_that_are_none_are_refused(words: list[str], seeds: str | None) -> None:
    with pytest.raises(ConfigError, match="seed"):
        seeds_of(read_overrides(words), seeds)


def test_swept_keys_are_those_with_several_values() -> None:
    overrides = read_overrides(["algo=ppo,a2c", "env=cartpole", "algo.clip=interval(0.1,0.3)", "seed=1,2"])
    assert swept_keys(overrides) == [
        "algo",
        "algo.clip",
        "seed",
    ]


# A space to search


class Told:
    """A trial that is told what to suggest, and checks that it is asked within the bounds."""

    def __init__(self, take: str) -> None:
        self.take = take
        self.asked: list[str] = []

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float:
        self.asked.append(f"{name} {low:g} {high:g} {step} {log}")
        return low if self.take == "low" else high

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        self.asked.append(f"{name} {low} {high} {step} {log}")
        return low if self.take == "low" else high

    def suggest_categorical(self, name: str, choices: list[str]) -> str:
        self.asked.append(f"{name} {choices}")
        return choices[0 if self.take == "low" else -1]


def suggest(words: list[str], take: str = "low") -> tuple[Point, list[str]]:
    trial = Told(take)
    return SearchSpace(words).suggest(trial), trial.asked  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("word", "asked", "described"),
    [
        ("algo.learning_rate=interval(1e-5,1e-2)", "1e-05 0.01 None True", "1e-05 to 0.01, log scale"),
        ("algo.learning_rate=tag(linear,interval(1e-5,1e-2))", "1e-05 0.01 None False", "1e-05 to 0.01, linear scale"),
        ("algo.clip=interval(0.1,0.4)", "0.1 0.4 None False", "0.1 to 0.4, linear scale"),
        ("algo.clip=tag(log,interval(0.1,0.4))", "0.1 0.4 None True", "0.1 to 0.4, log scale"),
        ("algo.num_epochs=interval(1,20)", "1 20 1 False", "1 to 20, whole numbers, linear scale"),
        ("algo.num_epochs=range(2,11,2)", "2 10 2 False", "2 to 10 in steps of 2, whole numbers, linear scale"),
        ("algo.clip=range(0.1,0.45,0.1)", "0.1 0.4 0.1 False", "0.1 to 0.4 in steps of 0.1, linear scale"),
        ("algo.activation=tanh,relu", "['tanh', 'relu']", "tanh, relu"),
    ],
)
def test_ranges_and_their_scales(word: str, asked: str, described: str) -> None:
    key = word.partition("=")[0]
    assert suggest([word])[1] == [f"{key} {asked}"]
    assert SearchSpace([word]).describe() == [f"{key}: {described}"]


def test_keys_are_suggested_only_where_they_exist() -> None:
    words = ["algo=a2c,ppo", "algo.clip=0.1,0.2", "env=cartpole"]
    point, asked = suggest(words, "low")
    assert (point.arguments, len(asked)) == (["algo=a2c", "env=cartpole"], 1)
    point, asked = suggest(words, "high")
    assert (point.values, len(asked)) == ({"algo": "ppo", "algo.clip": 0.2}, 2)


def test_lists_survive() -> None:
    point, _ = suggest(["algo.hidden_sizes=[64,64],[32]"], "high")
    assert point.values == {"algo.hidden_sizes": [32]}
    assert COMPOSER.compose(point.arguments).config.algo.hidden_sizes == [32]


def test_examples_reach_both_ends_of_every_range_for_every_choice() -> None:
    points = SearchSpace(["algo=ppo,a2c", "algo.learning_rate=interval(1e-4,1e-2)", "algo.clip=0.1,0.2"]).examples()
    seen = {(p.values["algo"], p.values["algo.learning_rate"]) for p in points}
    assert seen == {(algo, rate) for algo in ("ppo", "a2c") for rate in (1e-4, 1e-2)}
    assert {p.values.get("algo.clip") for p in points} == {0.1, 0.2, None}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("algo.clip=interval(0.3,0.1)", "a lower end and a higher one, got 0.3 and 0.1"),
        ("algo.clip=interval(0.1,0.1)", "a lower end and a higher one"),
        ("algo.entropy_coef=tag(log,interval(0,0.1))", "a log scale begins above 0"),
        ("algo.clip=tag(logarithmic,interval(0.1,0.3))", "unknown tag 'logarithmic'"),
        ("algo.num_epochs=interval(1,2.5)", "whole number"),
        ("algo.clip=0.1", "nothing to search"),
    ],
)
def test_spaces_that_cannot_be_are_refused(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SearchSpace([word])


def test_the_grid_of_a_space_lists_it_and_refuses_intervals() -> None:
    grid = SearchSpace(["algo=ppo,a2c", "algo.clip=0.1,0.2", "algo.num_epochs=range(1,3)"]).grid()
    assert len(grid) == 5
    with pytest.raises(ConfigError, match="is an interval"):
        SearchSpace(["algo.clip=interval(0.1,0.2)"]).grid()


@pytest.mark.parametrize("name", COMPOSER.options("search"))
def test_every_shipped_space_is_valid_at_its_ends(name: str) -> None:
    algo, _, family = name.partition("_")
    words = [f"algo={algo}", f"env={'halfcheetah' if family else 'cartpole'}", *map(str, load_space(name, COMPOSER))]
    for point in SearchSpace(words).examples():
        COMPOSER.compose(point.arguments)


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "expected lines like"), ("- a", "expected lines like"), ("algo:\n  clip: 1", "must be one line"), ("a: [", "not readable YAML")],
)
def test_a_space_file_that_is_none_is_refused(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        load_space(str(path), COMPOSER)


def test_a_space_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"did you mean ppo\?"):
        load_space("pppo", COMPOSER)


def test_the_command_line_overrules_a_space_file(here: Path, run_command: Callable[[str], tuple[int, str, str]]) -> None:
    code, out, _ = run_command("sweep algo=ppo env=cartpole algo.clip=0.2 --trials 3 --seeds 2 --dry-run")
    assert code == 0
    assert "algo.learning_rate: 1e-05 to 0.01, log scale" in out
    assert "algo.clip:" not in out


def test_a_search_over_algorithms_takes_the_spaces_of_all_of_them(here: Path, run_command: Callable[[str], tuple[int, str, str]]) -> None:
    code, out, _ = run_command("sweep algo=a2c,ppo env=cartpole --trials 3 --dry-run")
    assert code == 0
    for line in ("algo: a2c, ppo", "algo.rollout_length: 4, 8, 16, 32", "algo.clip: 0.1, 0.2, 0.3", "algo.learning_rate: 1e-05 to 0.01"):
        assert line in out


def test_the_space_of_another_algorithm_is_said_to_be_one(here: Path, run_command: Callable[[str], tuple[int, str, str]]) -> None:
    code, _, err = run_command("sweep algo=ppo env=cartpole --trials 3 --space reinforce --dry-run")
    assert code == 2
    assert "--space reinforce: algo.episodes_per_update: unknown key for algo=ppo" in err
    assert "it is the space of algo=reinforce" in err


@pytest.mark.parametrize("name", ["i2a_arms", "trust_targets", "trust_data"])
def test_the_groups_that_shipped_claims_compare_can_be_trained(name: str) -> None:
    arms = COMPOSER.arms(name)
    assert arms is not None
    env = "sokoban" if name == "i2a_arms" else "inverted_pendulum"
    for words in {words for claim in read_claims(arms.claims, name) for words in (*claim.left, *claim.right)}:
        experiment = COMPOSER.compose([*words.split(), f"env={env}"]).choices["experiment"]
        assert experiment in arms.experiments
    assert read_overrides(f"{key}={text}" for key, text in arms.sweep.items()) or name == "i2a_arms"


def test_the_arms_of_trust_are_trained_once_without_a_model_and_in_each_corruption_with_one() -> None:
    words, yields, _ = with_arms(["experiment=trust_arms", "env=inverted_pendulum"], COMPOSER)
    pairs = compose_grid(space.expand(read_overrides(words), COMPOSER, yields), COMPOSER)
    of = [point.overrides[0].text for point, _ in pairs]
    assert {name: of.count(name) for name in of} == {
        "trust_off": 1, "trust_n_step": 1, "trust_model_free": 1, "trust_mve": 3, "trust_steve": 3, "trust_steve_perfect": 1,
        "trust_mbpo": 3, "trust_threshold": 3,
    }  # fmt: skip
    assert {composed.choices["recipe"] for _, composed in pairs} == {"trust_inverted_pendulum"}
    assert len({composed.config.algo.utd for _, composed in pairs}) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("env", ["pendulum", "cartpole_continuous"])
def test_trust_has_a_recipe_for_each_of_its_environments(env: str) -> None:
    for experiment in ("trust_rank", "trust_utd_1"):
        assert COMPOSER.compose([f"experiment={experiment}", f"env={env}"]).choices["recipe"] == f"trust_{env}"
