"""What several commands have: options, and ways to print."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from rlx.text import printable

Trust = Annotated[bool, typer.Option("--trust", help="Run the code that a run or sweep of somebody else names; your own need no word.")]


def echo(text: str, *, err: bool = False) -> None:
    """Print lines; control characters in them are escaped, because names and files may come from anybody."""
    typer.echo(printable(text, keep="\n\t"), err=err)


def print_json(rows: Iterable[dict[str, Any]]) -> None:
    """Print one JSON object a line."""
    for row in rows:
        echo(json.dumps(row))
