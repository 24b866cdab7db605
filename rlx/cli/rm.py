"""rlx rm: delete runs and sweeps."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rlx.cli.complete import complete_runs_and_sweeps
from rlx.cli.options import echo


def rm(
    runs: Annotated[
        list[str],
        typer.Argument(help="Names, paths or patterns of runs and sweeps, or latest.", autocompletion=complete_runs_and_sweeps),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be deleted; delete nothing.")] = False,
) -> None:
    """Delete runs and sweeps with everything in their directories. What is being trained, and links, are refused.

    Examples:

      rlx rm lander

      rlx rm 'trial-*' --dry-run

      rlx rm lr --yes
    """
    from rlx.errors import ConfigError
    from rlx.render.numbers import count, number
    from rlx.store.layout import runs_directory
    from rlx.store.removal import find_removals, remove

    found = find_removals(runs_directory(), runs)
    for each in found:
        what = "" if each.num_runs is None else f"sweep of {count(each.num_runs, 'run')}, "
        echo(f"{each.path}  {what}{number(each.num_bytes)}B")
    if dry_run:
        return
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("rlx rm asks before it deletes, and there is no terminal to ask: add --yes")
        if not typer.confirm("Delete?"):
            raise typer.Exit(1)
    for each in found:
        remove(each)
    echo("deleted")
