"""What `pip install 'rlx[…]'` adds, and whether it is there."""

from __future__ import annotations

from importlib.util import find_spec

EXTRA_MODULES: dict[str, tuple[str, ...]] = {
    "mujoco": ("mujoco",),
    "box2d": ("Box2D",),
    "atari": ("ale_py",),
    "minigrid": ("minigrid",),
    "minatar": ("minatar",),
    "dmc": ("shimmy", "dm_control", "imageio", "packaging"),
    "robotics": ("gymnasium_robotics", "mujoco"),
    "video": ("imageio",),
    "ray": ("ray",),
    "slurm": ("submitit",),
    "export": ("onnxscript",),
    "tensorboard": ("tensorboard",),
}
"""Modules of each extra; the extra is installed if all are found."""


def missing(extra: str | None) -> str | None:
    """The command that installs an extra, or None if it is installed or there is none to install."""
    return None if extra is None or all(map(_is_there, EXTRA_MODULES[extra])) else f"pip install 'rlx[{extra}]'"


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # None in sys.modules
        return False
