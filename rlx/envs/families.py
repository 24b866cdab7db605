"""Environments of other packages, by the form of their ids: the module that registers them, and what to install.

One table serves `check_env_id`, the lists of `rlx envs` and every message about a missing package.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import warnings
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import NamedTuple

import gymnasium

from rlx.errors import ConfigError
from rlx.extras import missing


class Family(NamedTuple):
    """Ids that one module registers with gymnasium when it is imported."""

    pattern: str
    """As in a shell; capitals count."""
    module: str
    extra: str | None
    """The extra of rlx with the package; None if there is none and the package is called as the module."""
    function: str | None = None
    """Of the module, to be called once it is imported; None if the import alone registers the ids."""

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install 'rlx[{self.extra}]'" if self.extra else f"pip install {self.module}"

    @property
    def needs(self) -> str | None:
        """The command that installs it, or None if it is installed."""
        return missing(self.extra) if self.extra else (None if find_spec(self.module) else self.install)


FAMILIES = (
    Family("ALE/*", "ale_py", "atari"),
    Family("*NoFrameskip-v4", "ale_py", "atari"),
    Family("MiniGrid-*", "minigrid", "minigrid"),
    Family("BabyAI-*", "minigrid", "minigrid"),
    Family("MinAtar/*", "minatar.gym", "minatar", function="register_envs"),
    Family("dm_control/*", "shimmy", "dmc"),
    *(
        Family(pattern, "gymnasium_robotics", "robotics")
        for pattern in ("Fetch*", "PointMaze_*", "AntMaze_*", "AdroitHand*", "HandManipulate*", "HandReach*", "FrankaKitchen-*")
    ),
    Family("popgym-*", "popgym", None),
)
"""The families that rlx knows; any other package's ids are written `module:Id`."""

_ENTRY_POINTS = {"gymnasium.envs.mujoco": "mujoco", "gymnasium.envs.box2d": "box2d", "rlx.envs.mujoco": "mujoco"}
"""Extras of the environments that gymnasium itself registers, and rlx."""


def family_of(env_id: str) -> Family | None:
    """The family of an id, in capitals or not; None if it is of no package that rlx knows."""
    return next((family for family in FAMILIES if fnmatchcase(env_id.lower(), family.pattern.lower())), None)


def extra_for(env_id: str) -> str | None:
    """The extra of rlx that an environment needs, or None."""
    if family := family_of(env_id):
        return family.extra
    spec = gymnasium.registry.get(env_id)
    entry_point = spec.entry_point if spec else None
    for module, extra in _ENTRY_POINTS.items():
        if isinstance(entry_point, str) and entry_point.startswith(module):
            return extra
    return None


def package_missing(env_id: str, error: Exception) -> ConfigError:
    """The error to raise where a package that an environment needs cannot be imported."""
    hint = f"pip install 'rlx[{extra}]'" if (extra := extra_for(env_id)) else str(error)
    return ConfigError(f"env={env_id} needs a package that is not installed: {hint}")


def needs(env_id: str) -> str | None:
    """The command that installs what an environment needs, or None if it is there."""
    family = family_of(env_id)
    return family.needs if family else missing(extra_for(env_id))


def register_family(env_id: str) -> None:
    """Import the module that registers an id, if it is one of `FAMILIES`.

    Raises:
        ConfigError: if a package is missing, or fails while it is imported.
    """
    family = family_of(env_id)
    if family is None or env_id in gymnasium.registry:
        return
    absent = f"env={env_id} needs a package that is not installed: {family.install}"
    try:
        if family.needs:
            raise ConfigError(absent)
        _import(family)
    except ConfigError:
        raise
    except ImportError as error:
        raise ConfigError(f"{absent} ({error})") from error
    except Exception as error:
        raise ConfigError(f"env={env_id}: importing {family.module} failed with {type(error).__name__}: {error}; "
                          f"`rlx doctor` names versions that do not fit; {family.install} installs some that do") from error  # fmt: skip


def register_installed(word: str) -> list[Family]:
    """Import the families that are installed, so that their ids can be listed.

    Args:
        word: in small letters; families whose ids cannot contain it are returned only if their name does.

    Returns:
        Families that are not installed and whose ids may contain the word.
    """
    absent = []
    for family in FAMILIES:
        if family.needs is None:
            with contextlib.suppress(Exception):
                _import(family)
        elif word in family.pattern.lower() or word in family.module:
            absent.append(family)
    return absent


def _import(family: Family) -> None:
    """Import the module that registers environments, without what it prints."""
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # dm_control would look for a screen
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        module = importlib.import_module(family.module)
        gymnasium.register_envs(module)
        if family.function:
            getattr(module, family.function)()
