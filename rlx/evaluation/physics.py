"""Changes of the physics that environments compute with, for `rlx probe`: of MuJoCo's models, and of constants of other environments.

Models are shared by environments, and may outlive them: `restored` brings back every number of a model after a probe.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.envs.control.cartpole import CartPoleVectorEnv
from rlx.envs.control.changed_cartpole import ChangedCartPole
from rlx.envs.vector import GymVectorEnv
from rlx.types import VectorEnv

Model = Any
"""A mujoco.MjModel."""


def models_of(env: VectorEnv) -> list[Model]:
    """The MuJoCo models of a batch of environments; empty if it has none."""
    return list({id(model): model for model, _ in simulations_of(env)}.values())


def simulations_of(env: VectorEnv) -> list[tuple[Model, Any]]:
    """Of each environment the mujoco.MjModel and a function that returns its mujoco.MjData; empty if it has none."""
    if isinstance(env, GymVectorEnv):
        found = [_simulation(one.unwrapped) for one in env.envs]
        return [simulation for simulation in found if simulation is not None]
    simulations = getattr(env, "simulations", None)
    return [(model, lambda data=data: data) for model, data in simulations()] if callable(simulations) else []


def _simulation(env: Any) -> tuple[Model, Any] | None:
    """Of one environment of gymnasium, or of dm_control behind shimmy."""
    if type(getattr(env, "model", None)).__name__ == "MjModel" and hasattr(env, "data"):
        return env.model, lambda: env.data
    physics: Any = getattr(env, "physics", None)
    model = getattr(getattr(physics, "model", None), "ptr", None)
    return (model, lambda: physics.data.ptr) if type(model).__name__ == "MjModel" else None


@contextlib.contextmanager
def restored(models: Sequence[Model]) -> Iterator[None]:
    """Restore the models, to the last bit, after the block."""
    saved = [copy.copy(model) for model in models]
    try:
        yield
    finally:
        for model, before in zip(models, saved, strict=True):
            for part, same in ((model, before), (model.opt, before.opt)):
                for name, array in arrays(same).items():
                    getattr(part, name)[...] = array


def arrays(part: Any) -> dict[str, NDArray[Any]]:
    """The arrays of a model, or of a part of it such as its options, by name."""
    found = {name: getattr(part, name) for name in dir(part) if not name.startswith("_")}
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray) and value.flags.writeable}


def scale_friction(model: Model, factor: float) -> None:
    """Of every geom and of explicit pairs: sliding, torsional and rolling."""
    model.geom_friction[:] *= factor
    model.pair_friction[:] *= factor


def scale_mass(model: Model, factor: float) -> None:
    """Mass and inertia of every body, as of a body of another density; what the compiler derives from them is computed anew."""
    import mujoco

    model.body_mass[:] *= factor
    model.body_inertia[:] *= factor
    mujoco.mj_setConst(model, mujoco.MjData(model))


def scale_gravity(model: Model, factor: float) -> None:
    model.opt.gravity[:] *= factor


def incline(model: Model, degrees: float) -> None:
    """Tilt gravity, which is the same as a plane that rises along x by this angle."""
    x, y, z = model.opt.gravity
    sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    model.opt.gravity[:] = cos * x + sin * z, y, cos * z - sin * x


def scale_motors(model: Model, factor: float) -> None:
    """The force of every actuator for the same control: the gear of motors, gain and bias of servos, whose gear is also their unit."""
    import mujoco

    motors = model.actuator_biastype == mujoco.mjtBias.mjBIAS_NONE
    model.actuator_gear[motors] *= factor
    model.actuator_gainprm[~motors] *= factor
    model.actuator_biasprm[~motors] *= factor


def moves_along_x(model: Model) -> tuple[bool, bool]:
    """Whether the first velocity of a model is that of a body along x, and whether the second is its velocity along y."""
    import mujoco

    if not model.njnt:
        return False, False
    if model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE:
        return True, True
    slides = model.jnt_type[:2] == mujoco.mjtJoint.mjJNT_SLIDE
    along = [bool(slides[k] and abs(model.jnt_axis[k][k]) == 1.0) for k in range(len(slides))]
    return along[0], all(along) and len(along) == 2


BOARDS = 0xB0A4D5
"""Seeds the heights of the boards of `with_boards`, which are the same in every call."""


def with_boards(path: str, height: float, *, first: float = 1.0, spacing: float = 0.3, length: float = 300.0) -> Model | None:
    """A model with boards across its floor, each higher than 0.4 of the greatest height; None if it has no floor.

    The boards belong to the world, so that bodies, joints and observations stay what they were.

    Args:
        path: of the model's XML.
        height: the greatest height of a board in m.
        first: distance of the first boards from the origin in m, so that an episode begins on flat ground.
        spacing: from one board to the next in m.
        length: of the course in m, to either side.
    """
    import mujoco

    spec = mujoco.MjSpec.from_file(path)
    floor = next((geom for geom in spec.worldbody.geoms if geom.type == mujoco.mjtGeom.mjGEOM_PLANE), None)
    if floor is None:
        return None
    rng = np.random.default_rng(BOARDS)
    for distance in np.arange(first, length, spacing):
        for x in (distance, -distance):
            half = 0.5 * height * rng.uniform(0.4, 1.0)
            board = spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.05, 20.0, half])
            board.pos = [x, 0.0, floor.pos[2] + half]
            board.condim, board.contype, board.conaffinity = floor.condim, floor.contype, floor.conaffinity
            board.friction, board.solref, board.solimp, board.margin = floor.friction, floor.solref, floor.solimp, floor.margin
    return spec.compile()


def replace_model(env: Any, model: Model) -> None:
    """Let an environment of gymnasium go on with another model that has the same bodies and joints; it must be reset next."""
    import mujoco

    env.model, env.data = model, mujoco.MjData(model)


_ATTRIBUTES: dict[str, dict[str, tuple[str, ...]]] = {
    "CartPole-v1": {"gravity": ("gravity",), "length": ("length",), "motor": ("force_mag",), "mass": ("masscart", "masspole")},
    "Pendulum-v1": {"gravity": ("g",), "mass": ("m",), "length": ("l",)},
    "Acrobot-v1": {"mass": ("LINK_MASS_1", "LINK_MASS_2", "LINK_MOI"), "motor": ("AVAIL_TORQUE",)},
    "MountainCar-v0": {"gravity": ("gravity",), "motor": ("force",)},
    "MountainCarContinuous-v0": {"motor": ("power",)},
    "LunarLander-v3": {"gravity": ("gravity",)},
}
"""The attributes of gymnasium's environments that a factor multiplies, by environment and probe."""


