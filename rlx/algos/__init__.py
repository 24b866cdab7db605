"""One file per algorithm, and the catalogue that names them. Importing this package does not import torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from rlx.config.algos.a2c_config import A2CConfig
from rlx.config.algos.alphago_config import AlphaGoConfig
from rlx.config.algos.alphazero_config import AlphaZeroConfig
from rlx.config.algos.base_config import AlgoConfig
from rlx.config.algos.i2a_config import I2AConfig
from rlx.config.algos.muzero_config import MuZeroConfig
from rlx.config.algos.pets_config import PETSConfig
from rlx.config.algos.ppo_config import PPOConfig
from rlx.config.algos.reinforce_config import ReinforceConfig


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
    "reinforce": AlgoInfo(
        ReinforceConfig, "rlx.algos.reinforce:Reinforce", "Monte-Carlo policy gradient, with or without a value baseline"
    ),
    "a2c": AlgoInfo(A2CConfig, "rlx.algos.a2c:A2C", "Advantage actor-critic, synchronous, n-step or GAE"),
    "ppo": AlgoInfo(PPOConfig, "rlx.algos.ppo:PPO", "Proximal policy optimisation, clipped or with an adaptive KL penalty"),
    "alphazero": AlgoInfo(
        AlphaZeroConfig, "rlx.algos.alphazero:AlphaZero", "Self-play and tree search, guided by a network that learns from them"
    ),
    "alphago": AlgoInfo(
        AlphaGoConfig, "rlx.algos.alphago:AlphaGo", "Imitates experts, improves by policy gradient, learns values, searches with all"
    ),
    "muzero": AlgoInfo(MuZeroConfig, "rlx.algos.muzero:MuZero", "The same tree search in a learned latent model, with reanalysis"),
    "i2a": AlgoInfo(I2AConfig, "rlx.algos.i2a:I2A", "Reads what a learned model imagines of its actions"),
    "pets": AlgoInfo(PETSConfig, "rlx.algos.pets:PETS", "Plans with an ensemble of learned models"),
}
