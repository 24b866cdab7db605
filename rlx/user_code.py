"""Importing what users name as `module:Name`: their environments, algorithms and wrappers."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from typing import Any

from rlx.errors import ConfigError, user_line

_IMPORTED: set[str] = set()
"""Packages and modules that were imported because the user named them."""


def plugin_line(error: BaseException) -> str:
    """File and line of the innermost frame of an exception that is in a plug-in's module; "" if there is none."""
    found, trace = "", error.__traceback__
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0] in _IMPORTED:
            found = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def import_user_module(module: str, setting: str, *, role: str = "") -> None:
    """Import a module from the path or the current directory, which a console script does not have on its path.

    Args:
        module: its name.
        setting: the setting that names it, for messages, e.g. "algo=my_module:MyAlgo".
        role: what importing the module must do, as the end of a message.

    Raises:
        ConfigError: if it is missing or fails.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        if not all(part.isidentifier() for part in module.split(".")):
            raise ImportError("that is not a module's name")
        importlib.import_module(module)
        _IMPORTED.add(module.partition(".")[0])
    except (Exception, SystemExit) as error:
        reason = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        line = f", {line}" if not isinstance(error, ModuleNotFoundError) and (line := user_line(error)) else ""
        found = ConfigError(
            f"{setting}: module {module!r} cannot be imported ({reason}{line}); it must be in the current directory, on PYTHONPATH or "
            f"installed{role}"
        )
        found.trace = "".join(traceback.format_exception(error))
        raise found from error


def load_object(reference: str, setting: str) -> Any:
    """The object that `module:Name` refers to.

    Args:
        reference: a module and a name in it.
        setting: the setting that names it, for messages.

    Raises:
        ConfigError: if the module cannot be imported, or has no such name; the message has the nearest one.
    """
    module, _, name = reference.partition(":")
    import_user_module(module, setting)
    found = sys.modules[module]
    if not name.isidentifier() or not hasattr(found, name):
        own = [n for n, value in vars(found).items() if isinstance(value, type) and value.__module__ == found.__name__]
        near = difflib.get_close_matches(name, own, n=1, cutoff=0.0)
        advice = f"did you mean {module}:{near[0]}?" if near else "it defines no class"
        raise ConfigError(f"{setting}: module {module!r} ({getattr(found, '__file__', 'without a file')}) has no {name!r}; {advice}")
    return getattr(found, name)
