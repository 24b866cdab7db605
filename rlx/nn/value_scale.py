"""Values in units of the returns' standard deviation, so that a critic's targets have the same size on every task."""

from __future__ import annotations

from torch import Tensor, nn

from rlx.nn.backbone import Evaluated
from rlx.nn.networks import Network
from rlx.nn.normalize import RunningMoments
from rlx.types import State


class ValueScale(nn.Module):
    """The running mean and standard deviation of the returns. The network's value v means the return mean + std * v.

    `normalize_value` of rl_games, `normalize_returns` of sample-factory. With `preserves`, the output layer is changed with the statistics,
    so that no value changes by it (PopArt, van Hasselt et al. 2016, https://arxiv.org/abs/1602.07714, algorithm 1).
    """

    def __init__(self, *, preserves: bool) -> None:
        super().__init__()
        self.preserves = preserves
        self.moments = RunningMoments(())

    def get_extra_state(self) -> State:
        return self.moments.state_dict()

    def set_extra_state(self, state: State) -> None:
        self.moments.load_state_dict(state)

    def update(self, returns: Tensor, evaluated: Evaluated, network: Network) -> Evaluated:
        """Update the statistics by the returns [T, B] of a rollout, and the output layer if values are to be preserved.

        Returns:
            `evaluated` with the values that the network now has.
        """
        mean, std = self._numbers()
        self.moments.update(returns.flatten())
        if not self.preserves:
            return evaluated
        new_mean, new_std = self._numbers()
        factor, shift = std / new_std, (mean - new_mean) / new_std
        network.change_value(factor=factor, shift=shift)
        return evaluated._replace(value=evaluated.value * factor + shift)

    def to_return(self, value: Tensor) -> Tensor:
        """The network's values to returns."""
        mean, std = self._numbers()
        return value * std + mean

    def to_value(self, returns: Tensor) -> Tensor:
        """Returns to what the network's values should be."""
        mean, std = self._numbers()
        return (returns - mean) / std

    def _numbers(self) -> tuple[float, float]:
        return self.moments.mean.item(), self.moments.std.item()
