"""Makes the changes of `rlx probe` in new environments, one at a time: of the physics, of actions, of observations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from rlx.build import env_factory
from rlx.config.schema import RunConfig
from rlx.envs.mujoco.course_settings import COURSES
from rlx.envs.registry import GameEnvFactory
from rlx.envs.vector import GymVectorEnv
from rlx.errors import ConfigError
from rlx.evaluation import disturbances, physics
from rlx.evaluation.probe_kinds import Row
from rlx.spaces import is_masked
from rlx.tree_ops import Tree
from rlx.types import VectorEnv


class Inapplicable(Exception):
    """A probe cannot change these environments; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The environments of a run, unchanged, and what a probe may know of them."""

    config: RunConfig
    num_envs: int
    scale: Tree
    """Standard deviations of the observations, see `disturbances.Observer`."""

    def make(self, **changes: Any) -> VectorEnv:
        """New environments, for settings of `env` that differ from the run's own."""
        return env_factory(replace(self.config, env=replace(self.config.env, **changes)))(self.num_envs)


Change = Callable[[VectorEnv, Any, Subject], VectorEnv]
"""Returns the changed environments; raises `Inapplicable`."""


@contextlib.contextmanager
def changed(row: Row, subject: Subject) -> Iterator[VectorEnv]:
    """New environments with the change of a row; it is undone, and they are closed, after the block.

    Raises:
        Inapplicable: if it cannot change them.
    """
    env = subject.make(workers=0)  # whose models would be in other processes; the episodes are the same
    try:
        with physics.restored(physics.models_of(env)):
            changed_env = CHANGES[row.probe.name](env, row.value, subject)
            try:
                yield changed_env
            finally:
                if changed_env is not env:
                    changed_env.close()
    finally:
        env.close()


def _of_model(scale: Callable[[physics.Model, float], None], name: str, what: str = "has no MuJoCo model") -> Change:
    """A change of every MuJoCo model, or of a constant of an environment that has none."""

    def change(env: VectorEnv, value: float, subject: Subject) -> VectorEnv:
        models = physics.models_of(env)
        for model in models:
            scale(model, value)
        if models:
            return env
        if name not in physics.constants_of(env):
            raise Inapplicable(what)
        return physics.scale_constant(env, name, value)

    return change


def _no_model(model: physics.Model, value: float) -> None:
    raise Inapplicable("has no pole whose length can be set")


def _rumble(env: VectorEnv, height: float, subject: Subject) -> VectorEnv:
    if not physics.models_of(env):
        raise Inapplicable("has no MuJoCo model")
    other = env if isinstance(env, GymVectorEnv) else _as_gymnasium(subject)
    paths = [getattr(one.unwrapped, "fullpath", None) for one in other.envs]
    model = physics.with_boards(paths[0], height) if isinstance(paths[0], str) else None
    if model is None:
        other.close()
        raise Inapplicable("has no floor of its own XML to lay boards on")
    for one in other.envs:
        physics.replace_model(one.unwrapped, model)
    return other


def _as_gymnasium(subject: Subject) -> GymVectorEnv:
    """Gymnasium's own environments, whose steps are those of rlx's."""
    try:
        env = subject.make(native=False, workers=0, threads=1)
    except ConfigError:
        raise Inapplicable("has a terrain of its own") from None
    if not isinstance(env, GymVectorEnv):
        env.close()
        raise Inapplicable("has a terrain of its own")
    return env


_BODIES = {"Walker2d-v5": "walker", "Ant-v5": "ant", "Humanoid-v5": "humanoid"}
"""Of the courses, by the environments in which they are on the flat."""


def flattened(config: RunConfig) -> RunConfig:
    """The run on flat ground, where its environment is a course with obstacles; others are as they were."""
    if config.env.id not in COURSES:
        return config
    return replace(config, env=replace(config.env, kwargs={**config.env.kwargs, "easiest": 0.0, "hardest": 0.0}))