def constants_of(env: VectorEnv) -> tuple[str, ...]:
    """The probes that change constants of a batch of environments that have no MuJoCo model."""
    if type(env) is CartPoleVectorEnv:
        return tuple(_ATTRIBUTES["CartPole-v1"])
    return tuple(_attributes_of(env))


def _attributes_of(env: VectorEnv) -> dict[str, tuple[str, ...]]:
    spec = env.envs[0].spec if isinstance(env, GymVectorEnv) else None
    return _ATTRIBUTES.get(spec.id, {}) if spec is not None else {}


def scale_constant(env: VectorEnv, probe: str, factor: float) -> VectorEnv:
    """Multiply what a probe of `constants_of` means in these environments, or in others that take their place."""
    if type(env) is CartPoleVectorEnv:
        return ChangedCartPole(env.num_envs, **{probe: factor})
    assert isinstance(env, GymVectorEnv)
    for one in env.envs:
        inner: Any = one.unwrapped
        for name in _attributes_of(env)[probe]:
            value = getattr(inner, name)
            setattr(inner, name, [factor * x for x in value] if isinstance(value, list) else factor * value)
        if hasattr(inner, "polemass_length"):  # CartPole keeps two products of them
            inner.total_mass, inner.polemass_length = inner.masspole + inner.masscart, inner.masspole * inner.length
    return env
