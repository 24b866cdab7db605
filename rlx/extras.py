"""What `pip install 'rlx[…]'` adds, and whether it is there."""

from __future__ import annotations

from importlib.util import find_spec

EXTRA_MODULES = {"mujoco": "mujoco", "box2d": "Box2D", "atari": "ale_py", "video": "imageio", "ray": "ray", "slurm": "submitit",
                 "export": "onnxscript", "tensorboard": "tensorboard"}  # fmt: skip
"""A module of each extra; the extra is installed if the module is found."""


def missing(extra: str | None) -> str | None:
    """The command that installs an extra, or None if it is installed or there is none to install."""
    return None if extra is None or find_spec(EXTRA_MODULES[extra]) else f"pip install 'rlx[{extra}]'"
