"""What several commands have: options, and ways to print."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from rlx.text import printable

Trust = Annotated[bool, typer.Option("--trust", help="Run the code that another user's run or sweep names. Your own need no --trust.")]

Notes = Annotated[str | None, typer.Option("--notes", help="A text that is kept with the run, and in W&B.")]
Tags = Annotated[
    list[str] | None, typer.Option("--tags", metavar="A,B", help="Labels that are kept with the run, for `rlx ls --tag A` and W&B.")
]


def echo(text: str, *, err: bool = False) -> None:
    """Print lines; control characters in them are escaped, because names and files may come from anybody."""
    typer.echo(printable(text, keep="\n\t"), err=err)


def print_json(rows: Iterable[dict[str, Any]]) -> None:
    """Print one JSON object a line."""
    for row in rows:
        echo(json.dumps(row))


def warn(text: str) -> None:
    """Print a warning on stderr."""
    echo(f"warning: {text}", err=True)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGINT, SIGTERM or SIGHUP came; on `Stopped` the command exits with 128 + the signal."""
    from rlx.evaluation.episodes import Stopped
    from rlx.signals import SignalHandler

    with SignalHandler(announce=False) as signals:
        try:
            yield signals.should_stop
        except Stopped:
            echo("rlx: interrupted", err=True)
            raise typer.Exit(128 + (signals.stopped_by or 0)) from None


def ablation_of(**choices: str | None) -> dict[str, str]:
    """The ablations that were chosen, by name."""
    return {name: choice for name, choice in choices.items() if choice is not None}
