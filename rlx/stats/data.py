"""Runs read for statistics, and the groups that they are compared in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.config.choices import did_you_mean
from rlx.config.saved import leaf_keys, load_config
from rlx.config.setting import unused
from rlx.errors import ConfigError
from rlx.store.layout import is_sweep
from rlx.store.layout import members as run_directories
from rlx.store.references import find_directories
from rlx.store.runs import RunDir
from rlx.store.sweeps import SweepDir

Series = tuple[NDArray[np.float64], NDArray[np.float64]]

_NO_DIFFERENCE = ("seed", "log.", "runtime.", "loop.log_every", "loop.eval_every", "loop.eval_episodes", "loop.checkpoint_every",
                  "loop.keep_checkpoints", "env.worker")  # fmt: skip
"""Settings that do not change what is learnt: where a run is trained, and how often it is logged and evaluated."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """One run, read for statistics."""

    name: str
    """As a command takes it: car, or lr/003-s1."""
    seed: int
    status: str
    settings: dict[str, Any]
    """Every key of its configuration but the seed; algo and env by their short names, and the names of its recipe and experiment."""
    lines: list[dict[str, Any]]
    sweep: str | None = None
    swept: tuple[str, ...] = ()
    """The keys that its sweep swept."""
    unused: frozenset[str] = frozenset()
    """Keys of settings that have no effect beside the others."""

    def series(self, metric: str, x: str = "env_steps") -> Series:
        """The lines that have the metric: x [n] and its values [n]."""
        points = [(line[x], line[metric]) for line in self.lines if _is_number(line.get(metric)) and _is_number(line.get(x))]
        pairs = np.array(points, dtype=np.float64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    @property
    def env_steps(self) -> int:
        """How far it got."""
        return int(self.lines[-1]["env_steps"]) if self.lines else 0

    @property
    def elapsed_s(self) -> float | None:
        return next((float(line["time/elapsed_s"]) for line in reversed(self.lines) if _is_number(line.get("time/elapsed_s"))), None)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in their seed only, or in what the user leaves out of account."""

    label: str
    values: dict[str, Any]
    runs: list[RunData]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def load(root: Path, references: list[str]) -> tuple[list[RunData], list[str]]:
    """Read runs and sweeps, by name, path, pattern, or `latest`.

    Returns:
        The runs, and for each one of a sweep that cannot be read, why.

    Raises:
        ConfigError: for a reference to nothing, for a run that cannot be read although it is asked for itself, and if none can be read.
    """
    paths: dict[Path, tuple[Path, str]] = {}
    members: set[Path] = set()
    for reference in references:
        for path in find_directories(root, reference):
            if is_sweep(path):
                for run in run_directories(path):
                    paths.setdefault(run.resolve(), (run, f"{path.name}/{run.name}"))
                    members.add(run.resolve())
            else:
                inside = is_sweep(path.parent)
                if any(c in reference for c in "*?["):
                    members.add(path.resolve())
                paths.setdefault(path.resolve(), (path, f"{path.parent.name}/{path.name}" if inside else path.name))
    found, unreadable = [], []
    for resolved, (path, name) in paths.items():
        try:
            found.append(_read(path, name))
        except ConfigError as error:
            if resolved not in members:
                raise
            unreadable.append(f"{name} cannot be read and is left out: {error}")
    if unreadable and not found:
        raise ConfigError(unreadable[0])
    return found, unreadable


def _read(path: Path, name: str) -> RunData:
    run = RunDir(path)
    config, meta = load_config(path / "config.yaml"), run.meta()  # only looked at: no environment is made
    settings = {key: value for key, value in leaf_keys(config).items() if key not in ("seed", "algo.name", "env.id")}
    chosen = {"algo": config.algo.name, "env": str(meta.get("env") or config.env.id)} | {k: meta.get(k) for k in ("recipe", "experiment")}
    swept = SweepDir(path.parent).content().get("swept")
    return RunData(name=name, seed=config.seed, status=run.status, settings=chosen | settings, lines=run.metrics(),
                   unused=frozenset(unused(config)),
                   sweep=path.parent.name if is_sweep(path.parent) else None,
                   swept=tuple(swept) if isinstance(swept, list) and all(isinstance(key, str) for key in swept) else ())  # fmt: skip


def of_one_seed(runs: Sequence[RunData]) -> list[list[int]]:
    """Positions of the runs that share seed and environment: these are not independent, and count as one."""
    found: dict[tuple[int, Any], list[int]] = {}
    for i, run in enumerate(runs):
        found.setdefault((run.seed, run.settings.get("env")), []).append(i)
    return list(found.values())


