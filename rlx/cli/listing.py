"""rlx ls, rlx show: what runs there are and how they went. A damaged run is shown as far as it can be read."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlx.cli.complete import complete_envs, complete_runs, complete_sweeps
from rlx.cli.options import echo, print_json

if TYPE_CHECKING:
    from rlx.store.details import RunDetails
    from rlx.store.runs import RunDir


def ls(
    runs_dir: Annotated[Path | None, typer.Option(help="The directory of runs. (default: $RLX_RUNS_DIR, or runs/ here)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    sweep: Annotated[
        str | None, typer.Option(help="List the runs of a sweep, by name, path or latest.", autocompletion=complete_sweeps)
    ] = None,
    algo: Annotated[str | None, typer.Option(help="Only runs of this algorithm.")] = None,
    env: Annotated[
        str | None, typer.Option(help="Only runs in environments with this in their name.", autocompletion=complete_envs)
    ] = None,
    status: Annotated[
        str | None, typer.Option(help="Only runs that are running, finished, stopped, failed, killed, paused or new.")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Only runs with this tag.")] = None,
    sort: Annotated[str, typer.Option(help="Order: started, name, return, eval, best or steps.")] = "started",
) -> None:
    """List runs, the one started last at the top, and sweeps; or the runs of one sweep.

    Examples:

      rlx ls

      rlx ls --sweep latest

      rlx ls --algo ppo --env cartpole --status finished --sort return

      rlx ls --json | jq -r 'select(.status == "killed") | .run'
    """
    from rlx.config.choices import check_choice
    from rlx.render.run_view import print_rows
    from rlx.render.tables import terminal
    from rlx.store.layout import runs_directory
    from rlx.store.rows import SORTS, STATUSES, run_rows, select
    from rlx.store.sweeps import list_sweeps

    root = runs_dir or runs_directory()
    check_choice("--sort", sort, tuple(SORTS))
    if status is not None:
        check_choice("--status", status, STATUSES)
    if sweep is not None:
        _list_sweep(root, sweep, as_json=as_json)
        return
    everything = run_rows(root)
    rows = select(everything, algo=algo, env=env, status=status, tag=tag)
    if (value := SORTS[sort]) is not None:
        rows.sort(key=value)
    if as_json:
        print_json(asdict(row) for row in rows)
        return
    console = terminal()
    if everything and not rows:
        console.print(f"No run of the {len(everything)} in {root} matches; `rlx ls` lists them all", soft_wrap=True)
        return
    filtered = algo or env or status or tag  # by what only runs have
    sweeps = [] if filtered else list_sweeps(root)[::-1]
    if not rows and not sweeps:
        console.print(f"There are no runs in {root} yet; start one: rlx train algo=ppo env=cartpole", soft_wrap=True)
    if rows:
        print_rows(console, rows)
    if sweeps:
        from rlx.render.sweep_overview import print_sweeps  # imports numpy

        console.print()
        print_sweeps(console, sweeps)
    if rows and console.is_terminal:
        text = "train: mean return of the last 100 training episodes   eval, best: last and best evaluation   More: rlx show RUN"
        console.print(f"\n{text}", style="dim", soft_wrap=True)


def _list_sweep(root: Path, reference: str, *, as_json: bool) -> None:
    from rlx.render.sweep_overview import print_sweep
    from rlx.render.tables import terminal
    from rlx.store.sweeps import SweepDir
    from rlx.sweep.overview import overview

    seen = overview(SweepDir.open(root, reference))
    if as_json:
        print_json([{**asdict(seen), "done": seen.done}])
    else:
        print_sweep(terminal(), seen)


def show(
    run: Annotated[str, typer.Argument(help="Name or path of a run, or latest.", autocompletion=complete_runs)] = "latest",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show one run: its settings, how far it got, its curve, checkpoints and files, and what to do next.

    Examples:

      rlx show

      rlx show lander

      rlx show lander --json | jq '.checkpoints[] | select(.best)'
    """
    from rlx.render.run_view import print_run, print_title
    from rlx.render.tables import terminal
    from rlx.store.details import run_details
    from rlx.store.layout import runs_directory
    from rlx.store.runs import RunDir

    opened = RunDir.open(runs_directory(), run)
    lines = opened.metrics()
    details = run_details(opened, lines)
    if as_json:
        echo(json.dumps(asdict(details)))
        return
    console = terminal()
    print_run(console, details, lines)
    print_title(console, "Files")
    for name in ("config.yaml", "meta.json", "metrics.jsonl", "evaluations.jsonl", "checkpoints", "videos", "plots", "wandb"):
        if os.path.lexists(opened.path / name):
            console.print(f"  {opened.path / name}", soft_wrap=True)
    print_title(console, "Next")
    for meaning, command in _next_commands(opened, details):
        console.print(f"  {meaning:<10}  {command}", soft_wrap=True)


def _ranks_option(details: RunDetails) -> str:
    """What `rlx resume` needs to go on with as many processes as the last time, if all were on one machine."""
    from rlx.store.runs import segments_of

    segments = segments_of(details.meta)
    ranks, hosts = (segments[-1].get("ranks"), segments[-1].get("hosts")) if segments else (None, None)
    return f" --ranks {ranks}" if isinstance(ranks, int) and isinstance(hosts, list) and len(hosts) == 1 else ""


def _next_commands(run: RunDir, details: RunDetails) -> list[tuple[str, str]]:
    """What the user may type next, and what for."""
    reference, commands = run.reference, []
    usable = [c for c in details.checkpoints if not c.damage]
    ranks = _ranks_option(details)
    if details.status == "running":
        commands.append(("look again", f"rlx show {reference}"))
    elif not details.resumable:
        commands.append(("start anew", "rlx train …   # without its config.yaml a run cannot go on"))
    elif details.status == "finished":
        commands.append(("train on", f"rlx resume {reference}{ranks} loop.total_env_steps={2 * (details.total_env_steps or 100_000)}"))
    else:
        commands.append(("go on" if usable else "start over", f"rlx resume {reference}{ranks}"))
    if usable and details.resumable:
        best = " --checkpoint best" if any(c.best for c in usable) else ""
        commands.append(("evaluate", f"rlx eval {reference}{best}"))
    return commands
