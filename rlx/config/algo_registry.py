"""Every algorithm with its settings and its class: those of rlx, those of installed packages, and `algo=my_module:MyAlgo`.

Importing this module imports no torch. Finding the names of plug-ins imports none of them; a plug-in is imported when it is used.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from rlx.config.algos.a2c_config import A2CConfig
from rlx.config.algos.alphago_config import AlphaGoConfig
from rlx.config.algos.alphazero_config import AlphaZeroConfig
from rlx.config.algos.base_config import AlgoConfig
from rlx.config.algos.dqn_config import DQNConfig
from rlx.config.algos.i2a_config import I2AConfig
from rlx.config.algos.ibp_config import IBPConfig
from rlx.config.algos.muzero_config import MuZeroConfig
from rlx.config.algos.pets_config import PETSConfig
from rlx.config.algos.ppo_config import PPOConfig
from rlx.config.algos.pqn_config import PQNConfig
from rlx.config.algos.reinforce_config import ReinforceConfig
from rlx.config.algos.sac_config import SACConfig
from rlx.config.algos.td3_config import TD3Config
from rlx.errors import ConfigError
from rlx.user_code import load_object

_METHODS = ("act", "initial_carry", "update", "state_dict", "load_state_dict")


@dataclass(frozen=True)
class AlgoInfo:
    config: type[AlgoConfig]
    target: str
    """`module:Class`, imported only when a run is built."""
    summary: str

    def load(self) -> type[Any]:
        module, name = self.target.split(":")
        return getattr(importlib.import_module(module), name)


ALGORITHMS: dict[str, AlgoInfo] = {
    "reinforce": AlgoInfo(ReinforceConfig, "rlx.algos.reinforce:Reinforce", "Monte-Carlo policy gradient, with a choice of advantages"),
    "a2c": AlgoInfo(A2CConfig, "rlx.algos.a2c:A2C", "Advantage actor-critic, synchronous, n-step or GAE"),
    "ppo": AlgoInfo(PPOConfig, "rlx.algos.ppo:PPO", "Proximal policy optimisation, clipped or with an adaptive KL penalty"),
    "dqn": AlgoInfo(DQNConfig, "rlx.algos.dqn:DQN", "Q-learning from a replay: double, n-step, dueling, prioritised, distributional"),
    "pqn": AlgoInfo(PQNConfig, "rlx.algos.pqn:PQN", "Q-learning on parallel environments, without a replay or a target network"),
    "alphazero": AlgoInfo(
        AlphaZeroConfig, "rlx.algos.alphazero:AlphaZero", "Self-play and tree search, guided by a network that learns from them"
    ),
    "alphago": AlgoInfo(
        AlphaGoConfig,
        "rlx.algos.alphago:AlphaGo",
        "Imitation of experts, policy gradient, a value network, and a search that combines them",
    ),
    "muzero": AlgoInfo(MuZeroConfig, "rlx.algos.muzero:MuZero", "AlphaZero's tree search in a learned latent model, with reanalysis"),
    "i2a": AlgoInfo(I2AConfig, "rlx.algos.i2a:I2A", "Imagination-augmented agent: encodes rollouts of a learned model for its policy"),
    "sac": AlgoInfo(SACConfig, "rlx.algos.sac:SAC", "Soft actor-critic: off-policy, continuous actions, adapted entropy"),
    "td3": AlgoInfo(TD3Config, "rlx.algos.td3:TD3", "Twin delayed deterministic policy gradient; DDPG is three settings of it"),
    "ibp": AlgoInfo(IBPConfig, "rlx.algos.ibp:IBP", "Imagination-based planner: a manager decides when imagining is worth its price"),
    "pets": AlgoInfo(PETSConfig, "rlx.algos.pets:PETS", "Plans with an ensemble of learned models"),
}


@functools.cache
def entry_points(group: str) -> dict[str, metadata.EntryPoint]:
    """The entry points that installed packages declare, by name; names of rlx's own algorithms are left out."""
    return {point.name: point for point in metadata.entry_points(group=group) if point.name not in ALGORITHMS}


def environments() -> dict[str, str]:
    """The environments of installed packages: name to `module:Class`."""
    return {name: point.value for name, point in entry_points("rlx.environments").items()}


def algorithm_names() -> list[str]:
    """The algorithms of rlx and of installed packages."""
    return [*ALGORITHMS, *entry_points("rlx.algorithms")]


def is_known(name: str) -> bool:
    """Whether an algorithm has this name; every `module:Class` counts as known."""
    return name in ALGORITHMS or ":" in name or name in entry_points("rlx.algorithms")


def is_plugin(name: str) -> bool:
    """Whether an algorithm is not rlx's own."""
    return name not in ALGORITHMS


@functools.cache
def algorithm(name: str) -> AlgoInfo:
    """An algorithm by its name or `module:Class`, whose module is imported if it is not rlx's own.

    Raises:
        ConfigError: if it cannot be imported, or is not an algorithm with settings.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    point = entry_points("rlx.algorithms").get(name)
    if point is None:
        return _described(name, f"algo={name}")
    try:
        return _described(point.value, f"algo={name}")
    except ConfigError as error:
        package = point.dist.name if point.dist is not None else point.value.partition(":")[0]
        broken = ConfigError(f"{error} (a plug-in of the package {package}; `pip uninstall {package}` removes it)")
        broken.trace = error.trace
        raise broken from error


def summary(name: str) -> str:
    """One line about an algorithm, or about what is wrong with a plug-in."""
    try:
        return algorithm(name).summary
    except ConfigError as error:
        return f"broken: {error}"


def _described(reference: str, key: str) -> AlgoInfo:
    found = load_object(reference, key)
    if not isinstance(found, type):
        raise ConfigError(f"{key}: {reference} is a {type(found).__name__}; expected a class with the methods of rlx.types.Algorithm")
    if missing := [method for method in _METHODS if not callable(getattr(found, method, None))]:
        raise ConfigError(f"{key}: {found.__name__} has no {', '.join(f'{m}()' for m in missing)}; an algorithm has "
                          f"{', '.join(f'{m}()' for m in _METHODS)} (see rlx.types.Algorithm)")  # fmt: skip
    config = _settings_of(found, key)
    doc = next(iter((inspect.getdoc(found) or "").splitlines()), "")
    return AlgoInfo(config, reference, doc.rstrip("."))


def _settings_of(algorithm_: type, key: str) -> type[AlgoConfig]:
    """The dataclass of an algorithm's settings."""
    config: Any = getattr(algorithm_, "Config", None)
    expected = "a dataclass that inherits from rlx.plugins.AlgoConfig"
    if config is None:
        raise ConfigError(f"{key}: {algorithm_.__name__} has no settings; give the class an attribute Config, {expected}")
    if not (isinstance(config, type) and issubclass(config, AlgoConfig)):
        raise ConfigError(f"{key}: {algorithm_.__name__}.Config is {config!r}; expected {expected}")
    known = {field.name for field in dataclasses.fields(config)}
    bare = [name for name, kind in inspect.get_annotations(config).items() if name not in known and "ClassVar" not in str(kind)]
    if bare:
        raise ConfigError(f"{key}: {config.__name__}.{bare[0]} is no setting; decorate {config.__name__} with @dataclass(kw_only=True)")
    try:
        config()
    except TypeError as error:
        raise ConfigError(f"{key}: {config.__name__} cannot be made without arguments ({error}); give every setting a default") from error
    return config
