"""Configuration, group, tags and notes of a run's copies in W&B, from its configuration and meta.json."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from typing import Any

from rlx.config.schema import RunConfig
from rlx.store.labels import Labels


def wandb_fields(config: RunConfig, meta: dict[str, Any], run: str) -> dict[str, Any]:
    """How every copy of a run in W&B is described: arguments of `make_mirror` and `upload`.

    $WANDB_NAME is the title of a run by itself; the runs of a sweep are told apart by SWEEP/RUN.
    """
    sweep = meta.get("sweep")
    name = f"{sweep}/{run}" if sweep else run
    return {
        "name": name, "title": name if sweep else os.environ.get("WANDB_NAME") or name, "group": wandb_group(config, meta, run),
        "project": config.log.wandb_project, "entity": config.log.wandb_entity, "config": wandb_config(config, meta),
        "tags": wandb_tags(config, meta), "notes": wandb_notes(meta),
    }  # fmt: skip


def wandb_tags(config: RunConfig, meta: dict[str, Any]) -> list[str]:
    """Tags of a run's copies in W&B: algorithm, environment, sweep, and the user's own."""
    sweep = [f"sweep:{meta['sweep']}"] if meta.get("sweep") else []
    return [config.algo.name, config.env.id, *sweep, *Labels.of(meta).tags]


def wandb_notes(meta: dict[str, Any]) -> str | None:
    """The notes of a run's copies in W&B; None if there are none."""
    return Labels.of(meta).notes or None


def wandb_config(config: RunConfig, meta: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run's copies in W&B: the settings, and the run's recipe and commit."""
    return {**dataclasses.asdict(config), **{key: meta[key] for key in ("recipe", "commit", "from") if meta.get(key)}}


def wandb_group(config: RunConfig, meta: dict[str, Any], name: str) -> str:
    """The W&B group of the seeds of one setting: SWEEP/000, or the run's name without its seed."""
    if meta.get("sweep"):
        return f"{meta['sweep']}/{meta.get('point') or name.rpartition('-s')[0]}"
    named = re.sub(rf"-s{config.seed}$", "", name)
    if named != name:
        return named
    setting = dataclasses.asdict(config)
    del setting["seed"], setting["log"], setting["runtime"]
    digest = hashlib.sha256(json.dumps(setting, sort_keys=True, default=str).encode()).hexdigest()[:6]
    return f"{config.algo.name}-{re.sub(r'[^A-Za-z0-9._+-]', '-', str(meta.get('env') or config.env.id))}-{digest}"
