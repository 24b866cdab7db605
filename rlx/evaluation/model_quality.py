"""How well the learned model of a saved run predicts episodes that it was not fitted to."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from rlx.build import env_factory
from rlx.config.choices import check_choice
from rlx.errors import ConfigError
from rlx.evaluation.capabilities import algorithms_with, has
from rlx.evaluation.episodes import MAX_PARALLEL, Recording, episode_seeds, never, record_episodes
from rlx.evaluation.loading import choose_checkpoint, load_policy
from rlx.evaluation.model_error import LEVELS, ModelError, judge, predictive_rank, windows
from rlx.rng import isolated_rng
from rlx.store.runs import RunDir
from rlx.types import Mode, PolicyOutput, PredictsObservations, Tree

MODEL_STREAM = [0xF0CE5]
"""Seeds the episodes of `rlx model`: the same for every run, and none of those that trained it or chose a checkpoint."""
POLICIES = ("plan", "random")
_MAX_STARTS = 500
_MIN_SAMPLES = 200
"""Sampled trajectories from each start."""
_BATCH_SIZE = 32
"""Starts that are predicted at once, which bounds the memory."""


class RandomPolicy:
    """Samples the action space."""

    device = torch.device("cpu")

    def __init__(self, space: gymnasium.Space[Any], *, seed: int) -> None:
        self._space = copy.deepcopy(space)  # whose generator is its own
        self._space.seed(seed)
        self._start = int(getattr(space, "start", 0))

    def initial_carry(self, batch_size: int) -> Tree:
        return ()

    def act(self, obs: Tree, carry: Tree, is_first: torch.Tensor, *, mode: Mode) -> PolicyOutput:
        sampled = np.stack([self._space.sample() for _ in range(len(is_first))])
        return PolicyOutput(torch.from_numpy(sampled - self._start if self._start else sampled), carry, {})


@dataclass(frozen=True, kw_only=True)
class ModelEvaluation:
    """The errors of a run's model on new episodes."""

    run: str
    env: str
    """The environment's id."""
    env_steps: int
    """Of the checkpoint."""
    policy: str
    """plan or random: what chose the actions."""
    num_episodes: int
    eval_env_steps: int
    horizon: int
    """Steps ahead that were predicted."""
    error: ModelError

    @property
    def title(self) -> str:
        return f"{self.run} at {self.env_steps:,} env steps, {self.num_episodes} new episode{'s' if self.num_episodes > 1 else ''}"

    def as_dict(self) -> dict[str, Any]:
        """Everything that was measured as plain data; None in place of what is not finite."""

        def finite(values: Any) -> Any:
            return [finite(v) for v in values] if np.ndim(values) else (float(values) if math.isfinite(values) else None)

        error = self.error
        return {
            "run": self.run,
            "env_steps": self.env_steps,
            "policy": self.policy,
            "episodes": self.num_episodes,
            "eval_env_steps": self.eval_env_steps,
            "horizon": self.horizon,
            "starts": len(error.disagreement),
            "features": error.features,
            "k_step_error": finite(error.error),
            "no_change_error": finite(error.no_change),
            "feature_error": finite(error.error_by_feature),
            **{f"coverage_{100 * level:.0f}": finite(error.coverage(level)) for level in (0.5, 0.9)},
            "calibration": [{"nominal": level, "observed": float(error.coverage(level).mean())} for level in LEVELS],
            "disagreement": finite(error.disagreement.mean()),
            "spearman": finite(error.spearman),
        }


