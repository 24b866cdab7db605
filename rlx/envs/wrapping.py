"""`env.wrappers`: gymnasium wrappers of users, applied to every environment in the order of the list.

env.wrappers=[my_module:Wrap]
'env.wrappers=[{target: my_module:Wrap, kwargs: {k: 4}}]'
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium

from rlx.errors import ConfigError, user_line
from rlx.user_code import load_object


class Wrapping(NamedTuple):
    """A wrapper to apply."""

    target: str
    """`module:Wrapper`."""
    kwargs: dict[str, Any]


def wrap(env: gymnasium.Env[Any, Any], wrappers: Sequence[Wrapping]) -> gymnasium.Env[Any, Any]:
    """The environment in its wrappers.

    Raises:
        ConfigError: if a wrapper cannot be imported, refuses its arguments, or makes no environment.
    """
    for target, kwargs in wrappers:
        setting = f"env.wrappers={target}"
        make = load_object(target, setting)
        try:
            wrapped = make(env, **kwargs)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:  # a constructor may raise anything about its arguments
            line = f" ({line})" if (line := user_line(error)) else ""
            found = ConfigError(f"{setting} cannot be made with kwargs={kwargs}: {type(error).__name__}: {error}{line}")
            found.trace = "".join(traceback.format_exception(error))
            raise found from error
        if not isinstance(wrapped, gymnasium.Env):
            raise ConfigError(f"{setting} makes a {type(wrapped).__name__}; expected a gymnasium.Wrapper, or a function that returns one")
        env = wrapped
    return env
