"""Checks of what an environment returns against its spaces: NumPy would silently turn 300 into the byte 44 and a scalar into a vector.

Every environment that is not rlx's own passes through these checks (`edge.py`), wherever it is stepped: training, workers, evaluations,
videos and the probe. They stay on for the whole run: values of the usual types cost a few comparisons a step.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rlx.errors import EnvError, NonFiniteError, RlxError, user_line
from rlx.tree_ops import Tree, named_leaves

Array = NDArray[Any]

_UNPACKS = ("values to unpack", "cannot unpack")
_SEEDS = ("unexpected keyword argument 'seed'", "unexpected keyword argument 'options'")


class BrokenContract(Exception):
    """What is wrong with a return value, as a sentence that does not name the environment."""


def check_array(value: Any, shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> Array:
    """`value` as an array of the shape and dtype. Floats may lose precision; any other loss is refused.

    Raises:
        BrokenContract: if the shape differs, or the dtype cannot hold the values.
    """
    try:
        array = np.asarray(value)
    except Exception as error:  # a ragged list, or what a class of the user's own raises
        raise BrokenContract(f"{what} is no array ({type(error).__name__}: {error})") from error
    if array.dtype.kind not in "biuf":
        raise BrokenContract(f"{what} is {describe(value)}, the space says numbers of dtype {dtype}")
    if array.shape != shape:
        raise BrokenContract(f"{what} has shape {array.shape}, the space says {shape}")
    if array.dtype.kind == "f" and dtype.kind != "f":
        advice = f"return it as {dtype}, or declare the space with dtype=np.float32"
        raise BrokenContract(f"{what} has dtype {array.dtype}, the space says {dtype}, which would cut off fractions: {advice}")
    if not keeps_values(array.dtype, dtype) and array.size:
        limits, least, greatest = np.iinfo(dtype), int(array.min()), int(array.max())
        if least < limits.min or greatest > limits.max:
            wrong = least if least < limits.min else greatest
            raise BrokenContract(f"{what} has the value {wrong}, the space says {dtype}, which holds {limits.min} to {limits.max}")
    return array


def keeps_values(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Whether one dtype holds every value of the other, apart from the rounding of floats."""
    return wanted.kind == "f" or np.can_cast(given, wanted, "safe")


def check_member(value: Any, space: gymnasium.Space[Any], what: str) -> None:
    """Raise a BrokenContract unless a value is in a space that is not a Box."""
    try:
        inside = space.contains(value)
    except Exception as error:
        raise BrokenContract(f"{what} is {describe(value)}, which {space} cannot hold ({type(error).__name__}: {error})") from error
    if not inside:
        raise BrokenContract(f"{what} is {describe(value)}, which is not in {space}")


def check_reset(result: Any) -> Any:
    """The observation that `reset` returned."""
    if not (isinstance(result, tuple | list) and len(result) == 2):
        raise BrokenContract(f"reset returned {_shape_of(result)}, gymnasium expects (observation, info)")
    check_info(result[1])
    return result[0]


def check_step(result: Any) -> tuple[Any, Any, Any, Any, Any]:
    """The five values that `step` returned."""
    if not (isinstance(result, tuple | list) and len(result) == 5):
        old = ", as gym did before terminated and truncated were separate" if isinstance(result, tuple) and len(result) == 4 else ""
        raise BrokenContract(
            f"step returned {_shape_of(result)}{old}, gymnasium expects (observation, reward, terminated, truncated, info)"
        )
    return tuple(result)


def check_reward(reward: Any) -> float:
    """A reward as a number; an array of one number is one."""
    with contextlib.suppress(TypeError, ValueError):
        array = np.asarray(reward)
        if array.dtype.kind in "biufO" and array.size == 1 and reward is not None:
            return float(array.item())
    raise BrokenContract(f"the reward is {describe(reward)}, expected one number")


def check_flag(flag: Any, name: str) -> bool:
    """`terminated` or `truncated`: a bool, or the numbers 0 and 1."""
    with contextlib.suppress(ValueError):
        array = np.asarray(flag)
        if array.dtype.kind in "biu" and array.size == 1 and array.item() in (0, 1):
            return bool(array.item())
    raise BrokenContract(f"{name} is {describe(flag)}, expected True or False")


def check_info(info: Any) -> None:
    if not isinstance(info, Mapping):
        raise BrokenContract(f"info is {describe(info)}, expected a dictionary, {{}} if there is nothing to say")


def describe(value: Any) -> str:
    """A value in a few words: its type, and what it is if that is short."""
    if value is None:
        return "None"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}" if value.size != 1 else f"{value.tolist()} (an array)"
    try:
        text = repr(value)
    except Exception:
        text = "…"
    return f"{text[:60]}{'…' if len(text) > 60 else ''} ({type(value).__name__})"


def _shape_of(result: Any) -> str:
    return f"{len(result)} values" if isinstance(result, tuple | list) else describe(result)


def first_non_finite(values: Array) -> tuple[str, str]:
    """The first value that is not finite, and where it is, in words: ("nan", " at index 3"); of a single number the place is empty."""
    index = np.argwhere(~np.isfinite(values))[0].tolist()
    place = "" if values.size == 1 else f" at index {index[0] if len(index) == 1 else index}"
    return str(values[tuple(index)]), place


def env_error(name: str, index: int, call: str, where: str, error: BaseException) -> RlxError:
    """The error to raise for an exception that came out of an environment, with the traceback of the environment's code.

    Args:
        name: of the environment.
        index: in the batch.
        call: the method that was called: reset, step, replay or render.
        where: the same with the place in the episode, e.g. "step 7 of the episode with seed 3".
        error: what was raised.
    """
    if isinstance(error, RlxError):
        return error
    if isinstance(error, BrokenContract):
        found: RlxError = EnvError(f"environment {index} ({name}) broke gymnasium's contract in {where}: {error}")
    else:
        line = f"; {line}" if (line := user_line(error)) else ""
        what = f"{type(error).__name__} in {call}: {error}"
        found = EnvError(f"environment {index} ({name}) raised {what} ({where}{line}){_advice(call, error)}")
        found.trace = "".join(traceback.format_exception(error))
    return found


def _advice(call: str, error: BaseException) -> str:
    """Advice about exceptions of environments that have gym's old interface."""
    text = str(error)
    if isinstance(error, ValueError | TypeError) and any(phrase in text for phrase in _UNPACKS):
        wanted = "(observation, info)" if call == "reset" else "(observation, reward, terminated, truncated, info)"
        return f"; gymnasium expects {wanted}, which a wrapper around the environment could not unpack"
    if isinstance(error, TypeError) and any(phrase in text for phrase in _SEEDS):
        return "; gymnasium calls reset(seed=…, options=…)"
    return ""


def non_finite(name: str, index: int, where: str, obs: Tree, reward: Any, action: Any) -> RlxError:
    """The error to raise for an observation or reward that is not finite. `action` may be the cause; it is None after a reset."""
    if action is not None and not np.isfinite(action).all():
        value, place = first_non_finite(np.asarray(action))
        return NonFiniteError(f"the policy gave environment {index} ({name}) an action with {value}{place} in {where}: training diverged "
                              "before, try a smaller algo.learning_rate")  # fmt: skip
    found = f"a reward that is {first_non_finite(np.asarray(reward))[0]}" if not np.isfinite(reward) else ""
    for path, leaf in named_leaves(obs):
        if not np.isfinite(leaf).all():
            value, place = first_non_finite(leaf)
            found = f"an observation with {value}{path and f' in {path}'}{place}"
            break
    return EnvError(f"environment {index} ({name}) gave {found} in {where}: repair or clip it in the environment")
