"""rlx variance: print and draw the variance of the policy gradient under each of its estimators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlx.cli.complete import complete_checkpoints, complete_runs
from rlx.cli.options import Trust, echo, interruptible, print_json, warn


def variance(
    run: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN | KEY=VALUE", help="A run (default: latest), or settings of an untrained policy.", autocompletion=complete_runs
        ),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to measure; the reference takes as many again.")] = 256,
    checkpoint: Annotated[str, typer.Option(help="best, latest, or the env steps of one.", autocompletion=complete_checkpoints)] = "latest",
    discount: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Per-step gamma. (default: algo.discount)")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Draws other episodes than the usual ones.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the figure here: .png, .svg, .pdf. (default: plots/ in the run)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    trust: Trust = False,
) -> None:
    """Measure the policy gradient's variance, bias and direction for R(tau), to go, minus V, Q - V, n steps and GAE, on the same episodes.

    V and Q are fitted to episodes of their own, so that estimators are compared and not critics.

    Examples:

      rlx variance

      rlx variance pole --checkpoint best --episodes 512

      rlx variance algo=a2c env=cartpole --out ladder.png

      rlx variance pole --json | jq .factor
    """  # fmt: skip
    from rlx.config.compose import Composer
    from rlx.errors import ConfigError
    from rlx.evaluation.gradient_ladder import evaluate_variance
    from rlx.render import figures
    from rlx.render.tables import terminal
    from rlx.render.variance_figure import draw_ladder
    from rlx.render.variance_view import print_ladder
    from rlx.store.layout import runs_directory
    from rlx.store.runs import RunDir

    figures.check_format(out)
    words = run or ["latest"]
    if any("=" in word for word in words):
        if not all("=" in word for word in words):
            raise ConfigError(f"rlx variance {' '.join(words)}: name a run, or the settings of an untrained policy, not both")
        if checkpoint != "latest":
            raise ConfigError(f"--checkpoint {checkpoint}: an untrained policy has none; name a run instead of settings")
        opened, source = None, Composer().compose(words).config
    else:
        if len(words) > 1:
            raise ConfigError(f"rlx variance {' '.join(words)}: expected one run; measure one after the other")
        opened = source = RunDir.open(runs_directory(), words[0])  # type: ignore[assignment]
    with interruptible() as should_stop:
        found = evaluate_variance(source, checkpoint=checkpoint, episodes=episodes, discount=discount, seed=seed, trust=trust,
                                  should_stop=should_stop, warn=warn)  # fmt: skip
    path = out or (None if opened is None else opened.path / "plots" / "variance.png")
    if path is not None:
        figures.save(draw_ladder(found), path, inside=out is None)
    if as_json:
        print_json([found.as_dict() | {"figure": None if path is None else str(path)}])
        return
    print_ladder(terminal(), found)
    echo(str(path) if path is not None else "no figure: --out ladder.png draws one")
