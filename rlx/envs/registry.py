"""Environments by name: single ones, and batches for training and evaluation."""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import gymnasium

from rlx.envs.atari.atari_settings import AtariProtocol, atari_settings, game_of, usual_protocol
from rlx.envs.edge import Edge
from rlx.envs.families import package_missing, register_family, register_installed
from rlx.envs.games.openspiel import PREFIX, Game
from rlx.envs.games.opponents import parse_opponent
from rlx.envs.games.selfplay import SelfPlayVectorEnv, VersusOpponent
from rlx.envs.masks import has_mask_in_info
from rlx.envs.missions import with_codes
from rlx.envs.mujoco.course_settings import COURSES
from rlx.envs.mujoco.robots import ROBOTS, unknown_settings
from rlx.envs.native import HAVE_SETTINGS, IN_THREADS, NATIVE, REBUILT, REPLAYABLE, split_of
from rlx.envs.snapshots import SnapshotVectorEnv
from rlx.envs.vector import GymVectorEnv, ReplayVectorEnv, Restoring, restoring
from rlx.envs.wrapping import Wrapping, wrap
from rlx.errors import ConfigError, user_line
from rlx.user_code import import_user_module

if TYPE_CHECKING:
    from rlx.envs.grids.splits import Split
    from rlx.types import VectorEnv  # it imports torch, which worker processes do not need


@dataclass(frozen=True)
class EnvFactory:
    """Builds one environment. It can be pickled, so that it can be sent to worker processes.

    Args:
        id: a gymnasium id, or `module:Id`.
        kwargs: constructor arguments.
        rescale_actions: bring bounded actions to [-1, 1].
        flatten: see `Edge`.
        split: the split of levels, for worlds that have levels (`splits`).
        wrappers: applied to what gymnasium makes.
        mask_in_info: whether `info` has the masks of actions; None finds out with an environment of its own, see `masks_in_info`.
        native: make rlx's own Atari games.
        protocol: of an Atari game; None is what its id stands for.
    """

    id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    rescale_actions: bool = False
    flatten: bool = True
    split: Split = "evaluation"
    wrappers: Sequence[Wrapping] = ()
    native: bool = True
    protocol: AtariProtocol | None = None
    mask_in_info: bool | None = None

    @property
    def is_own_atari(self) -> bool:
        """Whether it is an Atari game in rlx's own environment."""
        return self.native and game_of(self.id) is not None

    @functools.cached_property
    def masks_in_info(self) -> bool:
        """Whether `info` has the masks of actions: an environment is made and reset to see it, where it is not known."""
        known = self.id in REPLAYABLE or self.is_own_atari
        if self.mask_in_info is not None or self.flatten or (known and not self.wrappers):
            return bool(self.mask_in_info)
        unseen = {"render_mode": None} if "render_mode" in self.kwargs else {}  # no window for a glance
        with contextlib.closing(self._make(unseen)) as env:
            return has_mask_in_info(env, self.id)

    def __call__(self, **extra: Any) -> Edge:
        """Make the environment, with `extra` before its own arguments; its observations are a Box, or trees of them unless `flatten`.

        Raises:
            ConfigError: if the id is unknown, its package is missing, or its settings or its spaces are refused.
        """
        in_info = self.masks_in_info
        env: gymnasium.Env[Any, Any] = _RebuildOnReset(self, extra) if self.id in REBUILT else self._make(extra)
        try:
            return Edge(env, self.id, rescale_actions=self.rescale_actions, flatten=self.flatten, mask_in_info=in_info)
        except BaseException:
            env.close()
            raise

    def _make(self, extra: dict[str, Any]) -> gymnasium.Env[Any, Any]:
        env = self._make_bare(extra)
        try:
            return with_codes(wrap(env, self.wrappers))
        except BaseException:
            env.close()
            raise

    def _make_bare(self, arguments: dict[str, Any]) -> gymnasium.Env[Any, Any]:
        check_env_id(self.id)
        kwargs = {**self.kwargs, **arguments}
        try:
            if game_of(self.id):
                return self._make_atari(**kwargs)
            return gymnasium.make(_made_by(self.id) or self.id, disable_env_checker=True, **kwargs, **split_of(self.id, self.split))
        except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
            raise package_missing(self.id, error) from error
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:  # a constructor may raise anything about its arguments
            message = f"{type(error).__name__}: {error}"
            line = f" ({line})" if (line := user_line(error)) else ""
            found = ConfigError(f"env={self.id} cannot be made with env.kwargs={kwargs}: {message}{line}")
            found.trace = "".join(traceback.format_exception(error))
            raise found from error

    def _make_atari(self, render_mode: str | None = None, **kwargs: Any) -> gymnasium.Env[Any, Any]:
        if self.is_own_atari:
            from rlx.envs.atari.atari_env import AtariEnv  # compiles kernels

            protocol = self.protocol or usual_protocol(self.id)
            return AtariEnv(self.id, protocol, atari_settings(self.id, kwargs), render_mode=render_mode)
        from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

        if find_spec("cv2") is None:
            raise ConfigError(f"env={self.id} env.native=false needs a package that is not installed: pip install opencv-python-headless")
        env = gymnasium.make(self.id, disable_env_checker=True, render_mode=render_mode, frameskip=1, **kwargs)
        noops = 30 if usual_protocol(self.id) is AtariProtocol.v4 else 0
        return FrameStackObservation(AtariPreprocessing(env, noop_max=noops), 4, padding_type="zero")


