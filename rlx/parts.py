"""The parts of a run that trains, from its RunConfig: algorithm, collector, evaluator and checkpointer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from rlx.build import build_algorithm, env_factory, env_spec, image_notes, known_best, setup_torch, spaces_in_words
from rlx.checkpoint import Checkpointer
from rlx.collect import Collector
from rlx.config.saved import save_config
from rlx.config.schema import RunConfig
from rlx.evaluation.evaluator import Evaluator
from rlx.types import Algorithm


@dataclass(kw_only=True)
class Parts:
    """What `loop.train` needs, less the logger."""

    algo: Algorithm
    collector: Collector
    evaluator: Evaluator
    checkpointer: Checkpointer
    notes: list[str]
    """What the user should hear of the environment."""

    def tell(self, note: Callable[[str], None]) -> None:
        """Say what there is to say of the environment, and from now on that a replay takes long."""
        if hasattr(self.collector.env, "note"):
            self.collector.env.note = note
        for text in self.notes:
            note(f"warning: {text}")

    def close(self) -> None:
        self.collector.env.close()
        self.evaluator.close()


def build(config: RunConfig, checkpoints: Path, device: torch.device, *, inexact: bool = False) -> Parts:
    """Everything a run is made of."""
    setup_torch(config, device)
    make_env = env_factory(config)
    env, defect = make_env.training(config.env.num_envs, inexact=inexact)
    spec = env_spec(config.env, env)
    try:
        algo = build_algorithm(config, spec, device)
    except BaseException:
        env.close()
        raise
    return Parts(
        algo=algo,
        collector=Collector(env, algo, seed=config.seed, inexact=defect),
        evaluator=Evaluator(
            make_env,
            num_episodes=config.loop.eval_episodes,
            seed=config.seed,
            paired=config.env.is_game,
            probe=known_best(make_env),
            max_steps=config.loop.eval_max_steps,
        ),
        checkpointer=Checkpointer(
            checkpoints,
            algo=config.algo.name,
            keep=config.loop.keep_checkpoints,
            inexact=defect,
            config=save_config(config),
            spaces=spaces_in_words(env),
        ),
        notes=[f"env={spec.id}: {text}" for text in getattr(env, "notes", [])] + image_notes(spec),
    )
