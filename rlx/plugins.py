"""Algorithms and environments that come from elsewhere: `algo=my_module:MyAlgo`, and the entry points of installed packages.

    [project.entry-points."rlx.algorithms"]
    my_algo = "my_package:MyAlgo"

    [project.entry-points."rlx.environments"]
    my_env = "my_package:MyEnv"

An algorithm is a class with the methods of `rlx.types.Algorithm` and an attribute `Config`, a dataclass that inherits from
`AlgoConfig`. Finding the names imports nothing; a plug-in is imported when it is used.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from importlib import metadata
from typing import Any

from rlx.algos import ALGORITHMS, AlgoInfo
from rlx.config.algos.base_config import AlgoConfig, GradientConfig, Suits
from rlx.config.setting import setting
from rlx.errors import ConfigError
from rlx.user_code import load_object

__all__ = ["AlgoConfig", "GradientConfig", "Suits", "algorithm", "algorithm_names", "environments", "is_known", "setting", "summary"]

_METHODS = ("act", "initial_carry", "update", "state_dict", "load_state_dict")


@functools.cache
def entry_points(group: str) -> dict[str, metadata.EntryPoint]:
    """The entry points that installed packages declare, by name; what rlx has itself cannot be replaced by one."""
    return {point.name: point for point in metadata.entry_points(group=group) if point.name not in ALGORITHMS}


def environments() -> dict[str, str]:
    """Names of the environments of installed packages, each with the `module:Class` that stands for it."""
    return {name: point.value for name, point in entry_points("rlx.environments").items()}


def algorithm_names() -> list[str]:
    """The algorithms of rlx and of installed packages."""
    return [*ALGORITHMS, *entry_points("rlx.algorithms")]


def is_known(name: str) -> bool:
    """Whether an algorithm has this name; one that is named by its module is known."""
    return name in ALGORITHMS or ":" in name or name in entry_points("rlx.algorithms")


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
    """What an algorithm is, in one line; for a plug-in what is wrong with it, if anything is."""
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
