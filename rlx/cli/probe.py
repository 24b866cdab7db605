"""rlx probe: print and draw the returns of runs under changes of their environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlx.cli.complete import complete_checkpoints, complete_probes, complete_runs
from rlx.cli.options import Trust, echo, interruptible, print_json, warn


def probe(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN]…", help="Names or paths of runs. (default: latest)",
                                                     autocompletion=complete_runs)] = None,
    probes: Annotated[list[str] | None, typer.Option("--probe", metavar="NAME[=VALUE,…]", autocompletion=complete_probes,
                                                     help="Change this, e.g. friction=0.3,0.6; can be repeated; panel stands for all "
                                                     "that is changed by default. (default: panel)")] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play under each change.")] = 20,
    checkpoint: Annotated[str, typer.Option(help="best, latest, or the env steps of one.", autocompletion=complete_checkpoints)] = "latest",
    stochastic: Annotated[bool, typer.Option("--stochastic", help="Sample actions as in training, not the most likely one.")] = False,
    env_settings: Annotated[list[str] | None, typer.Option("--env", help="A setting of the environment that differs in all rows, e.g. "
                                                           "num_boxes=2; can be repeated.")] = None,
    flat: Annotated[bool, typer.Option("--flat", help="Play on flat ground, where the environment is a course with obstacles.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Draws other episodes than the usual ones.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the figure here: .png, .svg, .pdf. (default: plots/ in the first run)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, on a line for each run.")] = False,
    trust: Trust = False,
) -> None:  # fmt: skip
    """Measure how robust trained policies are: the episodes of rlx eval under other friction, mass, slopes, noise and delays.

    Examples:

      rlx probe

      rlx probe hopper --episodes 50 --out hopper.svg

      rlx probe hopper --probe friction=0.2,0.4,0.8 --probe incline=-9

      rlx probe walker hurdler --flat

      rlx probe hopper --json | jq '.rows[] | [.probe, .value, .relative]'
    """
    from rich.console import Console

    from rlx.envs.mujoco.course_settings import COURSES
    from rlx.errors import ConfigError
    from rlx.evaluation.probe_kinds import chosen
    from rlx.evaluation.robustness import probe_run
    from rlx.render import figures
    from rlx.render.probe_figure import draw_probes
    from rlx.render.probe_view import print_probes
    from rlx.render.tables import terminal
    from rlx.store.layout import runs_directory
    from rlx.store.runs import RunDir

    figures.check_format(out)
    for word in runs or []:
        if "=" in word and not Path(word).exists():
            raise ConfigError(f"{word}: expected the name of a run; did you mean `--probe {word}`?")
    chosen(probes or [])
    opened, results = [RunDir.open(runs_directory(), run) for run in runs or ["latest"]], []
    if flat and not any(run.config(trust=trust).env.id in COURSES for run in opened):
        raise ConfigError("--flat: none of the runs is on a course with obstacles, such as env=hurdles; leave it out")
    with interruptible() as should_stop, Console(stderr=True).status("probing") as status:
        for run in opened:

            def show(text: str, name: str = run.reference) -> None:
                status.update(f"{name}: {text}")

            results.append(probe_run(run, probes or [], checkpoint=checkpoint, episodes=episodes, stochastic=stochastic, seed=seed,
                                     env_settings=env_settings or [], flat=flat, trust=trust, should_stop=should_stop, progress=show,
                                     warn=warn))  # fmt: skip
    path = out or opened[0].path / "plots" / ("probe.png" if len(opened) == 1 else "probes.png")
    figures.save(draw_probes(results), path, inside=out is None)
    if as_json:
        print_json(result.as_dict() | {"figure": str(path)} for result in results)
        return
    print_probes(terminal(), results)
    echo(str(path))
