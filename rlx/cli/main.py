"""The `rlx` command. `rlx --help` imports neither torch nor wandb nor hydra."""

from __future__ import annotations

import os
import sys

import typer

from rlx import __version__
from rlx.cli import arena, catalogue, compare, doctor, evaluate, model, play, plot, runs, sweep, sync, train, watch
from rlx.errors import RlxError

app = typer.Typer(
    name="rlx",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_WORDS = {"ignore_unknown_options": True}  # so that a misspelt option gets our message, not a guess

app.command("train", context_settings=_WORDS)(train.train)
app.command("resume", context_settings=_WORDS)(train.resume)
app.command("sweep", context_settings=_WORDS)(sweep.sweep)
app.command("eval")(evaluate.evaluate)
app.command("model")(model.model)
app.command("watch")(watch.watch)
app.command("play")(play.play)
app.command("arena")(arena.arena)
app.command("config", context_settings=_WORDS)(catalogue.config)
app.command("algos")(catalogue.algos)
app.command("envs")(catalogue.envs)
app.command("ls")(runs.ls)
app.command("show")(runs.show)
app.command("compare")(compare.compare)
app.command("plot")(plot.plot)
app.command("sync")(sync.sync)
app.command("doctor")(doctor.doctor)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"rlx {__version__}")
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
    except RlxError as error:
        sys.stdout.flush()
        sys.stderr.write(f"rlx: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("rlx: interrupted\n")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # `rlx ls | head`: nobody reads on, and that is fine
        sys.exit(0)


if __name__ == "__main__":
    main()
