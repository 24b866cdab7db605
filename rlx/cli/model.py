"""rlx model: print and draw how well the learned model of a run predicts new episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlx.cli.complete import complete_checkpoints, complete_runs
from rlx.cli.options import Trust, echo, interruptible, print_json, warn


def model(
    run: Annotated[str, typer.Argument(help="Name or path of a run, or latest.", autocompletion=complete_runs)] = "latest",
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play and to predict.")] = 5,
    checkpoint: Annotated[str, typer.Option(help="best, latest, or the env steps of one.", autocompletion=complete_checkpoints)] = "latest",
    policy: Annotated[str, typer.Option(help="Who acts: plan (the run, as in its evaluations) or random.")] = "plan",
    horizon: Annotated[int | None, typer.Option(min=1, help="Steps to look ahead. (default: the planner's horizon)")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Draws other episodes than the usual ones.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the figure here: .png, .svg, .pdf. (default: plots/ in the run)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    trust: Trust = False,
) -> None:
    """Measure a learned model on new episodes: its error k steps ahead, the coverage of its intervals, whether disagreement predicts error.

    Examples:

      rlx model

      rlx model pole --policy random --horizon 30

      rlx model pole --checkpoint best --json | jq .spearman
    """
    from rlx.evaluation.model_quality import evaluate_model
    from rlx.render import figures
    from rlx.render.model_view import print_model_evaluation
    from rlx.render.tables import terminal
    from rlx.store.layout import runs_directory
    from rlx.store.runs import RunDir

    figures.check_format(out)
    opened = RunDir.open(runs_directory(), run)
    with interruptible() as should_stop:
        found = evaluate_model(opened, checkpoint=checkpoint, episodes=episodes, policy=policy, horizon=horizon, seed=seed, trust=trust,
                               should_stop=should_stop, warn=warn)  # fmt: skip
    path = out or opened.path / "plots" / ("model.png" if policy == "plan" else f"model-{policy}.png")
    figures.save(figures.draw_model_error(found.error, title=f"{found.title}, acting: {policy}"), path, inside=out is None)
    if as_json:
        print_json([found.as_dict() | {"figure": str(path)}])
    else:
        print_model_evaluation(terminal(), found)
        echo(str(path))
