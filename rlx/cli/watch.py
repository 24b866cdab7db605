"""rlx watch: show an agent at play."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlx.cli.complete import complete_checkpoints, complete_runs
from rlx.cli.options import Trust, ablation_of, echo, warn

_MOST_FPS = 15.0


def watch(
    run: Annotated[str, typer.Argument(help="The run.", autocompletion=complete_runs)] = "latest",
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play; those of rlx eval, in its order.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many decisions; with --png, which one to draw.")] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=50.0,
            help="Decisions a second, in a terminal and in a film; by default those of the environment, at most 15, and 3 in a grid world.",
        ),
    ] = None,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="Sample actions as in training, instead of the most likely one.")
    ] = False,
    imagination: Annotated[
        str | None,
        typer.Option(help="Ablation of imagination, as in rlx eval: on, off, shuffled, copy or perfect."),
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Ablation of the policy's memory, as in rlx eval: on or off.")] = None,
    decide: Annotated[
        str | None,
        typer.Option(help="What chooses actions, as in rlx eval: network, search or tree."),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="best, latest, or the env steps of one.", autocompletion=complete_checkpoints)] = "latest",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Draws other episodes than the usual ones.")] = 0,
    gif: Annotated[Path | None, typer.Option(help="Write the episodes here as a film instead of showing them.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write one decision here as a picture instead: the first, or number --steps.")] = None,
    trust: Trust = False,
) -> None:
    """Watch an agent at play: the environment, what the network is given of it, the probabilities of actions, and the value.

    In a terminal pictures are drawn in half blocks; elsewhere every step is a few lines of text. An action that the environment forbids is
    dim and marked with ×. A continuous action is shown as one standard deviation around its mean, within its bounds.

    In a grid world (sokoban, minipacman) each action has the rollout that the agent imagines, with its predicted rewards. policy is
    the probability of an action, and without is what it would be without imagination. saliency is how much the policy depends on an
    action's rollout: the divergence KL(policy || policy with that rollout's encoding replaced by zeros), as a share of the sum over
    actions.

    Of algo=ibp the picture has a line for every imagined step, from where it was imagined to where it led.

    Examples:

      rlx watch car

      rlx watch car --gif car.gif --steps 200

      rlx watch boxes --stochastic --episodes 5 --fps 2

      rlx watch boxes --imagination perfect --gif boxes.gif

      rlx watch boxes --png decision.png --steps 8
    """
    from rlx.evaluation.watching import watch_run
    from rlx.render.tables import terminal
    from rlx.render.watch_files import check_paths, save_film, save_picture
    from rlx.render.watch_live import show
    from rlx.store.layout import runs_directory
    from rlx.store.runs import RunDir
    from rlx.track.console import is_live_terminal

    check_paths(gif, png)
    ablation = ablation_of(imagination=imagination, memory=memory, decide=decide)
    found = watch_run(RunDir.open(runs_directory(), run), checkpoint=checkpoint, episodes=episodes, steps=steps, stochastic=stochastic,
                      ablation=ablation, seed=seed, trust=trust, warn=warn)  # fmt: skip
    fps = fps or min(_MOST_FPS, found.fps)
    if png is not None:
        save_picture(png, found, number=steps or 1)
    elif gif is not None:
        save_film(gif, found, fps=fps)
    else:
        live = is_live_terminal()
        try:
            show(terminal(), found, fps=fps, live=live)
        except KeyboardInterrupt:
            if not live:
                raise
            echo("left")
        return
    echo(str(png or gif))
