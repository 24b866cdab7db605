"""A trained policy from a run's directory: which checkpoint, and the algorithm as it was saved there."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from rlx.build import build_algorithm, env_spec, resolve_device, setup_torch, spaces_in_words
from rlx.checkpoint import Checkpoint, best_checkpoint, find_checkpoints, load_algorithm
from rlx.config.schema import RunConfig
from rlx.errors import CheckpointError, ConfigError
from rlx.store.runs import RunDir
from rlx.types import Algorithm, VectorEnv


def choose_checkpoint(run: RunDir, which: str = "latest", *, warn: Callable[[str], None] = warnings.warn) -> Checkpoint:
    """The checkpoint that `best`, `latest` or a number of env steps means.

    Args:
        run: whose checkpoints.
        which: `latest` falls back to an earlier one where the newest is damaged.
        warn: is called with a message then.

    Raises:
        CheckpointError: if there is no such checkpoint, or all are damaged.
    """
    found, broken = find_checkpoints(run.checkpoints)
    if not found:
        reason = f": {broken[0]}" if broken else "; it has not saved one yet"
        raise CheckpointError(f"{run.path} has no checkpoint to evaluate{reason}")
    there = ", ".join(str(c.env_steps) for c in found)
    if which == "latest":
        for candidate in found:
            try:
                candidate.verify(items=False)  # which an evaluation does not read
                return candidate
            except CheckpointError as error:
                warn(f"{error}; falling back to the checkpoint before it")
        raise CheckpointError(f"every checkpoint in {run.checkpoints} is damaged")
    if which == "best":
        best = best_checkpoint(found)
        if best is None:
            raise CheckpointError(
                f"{run.path} was never evaluated, so no checkpoint is the best; use --checkpoint latest or one of {there}"
            )
        return best
    steps = which.replace("_", "").replace(",", "")
    for candidate in found:
        if steps.isdigit() and candidate.env_steps == int(steps):
            return candidate
    raise CheckpointError(f"--checkpoint {which}: {run.path} has no such checkpoint; expected best, latest or one of {there}")


def usable_device(config: RunConfig) -> torch.device:
    """The device of a run's settings, or the CPU where that is missing."""
    try:
        return resolve_device(config)
    except ConfigError:  # trained on a GPU that is not here
        return torch.device("cpu")


def load_policy(config: RunConfig, checkpoint: Checkpoint, env: VectorEnv, *, device: torch.device | None = None) -> Algorithm:
    """The algorithm of a run as a checkpoint has it, for environments like `env`.

    Args:
        config: of the run.
        checkpoint: of the run.
        env: one or a batch of the environments to act in.
        device: where it computes; by default the run's own, or the CPU where that is missing.

    Raises:
        CheckpointError: if the checkpoint is damaged, or was written for other spaces.
    """
    device = usable_device(config) if device is None else device
    setup_torch(config, device)
    algo = build_algorithm(config, env_spec(config.env, env), device)
    load_algorithm(checkpoint, algo, name=config.algo.name, spaces=None if config.env.is_game else spaces_in_words(env))
    return algo
