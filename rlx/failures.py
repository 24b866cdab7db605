"""What ended a run, as an error for the user: many exceptions are not bugs of rlx."""

from __future__ import annotations

import traceback

from rlx.config.algo_registry import is_plugin
from rlx.config.schema import RunConfig
from rlx.errors import EnvError, OutOfMemoryError, PluginError, RlxError, user_line
from rlx.user_code import plugin_line


def as_rlx_error(error: BaseException, config: RunConfig) -> RlxError | None:
    """The error to raise instead of an exception; None if it is an RlxError already, or a bug of rlx."""
    found: RlxError
    if isinstance(error, SystemExit | KeyboardInterrupt):  # signals do not raise while a run trains, so this is the environment's
        line = f" in {line}" if (line := user_line(error)) else ""
        found = EnvError(f"the environment's code ended the program with {type(error).__name__}{line}; `rlx resume` goes on")
    elif isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate memory" in str(error):
        found = OutOfMemoryError(f"memory ran out ({' '.join(str(error).split())[:200] or 'MemoryError'}); fewer env.num_envs, a smaller "
                                 "network or replay, need less; `rlx resume` goes on from the last checkpoint")  # fmt: skip
    elif not isinstance(error, RlxError) and (is_plugin(config.algo.name) or plugin_line(error)):
        what, line = " ".join(f"{type(error).__name__}: {error}".split())[:300], plugin_line(error)
        where = f"raised {what}; {line}" if line else f"returned something that cannot be used ({what}); see rlx.types.Algorithm"
        found = PluginError(
            f"the code of algo={config.algo.name} {where}; `rlx resume` goes on from the last checkpoint once it is repaired"
        )
    else:
        return None
    found.trace = "".join(traceback.format_exception(error))
    return found
