"""A run's configuration as YAML: written, read back as data, compared. Imports no Hydra, which is slow to import."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlx.config import algo_registry
from rlx.config.algo_registry import ALGORITHMS
from rlx.config.algos.base_config import StoredConfig, stored_config
from rlx.config.explain import explain
from rlx.config.plain import LIMIT, parse_plain
from rlx.config.schema import RunConfig
from rlx.errors import ConfigError
from rlx.files import UnreadableError, read_file


def to_run_config(config: DictConfig) -> RunConfig:
    """A typed RunConfig; the rules of the schema are checked on the way.

    Raises:
        ConfigError: if a value breaks a rule.
    """
    try:
        typed: RunConfig = OmegaConf.to_object(config)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    algo = typed.algo
    known = algo is not None and algo_registry.is_known(algo.name)
    if not isinstance(algo, StoredConfig) and not (known and isinstance(algo, algo_registry.algorithm(algo.name).config)):
        raise ConfigError(f"algo.name={getattr(algo, 'name', None)} cannot be set: choose the algorithm with algo=NAME")
    return typed


def leaf_keys(config: RunConfig | DictConfig) -> dict[str, Any]:
    """Dotted names of all values, enums by name; env.kwargs counts as one of them and as its members."""
    tree = config if isinstance(config, DictConfig) else OmegaConf.structured(config)
    return flatten(OmegaConf.to_container(tree, resolve=False, enum_to_str=True))  # type: ignore[arg-type]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of settings by dotted keys; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def save_config(config: RunConfig) -> str:
    """The configuration as YAML that `load_config` reads back; enums by name."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def load_config(path: Path) -> RunConfig:
    """Read a run's config.yaml as data: no resolvers, no unknown keys, no code.

    Raises:
        ConfigError: if it is missing, is not plain data, or does not fit this version's schema.
    """
    return parse_config(read_config_text(path), path)


def read_config_text(path: Path) -> str:
    """The text of a run's config.yaml. Raises a ConfigError if it cannot be read."""
    try:
        return read_file(path, limit=LIMIT).decode()
    except UnreadableError as error:
        raise ConfigError(f"{path} cannot be read (it {error.reason}): is it a run directory? `rlx ls` lists them") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not readable YAML: {error.reason}") from error


def parse_config(text: str, path: object, *, import_plugins: bool = False) -> RunConfig:
    """A configuration from the text of a config.yaml. Raises as `load_config` does, naming `path`.

    Args:
        text: YAML.
        path: where it comes from, for messages.
        import_plugins: import the algorithm if it is a plug-in. Otherwise its settings are read as data, without their types.
    """
    content = parse_plain(text, path)
    algo = content.get("algo")
    name = algo.get("name") if isinstance(algo, dict) else None
    if not isinstance(name, str) or not (algo_registry.is_known(name) or (name.isidentifier() and not import_plugins)):
        raise ConfigError(
            f"{path} is for algo.name={name}, which this version of rlx does not have ({', '.join(algo_registry.algorithm_names())}); "
            "if it is a plug-in, install its package"
        )
    if isinstance(env := content.get("env"), dict):
        env.setdefault("rescale_actions", False)  # the behaviour of runs saved before this setting existed
    settings = algo_registry.algorithm(name).config if import_plugins or name in ALGORITHMS else None
    try:
        base = OmegaConf.structured(RunConfig)
        base.algo = OmegaConf.structured(settings or stored_config(content["algo"]))
        merged = OmegaConf.merge(base, content)
    except (OmegaConfBaseException, ValueError, OverflowError, TypeError) as error:
        raise ConfigError(f"{path} does not fit this version's settings: {explain(error)}") from error
    assert isinstance(merged, DictConfig)
    try:
        return to_run_config(merged)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def differences(mine: RunConfig, theirs: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Every key in which two configurations differ, with its values."""
    a, b = leaf_keys(mine), leaf_keys(theirs)
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}


def typed_value(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, Enum):
        return value.name
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)
