"""rlx eval."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlx.cli.complete import complete_checkpoints, complete_runs
from rlx.cli.options import Trust, echo
from rlx.render.numbers import digits

if TYPE_CHECKING:
    from rlx.checkpoint import Checkpoint
    from rlx.config.schema import EnvConfig, RunConfig
    from rlx.store.runs import RunDir
    from rlx.types import Algorithm, VectorEnv

EVAL_STREAM = [0x5EED]
"""The episodes of `rlx eval` are the same for every run, and none of them chose the best checkpoint."""


def evaluate(
    run: Annotated[str, typer.Argument(help="Name or path of a run, or latest.", autocompletion=complete_runs)] = "latest",
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play.")] = 100,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="Sample actions as in training, instead of the most likely one.")
    ] = False,
    video: Annotated[int, typer.Option(min=0, help="Also play and record this many episodes as MP4.")] = 0,
    checkpoint: Annotated[str, typer.Option(help="best, latest, or the env steps of one.", autocompletion=complete_checkpoints)] = "latest",
    opponent: Annotated[str | None, typer.Option(help="Games: random, one_ply, uct:N or solver. (default: as in training)")] = None,
    simulations: Annotated[
        int | None, typer.Option(min=1, help="Of each search: games, and --decide tree. (default: as in training's evaluations)")
    ] = None,
    imagination: Annotated[
        str | None,
        typer.Option(help="Agents that imagine: what to read, to see how much they rely on it: on, off, shuffled, copy or perfect."),
    ] = None,
    decide: Annotated[
        str | None,
        typer.Option(
            help="Agents that imagine: what chooses actions: the network, or a search or a tree in the world that they imagine in."
        ),
    ] = None,
    env_settings: Annotated[
        list[str] | None,
        typer.Option("--env", help="A setting of the environment to evaluate under instead, e.g. num_boxes=2; several values: 1,2,3."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Draws other episodes than the usual ones.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, on a line for each value of --env.")] = False,
    trust: Trust = False,
) -> None:
    """Evaluate a run in environments of its own: frozen normalisers, fixed episodes, mean, deviation and a 95 % interval.

    Examples:

      rlx eval

      rlx eval lander --checkpoint best --episodes 20 --video 2

      rlx eval lander --json | jq .return_mean

      rlx eval boxes --stochastic --imagination shuffled

      rlx eval boxes --env num_boxes=1,2,3,4 --env max_episode_steps=120

      rlx eval boxes --decide tree --imagination perfect --simulations 100
    """
    from rlx.config.compose import runs_directory
    from rlx.envs.games.opponents import parse_opponent
    from rlx.envs.registry import GameEnvFactory
    from rlx.errors import ConfigError
    from rlx.store.runs import RunDir

    opened = RunDir.open(runs_directory(), run)
    config = opened.config(trust=trust)
    if opponent is not None and not config.env.is_game:
        raise ConfigError(f"--opponent {opponent}: env={config.env.id} is no game; leave it out")
    check_ablation(opened, config, imagination, decide, stochastic=stochastic)
    by_tree = config.algo.imagines and (decide or config.algo.decide.value) == "tree"
    if simulations is not None and not (config.env.is_game or by_tree):
        why = f"env={config.env.id} is no game" + (", and no tree decides; add --decide tree" if config.algo.imagines else "; leave it out")
        raise ConfigError(f"--simulations {simulations}: {why}")
    if video and config.env.is_game:
        raise ConfigError(f"--video: games have no pictures; rlx play {opened.reference} shows them")
    if opponent is not None:
        parse_opponent(opponent, "--opponent")(GameEnvFactory(config.env.id, config.env.kwargs).game, 0)
        config.env.opponent = opponent
    if simulations is not None:
        config.algo.num_eval_simulations = simulations
    chosen = choose_checkpoint(opened, checkpoint)
    under = _each(env_settings or [])
    if video and len(under) > 1:
        raise ConfigError("--video: one value of every --env at a time; leave the others out")
    changed = [replace(config, env=_changed(config.env, settings)) for settings in under]
    results = []
    for settings, there in zip(under, changed, strict=True):
        result = _measure(opened, config, there, chosen, settings, episodes=episodes, stochastic=stochastic, video=video,
                          imagination=imagination, decide=decide, seed=seed)  # fmt: skip
        results.append(result)
        if as_json:
            echo(json.dumps(result))
    if not as_json:
        reading = f", decided by {decide}" if decide is not None else ""
        reading += f", imagination {imagination}" if imagination is not None else ""
        reading += f" with {', '.join(under[0])}" if len(under) == 1 and under[0] else ""
        mode = results[0]["mode"]
        echo(f"{opened.name} at {chosen.env_steps:,} env steps, {episodes} {mode} episodes of {config.env.id}{reading}:")
        if len(results) == 1:
            _say(results[0])
        else:
            _tabulate(results)


def _measure(
    run: RunDir, trained: RunConfig, config: RunConfig, checkpoint: Checkpoint, settings: list[str], *, episodes: int, stochastic: bool,
    video: int, imagination: str | None, decide: str | None, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Play episodes of `config`, which is that of the run but for some settings of its environment; what --json prints."""
    from rlx.build import env_factory, known_best
    from rlx.evaluation.evaluator import MAX_PARALLEL, Stopped, episode_seeds, optimal_moves, run_episodes, summarize
    from rlx.rng import seed_everything
    from rlx.signals import SignalHandler
    from rlx.stats.intervals import share_interval
    from rlx.types import Mode

    make_env = env_factory(config)
    env = make_env(min(episodes, MAX_PARALLEL))
    if settings:
        _check_same_spaces(run, env_factory(trained)(1), env, settings)
    algo = varied(load_policy(config, checkpoint, env), imagination, decide)
    seeds = episode_seeds(episodes, stream=[*EVAL_STREAM, seed], paired=config.env.is_game)
    mode: Mode = "train" if stochastic else "eval"
    seed_everything(seed)
    limit = config.loop.eval_max_steps
    with SignalHandler(announce=False) as signals:
        try:
            played = run_episodes(env, algo, seeds, mode=mode, max_steps=limit, should_stop=signals.should_stop)
        except Stopped:
            typer.echo("rlx: interrupted", err=True)
            raise typer.Exit(128 + (signals.stopped_by or 0)) from None
        finally:
            env.close()
    if cut := sum(e.cut for e in played):
        typer.echo(f"{cut} episodes were cut after {limit:,} steps (loop.eval_max_steps) and count with what they had earned", err=True)

    summary = {name.removeprefix("eval/"): value for name, value in summarize(played, game=config.env.is_game).items()}
    result: dict[str, Any] = {
        "run": run.name,
        "episodes": episodes,
        "mode": "stochastic" if stochastic else "deterministic",
        "return_mean": summary["return_mean"],
        "return_std": summary["return_std"],
        "return_ci": [summary.get("return_ci_low"), summary.get("return_ci_high")],
        "return_min": min(e.return_ for e in played),
        "return_max": max(e.return_ for e in played),
        "length_mean": summary["length_mean"],
        "env_steps": checkpoint.env_steps,
        "eval_env_steps": sum(e.length for e in played),
    }
    if imagination is not None:
        result["imagination"] = imagination
    if decide is not None:
        result["decide"] = decide
    if settings:
        result["env"] = settings
    if "solve_rate" in summary:
        result["solve_rate"] = summary["solve_rate"]
        result["solve_rate_ci"] = list(share_interval(summary["solve_rate"], episodes))
    calls = [e.model_calls for e in played if e.model_calls is not None]
    if calls:
        result["model_calls_mean"] = sum(calls) / episodes
    if calls and "solve_rate" in summary:
        solved = sum(bool(e.solved) for e in played)
        result["model_calls_per_solved"] = sum(calls) / solved if solved else None
    if config.env.is_game:
        returns = [e.return_ for e in played]
        result |= {"opponent": config.env.opponent, "score": (1.0 + summary["return_mean"]) / 2.0,
                   "score_ci": [None if end is None else (1.0 + end) / 2.0 for end in result["return_ci"]],
                   "wins": sum(r > 0 for r in returns),
                   "draws": sum(r == 0 for r in returns), "losses": sum(r < 0 for r in returns)}  # fmt: skip
        best = known_best(make_env)
        if best is not None:
            result["optimal_moves"] = optimal_moves(algo, *best)
    if video:
        from rich.console import Console

        from rlx.evaluation.video import record

        with Console(stderr=True).status("recording") as status:
            recorded = record(config, algo, seeds[:video], run.path / "videos", prefix=f"{checkpoint.env_steps}", mode=mode,
                              progress=status.update)  # fmt: skip
        result["videos"] = list(map(str, recorded))
    return result


