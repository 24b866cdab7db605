"""Starting a run from another run's networks and normalisers: `rlx train … --from RUN@CHECKPOINT`.

The weights are copied into the new run's directory when it is created, so that the run does not depend on the other one, also before its
first checkpoint. Optimisers, replay, counters and random generators start anew.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlx.checkpoint import find_checkpoints
from rlx.config.algo_registry import ALGORITHMS
from rlx.errors import CheckpointError, ConfigError
from rlx.evaluation.loading import choose_checkpoint
from rlx.files import UnreadableError, read_file
from rlx.serialize import serialize
from rlx.store.layout import runs_directory
from rlx.store.runs import RunDir
from rlx.types import Algorithm, Finetunable, State

FILE = "initial.pt"
"""File in a run's directory with the weights that it started from."""
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Source:
    """The weights of another run."""

    state: State
    """Complete state of its algorithm."""
    spaces: Any
    """Descriptions of its environment's spaces."""
    origin: dict[str, Any]
    """Source of the weights, for meta.json."""

    def file(self, algo: Algorithm) -> tuple[bytes, dict[str, Any]]:
        """The content of `FILE` for this algorithm, and its entry in meta.json."""
        own = algo.state_dict()
        parts = {name: _get(self.state, name) for name in _parts(algo) if _has(self.state, name) and _has(own, name)}
        data = serialize(parts)
        return data, {**self.origin, "parts": list(parts), "sha256": hashlib.sha256(data).hexdigest()}


def find_source(reference: str, *, warn: Callable[[str], None] = warnings.warn) -> Source:
    """The weights of `RUN` or `RUN@CHECKPOINT`, where the checkpoint is latest, best, or a number of env steps.

    Weights are read as data, so that runs of other people need no trust. `warn` is called if a damaged checkpoint is skipped.

    Raises:
        ConfigError: if there is no such run.
        CheckpointError: if there is no such checkpoint, or it is damaged.
    """
    name, at, which = reference.rpartition("@")
    if not (at and (which in ("latest", "best") or which.replace("_", "").isdigit())):
        name, which = reference, "latest"
    run = RunDir.open(runs_directory(), name)
    checkpoint = choose_checkpoint(run, which, warn=warn)
    manifest = checkpoint.manifest
    origin = {
        "reference": reference, "run": run.name, "path": str(run.path.resolve()), "algo": manifest.get("algo"),
        "env_id": run.meta().get("env_id"), "env_steps": checkpoint.env_steps,
        "checkpoint_sha256": manifest["files"].get("algo.pt"),
    }  # fmt: skip
    return Source(state=checkpoint.read_algorithm(), spaces=manifest.get("spaces"), origin=origin)


def check_fits(source: Source, algo: Algorithm, *, name: str, spaces: Mapping[str, str]) -> None:
    """Raise a ConfigError unless an algorithm can start from these weights.

    Args:
        source: the weights.
        algo: newly built.
        name: of the algorithm.
        spaces: descriptions of its environment's spaces.
    """
    there, reference = source.origin, source.origin["reference"]
    parts = _parts(algo)
    if not parts:
        why = "since it fits its model anew" if name in ALGORITHMS else "since its class has no weight_parts, see rlx.types.Finetunable"
        raise ConfigError(f"--from {reference}: algo={name} cannot start from weights, {why}; leave it out")
    own = algo.state_dict()
    taken = [part for part in parts if _has(source.state, part) and _has(own, part)]
    found = {part: _flat(_get(source.state, part), part) for part in taken}
    wanted = {part: _flat(_get(own, part), part) for part in taken}
    wrong = [] if parts[0] in taken else [f"{parts[0]} is only here"]
    for part in taken:
        for key in {**wanted[part], **found[part]}:
            mine, theirs = wanted[part].get(key), found[part].get(key)
            if mine is None or theirs is None:
                wrong.append(f"{key} {list((mine if theirs is None else theirs).shape)} is only {'here' if theirs is None else 'there'}")  # type: ignore[union-attr]
            elif mine.shape != theirs.shape:
                wrong.append(f"{key} is {list(theirs.shape)} there and {list(mine.shape)} here")
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ConfigError(
            f"--from {reference}: the weights of algo={there['algo']} on env={there['env_id']} ({_words(source.spaces)}) do not fit "
            f"algo={name} here ({_words(spaces)}): {'; '.join(wrong[:_SHOWN])}{more}; use the network settings and the spaces of that run"
        )


def load_initial(run: RunDir, algo: Algorithm) -> None:
    """Load the weights that a run starts from into its newly built algorithm, unless the run has a checkpoint.

    Raises:
        CheckpointError: if they are damaged or missing.
    """
    origin = run.meta().get("from")
    if origin is None and not os.path.lexists(run.path / FILE):
        return
    if find_checkpoints(run.checkpoints)[0]:
        return
    digest = origin.get("sha256") if isinstance(origin, dict) else None
    put(algo, read_initial(run.path / FILE, digest))


def read_initial(path: Path, sha256: object) -> State:
    """The weights in a `FILE`. Raises a CheckpointError if it is missing or has another digest."""
    try:
        data = read_file(path, limit=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except UnreadableError as error:
        raise CheckpointError(f"{path}, the weights that the run starts from, cannot be read: {error.reason}; start a new run") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError(f"{path} has changed since the run was started: its SHA-256 is not that of meta.json; start a new run")
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:
        raise CheckpointError(f"{path} is not plain data and was not loaded: {type(error).__name__}") from error


def put(algo: Algorithm, weights: State) -> None:
    """Replace entries of an algorithm's state, named as in `weight_parts`."""
    state = algo.state_dict()
    for path, value in weights.items():
        *outer, last = path.split("/")
        entries = state
        for name in outer:
            entries[name] = dict(entries[name])
            entries = entries[name]
        entries[last] = value
    algo.load_state_dict(state)


def _has(state: Any, path: str) -> bool:
    """Whether a state has an entry at a path with slashes."""
    for name in path.split("/"):
        if not isinstance(state, Mapping) or name not in state:
            return False
        state = state[name]
    return True


def _get(state: Any, path: str) -> Any:
    for name in path.split("/"):
        state = state[name]
    return state


def _parts(algo: Algorithm) -> tuple[str, ...]:
    """Paths of the entries of an algorithm's state that are networks and normalisers; only the first is required."""
    return algo.weight_parts if isinstance(algo, Finetunable) else ()


def _flat(tree: Any, path: str) -> dict[str, Tensor]:
    """The tensors of a state by their path."""
    if isinstance(tree, Tensor):
        return {path: tree}
    entries = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    return {key: leaf for name, part in entries for key, leaf in _flat(part, f"{path}.{name}").items()}


def _words(spaces: Any) -> str:
    return f"{spaces.get('observation')} to {spaces.get('action')}" if isinstance(spaces, Mapping) else "unknown spaces"
