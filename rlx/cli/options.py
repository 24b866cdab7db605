"""What several commands have: options, and a way to print."""

from __future__ import annotations

from typing import Annotated

import typer

from rlx.text import printable

Trust = Annotated[bool, typer.Option("--trust", help="Run the code that a run or sweep of somebody else names; your own need no word.")]


def echo(text: str, *, err: bool = False) -> None:
    """Print lines; what a directory's name or a run's files say cannot make the terminal do anything."""
    typer.echo(printable(text, keep="\n\t"), err=err)