def evaluate_model(
    run: RunDir,
    *,
    checkpoint: str = "latest",
    episodes: int = 5,
    policy: str = "plan",
    horizon: int | None = None,
    seed: int = 0,
    trust: bool = False,
    should_stop: Callable[[], bool] = never,
    warn: Callable[[str], None] = warnings.warn,
) -> ModelEvaluation:
    """Predict new episodes from many starts, under the actions that were taken there, and compare.

    Args:
        run: of an algorithm that predicts observations.
        checkpoint: `best`, `latest`, or the env steps of one.
        episodes: how many are played.
        policy: what acts: plan, the run as in its evaluations, or random.
        horizon: steps ahead; by default as many as the algorithm itself uses.
        seed: draws other episodes than the usual ones.
        trust: run the code that somebody else's run names.
        should_stop: is asked before every env step.
        warn: is called with a message where a damaged checkpoint is passed over.

    Raises:
        ConfigError: if the run has no such model, or has not fitted it yet, or no episode is as long as the horizon.
        CheckpointError: if there is no such checkpoint.
        Stopped: when `should_stop` returns True.
    """
    check_choice("--policy", policy, POLICIES)
    config = run.config(trust=trust)
    if not has(config.algo.name, PredictsObservations):
        able = algorithms_with(PredictsObservations)
        raise ConfigError(f"{run.reference} is algo={config.algo.name}, whose predictions rlx model does not compare, as it does those of "
                          f"{able} (rlx train algo=pets env=pendulum); rlx eval {run.reference} evaluates this run")  # fmt: skip
    chosen = choose_checkpoint(run, checkpoint, warn=warn)
    env = env_factory(config)(min(episodes, MAX_PARALLEL))
    algo = load_policy(config, chosen, env)
    model = cast(PredictsObservations, algo)
    if model.observation_scale() is None:
        raise ConfigError(f"{run.reference} at {chosen.env_steps:,} env steps has not fitted its model yet; choose a later --checkpoint, "
                          f"or rlx resume {run.reference}")  # fmt: skip
    ahead = model.prediction_horizon() if horizon is None else horizon
    actor = algo if policy == "plan" else RandomPolicy(env.single_action_space, seed=seed % 2**32)
    with isolated_rng(seed, chosen.env_steps):
        try:
            played = record_episodes(env, actor, episode_seeds(episodes, stream=[*MODEL_STREAM, seed]), should_stop=should_stop)
        finally:
            env.close()
        error = measure_error(model, played, ahead, device=algo.device)
    return ModelEvaluation(run=run.name, env=config.env.id, env_steps=chosen.env_steps, policy=policy, num_episodes=episodes,
                           eval_env_steps=sum(len(e.action) for e in played), horizon=ahead, error=error)  # fmt: skip


def measure_error(model: PredictsObservations, episodes: Sequence[Recording], horizon: int, *, device: torch.device) -> ModelError:
    """Compare predictions from starts that are spread over the episodes with what was observed.

    Raises:
        ConfigError: if no episode is as long as the horizon.
    """
    flat = [(np.stack(e.obs).reshape(len(e.obs), -1), np.stack(e.action)) for e in episodes]
    found = windows(flat, horizon, _MAX_STARTS)
    if found is None:
        longest = max(len(action) for _, action in flat)
        raise ConfigError(f"--horizon {horizon}: the longest of the episodes lasts {longest} steps; expected 1 to {longest}, "
                          f"e.g. --horizon {max(1, longest // 2)}")  # fmt: skip
    obs, action = found
    means, ranks, disagreements = list[NDArray[Any]](), list[NDArray[Any]](), list[NDArray[Any]]()
    for begin in range(0, obs.shape[1], _BATCH_SIZE):
        part = slice(begin, begin + _BATCH_SIZE)
        first, actions = (torch.from_numpy(x.astype(np.float32)).to(device) for x in (obs[0, part], action[:, part]))
        mean, samples, disagreement = (x.cpu().numpy() for x in model.predict_observations(first, actions, min_samples=_MIN_SAMPLES))
        means.append(mean)
        ranks.append(np.stack([predictive_rank(s, o) for s, o in zip(samples, obs[1:, part], strict=True)]))
        disagreements.append(disagreement)
    mean, rank, disagreement = (np.concatenate(x, axis=1).astype(np.float64) for x in (means, ranks, disagreements))
    scale = model.observation_scale()
    assert scale is not None, "predictions exist only after a fit"
    return judge(obs.astype(np.float64), mean, rank, disagreement, scale.cpu().numpy().astype(np.float64))
