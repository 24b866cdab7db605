"""From overrides to a RunConfig, with errors that name what to type instead.

Hydra does the composition. Around it: the names are checked before Hydra sees them, because its own advice for a typo is to
add the typo to the configuration; and an `env` that has no YAML file may be any gymnasium id.
"""

from __future__ import annotations

import copy
import difflib
import functools
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlx.config import algo_registry
from rlx.config.algo_registry import ALGORITHMS
from rlx.config.algos.base_config import AlgoConfig
from rlx.config.arms import Arms, read_arms
from rlx.config.cadence import COMMAND_LINE, outgrown, outgrown_on_resume
from rlx.config.choices import did_you_mean
from rlx.config.explain import explain
from rlx.config.overrides import check_key, group_value, hydra_argument, in_full, parse_overrides, refuse_twice, refuse_unused, short_names
from rlx.config.plain import parse_plain
from rlx.config.recipe_families import recipe_family
from rlx.config.saved import flatten, leaf_keys, to_run_config
from rlx.config.schema import RunConfig
from rlx.config.synonyms import ALGOS
from rlx.config.whole_numbers import accept_whole_floats
from rlx.errors import ConfigError
from rlx.trust import code_named, refuse_module

GROUPS = ("algo", "env", "recipe", "experiment")
_GENERIC_ENV = "_gymnasium"


@dataclass(frozen=True, kw_only=True)
class Composed:
    """A validated configuration, and where its values came from."""

    config: RunConfig
    choices: dict[str, str | None]
    """What each group resolved to; an env without a YAML file has its id."""
    sources: dict[str, str] = field(default_factory=dict)
    """For every key, where its value came from: "default", a file under conf/, or "command line"."""


def conf_dir() -> Path:
    """conf/ at the top of a checkout, or inside the installed package."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package.parent / "conf", package / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(f"conf/config.yaml was found neither beside nor inside {package}: reinstall rlx")


class _Choice(NamedTuple):
    """The configuration and the keys of one choice of groups."""

    base: DictConfig
    """The configuration before any `key=value`."""
    choices: dict[str, str | None]
    keys: dict[str, Any]
    """Every key that can be set, with its value before a recipe."""
    env_id: str | None
    """The id of an env that has no file."""


@functools.cache
def _register_schemas() -> None:
    accept_whole_floats()
    store = ConfigStore.instance()
    store.store(name="run", group="schema", package="_global_", node=RunConfig)
    store.store(name=_GENERIC_ENV, group="env", node={})
    for name, info in ALGORITHMS.items():
        _register_algorithm(name, info.config)


def _register_algorithm(name: str, config: type[AlgoConfig]) -> None:
    """Register a settings dataclass as a member of the group `algo`, and as a schema for the user's own files in that group."""
    store = ConfigStore.instance()
    for group in ("algo", "schema/algo"):
        store.store(name=name, group=group, node=config)


@functools.cache
def _of_shipped_files() -> dict[tuple[tuple[str, str | None], ...], _Choice]:
    """Cache of what has been composed from conf/ alone; those files do not change while a process lives."""
    return {}


