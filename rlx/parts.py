"""The parts of a run that trains, from its RunConfig: algorithm, collector, evaluator and checkpointer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlx.build import (
    build_algorithm,
    check_ranks,
    env_factory,
    env_spec,
    known_best,
    ranks_notes,
    run_notes,
    setup_torch,
    spaces_in_words,
)
from rlx.checkpointer import Checkpointer
from rlx.collect import Collector
from rlx.config.saved import save_config
from rlx.config.schema import RunConfig
from rlx.distributed import ALONE, World
from rlx.evaluation.evaluator import Evaluator
from rlx.types import Algorithm, ChecksTrust, Distributes, HasNotes, ReportsNetwork, ReportsReplay


@dataclass(kw_only=True)
class Parts:
    """The parts of `loop.train`, without the logger."""

    algo: Algorithm
    collector: Collector
    evaluator: Evaluator
    checkpointer: Checkpointer
    notes: list[str]
    """Warnings about the environment."""
    network: dict[str, Any] | None
    """What the network is made of, see `rlx.nn.network_report`; None if the algorithm does not say."""

    def tell(self, note: Callable[[str], None]) -> None:
        """Pass the warnings about the environment to `note`, and later a message if a replay of episodes takes long."""
        if isinstance(self.collector.env, ReportsReplay):
            self.collector.env.note = note
        for text in self.notes:
            note(f"warning: {text}")

    def trust(self, trusted: bool) -> None:
        """Say whether states of environments that could harm this process may be restored."""
        if isinstance(self.collector.env, ChecksTrust):
            self.collector.env.is_trusted = trusted

    def close(self) -> None:
        self.collector.env.close()
        self.evaluator.close()


def build(config: RunConfig, checkpoints: Path, device: torch.device, *, inexact: bool = False, world: World = ALONE) -> Parts:
    """The parts of a run, or of this rank's share of it."""
    check_ranks(config, world.size)
    setup_torch(config, device)
    make_env = env_factory(config)
    own = world.share(config.env.num_envs)
    env, defect = make_env.training(own.stop - own.start, inexact=inexact)
    spec = env_spec(config.env, env)
    try:
        algo = build_algorithm(config, spec, device, num_envs=own.stop - own.start)
        if isinstance(algo, Distributes):
            algo.join(world)
    except BaseException:
        env.close()
        raise
    return Parts(
        algo=algo,
        collector=Collector(env, algo, seed=config.seed, inexact=defect, world=world),
        evaluator=Evaluator(
            make_env,
            num_episodes=config.loop.eval_episodes,
            seed=config.seed,
            paired=config.env.is_game,
            probe=known_best(make_env),
            max_steps=config.loop.eval_max_steps,
            world=world,
        ),
        checkpointer=Checkpointer(
            checkpoints,
            algo=config.algo.name,
            keep=config.loop.keep_checkpoints,
            inexact=defect,
            config=save_config(config),
            spaces=spaces_in_words(env),
            world=world,
        ),
        network=algo.network_report() if isinstance(algo, ReportsNetwork) else None,
        notes=[f"env={spec.id}: {text}" for text in (env.notes if isinstance(env, HasNotes) else [])]
        + run_notes(algo, spec, config)
        + ranks_notes(algo, config, world),
    )
