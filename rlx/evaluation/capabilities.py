"""What an algorithm can do beyond acting and learning, and which algorithms can: the protocols at the end of `rlx.types`."""

from __future__ import annotations

from collections.abc import Mapping

from rlx.config import algo_registry
from rlx.config.algo_registry import ALGORITHMS
from rlx.config.choices import check_choice
from rlx.errors import ConfigError
from rlx.types import Ablatable, Algorithm, Mode


def has(algo: str, capability: type) -> bool:
    """Whether the class of an algorithm, given by its name, has the methods of a protocol."""
    return issubclass(algo_registry.algorithm(algo).load(), capability)


def algorithms_with(capability: type) -> str:
    """The names of the algorithms whose classes have the methods of a protocol, for a message."""
    return ", ".join(f"algo={name}" for name in ALGORITHMS if has(name, capability))


def check_ablation(choices: Mapping[str, str], *, algo: str, run: str) -> None:
    """Raise a ConfigError unless the algorithm, given by its name, has these ablations.

    Args:
        choices: by the name of the ablation, as of `Ablatable.ablate`.
        algo: the algorithm's name.
        run: what the message calls the run.
    """
    for name, choice in choices.items():
        if name not in _ablations(algo):
            able = [other for other in ALGORITHMS if name in _ablations(other)]
            instead = f", or choose a run of algo={' or algo='.join(able)}" if able else ""
            raise ConfigError(f"--{name} {choice}: {run} is algo={algo}, which has no such ablation; leave it out{instead}")
        check_choice(f"--{name}", choice, _ablations(algo)[name])


def _ablations(algo: str) -> Mapping[str, list[str]]:
    """The choices of every ablation that an algorithm has, by the ablation's name."""
    loaded = algo_registry.algorithm(algo).load()
    return {name: list(choices) for name, choices in loaded.ablations().items()} if issubclass(loaded, Ablatable) else {}


def ablated(algo: Algorithm, choices: Mapping[str, str], *, mode: Mode) -> Algorithm:
    """The algorithm with some of its parts switched off or replaced.

    Raises:
        ConfigError: if it cannot act so, or not in this mode.
    """
    return algo.ablate(choices, mode=mode) if isinstance(algo, Ablatable) else algo