def group(runs: list[RunData], by: list[str] | None = None) -> list[Group]:
    """Group runs.

    Args:
        by: the keys that tell groups apart. None: what a sweep swept, if all runs are of one; else every key in which runs differ,
            other than seed, cadences, logging and runtime.

    Raises:
        ConfigError: for a key that no run has.
    """
    known = {key: None for run in runs for key in run.settings}
    keys = [_resolve(key, list(known)) for key in by] if by is not None else _differing(runs, list(known))
    groups: dict[str, tuple[dict[str, Any], list[RunData]]] = {}
    for run in runs:
        values = {key: None if key in run.unused else run.settings.get(key) for key in keys}
        groups.setdefault(json.dumps(values, default=str), (values, []))[1].append(run)
    ordered = sorted(groups.values(), key=lambda item: [_order(v) for v in item[0].values()])
    own = [{k: v for k, v in values.items() if k in members[0].settings and k not in members[0].unused} for values, members in ordered]
    lacking = f"without {' or '.join(key.rpartition('.')[2] for key in keys)}"  # the group whose runs have none of these keys
    labels = [label(values) if values or not keys else lacking for values in own]
    if len(set(labels)) < len(labels):
        labels = [label(values, digits=17) if values or not keys else lacking for values in own]
    return [Group(label=name, values=values, runs=members) for name, (values, members) in zip(labels, ordered, strict=True)]


def _resolve(key: str, known: list[str]) -> str:
    """A key as it was typed: whole, or its last part if that is unmistakable."""
    if key in known:
        return key
    matching = [k for k in known if k.rpartition(".")[2] == key]
    if len(matching) == 1:
        return matching[0]
    raise ConfigError(
        f"--by {key}: no run has this key; {did_you_mean(key, known) if not matching else 'write one of ' + ', '.join(matching)}"
    )


def _differing(runs: list[RunData], known: list[str]) -> list[str]:
    swept = {run.swept for run in runs}
    if len({run.sweep for run in runs}) == 1 and len(swept) == 1 and (keys := next(iter(swept))):
        return list(keys)
    different = [key for key in known if len({json.dumps(run.settings.get(key), default=str) for run in runs}) > 1]
    different = [key for key in different if not key.startswith(_NO_DIFFERENCE)]
    if "algo" in different:  # algorithms have different keys and defaults, which their names stand for
        shared = [k for k in different if not k.startswith("algo.") or _differs_within(runs, k, "algo")]
        different = shared
    if not all(run.settings.get("experiment") for run in runs):
        different = [k for k in different if k != "experiment"]
    if "experiment" in different:  # the names stand for what differs
        different = [k for k in different if k == "experiment" or _differs_within(runs, k, "experiment")]
    if "env" in different:
        different = [
            k for k in different if k != "recipe" and (not k.startswith(("env.", "algo.", "loop.")) or _differs_within(runs, k, "env"))
        ]
    return [k for k in different if k != "recipe" or len(different) == 1]


def _differs_within(runs: list[RunData], key: str, choice: str) -> bool:
    """Whether a key also differs among runs of the same algorithm, or env."""
    values: dict[str, set[str]] = {}
    for run in runs:
        values.setdefault(str(run.settings.get(choice)), set()).add(json.dumps(run.settings.get(key), default=str))
    return any(len(found) > 1 for found in values.values())


def _order(value: Any) -> tuple[int, float, str]:
    """Sort key: numbers by size, then texts."""
    if _is_number(value):
        return 0, float(value), ""
    return (2, 0.0, "") if value is None else (1, 0.0, str(value))


def label(values: dict[str, Any], *, digits: int = 4) -> str:
    """One line: learning_rate=0.001 clip=0.2; algorithm and environment by their names alone."""
    if not values:
        return "all"
    lasts = [key.rpartition(".")[2] for key in values]
    parts = []
    for key, last in zip(values, lasts, strict=True):
        value = values[key]
        if value is None or isinstance(value, bool):
            shown = json.dumps(value)
        else:
            shown = f"{value:.{digits}g}" if isinstance(value, float) else str(value).replace(" ", "")
        name = last if lasts.count(last) == 1 else key
        parts.append(shown if key in ("algo", "env") else f"{name}={shown}")
    return " ".join(parts)


def metrics_of(runs: Iterable[RunData]) -> list[str]:
    """Every metric that any of the runs logged."""
    return sorted({key for run in runs for line in run.lines for key, value in line.items() if "/" in key and _is_number(value)})


def objective_of(root: Path, runs: list[RunData]) -> tuple[str, bool] | None:
    """The objective of the sweep that all runs are of, and whether it is minimised; None if there is none, or it was not logged."""
    names = {run.sweep for run in runs}
    content = SweepDir(root / str(names.pop())).content() if len(names) == 1 else {}
    objective = content.get("objective")
    return (objective, content.get("direction") == "minimize") if objective in metrics_of(runs) else None


def check_metric(runs: list[RunData], metric: str) -> None:
    """Raise a ConfigError that names the nearest ones if no run logged a metric."""
    there = metrics_of(runs)
    if not there:
        raise ConfigError("none of these runs has logged anything yet; `rlx ls` shows how far they are")
    if metric not in there:
        raise ConfigError(f"--metric {metric}: no run logged it; {did_you_mean(metric, there)}")
