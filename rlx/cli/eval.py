"""rlx eval: print what an evaluation measured."""

from __future__ import annotations

import functools
import itertools
from contextlib import nullcontext
from typing import Annotated

import typer

from rlx.cli.complete import complete_checkpoints, complete_runs
from rlx.cli.options import Trust, ablation_of, echo, interruptible, print_json, warn


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
        typer.Option(help="Ablation of imagination (algo=i2a): on, off, shuffled, copy or perfect."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Ablation of the policy's memory (algo.memory=lstm or gru): on, off, or shuffled, that of another episode."),
    ] = None,
    decide: Annotated[
        str | None,
        typer.Option(help="What chooses actions (algo=i2a): network, or search or tree with the model that it imagines with."),
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

      rlx eval balancer --memory off

      rlx eval boxes --env num_boxes=1,2,3,4 --env max_episode_steps=120

      rlx eval boxes --decide tree --imagination perfect --simulations 100
    """
    from rich.console import Console

    from rlx.evaluation.evaluate import evaluate_settings
    from rlx.render.evaluation_view import evaluation_lines, evaluation_table
    from rlx.render.tables import terminal
    from rlx.store.layout import runs_directory
    from rlx.store.runs import RunDir

    opened = RunDir.open(runs_directory(), run)
    under, results = _each(env_settings or []), []
    ablation = ablation_of(imagination=imagination, memory=memory, decide=decide)
    with interruptible() as should_stop, Console(stderr=True).status("recording") if video else nullcontext() as status:
        evaluate_under = functools.partial(
            evaluate_settings, opened, under, checkpoint=checkpoint, episodes=episodes, stochastic=stochastic, seed=seed,
            opponent=opponent, simulations=simulations, trust=trust, should_stop=should_stop, warn=warn,
        )  # fmt: skip
        for result in evaluate_under(ablation=ablation, videos=video, progress=status.update if status else lambda _: None):
            results.append(result)
            if result.num_cut:
                echo(f"{result.num_cut} episodes were cut after {result.max_steps:,} steps (loop.eval_max_steps) and count with what "
                     "they had earned", err=True)  # fmt: skip
            if as_json:
                print_json([result.as_dict()])
        removed = memory in ("off", "shuffled") and len(results) == 1 and not as_json
        unchanged = next(evaluate_under(ablation={**ablation, "memory": "on"})) if removed else None
    if as_json:
        return
    first = results[0]
    changes = "".join(f", {name} {choice}" for name, choice in first.ablation.items())
    changes += f" with {', '.join(under[0])}" if len(under) == 1 and under[0] else ""
    echo(f"{first.run} at {first.env_steps:,} env steps, {episodes} {first.mode} episodes of {first.env}{changes}:")
    if len(results) == 1:
        for line in evaluation_lines(first):
            echo(f"  {line}")
        if unchanged is not None:
            echo(f"  the same episodes with its memory: {next(evaluation_lines(unchanged))}")
    else:
        terminal().print(evaluation_table(results))


def _each(settings: list[str]) -> list[list[str]]:
    """Every combination of the values of --env: `num_boxes=1,2` stands for two, `[1, 2]` for one."""
    choices = []
    for setting in settings:
        name, equals, values = setting.partition("=")
        several = [values] if values[:1] in ("[", "{", "'", '"') else values.split(",")
        choices.append([f"{name}{equals}{value}" for value in several])
    return [list(combination) for combination in itertools.product(*choices)]