_MANY_AGENTS = (
    "environments of PettingZoo have several agents, and rlx trains one policy in an environment with one; two-player games of "
    "perfect information are env=spiel:GAME, e.g. env=connect_four, and a gymnasium.Env of yours may hold the other agents"
)


class _RebuildOnReset(gymnasium.Env[Any, Any]):
    """An environment that is constructed anew for every episode."""

    def __init__(self, factory: EnvFactory, extra: dict[str, Any]) -> None:
        self._factory, self._extra = factory, extra
        self._env = factory._make(extra)
        self.observation_space, self.action_space = self._env.observation_space, self._env.action_space
        self.spec, self.metadata, self.render_mode = self._env.spec, self._env.metadata, self._env.render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._env.close()
        self._env = self._factory._make(self._extra)
        return self._env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return self._env.step(action)

    def render(self) -> Any:
        return self._env.render()

    def close(self) -> None:
        self._env.close()


def check_env_id(env_id: str) -> None:
    """Raise a ConfigError unless the id is registered with gymnasium; imports the module of `module:Id`, and those of `FAMILIES`.

    Raises:
        ConfigError: with the nearest known names.
    """
    if env_id.startswith(PREFIX):
        Game(env_id.removeprefix(PREFIX))
        return
    module, colon, name = env_id.rpartition(":")
    if module.partition(".")[0] == "pettingzoo":
        raise ConfigError(f"env={env_id}: {_MANY_AGENTS}")
    if colon:
        import_user_module(module, f"env={env_id}", role=", and register the environment when imported")
    register_family(name)
    if name not in gymnasium.registry and colon and _made_by(env_id) is not None:
        return
    if name not in gymnasium.registry and colon:
        theirs = [id_ for id_, spec in gymnasium.registry.items() if _module_of(spec) == module]
        classes = [n for n, v in vars(sys.modules[module]).items() if isinstance(v, type) and issubclass(v, gymnasium.Env)]
        near = difflib.get_close_matches(name, theirs, n=1, cutoff=0.0) or difflib.get_close_matches(name, classes, n=1, cutoff=0.0)
        advice = f"did you mean env={module}:{near[0]}?" if near else "importing it must call gymnasium.register(id=…, entry_point=…)"
        path = getattr(sys.modules[module], "__file__", None)
        raise ConfigError(f"env={env_id}: module {module!r} ({path or 'without a file'}) registers no environment {name!r}; {advice}")
    if name not in gymnasium.registry:
        near = _ids_near(name, cutoff=0.85)
        if not near:
            register_installed("")  # takes seconds, so that it is done only where nothing else is near
            near = _ids_near(name, cutoff=0.6)
        if name in near:
            module = _module_of(gymnasium.registry[name]).partition(".")[0]
            raise ConfigError(
                f"env={env_id}: package {module} registers it, which rlx does not import by itself; write env={module}:{name}"
            )
        suggestion = f"did you mean {' or '.join(near)}?" if near else "see `rlx envs`, or write my_module:MyEnv-v0 for one of your own"
        raise ConfigError(f"env={env_id}: no such environment is registered with gymnasium; {suggestion}")


