"""Names of an environment's actions and observed numbers, for people who watch."""

from __future__ import annotations

from typing import Any

_CHOICES = {
    "CartPole": ("left", "right"),
    "MountainCar": ("left", "coast", "right"),
    "Acrobot": ("torque -1", "no torque", "torque +1"),
    "LunarLander": ("nothing", "left engine", "main engine", "right engine"),
    "FrozenLake": ("left", "down", "right", "up"),
    "FrozenLake8x8": ("left", "down", "right", "up"),
    "CliffWalking": ("up", "right", "down", "left"),
    "CliffWalkingSlippery": ("up", "right", "down", "left"),
    "Taxi": ("south", "north", "east", "west", "pick up", "drop off"),
    "Blackjack": ("stick", "hit"),
}
_QUANTITIES = {
    "Pendulum": ("torque",),
    "MountainCarContinuous": ("force",),
    "LunarLanderContinuous": ("main engine", "side engine"),
    "BipedalWalker": ("hip 1", "knee 1", "hip 2", "knee 2"),
    "BipedalWalkerHardcore": ("hip 1", "knee 1", "hip 2", "knee 2"),
    "CarRacing": ("steering", "gas", "brake"),
    "rlx/Spaceship": ("x thrust", "y thrust"),
}
_LANDER = ("x", "y", "x speed", "y speed", "angle", "angle speed", "left leg", "right leg")
_OBSERVED = {
    "CartPole": ("position", "speed", "angle", "angle speed"),
    "MountainCar": ("position", "speed"),
    "MountainCarContinuous": ("position", "speed"),
    "Pendulum": ("cos angle", "sin angle", "angle speed"),
    "Acrobot": ("cos angle 1", "sin angle 1", "cos angle 2", "sin angle 2", "speed 1", "speed 2"),
    "LunarLander": _LANDER,
    "LunarLanderContinuous": _LANDER,
    "rlx/Spaceship": (
        *("x", "y", "x speed", "y speed", "mass", "actions left"),
        *(f"planet {i} {of}" for i in range(1, 6) for of in ("x", "y", "mass")),
    ),
}
"""By the id without its version, in the order of gymnasium's documentation."""


def choice_names(env: Any, env_id: str, num: int) -> tuple[str, ...]:
    """The names of the choices of a Discrete action; their numbers where the environment names none.

    Args:
        env: one environment.
        env_id: its id.
        num: of choices.
    """
    inner = _unwrapped(env)
    meanings = getattr(inner, "get_action_meanings", None)
    actions = getattr(inner, "actions", None)
    found: Any = _CHOICES.get(_base(env_id), ())
    try:
        if callable(meanings):  # Atari
            found = [str(name).lower() for name in meanings()]
        elif isinstance(actions, type):  # MiniGrid has an enumeration
            found = [str(action.name) for action in actions]  # type: ignore[attr-defined]
    except (Exception, SystemExit):  # of foreign code, which names are not worth failing for
        found = ()
    return tuple(found) if len(found) == num else tuple(map(str, range(num)))


def quantity_names(env: Any, env_id: str, num: int) -> tuple[str, ...]:
    """The names of the continuous numbers of an action; `action 0` and so on where the environment names none."""
    found: Any = _QUANTITIES.get(_base(env_id), ())
    model: Any = getattr(_unwrapped(env), "model", None)
    try:
        if hasattr(model, "nu") and hasattr(model, "actuator"):  # MuJoCo
            found = [str(model.actuator(i).name) or f"action {i}" for i in range(int(model.nu))]
    except (Exception, SystemExit):
        found = ()
    return tuple(found) if len(found) == num else tuple(f"action {i}" for i in range(num))


def observed_names(env_id: str, num: int) -> tuple[str, ...]:
    """The names of the numbers of an observed vector; none where they are not known."""
    found = _OBSERVED.get(_base(env_id), ())
    return found if len(found) == num else ()


def _base(env_id: str) -> str:
    return env_id.rpartition(":")[2].rpartition("-v")[0] or env_id


def _unwrapped(env: Any) -> Any:
    return getattr(env, "unwrapped", env)