def _say(result: dict[str, Any]) -> None:
    """Print what was measured."""
    mean, std = digits(result["return_mean"], result["return_std"])
    least, most = digits(result["return_min"], result["return_max"])
    echo(f"  return {mean} ± {std}   95 % interval of the mean {_ends(result)}   range {least} to {most}")
    if "score" in result:
        ends = "" if None in result["score_ci"] else " (95 % interval {:.3f} to {:.3f})".format(*result["score_ci"])
        echo(f"  score {result['score']:.3f}{ends} against {result['opponent']}: "
                   f"{result['wins']} wins, {result['draws']} draws, {result['losses']} losses")  # fmt: skip
    if "optimal_moves" in result:
        echo(f"  optimal moves {100 * result['optimal_moves']:.1f} % of the positions that are known")
    if "solve_rate" in result:
        solved_low, solved_high = result["solve_rate_ci"]
        echo(f"  solved {100 * result['solve_rate']:.1f} %   95 % interval {100 * solved_low:.1f} to {100 * solved_high:.1f} %")
    echo(f"  length {digits(result['length_mean'])[0]} steps")
    if "model_calls_mean" in result:
        each = result.get("model_calls_per_solved")
        per_solved = f", {each:,.0f} for each that was solved (those of all episodes, over the solved ones)" if each else ""
        echo(f"  model calls {result['model_calls_mean']:,.0f} an episode{per_solved}")
    for path in result.get("videos", []):
        echo(f"  video {path}")