def _terrain(env: VectorEnv, kind: str, subject: Subject) -> VectorEnv:
    config = subject.config.env
    if config.id in COURSES:
        kwargs = {name: value for name, value in config.kwargs.items() if name not in ("easiest", "hardest")}
    elif config.id in _BODIES and not config.kwargs and not config.wrappers and config.native:
        kwargs = {"body": _BODIES[config.id], "sight": False}
    else:
        raise Inapplicable(f"is neither a course nor {' or '.join(_BODIES)} with their usual settings")
    env_id = next(name for name, of_kind in COURSES.items() if of_kind == kind)
    try:
        other = subject.make(id=env_id, kwargs=kwargs, workers=0)
    except ConfigError as error:  # a body that cannot go there
        raise Inapplicable(f"cannot be there: {error}") from None
    if config.id == env_id and getattr(other, "settings", None) == getattr(env, "settings", ()):
        other.close()
        raise Inapplicable("is that course")
    if (other.single_observation_space, other.single_action_space) != (env.single_observation_space, env.single_action_space):
        other.close()
        raise Inapplicable("observes something else there")
    return other


def _push(env: VectorEnv, speed: float, subject: Subject) -> VectorEnv:
    simulations = physics.simulations_of(env)
    if not simulations:
        raise Inapplicable("has no MuJoCo model")
    along_x, along_y = physics.moves_along_x(simulations[0][0])
    if not along_x:
        raise Inapplicable("has no body that moves along the ground")
    velocities = [lambda data=data: data().qvel for _, data in simulations]
    return disturbances.Pushed(env, speed, velocities, planar=along_y)


def _observation_noise(env: VectorEnv, std: float, subject: Subject) -> VectorEnv:
    if not disturbances.can_be_noisy(env.single_observation_space):
        raise Inapplicable("observes no real numbers and no images")
    return disturbances.NoisyObservations(env, std, subject.scale)


def _delay(env: VectorEnv, steps: float, subject: Subject) -> VectorEnv:
    _refuse_masks(env)
    return disturbances.Delayed(env, int(steps))


def _sticky(env: VectorEnv, prob: float, subject: Subject) -> VectorEnv:
    _refuse_masks(env)
    return disturbances.Sticky(env, prob)


def _random_action(env: VectorEnv, prob: float, subject: Subject) -> VectorEnv:
    if not disturbances.is_discrete(env.single_action_space):
        raise Inapplicable("has no discrete actions")
    _refuse_masks(env)
    return disturbances.RandomActions(env, prob)


def _action_noise(env: VectorEnv, std: float, subject: Subject) -> VectorEnv:
    _require_bounded(env)
    return disturbances.NoisyActions(env, std)


def _action_scale(env: VectorEnv, factor: float, subject: Subject) -> VectorEnv:
    _require_bounded(env)
    return disturbances.ScaledActions(env, factor)


def _refuse_masks(env: VectorEnv) -> None:
    if is_masked(env.single_observation_space, env.single_action_space):
        raise Inapplicable("forbids actions, and another one than was chosen may be forbidden")


def _require_bounded(env: VectorEnv) -> None:
    if not disturbances.is_bounded(env.single_action_space):
        raise Inapplicable("has no actions that are bounded real numbers")


CHANGES: dict[str, Change] = {
    "friction": _of_model(physics.scale_friction, "friction"),
    "mass": _of_model(physics.scale_mass, "mass"),
    "gravity": _of_model(physics.scale_gravity, "gravity"),
    "length": _of_model(_no_model, "length", "has no pole whose length can be set"),
    "incline": _of_model(physics.incline, "incline"),
    "rumble": _rumble,
    "terrain": _terrain,
    "motor": _of_model(physics.scale_motors, "motor"),
    "push": _push,
    "obs_noise": _observation_noise,
    "action_noise": _action_noise,
    "delay": _delay,
    "sticky": _sticky,
    "random_action": _random_action,
    "action_scale": _action_scale,
}
"""By the names of `probe_kinds.PROBES`."""


def refuse_games(config: RunConfig, run: str) -> None:
    """Raise a ConfigError for a two-player game, whose rules nothing here changes."""
    if isinstance(env_factory(config), GameEnvFactory):
        raise ConfigError(f"{run} plays env={config.env.id}, and games have nothing to probe; rlx eval {run} --opponent uct:100 changes "
                          "the opponent, and rlx arena compares players")  # fmt: skip
