"""The rules of a body among others, as an agent may use them."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray


@runtime_checkable
class Bodies(Protocol):
    """The rules of a body that is moved by thrusts among fixed bodies, for n scenes at a time as rows of an observation's numbers.

    Position [2] and velocity [2] of the moving body come first, then what else a step can change, then three numbers for each fixed body.
    `fly` and `to_action` take NumPy arrays and tensors alike.
    """

    num_moving: int
    """Numbers before those of the fixed bodies."""
    num_decisions: int
    """Actions of every episode, J."""

    def scenes(self, seeds: NDArray[Any]) -> NDArray[Any]:
        """The first observations of episodes with these seeds [n], as rows [D, n]."""
        ...

    def fly(self, rows: Any, action: Any) -> Any:
        """Two numbers of the position and two of the velocity, each [n], after every step of integration in the actions [2, n]."""
        ...

    def to_action(self, obs: Any, acceleration: Any) -> Any:
        """The actions that accelerate the body by these multiples [*, 2] of a fixed acceleration, of observations [*, D]."""
        ...