def _ids_near(name: str, *, cutoff: float) -> list[str]:
    """Up to three registered ids that are like `name`, without regard to capitals."""
    lowered = {id_.lower(): id_ for id_ in gymnasium.registry}
    return [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=cutoff)]


def _made_by(env_id: str) -> gymnasium.envs.registration.EnvSpec | None:
    """A spec for `module:Class`, an unregistered class or function that makes an environment; None for any other id.

    Raises:
        ConfigError: if that object of the module makes no environments.
    """
    module, colon, name = env_id.rpartition(":")
    if not colon or env_id.startswith(PREFIX) or name in gymnasium.registry or not name.isidentifier():
        return None
    found = getattr(sys.modules.get(module), name, None)
    if found is None:
        return None
    if isinstance(found, type) and any(base.__module__.startswith("pettingzoo.") for base in found.__mro__):
        raise ConfigError(f"env={env_id}: {_MANY_AGENTS}")
    if not callable(found) or (isinstance(found, type) and not issubclass(found, gymnasium.Env)):
        raise ConfigError(f"env={env_id}: {name} is a {type(found).__name__} and makes no environment; expected a class that inherits from "
                          "gymnasium.Env, a function that returns one, or a registered id")  # fmt: skip
    return gymnasium.envs.registration.EnvSpec(id=f"{name}-v0", entry_point=found)


def _module_of(spec: gymnasium.envs.registration.EnvSpec) -> str:
    if isinstance(spec.entry_point, str):
        return spec.entry_point.partition(":")[0]
    return str(getattr(spec.entry_point, "__module__", ""))


