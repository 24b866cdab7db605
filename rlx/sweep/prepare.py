"""Sweeps from the arguments of a command: composes and checks the points, names the sweep, and finds the one of that name on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlx.config.choices import check_choice
from rlx.config.compose import GROUPS, Composed, Composer
from rlx.config.override_types import Override, read_overrides
from rlx.config.schema import RunConfig
from rlx.errors import ConfigError
from rlx.store.claim_spec import Claim, read_claims
from rlx.store.layout import is_sweep
from rlx.store.runs import RunDir
from rlx.store.sweep_spec import Point, Search, Spec
from rlx.store.sweeps import SweepDir
from rlx.sweep.plan import check_objective
from rlx.sweep.points import compose_all, compose_grid
from rlx.sweep.space import SearchSpace, expand, load_space, seeds_of, swept_keys

OBJECTIVE = "eval/return_iqm"
_MOST_RUNS = 1_000_000


class Prepared:
    """A sweep with its points composed and checked; a search is checked at the ends of its ranges."""

    def __init__(self, spec: Spec, name: str, composer: Composer, *, required: bool, points: list[Point] | None) -> None:
        self.spec, self.name, self.composer, self.required = spec, name, composer, required
        self.space: SearchSpace | None = None
        self.points: dict[str, tuple[Point, Composed]] = {}
        if spec.search is not None:
            self.space = SearchSpace(spec.overrides, composer)
            self.configs = [composer.compose(point.arguments).config for point in self.space.examples()]
        else:
            assert points is not None
            pairs = compose_grid(points, composer)
            if (runs := len(pairs) * len(spec.seeds)) > _MOST_RUNS:
                raise ConfigError(f"{len(pairs):,} settings × {len(spec.seeds):,} seeds = {runs:,} runs; expected at most {_MOST_RUNS:,}")
            self.points = {f"{i:03d}": pair for i, pair in enumerate(pairs)}
            self.configs = [composed.config for _, composed in pairs]

    def check(self) -> None:
        """Raise a ConfigError if no run can log the objective, or the grid has fewer points than trials."""
        if self.required:
            for config in self.configs:
                check_objective(self.spec, config)
        search = self.spec.search
        if self.space is not None and search is not None and search.sampler == "grid":
            size = len(self.space.grid())
            if search.trials > size:
                raise ConfigError(f"--trials {search.trials}: the grid has {size} settings, and each is tried once; say --trials {size}, "
                                  "or train each with more --seeds")  # fmt: skip

    @classmethod
    def again(cls, sweep: SweepDir, spec: Spec) -> Prepared:
        """The sweep on disk, with the points that it began with."""
        composer = Composer(Path(spec.config_dir) if spec.config_dir else None, stranger=None if sweep.is_trusted else sweep.path)
        return cls(spec, sweep.name, composer, required=spec.search is not None, points=list(sweep.grid().values()))


def prepare(
    arguments: list[str],
    seeds: str | None,
    name: str | None,
    config_dir: Path | None,
    objective: str | None,
    minimize: bool,
    aggregate: str,
    options: dict[str, Any],
) -> tuple[Spec, Prepared]:
    """The sweep that a command line describes.

    Raises:
        ConfigError: for anything that cannot be swept.
    """
    composer = Composer(config_dir)
    trials = options["trials"]
    arms = with_arms(arguments, composer)
    overrides, seed_list = seeds_of(read_overrides(arms.words), seeds)
    if trials is None:
        useless = next((k for k, v in options.items() if v is not None), None)
        if useless is not None:
            raise ConfigError(f"--{useless} is for a search: say how many settings to try with --trials N")
    else:
        if options["space"] is not None:
            overrides = _with_space(overrides, options["space"], composer)
        elif set(swept_keys(overrides)) <= {"algo"}:
            for composed in compose_all(expand(overrides, composer), composer):
                overrides = _with_space(overrides, composed.config.algo.name, composer)
        search = _search(options)
    if trials is None and seeds is None and len(seed_list) == 1 and not swept_keys(overrides):
        composer.compose(list(map(str, overrides)))  # reports errors in them first
        several = "a key several values (algo.learning_rate=1e-3,1e-2), several seeds (--seeds 5), or a search (--trials 30)"
        raise ConfigError(f"nothing to sweep: give {several}")
    spec = Spec(
        overrides=overrides,
        seeds=seed_list,
        swept=swept_keys(overrides),
        objective=objective or OBJECTIVE,
        direction="minimize" if minimize else "maximize",
        aggregate=aggregate,
        config_dir=str(config_dir.resolve()) if config_dir else None,
        search=search if trials is not None else None,
        claims=arms.claims,
    )
    points = expand(overrides, composer, arms.yields) if trials is None else None
    prepared = Prepared(spec, "", composer, required=objective is not None or trials is not None, points=points)
    prepared.check()
    prepared.name = name if name is not None else default_name(spec, prepared.configs)
    return spec, prepared


class WithArms(NamedTuple):
    """The arguments of a command, with what files of arms add to them."""

    words: list[str]
    yields: frozenset[str]
    """Keys that a file of arms sweeps, in the arms whose own files do not set them."""
    claims: list[Claim]


def with_arms(arguments: list[str], composer: Composer) -> WithArms:
    """The arguments, where an experiment that lists arms is replaced by its arms.

    What such a file sweeps is added, unless an argument has the same key. Hydra's `+experiment=` is accepted.

    Raises:
        ConfigError: if one of the arms is no experiment, or a claim cannot be read.
    """
    found: list[str] = []
    swept: dict[str, str] = {}
    claims: list[Claim] = []

    def expanded(name: str, above: tuple[str, ...] = ()) -> list[str]:
        arms = composer.arms(name)
        if arms is None:
            return [name]
        if name in above:
            raise ConfigError(f"{composer.file('experiment', name)}: its arms lead back to itself, {' → '.join([*above, name])}")
        swept.update({key: text for key, text in arms.sweep.items() if key not in swept})
        claims.extend(read_claims(arms.claims, composer.file("experiment", name)))
        return [arm for part in arms.experiments for arm in expanded(part, (*above, name))]

    for argument in arguments:
        key, _, value = argument.removeprefix("+").partition("=")
        if key == "experiment":
            argument = f"experiment={','.join(dict.fromkeys(arm for name in value.split(',') for arm in expanded(name)))}"
        found.append(argument)
    given = {argument.partition("=")[0] for argument in found}
    added = {key: text for key, text in swept.items() if key not in given}
    distinct = list({claim.name: claim for claim in claims}.values())
    return WithArms([*found, *[f"{key}={text}" for key, text in added.items()]], frozenset(added), distinct)


def _with_space(overrides: list[Override], name: str, composer: Composer) -> list[Override]:
    """The overrides, and those of a search space for other keys."""
    mine = {override.key for override in overrides}
    added = [override for override in load_space(name, composer) if override.key not in mine]
    try:
        if added:
            SearchSpace([*[override for override in overrides if override.key in GROUPS], *added], composer)
    except ConfigError as error:
        owner = f"; it is the space of algo={name}" if name in composer.options("algo") else ""
        raise ConfigError(f"--space {name}: {error}{owner}") from error
    return [*overrides, *added]


def _search(options: dict[str, Any]) -> Search:
    from rlx.sweep.study import PRUNERS, SAMPLERS  # imports optuna

    search = Search(trials=options["trials"], storage=options["storage"])
    _check_trials(search.trials)
    for key, choices in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        if options[key] is not None:
            check_choice(f"--{key}", options[key], choices)
            setattr(search, key, options[key])
    if options["rungs"] is not None:
        if search.pruner == "none":
            raise ConfigError("--rungs has no effect without a pruner: add --pruner hyperband, or leave --rungs out")
        if not 2 <= options["rungs"] <= 8:
            raise ConfigError(f"--rungs {options['rungs']}: expected 2 to 8; the first rung is 1/3^(rungs - 1) of the steps")
        search.rungs = options["rungs"]
    return search


def _check_trials(trials: int) -> None:
    if not 1 <= trials <= _MOST_RUNS:
        raise ConfigError(f"--trials {trials}: expected at least 1 and at most {_MOST_RUNS:,}")


def extend(spec: Spec, *, seeds: str | None, trials: int | None, name: str) -> Spec:
    """A sweep with more seeds or trials.

    Raises:
        ConfigError: for fewer of them.
    """
    if seeds is not None:
        _, wanted = seeds_of([Override("seed", str(spec.seeds[0]))], seeds) if "," not in seeds else seeds_of([], seeds)
        missing = [s for s in spec.seeds if s not in wanted]
        if missing:
            raise ConfigError(f"--seeds {seeds}: {name} already has seeds {', '.join(map(str, spec.seeds))}; it can get more, not others")
        if wanted != spec.seeds and spec.search is not None:
            raise ConfigError(f"--seeds {seeds}: trials of a search that have been judged keep their seeds; confirm the best setting with "
                              f"`rlx sweep` over new seeds instead (`rlx ls --sweep {name}` shows it)")  # fmt: skip
        spec = dataclasses.replace(spec, seeds=[*spec.seeds, *[s for s in wanted if s not in spec.seeds]])
    if trials is not None:
        _check_trials(trials)
        if spec.search is None:
            raise ConfigError(f"--trials {trials}: {name} is a grid, not a search; start a search with a --name of its own")
        if trials < spec.search.trials:
            raise ConfigError(f"--trials {trials}: {name} has {spec.search.trials}; it can get more, not fewer")
        spec = dataclasses.replace(spec, search=dataclasses.replace(spec.search, trials=trials))
    return spec


def default_name(spec: Spec, configs: Sequence[RunConfig]) -> str:
    """A name from what is swept and a digest of the specification, so that the same command finds its sweep again."""
    algos, envs = ("+".join(dict.fromkeys(names)) for names in ((c.algo.name for c in configs), (c.env.id for c in configs)))
    keys = "-".join(k.rpartition(".")[2] for k in spec.swept if k not in ("algo", "env"))
    digest = hashlib.sha256(json.dumps(spec.identity(), sort_keys=True).encode()).hexdigest()[:6]
    readable = "-".join(part for part in (algos, envs.lower(), keys) if part)
    return f"{re.sub(r'[^A-Za-z0-9._+-]', '-', readable)[:80]}-{digest}"


def find(root: Path, name: str, spec: Spec) -> SweepDir | None:
    """The sweep of this name, if there is one and it is this sweep."""
    RunDir.check_name(name)
    path = root / name
    if not path.exists():
        return None
    if not is_sweep(path):
        raise ConfigError(f"{path} exists and is not a sweep; choose another --name")
    found = SweepDir(path)
    there, here = _flat(found.spec()), _flat(spec)
    changed = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    if changed:
        differences = "; ".join(f"{key} {there.get(key, 'not given')} there and {here.get(key, 'not given')} here" for key in changed)
        advice = "choose another --name"
        if changed == ["seeds"] and spec.search is None and set(spec.seeds) > set(found.spec().seeds):
            advice += f", or extend it: `rlx sweep --resume {name} --seeds {','.join(map(str, spec.seeds))}`"
        if changed == ["trials"] and int(here["trials"]) > int(there["trials"]):
            advice += f", or extend it: `rlx sweep --resume {name} --trials {here['trials']}`"
        raise ConfigError(f"{path} is another sweep: {differences}; {advice}")
    return found


def _flat(spec: Spec) -> dict[str, str]:
    """The specification as key and text, to compare two sweeps."""
    identity = spec.identity()
    overrides, search = identity.pop("overrides"), identity.pop("search") or {}
    del identity["swept"]  # follows from the overrides
    identity["seeds"] = ", ".join(map(str, spec.seeds))
    return {k: str(v) for k, v in {**overrides, **identity, **search}.items() if v is not None}
