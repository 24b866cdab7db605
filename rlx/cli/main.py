"""The `rlx` command. `rlx --help` imports neither torch nor wandb nor hydra."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import tempfile
import traceback
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import typer

from rlx import __version__
from rlx.cli import (
    arena,
    catalogue,
    compare,
    doctor,
    eval,
    export,
    listing,
    model,
    play,
    plot,
    probe,
    rm,
    sweep,
    sync,
    train,
    variance,
    watch,
)
from rlx.cli.arguments import Verb, Verbs
from rlx.cli.options import echo
from rlx.errors import EnvError, OutOfMemoryError, PluginError, RlxError, StorageError, user_line
from rlx.launcher import is_rank
from rlx.signals import expect_requests
from rlx.text import printable
from rlx.user_code import plugin_line

app = typer.Typer(
    name="rlx",
    cls=Verbs,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_CLOSED_PIPE = 128 + signal.SIGPIPE
"""The exit code of a command whose reader closed the pipe: what a shell reports for a program that SIGPIPE ends."""

app.command("train", cls=Verb)(train.train)
app.command("resume", cls=Verb)(train.resume)
app.command("sweep", cls=Verb)(sweep.sweep)
app.command("eval", cls=Verb)(eval.evaluate)
app.command("probe", cls=Verb)(probe.probe)
app.command("model", cls=Verb)(model.model)
app.command("variance", cls=Verb)(variance.variance)
app.command("watch", cls=Verb)(watch.watch)
app.command("play", cls=Verb)(play.play)
app.command("arena", cls=Verb)(arena.arena)
app.command("config", cls=Verb)(catalogue.config)
app.command("algos", cls=Verb)(catalogue.algos)
app.command("envs", cls=Verb)(catalogue.envs)
app.command("ls", cls=Verb)(listing.ls)
app.command("show", cls=Verb)(listing.show)
app.command("rm", cls=Verb)(rm.rm)
app.command("compare", cls=Verb)(compare.compare)
app.command("plot", cls=Verb)(plot.plot)
app.command("export", cls=Verb)(export.export)
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
    """Run the command. A user's mistake is answered by one line on stderr and an exit code, without a traceback.

    Exit codes are those of `rlx.errors`. What is not foreseen is one line as well, and its traceback goes into a file; with RLX_DEBUG
    set it is printed.
    """
    arguments = sys.argv[1:]
    if arguments[:1] == ["train"] and (many := {"-m", "--multirun"} & set(arguments)):  # Hydra's way to say it
        sys.argv[1:] = ["sweep", *[word for word in arguments[1:] if word not in many]]
    trains = arguments[:1] in (["train"], ["resume"], ["sweep"])
    if trains:
        expect_requests()
    _prepare_streams()
    try:
        with _as_rank() if sys.argv[1:2] in (["train"], ["resume"]) and is_rank() else contextlib.nullcontext():
            app()
    except SystemExit as ended:
        if _is_foreign(ended):
            _end(f"code that rlx called ended the program, at {user_line(ended) or 'a place that is not known'}", EnvError.exit_code)
        sys.exit(_flush(_CLOSED_PIPE if _is_broken_pipe(ended) else ended.code, trains=trains))
    except RlxError as error:
        _flush(0, trains=trains)
        _end(" ".join([str(error), *(f"({note})" for note in getattr(error, "__notes__", []))]), error.exit_code)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except MemoryError as error:
        _end(f"memory ran out: {error or 'there is none left'}", OutOfMemoryError.exit_code)
    except OSError as error:
        if _is_broken_pipe(error):
            _flush(0, trains=trains)
            sys.exit(_CLOSED_PIPE)
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF) and not trains:
            _end(f"the output cannot be written ({error.strerror})", StorageError.exit_code)  # files are written under their names
        _flush(0, trains=trains)
        _end(f"{' '.join(str(error).split())}; {_keep_trace(error)}", StorageError.exit_code)
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if line := plugin_line(error):
            _end(f"a plug-in raised {what}; {line}; {_keep_trace(error)}", PluginError.exit_code)
        _end(f"a bug in rlx: {what}; {_keep_trace(error)}", 1)


def _as_rank() -> AbstractContextManager[None]:
    """What rank 0 runs its command in. The other ranks do not return from here."""
    from rlx.distributed import launched

    if launched()[0]:
        from rlx.ranks import follow

        sys.exit(follow())
    from rlx.ranks import leading

    return leading()


def _end(message: str, code: int) -> NoReturn:
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"rlx: {printable(message)}\n")
    sys.exit(code)


def _prepare_streams() -> None:
    """Replace characters that a stream cannot encode, and occupy the descriptors of closed streams, so that no file gets one of them."""
    while (null := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(null)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if stream.errors == "strict" else stream.errors)


def _is_foreign(ended: SystemExit) -> bool:
    """Whether code outside rlx and typer raised SystemExit, such as an environment whose window was closed."""
    trace = ended.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__")) if trace is not None else "rlx"
    return module.partition(".")[0] not in ("typer", "click", "rich", "rlx", "__main__")


def _is_broken_pipe(error: BaseException | None) -> bool:
    """Whether a closed pipe caused an exception, as in `rlx ls | head`. rich and typer turn BrokenPipeError into SystemExit(1)."""
    while error is not None:
        if isinstance(error, BrokenPipeError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _keep_trace(error: BaseException) -> str:
    """Keep the traceback of an error, and say where it is: in the run's log, or in a new file."""
    if os.environ.get("RLX_DEBUG"):
        traceback.print_exception(error)
        return "its traceback is above"
    if notes := getattr(error, "__notes__", []):
        return str(notes[-1])
    try:
        with tempfile.NamedTemporaryFile("w", prefix="rlx-", suffix=".log", delete=False, errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return "RLX_DEBUG=1 prints the traceback"
    return f"the traceback is in {file.name}"


def _flush(code: Any, *, trains: bool) -> Any:
    """Flush stdout and return the exit code; output that cannot be written changes the code, except of a training."""
    try:
        if sys.stdout is not None:  # None after `rlx ls >&-`
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
        if trains:
            return code
        if isinstance(error, BrokenPipeError):
            return _CLOSED_PIPE
        _end(f"the output cannot be written ({getattr(error, 'strerror', None) or error})", StorageError.exit_code)
    return code


if __name__ == "__main__":
    main()