@dataclass(frozen=True)
class VectorEnvFactory:
    """Builds batches of one environment, for training and for evaluation.

    Args:
        id: a gymnasium id, or `module:Id`.
        kwargs: constructor arguments.
        native: use rlx's own implementation where there is one. Only those in `HAVE_SETTINGS` take kwargs.
        workers: worker processes to step in; 0 steps in this process. Those that are in `ROBOTS` are gymnasium's own then.
        worker_timeout_s: seconds without an answer after which a worker is closed and an error raised.
        rescale_actions: rescale bounded actions to [-1, 1]; those of rlx's own implementations are in [-1, 1] already.
        flatten: see `Edge`.
        protocol: of an Atari game; None is what its id stands for.
        threads: threads to step in, for those in `IN_THREADS`.

    Raises:
        ConfigError: if a setting would have no effect.
    """

    id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    native: bool = True
    workers: int = 0
    worker_timeout_s: float = 60.0
    rescale_actions: bool = False
    flatten: bool = True
    wrappers: Sequence[Wrapping] = ()
    protocol: AtariProtocol | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if self.is_native and self.workers:
            raise ConfigError(
                f"env.workers={self.workers} has no effect on rlx's own vectorised {self.id}; add env.native=false, or leave it out"
            )
        if self.threads > 1 and not (self.is_native and self.id in IN_THREADS):
            why = f"here it is not, because of {self._why_foreign}" if self.id in IN_THREADS else f"for {self.id} there is env.workers"
            raise ConfigError(f"env.threads={self.threads} has no effect: it is for rlx's own batches of MuJoCo, and {why}")

    @property
    def is_native(self) -> bool:
        if not self.native or self.wrappers or self.id not in NATIVE:
            return False
        return not self._why_foreign if self.id in IN_THREADS else not self.kwargs or self.id in HAVE_SETTINGS

    @property
    def _why_foreign(self) -> str:
        """The settings for which a robot's environment is gymnasium's own, or a course's a single one; empty without any."""
        settings = [*(["env.native=false"] if not self.native else []), *(["env.wrappers"] if self.wrappers else []),
                    *([f"env.workers={self.workers}"] if self.workers else []),
                    *(f"env.kwargs.{key}" for key in (unknown_settings(self.id, self.kwargs) if self.id in ROBOTS else ())),
                    *(["an algorithm without dictionaries of observations"] if self._is_flattened_course else [])]  # fmt: skip
        return ", ".join(settings)

    @property
    def _is_flattened_course(self) -> bool:
        return self.id in COURSES and self.flatten and bool(self.kwargs.get("sight", True))

    @functools.cached_property
    def single(self) -> EnvFactory:
        """Builds one environment: gymnasium's own, or an Atari game."""
        return EnvFactory(self.id, self.kwargs, self.rescale_actions, self.flatten, wrappers=self.wrappers, native=self.native,
                          protocol=self.protocol)  # fmt: skip

    def __call__(self, num_envs: int) -> VectorEnv:
        """B environments to evaluate in."""
        return self._make(num_envs, "evaluation")

    def _make(self, num_envs: int, split: Split) -> VectorEnv:
        """B environments that can be restored by replay alone."""
        if self.is_native:
            batch = {"rescale_actions": self.rescale_actions, "threads": self.threads} if self.id in IN_THREADS else {}
            return NATIVE[self.id](num_envs, **self.kwargs, **split_of(self.id, split), **batch)
        single = replace(self.single, split=split, mask_in_info=self.single.masks_in_info)
        if self.workers:
            from rlx.envs.workers import ProcessVectorEnv

            check_env_id(self.id)  # imports the classes of the spaces that workers send
            return ProcessVectorEnv(single, num_envs, num_workers=self.workers, timeout_s=self.worker_timeout_s)
        return GymVectorEnv(single, num_envs)

    def training(self, num_envs: int, *, inexact: bool = False) -> tuple[VectorEnv, str | None]:
        """B environments to train in, with a `state_dict` where that is possible, else with the reason why not."""
        if self.is_native:
            return self._make(num_envs, "training"), "resumed with --inexact" if inexact and self.id in IN_THREADS else None
        how = Restoring(False, "resumed with --inexact", []) if inexact else self._restoring()
        env: Any = self._make(num_envs, "training")
        if not how.defect:
            env = SnapshotVectorEnv(env) if how.by_snapshots and env.has_snapshots else ReplayVectorEnv(env)
        env.notes = how.notes + self._notes()  # for a console to print
        return env, how.defect

    def _notes(self) -> list[str]:
        unknown = unknown_settings(self.id, self.kwargs) if self.native and self.id in ROBOTS else []
        if not unknown:
            return []
        return [f"only gymnasium's own environment has {', '.join(f'env.kwargs.{key}' for key in unknown)} as given: it is used, and not "
                "rlx's faster one"]  # fmt: skip

    def _restoring(self) -> Restoring:
        known = self.id in REPLAYABLE | REBUILT or self.single.is_own_atari
        return Restoring(self.single.is_own_atari, None, []) if known and not self.wrappers else restoring(self.single)


@dataclass(frozen=True)
class GameEnvFactory:
    """Builds batches of a two-player game: against itself for training, against an opponent for evaluation.

    Raises:
        ConfigError: if the game cannot be played here, or has no such opponent.
    """

    id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    opponent: str = "uct:1000"
    opening_plies: int = 0

    def __post_init__(self) -> None:
        parse_opponent(self.opponent)(self.game, 0)

    @functools.cached_property
    def game(self) -> Game:
        return Game(self.id.removeprefix(PREFIX), self.kwargs)

    def __call__(self, num_envs: int) -> VectorEnv:
        """B games against the opponent."""
        return VersusOpponent(self.game, num_envs, parse_opponent(self.opponent), opening_plies=self.opening_plies)

    def training(self, num_envs: int, *, inexact: bool = False) -> tuple[VectorEnv, str | None]:
        """B games of an agent against itself."""
        return SelfPlayVectorEnv(self.game, num_envs), None


def quiet_rendering() -> None:
    """Let environments that draw with SDL or MuJoCo do so without a screen."""
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