def _ends(result: dict[str, Any]) -> str:
    """The interval of the return in words, or why there is none."""
    if None in result["return_ci"]:
        return "– (all equal)" if result["episodes"] > 1 and result["return_min"] == result["return_max"] else "– (fewer than 5 episodes)"
    _, low, high = digits(result["return_mean"], *result["return_ci"])
    return f"{low} to {high}"


def _tabulate(results: list[dict[str, Any]]) -> None:
    """Print what was measured under several settings, a line for each."""
    from rlx.render.tables import make_table, terminal

    solves, calls = "solve_rate" in results[0], "model_calls_mean" in results[0]
    table = make_table("environment", "return", "95 %", *(["solved", "95 %"] if solves else []), "length",
                       *(["model calls"] if calls else []), *(["per solved"] if calls and solves else []))  # fmt: skip
    for result in results:
        row = [" ".join(result["env"]), digits(result["return_mean"])[0], _ends(result)]
        if solves:
            row += [f"{100 * result['solve_rate']:.1f} %", "{:.1f} to {:.1f} %".format(*(100 * x for x in result["solve_rate_ci"]))]
        row.append(digits(result["length_mean"])[0])
        if calls:
            row.append(f"{result['model_calls_mean']:,.0f}")
        if calls and solves:
            each = result["model_calls_per_solved"]
            row.append(f"{each:,.0f}" if each else "–")
        table.add_row(*row)
    terminal().print(table)


def _each(settings: list[str]) -> list[list[str]]:
    """Every combination of the values of --env: `num_boxes=1,2` stands for two, `[1, 2]` for one."""
    choices = []
    for setting in settings:
        name, equals, values = setting.partition("=")
        several = [values] if values[:1] in ("[", "{", "'", '"') else values.split(",")
        choices.append([f"{name}{equals}{value}" for value in several])
    return [list(combination) for combination in itertools.product(*choices)]


def _changed(env: EnvConfig, settings: list[str]) -> EnvConfig:
    """An environment's configuration with other constructor arguments, each written `name=value`.

    Raises:
        ConfigError: if one is not written so, or the environment knows that it has no such argument.
    """
    import yaml

    from rlx.errors import ConfigError

    kwargs = dict(env.kwargs)
    for setting in settings:
        name, equals, value = setting.removeprefix("env.").removeprefix("kwargs.").partition("=")
        if not (equals and name and value):
            raise ConfigError(f"--env {setting}: expected name=value, e.g. --env max_episode_steps=120")
        kwargs[name] = yaml.safe_load(value)
    return replace(env, kwargs=kwargs)