class Composer:
    """Composes configurations from conf/ and, before it, a directory of the user's own.

    Args:
        config_dir: a directory with groups (`algo/`, `env/`, `recipe/`, `experiment/`) that add to or shadow the shipped ones.
        stranger: the sweep whose words are composed, for messages, if it is not this user's. Then no module is imported and nothing
            is interpolated.
    """

    def __init__(self, config_dir: Path | None = None, *, stranger: Path | None = None) -> None:
        self._stranger = stranger
        _register_schemas()
        if config_dir is not None and not config_dir.is_dir():
            raise ConfigError(f"--config-dir {config_dir} is not a directory; it should hold algo/, env/, recipe/ or experiment/")
        self.directories = [d.resolve() for d in (config_dir, conf_dir()) if d is not None]
        search_path = create_config_search_path(str(conf_dir()))
        if config_dir is not None:
            search_path.prepend("rlx-user", f"file://{config_dir.resolve()}", SearchPathQuery(provider="main"))
        self._loader = ConfigLoaderImpl(config_search_path=search_path)
        self._chosen = _of_shipped_files() if config_dir is None and stranger is None else {}

    def options(self, group: str) -> list[str]:
        """Names that a group offers."""
        named = algo_registry.algorithm_names() if group == "algo" else []
        return sorted({*named, *(p.stem for d in self.directories for p in (d / group).glob("*.yaml"))})

    def file(self, group: str, name: str) -> Path | None:
        """The YAML file of a group's member; the user's own comes first."""
        return next((p for d in self.directories if (p := d / group / f"{name}.yaml").is_file()), None)

    def settings_of(self, group: str, name: str | None) -> dict[str, Any]:
        """The settings in the file of a group's member, by dotted keys; none without a file."""
        path = self.file(group, name) if name else None
        return flatten(_read_yaml(path)) if path else {}

    def usual_recipe(self, algo: str | None, env: str | None, env_id: str, experiment: str | None = None) -> str | None:
        """The recipe of an algorithm for an environment, or for the environment's family; None if there is neither.

        Experiments whose names have one beginning may have recipes of their own: all trust_… take recipe/trust_<env> where there is one.
        """
        family = (experiment or "").partition("_")[0]
        owners = [algo] if not family or family in algo_registry.algorithm_names() else [family, algo]
        names = (f"{owner}_{place}" for owner in owners for place in (env, recipe_family(env_id)))
        return next((name for name in names if self.file("recipe", name)), None)

    def arms(self, experiment: str) -> Arms | None:
        """The experiments that a file of arms lists, to be compared in a sweep; None for other experiments.

        Raises:
            ConfigError: if it lists something that is no experiment.
        """
        path = self.file("experiment", experiment)
        content = _read_yaml(path) if path else {}
        if "arms" not in content:
            return None
        arms = read_arms(content, path)
        for name in arms.experiments:
            self.check_option("experiment", name)
        return arms

    def env_ids(self) -> dict[str, str]:
        """Short name of every environment that has a file, with its id."""
        ids = {}
        for name in self.options("env"):
            path = self.file("env", name)
            try:
                ids[name] = str((_read_yaml(path) if path else {}).get("id", name))
            except ConfigError:  # a broken file of the user's own is an error only where it is used
                ids[name] = name
        return algo_registry.environments() | ids

    def compose(self, arguments: list[str]) -> Composed:
        """Compose and validate.

        Raises:
            ConfigError: for anything that is not a valid configuration.
        """
        overrides = parse_overrides(arguments)
        groups = {o.key_or_group: group_value(o) for o in overrides if o.key_or_group in GROUPS}
        values = [o for o in overrides if o.key_or_group not in GROUPS]
        base, choices, keys, env_id = self._choose(groups)
        for override in values:
            check_key(override, keys | short_names(keys), str(choices["algo"]))
        values = [in_full(o, keys) for o in values]
        refuse_twice(values)
        config = self._with(base, list(map(hydra_argument, values)))
        if self._stranger is not None:
            parse_plain(OmegaConf.to_yaml(config), f"{self._stranger}: {' '.join(arguments)}")
        sources = self._sources(leaf_keys(config), choices, groups, values, env_id)
        for name in outgrown(config.loop, config.loop.total_env_steps, sources):
            config.loop[name], sources[f"loop.{name}"] = None, "default"
        typed = to_run_config(config)
        if self._stranger is not None:
            for key, reference in code_named(typed):
                refuse_module(key, reference, self._stranger, kind="sweep")
        refuse_unused(typed, [o.key_or_group for o in values])
        return Composed(config=typed, choices=choices, sources=sources)

    def keys(self, groups: dict[str, str | None]) -> dict[str, Any]:
        """Every key that can be set when these members of the groups are chosen, short names too, with its default.

        Raises:
            ConfigError: if a group has no such member.
        """
        keys = self._choose(groups).keys
        return keys | short_names(keys)

    def _choose(self, groups: dict[str, str | None]) -> _Choice:
        """The configuration and the keys of a choice of groups, cached because a sweep composes many runs of the same groups."""
        question = tuple(sorted(groups.items(), key=lambda item: item[0]))
        if question not in self._chosen:
            groups = dict(groups)
            for group in ("algo", "recipe", "experiment"):
                self.check_option(group, groups.get(group))
            arms = self.arms(groups.get("experiment") or "")
            if arms is not None:
                name, several = groups["experiment"], ", ".join(arms.experiments)
                raise ConfigError(f"experiment={name} is several, {several}; train one, or all: rlx sweep experiment={name}")
            algo = self._resolve_algo(groups)
            env_id = self._resolve_env(groups)
            words = [f"{group}={name}" for group, name in groups.items() if name is not None and group != "recipe"]
            base, choices = self._load(words)
            choices |= {"algo": algo} if algo is not None else {}
            keys = leaf_keys(base)
            if "recipe" in groups:
                recipe = groups["recipe"]
            else:
                recipe = self.usual_recipe(choices["algo"], choices["env"], env_id or base.env.id, choices["experiment"])
            if recipe is not None:
                base, _ = self._load([*words, f"recipe={recipe}"])
                choices["recipe"] = recipe
            if algo is not None:
                base = self._with(base, [f"algo.name='{algo}'"])
            if env_id is not None:
                choices["env"] = env_id
                base = self._with(base, [f"env.id='{env_id}'"])
            self._chosen[question] = _Choice(base, choices, keys, env_id)
        base, choices, keys, env_id = self._chosen[question]
        return _Choice(base, dict(choices), keys, env_id)

    def _with(self, base: DictConfig, arguments: list[str]) -> DictConfig:
        """A copy of a configuration with `key=value` words applied as Hydra applies them."""
        config = copy.deepcopy(base)
        try:
            ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(arguments), config)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error)) from error
        return config

    def _load(self, arguments: list[str]) -> tuple[DictConfig, dict[str, str | None]]:
        """The composed configuration, and what each group resolved to."""
        try:
            config = self._loader.load_configuration("config", arguments, run_mode=RunMode.RUN)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error) + self._where(error)) from error
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            named = str(getattr(getattr(error, "problem_mark", None), "name", ""))
            files = [p for d in self.directories for p in d.rglob("*.yaml")]
            for path in sorted(files, key=lambda p: (str(p) != named, f"{p.parent.name}={p.stem}" not in arguments)):
                _read_yaml(path)  # raises, naming the file
            raise ConfigError(_reason(error)) from error
        chosen = config.hydra.runtime.choices
        OmegaConf.set_struct(config, False)
        config.pop("hydra")
        OmegaConf.set_struct(config, True)
        self._check_schema(config, chosen)
        return config, {group: chosen.get(group) for group in GROUPS}

    def _where(self, error: Exception) -> str:
        """The file that Hydra says an error is in, as an addition to a message."""
        source = re.match(r"In '(\w+)/([^']+)'", str(error))
        path = self.file(*source.groups()) if source else None
        if path:
            _read_yaml(path)  # raises, if it is no YAML to begin with
        return f" (in {path})" if path else ""

    def _check_schema(self, config: DictConfig, choices: dict[str, str | None]) -> None:
        """Raise a ConfigError where a file of the user's own has replaced a typed node by a free one."""
        if OmegaConf.get_type(config) is not RunConfig:
            path = next(d for d in self.directories if (d / "config.yaml").is_file()) / "config.yaml"
            raise ConfigError(f"{path} hides rlx's own: leave it out, or begin it as {conf_dir() / 'config.yaml'} does, with /schema/run")
        if not issubclass(OmegaConf.get_type(config, "algo") or object, AlgoConfig):
            name = choices["algo"]
            raise ConfigError(
                f"algo={name}: {self.file('algo', str(name)) or 'it'} does not say whose settings these are; begin it with "
                f"`defaults: [/schema/algo/NAME@_here_, _self_]`, NAME one of {', '.join(ALGORITHMS)}"
            )

    def check_option(self, group: str, name: str | None) -> None:
        """Raise a ConfigError that names the nearest one unless a group has this member; None is no member."""
        options = self.options(group)
        if name is None or name in options:
            return
        if group == "algo" and ":" in name:
            if self._stranger is not None:
                refuse_module("algo", name, self._stranger, kind="sweep")
            return
        if group == "algo" and name in ALGOS:
            raise ConfigError(f"algo={name}: is no algorithm of its own here; write {ALGOS[name]}")
        raise ConfigError(f"{group}={name}: no such {group}; {did_you_mean(name, options, key=f'{group}=')}")

    def _resolve_algo(self, groups: dict[str, str | None]) -> str | None:
        """Register the algorithm of a plug-in under a name that Hydra can read; returns its own name, None for rlx's algorithms."""
        name = groups.get("algo")
        if name is None or name in ALGORITHMS or self.file("algo", name):
            return None
        groups["algo"] = member = re.sub(r"\W", "_", name)
        _register_algorithm(member, algo_registry.algorithm(name).config)
        return name

    def _resolve_env(self, groups: dict[str, str | None]) -> str | None:
        """Point `env` at a file; returns the id of an environment that has none."""
        env = groups.get("env")
        if env is None:
            return None
        if env in (installed := algo_registry.environments()) and not self.file("env", env):
            groups["env"] = env = installed[env]
        known = {name: id_ for name, id_ in self.env_ids().items() if self.file("env", name)}
        if env not in known:
            env = groups["env"] = next((name for name, id_ in known.items() if id_ == env), env)
        if env in known:
            return None
        self._check_generic_env(env, known)
        groups["env"] = _GENERIC_ENV
        return env

    def _check_generic_env(self, env: str, known: dict[str, str]) -> None:
        near = difflib.get_close_matches(env.lower(), known, n=1, cutoff=0.75)
        if near and not any(c in env for c in ":-/"):
            raise ConfigError(f"env={env}: no such environment; did you mean env={near[0]}?")
        if self._stranger is not None:
            refuse_module("env", env, self._stranger, kind="sweep")
        from rlx.envs.registry import check_env_id  # imports gymnasium, which most commands can do without

        check_env_id(env)

    def _sources(
        self,
        keys: dict[str, Any],
        choices: dict[str, str | None],
        groups: dict[str, str | None],
        values: list[Override],
        env_id: str | None,
    ) -> dict[str, str]:
        sources = dict.fromkeys(keys, "default") | {"algo.name": COMMAND_LINE if "algo" in groups else "conf/config.yaml"}
        for group in ("algo", "env", "recipe", "experiment"):
            name = choices[group]
            path = self.file(group, name) if name else None
            if path is None:
                continue
            content = _read_yaml(path)
            nested = content if group in ("recipe", "experiment") else {group: content}
            shown = f"conf/{group}/{path.name}" if path.is_relative_to(conf_dir()) else str(path)
            sources |= {k: shown for k in flatten(nested) if k in keys}
        for root in self.directories[::-1]:
            sources |= {k: "conf/config.yaml" for k in flatten(_read_yaml(root / "config.yaml")) if k in keys}
        if env_id is not None:
            sources["env.id"] = COMMAND_LINE
        return sources | {k: COMMAND_LINE for o in values for k in keys if k == o.key_or_group or k.startswith(o.key_or_group + ".")}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text()) if path.is_file() else {}
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable YAML: {_reason(error)}") from error
    content = content or {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold key: value lines, got {type(content).__name__}")
    return {k: v for k, v in content.items() if k != "defaults"}


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())


def apply_overrides(config: RunConfig, arguments: list[str], *, typed: Collection[str]) -> RunConfig:
    """A saved configuration with overrides of what may change on resume.

    Args:
        config: of the run.
        arguments: KEY=VALUE words.
        typed: keys that were typed when the run was started, or resumed before. Other cadences follow a new budget.

    Raises:
        ConfigError: for unknown keys and values that break a rule.
    """
    tree = OmegaConf.structured(config)
    keys = leaf_keys(tree)
    overrides = parse_overrides(arguments)
    for override in overrides:
        check_key(override, keys, config.algo.name)
        try:
            OmegaConf.update(tree, override.key_or_group, override.value())
        except OmegaConfBaseException as error:
            raise ConfigError(explain(error)) from error
    now = [override.key_or_group for override in overrides]
    for name in outgrown_on_resume(tree.loop, tree.loop.total_env_steps, typed, now):
        tree.loop[name] = None
    return to_run_config(tree)
