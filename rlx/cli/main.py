"""The `rlx` command. `rlx --help` imports neither torch nor wandb nor hydra."""

from __future__ import annotations

import os
import signal
import sys

import typer

from rlx import __version__
from rlx.cli import arena, catalogue, compare, doctor, evaluate, model, play, plot, runs, sweep, sync, train, watch
from rlx.cli.options import echo
from rlx.cli.words import Verb, Verbs
from rlx.errors import RlxError
from rlx.text import printable

app = typer.Typer(
    name="rlx",
    cls=Verbs,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("train", cls=Verb)(train.train)
app.command("resume", cls=Verb)(train.resume)
app.command("sweep", cls=Verb)(sweep.sweep)
app.command("eval", cls=Verb)(evaluate.evaluate)
app.command("model", cls=Verb)(model.model)
app.command("watch", cls=Verb)(watch.watch)
app.command("play", cls=Verb)(play.play)
app.command("arena", cls=Verb)(arena.arena)
app.command("config", cls=Verb)(catalogue.config)
app.command("algos", cls=Verb)(catalogue.algos)
app.command("envs", cls=Verb)(catalogue.envs)
app.command("ls", cls=Verb)(runs.ls)
app.command("show", cls=Verb)(runs.show)
app.command("compare", cls=Verb)(compare.compare)
app.command("plot", cls=Verb)(plot.plot)
app.command("sync", cls=Verb)(sync.sync)
app.command("doctor", cls=Verb)(doctor.doctor)


def _version(value: bool) -> None:
    if value:
        echo(f"rlx {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version.")) -> None:
    """Deep reinforcement learning experiments: one command, one loop, exact resume.

    Start with:  rlx train algo=ppo env=cartpole
    """


def main() -> None:
    """Run the command; a user's mistake is one line on stderr and an exit code, never a traceback."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["train"] and (many := {"-m", "--multirun"} & set(arguments)):  # Hydra's way to say it
        sys.argv[1:] = ["sweep", *[word for word in arguments[1:] if word not in many]]
    try:
        app()
    except SystemExit as ended:
        if _is_unread(ended):
            sys.exit(128 + signal.SIGPIPE)
        raise
    except RlxError as error:
        _flush()
        sys.stderr.write(f"rlx: {printable(str(error))}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("rlx: interrupted\n")
        sys.exit(130)


def _is_unread(ended: SystemExit) -> bool:
    """Whether a command ended since nobody reads on, as in `rlx ls | head`: typer and rich leave with 1 where a write fails so."""
    failed = isinstance(ended.__context__, BrokenPipeError)
    return not _flush() or failed


def _flush() -> bool:
    """Write what is left in stdout's buffer, if somebody reads it; else what comes later goes nowhere."""
    try:
        if sys.stdout is not None:  # as `rlx ls >&-` leaves it
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return False
    return True


if __name__ == "__main__":
    main()
