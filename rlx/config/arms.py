"""An experiment file that lists other experiments, to be compared in one sweep, with what is swept and what is claimed of them.

arms: [trust_off, trust_steve]
sweep:                                       # swept in the arms that use it, unless the command line says otherwise
  algo.model.corruption: none,independent
claims:                                      # what `rlx compare` judges: rlx/store/claim_spec.py
  - {name: floor, left: experiment=trust_steve, relation: not below, right: experiment=trust_off}

`rlx.sweep.prepare.with_arms` replaces the name of such a file by its arms.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlx.errors import ConfigError

_KEYS = ("arms", "sweep", "claims")


@dataclass(frozen=True, kw_only=True)
class Arms:
    """The content of such a file."""

    experiments: list[str]
    sweep: dict[str, str]
    """Key and values in Hydra's sweep syntax."""
    claims: list[Any]
    """As the file has them; `rlx.store.claim_spec.read_claims` checks them."""


def read_arms(content: dict[str, Any], path: Path | None) -> Arms:
    """Check the content of a file of arms.

    Raises:
        ConfigError: for keys and forms that it cannot have.
    """
    if unknown := [key for key in content if key not in _KEYS]:
        raise ConfigError(f"{path}: a file of arms has {', '.join(_KEYS)} and no {unknown[0]}; settings go into the arms")
    arms, swept, claims = content["arms"], content.get("sweep") or {}, content.get("claims") or []
    if not isinstance(arms, list) or not arms:
        raise ConfigError(f"{path}: arms must be a list of experiments, got {arms}")
    if not isinstance(claims, list):
        raise ConfigError(f"{path}: claims must be a list, got {claims}")
    if not isinstance(swept, dict) or any(isinstance(value, dict | list) or value is None for value in swept.values()):
        raise ConfigError(f"{path}: sweep must hold lines like `algo.model.corrupt_prob: 0,0.5`, got {swept}")
    texts = {str(key): str(value).lower() if isinstance(value, bool) else str(value) for key, value in swept.items()}
    return Arms(experiments=[str(name) for name in arms], sweep=texts, claims=claims)
