"""rlx: deep reinforcement learning experiments, from the command line (`rlx --help`) or from Python.

    import rlx

    run = rlx.train(["algo=ppo", "env=cartpole"], name="car")
    policy = rlx.load("car")
    action, carry = policy.act(obs)

`rlx.api` documents these functions. They are imported when they are first used, because torch takes a second to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlx import errors
    from rlx.api import EvaluationResult, Policy, ProbeResult, Run, evaluate, load, probe, resume, runs, train

__version__ = "0.1.0"

__all__ = ["EvaluationResult", "Policy", "ProbeResult", "Run", "__version__", "errors", "evaluate", "load", "probe", "resume", "runs",
           "train"]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("rlx.errors")
    if name in __all__:
        return getattr(importlib.import_module("rlx.api"), name)
    raise AttributeError(f"module 'rlx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
