"""rlx doctor."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from rlx.cli.options import echo

if TYPE_CHECKING:
    from rich.console import Console

    from rlx.diagnostics import Check

_STYLE = {"ok": "green", "warning": "yellow", "broken": "bold red"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Check this installation and machine; the exit code is 1 if something is broken, and 0 if there are only warnings.

    Examples:

      rlx doctor

      rlx doctor --json | jq '.checks[] | select(.status != "ok")'
    """
    from rlx.diagnostics import diagnose
    from rlx.render.numbers import count
    from rlx.render.tables import terminal

    console, checks = terminal(), []
    for check in diagnose():
        checks.append(check)
        if not as_json:
            _print(console, check)
    counts = {status: sum(c.status == status for c in checks) for status in _STYLE}
    if as_json:
        echo(json.dumps({**counts, "checks": [asdict(c) for c in checks]}))
    else:
        verdict = f"{counts['broken']} broken" if counts["broken"] else "ready to train"
        console.print(f"\n{verdict}, {count(counts['warning'], 'warning')}", style="bold")
    if counts["broken"]:
        raise typer.Exit(1)


def _print(console: Console, check: Check) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(width=7)
    table.add_column(width=11)
    table.add_column(overflow="fold")
    table.add_row(Text(check.status, style=_STYLE[check.status]), check.name, check.detail)
    console.print(table)
    if check.advice:
        style = "" if check.status == "ok" else _STYLE[check.status]
        console.print(Padding(Text(f"→ {check.advice}", style=style), (0, 0, 0, 22), expand=False))