def _check_same_spaces(run: RunDir, before: VectorEnv, after: VectorEnv, settings: list[str]) -> None:
    """Raise a ConfigError if observations or actions are not what a run was trained on."""
    from rlx.errors import ConfigError

    old, new = ((e.single_observation_space, e.single_action_space) for e in (before, after))
    before.close()
    if old != new:
        raise ConfigError(
            f"--env {' --env '.join(settings)}: {run.reference} acts on {old[0]} with {old[1]}, but this is {new[0]} with {new[1]}"
        )


def check_ablation(run: RunDir, config: RunConfig, imagination: str | None, decide: str | None, *, stochastic: bool) -> None:
    """Check what an agent is asked to read, and what is to decide, where either is given.

    Raises:
        ConfigError: if it is no such name, or the algorithm imagines nothing, or samples nothing.
    """
    from rlx.config.algos.i2a_config import ABLATIONS, Decide
    from rlx.config.overrides import check_choice
    from rlx.errors import ConfigError

    for option, given, choices in (("--imagination", imagination, ABLATIONS), ("--decide", decide, tuple(d.value for d in Decide))):
        if given is None:
            continue
        check_choice(option, given, choices)
        if not config.algo.imagines:
            raise ConfigError(
                f"{option} {given}: {run.reference} is algo={config.algo.name}, which imagines nothing; leave it out, or "
                "choose a run of algo=i2a"
            )
    if stochastic and config.algo.imagines:
        decider = decide or config.algo.decide.value
        if decider != "network":
            raise ConfigError(f"--stochastic: a {decider} decides, and it samples no actions; leave it out, or add --decide network")


def varied(algo: Any, imagination: str | None, decide: str | None) -> Any:
    """An agent that imagines, reading and deciding as the options say; any other as it is."""
    from rlx.config.algos.i2a_config import Decide

    if imagination is None and decide is None:
        return algo
    return algo.with_imagination(imagination or "on", decide=Decide(decide) if decide else None)


def load_policy(config: RunConfig, checkpoint: Checkpoint, env: VectorEnv) -> Algorithm:
    """The algorithm of a run as a checkpoint has it, for environments like these; on the CPU where the run's own device is missing."""
    import torch

    from rlx.build import build_algorithm, env_spec, resolve_device, setup_torch, spaces_in_words
    from rlx.checkpoint import load_algorithm
    from rlx.errors import ConfigError

    try:
        device = resolve_device(config)
    except ConfigError:  # trained on a GPU that is not here
        device = torch.device("cpu")
    setup_torch(config, device)
    algo = build_algorithm(config, env_spec(config.env, env), device)
    load_algorithm(checkpoint, algo, name=config.algo.name, spaces=None if config.env.is_game else spaces_in_words(env))
    return algo


def choose_checkpoint(run: RunDir, which: str) -> Checkpoint:
    """The checkpoint that `best`, `latest` or a number of env steps means.

    Raises:
        CheckpointError: if there is none such, or it is damaged.
    """
    from rlx.checkpoint import best_checkpoint, find_checkpoints
    from rlx.errors import CheckpointError

    found, broken = find_checkpoints(run.checkpoints)
    if not found:
        reason = f": {broken[0]}" if broken else "; it has not saved one yet"
        raise CheckpointError(f"{run.path} has no checkpoint to evaluate{reason}")
    there = ", ".join(str(c.env_steps) for c in found)
    if which == "latest":
        for candidate in found:
            try:
                candidate.verify()
                return candidate
            except CheckpointError as error:
                echo(f"warning: {error}; falling back to the checkpoint before it", err=True)
        raise CheckpointError(f"every checkpoint in {run.checkpoints} is damaged")
    if which == "best":
        best = best_checkpoint(found)
        if best is None:
            raise CheckpointError(
                f"{run.path} was never evaluated, so no checkpoint is the best; use --checkpoint latest or one of {there}"
            )
        return best
    steps = which.replace("_", "").replace(",", "")
    for candidate in found:
        if steps.isdigit() and candidate.env_steps == int(steps):
            return candidate
    raise CheckpointError(f"--checkpoint {which}: {run.path} has no such checkpoint; expected best, latest or one of {there}")
